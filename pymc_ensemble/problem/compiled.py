"""Forward map and prior of a PyMC model as functions of whole ensembles."""

import logging
import reprlib
import traceback
from collections.abc import Mapping
from functools import cached_property, reduce
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pytensor.compile.ops import FromFunctionOp
from pytensor.graph.traversal import ancestors
from pytensor.tensor.variable import TensorVariable

from pymc_ensemble.forward.evaluation import (
    Evaluations,
    ForwardModelError,
    evaluate_batch,
    evaluate_rows,
)
from pymc_ensemble.forward.op import ForwardOp
from pymc_ensemble.forward.rounds import evaluating
from pymc_ensemble.problem.batching import BatchFunction, contains_loop
from pymc_ensemble.problem.extraction import Extraction
from pymc_ensemble.problem.frontier import is_foreign, takes_batches
from pymc_ensemble.problem.graphs import gradients, simplified
from pymc_ensemble.problem.simulation import SIMULATION_SEED, Draws

FloatArray = NDArray[np.float64]
logger = logging.getLogger("pymc_ensemble")

MAX_REDRAWS = 1000


class CompiledForward:
    """The forward map of a model.

    A graph of PyTensor and forward models (`pe.forward_model`) is evaluated for all members at
    once. So are foreign operations that PyTensor can vectorize. Other foreign operations may fail
    at a member. Then the compiled function of one point is called member by member.
    """

    def __init__(self, extraction: Extraction, compile_kwargs: Mapping[str, Any] | None):
        outputs = [output for term in extraction.terms for output in term.outputs]
        self.shapes = [hole.type.shape for term in extraction.terms for hole in term.holes]
        self.n_outputs = sum(int(np.prod(shape)) for shape in self.shapes)
        foreign = [v.owner for v in ancestors(outputs) if v.owner and is_foreign(v.owner)]
        self.models = [node.op for node in foreign if isinstance(node.op, ForwardOp)]
        self.foreign = not all(map(takes_batches, foreign))
        self.stochastic = any(op.forward.random for op in self.models)
        if compile_kwargs is None and not self.foreign and contains_loop(outputs):
            compile_kwargs = {}  # a slow compilation pays here, in the mode that the user has set
        root = extraction.coordinates.root
        self._function = BatchFunction([root], outputs, compile_kwargs=compile_kwargs)

    @property
    def workers(self) -> int:
        """Number of evaluations at the same time."""
        return max((op.forward.workers for op in self.models), default=1)

    def __call__(
        self, points: FloatArray, seed: np.random.SeedSequence | None = None
    ) -> Evaluations:
        """Evaluate points of shape (n, d), each once; `seed` is for stochastic forward models."""
        self._function.one.compile()  # an error here is not the failure of a member
        if self.foreign:
            return self._each(points, seed)
        if not self.models:
            return evaluate_batch(self.all, points, self.n_outputs)
        with evaluating(len(points), seed) as this:
            try:
                outputs = self.all(points)
            except (ForwardModelError, KeyboardInterrupt):
                raise
            except BaseException as error:
                logger.debug("A batch failed. Its members are evaluated one by one: %r", error)
                return self._each(points, seed)
        failures = list(this.failures.items())
        return Evaluations.from_outputs(
            outputs, failures, copy=False, n_calls=this.n_calls, seconds=this.seconds
        )

    def _each(self, points: FloatArray, seed: np.random.SeedSequence | None) -> Evaluations:
        """Evaluate points one by one."""
        rows = iter(range(len(points)))

        def one(point: FloatArray) -> FloatArray:
            row = next(rows)
            child = seed
            if seed is not None:
                child = np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, row))
            with evaluating(1, child) as this:
                outputs = self.one(point)
            if this.failures:
                raise MemberFailure(this.failures[0])
            return outputs

        return evaluate_rows(one, points, self.n_outputs)

    def compile(self) -> None:
        """Compile, and run a graph of PyTensor alone once, as some modes compile only then."""
        self._function.one.compile()
        if not self.foreign:  # foreign operations are not called here
            self._function.compile()

    def one(self, point: FloatArray) -> FloatArray:
        """Evaluate one point of shape (d,): outputs of shape (K,)."""
        try:
            pieces = self._function.one(point)
        except (AssertionError, AttributeError) as error:
            raise_if_no_arrays(error)
            raise
        for piece, shape in zip(pieces, self.shapes, strict=True):
            if not isinstance(piece, np.ndarray | np.generic):
                raise TypeError(
                    f"the forward map returned {reprlib.repr(piece)} of type "
                    f"{type(piece).__name__}, expected an array of shape {shape}: return one array "
                    "per otype"
                )
            if piece.shape != shape:
                raise ValueError(
                    f"the forward map returned an output of shape {piece.shape}, expected {shape}"
                )
        return np.concatenate([piece.ravel() for piece in pieces])

    def all(self, points: FloatArray) -> FloatArray:
        """Evaluate points of shape (n, d): outputs of shape (n, K)."""
        pieces = [piece.reshape(len(points), -1) for piece in self._function(points)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)


class MemberFailure(Exception):
    """Error with the reason that a forward model gave for a failed member."""


def raise_if_no_arrays(error: Exception) -> None:
    """Explain the error of PyTensor if a function in `wrap_py` does not return arrays."""
    [*_, (frame, _)] = traceback.walk_tb(error.__traceback__)
    inside = frame.f_locals
    if isinstance(inside.get("self"), FromFunctionOp) and "outs" in inside:
        returned, expected = inside["outs"], len(inside["outputs"])
        raise TypeError(
            f"the function in the forward map returned {len(returned)} values, "
            f"{reprlib.repr(returned)}, expected {expected}: return one array per otype"
        ) from error
    by_pytensor = frame.f_globals.get("__name__", "").startswith("pytensor.")
    if by_pytensor and isinstance(error, AttributeError) and not isinstance(error.obj, np.ndarray):
        raise TypeError(
            f"the function in the forward map returned {reprlib.repr(error.obj)} of type "
            f"{type(error.obj).__name__}, expected an array: return one array per otype"
        ) from error


class CompiledPrior:
    """Prior of a model: draws, potential, gradient and Hessian in unconstrained coordinates."""

    def __init__(self, extraction: Extraction):
        self.root = root = extraction.coordinates.root
        self.names = extraction.coordinates.names
        self.flat = extraction.flat
        terms = extraction.log_prior
        [potential] = simplified([-reduce(add, terms.values())])
        self._terms = terms
        named = {f"`{name}`": term for name, term in terms.items()}
        self._graph, self._slopes = potential, gradients(potential, [root], named)
        self._potential = BatchFunction([root], [potential], simplified=True)
        self._draws = Draws(extraction.prior_draws)

    @property
    def dimension(self) -> int:
        """Number of coordinates."""
        return self.root.type.shape[0]

    @cached_property
    def gaussian(self) -> bool:
        """Whether the potential is quadratic: its gradient is affine between any two points."""
        rng = np.random.default_rng(SIMULATION_SEED)
        # if it is affine, differences are its slope; to compile the Hessian would take longer
        origin, *moved = self.gradient(
            np.vstack([np.zeros(self.dimension), np.eye(self.dimension)])
        )
        curvature = np.abs(np.diag(np.array(moved) - origin))
        if not (np.isfinite(curvature).all() and np.all(curvature > 0)):
            return False
        scale = np.repeat([[1.0], [4.0]], 32, axis=0) / np.sqrt(curvature)
        a, b = scale * rng.standard_normal((2, 64, self.dimension))
        ends, middle = self.gradient(a) + self.gradient(b), 2 * self.gradient((a + b) / 2)
        return bool(np.all(np.abs(ends - middle) <= 1e-9 * np.max(np.abs(ends), axis=0)))

    def potential(self, U: FloatArray) -> FloatArray:
        """Potential of shape (J,)."""
        [potential] = self._potential(U)
        return np.where(np.isnan(potential), np.inf, potential)

    def impossible(self, U: FloatArray) -> tuple[str, float]:
        """Part of the prior with no density at any of the points, in words, and its value."""
        for name, graph in self._terms.items():
            [values] = BatchFunction([self.root], [graph])(U)
            if not np.isfinite(values).any():
                return f"`{name}`", float(values[0])
        return "the prior", -np.inf

    def gradient(self, U: FloatArray) -> FloatArray:
        """Gradient of the potential, shape (J, d)."""
        [gradient] = self._gradient(U)
        return gradient

    @cached_property
    def _slope(self) -> TensorVariable:
        [slope] = simplified(self._slopes)
        return slope

    @cached_property
    def _gradient(self) -> BatchFunction:
        return BatchFunction([self.root], [self._slope], simplified=True)

    @cached_property
    def _both(self) -> BatchFunction:
        return BatchFunction([self.root], [self._graph, self._slope], simplified=True)

    def potential_and_gradient(self, U: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Potential (J,) and its gradient (J, d) in one call, with common parts computed once."""
        potential, gradient = self._both(U)
        return np.where(np.isnan(potential), np.inf, potential), gradient

    @cached_property
    def _hessian(self) -> BatchFunction:
        """Products of the Hessian at one point with the rows of a matrix."""
        direction = self.root.type("direction")
        product = simplified(gradients(self._slope @ direction, [self.root]))
        return BatchFunction([direction], product, [self.root], simplified=True)

    def hessian(self, u: FloatArray) -> FloatArray:
        """Hessian of the potential at one point, shape (d, d)."""
        [hessian] = self._hessian(np.eye(len(u)), u)
        return (hessian + hessian.T) / 2

    def sample(self, size: int, rng: np.random.Generator) -> FloatArray:
        """Draw members of shape (size, d)."""
        if self.flat:
            names = ", ".join(f"`{name}`" for name in self.flat)
            raise ValueError(
                f"{names}: nothing can be drawn from an improper prior (pm.Flat, pm.HalfFlat). "
                "Pass the starting ensemble as `initial_ensemble=`, or use a proper prior."
            )
        members = self._draw(size, rng)
        # draws outside of the support are drawn again, such as unordered ones of an ordered
        # variable: the law is the prior, given its support
        for _ in range(MAX_REDRAWS):
            bad = ~np.isfinite(members).all(axis=1)
            if not bad.any():
                return members
            fresh = self._draw(size, rng)
            fresh = fresh[np.isfinite(fresh).all(axis=1)][: bad.sum()]
            members[np.flatnonzero(bad)[: len(fresh)]] = fresh
        column = np.flatnonzero(~np.isfinite(members[bad]).all(axis=0))[0]
        raise ValueError(
            f"Draws of `{self.names[column]}` from the prior are not finite in unconstrained "
            "coordinates. Check its distribution and transform, or pass the starting ensemble as "
            "`initial_ensemble=`."
        )

    def _draw(self, size: int, rng: np.random.Generator) -> FloatArray:
        try:
            draws = self._draws(size, rng)
        except NotImplementedError as error:
            raise ValueError(
                f"Nothing can be drawn from the prior: {error} Pass the starting ensemble as "
                "`initial_ensemble=`."
            ) from error
        return np.concatenate([np.reshape(draw, (size, -1)) for draw in draws], axis=1, dtype=float)
