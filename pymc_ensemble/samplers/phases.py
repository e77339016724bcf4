"""The life of a sampler: start, burn-in, settling, sampling; written once for all kernels.

A *kernel* moves an ensemble that has been evaluated, round by round: it asks for points, and is
told their evaluations. A *sampler* is a kernel with a life around it. It has the same `ask` and
`tell`, but begins with positions that nothing is known of.

==========  =================================================================================
phase       what happens
==========  =================================================================================
start       the positions are evaluated; those that fail are drawn anew from the prior
burn-in     another kernel brings the ensemble from the prior to the posterior
settling    the kernel itself is at work, and adapts, until its state says that it has settled
sampling    nothing is adapted any more, and sweeps become draws
==========  =================================================================================
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol

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
from .linearization import Anomalies
from .options import require_counts

MAX_REDRAWS = 20
STANDSTILLS = 3  # consecutive comparisons without change that show an ensemble at rest

Phase = Literal["start", "burn-in", "settling", "sampling"]


# -- protocols ------------------------------------------------------------------------------------


class KernelState(Protocol):
    """What a kernel remembers from round to round; frozen, and it can be pickled."""

    @property
    def ensemble(self) -> Ensemble | None:
        """Evaluated particles, or None before the first evaluation."""

    @property
    def burned_in(self) -> bool:
        """Whether the kernel has nothing left to do but to sample, or to hand on."""

    @property
    def converged(self) -> bool:
        """Whether it has passed its own test on the way."""


class Kernel[S: KernelState, P](Protocol):
    """Dynamics of an ensemble whose forward evaluations somebody else makes."""

    def ask(self, state: S, rng: np.random.Generator) -> tuple[Array, P]:
        """Points of the next round, shape (n, d), and what `tell` needs to judge them.

        All randomness of a round comes from `rng`, here: `tell` has none.
        """

    def tell(self, state: S, pending: P, evaluations: Evaluations) -> tuple[S, Info]:
        """State after the round, and an account of it."""


class SamplingKernel[S: KernelState, P](Kernel[S, P], Protocol):
    """Kernel whose sweeps become draws."""

    def freeze(self, state: S) -> S:
        """State whose adaptation has ended."""

    def finish(
        self, state: S, snapshots: Sequence[Snapshot], rng: np.random.Generator
    ) -> Sequence[Snapshot]:
        """Snapshots of a block of sweeps as they are to be handed out."""


class BurnIn[S: KernelState, P](Kernel[S, P], Protocol):
    """Kernel that brings an ensemble to the posterior."""

    def start(self, ensemble: Ensemble) -> S:
        """State for an evaluated ensemble."""


class EnsembleKernel[S: KernelState, P](SamplingKernel[S, P], Protocol):
    """Kernel that samples from an ensemble on."""

    def start(self, ensemble: Ensemble, *, at_rest: bool = False) -> S:
        """State for an evaluated ensemble; if it is `at_rest`, nothing has to settle any more."""


class NothingToFreeze[S: KernelState]:
    """Kernel that adapts nothing, and whose snapshots are handed out as they are."""

    def freeze(self, state: S) -> S:
        """The same state."""
        return state

    def finish(
        self, state: S, snapshots: Sequence[Snapshot], rng: np.random.Generator
    ) -> Sequence[Snapshot]:
        """The same snapshots."""
        return snapshots


class Sampler[S: KernelState, P](Kernel[S, P], Protocol):
    """What a step method asks of a sampler: a kernel that knows how to begin, and when to end."""

    @property
    def size(self) -> int:
        """Number of particles J that become draws."""

    @property
    def start_size(self) -> int:
        """Number of initial positions."""

    @property
    def evaluations_per_sweep(self) -> int:
        """Forward evaluations of a sweep of the sampling phase."""

    def start(self, U: Array, *, redraw: bool = False, skip_burn_in: bool = False) -> S:
        """State for positions `U` that were not evaluated yet."""

    def freeze(self, state: S) -> S:
        """State in the sampling phase, with the ensemble as it is."""

    def finish(
        self, state: S, snapshots: Sequence[Snapshot], rng: np.random.Generator
    ) -> Sequence[Snapshot]:
        """Snapshots of a block of sweeps as they are to be handed out."""

    def origin(self, state: S) -> Origin:
        """What the draws follow, as the sampler declares."""


# -- when dynamics have come to rest --------------------------------------------------------------


def standstill(reference: Anomalies, anomalies: Anomalies) -> bool:
    """Whether mean and covariance changed by less than half a standard deviation."""
    d = len(anomalies.mean)
    shift = anomalies.L_pinv @ (anomalies.mean - reference.mean)
    growth = 2 * (anomalies.log_volume - reference.log_volume)
    return np.sqrt(shift @ shift / d) < 0.5 and abs(growth) < 0.5 * np.sqrt(d)


@dataclass(frozen=True)
class Standstill:
    """Rest of an ensemble that is compared with itself, one relaxation time ago.

    Attributes
    ----------
    elapsed : float
        Time since the reference, in units in which the ensemble relaxes at the rate one.
    reference : Anomalies or None
        Statistics of the ensemble then.
    hits : int
        Consecutive comparisons in which mean and covariance stood still.
    """

    elapsed: float = 0.0
    reference: Anomalies | None = None
    hits: int = 0

    @property
    def done(self) -> bool:
        """Whether the ensemble has come to rest."""
        return self.hits >= STANDSTILLS

    def after(self, anomalies: Anomalies, time: float) -> "Standstill":
        """Take note of the statistics of the ensemble, some time later."""
        elapsed = self.elapsed + time
        if self.reference is None:
            return Standstill(0.0, anomalies, 0)
        if elapsed < 1:
            return Standstill(elapsed, self.reference, self.hits)
        hit = standstill(self.reference, anomalies)
        return Standstill(0.0, anomalies, self.hits + 1 if hit else 0)


@dataclass(frozen=True)
class Countdown:
    """Rest after a number of sweeps that is known beforehand."""

    sweeps: int = 0

    @property
    def done(self) -> bool:
        """Whether there is nothing left to wait for."""
        return self.sweeps <= 0

    def after(self, anomalies: Anomalies, time: float) -> "Countdown":
        """Take note of one more sweep."""
        return Countdown(self.sweeps - 1)


Rest = Standstill | Countdown
AT_REST, RESTLESS = Countdown(0), Standstill()


# -- the first evaluation -------------------------------------------------------------------------


@dataclass(frozen=True)
class StartState:
    """Positions before, and the evaluated ensemble after the first rounds."""

    U: Array
    redraw: bool
    ensemble: Ensemble | None = None
    rounds: int = 0
    complete: bool = False
    seed: int = 0

    @property
    def burned_in(self) -> bool:
        """Whether enough members are evaluated."""
        return self.complete

    converged = burned_in


@dataclass(frozen=True)
class StartRound:
    """A pending round: which members are evaluated where."""

    index: Array
    points: Array
    seed: int


@dataclass(frozen=True)
class Start:
    """Evaluate the initial positions; members that fail are drawn anew from the prior.

    Parameters
    ----------
    problem : InverseProblem
    min_members : int
        Members that must have a finite posterior density in the end.
    seeds : bool, default False
        Whether what follows needs a seed: then `ask` draws one for the state.
    """

    problem: PriorAndLoss
    min_members: int
    seeds: bool = False

    def start(self, U: Array, redraw: bool) -> StartState:
        """State for the positions `U`, shape (J, d); failed ones are drawn anew if `redraw`."""
        return StartState(np.array(U, dtype=float), redraw)

    def ask(self, state: StartState, rng: np.random.Generator) -> tuple[Array, StartRound]:
        """Points of the next round, shape (n, d)."""
        index, points = np.arange(len(state.U)), state.U
        if state.ensemble is not None:
            index = np.flatnonzero(~state.ensemble.ok)
            points = self.problem.sample_prior(len(index), rng)
        seed = int(rng.integers(2**63)) if self.seeds else 0
        return points, StartRound(index, points, seed)

    def tell(
        self, state: StartState, pending: StartRound, evaluations: Evaluations
    ) -> tuple[StartState, Info]:
        """State after the round, and an account of it."""
        values = Ensemble.evaluated(self.problem, pending.points, evaluations)
        ensemble = values
        if state.ensemble is not None:
            everyone = np.ones(len(values), dtype=bool)
            ensemble = state.ensemble.updated(pending.index, values, everyone)
        if not ensemble.ok.any() and not evaluations.failed.all():
            raise EnsembleFailure(
                "The forward map works, but the posterior density is zero for every member of the "
                "initial ensemble: the data may lie outside the support of their distribution."
            )
        last = not state.redraw or state.rounds >= MAX_REDRAWS
        complete = bool(ensemble.ok.all()) or last
        if complete:
            ensemble.require(self.min_members)
        state = StartState(
            state.U, state.redraw, ensemble, state.rounds + 1, complete, pending.seed
        )
        return state, Info.of(evaluations, "start", "initial ensemble", complete=complete)


# -- the life cycle -------------------------------------------------------------------------------


@dataclass(frozen=True)
class PhaseState:
    """State of a sampler.

    Attributes
    ----------
    phase : {"start", "burn-in", "settling", "sampling"}
    inner : KernelState
        State of the kernel that is at work in this phase.
    skip_burn_in : bool
        Whether the positions continue an earlier run.
    rounds : int or None
        Rounds of evaluations that there will be at most before the sampling, if that is known.
    passed : bool
        Whether the phases before have passed their tests.
    failed_in_a_row : int
        Forward evaluations since the last one that did not fail.
    """

    phase: Phase
    inner: KernelState
    skip_burn_in: bool = False
    rounds: int | None = None
    passed: bool = True
    failed_in_a_row: int = 0

    @property
    def ensemble(self) -> Ensemble | None:
        """Evaluated particles, or None before the first evaluation."""
        return self.inner.ensemble

    @property
    def evaluated(self) -> Ensemble:
        """Evaluated particles; an `EnsembleFailure` before the first evaluation."""
        if self.inner.ensemble is None:
            raise EnsembleFailure("Nothing was evaluated yet.")
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
    """Whether what follows the start needs a seed."""

    remedy_of_span: ClassVar[str] = ""
    """What else can be done about an ensemble that does not."""

    problem: PriorAndLoss

    # -- what a subclass says -------------------------------------------------------------------

    @property
    @abstractmethod
    def kernel(self) -> SamplingKernel[Any, Any]:
        """Kernel of the sampling. Its types go with those of `begin`."""

    @abstractmethod
    def begin(self, state: PhaseState) -> KernelState:
        """State of the kernel for what the phases before have left behind."""

    @property
    def burn_in(self) -> Kernel[Any, Any] | None:
        """Kernel of the burn-in; without one, the kernel of the sampling has to settle."""
        return None

    def begin_burn_in(self, state: PhaseState) -> KernelState:
        """State of the burn-in for an ensemble that was evaluated."""
        raise NotImplementedError

    def burns_in(self, state: PhaseState) -> bool:
        """Whether there is a burn-in after the start."""
        return self.burn_in is not None and not state.skip_burn_in

    @property
    def min_members(self) -> int:
        """Members without which there is no statistics."""
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

    def _at_work(self, phase: Phase) -> Kernel[Any, Any]:
        """Kernel of a phase: its types go with those of the state, which only a run can tell."""
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
            Draw members that fail anew from the prior.
        skip_burn_in : bool, default False
            The positions already follow the posterior, as those of an earlier run do.
        rounds : int, optional
            Rounds of evaluations that there will be at most before the sampling.
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
        return self._at_work(state.phase).ask(state.inner, rng)

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
        inner, info = self._at_work(state.phase).tell(state.inner, pending, evaluations)
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
        """End the tuning: go on to the sampling phase with the ensemble as it is."""
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
        """Snapshots of a block as they are to be handed out."""
        return self.kernel.finish(state.inner, snapshots, rng)

    @abstractmethod
    def origin(self, state: PhaseState) -> Origin:
        """What the draws follow, as the sampler declares."""

    # -- from phase to phase --------------------------------------------------------------------

    def _failed_in_a_row(self, state: PhaseState, info: Info) -> int:
        """Evaluations since the last one that did not fail, the round's included."""
        if info.n_evaluations == 0:
            return state.failed_in_a_row
        if info.n_failed < info.n_evaluations:
            return 0
        in_a_row = state.failed_in_a_row + info.n_evaluations
        if in_a_row >= self.start_size:
            raise EnsembleFailure(f"All of the last {in_a_row} forward evaluations have failed.")
        return in_a_row

    def _proceed(self, state: PhaseState) -> PhaseState:
        """Go on to the phase after the present one, which has done its work."""
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
        """Refuse an ensemble without spread in some direction: it would never get any."""
        d = self.problem.dimension
        rank = Anomalies.of(ensemble.U[ensemble.ok]).rank
        if rank < d and self.has_to_span:
            raise EnsembleFailure(
                f"The initial ensemble spans {rank} of {d} dimensions, and the sampler would never "
                "leave them. Spread it out in all of them, for example by adding noise"
                f"{self.remedy_of_span}."
            )


def default_ensemble_size(dimension: int) -> int:
    """``max(100, 4 (d + 2))`` particles: an even number."""
    return max(100, 4 * (dimension + 2))


@dataclass(frozen=True)
class EnsembleSampler(PhasedSampler):
    """Sampler of one ensemble, which is all that its kernels hand on to each other.

    Parameters
    ----------
    problem : InverseProblem
    ensemble_size : int, optional
        Number of particles J; by default ``max(100, 4 (d + 2))``.
    """

    ensemble_size: int | None = None

    def __post_init__(self) -> None:
        """Refuse what is no size."""
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
        """Kernel of the burn-in; without one, the kernel of the sampling has to settle."""
        return None

    def begin(self, state: PhaseState) -> KernelState:
        """State of the kernel for the ensemble."""
        return self.kernel.start(state.evaluated, at_rest=state.skip_burn_in)

    def begin_burn_in(self, state: PhaseState) -> KernelState:
        """State of the burn-in for the ensemble."""
        assert self.burn_in is not None
        return self.burn_in.start(state.evaluated)
