"""Laplace's approximation at the end of a search: a covariance and an evidence, on request."""

from functools import cached_property

import numpy as np

from pymc_ensemble.samplers.ensemble import Array, Problem

from .reference import GaussianReference
from .search import SearchState


class Laplace:
    """Gaussian law at a point where outputs are linearized, with the prior at this point.

    Parameters
    ----------
    problem : InverseProblem
        Problem whose potential counts. That of the search may lack the Jacobians of transforms.
    reference : GaussianReference
    state : SearchState
        End of the search.
    """

    def __init__(self, problem: Problem, reference: GaussianReference, state: SearchState):
        self._problem, self._reference, self._state = problem, reference, state

    @cached_property
    def _frame(self) -> Array:
        """Transposed factor L of the reference, shape (d, d)."""
        d = self._problem.dimension
        return self._reference.points(np.eye(d)) - self._reference.mean

    @cached_property
    def _root(self) -> Array:
        """Cholesky factor of the precision in reference coordinates, shape (d, d)."""
        [u], Z = self._state.ensemble.U, self._state.ensemble.Z
        of_prior = self._frame @ self._problem.prior_hessian(u) @ self._frame.T
        slope = self._state.tracker.slope
        information = (slope.T * self._problem.curvature(Z)[0]) @ slope
        try:
            return np.linalg.cholesky(of_prior + information)
        except np.linalg.LinAlgError:  # the prior is not log-concave there: use its reference
            return np.linalg.cholesky(np.eye(len(u)) + information)

    @property
    def covariance(self) -> Array:
        """Covariance in unconstrained coordinates, shape (d, d)."""
        half = np.linalg.solve(self._root, self._frame)
        return half.T @ half

    @property
    def log_evidence(self) -> float:
        """Log evidence, eq. (F12). The gradient at the point need not vanish."""
        problem, ensemble = self._problem, self._state.ensemble
        potential = problem.loss(ensemble.Z)[0] + problem.prior_potential(ensemble.U)[0]
        of_loss = problem.loss_gradient(ensemble.Z)[0] @ self._state.tracker.slope
        of_prior = self._reference.pull_back(problem.prior_gradient(ensemble.U))[0]
        decrement = np.linalg.solve(self._root, of_loss + of_prior)
        volume = self._reference.log_volume - np.log(np.diag(self._root)).sum()
        constant = 0.5 * len(decrement) * np.log(2 * np.pi)
        return float(0.5 * (decrement @ decrement) - potential + constant + volume)
