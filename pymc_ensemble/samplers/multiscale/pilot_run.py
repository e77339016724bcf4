"""The run of the pilot ensemble: it finds the posterior, and probes it for the walkers."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pymc_ensemble.samplers.ensemble import Array, Ensemble, Evaluations, Info, Problem
from pymc_ensemble.samplers.kalman.sampler import EnsembleKalman, curved
from pymc_ensemble.samplers.phases import PhaseState, default_ensemble_size
from pymc_ensemble.samplers.words import number

from .explorers import Explorers, Preconditioner
from .pilot import HERDED, Pilot, herd
from .probe import Probe

PILOT_SWEEPS = 12  # the last half of them is kept
PILOT_EVOLUTIONS = 4


@dataclass(frozen=True)
class PilotState:
    """State of the pilot.

    Attributes
    ----------
    ensemble_state : PhaseState or None
        State of the pilot ensemble. None if positions were given.
    sweeps : tuple of ndarray
        Particles of the sweeps after the burn-in.
    pilot : Pilot or None
        Result of the run.
    burned_in : bool
        Whether the posterior was probed.
    """

    ensemble_state: PhaseState | None = None
    sweeps: tuple[Array, ...] = ()
    pilot: Pilot | None = None
    burned_in: bool = False

    @property
    def ensemble(self) -> Ensemble | None:
        """Particles of the pilot ensemble."""
        return None if self.ensemble_state is None else self.ensemble_state.ensemble

    @property
    def converged(self) -> bool:
        """Whether the burn-in of the pilot ensemble has passed its test."""
        return self.burned_in and self.pilot is not None and self.pilot.converged


@dataclass(frozen=True)
class PilotRun:
    """Run an ensemble to the posterior, and probe the posterior.

    Parameters
    ----------
    problem : InverseProblem
    rough : bool
        Whether to average out fluctuations of the forward map.
    matrix : "ensemble", None or array_like of shape (d, d)
        Covariance of the preconditioner.
    n_positions : int
        Positions that the walkers need.
    probe : Probe
    walkers : Explorers
        Explorers of the walkers, whose drift the fluctuations disturb.
    examines : bool, default False
        Whether the pilot ensemble examines if the forward map is rough.
    """

    problem: Problem
    rough: bool
    matrix: Any
    n_positions: int
    probe: Probe
    walkers: Explorers
    examines: bool = False

    def _sampler(self, size: int) -> EnsembleKalman:
        if self.examines:
            return EnsembleKalman(
                self.problem, size, adjust=None, rough=None, evolutions=PILOT_EVOLUTIONS
            )
        evolutions = 0 if self.rough else PILOT_EVOLUTIONS
        return EnsembleKalman(
            self.problem, size, adjust=not self.rough, rough=self.rough, evolutions=evolutions
        )

    def start(self, ensemble: Ensemble) -> PilotState:
        """State for an evaluated ensemble."""
        return PilotState(self._sampler(len(ensemble)).resume(ensemble))

    def ask(self, state: PilotState, rng: np.random.Generator) -> tuple[Array, Any]:
        """Points of the next round, shape (n, d), and what `tell` needs."""
        if state.pilot is not None:
            return self.probe.ask(state.pilot, rng)
        assert state.ensemble_state is not None
        inner = state.ensemble_state
        return self._sampler(len(inner.evaluated)).ask(inner, rng)

    def tell(
        self, state: PilotState, pending: Any, evaluations: Evaluations
    ) -> tuple[PilotState, Info]:
        """State after the round, and an account of it. The last sweeps become positions."""
        if state.pilot is not None:
            pilot = self.probe.tell(state.pilot, pending, evaluations, self.walkers)
            message = f"stiffness {number(pilot.stiffness, '.3g')}"
            return replace(state, pilot=pilot, burned_in=True), Info.of(
                evaluations, "burn-in", message
            )
        assert state.ensemble_state is not None
        inner = state.ensemble_state
        inner, info = self._sampler(len(inner.evaluated)).tell(inner, pending, evaluations)
        state = replace(state, ensemble_state=inner)
        if info.snapshot is not None:
            state = replace(state, sweeps=(*state.sweeps, info.snapshot.U))
        if len(state.sweeps) == PILOT_SWEEPS:
            points = np.concatenate(state.sweeps[PILOT_SWEEPS // 2 :])
            scales_are_known = inner.converged or curved(inner)  # by a linear fit, too
            pilot = replace(self.found(points), converged=scales_are_known, found=inner.found)
            state = replace(state, pilot=pilot)
        return state, replace(info, snapshot=None, message=f"pilot, {info.message}")

    def found(self, points: Array) -> Pilot:
        """Pilot from `points` of the posterior, shape (n, d)."""
        if isinstance(self.matrix, str):
            preconditioner = Preconditioner.of_points(points)
        else:
            preconditioner = Preconditioner.given(self.matrix, points.mean(0))
        few = points[:: -(-len(points) // HERDED)]
        chosen = herd(
            preconditioner.normalized(few),
            max(default_ensemble_size(few.shape[1]), self.n_positions),
        )
        return Pilot(few[chosen], preconditioner)
