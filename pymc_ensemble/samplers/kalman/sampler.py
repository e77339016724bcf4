"""Ensemble Kalman sampler: interacting particles that never differentiate the forward map.

The particles follow ``du = -C grad V(u) dt + sqrt(2 C) dW`` with the covariance C of the ensemble,
and the gradient of the misfit is replaced by what the ensemble itself says about the slope of the
forward map. This module chains the parts: first evaluation, burn-in, sampling kernel.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from pymc_ensemble.samplers.ensemble import (
    Array,
    Ensemble,
    EnsembleFailure,
    Evaluations,
    Info,
    Problem,
    Snapshot,
)
from pymc_ensemble.samplers.linearization import Anomalies
from pymc_ensemble.samplers.options import require_counts, require_positive
from pymc_ensemble.samplers.start import Start
from pymc_ensemble.samplers.tempering import STANDSTILLS, Finish, TemperedBurnIn

from .inflated_design import DesignState, InflatedDesign
from .metropolis import MixtureMetropolis
from .published import PublishedScheme
from .relaxation import Relaxation, WholeRelaxation, pointwise_step

DEFAULT_STEP = 2.0
SMALL_ENSEMBLE_STEP = 0.1  # largest step without split halves
SMALL_ENSEMBLE_BURN_IN = 5.0  # relaxation times
LONGEST_SETTLING = 10  # sweeps in which the pointwise dynamics forget the linearized burn-in


@dataclass(frozen=True)
class KalmanState:
    """State of the ensemble Kalman sampler.

    Attributes
    ----------
    phase : {"start", "burn-in", "settling", "sampling"}
    inner : object
        State of the part that is at work in this phase.
    skip_burn_in : bool
        Whether the positions continue an earlier run.
    remaining : int
        Sweeps that the sampling kernel still needs to settle.
    converged : bool
        Whether the burn-in passed its test.
    failed_in_a_row : int
        Forward evaluations since the last one that did not fail.
    """

    phase: Literal["start", "burn-in", "settling", "sampling"]
    inner: Any
    skip_burn_in: bool = False
    remaining: int = 0
    converged: bool = False
    failed_in_a_row: int = 0

    @property
    def ensemble(self) -> Any:
        """Evaluated particles (an `Ensemble`), or None before the first evaluation."""
        return self.inner.ensemble

    @property
    def burned_in(self) -> bool:
        """Whether the burn-in is over."""
        return self.phase == "sampling"

    @property
    def curved(self) -> bool:
        """Whether the linear fit to a rough map was found not to do, as the map is curved."""
        return isinstance(self.inner, DesignState) and self.inner.curved


@dataclass(frozen=True)
class EnsembleKalman:
    """Ensemble Kalman sampler for a Bayesian inverse problem.

    Parameters
    ----------
    problem : InverseProblem
        Dimension, loss and prior; its forward map is never called from here.
    ensemble_size : int, optional
        Number of particles J; by default ``max(100, 4 (d + 2))``.
    adjust : bool, default False
        Metropolis-adjusted moves: exact for deterministic forward maps.
    rough : bool, default False
        The forward map is noisy or carries fluctuations that are to be averaged out.
    scheme : {"exact", "paper"}, default "exact"
        Exact Ornstein-Uhlenbeck steps of split halves, or the published scheme.
    dt : float, optional
        Time step, default 2 (0.1 for ensembles too small to be split); for the published scheme
        the bound of its adaptive step.
    corrected : bool, default True
        Finite-ensemble correction of the published scheme.
    allow_subspace : bool, default False
        Accept ensembles that do not span the parameter space.
    evolutions : int, default 0
        Rounds of differential evolution in every stage of the burn-in: they keep the weights of
        separate modes right, and cost evaluations.

    Raises
    ------
    ValueError
        If the options contradict one another or the ensemble is too small.

    Examples
    --------
    >>> import numpy as np
    >>> import pymc_ensemble as pe
    >>> from pymc_ensemble.samplers.kalman.sampler import EnsembleKalman
    >>> A = np.array([[1.0, 0.5], [0.0, 2.0], [1.0, -1.0]])
    >>> problem = pe.InverseProblem(
    ...     lambda u: A @ u, prior=(np.zeros(2), np.eye(2)), data=np.ones(3), noise=0.5
    ... )
    >>> sampler, rng = EnsembleKalman(problem, ensemble_size=50), np.random.default_rng(1)
    >>> state = sampler.start(problem.sample_prior(50, rng), redraw=True)
    >>> while not state.burned_in:
    ...     points, pending = sampler.ask(state, rng)
    ...     state, info = sampler.tell(state, pending, problem.evaluate(points))
    >>> state.converged
    True
    """

    problem: Problem
    ensemble_size: int | None = None
    adjust: bool = False
    rough: bool = False
    scheme: Literal["exact", "paper"] = "exact"
    dt: float | None = None
    corrected: bool = True
    allow_subspace: bool = False
    evolutions: int = 0

    def __post_init__(self) -> None:
        """Refuse contradicting options."""
        if self.scheme not in ("exact", "paper"):
            raise ValueError(f'scheme must be "exact" or "paper", not {self.scheme!r}.')
        if self.adjust and self.rough:
            raise ValueError(
                "adjust=True and rough=True exclude each other: a Metropolis test targets the "
                "rough posterior and locks in on lucky evaluations. Use rough=True alone for the "
                "smooth posterior, or adjust=True alone for a deterministic forward map."
            )
        if self.scheme == "paper" and (self.adjust or self.rough):
            option = "adjust" if self.adjust else "rough"
            raise ValueError(
                f'scheme="paper" is the published algorithm; {option}=True needs '
                'scheme="exact", the default.'
            )
        require_positive(dt=self.dt)
        if self.dt is not None and (self.adjust or self.rough):
            option = "adjust" if self.adjust else "rough"
            raise ValueError(f"dt has no meaning with {option}=True; leave it out.")
        if not self.corrected and self.scheme != "paper":
            raise ValueError('corrected=False is an option of scheme="paper" only; leave it out.')
        require_counts(2, ensemble_size=self.size)
        J, d = self.size, self.problem.dimension
        if d + 1 >= J and not self.allow_subspace:
            raise ValueError(
                f"ensemble_size={J} is too small for {d} parameters: the particles would never "
                f"leave the span of their start. Use at least {2 * (d + 2)} (default "
                f"{default_ensemble_size(d)}), or allow_subspace=True to sample in the span only."
            )
        if (self.adjust or self.rough) and not self.splits:
            option = "adjust" if self.adjust else "rough"
            raise ValueError(
                f"{option}=True needs an ensemble_size of at least {2 * (d + 2)} for {d} "
                f"parameters, not {J}."
            )

    @property
    def size(self) -> int:
        """Number of particles J."""
        if self.ensemble_size is None:
            return default_ensemble_size(self.problem.dimension)
        return self.ensemble_size

    @property
    def splits(self) -> bool:
        """Whether the ensemble is large enough for split halves."""
        return self.size >= 2 * (self.problem.dimension + 2)

    @property
    def min_members(self) -> int:
        """Members without which there is no statistics."""
        d = self.problem.dimension
        return 3 if self.size <= d + 1 else d + 2

    # -- the parts at work ----------------------------------------------------------------------

    @cached_property
    def _start(self) -> Start:
        return Start(self.problem, self.min_members)

    @cached_property
    def _burn_in(self) -> TemperedBurnIn:
        finish: Finish = "none" if self.rough else "metropolis" if self.adjust else "relax"
        return TemperedBurnIn(
            self.problem, self.min_members, not self.rough, finish, evolutions=self.evolutions
        )

    @cached_property
    def _kernel(self) -> Any:
        if self.scheme == "paper":
            largest = np.inf if self.dt is None else self.dt
            return PublishedScheme(self.problem, self.min_members, largest, self.corrected)
        if self.rough:
            return InflatedDesign(self.problem)
        if self.adjust:
            return MixtureMetropolis(self.problem, self.min_members)
        kernel = Relaxation if self.splits else WholeRelaxation
        return kernel(self.problem, self.min_members)

    def _part(self, phase: str) -> Any:
        return {"start": self._start, "burn-in": self._burn_in}.get(phase, self._kernel)

    # -- ask and tell ---------------------------------------------------------------------------

    def start(self, U: Array, *, redraw: bool = False, skip_burn_in: bool = False) -> KalmanState:
        """State for positions that were not evaluated yet.

        Parameters
        ----------
        U : ndarray of shape (J, d)
            Initial positions in unconstrained coordinates.
        redraw : bool, default False
            Draw members that fail anew from the prior.
        skip_burn_in : bool, default False
            The positions already follow the posterior, as those of an earlier run do.
        """
        return KalmanState("start", self._start.start(U, redraw), skip_burn_in)

    def ask(self, state: KalmanState, rng: np.random.Generator) -> tuple[Array, Any]:
        """Choose the points of the next round.

        Parameters
        ----------
        state : KalmanState
        rng : numpy.random.Generator

        Returns
        -------
        points : ndarray of shape (n, d)
            Where the forward map is to be evaluated, all in one batch.
        pending : object
            What `tell` needs to judge the evaluations; it can be pickled.

        Raises
        ------
        EnsembleFailure
            If too few members have a finite posterior density.
        """
        return self._part(state.phase).ask(state.inner, rng)

    def tell(
        self, state: KalmanState, pending: Any, evaluations: Evaluations
    ) -> tuple[KalmanState, Info]:
        """Learn from the evaluations of a round.

        Parameters
        ----------
        state : KalmanState
            The state that was asked.
        pending : object
            What `ask` returned beside the points.
        evaluations : Evaluations
            ``outputs`` of shape (n, K) and the mask ``failed`` of shape (n,).

        Returns
        -------
        state : KalmanState
        info : Info
            What the round did; its ``snapshot`` is set when a sweep is complete.

        Raises
        ------
        EnsembleFailure
            If as many evaluations as there are particles have failed in a row, or if the initial
            ensemble does not span the parameter space.
        """
        inner, info = self._part(state.phase).tell(state.inner, pending, evaluations)
        phase = "burn-in" if state.phase == "settling" else info.phase
        if state.phase != "sampling":
            info = replace(info, phase=phase, snapshot=None)
        in_a_row = state.failed_in_a_row + info.n_evaluations if evaluations.failed.all() else 0
        if in_a_row >= self.size:
            raise EnsembleFailure(f"All of the last {in_a_row} forward evaluations have failed.")
        state = replace(state, inner=inner, failed_in_a_row=in_a_row)
        if info.complete:
            state = self._proceed(state)
        return state, info

    def freeze(self, state: KalmanState) -> KalmanState:
        """End the tuning: go on to the sampling phase with the ensemble as it is."""
        if state.phase == "sampling":
            return state
        if state.phase in ("start", "burn-in"):
            state = self._settle(state)
        inner = state.inner
        if isinstance(self._kernel, InflatedDesign):
            inner = self._kernel.freeze(inner)
            state = replace(state, converged=state.converged and inner.converged)
        return replace(state, phase="sampling", inner=inner)

    def finish(
        self, state: KalmanState, snapshots: Sequence[Snapshot], rng: np.random.Generator
    ) -> Sequence[Snapshot]:
        """Snapshots of a block as they are to be handed out; rough maps redraw them."""
        return self._kernel.finish(state.inner, snapshots, rng) if self.rough else snapshots

    # -- phases ---------------------------------------------------------------------------------

    def _proceed(self, state: KalmanState) -> KalmanState:
        """Go on to the next phase where the present one has done its work."""
        inner = state.inner
        if state.phase == "start":
            if not inner.complete:
                return state
            self._require_span(inner.ensemble)
            if state.skip_burn_in or self.scheme == "paper" or not self.splits:
                return self._settle(replace(state, converged=state.skip_burn_in))
            return replace(state, phase="burn-in", inner=self._burn_in.start(inner.ensemble))
        if state.phase == "burn-in":
            if not inner.burned_in:
                return state
            return self._settle(replace(state, converged=inner.converged))
        if state.phase == "settling":
            if self.rough:
                done = inner.burned_in
            elif self.scheme == "paper":
                done = inner.settled >= STANDSTILLS and inner.sweeps >= 2 * STANDSTILLS
                state = replace(state, converged=done or state.converged)
                done = done or state.skip_burn_in
            else:
                state = replace(state, remaining=state.remaining - 1)
                done = state.remaining <= 0
                state = replace(state, converged=state.converged or (done and not self.splits))
            return self.freeze(state) if done else state
        return state

    def _require_span(self, ensemble: Ensemble) -> None:
        """Refuse an ensemble without spread in some direction: it would never get any."""
        d = self.problem.dimension
        rank = Anomalies.of(ensemble.U[ensemble.ok]).rank
        if rank < d and not self.allow_subspace:
            raise EnsembleFailure(
                f"The initial ensemble spans {rank} of {d} dimensions, and the particles would "
                "never leave them. Spread it out in all of them, for example by adding noise, or "
                "use allow_subspace=True to sample in the span only."
            )

    def _settle(self, state: KalmanState) -> KalmanState:
        """Hand the ensemble to the sampling kernel."""
        ensemble = state.ensemble
        remaining = 0
        if self.scheme == "paper" or self.rough:
            inner, remaining = self._kernel.start(ensemble), 1
        elif self.adjust:
            inner = self._kernel.start(ensemble)
        else:
            default = DEFAULT_STEP if self.splits else SMALL_ENSEMBLE_STEP
            dt, pointwise = self.dt or default, False
            gaussian = self.problem.quadratic_loss and self.problem.gaussian_prior
            if self.splits and not gaussian:
                pointwise, largest = pointwise_step(self.problem, ensemble)
                dt = min(dt, largest) if pointwise else dt
            inner = self._kernel.start(ensemble, dt, pointwise)
            if not state.skip_burn_in:
                if not self.splits:  # resampled, a small ensemble would lose directions
                    remaining = int(np.ceil(SMALL_ENSEMBLE_BURN_IN / dt))
                elif pointwise:
                    remaining = min(LONGEST_SETTLING, int(np.ceil(2 / dt)))
        state = replace(state, phase="settling", inner=inner, remaining=remaining)
        return state if remaining else self.freeze(state)


def default_ensemble_size(dimension: int) -> int:
    """``max(100, 4 (d + 2))`` particles: an even number."""
    return max(100, 4 * (dimension + 2))
