"""From symbolic functions of one point to compiled functions of a batch of points."""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import Any

import numpy as np
import pytensor
import pytensor.scalar.basic as ps
import pytensor.scalar.math as psm
import pytensor.tensor as pt
from pytensor.compile.mode import Mode, get_mode
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.op import HasInnerGraph
from pytensor.graph.rewriting.basic import in2out, node_rewriter
from pytensor.graph.rewriting.db import RewriteDatabaseQuery
from pytensor.graph.traversal import ancestors, applys_between
from pytensor.scan.op import Scan
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.rewriting.math import local_exp_log
from pytensor.tensor.variable import TensorVariable

from pymc_ensemble.problem.elementwise import call_numpy_directly
from pymc_ensemble.problem.frontier import (
    is_foreign,
    is_foreign_op,
    with_leading_dimensions,
)
from pymc_ensemble.problem.graphs import rewritten
from pymc_ensemble.problem.loops import spread, vectorize_with_loops

logger = logging.getLogger("pymc_ensemble")

# prior, loss and curvature are cheap, and called once in a round: a slow compilation does not pay
CHEAP_MODE = "FAST_COMPILE"


class PreparedMode(Mode):
    """A mode of PyTensor whose rewrites are gathered once, and not at every compilation."""

    @cached_property
    def optimizer(self) -> Any:
        """Rewriter of graphs."""
        return super().optimizer


@cache
def cheap_mode(simplified: bool = False) -> Mode:
    """PyTensor's FAST_COMPILE.

    Parameters
    ----------
    simplified : bool, default False
        Whether to leave out canonicalization, which takes half of the time, because
        `graphs.simplified` has done it.
    """
    mode = get_mode(CHEAP_MODE)
    rewrites = mode.provided_optimizer
    return PreparedMode(
        mode.linker, rewrites.excluding("canonicalize_db") if simplified else rewrites
    )


@cache
def as_it_stands() -> Mode:
    """A mode without rewrites, for what runs once: rewriting would take longer than running."""
    return PreparedMode(get_mode(CHEAP_MODE).linker, RewriteDatabaseQuery(include=[]))


@node_rewriter([Elemwise])
def _numpy_function(fgraph: FunctionGraph, node: Apply) -> list[Variable] | None:
    """Write a scalar function that NumPy and SciPy lack in terms of functions that they have."""
    x = node.inputs[0]
    match node.op.scalar_op:
        case psm.Softplus():
            return [pt.maximum(x, 0.0) + pt.log1p(pt.exp(-pt.abs(x)))]
        case psm.Log1mexp():
            return [pt.switch(x < -np.log(2), pt.log1p(-pt.exp(x)), pt.log(-pt.expm1(x)))]
        case psm.TriGamma():
            return [pt.polygamma(1, x)]
        case ps.Second():
            value = pt.cast(node.inputs[1], node.outputs[0].type.dtype)
            filled: Any = pt.alloc(value, *pt.broadcast_shape(*node.inputs))
            return [filled]
    return None


@node_rewriter([Blockwise])
def _in_one_call(fgraph: FunctionGraph, node: Apply) -> list[Variable] | None:
    """Call an operation for all points together, if it can take them together."""
    core = node.op.core_op
    if not is_foreign_op(core):
        return None
    return with_leading_dimensions(core, node.inputs, [v.type.ndim for v in node.outputs])


_in_numpy_functions = in2out(_numpy_function, local_exp_log)


def in_numpy_functions(outputs: Sequence[Variable]) -> list[Variable]:
    """Rewrite scalar functions that Python would otherwise call entry by entry.

    Stabilization may put a logarithm next to an exponential, which would overflow.
    """
    return rewritten(outputs, _in_numpy_functions)


def needs_rewrites(outputs: Sequence[Variable]) -> bool:
    """Whether a graph holds operations that may run point by point unless rewritten."""
    nodes = [v.owner for v in ancestors(outputs) if v.owner is not None]
    return any(isinstance(node.op, Blockwise | HasInnerGraph) for node in nodes)


class LazyFunction:
    """A PyTensor function that is compiled at its first call.

    Pickling drops the compiled function and keeps the graph.

    Parameters
    ----------
    inputs : sequence of Variable
        Inputs; arguments must come as arrays of exactly their type.
    outputs : sequence of Variable
        Outputs.
    compile_kwargs : dict, optional
        Options of `pytensor.function`, such as ``mode``; cheap compilation by default.
    simplified : bool, default False
        Whether `graphs.simplified` made the outputs. Cheap compilation then leaves out what it did.
    """

    def __init__(
        self,
        inputs: Sequence[Variable],
        outputs: Sequence[Variable],
        compile_kwargs: Mapping[str, Any] | None = None,
        simplified: bool = False,
    ):
        self.inputs = list(inputs)
        self.outputs = list(outputs)
        self.compile_kwargs = {"mode": CHEAP_MODE} if compile_kwargs is None else compile_kwargs
        self._simplified = simplified
        self._compiled: Any = None
        self._warm = False

    def compile(self) -> Any:
        """Return the compiled function. Compile it first if necessary."""
        if self._compiled is None:
            outputs, options = self.outputs, self.compile_kwargs
            if self._cheap:
                outputs = in_numpy_functions(outputs)
                simplified = self._simplified and not needs_rewrites(outputs)
                options = {**options, "mode": cheap_mode(simplified)}
            with self._without_c_compiler():
                self._compiled = pytensor.function(
                    self.inputs, outputs, on_unused_input="ignore", **options
                )
            self._compiled.trust_input = True
            if self._cheap:
                call_numpy_directly(self._compiled)
            self._warm = False
        return self._compiled

    def __call__(self, *arguments: Any) -> list[np.ndarray]:
        """Evaluate the outputs."""
        function = self.compile()
        # values outside of the domain give NaN or inf, which callers handle
        with np.errstate(all="ignore"):
            if self._warm:
                return function(*arguments)
            with self._without_c_compiler():
                outputs = function(*arguments)
        self._warm = True
        return outputs

    @property
    def _cheap(self) -> bool:
        return self.compile_kwargs.get("mode") == CHEAP_MODE

    def _without_c_compiler(self) -> contextlib.AbstractContextManager[None]:
        """Keep operations from compiling their inner graphs in C, which takes seconds."""
        if self._cheap:
            return pytensor.config.change_flags(cxx="")
        return contextlib.nullcontext()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": None}


class BatchFunction:
    """A function of one point, applied to all rows of a batch.

    Parameters
    ----------
    inputs : sequence of TensorVariable
        Inputs that get a leading batch dimension.
    outputs : sequence of TensorVariable
        Outputs, for one point.
    constants : sequence of TensorVariable, default ()
        Inputs that all points share. They follow the others.
    compile_kwargs : dict, optional
        Options of `pytensor.function`; cheap compilation by default.
    simplified : bool, default False
        Whether `graphs.simplified` made the outputs. Cheap compilation then leaves out what it did.

    Notes
    -----
    The graph is vectorized, and a loop in it (`Scan`) advances all points together. If the
    vectorized graph cannot be built or run, the compiled function of one point is called row by
    row. The graph and a trial at the origin decide this before the first call. Later points never
    change it, so a result depends only on the arguments.
    """

    def __init__(
        self,
        inputs: Sequence[TensorVariable],
        outputs: Sequence[TensorVariable],
        constants: Sequence[TensorVariable] = (),
        compile_kwargs: Mapping[str, Any] | None = None,
        simplified: bool = False,
    ):
        self.one = LazyFunction([*inputs, *constants], outputs, compile_kwargs, simplified)
        self._n_batched = len(inputs)
        self._all: LazyFunction | None = None
        self._settled = False
        try:
            batch, results = vectorized(inputs, outputs)
        except NotImplementedError:
            return
        self._all = LazyFunction([*batch, *constants], results, compile_kwargs, simplified)

    def __call__(self, *arguments: np.ndarray) -> list[np.ndarray]:
        """Evaluate the outputs, with a leading batch dimension."""
        n = len(arguments[0])
        if n == 0:
            return [np.empty((0, *(m or 0 for m in v.type.shape))) for v in self.one.outputs]
        self.compile()
        if self._all is not None:
            try:
                return self._all(*arguments)
            except Exception as error:
                logger.debug("A batch failed. Its points are evaluated one by one: %r", error)
        return self._rows(arguments, n)

    def compile(self) -> None:
        """Compile what calls will use, and decide whether points are evaluated together."""
        if self._settled:
            return
        self._settled = True
        if self._all is None:
            self.one.compile()
            return
        try:
            self._all.compile()
        except Exception as error:
            logger.debug("The function of a batch cannot be compiled: %r", error)
            self._all = None
            return
        if not any(v.owner and is_foreign(v.owner) for v in ancestors(self.one.outputs)):
            self._try_at_origin(self._all)

    def _try_at_origin(self, function: LazyFunction) -> None:
        if any(None in v.type.shape for v in self.one.inputs):
            return
        origin = [np.zeros(v.type.shape, v.type.dtype) for v in self.one.inputs]
        n = self._n_batched
        try:
            function(*(np.stack([x, x]) for x in origin[:n]), *origin[n:])
        except Exception as error:
            with contextlib.suppress(Exception):  # an error here is the fault of the point
                self.one(*origin)
                logger.debug("Points cannot be evaluated together: %r", error)
                self._all = None

    def _rows(self, arguments: Sequence[np.ndarray], n: int) -> list[np.ndarray]:
        batched, constants = arguments[: self._n_batched], arguments[self._n_batched :]
        points = [[np.asarray(argument[i]) for argument in batched] for i in range(n)]
        rows = [self.one(*points[0], *constants)]
        function = self.one.compile()
        with np.errstate(all="ignore"):
            rows += [function(*point, *constants) for point in points[1:]]
        return [np.stack(column) for column in zip(*rows, strict=True)]


def vectorized(
    inputs: Sequence[TensorVariable], outputs: Sequence[TensorVariable]
) -> tuple[list[TensorVariable], list[TensorVariable]]:
    """Turn a graph of one point into a graph of a batch of points.

    Parameters
    ----------
    inputs : sequence of TensorVariable
        Root variables that get a leading batch dimension.
    outputs : sequence of TensorVariable
        Functions of the inputs.

    Returns
    -------
    inputs, outputs : list of TensorVariable
        With a leading batch dimension.

    Raises
    ------
    NotImplementedError
        If the graph holds an operation, or a loop, that cannot be vectorized.
    """
    batch = [pt.tensor(v.name, dtype=v.type.dtype, shape=(None, *v.type.shape)) for v in inputs]
    n = batch[0].shape[0]
    results = vectorize_with_loops(outputs, dict(zip(inputs, batch, strict=True)), n)
    cores = [
        node.op.core_op for node in applys_between(batch, results) if isinstance(node.op, Blockwise)
    ]
    if any(isinstance(core, Scan) for core in cores):
        raise NotImplementedError("The loops in the graph would start anew for each point.")
    if any(map(is_foreign_op, cores)):
        results = rewritten(results, in2out(_in_one_call))
    return batch, [spread(result, one, n) for result, one in zip(results, outputs, strict=True)]


def contains_loop(outputs: Sequence[Variable]) -> bool:
    """Whether a graph contains a `Scan`."""
    return any(v.owner is not None and isinstance(v.owner.op, Scan) for v in ancestors(outputs))
