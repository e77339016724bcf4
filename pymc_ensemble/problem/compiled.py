"""Forward map, likelihood and prior of a PyMC model as functions of whole ensembles."""

import logging
import math
import reprlib
import traceback
from collections.abc import Mapping, Sequence
from functools import cached_property, reduce
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pytensor.compile.ops import FromFunctionOp
from pytensor.gradient import NullTypeGradError
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
from pymc_ensemble.problem._pymc import PARAMETER_CHECKS_TO_INFINITY
from pymc_ensemble.problem.batching import BatchFunction, contains_loop
from pymc_ensemble.problem.extraction import Extraction
from pymc_ensemble.problem.frontier import is_foreign, takes_batches
from pymc_ensemble.problem.graphs import gradient, inlined, rewritten, substitute
from pymc_ensemble.problem.plain import observed_curvature
from pymc_ensemble.problem.simulation import Draws
from pymc_ensemble.problem.terms import Term

FloatArray = NDArray[np.float64]
logger = logging.getLogger("pymc_ensemble")

N_SIMULATIONS = 64
SIMULATION_SEED = 20220512
MAX_REDRAWS = 1000


def simplified(graphs: Sequence[TensorVariable]) -> list[TensorVariable]:
    """Stabilize graphs; out of the support the log density is minus infinity, not an error."""
    rewrites = ("canonicalize", "stabilize", PARAMETER_CHECKS_TO_INFINITY)
    return inlined(rewritten(inlined(graphs), rewrites))


def gradients(graph: TensorVariable, wrt: Sequence[TensorVariable]) -> list[TensorVariable]:
    """Gradients of a scalar graph; zero by what it does not depend on."""
    return simplified(gradient(graph, wrt))


class CompiledForward:
    """The forward map of a model.

    A graph of PyTensor and forward models (`pe.forward_model`) is evaluated for all members at
    once, and so are operations from outside that PyTensor can vectorize. If it contains another
    operation from outside, which may fail, the compiled function of one point is called member by
    member.
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
            compile_kwargs = {}  # worth compiling for, in the mode that the user has set
        root = extraction.coordinates.root
        self._function = BatchFunction([root], outputs, compile_kwargs=compile_kwargs)

    def __call__(
        self, points: FloatArray, seed: np.random.SeedSequence | None = None
    ) -> Evaluations:
        """Evaluate points of shape (n, d), each once; `seed` is for stochastic forward models."""
        self._function.one.compile()  # what fails here is no failure of a member
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
                logger.debug("A batch failed, its members are evaluated one by one: %r", error)
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
        """Compile, and run what is of PyTensor alone once, as some modes compile only then."""
        self._function.one.compile()
        if not self.foreign:  # what is foreign is not called by this
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
    """What a forward model said of a member that failed."""


def raise_if_no_arrays(error: Exception) -> None:
    """Explain what PyTensor makes of a function in `wrap_py` that returns no arrays."""
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


class CompiledLikelihood:
    """Loss, its gradient and curvature weights as functions of the forward outputs."""

    def __init__(self, terms: Sequence[Term], constant: TensorVariable | None = None):
        self.terms = list(terms)
        self.holes = [hole for term in terms for hole in term.holes]
        sizes = [int(np.prod(hole.type.shape)) for hole in self.holes]
        bounds = np.array([bound for term in terms for bound in term.bounds])
        self.lower, self.upper = np.repeat(bounds, sizes, axis=0).T
        self.quadratic = all(term.quadratic for term in terms)
        self._ends = np.cumsum(sizes)[:-1]

        losses = simplified([given_data(term, term.loss) for term in terms])
        for term, loss in zip(terms, losses, strict=True):
            check_differentiable(loss, term.holes, f"the likelihood of `{term.name}`")
        total = reduce(add, losses if constant is None else losses + simplified([constant]))
        self._loss = BatchFunction(self.holes, [total])
        self._gradient = BatchFunction(self.holes, gradients(total, self.holes))

    @cached_property
    def _information(self) -> list["TermInformation"]:
        return [TermInformation(term) for term in self.terms]

    def _split(self, Z: FloatArray) -> list[FloatArray]:
        return [
            np.ascontiguousarray(part).reshape(len(Z), *hole.type.shape)
            for part, hole in zip(np.split(Z, self._ends, axis=1), self.holes, strict=True)
        ]

    def loss(self, Z: FloatArray) -> FloatArray:
        """Loss of shape (J,)."""
        [loss] = self._loss(*self._split(Z))
        return np.where(np.isnan(loss), np.inf, loss)

    def gradient(self, Z: FloatArray) -> FloatArray:
        """Gradient of the loss, shape (J, K)."""
        return _joined(self._gradient(*self._split(np.clip(Z, self.lower, self.upper))), len(Z))

    def misfit(self, Z: FloatArray) -> FloatArray:
        """Misfit per datum, shape (J,)."""
        known = [
            (hole.type.shape, term.observation.type.shape)
            for term in self.terms
            for hole in term.holes
        ]
        if self.quadratic and all(one == data for one, data in known):  # an output for each datum
            return np.mean(self.gradient(Z) ** 2 / self.curvature(Z), axis=1)
        pieces = self._split(np.clip(Z, self.lower, self.upper))
        excess, n_data = np.zeros(len(Z)), 0
        for expected in self._expected:
            n = len(expected.term.holes)
            own, pieces = pieces[:n], pieces[n:]
            excess += expected.excess(own)
            n_data += expected.n_data
        return 1 + 2 * excess / n_data  # eq. (V9)

    @cached_property
    def _expected(self) -> list["ExpectedLoss"]:
        return [ExpectedLoss(term) for term in self.terms]

    def curvature(self, Z: FloatArray) -> FloatArray:
        """Curvature weights, shape (J, K)."""
        if len(Z) == 0:
            return np.empty_like(Z)
        pieces = iter(self._split(np.clip(Z, self.lower, self.upper)))
        weights = []
        for term, information in zip(self.terms, self._information, strict=True):
            weights += information([next(pieces) for _ in term.holes])
        return _joined(weights, len(Z))


def _joined(parts: Sequence[np.ndarray], rows: int) -> FloatArray:
    # reshape cannot tell -1 where there are no rows
    return np.concatenate([part.reshape(rows, math.prod(part.shape[1:])) for part in parts], axis=1)


def given_data(term: Term, graph: TensorVariable) -> TensorVariable:
    """Put the observed values in their place."""
    return substitute([graph], {term.observation: term.data})[0]


class ExpectedLoss:
    """Loss of one likelihood term against its mean over data sets that are simulated.

    They come from a fixed seed, so that it is a function of the outputs.
    """

    n_data = 1

    def __init__(self, term: Term):
        self.term = term
        self._draw = Draws([term.variable], term.holes)
        self._simulated = BatchFunction([term.observation], simplified([term.loss]), term.holes)
        self._observed = BatchFunction(term.holes, simplified([given_data(term, term.loss)]))

    def excess(self, pieces: Sequence[FloatArray]) -> FloatArray:
        """Loss less its expectation at outputs in pieces, shape (J,); NaN if that is unknown."""
        [loss] = self._observed(*pieces)
        return loss - np.array([self._expectation(row) for row in zip(*pieces, strict=True)])

    def _expectation(self, row: Sequence[FloatArray]) -> float:
        rng, arguments = np.random.default_rng(SIMULATION_SEED), list(map(np.asarray, row))
        try:
            [observations] = self._draw(N_SIMULATIONS, rng, *arguments)
        except Exception as error:  # also where it cannot be simulated at these outputs
            logger.debug("The likelihood cannot be simulated there: %r", error)
            return np.nan
        self.n_data = max(1, observations[0].size)
        [losses] = self._simulated(observations, *arguments)
        return float(np.mean(losses))


class TermInformation:
    """Fisher weights of the outputs of one likelihood term.

    Those without a closed form are mean squared gradients over simulated data sets. These come
    from a fixed seed, so that the weights are a function of the outputs. A likelihood that cannot
    be simulated falls back on its curvature at the observed data; so do outputs that it cannot be
    simulated at.
    """

    def __init__(self, term: Term):
        closed = [weight for weight in term.weights if weight is not None]
        self._closed = BatchFunction(term.holes, simplified(closed)) if closed else None
        self._open = [i for i, weight in enumerate(term.weights) if weight is None]
        if not self._open:
            return
        self._draw = Draws([term.variable], term.holes)
        self._origin = [np.zeros(hole.type.shape) for hole in term.holes]
        wanted = [term.holes[i] for i in self._open]
        # a hole in place of the variable's own values sees the gradient by these
        wrt = [term.observation if hole is term.data else hole for hole in wanted]
        slopes = gradients(simplified([term.loss])[0], wrt)
        self._simulated = BatchFunction([term.observation], slopes, term.holes)
        slopes = gradients(simplified([given_data(term, term.loss)])[0], wanted)
        self._observed = BatchFunction(term.holes, slopes)

    def __call__(self, pieces: Sequence[FloatArray]) -> list[FloatArray]:
        """Weights of the shapes of the pieces of outputs."""
        weights = self._closed(*pieces) if self._closed is not None else []
        if self._open:
            for i, weight in zip(self._open, self._without_closed_form(pieces), strict=True):
                weights.insert(i, weight)
        return weights

    def _without_closed_form(self, pieces: Sequence[FloatArray]) -> list[FloatArray]:
        if self._can_be_simulated:
            try:
                rows = [self._mean_squared_slopes(row) for row in zip(*pieces, strict=True)]
                return [np.stack(column) for column in zip(*rows, strict=True)]
            except Exception as error:
                logger.debug("The likelihood cannot be simulated there: %r", error)
        return [self._observed_curvature(i, pieces) for i in range(len(self._open))]

    @cached_property
    def _can_be_simulated(self) -> bool:
        """Whether there is a way to simulate, by a trial at outputs of zero."""
        try:
            self._draw(1, np.random.default_rng(SIMULATION_SEED), *self._origin)
        except NotImplementedError as error:
            logger.debug("The likelihood cannot be simulated: %r", error)
            return False
        except Exception as error:
            logger.debug("The likelihood cannot be simulated at zero: %r", error)
        return True

    def _mean_squared_slopes(self, row: Sequence[FloatArray]) -> list[FloatArray]:
        rng = np.random.default_rng(SIMULATION_SEED)
        [observations] = self._draw(N_SIMULATIONS, rng, *map(np.asarray, row))
        slopes = self._simulated(observations, *map(np.asarray, row))
        return [np.mean(np.nan_to_num(slope) ** 2, axis=0) for slope in slopes]

    def _observed_curvature(self, i: int, pieces: Sequence[FloatArray]) -> FloatArray:
        position = self._open[i]
        shape = pieces[position].shape

        def slope(Z: FloatArray) -> FloatArray:
            arguments = list(pieces)
            arguments[position] = Z.reshape(shape)
            return self._observed(*arguments)[i].reshape(Z.shape)

        return observed_curvature(slope, pieces[position].reshape(len(pieces[0]), -1)).reshape(
            shape
        )


class CompiledPrior:
    """Prior of a model: draws, potential, gradient and Hessian in unconstrained coordinates."""

    def __init__(self, extraction: Extraction):
        self.root = root = extraction.coordinates.root
        self.names = extraction.coordinates.names
        self.flat = extraction.flat
        terms = extraction.log_prior
        for name, graph in zip(terms, simplified(list(terms.values())), strict=True):
            check_differentiable(graph, [root], f"`{name}`")
        [potential] = simplified([-reduce(add, terms.values())])
        self._terms = terms
        [self._slope] = gradients(potential, [root])
        self._potential = BatchFunction([root], [potential])
        self._gradient = BatchFunction([root], [self._slope])
        self._draws = Draws(extraction.prior_draws)

    @property
    def dimension(self) -> int:
        """Number of coordinates."""
        return self.root.type.shape[0]

    @cached_property
    def gaussian(self) -> bool:
        """Whether the potential is quadratic: its gradient is affine between any two points."""
        rng = np.random.default_rng(SIMULATION_SEED)
        curvature = np.abs(np.diag(self.hessian(np.zeros(self.dimension))))
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
        """Part of the prior that gives none of the points a density, in words, and its value."""
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
    def _hessian(self) -> BatchFunction:
        """Products of the Hessian at one point with the rows of a matrix."""
        direction = self.root.type("direction")
        product = gradients(self._slope @ direction, [self.root])
        return BatchFunction([direction], product, [self.root])

    def hessian(self, u: FloatArray) -> FloatArray:
        """Hessian of the potential at one point, shape (d, d)."""
        [hessian] = self._hessian(np.eye(len(u)), u)
        return (hessian + hessian.T) / 2

    def sample(self, size: int, rng: np.random.Generator) -> FloatArray:
        """Draw members of shape (size, d)."""
        if self.flat:
            names = ", ".join(f"`{name}`" for name in self.flat)
            raise ValueError(
                f"{names}: an improper prior (pm.Flat, pm.HalfFlat) cannot be drawn from. Hand "
                "over the starting ensemble as `initial_ensemble=`, or give a proper prior."
            )
        members = self._draw(size, rng)
        # draws out of the support, such as unordered ones of an ordered variable, are drawn again:
        # the law is the prior given its support
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
            "coordinates. Check its distribution and transform, or hand over the starting ensemble "
            "as `initial_ensemble=`."
        )

    def _draw(self, size: int, rng: np.random.Generator) -> FloatArray:
        try:
            draws = self._draws(size, rng)
        except NotImplementedError as error:
            raise ValueError(
                f"The prior cannot be drawn from: {error} Hand over the starting ensemble as "
                "`initial_ensemble=`."
            ) from error
        return np.concatenate([np.reshape(draw, (size, -1)) for draw in draws], axis=1, dtype=float)


def check_differentiable(graph: TensorVariable, wrt: Sequence[TensorVariable], what: str) -> None:
    """Refuse a graph without a gradient.

    Parameters
    ----------
    graph : TensorVariable
        Scalar function.
    wrt : sequence of TensorVariable
        What it is to be differentiated by.
    what : str
        What the graph is, for the message.
    """
    try:
        gradient(graph, wrt)
    except (NotImplementedError, NullTypeGradError) as error:
        raise NotImplementedError(
            f"The log density of {what} has no gradient ({error}). Only the forward map may do "
            "without one, and it must reach the data through the parameters of a distribution with "
            "`observed=`. Write the density in PyTensor, or give its operation a pullback."
        ) from error
