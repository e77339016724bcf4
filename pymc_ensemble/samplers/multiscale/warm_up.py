"""Warm-up of walkers: they start from the result of a pilot, and tune their step size."""

from dataclasses import dataclass, field, replace

import numpy as np

from pymc_ensemble.samplers.ensemble import Array, Evaluations, Info
from pymc_ensemble.samplers.kernels import NothingToFreeze
from pymc_ensemble.samplers.langevin_steps import ACCEPTANCE, EULER_STEP
from pymc_ensemble.samplers.rest import FORGOTTEN
from pymc_ensemble.samplers.words import number

from .pilot import Pilot
from .probe import Probe, ProbeRound
from .walkers import WalkerMove, Walkers, WalkerState

LARGEST_STEP = 0.8
LARGEST_STIFF_STEP = 1.4  # step size times stiffness; 2 would be unstable
EXTRA_VARIANCE = 0.2  # share of the variance that noise in the drift of a rough map may add
ADAPTATION = 100  # Metropolis-adjusted steps that tune the step size


@dataclass(frozen=True)
class WarmUpState(WalkerState):
    """State of the walkers.

    Attributes
    ----------
    pilot : Pilot
        Result of the pilot.
    remaining, steps : int
        Steps of the warm-up that remain, and that are done.
    probing : bool
        Whether the next round measures the stiffness at the present positions.
    burned_in : bool
        Whether all tuning is over.
    """

    pilot: Pilot = field(kw_only=True)
    remaining: int = 0
    steps: int = 0
    probing: bool = False
    burned_in: bool = False

    @property
    def converged(self) -> bool:
        """Whether the walkers have warmed up."""
        return self.burned_in


@dataclass(frozen=True)
class WarmUp(NothingToFreeze[WarmUpState]):
    """Walkers that choose their step size.

    Parameters
    ----------
    walkers : Walkers
    probe : Probe
    n_walkers : int
    step_size : float, optional
        By default it is found from the measured stiffness, and tuned for adjusted steps.
    """

    walkers: Walkers
    probe: Probe
    n_walkers: int
    step_size: float | None = None

    def start(self, pilot: Pilot, number: int = 0) -> WarmUpState:
        """State of chain `number`: chains start at different positions of one pilot."""
        numbers = number * self.n_walkers + np.arange(self.n_walkers)
        step = self._step(pilot)
        remaining = ADAPTATION if self._adapts else int(np.ceil(FORGOTTEN / LARGEST_STEP))
        if not pilot.explored:
            remaining = max(remaining, int(np.ceil(2 / step)))  # relaxation times
        return WarmUpState(
            pilot.positions[numbers % len(pilot.positions)],
            pilot.preconditioner,
            step,
            pilot=pilot,
            remaining=remaining,
        )

    def ask(
        self, state: WarmUpState, rng: np.random.Generator
    ) -> tuple[Array, ProbeRound | WalkerMove]:
        """Points of the next round, shape (n, d), and what `tell` needs to judge them."""
        if state.probing:
            return self.probe.ask(state.pilot, rng)
        return self.walkers.ask(state, rng)

    def tell(
        self, state: WarmUpState, pending: ProbeRound | WalkerMove, evaluations: Evaluations
    ) -> tuple[WarmUpState, Info]:
        """State after the round, and an account of it."""
        if isinstance(pending, ProbeRound):
            pilot = self.probe.tell(state.pilot, pending, evaluations, self.walkers.explorers)
            step = self._step(pilot)
            state = replace(state, pilot=pilot, step_size=step, probing=False, burned_in=True)
            message = f"stiffness {number(pilot.stiffness, '.3g')}, step size {number(step, '.3g')}"
            return state, Info.of(evaluations, "burn-in", message)
        state, info = self.walkers.tell(state, pending, evaluations)
        if state.burned_in:
            return state, info
        if info.snapshot is not None:
            # evaluations that fail by chance fail as often after shorter steps
            tried = ~evaluations.failed[:: self.walkers.explorers.cloud_size]
            acceptance = info.snapshot.acceptance[tried]
            state = self._after_step(state, acceptance.mean() if tried.any() else ACCEPTANCE)
        return state, replace(info, message=f"warm-up, {info.message}")

    def freeze(self, state: WarmUpState) -> WarmUpState:
        """End the tuning."""
        return replace(state, probing=False, burned_in=True)

    @property
    def _adapts(self) -> bool:
        """Whether the step size is tuned to the acceptance."""
        return self.walkers.adjust and self.step_size is None

    def _step(self, pilot: Pilot) -> float:
        """Step size from the measurements of the pilot."""
        walkers = self.walkers
        d, J = len(pilot.preconditioner.mean), walkers.explorers.n_directions
        step = EULER_STEP  # where tuning ended before the stiffness was measured
        if np.isfinite(pilot.stiffness):
            step = min(LARGEST_STEP, LARGEST_STIFF_STEP / max(pilot.stiffness, 1e-12))
        if pilot.noise > 0:
            step = min(step, 2 * EXTRA_VARIANCE / pilot.noise)  # eq. (M7)
        if d > J or not walkers.averaged:
            step = min(step, EULER_STEP * J / (d + 1))
        if not walkers.averaged:  # unclipped steps explode where the posterior is stiffest
            step = min(step, 0.3 / max(pilot.stiffness, 1e-12))
        if walkers.adjust:
            step = step * d ** (-1 / 3)
        return self.step_size or step

    def _after_step(self, state: WarmUpState, acceptance: float) -> WarmUpState:
        """State after a step of the warm-up, which tunes the size of adjusted steps."""
        state = replace(state, steps=state.steps + 1, remaining=state.remaining - 1)
        if self._adapts:
            factor = np.exp((acceptance - ACCEPTANCE) / np.sqrt(state.steps))
            state = replace(state, step_size=min(state.step_size * factor, 2.0))
        if state.remaining > 0:
            return state
        if state.pilot.explored or self._adapts or self.step_size is not None:
            return replace(state, burned_in=True)
        pilot = replace(state.pilot, positions=state.U, explored=True)
        return replace(state, pilot=pilot, probing=True)
