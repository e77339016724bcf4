"""What the multiscale sampler and its published scheme have in common: pilot and walkers."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from pymc_ensemble.samplers.ensemble import (
    Array,
    Info,
    Law,
    Origin,
    Problem,
    has_forward_map,
)
from pymc_ensemble.samplers.kernels import KernelState
from pymc_ensemble.samplers.linearization import FOR_EACH
from pymc_ensemble.samplers.options import (
    require_counts,
    require_not_negative,
    require_positive,
)
from pymc_ensemble.samplers.phases import Phase, PhasedSampler, PhaseState

from .explorers import SMOOTH_DISTANCE, Explorers, Preconditioner
from .pilot import Pilot
from .pilot_run import PilotRun, PilotState
from .probe import Probe
from .walkers import Walkers
from .warm_up import WarmUp, WarmUpState

ROUGH_DISTANCE = 3.0
PILOT_SIZE = 60  # at least
PROBE_DISTANCE = 1e-2  # of the central differences that measure the stiffness


@dataclass(frozen=True)
class MultiscaleState(PhaseState):
    """State of a multiscale sampler.

    Attributes
    ----------
    number : int
        Number of the chain: chains start at different positions of one pilot.
    """

    number: int = 0

    @property
    def pilot(self) -> Pilot | None:
        """Result of the pilot."""
        return self.inner.pilot if isinstance(self.inner, PilotState | WarmUpState) else None

    @property
    def shared(self) -> bool:
        """Whether the present phase serves all chains."""
        return self.phase in ("start", "burn-in")


@dataclass(frozen=True)
class WalkerSampler(PhasedSampler):
    """What the multiscale sampler and its published scheme have in common.

    Parameters
    ----------
    problem : Problem
        Its forward map is never called from here.
    directions : int, optional
        Explorers J of each walker, by default d.
    sigma : float, optional
        Distance of the explorers in units of the preconditioner: 1e-3 by default, 3 for rough maps.
    delta : float, default 0.0
        Relaxation time scale of the explorers' directions; 0 draws new ones in every step.
    step_size : float, optional
        Step size; by default it is found from the measured stiffness.
    preconditioner : "ensemble", None or array_like of shape (d, d), default "ensemble"
        Covariance of a pilot ensemble, none, or a matrix.
    walkers : int, default 1
        Walkers M that share the batches.
    rough : bool, default False
        The forward map carries fluctuations that are to be averaged out.
    central : bool, optional
        Whether explorers come in opposite pairs; by default for rough maps.

    Raises
    ------
    ValueError
        If options contradict one another.
    """

    published: ClassVar[bool] = False
    adjust: ClassVar[bool] = False
    examines: ClassVar[bool] = False

    problem: Problem
    directions: int | None = None
    sigma: float | None = None
    delta: float = 0.0
    step_size: float | None = None
    preconditioner: Any = "ensemble"
    walkers: int = 1
    rough: bool = False
    central: bool | None = None

    def __post_init__(self) -> None:
        """Refuse contradicting options."""
        if self.rough and not has_forward_map(self.problem):
            raise ValueError(
                "rough=True averages fluctuations of a forward map, but only the log density of "
                "this model is known. Leave it out."
            )
        require_counts(1, directions=self.directions, walkers=self.walkers)
        require_positive(sigma=self.sigma, step_size=self.step_size)
        require_not_negative(delta=self.delta)
        if not self._wants_ensemble:
            Preconditioner.given(self.preconditioner, np.zeros(self.problem.dimension))

    @property
    def _wants_ensemble(self) -> bool:
        return isinstance(self.preconditioner, str) and self.preconditioner == "ensemble"

    @property
    def size(self) -> int:
        """Number of walkers M."""
        return self.walkers

    @property
    def start_size(self) -> int:
        """Number of initial positions that are drawn from the prior: those of the pilot."""
        size = max(PILOT_SIZE, FOR_EACH * max(self.problem.dimension + 2, self.walkers))
        return size + size % 2

    @property
    def evaluations_per_sweep(self) -> int:
        """Forward evaluations of one step of all walkers."""
        return self.walkers * self._walkers.explorers.cloud_size

    # -- phases -----------------------------------------------------------------------------------

    @cached_property
    def _walkers(self) -> Walkers:
        n_directions = self.directions or self.problem.dimension
        sigma = self.sigma or (ROUGH_DISTANCE if self.rough else SMOOTH_DISTANCE)
        central = self.rough if self.central is None else self.central
        explorers = Explorers(
            self.problem, int(n_directions), float(sigma), central, self.published
        )
        return Walkers(explorers, self.delta, self.adjust, averaged=not self.published)

    @cached_property
    def _probe(self) -> Probe:
        sigma = self._walkers.explorers.sigma if self.rough else PROBE_DISTANCE
        explorers = Explorers(self.problem, self.problem.dimension, sigma, central=True)
        return Probe(self.problem, explorers, self.rough)

    @cached_property
    def burn_in(self) -> PilotRun:
        """Run of the pilot."""
        walkers, positions = self._walkers.explorers, 2 * self.walkers
        return PilotRun(
            self.problem,
            self.rough,
            self.preconditioner,
            positions,
            self._probe,
            walkers,
            self.examines,
        )

    @cached_property
    def kernel(self) -> WarmUp:
        """Walkers that warm up."""
        return WarmUp(self._walkers, self._probe, self.walkers, self.step_size)

    def begin_burn_in(self, state: PhaseState) -> PilotState:
        """State of the pilot for its evaluated ensemble."""
        return self.burn_in.start(state.evaluated)

    def begin(self, state: PhaseState) -> WarmUpState:
        """State of the walkers after the pilot."""
        assert isinstance(state, MultiscaleState)
        return self.kernel.start(self.found(state), state.number)

    def origin(self, state: PhaseState) -> Origin:
        """Law of the draws."""
        law: Law = "smooth" if self.rough else "density"
        return Origin(law, self.adjust, self._walkers.explorers.cloud_size)

    # -- start ------------------------------------------------------------------------------------

    def start(
        self,
        U: Array,
        *,
        redraw: bool = False,
        skip_burn_in: bool = False,
        rounds: int | None = None,
        number: int = 0,
    ) -> MultiscaleState:
        """State for initial positions that were not evaluated yet.

        Parameters
        ----------
        U : ndarray of shape (n, d)
            Positions of the pilot ensemble. With `skip_burn_in`, or with a given preconditioner,
            there is no pilot, and the walkers start at some of these positions.
        redraw : bool, default False
            The positions come from the prior, and members of the pilot that fail are replaced.
        skip_burn_in : bool, default False
            The positions already follow the posterior, as those of an earlier run do.
        rounds : int, optional
            Largest number of rounds of evaluations before the sampling.
        number : int, default 0
            Number of the chain.
        """
        if skip_burn_in or not (self._wants_ensemble or redraw):
            pilot = replace(self.burn_in.found(U), explored=skip_burn_in)
            return MultiscaleState("burn-in", PilotState(pilot=pilot), number=number)
        least = 2 * (self.problem.dimension + 2)
        if len(U) < least:
            raise ValueError(
                f"initial_ensemble has {len(U)} members, but the pilot ensemble that starts there "
                f"needs at least {least}. Give more members, or a preconditioner, which needs no "
                "pilot."
            )
        inner = self._start.start(U, redraw)
        return MultiscaleState("start", inner, rounds=rounds, number=number)

    def found(self, state: MultiscaleState) -> Pilot:
        """Result of the pilot for all chains, as far as it is known."""
        if state.pilot is not None:
            return state.pilot
        sweeps = state.inner.sweeps if isinstance(state.inner, PilotState) else ()
        ensemble = state.evaluated
        points = np.concatenate(sweeps or (ensemble.U[ensemble.ok],))
        return replace(self.burn_in.found(points), converged=False)

    def set_out(self, pilot: Pilot, number: int = 0) -> MultiscaleState:
        """First state of chain `number` after the pilot, which has run for all chains."""
        inner = self.kernel.start(pilot, number)
        return MultiscaleState(
            "settling", inner, passed=pilot.converged, found=pilot.found, number=number
        )

    def forget(self, state: MultiscaleState) -> MultiscaleState:
        """State whose walkers have to be evaluated anew, because the posterior has changed."""
        if not isinstance(state.inner, WarmUpState):
            return state
        return replace(state, inner=replace(state.inner, measurement=None))

    def _enter(self, phase: Phase, state: PhaseState, inner: KernelState) -> PhaseState:
        found = inner.pilot.found if isinstance(inner, WarmUpState) else None
        return replace(super()._enter(phase, state, inner), found=found)

    def _failed_in_a_row(self, state: PhaseState, info: Info) -> int:
        """Count failures of the start only: walkers have a test of their own."""
        return super()._failed_in_a_row(state, info) if state.phase == "start" else 0
