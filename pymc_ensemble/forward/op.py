"""The PyTensor Op of a forward model."""

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import pytensor.tensor as pt
from numpy.typing import NDArray
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.op import Op
from pytensor.graph.replace import _vectorize_node

from .numba import run_as_python
from .rounding import Rounding, asks_one_by_one
from .rounds import Round, current_round, looks_up
from .tasks import Signature


class Evaluates(Protocol):
    """What a graph needs of a forward model."""

    @property
    def random(self) -> str:
        """Argument by which the function gets randomness, or "" if it is deterministic."""

    @property
    def name(self) -> str:
        """Name of the function."""

    @property
    def workers(self) -> int:
        """Number of evaluations at the same time."""

    def resized(self, signature: Signature, inputs: Sequence[np.ndarray]) -> Signature:
        """Signature for inputs of other shapes."""

    def evaluate(
        self,
        signature: Signature,
        points: NDArray[np.float64],
        this: Round | None,
        fixed: tuple[np.ndarray, ...],
        rounding: Rounding | None,
        proposal: bool,
    ) -> tuple[NDArray[np.float64], dict[int, str]]:
        """Outputs of a batch of points, and the reasons of failed rows."""


class ForwardOp(Op):
    """A forward model inside a PyTensor graph. Leading dimensions of its inputs are batches.

    Parameters
    ----------
    forward : ForwardModel
    signature : Signature
        Inputs and outputs without leading dimensions.
    rounding : Rounding
        Rounding by which the inputs of a draw may have moved when it comes back.
    unknowns : frozenset of str
        Names of the variables on which the inputs depend.
    flexible : bool, default False
        Whether the shapes of data inputs, and with them those of the outputs, may change.

    Notes
    -----
    PyTensor's rewriters remember for ever every Op that they have seen. So an Op does not keep its
    forward model alive, with its workers and its memory. The nodes of graphs do, by their tags,
    which all copies of a node share.
    """

    __props__ = ("_forward", "signature", "flexible")

    def __init__(
        self,
        forward: Evaluates,
        signature: Signature,
        rounding: Rounding,
        unknowns: frozenset[str | None],
        flexible: bool = False,
    ):
        self._forward, self.signature = weakref.ref(forward), signature
        self.rounding, self.unknowns, self.flexible = rounding, unknowns, flexible

    @property
    def forward(self) -> Evaluates:
        """The forward model."""
        forward = self._forward()
        assert forward is not None, "the graph that the forward model belongs to is gone"
        return forward

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_forward": self.forward}

    def __setstate__(self, state: dict[str, Any]) -> None:
        run_as_python(ForwardOp)  # in another process
        self.__dict__.update(state | {"_forward": weakref.ref(state["_forward"])})

    def __str__(self) -> str:
        forward = self._forward()
        return "Forward" if forward is None else f"Forward{{{forward.name}}}"

    def make_node(self, *inputs: Any) -> Apply:
        """Apply to inputs of the core shapes, with any leading dimensions."""
        run_as_python(ForwardOp)
        variables = [pt.as_tensor(v) for v in inputs]
        core = self.signature.shapes
        leads = [
            v.type.shape[: v.type.ndim - len(shape)]
            for v, shape in zip(variables, core, strict=True)
        ]
        n = max(map(len, leads), default=0)
        padded = [(1,) * (n - len(lead)) + tuple(lead) for lead in leads]
        lead = [_common(lengths) for lengths in zip(*padded, strict=True)]
        assert self.signature.outputs is not None
        outputs = [
            pt.tensor(
                dtype="float64", shape=(*lead, *((None,) * len(shape) if self.flexible else shape))
            )
            for shape in self.signature.outputs.shapes
        ]
        node = Apply(self, variables, outputs)
        node.tag.forward = self.forward  # it lives as long as a graph that needs it
        return node

    def perform(self, node: Apply, inputs: Sequence, output_storage: list) -> None:
        """Evaluate all points in one batch."""
        inputs = [np.asarray(value) for value in inputs]
        signature, leads = self.signature_for(inputs)
        known = signature.outputs
        assert known is not None
        fixed = tuple(i for i in signature.fixed if not leads[i])
        rounding: Rounding | None = self.rounding
        if fixed != signature.fixed:  # there are several data sets
            signature, rounding = replace(signature, fixed=fixed), None
        lead = np.broadcast_shapes(*leads)
        n = int(np.prod(lead))
        pieces = [
            np.broadcast_to(inputs[i], (*lead, *signature.shapes[i])).reshape(n, -1)
            for i in signature.varying
        ]
        points = np.concatenate([*pieces, np.empty((n, 0))], axis=1, dtype=np.float64)
        this, proposal = current_round(), False
        if this is not None:
            rounding = None
        elif not (looks_up() or self._asks_one_by_one(node)):
            rounding, proposal = None, True
        outputs, reasons = self.forward.evaluate(
            signature, points, this, tuple(inputs[i] for i in fixed), rounding, proposal
        )
        if this is not None:
            this.n_models += 1
            inner = n // this.size if lead and lead[0] == this.size else 0
            for row, reason in reasons.items():
                members = [row // inner] if inner else range(this.size)
                this.failures |= dict.fromkeys(members, reason)
        ends = np.cumsum(known.sizes)
        for storage, shape, end in zip(output_storage, known.shapes, ends.tolist(), strict=True):
            size = int(np.prod(shape))
            part = outputs if size == outputs.shape[1] else outputs[:, end - size : end].copy()
            storage[0] = part.reshape((*lead, *shape))

    def signature_for(self, inputs: Sequence[np.ndarray]) -> tuple[Signature, list[tuple]]:
        """Signature for values of the inputs, and their leading dimensions.

        Raises
        ------
        ValueError
            If the inputs have other shapes than in the model, and the outputs are described.
        """
        signature = self.signature
        ends = [v.ndim - len(s) for v, s in zip(inputs, signature.shapes, strict=True)]
        leads = [value.shape[:end] for value, end in zip(inputs, ends, strict=True)]
        cores = tuple(value.shape[end:] for value, end in zip(inputs, ends, strict=True))
        if cores == signature.shapes:
            return signature, leads
        if not self.flexible:
            raise ValueError(
                f"{self.forward.name} was built into the model for inputs of shapes "
                f"{signature.shapes}, but got {cores}. If the shape of the data changes, use "
                "pm.Data, and leave out `output_shape`."
            )
        one = [value[(0,) * end] for value, end in zip(inputs, ends, strict=True)]
        return self.forward.resized(signature, one), leads

    def _asks_one_by_one(self, node: Apply) -> bool:
        if not hasattr(node.tag, "asks_one_by_one"):
            node.tag.asks_one_by_one = asks_one_by_one(node, self.unknowns)
        return node.tag.asks_one_by_one

    def infer_shape(self, *arguments: Any) -> list[tuple]:
        """Leading dimensions of the inputs, and the shapes of the outputs."""
        shapes = arguments[-1]  # of the inputs; PyTensor 3.2 passes a graph first, 3.3 does not
        known = self.signature.outputs
        assert known is not None
        core = self.signature.shapes
        leads = [tuple(s)[: len(s) - len(c)] for s, c in zip(shapes, core, strict=True)]
        lead = pt.broadcast_shape(*leads, arrays_are_shapes=True) if any(leads) else ()
        lengths: list[Any] = [
            pt.constant(k, dtype="int64") for shape in known.shapes for k in shape
        ]
        if self.flexible:
            found: Any = OutputLengths(self)(*arguments[-2].inputs)
            lengths = [found[i] for i in range(len(lengths))]
        rest = iter(lengths)
        return [(*lead, *(next(rest) for _ in shape)) for shape in known.shapes]

    def do_constant_folding(self, fgraph: Any, node: Apply) -> bool:
        """Never call the function while a graph is compiled."""
        return False


class OutputLengths(Op):
    """Lengths of all dimensions of the outputs of a forward model whose data may change.

    Parameters
    ----------
    forward_op : ForwardOp
    """

    __props__ = ("forward_op",)

    def __init__(self, forward_op: ForwardOp):
        self.forward_op = forward_op

    def make_node(self, *inputs: Any) -> Apply:
        """Apply to the inputs of the forward model."""
        run_as_python(OutputLengths)
        node = Apply(self, [pt.as_tensor(v) for v in inputs], [pt.lvector()])
        node.tag.forward = self.forward_op.forward
        return node

    def perform(self, node: Apply, inputs: Sequence, output_storage: list) -> None:
        """Look the lengths up. If they are not known, the function is called."""
        signature, _ = self.forward_op.signature_for([np.asarray(value) for value in inputs])
        assert signature.outputs is not None
        output_storage[0][0] = np.array([k for s in signature.outputs.shapes for k in s], dtype=int)

    def do_constant_folding(self, fgraph: Any, node: Apply) -> bool:
        """Never call the function while a graph is compiled."""
        return False


@_vectorize_node.register(ForwardOp)
def _vectorize_forward(op: ForwardOp, node: Apply, *inputs: Variable) -> Apply:
    return op.make_node(*inputs)


def _common(lengths: Sequence[int | None]) -> int | None:
    """Length to which dimensions are broadcast, if it is known."""
    longer = {length for length in lengths if length != 1}
    if not longer:
        return 1
    return None if None in longer else max(n for n in longer if n is not None)
