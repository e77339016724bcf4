"""The phases of a sampler: start, burn-in, settling and sampling, the same for all kernels.

==========  =================================================================================
phase       what happens
==========  =================================================================================
start       the positions are evaluated; those that fail are replaced by draws from the prior
burn-in     another kernel brings the ensemble from the prior to the posterior
settling    the sampling kernel moves the ensemble and adapts, until its state has settled
sampling    the sampling kernel adapts no more, and its sweeps become draws
==========  =================================================================================
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np

from .ensemble import (
    Array,
    Ensemble,
    EnsembleFailure,
    Evaluations,
    Info,
    Origin,
    PriorAndLoss,
    Snapshot,
)
from .examination import Examination
from .kernels import BurnIn, EnsembleKernel, Kernel, KernelState, SamplingKernel
from .linearization import FOR_EACH, Anomalies
from .options import require_counts
from .start import Start, StartState

Phase = Literal["start", "burn-in", "settling", "sampling"]


@dataclass(frozen=True)
class PhaseState:
    """State of a sampler.

    Attributes
    ----------
    phase : {"start", "burn-in", "settling", "sampling"}
    inner : KernelState
        State of the kernel of this phase.
    skip_burn_in : bool
        Whether the positions continue an earlier run.
    rounds : int or None
        Largest number of rounds of evaluations before the sampling, if it is known.
    passed : bool
        Whether the earlier phases have passed their tests.
    failed_in_a_row : int
        Forward evaluations since the last one that did not fail.
    found : Examination or None
        Result of the examination of the forward map, if there was one.
    """

    phase: Phase
    inner: KernelState
    skip_burn_in: bool = False
    rounds: int | None = None
    passed: bool = True
    failed_in_a_row: int = 0
    found: Examination | None = None

    @property
    def ensemble(self) -> Ensemble | None:
        """Evaluated particles, or None before the first evaluation."""
        return self.inner.ensemble

    @property
    def evaluated(self) -> Ensemble:
        """Evaluated particles; an `EnsembleFailure` before the first evaluation."""
        if self.inner.ensemble is None:
            raise EnsembleFailure("Nothing has been evaluated yet.")
        return self.inner.ensemble

    @property
    def burned_in(self) -> bool:
        """Whether the burn-in is over."""
        return self.phase == "sampling"

    @property
    def converged(self) -> bool:
        """Whether all phases so far have passed their tests."""
        return self.passed and self.inner.converged


@dataclass(frozen=True)
class PhasedSampler(ABC):
    """Sampler that is made of kernels, one for the burn-in and one for the sampling.

    A subclass has a `kernel`, and maybe a `burn_in`.

    Parameters
    ----------
    problem : InverseProblem
        Dimension, loss and prior; its forward map is never called from here.
    """

    seeds: ClassVar[bool] = False
    """Whether the kernel after the start needs a seed."""

    remedy_of_span: ClassVar[str] = ""
    """Further remedy, in the error message, for an ensemble that does not span all dimensions."""

    problem: PriorAndLoss

    # -- what a subclass defines ----------------------------------------------------------------

    @property
    @abstractmethod
    def kernel(self) -> SamplingKernel[Any, Any]:
        """Kernel of the sampling. Its state is of the type that `begin` returns."""

    @abstractmethod
    def begin(self, state: PhaseState) -> KernelState:
        """First state of the kernel, from the last state of the earlier phases."""

    @property
    def burn_in(self) -> Kernel[Any, Any] | None:
        """Kernel of the burn-in, or None if the sampling kernel starts at once."""
        return None

    def begin_burn_in(self, state: PhaseState) -> KernelState:
        """First state of the burn-in, from the evaluated ensemble."""
        raise NotImplementedError

    def burns_in(self, state: PhaseState) -> bool:
        """Whether there is a burn-in after the start."""
        return self.burn_in is not None and not state.skip_burn_in

    @property
    def min_members(self) -> int:
        """Fewest members from which statistics can be computed."""
        return self.problem.dimension + 2

    @property
    def has_to_span(self) -> bool:
        """Whether the ensemble has to span all dimensions."""
        return True

    # -- sizes ----------------------------------------------------------------------------------

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of particles J that become draws."""

    @property
    def start_size(self) -> int:
        """Number of initial positions."""
        return self.size

    @property
    def most_failures(self) -> int:
        """Forward evaluations in a row that end the run if all of them fail."""
        return self.start_size

    @property
    def evaluations_per_sweep(self) -> int:
        """Forward evaluations of a sweep of the sampling phase."""
        return self.size

    # -- ask and tell ---------------------------------------------------------------------------

    @cached_property
    def _start(self) -> Start:
        return Start(self.problem, self.min_members, self.seeds)

    def resume(self, ensemble: Ensemble) -> PhaseState:
        """State after the start, for an ensemble that was evaluated already."""
        start = StartState(ensemble.U, False, ensemble, complete=True)
        return self._proceed(PhaseState("start", start))

    def _kernel_of(self, phase: Phase) -> Kernel[Any, Any]:
        """Kernel of a phase. The type of its state is known at run time only."""
        if phase == "start":
            return self._start
        if phase == "burn-in":
            assert self.burn_in is not None
            return self.burn_in
        return self.kernel

    def start(
        self,
        U: Array,
        *,
        redraw: bool = False,
        skip_burn_in: bool = False,
        rounds: int | None = None,
    ) -> PhaseState:
        """State for positions that were not evaluated yet.

        Parameters
        ----------
        U : ndarray of shape (J, d)
            Initial positions in unconstrained coordinates.
        redraw : bool, default False
            Replace members that fail by draws from the prior.
        skip_burn_in : bool, default False
            The positions already follow the posterior, as those of an earlier run.
        rounds : int, optional
            Largest number of rounds of evaluations before the sampling.
        """
        return PhaseState("start", self._start.start(U, redraw), skip_burn_in, rounds)

    def ask(self, state: PhaseState, rng: np.random.Generator) -> tuple[Array, Any]:
        """Choose the points of the next round.

        Parameters
        ----------
        state : PhaseState
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
        return self._kernel_of(state.phase).ask(state.inner, rng)

    def tell(
        self, state: PhaseState, pending: Any, evaluations: Evaluations
    ) -> tuple[PhaseState, Info]:
        """Learn from the evaluations of a round.

        Parameters
        ----------
        state : PhaseState
            The state that was asked.
        pending : object
            What `ask` returned beside the points.
        evaluations : Evaluations
            ``outputs`` of shape (n, K) and the mask ``failed`` of shape (n,).

        Returns
        -------
        state : PhaseState
        info : Info
            What the round did; its ``snapshot`` is set when a sweep is complete.

        Raises
        ------
        EnsembleFailure
            If as many evaluations as there are particles have failed in a row, or if the initial
            ensemble does not span the parameter space.
        """
        inner, info = self._kernel_of(state.phase).tell(state.inner, pending, evaluations)
        if state.phase != "sampling":
            info = replace(
                info, phase="start" if state.phase == "start" else "burn-in", snapshot=None
            )
        state = replace(state, inner=inner, failed_in_a_row=self._failed_in_a_row(state, info))
        if state.phase == "start" and state.rounds is not None:
            state = replace(state, rounds=state.rounds - 1)
        if info.complete and state.phase != "sampling" and inner.burned_in:
            state = self._proceed(state)
        return state, info

    def freeze(self, state: PhaseState) -> PhaseState:
        """End the tuning, and begin the sampling phase with the present ensemble."""
        if state.phase == "sampling":
            return state
        if state.phase == "start" and self.burns_in(state):
            state = self._enter("burn-in", state, self.begin_burn_in(state))
        if state.phase != "settling":
            state = self._enter("settling", state, self.begin(state))
        passed, inner = state.converged, self.kernel.freeze(state.inner)
        return replace(state, phase="sampling", inner=inner, passed=passed)

    def finish(
        self, state: PhaseState, snapshots: Sequence[Snapshot], rng: np.random.Generator
    ) -> Sequence[Snapshot]:
        """Snapshots of a block of sweeps, as they become draws."""
        return self.kernel.finish(state.inner, snapshots, rng)

    @abstractmethod
    def origin(self, state: PhaseState) -> Origin:
        """Law of the draws, as the sampler declares it."""

    # -- from phase to phase --------------------------------------------------------------------

    def _failed_in_a_row(self, state: PhaseState, info: Info) -> int:
        """Evaluations since the last one that did not fail, with those of this round."""
        if info.n_evaluations == 0:
            return state.failed_in_a_row
        if info.n_failed < info.n_evaluations:
            return 0
        in_a_row = state.failed_in_a_row + info.n_evaluations
        if in_a_row >= self.most_failures:
            raise EnsembleFailure(f"All of the last {in_a_row} forward evaluations have failed.")
        return in_a_row

    def _proceed(self, state: PhaseState) -> PhaseState:
        """Begin the phase after the present one, which is complete."""
        if state.phase == "start":
            self._require_span(state.evaluated)
            if self.burns_in(state):
                return self._enter("burn-in", state, self.begin_burn_in(state))
        if state.phase != "settling":
            state = self._enter("settling", state, self.begin(state))
        return self.freeze(state) if state.inner.burned_in else state

    def _enter(self, phase: Phase, state: PhaseState, inner: KernelState) -> PhaseState:
        return replace(state, phase=phase, inner=inner, passed=state.converged)

    def _require_span(self, ensemble: Ensemble) -> None:
        """Refuse an ensemble without spread in some direction: no move would spread it there."""
        d = self.problem.dimension
        rank = Anomalies.of(ensemble.U[ensemble.ok]).rank
        if rank < d and self.has_to_span:
            raise EnsembleFailure(
                f"The initial ensemble spans {rank} of {d} dimensions, and the sampler cannot "
                "move in the others. Spread the ensemble out in all dimensions, for example by "
                f"adding noise{self.remedy_of_span}."
            )


def default_ensemble_size(dimension: int, fewest: int = 100) -> int:
    """``max(fewest, 4 (d + 2))`` particles: an even number if `fewest` is even."""
    return max(fewest, FOR_EACH * (dimension + 2))


@dataclass(frozen=True)
class EnsembleSampler(PhasedSampler):
    """Sampler whose kernels hand on the evaluated ensemble, and nothing else.

    Parameters
    ----------
    problem : InverseProblem
    ensemble_size : int, optional
        Number of particles J; by default ``max(100, 4 (d + 2))``.
    """

    ensemble_size: int | None = None

    def __post_init__(self) -> None:
        """Refuse an ensemble of fewer than two particles."""
        require_counts(2, ensemble_size=self.size)

    @property
    def size(self) -> int:
        """Number of particles J."""
        if self.ensemble_size is None:
            return default_ensemble_size(self.problem.dimension)
        return self.ensemble_size

    @property
    @abstractmethod
    def kernel(self) -> EnsembleKernel[Any, Any]:
        """Kernel of the sampling."""

    @property
    def burn_in(self) -> BurnIn[Any, Any] | None:
        """Kernel of the burn-in, or None if the sampling kernel starts at once."""
        return None

    def begin(self, state: PhaseState) -> KernelState:
        """First state of the kernel, from the evaluated ensemble."""
        return self.kernel.start(state.evaluated, at_rest=state.skip_burn_in)

    def begin_burn_in(self, state: PhaseState) -> KernelState:
        """First state of the burn-in, from the evaluated ensemble."""
        assert self.burn_in is not None
        return self.burn_in.start(state.evaluated)
