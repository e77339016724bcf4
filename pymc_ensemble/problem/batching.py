"""From symbolic functions of one point to compiled functions of a batch of points."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.graph.basic import Variable
from pytensor.graph.replace import graph_replace, vectorize_graph
from pytensor.graph.traversal import ancestors, applys_between
from pytensor.scan.op import Scan
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.variable import TensorVariable

# prior, loss and curvature are cheap and called once a round: not worth compiling for
CHEAP_MODE = "FAST_COMPILE"


class LazyFunction:
    """A PyTensor function that is compiled at its first call.

    Pickling drops the compiled function and keeps the graph.

    Parameters
    ----------
    inputs : sequence of Variable
        Inputs; arguments must come as arrays of exactly their type.
    outputs : sequence of Variable
        Outputs.
    compile_kwargs : dict
        Options of `pytensor.function`, such as ``mode``.
    """

    def __init__(
        self,
        inputs: Sequence[Variable],
        outputs: Sequence[Variable],
        compile_kwargs: Mapping[str, Any],
    ):
        self.inputs = list(inputs)
        self.outputs = list(outputs)
        self.compile_kwargs = dict(compile_kwargs)
        self._compiled: Any = None

    def __call__(self, *arguments: Any) -> list[np.ndarray]:
        if self._compiled is None:
            self._compiled = pytensor.function(
                self.inputs, self.outputs, on_unused_input="ignore", **self.compile_kwargs
            )
            self._compiled.trust_input = True
        # values outside the domain give NaN or inf, which are dealt with as such
        with np.errstate(all="ignore"):
            return self._compiled(*arguments)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": None}


def batched(
    outputs: Sequence[TensorVariable], inputs: Sequence[TensorVariable]
) -> tuple[list[TensorVariable], list[TensorVariable]]:
    """Turn a graph of one point into a graph of a batch of points.

    Parameters
    ----------
    outputs : sequence of TensorVariable
        Functions of the inputs.
    inputs : sequence of TensorVariable
        Root variables that get a leading batch dimension.

    Returns
    -------
    inputs, outputs : list of TensorVariable
        With a leading batch dimension. A loop (`Scan`) over the points goes outside of loops in the
        graph: inside, it would start each of them anew for every point.
    """
    batch = [
        pt.tensor(v.name, dtype=v.type.dtype, shape=(None, *v.type.shape)) for v in inputs
    ]
    try:
        results = vectorize_graph(list(outputs), dict(zip(inputs, batch, strict=True)))
    except NotImplementedError:
        return batch, _mapped(outputs, inputs, batch)
    if _loops_inside(results, batch):
        return batch, _mapped(outputs, inputs, batch)
    n = batch[0].shape[0]
    return batch, [
        result
        if result.type.ndim > output.type.ndim
        else pt.broadcast_to(result, (n, *tuple(result.shape)))
        for result, output in zip(results, outputs, strict=True)
    ]


def contains_loop(outputs: Sequence[Variable]) -> bool:
    """Whether a graph contains a `Scan`."""
    return any(v.owner is not None and isinstance(v.owner.op, Scan) for v in ancestors(outputs))


def _loops_inside(outputs: Sequence[Variable], inputs: Sequence[Variable]) -> bool:
    return any(
        isinstance(node.op, Blockwise) and isinstance(node.op.core_op, Scan)
        for node in applys_between(inputs, outputs)
    )


def _mapped(
    outputs: Sequence[TensorVariable],
    inputs: Sequence[TensorVariable],
    batch: Sequence[TensorVariable],
) -> list[TensorVariable]:
    """Apply the graph to one row after the other."""

    def one(*rows: TensorVariable) -> list[TensorVariable]:
        return graph_replace(list(outputs), dict(zip(inputs, rows, strict=True)), strict=False)

    results = pytensor.map(one, sequences=list(batch), return_updates=False)
    return list(results) if isinstance(results, list | tuple) else [results]
