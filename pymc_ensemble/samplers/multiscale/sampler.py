"""Multiscale derivative-free sampler: walkers, each with the cloud of explorers that guides it.

As step size and distance of the explorers shrink, the law of a walker tends to the exact posterior.
A pilot ensemble tells where the walkers start and how large their steps may be. This module chains
the parts: pilot, probe of the stiffness, warm-up, sampling.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from pymc_ensemble.samplers.ensemble import (
    Array,
    Ensemble,
    Evaluations,
    Info,
    Law,
    Origin,
    Problem,
    Snapshot,
    has_forward_map,
)
from pymc_ensemble.samplers.kalman.sampler import EnsembleKalman, curved
from pymc_ensemble.samplers.options import require_counts, require_positive

from .explorers import Explorers, Preconditioner
from .pilot import HERDED, POSITIONS, Pilot, Probe, _quantile, herd
from .walkers import Walkers, WalkerState

SMOOTH_DISTANCE = 1e-3  # of the explorers, in units of the preconditioner
ROUGH_DISTANCE = 3.0
FULL_FRAME = 30  # largest dimension in which every direction is explored by default
FEW_DIRECTIONS = 20  # beyond it
PILOT_SIZE = 60
LARGE_PILOT_SIZE = 100  # from 20 dimensions on
PILOT_SWEEPS = 12  # the last half of them is kept
PILOT_EVOLUTIONS = 4
PROBES = 10  # positions at which the stiffness is measured
PROBE_DISTANCE = 1e-2  # of the central differences that measure it
LARGEST_STEP = 0.8
LARGEST_STIFF_STEP = 1.4  # times the stiffness; 2 would be unstable
EXTRA_VARIANCE = 0.2  # that the noise of the drift of a rough map may add
UNKNOWN_STEP = 0.05  # where tuning ended before the stiffness was measured
LONGEST_WARM_UP = 200
WARM_UP = 10  # steps in which walkers forget where the pilot has left them
ACCEPTANCE = 0.57  # of adjusted steps, to which their size is tuned
ADAPTATION = 100  # steps of that tuning


@dataclass(frozen=True)
class MultiscaleState:
    """State of the multiscale sampler.

    Attributes
    ----------
    phase : {"pilot", "probe", "warm-up", "sampling"}
    number : int
        Number of the chain: chains start at different positions of one pilot.
    pilot_size : int
        Particles of the pilot ensemble, while that is at work.
    inner : object
        State of the pilot ensemble, or of the walkers.
    sweeps : tuple of ndarray
        Particles of the pilot's sweeps after its burn-in.
    pilot : Pilot or None
        What the pilot has found out.
    remaining, steps : int
        Steps of the warm-up to go, and done.
    """

    phase: Literal["pilot", "probe", "warm-up", "sampling"]
    number: int = 0
    pilot_size: int = 0
    inner: Any = None
    sweeps: tuple[Array, ...] = ()
    pilot: Pilot | None = None
    remaining: int = 0
    steps: int = 0

    @property
    def ensemble(self) -> Ensemble | None:
        """Evaluated particles of the pilot, or walkers; None before their first evaluation."""
        return None if self.inner is None else self.inner.ensemble

    @property
    def burned_in(self) -> bool:
        """Whether all tuning is over."""
        return self.phase == "sampling"

    @property
    def shared(self) -> bool:
        """Whether what is going on serves all chains alike."""
        return self.phase in ("pilot", "probe") and not isinstance(self.inner, WalkerState)

    @property
    def converged(self) -> bool:
        """Whether the pilot has passed its test, and the walkers have warmed up."""
        return self.burned_in and self.pilot is not None and self.pilot.converged


@dataclass(frozen=True)
class Multiscale:
    """Multiscale derivative-free sampler with its pilot and the choice of its step size.

    Parameters
    ----------
    problem : Problem
        Its forward map is never called from here.
    directions : int, optional
        Explorers J of each walker: d by default, 20 beyond 30 dimensions.
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
    adjust : bool, default False
        Metropolis-adjusted steps: exact for deterministic forward maps.
    rough : bool, default False
        The forward map carries fluctuations that are to be averaged out.
    central : bool, optional
        Whether explorers come in opposite pairs; by default for rough maps.
    scheme : {"averaged", "paper"}, default "averaged"
        Leimkuhler-Matthews steps with orthogonal directions, or the published scheme.

    Raises
    ------
    ValueError
        If options contradict one another.

    Examples
    --------
    >>> import numpy as np
    >>> import pymc_ensemble as pe
    >>> from pymc_ensemble.samplers.multiscale.sampler import Multiscale
    >>> problem = pe.InverseProblem(
    ...     lambda u: u**2, prior=(np.zeros(1), np.eye(1)), data=np.ones(1), noise=0.5
    ... )
    >>> sampler, rng = Multiscale(problem, walkers=10), np.random.default_rng(1)
    >>> state = sampler.start(problem.sample_prior(sampler.start_size, rng), redraw=True)
    >>> while not state.burned_in:
    ...     points, pending = sampler.ask(state, rng)
    ...     state, info = sampler.tell(state, pending, problem.evaluate(points))
    >>> state.converged
    True
    """

    problem: Problem
    directions: int | None = None
    sigma: float | None = None
    delta: float = 0.0
    step_size: float | None = None
    preconditioner: Any = "ensemble"
    walkers: int = 1
    adjust: bool = False
    rough: bool = False
    central: bool | None = None
    scheme: Literal["averaged", "paper"] = "averaged"

    def __post_init__(self) -> None:
        """Refuse contradicting options."""
        if self.scheme not in ("averaged", "paper"):
            raise ValueError(f'scheme must be "averaged" or "paper", not {self.scheme!r}.')
        if self.adjust and self.rough:
            raise ValueError(
                "adjust=True and rough=True exclude each other: a Metropolis test targets the "
                "rough posterior and locks in on lucky evaluations. Use rough=True alone for the "
                "smooth posterior, or adjust=True alone for a deterministic forward map."
            )
        if self.rough and not has_forward_map(self.problem):
            raise ValueError(
                "rough=True needs a forward map, whose fluctuations are averaged, but only the "
                "log density of this model is known."
            )
        if self.adjust and self.scheme == "paper":
            raise ValueError(
                'scheme="paper" is the published algorithm; adjust=True needs scheme="averaged", '
                "the default."
            )
        if self.adjust and self.delta > 0:
            raise ValueError("adjust=True keeps the directions; delta has no meaning with it.")
        require_counts(1, directions=self.directions, walkers=self.walkers)
        require_positive(sigma=self.sigma, step_size=self.step_size)
        delta: Any = self.delta
        if not isinstance(delta, int | float | np.number) or not 0 <= delta < np.inf:
            raise ValueError(f"delta must be a number and not negative, not {delta!r}.")
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
        d = self.problem.dimension
        size = max(PILOT_SIZE if d < 20 else LARGE_PILOT_SIZE, 2 * (d + 2), 4 * self.walkers)
        return size + size % 2

    @property
    def evaluations_per_sweep(self) -> int:
        """Forward evaluations of one step of all walkers."""
        return self.walkers * self._walkers.explorers.cloud_size

    # -- the parts at work ----------------------------------------------------------------------

    def _pilot(self, size: int) -> EnsembleKalman:
        evolutions = 0 if self.rough else PILOT_EVOLUTIONS
        return EnsembleKalman(
            self.problem, size, adjust=not self.rough, rough=self.rough, evolutions=evolutions
        )

    @cached_property
    def _walkers(self) -> Walkers:
        d, published = self.problem.dimension, self.scheme == "paper"
        n_directions = self.directions or (d if d <= FULL_FRAME else FEW_DIRECTIONS)
        sigma = self.sigma or (ROUGH_DISTANCE if self.rough else SMOOTH_DISTANCE)
        central = self.rough if self.central is None else self.central
        explorers = Explorers(self.problem, int(n_directions), float(sigma), central, published)
        return Walkers(explorers, self.delta, self.adjust, averaged=not published)

    @cached_property
    def _probe(self) -> Explorers:
        sigma = self._walkers.explorers.sigma if self.rough else PROBE_DISTANCE
        return Explorers(self.problem, min(self.problem.dimension, FULL_FRAME), sigma, central=True)

    # -- ask and tell ---------------------------------------------------------------------------

    def start(
        self, U: Array, *, redraw: bool = False, skip_burn_in: bool = False, number: int = 0
    ) -> MultiscaleState:
        """State for initial positions that were not evaluated yet.

        Parameters
        ----------
        U : ndarray of shape (n, d)
            Positions of the pilot ensemble. With `skip_burn_in`, or with a preconditioner of the
            user's, there is no pilot, and the walkers start at some of them.
        redraw : bool, default False
            The positions come from the prior: draw members of the pilot that fail anew.
        skip_burn_in : bool, default False
            The positions already follow the posterior, as those of an earlier run do.
        number : int, default 0
            Number of the chain.
        """
        if skip_burn_in or not (self._wants_ensemble or redraw):
            pilot = replace(self._found(U), explored=skip_burn_in)
            return MultiscaleState("probe", number, pilot=pilot)
        least = 2 * (self.problem.dimension + 2)
        if len(U) < least:
            raise ValueError(
                f"initial_ensemble has {len(U)} members, but the pilot ensemble that starts there "
                f"needs at least {least}. Give more of them, or a preconditioner of your own, with "
                "which there is no pilot."
            )
        inner = self._pilot(len(U)).start(U, redraw=redraw)
        return MultiscaleState("pilot", number, len(U), inner)

    def found(self, state: MultiscaleState) -> Pilot:
        """What serves all chains, as far as it is known while the pilot is at work, or after it."""
        if state.pilot is not None:
            return state.pilot
        ensemble = state.inner.ensemble
        sweeps = state.sweeps or (ensemble.U[ensemble.ok],)
        return replace(self._found(np.concatenate(sweeps)), converged=False)

    def set_out(self, pilot: Pilot, number: int = 0) -> MultiscaleState:
        """State of chain `number` after the pilot, which has run for all chains."""
        return self._begin(MultiscaleState("probe", number, pilot=pilot))

    def ask(self, state: MultiscaleState, rng: np.random.Generator) -> tuple[Array, Any]:
        """Points of the next round, shape (n, d), and what `tell` needs to judge them."""
        if state.phase == "pilot":
            return self._pilot(state.pilot_size).ask(state.inner, rng)
        if state.phase == "probe":
            return self._ask_probe(state, rng)
        return self._walkers.ask(state.inner, rng)

    def tell(
        self, state: MultiscaleState, pending: Any, evaluations: Evaluations
    ) -> tuple[MultiscaleState, Info]:
        """State after the round, and an account of it.

        Raises
        ------
        EnsembleFailure
            If too few members of the pilot, or no walkers, could be evaluated.
        """
        if state.phase == "pilot":
            return self._tell_pilot(state, pending, evaluations)
        if state.phase == "probe":
            return self._tell_probe(state, pending, evaluations)
        inner, info = self._walkers.tell(state.inner, pending, evaluations)
        state = replace(state, inner=inner)
        if state.phase == "warm-up":
            state = self._warm_up(state, info) if info.complete else state
            info = replace(info, phase="burn-in", snapshot=None, message=f"warm-up, {info.message}")
        return state, info

    def forget(self, state: MultiscaleState) -> MultiscaleState:
        """State whose walkers have to be evaluated anew, because the posterior has changed."""
        if not isinstance(state.inner, WalkerState):
            return state
        return replace(state, inner=replace(state.inner, measurement=None))

    def freeze(self, state: MultiscaleState) -> MultiscaleState:
        """End the tuning: go on to the sampling phase with what is known."""
        if state.phase == "sampling":
            return state
        if state.shared:
            state = self.set_out(self.found(state), state.number)
        elif state.phase == "probe":
            state = self._begin(state)
        return replace(state, phase="sampling")

    def finish(
        self, state: MultiscaleState, snapshots: Sequence[Snapshot], rng: np.random.Generator
    ) -> Sequence[Snapshot]:
        """Snapshots of a block as they are to be handed out."""
        return snapshots

    def origin(self, state: MultiscaleState) -> Origin:
        """What the draws follow."""
        law: Law = "smooth" if self.rough else "density"
        return Origin(law, self.adjust, self._walkers.explorers.cloud_size)

    # -- phases ---------------------------------------------------------------------------------

    def _tell_pilot(
        self, state: MultiscaleState, pending: Any, evaluations: Evaluations
    ) -> tuple[MultiscaleState, Info]:
        """Go on with the pilot; at its end keep the particles of its last sweeps."""
        inner, info = self._pilot(state.pilot_size).tell(state.inner, pending, evaluations)
        state = replace(state, inner=inner)
        if info.snapshot is not None:
            state = replace(state, sweeps=(*state.sweeps, info.snapshot.U))
            if len(state.sweeps) == PILOT_SWEEPS:
                points = np.concatenate(state.sweeps[PILOT_SWEEPS // 2 :])
                scales_are_known = inner.converged or curved(inner)  # by a linear fit, too
                pilot = replace(self._found(points), converged=scales_are_known)
                state = replace(state, phase="probe", pilot=pilot)
        phase = "start" if info.phase == "start" else "burn-in"
        return state, replace(info, phase=phase, snapshot=None, message=f"pilot, {info.message}")

    def _found(self, points: Array) -> Pilot:
        """What `points` of the posterior tell, shape (n, d)."""
        if self._wants_ensemble:
            preconditioner = Preconditioner.of_points(points)
        else:
            preconditioner = Preconditioner.given(self.preconditioner, points.mean(0))
        few = points[:: -(-len(points) // HERDED)]
        chosen = herd(preconditioner.normalized(few), max(POSITIONS, 2 * self.walkers))
        return Pilot(few[chosen], preconditioner)

    def _ask_probe(self, state: MultiscaleState, rng: np.random.Generator) -> tuple[Array, Probe]:
        """Clouds of a full frame around the first few positions."""
        pilot: Any = state.pilot
        positions = pilot.positions[:PROBES]
        directions = self._probe.directions(len(positions), rng)
        points = self._probe.points(positions, directions, pilot.preconditioner.root)
        return points, Probe(points, directions)

    def _tell_probe(
        self, state: MultiscaleState, pending: Probe, evaluations: Evaluations
    ) -> tuple[MultiscaleState, Info]:
        """Measure the stiffness; start the walkers."""
        pilot: Any = state.pilot
        values = Ensemble.evaluated(self.problem, pending.points, evaluations)
        size = self._probe.cloud_size
        clouds = [values[k : k + size] for k in range(0, len(values), size)]
        axes = pending.directions @ pilot.preconditioner.root.T
        stiffness = [self._stiffness(*part) for part in zip(clouds, axes, strict=True)]
        pilot = replace(pilot, stiffness=_quantile(stiffness, 0.9))
        if self.rough:
            pilot = replace(pilot, noise=_quantile([self._noise(cloud) for cloud in clouds], 0.5))
        state = self._begin(replace(state, pilot=pilot))
        message = f"stiffness {pilot.stiffness:.3g}, step size {state.inner.step_size:.3g}"
        n_failed = int(evaluations.failed.sum())
        return state, Info("burn-in", True, None, len(values), n_failed, message)

    def _stiffness(self, cloud: Ensemble, axes: Array) -> float:
        """Largest eigenvalue of the preconditioned Hessian at the center of a cloud.

        Seen within the span of its explorers, which are displaced along the `axes`. Of a density
        the diagonal alone is seen. Over random directions it has the mean tr(H) / d and a variance
        that tells the Frobenius norm; an upper bound follows, which is sharp where all eigenvalues
        but one are the same.
        """
        d, J = self.problem.dimension, len(axes)
        if not cloud.ok[0]:
            return np.nan
        slopes = self._probe.differences(cloud.Z)[0]
        bend = cloud.loss[1 : 1 + J] + cloud.loss[1 + J :] - 2 * cloud.loss[0]
        heard = np.isfinite(slopes).all(1) & np.isfinite(bend)
        if not heard.any():
            return np.nan
        axes, slopes = axes[heard], slopes[heard]
        H = axes @ self.problem.prior_hessian(cloud.U[0]) @ axes.T
        if has_forward_map(self.problem):
            H = H + (slopes * self.problem.curvature(cloud.Z[:1])[0]) @ slopes.T
            largest = np.linalg.eigvalsh(H)[-1] / d
        else:
            diagonal = (np.diag(H) + bend[heard] / self._probe.sigma**2) / d
            largest = diagonal.mean() + np.sqrt((d - 1) * (d + 2) / 2 * diagonal.var())
        return float(max(largest, 0.0))

    def _noise(self, cloud: Ensemble) -> float:
        """Variance of the drift by the fluctuations of a rough map, for each parameter.

        Where the map is smooth, second differences vanish. What they say of the fluctuations enters
        the drift in two places: through the outputs at the center, and through the differences.
        """
        d, J = self.problem.dimension, self._probe.n_directions
        slopes = self._probe.differences(cloud.Z)[0]
        bend = cloud.Z[1 : 1 + J] + cloud.Z[1 + J :] - 2 * cloud.Z[0]
        heard = np.isfinite(bend).all(1)
        if not heard.any():
            return np.nan
        fluctuation = (bend[heard] ** 2).mean(0) / 6
        curvature = self.problem.curvature(cloud.Z[:1])[0]
        gradient = self.problem.loss_gradient(cloud.Z[:1])[0]
        explorers = self._walkers.explorers
        at_center = curvature**2 * (slopes[heard] ** 2).mean(0)
        differences = d / (2 * explorers.n_directions * explorers.sigma**2) * gradient**2
        return float(fluctuation @ (at_center + differences) / d)

    @property
    def _adapts(self) -> bool:
        """Whether the step size is tuned to the acceptance."""
        return self.adjust and self.step_size is None

    def _begin(self, state: MultiscaleState) -> MultiscaleState:
        """Choose the step size, and put the walkers where they start."""
        pilot: Any = state.pilot
        d, J = self.problem.dimension, self._walkers.explorers.n_directions
        step = UNKNOWN_STEP
        if np.isfinite(pilot.stiffness):
            step = min(LARGEST_STEP, LARGEST_STIFF_STEP / max(pilot.stiffness, 1e-12))
        if pilot.noise > 0:
            step = min(step, 2 * EXTRA_VARIANCE / pilot.noise)
        if d > J or self.scheme == "paper":
            step = min(step, 0.1 * J / (d + 1))
        if self.scheme == "paper":  # unclipped steps explode where the posterior is stiffest
            step = min(step, 0.3 / max(pilot.stiffness, 0.3))
        if self.adjust:
            step = step * d ** (-1 / 3)
        step = self.step_size or step
        if isinstance(state.inner, WalkerState):  # the stiffness was measured anew
            return replace(state, phase="sampling", inner=replace(state.inner, step_size=step))
        numbers = state.number * self.walkers + np.arange(self.walkers)
        U = pilot.positions[numbers % len(pilot.positions)]
        inner = self._walkers.start(U, pilot.preconditioner, step)
        remaining = WARM_UP
        if not pilot.explored:
            remaining = max(remaining, min(LONGEST_WARM_UP, int(np.ceil(2 / step))))
        if self._adapts:
            remaining = max(remaining, ADAPTATION)
        return replace(state, phase="warm-up", inner=inner, remaining=remaining, steps=0)

    def _warm_up(self, state: MultiscaleState, info: Info) -> MultiscaleState:
        """Let the walkers forget their start; tune adjusted steps to their acceptance."""
        inner, steps = state.inner, state.steps + 1
        if self._adapts and info.snapshot is not None:
            gain = 1 / np.sqrt(steps)
            factor = np.exp(gain * (info.snapshot.acceptance.mean() - ACCEPTANCE))
            inner = replace(inner, step_size=min(inner.step_size * factor, 2.0))
        state = replace(state, inner=inner, steps=steps, remaining=state.remaining - 1)
        if state.remaining > 0:
            return state
        pilot: Any = state.pilot
        if pilot.explored or self._adapts or self.step_size is not None:
            return replace(state, phase="sampling")
        return replace(state, phase="probe", pilot=replace(pilot, positions=inner.U, explored=True))
