"""Searches for the mode of a model, with evaluations, counts and progress."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pymc as pm
import xarray as xr
from numpy.typing import NDArray

from pymc_ensemble.log import ProgressLog, show_log
from pymc_ensemble.samplers.ensemble import Ensemble, Info
from pymc_ensemble.samplers.informed.laplace import Laplace
from pymc_ensemble.samplers.informed.mode import ModeSearch
from pymc_ensemble.samplers.informed.search import SearchState
from pymc_ensemble.samplers.kalman.sampler import EnsembleKalman
from pymc_ensemble.samplers.multiscale.descent import Descent, DescentState
from pymc_ensemble.samplers.words import number

from .driver import Account, AskTell, Driver, Pending, State
from .inverse_problem import InverseProblem

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """End of a search.

    Attributes
    ----------
    u : ndarray of shape (1, d)
        Point in unconstrained coordinates.
    converged : bool
    history : xarray.Dataset
    doubt : str
        Message if it has not converged.
    laplace : Laplace or None
    """

    u: FloatArray
    converged: bool
    history: xr.Dataset
    doubt: str
    laplace: Laplace | None = None


class Search:
    """Forward evaluations on the way to the mode.

    Parameters
    ----------
    problem, target : InverseProblem
        The problem with and without the Jacobians of transforms.
    model : pm.Model
        The model of the problem.
    rng : numpy.random.Generator
    progressbar : bool
        Whether to report the progress.
    """

    def __init__(
        self,
        problem: InverseProblem,
        target: InverseProblem,
        model: pm.Model,
        rng: np.random.Generator,
        progressbar: bool,
    ):
        self.problem, self.target = problem, target
        self.rng, self.progressbar = rng, progressbar
        self.account = Account()
        self._driver = Driver(problem, model, self.account, ProgressLog("find_MAP_ensemble"))
        if progressbar:
            show_log()

    def _round(
        self, driver: Driver, sampler: AskTell[State, Pending], state: State, what: str
    ) -> tuple[State, Info]:
        """Evaluate one batch of points."""
        state, info = driver.round(sampler, state, self.rng)
        if self.progressbar:
            driver.tell(what)
        return state, info

    def ensemble(self, size: int | None) -> Ensemble:
        """Members of an ensemble that was moved to the posterior."""
        sampler = EnsembleKalman(self.problem, size, adjust=self.problem.density_only)
        U = self.problem.sample_prior(sampler.size, self.rng)
        state, iteration = sampler.start(U, redraw=True), 0
        remedy = (
            "`initvals` where the forward map works, with `preconditioner=None` or a covariance, "
            f"so that no ensemble is needed; {self._driver.remedy}"
        )
        driver = replace(self._driver, remedy=remedy)
        while not state.burned_in:
            what = f"ensemble, iteration {iteration + 1}"
            state, info = self._round(driver, sampler, state, what)
            iteration += info.complete
        return state.evaluated[state.evaluated.ok]

    def track(self, start: FloatArray | None, round_size: int, maxiter: int) -> Found:
        """Gauss-Newton search with a tracked slope, from `start` or the best draw of the prior."""
        driver = replace(self._driver, remedy=f"`initvals` where {self._driver.remedy}")
        sampler = ModeSearch(self.target, round_size, maxiter, from_first=start is not None)
        U = self.target.sample_prior(round_size, self.rng)
        if start is not None:
            U[0] = start
        rows: list[tuple[float, ...]] = []
        state = sampler.start(U, redraw=start is None)
        while not state.burned_in:
            what = f"search, round {len(rows) + 1}"
            state, _ = self._round(driver, sampler, state, what)
            if isinstance(state.inner, SearchState):
                center, inner = state.evaluated, state.inner
                told = (center.loss[0], center.potential[0], inner.gap, inner.tracker.unknown)
                rows.append((*told, self.account.n_evals))
        search = state.inner
        assert isinstance(search, SearchState)
        doubt = (
            f"The search ended after {search.rounds} rounds, with {number(search.gap, '.2g')} of "
            "the log density still to be gained, by its own account, instead of "
            f"{sampler.tolerance:.2g}. "
            'Allow more of them (maxiter), or use method="explorers" with another sigma if the '
            "forward map is not smooth."
        )
        columns = ("misfit", "potential", "gap", "unknown", "n_evals")
        laplace = Laplace(self.problem, sampler.reference, search)
        history = _history(columns, rows)
        return Found(search.ensemble.U, search.converged, history, doubt, laplace)

    def descend(self, descent: Descent, state: DescentState, maxiter: int) -> Found:
        """Descend until the mode is found."""
        rows = []
        driver = replace(self._driver, remedy="`initvals` where the forward map works.")
        while not state.done and state.steps < maxiter:
            state, _ = self._round(driver, descent, state, f"descent, step {state.steps + 1}")
            told = (state.loss, state.potential, state.slope, state.step_size)
            rows.append((*told, self.account.n_evals))
        names = ("misfit", "potential", "gradient", "step_size", "n_evals")
        doubt = (
            f"The search ended after {state.steps} steps with a gradient of "
            f"{number(state.slope, '.2g')}, in posterior standard deviations, instead of "
            f"{descent.tolerance:.2g}. Allow more of them (maxiter), or directions, or use another "
            "sigma if the forward map is not smooth."
        )
        return Found(state.U, state.converged, _history(names, rows), doubt)


def _history(names: Sequence[str], rows: Sequence[Sequence[float]]) -> xr.Dataset:
    """Table of the iterations."""
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    return xr.Dataset({name: ("iteration", np.array(c)) for name, c in columns.items()})
