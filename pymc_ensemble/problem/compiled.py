"""Forward map, likelihood and prior of a PyMC model as functions of whole ensembles."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from numpy.typing import NDArray
from pytensor.graph.replace import graph_replace, vectorize_graph
from pytensor.graph.rewriting.utils import rewrite_graph
from pytensor.graph.traversal import ancestors
from pytensor.tensor.variable import TensorVariable

from pymc_ensemble.forward.evaluation import Evaluations, evaluate_rows
from pymc_ensemble.problem.batching import CHEAP_MODE, LazyFunction, batched, contains_loop
from pymc_ensemble.problem.extraction import Extraction, Term, is_foreign
from pymc_ensemble.problem.simulation import Draws

FloatArray = NDArray[np.float64]

# out of the support the log density is minus infinity, not an error
CORE_REWRITES = ("canonicalize", "stabilize", "local_check_parameter_to_ninf_switch")
N_SIMULATIONS = 64
SIMULATION_SEED = 20220512
CURVATURE_FLOOR = 1e-8


def simplified(graphs: Sequence[TensorVariable]) -> list[TensorVariable]:
    """Stabilize graphs; values out of the support get the log density minus infinity."""
    return rewrite_graph(list(graphs), include=CORE_REWRITES, clone=True)


class CompiledForward:
    """The forward map of a model.

    A graph of PyTensor alone is evaluated for all members at once. If it contains an operation from
    outside, which may raise, the compiled function of one point is called member by member.
    """

    def __init__(self, extraction: Extraction, compile_kwargs: Mapping[str, Any] | None):
        root = extraction.coordinates.root
        outputs = [output for term in extraction.terms for output in term.outputs]
        self.shapes = [hole.type.shape for term in extraction.terms for hole in term.holes]
        self.n_outputs = sum(int(np.prod(shape)) for shape in self.shapes)
        self.foreign = any(v.owner and is_foreign(v.owner) for v in ancestors(outputs))
        cheap = self.foreign or not contains_loop(outputs)
        options = compile_kwargs or ({"mode": CHEAP_MODE} if cheap else {})
        self._single = LazyFunction([root], outputs, options)
        self._batch = None if self.foreign else LazyFunction(*batched(outputs, [root]), options)

    def one(self, point: FloatArray) -> FloatArray:
        """Evaluate one point of shape (d,): outputs of shape (K,)."""
        pieces = self._single(point)
        for piece, shape in zip(pieces, self.shapes, strict=True):
            if piece.shape != shape:
                raise ValueError(
                    f"the forward map returned an output of shape {piece.shape}, expected {shape}"
                )
        return np.concatenate([piece.ravel() for piece in pieces])

    def __call__(self, points: FloatArray) -> Evaluations:
        if self._batch is not None:
            try:
                pieces = self._batch(points)
                outputs = np.concatenate([p.reshape(len(points), -1) for p in pieces], axis=1)
                return Evaluations.from_outputs(outputs)
            except Exception:  # noqa: S110 one member spoils the batch: find out which
                pass
        return evaluate_rows(self.one, points, self.n_outputs)


class CompiledLikelihood:
    """Loss, its gradient and curvature weights as functions of the forward outputs."""

    def __init__(self, terms: Sequence[Term]):
        self.terms = list(terms)
        self.holes = [hole for term in terms for hole in term.holes]
        self.sizes = [int(np.prod(hole.type.shape)) for hole in self.holes]
        bounds = np.array([bound for term in terms for bound in term.bounds])
        self.lower, self.upper = np.repeat(bounds, self.sizes, axis=0).T
        self.quadratic = all(term.quadratic for term in terms)

    def pieces(self, Z: FloatArray) -> list[FloatArray]:
        """Split rows of outputs into the arrays behind each likelihood parameter."""
        parts = np.split(Z, np.cumsum(self.sizes)[:-1], axis=1)
        return [
            np.ascontiguousarray(part).reshape(len(Z), *hole.type.shape)
            for part, hole in zip(parts, self.holes, strict=True)
        ]

    @cached_property
    def _total(self) -> TensorVariable:
        losses = [
            graph_replace([term.loss], {term.observation: term.data}, strict=False)[0]
            for term in self.terms
        ]
        return simplified([sum(losses[1:], start=losses[0])])[0]

    @cached_property
    def _loss(self) -> LazyFunction:
        return LazyFunction(*batched([self._total], self.holes), {"mode": CHEAP_MODE})

    @cached_property
    def _gradient(self) -> LazyFunction:
        gradients = pytensor.grad(self._total, self.holes, disconnected_inputs="ignore")
        return LazyFunction(*batched(gradients, self.holes), {"mode": CHEAP_MODE})

    @cached_property
    def _simulations(self) -> list["SimulatedInformation | None"]:
        return [
            SimulatedInformation(term) if None in term.weights else None for term in self.terms
        ]

    @cached_property
    def _weights(self) -> LazyFunction:
        weights = [
            pt.zeros_like(hole) if weight is None else weight
            for term in self.terms
            for hole, weight in zip(term.holes, term.weights, strict=True)
        ]
        return LazyFunction(*batched(simplified(weights), self.holes), {"mode": CHEAP_MODE})

    def _joined(self, parts: Sequence[np.ndarray], rows: int) -> FloatArray:
        return np.concatenate([part.reshape(rows, -1) for part in parts], axis=1)

    def loss(self, Z: FloatArray) -> FloatArray:
        """Loss of shape (J,)."""
        [loss] = self._loss(*self.pieces(Z))
        return np.where(np.isnan(loss), np.inf, loss)

    def gradient(self, Z: FloatArray) -> FloatArray:
        """Gradient of the loss, shape (J, K)."""
        inside = np.clip(Z, self.lower, self.upper)
        return self._joined(self._gradient(*self.pieces(inside)), len(Z))

    def curvature(self, Z: FloatArray) -> FloatArray:
        """Curvature weights, shape (J, K)."""
        inside = np.clip(Z, self.lower, self.upper)
        pieces = self.pieces(inside)
        weights = self._weights(*pieces)
        start = 0
        for term, simulation in zip(self.terms, self._simulations, strict=True):
            stop = start + len(term.holes)
            if simulation is not None:
                simulated = simulation(pieces[start:stop])
                for i, weight in enumerate(term.weights):
                    if weight is None:
                        weights[start + i] = simulated[i]
            start = stop
        return self._joined(weights, len(Z))


class SimulatedInformation:
    """Fisher weights without a closed form: mean squared gradients over simulated data sets.

    The data sets come from a fixed seed, so that the weights are a function of the outputs. A
    likelihood that cannot be simulated falls back on the curvature at the observed data.
    """

    def __init__(self, term: Term):
        self.data = term.data
        self.draw = Draws([term.variable], term.holes)
        [loss] = simplified([term.loss])
        gradients = pytensor.grad(loss, term.holes, disconnected_inputs="ignore")
        [observations], gradients = batched(gradients, [term.observation])
        self.gradient = LazyFunction(
            [*term.holes, observations], gradients, {"mode": CHEAP_MODE}
        )

    def __call__(self, pieces: Sequence[FloatArray]) -> list[FloatArray]:
        rows = [self.one([piece[i] for piece in pieces]) for i in range(len(pieces[0]))]
        return [np.stack(column) for column in zip(*rows, strict=True)]

    def one(self, pieces: Sequence[FloatArray]) -> list[FloatArray]:
        """Weights at one row of outputs."""
        [observations] = self.draw(N_SIMULATIONS, np.random.default_rng(SIMULATION_SEED), *pieces)
        gradients = self.gradient(*pieces, observations)
        return [np.mean(g**2, axis=0) for g in gradients]


class CompiledPrior:
    """Prior of a model: draws, potential, gradient and Hessian in unconstrained coordinates."""

    def __init__(self, extraction: Extraction):
        self.root = extraction.coordinates.root
        self.names = extraction.coordinates.names
        self.flat = extraction.flat
        [self.graph] = simplified([-extraction.log_prior])
        self._draws = Draws(extraction.prior_draws)

    @property
    def dimension(self) -> int:
        return self.root.type.shape[0]

    @cached_property
    def gaussian(self) -> bool:
        """Whether the potential is quadratic: its gradient is affine between any two points."""
        if self.flat:
            return False
        rng = np.random.default_rng(SIMULATION_SEED)
        center = np.zeros(self.dimension)
        curvature = np.abs(np.diag(self.hessian(center)))
        if not (np.isfinite(curvature).all() and np.all(curvature > 0)):
            return False
        scale = np.array([[1.0], [4.0]]).repeat(32, axis=0) / np.sqrt(curvature)
        a, b = scale * rng.standard_normal((2, 64, self.dimension))
        ends, middle = self.gradient(a) + self.gradient(b), 2 * self.gradient((a + b) / 2)
        tolerance = 1e-9 * np.max(np.abs(ends), axis=0, initial=1e-300)
        return bool(np.all(np.abs(ends - middle) <= tolerance))

    @cached_property
    def _potential(self) -> LazyFunction:
        return LazyFunction(*batched([self.graph], [self.root]), {"mode": CHEAP_MODE})

    @cached_property
    def _gradient(self) -> LazyFunction:
        gradient = pytensor.grad(self.graph, self.root)
        return LazyFunction(*batched([gradient], [self.root]), {"mode": CHEAP_MODE})

    @cached_property
    def _hessian(self) -> LazyFunction:
        """Products of the Hessian at one point with the rows of a matrix."""
        direction = pt.vector("direction", shape=self.root.type.shape)
        directions = pt.matrix("directions", shape=(None, *self.root.type.shape))
        slope = pytensor.grad(self.graph, self.root) @ direction
        product = pytensor.grad(slope, self.root, disconnected_inputs="ignore")
        [products] = vectorize_graph(simplified([product]), {direction: directions})
        products = products + pt.zeros_like(directions)
        return LazyFunction([self.root, directions], [products], {"mode": CHEAP_MODE})

    def potential(self, U: FloatArray) -> FloatArray:
        """Potential of shape (J,)."""
        [potential] = self._potential(U)
        return np.where(np.isnan(potential), np.inf, potential)

    def gradient(self, U: FloatArray) -> FloatArray:
        """Gradient of the potential, shape (J, d)."""
        [gradient] = self._gradient(U)
        return gradient

    def hessian(self, u: FloatArray) -> FloatArray:
        """Hessian of the potential at one point, shape (d, d)."""
        [hessian] = self._hessian(u, np.eye(len(u)))
        return (hessian + hessian.T) / 2

    def sample(self, size: int, rng: np.random.Generator) -> FloatArray:
        """Draw members of shape (size, d)."""
        if self.flat:
            names = ", ".join(f"`{name}`" for name in self.flat)
            raise ValueError(
                f"{names} cannot be drawn from the prior, which is improper (pm.Flat, "
                "pm.HalfFlat). Pass the starting ensemble as `initial_ensemble=`, or give a proper "
                "prior."
            )
        draws = self._draws(size, rng)
        return np.concatenate([draw.reshape(size, -1) for draw in draws], axis=1, dtype=np.float64)
