"""Draws from random graphs: prior ensembles, and simulated data sets."""

import contextlib
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.replace import vectorize_graph
from pytensor.graph.traversal import ancestors, toposort
from pytensor.tensor.random.op import RandomVariable
from pytensor.tensor.random.type import RandomType, random_generator_type
from pytensor.tensor.shape import Shape
from pytensor.tensor.type_other import NoneTypeT
from pytensor.tensor.variable import TensorVariable

from pymc_ensemble.problem._pymc import BaseMixtureRV, change_dist_size, compute_batch_shape
from pymc_ensemble.problem.batching import LazyFunction
from pymc_ensemble.problem.frontier import is_foreign
from pymc_ensemble.problem.graphs import substitute

logger = logging.getLogger("pymc_ensemble")

SIMULATION_SEED = 20220512

# errors of parameters that are outside of their domain, or have a shape that a sampler refuses
DRAW_ERRORS = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)


class Draws:
    """Independent draws of a random graph, reproducible from a generator.

    Parameters
    ----------
    graph : sequence of TensorVariable
        Random expressions, drawn jointly.
    inputs : sequence of TensorVariable, default ()
        Inputs of the graph.

    Notes
    -----
    The graph and a trial at inputs of zero decide whether all draws are made together. Other inputs
    never change this.
    """

    def __init__(self, graph: Sequence[TensorVariable], inputs: Sequence[TensorVariable] = ()):
        n = pt.lscalar("n")
        self._inputs = list(inputs)
        self._single = Seeded(graph, inputs)
        self._batch: Seeded | None = None
        self._settled = False
        if any(v.owner and is_foreign(v.owner) for v in ancestors(graph)):
            return
        # some distributions cannot be replicated, and are drawn one by one
        try:
            self._batch = Seeded(replicated(graph, n), [n, *inputs])
        except Exception as error:
            logger.debug("Draws cannot be made together: %r", error)

    def __call__(
        self, size: int, rng: np.random.Generator, *arguments: np.ndarray
    ) -> list[np.ndarray]:
        """Draw arrays with a leading dimension `size`. A draw that failed is NaN."""
        if not self._settled:
            self._settle()
        if self._batch is not None:
            before = rng.bit_generator.state
            try:
                return _together(self._batch, size, rng, *arguments)
            except DRAW_ERRORS as error:
                logger.debug("Draws are made one by one, as drawing all at once fails: %r", error)
                rng.bit_generator.state = before
        rows: list[list[np.ndarray] | None] = []
        for _ in range(size):
            try:
                rows.append(self._single(rng, *arguments))
            except Exception as error:  # a forward model inside may fail for one member
                failure = error
                rows.append(None)
        good = next((row for row in rows if row is not None), None)
        if good is None:
            raise failure
        failed = [np.full_like(draw, np.nan, dtype=float) for draw in good]
        return [np.stack(column) for column in zip(*(row or failed for row in rows), strict=True)]

    def _settle(self) -> None:
        self._settled = True
        if self._batch is None or any(None in v.type.shape for v in self._inputs):
            return
        origin = [np.zeros(v.type.shape, v.type.dtype) for v in self._inputs]
        try:
            _together(self._batch, 3, np.random.default_rng(0), *origin)
        except Exception as error:
            with contextlib.suppress(Exception):  # an error here is the fault of the point
                self._single(np.random.default_rng(0), *origin)
                logger.debug("Draws cannot be made together: %r", error)
                self._batch = None


def _together(
    function: "Seeded", size: int, rng: np.random.Generator, *arguments: np.ndarray
) -> list[np.ndarray]:
    draws = function(rng, np.asarray(size), *arguments)
    if any(len(draw) != size for draw in draws):
        raise ValueError("The distribution cannot be replicated.")
    return draws


class Seeded:
    """A random graph as a function of seeds instead of generators shared with the model."""

    def __init__(self, graph: Sequence[TensorVariable], inputs: Sequence[TensorVariable]):
        shared = [v for v in ancestors(graph) if v.owner is None and isinstance(v.type, RandomType)]
        self._generators = {v: random_generator_type() for v in dict.fromkeys(shared)}
        self.outputs = substitute(graph, self._generators)
        self._function = LazyFunction([*self._generators.values(), *inputs], self.outputs)
        self._n_generators = len(self._generators)

    def __call__(self, rng: np.random.Generator, *arguments: np.ndarray) -> list[np.ndarray]:
        """Draw once, given the inputs."""
        seeds = rng.integers(2**63, size=self._n_generators)
        return self._function(*map(np.random.default_rng, seeds), *arguments)


def replicated(graph: Sequence[TensorVariable], n: TensorVariable) -> list[Any]:
    """Give a random graph a leading dimension of independent draws.

    Parameters
    ----------
    graph : sequence of TensorVariable
        Random expressions.
    n : TensorVariable
        Number of draws.

    Returns
    -------
    list of TensorVariable

    Raises
    ------
    NotImplementedError
        If a distribution without a vectorized random variable depends on another random variable.
    """
    copies: dict[Variable, Variable] = {}
    nodes = list(toposort(graph))
    drawn = {*graph, *(v for node in nodes for v in _draws_in(node))}
    for node in nodes:
        if not any(isinstance(v.type, RandomType) for v in node.inputs):
            continue
        if node.default_output() not in drawn:
            continue
        if isinstance(node.op, RandomVariable):
            copies[node.outputs[1]] = _replicated_variable(node, copies, n)
        elif copies.keys().isdisjoint(ancestors(node.inputs)):
            draw = node.default_output()
            copies[draw] = change_dist_size(draw, (n,), expand=True)
        else:
            raise NotImplementedError(f"{node.op} cannot be drawn for many parameters at once.")
    return vectorize_graph(list(graph), copies)


def _draws_in(node: Apply) -> Sequence[Variable]:
    """Inputs of a node whose draws it takes: of some it asks the shape, or the distribution."""
    if isinstance(node.op, BaseMixtureRV):  # it draws its components anew, for all draws together
        return node.inputs[:2]
    return [] if isinstance(node.op, Shape) else node.inputs


def _replicated_variable(
    node: Apply, copies: dict[Variable, Variable], n: TensorVariable
) -> Variable:
    rng, size, *parameters = node.inputs
    if copies:
        parameters = vectorize_graph(parameters, copies)
    fixed = isinstance(size.type, NoneTypeT)
    original = node.op.dist_params(node)
    batch_shape = (
        compute_batch_shape(original, ndims_params=node.op.ndims_params) if fixed else size
    )
    new_size = pt.concatenate([n[None], batch_shape])
    return node.op.make_node(rng, new_size, *parameters).outputs[1]
