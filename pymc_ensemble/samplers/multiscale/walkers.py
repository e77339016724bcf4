"""Langevin dynamics of walkers, with a gradient that they measure.

Explorers at a small distance from a walker show how the forward map changes along their directions.
The average over evenly spread directions is the gradient.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from pymc_ensemble.samplers import langevin_steps, proposals
from pymc_ensemble.samplers.ensemble import (
    Array,
    Ensemble,
    EnsembleFailure,
    Evaluations,
    Info,
    Snapshot,
)
from pymc_ensemble.samplers.options import PATIENCE

from .explorers import Explorers, Measurement, Preconditioner

MAX_REJECTIONS = 100  # steps in a row after which the run ends if every walker failed in each


@dataclass(frozen=True)
class WalkerState:
    """Walkers between two steps.

    Attributes
    ----------
    U : ndarray of shape (M, d)
        Positions of the walkers.
    preconditioner : Preconditioner
    step_size : float
    measurement : Measurement or None
        Measurement at the positions; None before their first evaluation.
    noise : ndarray of shape (M, d)
        Noise of the last step; the next step averages it with its own noise.
    directions : ndarray of shape (M, J, d)
        Directions of the explorers.
    rejected : int
        Steps in a row in which every walker failed.
    begun : Measurement or None
        Measurement at the start, if some walkers have failed there and are evaluated again.
    """

    U: Array
    preconditioner: Preconditioner
    step_size: float
    measurement: Measurement | None = None
    noise: Array = field(default_factory=lambda: np.empty(0))
    directions: Array = field(default_factory=lambda: np.empty(0))
    rejected: int = 0
    begun: Measurement | None = None

    @property
    def ensemble(self) -> Ensemble | None:
        """The evaluated walkers."""
        return None if self.measurement is None else self.measurement.centers


@dataclass(frozen=True)
class WalkerMove:
    """A pending round: proposed positions of the walkers, and the explorers around them."""

    points: Array
    noise: Array
    directions: Array
    uniforms: Array


@dataclass(frozen=True)
class Walkers:
    """Langevin dynamics of walkers that measure their own drift.

    Parameters
    ----------
    explorers : Explorers
    delta : float, default 0.0
        Relaxation time scale of the explorers' directions; 0 draws new ones in every step.
    adjust : bool, default False
        Metropolis-adjusted steps with frozen directions. The drift is then a fixed vector field,
        and the test corrects all its errors.
    averaged : bool, default True
        Leimkuhler-Matthews steps, whose noise is averaged over two steps, instead of
        Euler-Maruyama steps.
    """

    explorers: Explorers
    delta: float = 0.0
    adjust: bool = False
    averaged: bool = True

    def start(self, U: Array, preconditioner: Preconditioner, step_size: float) -> WalkerState:
        """State of walkers at `U`, shape (M, d), that were not evaluated yet."""
        return WalkerState(U, preconditioner, step_size)

    def ask(self, state: WalkerState, rng: np.random.Generator) -> tuple[Array, WalkerMove]:
        """Points of the next step of all walkers, and what `tell` needs to judge them."""
        M, d = state.U.shape
        root, h = state.preconditioner.root, state.step_size
        noise, proposed = rng.standard_normal((M, d)), state.U
        if state.measurement is not None:
            kick = np.sqrt(2 * h) * noise
            if self.averaged and not self.adjust:
                kick = np.sqrt(h / 2) * (state.noise + noise)  # eq. (M3)
            proposed = state.U + (h * self._drift(state.measurement, h) + kick) @ root.T
        directions = self._next_directions(state, rng)
        points = self.explorers.points(proposed, directions, root)
        return points, WalkerMove(points, noise, directions, np.array(rng.random(M)))

    def tell[S: WalkerState](
        self, state: S, pending: WalkerMove, evaluations: Evaluations
    ) -> tuple[S, Info]:
        """State after the step, and an account of it.

        The first evaluation of the walkers is no step yet.

        Raises
        ------
        EnsembleFailure
            If a walker fails every time at its start, or if all walkers fail in many steps.
        """
        old, root = state.measurement, state.preconditioner.root
        guess = None
        if self.adjust:  # the test corrects all errors of the drift, also those of a guess
            away = pending.points[:: self.explorers.cloud_size] - state.preconditioner.mean
            guess = state.preconditioner.normalized(away)
        new = self.explorers.measure(pending.points, evaluations, pending.directions, root, guess)
        if old is None:
            if state.begun is not None:
                new = state.begun.updated(new, new.centers.ok & ~state.begun.centers.ok)
            if not new.centers.ok.all():
                return self._start_again(state, new, pending, evaluations)
            alpha, moved = np.ones(len(state.U)), new.centers.ok
            noise = pending.noise if state.noise.size == 0 else state.noise
            state = replace(state, measurement=new, noise=noise, rejected=0, begun=None)
        else:
            # the test also corrects a drift without explorers; without a test, the walker stays
            usable = new.centers.ok if self.adjust else new.heard
            alpha = np.where(usable, self._acceptance(state, old, new), 0.0)
            moved = usable & (pending.uniforms < alpha) if self.adjust else usable
            merged = old.updated(new, moved)
            state = replace(
                state,
                U=merged.centers.U,
                measurement=merged,
                noise=np.where(moved[:, None], pending.noise, state.noise),
                rejected=0 if usable.any() else state.rejected + 1,
            )
            if state.rejected >= MAX_REJECTIONS:
                raise EnsembleFailure(
                    f"All walkers have failed in {state.rejected} steps in a row. Check why the "
                    "forward map fails there."
                )
        state = replace(state, directions=pending.directions)
        log_q = state.preconditioner.log_density(state.U)
        lp = -state.measurement.centers.potential  # type: ignore[union-attr]
        snapshot = None
        if old is not None:
            snapshot = Snapshot(state.U, lp, log_q, alpha, state.step_size)
        message = f"acceptance {alpha.mean():.2f}"
        complete = snapshot is not None
        return state, Info.of(
            evaluations, "sampling", message, complete=complete, snapshot=snapshot
        )

    def _start_again[S: WalkerState](
        self, state: S, known: Measurement, pending: WalkerMove, evaluations: Evaluations
    ) -> tuple[S, Info]:
        """State if walkers have failed at their start: evaluations may fail by chance."""
        tries, failed = state.rejected + 1, int((~known.centers.ok).sum())
        if tries == PATIENCE:
            raise EnsembleFailure(
                f"{failed} of {len(state.U)} walkers found no start where the forward map works, "
                f"in {tries} tries. Give an `initial_ensemble` where it works."
            )
        state = replace(state, begun=known, rejected=tries, directions=pending.directions)
        return state, Info.of(
            evaluations, "sampling", f"{failed} failed starts are tried again", complete=False
        )

    def _next_directions(self, state: WalkerState, rng: np.random.Generator) -> Array:
        """Directions of the next step: frozen, fresh, or an exact Ornstein-Uhlenbeck update."""
        if self.adjust and state.directions.size:
            return state.directions
        fresh = self.explorers.directions(len(state.U), rng)
        if self.delta == 0 or not state.directions.size:
            return fresh
        kept = np.exp(-state.step_size / self.delta**2)  # eq. (P4)
        return kept * state.directions + np.sqrt(1 - kept**2) * fresh

    def _drift(self, measurement: Measurement, step_size: float) -> Array:
        if not self.averaged:
            return measurement.drift
        return langevin_steps.clipped(measurement.drift, step_size)

    def _acceptance(self, state: WalkerState, old: Measurement, new: Measurement) -> Array:
        """Acceptance probability of a Langevin step, the would-be one if there is no test."""
        h = state.step_size
        step = state.preconditioner.normalized(new.centers.U - old.centers.U)
        forth, back = step - h * self._drift(old, h), -step - h * self._drift(new, h)
        log_ratio = langevin_steps.log_ratio(forth, back, h)
        return proposals.acceptance(old.centers.potential, new.centers.potential, log_ratio)
