"""Likelihood of a PyMC model as functions of the forward outputs of whole ensembles."""

import logging
import math
from collections.abc import Sequence
from functools import cached_property, reduce
from operator import add

import numpy as np
from numpy.typing import NDArray
from pytensor.tensor.variable import TensorVariable

from pymc_ensemble.problem.batching import BatchFunction
from pymc_ensemble.problem.differences import observed_curvature
from pymc_ensemble.problem.graphs import gradients, simplified, substitute
from pymc_ensemble.problem.simulation import SIMULATION_SEED, Draws
from pymc_ensemble.problem.terms import Term

FloatArray = NDArray[np.float64]
logger = logging.getLogger("pymc_ensemble")

N_SIMULATIONS = 64


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
        total = reduce(add, losses if constant is None else losses + simplified([constant]))
        self._loss = BatchFunction(self.holes, [total], simplified=True)
        names = [f"the likelihood of `{term.name}`" for term in terms]
        self._graph = total
        self._unsimplified = gradients(total, self.holes, dict(zip(names, losses, strict=True)))

    @cached_property
    def _slopes(self) -> list[TensorVariable]:
        return simplified(self._unsimplified)

    @cached_property
    def _gradient(self) -> BatchFunction:
        return BatchFunction(self.holes, self._slopes, simplified=True)

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

    @cached_property
    def _both(self) -> BatchFunction:
        return BatchFunction(self.holes, [self._graph, *self._slopes], simplified=True)

    def loss_and_gradient(self, Z: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Loss (J,) and its gradient (J, K) in one call, with common parts computed once."""
        inside = np.clip(Z, self.lower, self.upper)
        loss, *slopes = self._both(*self._split(inside))
        loss = np.where(np.isnan(loss), np.inf, loss)
        outside = (inside != Z).any(axis=1)  # only the gradient is that of the nearest output
        if outside.any():
            loss[outside] = self.loss(Z[outside])
        return loss, _joined(slopes, len(Z))

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
    # without rows, reshape cannot infer -1
    return np.concatenate([part.reshape(rows, math.prod(part.shape[1:])) for part in parts], axis=1)


def given_data(term: Term, graph: TensorVariable) -> TensorVariable:
    """Insert the observed values."""
    return substitute([graph], {term.observation: term.data})[0]


class ExpectedLoss:
    """Loss of one likelihood term, minus its mean over simulated data sets.

    The data sets come from a fixed seed, so the result is a function of the outputs.
    """

    n_data = 1

    def __init__(self, term: Term):
        self.term = term
        self._draw = Draws([term.variable], term.holes)
        self._simulated = BatchFunction(
            [term.observation], simplified([term.loss]), term.holes, simplified=True
        )
        self._observed = BatchFunction(
            term.holes, simplified([given_data(term, term.loss)]), simplified=True
        )

    def excess(self, pieces: Sequence[FloatArray]) -> FloatArray:
        """Loss minus its expectation, shape (J,). NaN if the expectation is unknown."""
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
    """Fisher weights of the outputs of one likelihood term, eq. (I2).

    Without a closed form, weights are mean squared gradients over simulated data sets. These come
    from a fixed seed, so the weights are a function of the outputs. If a likelihood cannot be
    simulated, at all or at some outputs, its curvature at the observed data is used.
    """

    def __init__(self, term: Term):
        closed = [weight for weight in term.weights if weight is not None]
        self._closed = (
            BatchFunction(term.holes, simplified(closed), simplified=True) if closed else None
        )
        self._open = [i for i, weight in enumerate(term.weights) if weight is None]
        if not self._open:
            return
        self._draw = Draws([term.variable], term.holes)
        self._origin = [np.zeros(hole.type.shape) for hole in term.holes]
        self._term = term
        # a hole in place of the variable's own values gives the gradient by these values
        wrt = [term.observation if hole is term.data else hole for hole in self._wanted]
        slopes = simplified(gradients(simplified([term.loss])[0], wrt))
        self._simulated = BatchFunction([term.observation], slopes, term.holes, simplified=True)

    @property
    def _wanted(self) -> list[TensorVariable]:
        return [self._term.holes[i] for i in self._open]

    @cached_property
    def _observed(self) -> BatchFunction:
        loss = given_data(self._term, self._term.loss)
        slopes = simplified(gradients(simplified([loss])[0], self._wanted))
        return BatchFunction(self._term.holes, slopes, simplified=True)

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
            logger.debug("The likelihood cannot be simulated with all unknowns at zero: %r", error)
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
