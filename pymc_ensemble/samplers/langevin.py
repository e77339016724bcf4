"""Ensemble Langevin sampler: what ensembles can do when there are gradients.

Particles follow ``du = -C grad V dt + div C dt + sqrt(2 C) dW`` with the covariance C of the
ensemble. It is the baseline for the samplers that do without gradients: exact for smooth models,
and caught in every fluctuation of rough ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np

from . import proposals
from .ensemble import Array, Ensemble, EnsembleFailure, Evaluations, Info, Snapshot
from .linearization import Anomalies, LinearMap, moment_law
from .options import require_counts, require_positive
from .settling import UNSETTLED, Settling
from .start import Start

LARGEST_STEP = 0.1
STABLE_MOVE = 0.1  # largest drift of an Euler step, in ensemble sd
FIRST_STEP = 0.1
TARGET_ACCEPTANCE = 0.57
ADAPTATION = 0.3  # change of the log step per unit of excess acceptance


class DifferentiableProblem(Protocol):
    """What the sampler asks of a problem: the outputs of an evaluation are loss and gradient."""

    @property
    def dimension(self) -> int:
        """Number d of parameters."""

    def sample_prior(self, size: int, rng: np.random.Generator) -> Array:
        """Draw particles, shape (size, d)."""

    def loss(self, Z: Array) -> Array:
        """First column of the outputs (J, 1 + d); the others are the gradient of the loss."""

    def prior_potential(self, U: Array) -> Array:
        """Negative log prior density, shape (J,)."""

    def prior_gradient(self, U: Array) -> Array:
        """Gradient of the prior potential, shape (J, d)."""


@dataclass(frozen=True)
class LangevinState:
    """State of the ensemble Langevin sampler.

    Attributes
    ----------
    phase : {"start", "burn-in", "sampling"}
    inner : StartState or None
        State of the first evaluation.
    particles : Ensemble or None
        Evaluated particles; their outputs are loss and gradient.
    step : float
        Time step, adapted to the acceptance in the burn-in of the adjusted sampler.
    order : ndarray of shape (J,)
        Random order of the particles: its halves move one after the other if adjusted.
    half : {0, 1}
    alpha : ndarray of shape (J,)
        Acceptance probabilities of the last moves.
    settling : Settling
    converged : bool
    skip_burn_in : bool
    """

    phase: Literal["start", "burn-in", "sampling"]
    inner: Any
    particles: Ensemble | None = None
    step: float = FIRST_STEP
    order: Array | None = None
    half: int = 0
    alpha: Array | None = None
    settling: Settling = UNSETTLED
    converged: bool = False
    skip_burn_in: bool = False

    @property
    def ensemble(self) -> Ensemble | None:
        """Particles, or None before the first evaluation."""
        return self.particles if self.particles is not None else self.inner.ensemble

    @property
    def burned_in(self) -> bool:
        """Whether the burn-in is over."""
        return self.phase == "sampling"


@dataclass(frozen=True)
class LangevinMove:
    """A pending round: which particles move where, and what decides on them."""

    index: Array
    points: Array
    move: Array
    anomalies: Anomalies
    step: float
    order: Array
    uniforms: Array
    origin: LangevinState


@dataclass(frozen=True)
class EnsembleLangevin:
    """Ensemble Langevin sampler.

    Parameters
    ----------
    problem : DifferentiableProblem
    ensemble_size : int, optional
        Number of particles J; by default ``max(100, 4 (d + 2))``.
    adjust : bool, default False
        Metropolis-adjusted steps of split halves, each in the covariance of the other; else Euler
        steps of the whole ensemble, with the correction for its finite size.
    dt : float, optional
        Largest time step of the Euler scheme, by default 0.1; less where the forces are strong.

    Raises
    ------
    ValueError
        If the ensemble is too small, or an option has a value that the sampler does not know.
    """

    problem: DifferentiableProblem
    ensemble_size: int | None = None
    adjust: bool = False
    dt: float | None = None

    def __post_init__(self) -> None:
        """Refuse contradicting options."""
        require_positive(dt=self.dt)
        if self.dt is not None and self.adjust:
            raise ValueError("dt has no meaning with adjust=True, which tunes it; leave it out.")
        require_counts(2, ensemble_size=self.size)
        d = self.problem.dimension
        if self.size < (least := 2 * (d + 2) if self.adjust else d + 2):
            raise ValueError(
                f"ensemble_size={self.size} is too small for {d} parameters. Use at least {least}."
            )

    @property
    def size(self) -> int:
        """Number of particles J."""
        if self.ensemble_size is None:
            return max(100, 4 * (self.problem.dimension + 2))
        return self.ensemble_size

    @cached_property
    def _start(self) -> Start:
        return Start(self.problem, self.problem.dimension + 2)  # type: ignore[arg-type]

    # -- ask and tell ---------------------------------------------------------------------------

    def start(self, U: Array, *, redraw: bool = False, skip_burn_in: bool = False) -> LangevinState:
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
        return LangevinState("start", self._start.start(U, redraw), skip_burn_in=skip_burn_in)

    def ask(self, state: LangevinState, rng: np.random.Generator) -> tuple[Array, Any]:
        """Choose the points of the next round, and what `tell` needs to judge them."""
        if state.phase == "start":
            return self._start.ask(state.inner, rng)
        ensemble = state.particles
        assert ensemble is not None
        ensemble.require(self.problem.dimension + 2)
        J, d = ensemble.U.shape
        good = np.flatnonzero(ensemble.ok)
        order = good
        if self.adjust:
            order = rng.permutation(J) if state.half == 0 or state.order is None else state.order
            first, second = order[: J // 2], order[J // 2 :]
            index, others = (first, second) if state.half == 0 else (second, first)
            index, others = index[ensemble.ok[index]], others[ensemble.ok[others]]
        else:
            index = others = good
        anomalies = Anomalies.of(ensemble.U[others])
        force = self._force(ensemble[index], anomalies)
        step = state.step
        if not self.adjust:
            strongest = np.sqrt((force**2).sum(1)).max()
            largest = LARGEST_STEP if self.dt is None else self.dt
            step = min(largest, STABLE_MOVE / max(strongest, 1e-300))
            x = (ensemble.U[index] - anomalies.mean) @ anomalies.L_pinv.T
            force = force + (d + 1) / len(index) * x
        noise = rng.standard_normal(force.shape) @ anomalies.frame
        move = step * force + np.sqrt(2 * step) * noise
        points = ensemble.U[index] + move @ anomalies.L.T
        return points, LangevinMove(
            index, points, move, anomalies, step, order, rng.random(len(index)), state
        )

    def tell(
        self, state: LangevinState, pending: Any, evaluations: Evaluations
    ) -> tuple[LangevinState, Info]:
        """Learn from the evaluations of a round; see `EnsembleKalman.tell`."""
        if state.phase == "start":
            inner, info = self._start.tell(state.inner, pending, evaluations)
            state = replace(state, inner=inner)
            if inner.complete:
                state = self._begin(state)
            return state, info
        state = pending.origin
        ensemble = state.particles
        assert ensemble is not None
        if evaluations.failed.all():
            raise EnsembleFailure("All forward evaluations of a round have failed.")
        values = Ensemble.evaluated(self.problem, pending.points, evaluations)  # type: ignore[arg-type]
        old = ensemble[pending.index]
        alpha = self._acceptance(old, values, pending)
        accepted = pending.uniforms < alpha if self.adjust else values.ok
        ensemble = ensemble.updated(pending.index, values, accepted)
        all_alpha = np.full(len(ensemble), np.nan) if state.alpha is None else state.alpha.copy()
        all_alpha[pending.index] = alpha
        complete = not self.adjust or state.half == 1
        step = state.step
        if self.adjust and state.phase == "burn-in":
            step *= float(np.exp(ADAPTATION * (alpha.mean() - TARGET_ACCEPTANCE)))
        anomalies = Anomalies.of(ensemble.U[ensemble.ok])
        time = pending.step * (0.5 * float(alpha.mean()) if self.adjust else 1.0)
        state = replace(
            state,
            particles=ensemble,
            step=step,
            order=pending.order,
            half=0 if complete else 1,
            alpha=all_alpha,
            settling=state.settling.after(anomalies, time),
        )
        snapshot = None
        if complete and state.phase == "sampling":
            law = moment_law(LinearMap.fit(anomalies, np.zeros((int(ensemble.ok.sum()), 1))))
            snapshot = Snapshot(
                ensemble.U,
                -ensemble.potential,
                law.log_density(ensemble.U),
                all_alpha,
                pending.step,
            )
        phase = state.phase
        if complete and state.phase == "burn-in" and state.settling.done:
            state = self.freeze(replace(state, converged=True))
        n, n_failed = len(values), int(evaluations.failed.sum())
        message = f"step size {pending.step:.3g}"
        return state, Info(phase, complete, snapshot, n, n_failed, message)

    def freeze(self, state: LangevinState) -> LangevinState:
        """End the tuning: go on to the sampling phase with the ensemble as it is."""
        if state.phase == "start":
            state = self._begin(state)
        return replace(state, phase="sampling", half=0)

    def finish(
        self, state: LangevinState, snapshots: Sequence[Snapshot], rng: np.random.Generator
    ) -> Sequence[Snapshot]:
        """Snapshots of a block as they are to be handed out."""
        return snapshots

    # -- parts ----------------------------------------------------------------------------------

    def _begin(self, state: LangevinState) -> LangevinState:
        """Go on from the first evaluation."""
        ensemble = state.inner.ensemble
        d = self.problem.dimension
        rank = Anomalies.of(ensemble.U[ensemble.ok]).rank
        if rank < d:
            raise EnsembleFailure(
                f"The initial ensemble spans {rank} of {d} dimensions, and the particles would "
                "never leave them. Spread it out in all of them, for example by adding noise."
            )
        state = replace(state, phase="burn-in", particles=ensemble)
        if state.skip_burn_in:
            return self.freeze(replace(state, converged=True))
        return state

    def _force(self, ensemble: Ensemble, anomalies: Anomalies) -> Array:
        """Minus the gradient of the potential, in normalized coordinates, shape (n, r)."""
        gradient = ensemble.Z[:, 1:] + self.problem.prior_gradient(ensemble.U)
        force = -gradient @ anomalies.L
        if not self.adjust:
            return force
        # a particle in a steep tail would never be accepted again
        longest = 2 * (np.sqrt(force.shape[1]) + 3)
        size = np.sqrt((force**2).sum(1, keepdims=True))
        return force * np.minimum(1.0, longest / np.maximum(size, longest))

    def _acceptance(self, old: Ensemble, values: Ensemble, pending: LangevinMove) -> Array:
        """Probability that a Metropolis test accepts the moves, or would accept them."""
        step, move = pending.step, pending.move
        ok = values.ok
        back = np.full_like(move, np.nan)
        back[ok] = -move[ok] - step * self._force(values[ok], pending.anomalies)
        forth = move - step * self._force(old, pending.anomalies)
        with np.errstate(invalid="ignore", over="ignore"):
            log_ratio = ((forth**2).sum(1) - (back**2).sum(1)) / (4 * step)
            log_ratio = np.where(ok, log_ratio, 0.0)
        return proposals.acceptance(old.potential, values.potential, log_ratio)
