"""Ensemble Kalman sampler: an interacting particle system that never differentiates the forward map.

The particles follow ``du = -C grad V(u) dt + sqrt(2 C) dW`` with the covariance C of the ensemble,
and the gradient of the misfit is replaced by what the ensemble itself says about the slope of the
forward map.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from . import proposals
from .ensemble import Ensemble, EnsembleFailure, Info, Snapshot
from .linearization import (
    Anomalies,
    GaussianLaw,
    fit_law,
    gaussian_law,
    prior_slope,
)
from .inflated_design import InflatedDesign
from .start import Start
from .tempering import TemperedBurnIn, plausible, standstill

RELATIVE_EXTRA_VARIANCE = 0.1  # that the pointwise force may add: bounds its time step
LARGEST_DEVIATION = 2.0  # of the pointwise from the linear force, per root of the dimension
NEARLY_LINEAR = 0.1  # share of the force's deviation that the forward map may be to blame for
INDEPENDENT_SHARE = 0.8  # of the mixture kernel; the rest are differential evolution moves
DEFAULT_STEP = 2.0
SMALL_ENSEMBLE_STEP = 0.1  # largest step without split halves
LONGEST_SETTLING = 10  # sweeps in which the pointwise dynamics forget the linearized burn-in
STANDSTILLS = 3  # consecutive sweeps without change that end the burn-in of the published scheme


@dataclass(frozen=True)
class SweepState:
    """Between two rounds of an ensemble that is advanced group by group.

    Attributes
    ----------
    ensemble : Ensemble
        Evaluated particles; the groups that were moved in this sweep are already replaced.
    groups : tuple of ndarray
        Members still to be moved in this sweep; empty between sweeps.
    log_q, acceptance : ndarray of shape (J,)
        Collected over the sweep.
    dt : float
        Time step.
    pointwise : bool
        Whether the force uses each particle's own output.
    sweeps : int
        Completed sweeps.
    """

    ensemble: Ensemble
    dt: float
    pointwise: bool = False
    groups: tuple = ()
    others: tuple = ()
    log_q: np.ndarray | None = None
    acceptance: np.ndarray | None = None
    sweeps: int = 0


@dataclass(frozen=True)
class GroupMove:
    """A pending round: proposals for one group, and the law behind them."""

    index: np.ndarray
    points: np.ndarray
    law: GaussianLaw
    log_ratio: np.ndarray
    tested: np.ndarray
    uniforms: np.ndarray
    origin: SweepState


@dataclass(frozen=True)
class SplitSweeps:
    """Advance the halves of an ensemble in turn, each with the statistics of the other one.

    Conditional on the other half, every move is a fixed Markov kernel for each particle, which is
    what makes step sizes and finite ensembles free of bias. A subclass supplies `propose`.

    Parameters
    ----------
    problem : InverseProblem
    min_members : int
        Plausible members of a half without which there is no statistics.
    """

    problem: object
    min_members: int

    def start(self, ensemble, dt=np.nan, pointwise=False):
        """State for an evaluated ensemble."""
        return SweepState(ensemble, dt, pointwise)

    def ask(self, state, rng):
        """Points of the next round, shape (n, d), and what `tell` needs to judge them."""
        if not state.groups:
            J = len(state.ensemble)
            groups = self.split(rng.permutation(J))
            state = replace(
                state,
                groups=groups,
                others=groups[::-1],
                log_q=np.full(J, np.nan),
                acceptance=np.full(J, np.nan),
            )
        index, others = state.groups[0], state.others[0]
        partners = state.ensemble[others]
        used = plausible(partners.potential, partners.U.shape[1])
        if used.sum() < self.min_members:
            raise EnsembleFailure(
                f"Only {used.sum()} of {len(partners)} members have a plausible posterior density, "
                f"but {self.min_members} are needed."
            )
        law = fit_law(self.problem, partners, used.astype(float))
        points, log_ratio, tested = self.propose(state, law, state.ensemble[index], partners, rng)
        uniforms = rng.random(len(index))
        return points, GroupMove(index, points, law, log_ratio, tested, uniforms, state)

    def split(self, order):
        """Groups of members that are moved in turn, from a random order of all of them."""
        return order[: len(order) // 2], order[len(order) // 2 :]

    def tell(self, state, pending, evaluations):
        """State after the round, and an account of it."""
        state, index = pending.origin, pending.index
        values = Ensemble.evaluated(self.problem, pending.points, evaluations)
        if not values.ok.any():
            raise EnsembleFailure(f"All {len(values)} evaluations of a round failed.")
        alpha = proposals.acceptance(
            state.ensemble.potential[index], values.potential, pending.log_ratio
        )
        accepted = values.ok & (~pending.tested | (pending.uniforms < alpha))
        ensemble = state.ensemble.updated(index, values, accepted)
        log_q, acceptance = state.log_q.copy(), state.acceptance.copy()
        log_q[index] = pending.law.log_density(ensemble.U[index])
        acceptance[index] = alpha
        state = replace(
            state,
            ensemble=ensemble,
            groups=state.groups[1:],
            others=state.others[1:],
            log_q=log_q,
            acceptance=acceptance,
        )
        snapshot = None
        if not state.groups:
            state = replace(state, sweeps=state.sweeps + 1)
            snapshot = Snapshot(ensemble.U, -ensemble.potential, log_q, acceptance, state.dt)
        n_failed = int(evaluations.failed.sum())
        message = f"acceptance {np.nanmean(acceptance):.2f}"
        info = Info("sampling", snapshot is not None, snapshot, len(values), n_failed, message)
        return state, info


@dataclass(frozen=True)
class Relaxation(SplitSweeps):
    """Exact Ornstein-Uhlenbeck transitions of the linearized dynamics (no Metropolis test)."""

    def propose(self, state, law, group, partners, rng):
        """Relax `group` towards the law of its partners over the time ``state.dt``."""
        x = law.map.coordinates(group.U)
        force = law.linear_force(x)
        if state.pointwise:
            law, force = pointwise_force(self.problem, law, group, partners)
        moved = law.relax(x, force, state.dt, law.noise(len(x), rng))
        log_ratio = 0.5 * (law.distance(moved) - law.distance(x))
        return law.map.particles(moved), log_ratio, np.zeros(len(x), dtype=bool)


@dataclass(frozen=True)
class WholeRelaxation(Relaxation):
    """The same for ensembles too small for halves: all particles move with their own statistics."""

    def split(self, order):
        """All members at once."""
        return (order,)

    def propose(self, state, law, group, partners, rng):
        """Relax with the finite-ensemble correction ``((d + 1) / J) (u - mean)``."""
        J, d = group.U.shape
        x = law.map.coordinates(group.U)
        force = law.linear_force(x) + (d + 1) / J * x
        moved = law.relax(x, force, state.dt, law.noise(J, rng))
        log_ratio = 0.5 * (law.distance(moved) - law.distance(x))
        return law.map.particles(moved), log_ratio, np.zeros(J, dtype=bool)


@dataclass(frozen=True)
class MixtureMetropolis(SplitSweeps):
    """Metropolis-adjusted moves: exact for every deterministic forward map.

    Independence proposals from the law of the other half do the work where the posterior is nearly
    Gaussian; differential evolution does where it is not.
    """

    def propose(self, state, law, group, partners, rng):
        """Propose for each particle of `group` by a kernel that is drawn at random."""
        U = group.U
        points, log_ratio = proposals.independence(law, U, rng)
        evolved, _ = proposals.differential_evolution(law.anomalies, U, partners.U, rng)
        independent = rng.random(len(U)) < INDEPENDENT_SHARE
        points = np.where(independent[:, None], points, evolved)
        return points, np.where(independent, log_ratio, 0.0), np.ones(len(U), dtype=bool)


def pointwise_force(problem, law, group, partners):
    """Force from each particle's own output, as the continuous-time dynamics have it.

    Returns
    -------
    law : GaussianLaw
        The law with the mean curvature of the partners, which rules the relaxation.
    force : ndarray of shape (n, r)
    """
    x = law.map.coordinates(group.U)
    linear, A, L = law.linear_force(x), law.map.slope, law.anomalies.L
    own = -(problem.loss_gradient(group.Z) @ A + problem.prior_gradient(group.U) @ L)
    deviation = own - linear
    largest = LARGEST_DEVIATION * np.sqrt(group.U.shape[1])
    size = np.linalg.norm(deviation, axis=1, keepdims=True)
    deviation = deviation * np.minimum(1.0, largest / np.maximum(size, np.finfo(float).tiny))
    ok = partners.ok
    at_center = problem.curvature(law.map.output_mean[None])[0]
    curvature = np.minimum(problem.curvature(partners.Z[ok]).mean(0), 3 * at_center)
    softened = gaussian_law(problem, law.map, partners.U[ok], curvature=curvature)
    return softened, linear + deviation


def pointwise_step(problem, ensemble):
    """Whether the pointwise force pays, and the time step that bounds its extra variance.

    The pointwise force is right where the loss or the prior, but not the forward map, is the
    reason why it deviates from the linear one.

    Returns
    -------
    pointwise : bool
    dt : float
        ``inf`` where the two forces agree.
    """
    members = ensemble[ensemble.ok]
    law = fit_law(problem, members, plausible(members.potential, members.U.shape[1]).astype(float))
    _, force = pointwise_force(problem, law, members, members)
    deviation = force - law.linear_force(law.map.coordinates(members.U))
    d = members.U.shape[1]
    spread = ((deviation - deviation.mean(0)) ** 2).sum(1).mean()
    size = (deviation**2).sum(1).mean()
    if size < 1e-6 * d:
        return False, np.inf
    curvature = problem.curvature(law.map.output_mean[None])[0]
    nonlinearity = curvature @ ((members.Z - law.map(members.U)) ** 2).mean(0)
    return bool(nonlinearity < NEARLY_LINEAR * size), 2 * RELATIVE_EXTRA_VARIANCE * d / spread


@dataclass(frozen=True)
class PublishedState:
    """State of the published scheme."""

    ensemble: Ensemble
    sweeps: int = 0
    reference: Anomalies | None = None
    settled: int = 0


@dataclass(frozen=True)
class PublishedMove:
    """A pending round of the published scheme."""

    points: np.ndarray
    law: GaussianLaw
    log_ratio: np.ndarray
    dt: float
    origin: PublishedState


@dataclass(frozen=True)
class PublishedScheme:
    """Linearly implicit split-step Euler scheme with an adaptive time step.

    Parameters
    ----------
    problem : InverseProblem
    min_members : int
    largest_step : float, default inf
        Bound of the time step ``1 / |D|_F``.
    corrected : bool, default True
        Whether to add the finite-ensemble correction, which the printed scheme omits.
    """

    problem: object
    min_members: int
    largest_step: float = np.inf
    corrected: bool = True

    def start(self, ensemble):
        """State for an evaluated ensemble."""
        return PublishedState(ensemble)

    def ask(self, state, rng):
        """Points of the next round, shape (J, d), and what `tell` needs to judge them."""
        ensemble = state.ensemble
        members = ensemble[ensemble.ok]
        if len(members) < self.min_members:
            raise EnsembleFailure(
                f"Only {len(members)} of {len(ensemble)} ensemble members have a finite posterior "
                f"density, but {self.min_members} are needed."
            )
        J, d = members.U.shape
        law = fit_law(self.problem, members)
        A, L = law.map.slope, law.anomalies.L
        gradients = self.problem.loss_gradient(members.Z)
        dt = min(1 / (interaction_norm(members.Z, gradients) + 1e-8), self.largest_step)
        _, slope = prior_slope(self.problem, law.anomalies, members.U)
        x = law.map.coordinates(members.U)
        drift = -gradients @ A - self.problem.prior_gradient(members.U) @ L
        if self.corrected:
            drift = drift + (d + 1) / J * x
        step = np.linalg.solve(np.eye(len(slope)) + dt * slope, dt * drift.T).T
        noise = rng.standard_normal((J, law.anomalies.rank)) @ law.anomalies.frame
        moved = x + step + np.sqrt(2 * dt) * noise
        points, log_ratio = ensemble.U.copy(), np.zeros(len(ensemble))
        points[ensemble.ok] = law.map.particles(moved)
        log_ratio[ensemble.ok] = 0.5 * (law.distance(moved) - law.distance(x))
        return points, PublishedMove(points, law, log_ratio, dt, state)

    def tell(self, state, pending, evaluations):
        """State after the round, and an account of it."""
        state = pending.origin
        values = Ensemble.evaluated(self.problem, pending.points, evaluations)
        if not values.ok.any():
            raise EnsembleFailure(f"All {len(values)} evaluations of a round failed.")
        alpha = proposals.acceptance(state.ensemble.potential, values.potential, pending.log_ratio)
        ensemble = state.ensemble.updated(np.arange(len(values)), values, values.ok)
        snapshot = Snapshot(
            ensemble.U,
            -ensemble.potential,
            pending.law.log_density(ensemble.U),
            alpha,
            pending.dt,
        )
        anomalies = Anomalies.of(ensemble.U[ensemble.ok])
        hit = state.reference is not None and standstill(state.reference, anomalies)
        state = PublishedState(
            ensemble, state.sweeps + 1, anomalies, state.settled + 1 if hit else 0
        )
        n_failed = int(evaluations.failed.sum())
        message = f"step size {pending.dt:.3g}"
        return state, Info("sampling", True, snapshot, len(values), n_failed, message)


def interaction_norm(Z, gradients):
    """Frobenius norm of ``D_ik = (1/J) (z_k - mean z)^T gradient_i`` without forming ``D`` for many
    particles."""
    J, K = Z.shape
    F = Z - Z.mean(0)
    if J <= K:
        return np.linalg.norm(gradients @ F.T) / J
    return np.sqrt(max(((F.T @ F) * (gradients.T @ gradients)).sum(), 0.0)) / J


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
    """

    phase: Literal["start", "burn-in", "settling", "sampling"]
    inner: object
    skip_burn_in: bool = False
    remaining: int = 0
    converged: bool = False

    @property
    def ensemble(self):
        """Evaluated particles, or None before the first evaluation."""
        return self.inner.ensemble

    @property
    def burned_in(self):
        """Whether the burn-in is over."""
        return self.phase == "sampling"


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

    Raises
    ------
    ValueError
        If the options contradict one another or the ensemble is too small.

    Examples
    --------
    >>> import numpy as np
    >>> import pymc_ensemble as pe
    >>> from pymc_ensemble.samplers.kalman import EnsembleKalman
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

    problem: object
    ensemble_size: int | None = None
    adjust: bool = False
    rough: bool = False
    scheme: Literal["exact", "paper"] = "exact"
    dt: float | None = None
    corrected: bool = True
    allow_subspace: bool = False

    def __post_init__(self):
        """Refuse contradicting options."""
        if self.scheme not in ("exact", "paper"):
            raise ValueError(f'scheme must be "exact" or "paper", not {self.scheme!r}.')
        if self.adjust and self.rough:
            raise ValueError(
                "adjust=True and rough=True exclude each other: a Metropolis test targets the rough "
                "posterior and locks in on lucky evaluations. Use rough=True alone for the smooth "
                "posterior, or adjust=True alone for a deterministic forward map."
            )
        if self.scheme == "paper" and (self.adjust or self.rough):
            option = "adjust" if self.adjust else "rough"
            raise ValueError(
                f'scheme="paper" is the published algorithm unchanged; {option}=True needs '
                'scheme="exact", the default.'
            )
        if self.dt is not None and not self.dt > 0:
            raise ValueError(f"dt must be positive, not {self.dt}.")
        if self.dt is not None and (self.adjust or self.rough):
            option = "adjust" if self.adjust else "rough"
            raise ValueError(f"dt has no meaning with {option}=True; leave it out.")
        J, d = self.size, self.problem.dimension
        if J != int(J) or J < 2:
            raise ValueError(f"ensemble_size must be an integer of at least 2, not {J}.")
        if J <= d + 1 and not self.allow_subspace:
            raise ValueError(
                f"ensemble_size={J} is too small for {d} parameters: the particles would never leave "
                f"the span of their start. Use at least {2 * (d + 2)} (default "
                f"{default_ensemble_size(d)}), or allow_subspace=True to sample in the span only."
            )
        if (self.adjust or self.rough) and not self.splits:
            option = "adjust" if self.adjust else "rough"
            raise ValueError(
                f"{option}=True needs an ensemble_size of at least {2 * (d + 2)} for {d} parameters, "
                f"not {J}."
            )

    @property
    def size(self):
        """Number of particles J."""
        if self.ensemble_size is None:
            return default_ensemble_size(self.problem.dimension)
        return self.ensemble_size

    @property
    def splits(self):
        """Whether the ensemble is large enough for split halves."""
        return self.size >= 2 * (self.problem.dimension + 2)

    @property
    def min_members(self):
        """Members without which there is no statistics."""
        return 3 if self.allow_subspace else self.problem.dimension + 2

    # -- the parts at work ----------------------------------------------------------------------

    @cached_property
    def _start(self):
        return Start(self.problem, self.min_members)

    @cached_property
    def _burn_in(self):
        finish = "none" if self.rough else "metropolis" if self.adjust else "relax"
        return TemperedBurnIn(self.problem, self.min_members, not self.rough, finish)

    @cached_property
    def _kernel(self):
        if self.scheme == "paper":
            largest = np.inf if self.dt is None else self.dt
            return PublishedScheme(self.problem, self.min_members, largest, self.corrected)
        if self.rough:
            return InflatedDesign(self.problem)
        if self.adjust:
            return MixtureMetropolis(self.problem, self.min_members)
        kernel = Relaxation if self.splits else WholeRelaxation
        return kernel(self.problem, self.min_members)

    def _part(self, phase):
        return {"start": self._start, "burn-in": self._burn_in}.get(phase, self._kernel)

    # -- ask and tell ---------------------------------------------------------------------------

    def start(self, U, *, redraw=False, skip_burn_in=False):
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

    def ask(self, state, rng):
        """Points of the next round, shape (n, d), and what `tell` needs to judge them."""
        return self._part(state.phase).ask(state.inner, rng)

    def tell(self, state, pending, evaluations):
        """State after the round, and an account of it."""
        inner, info = self._part(state.phase).tell(state.inner, pending, evaluations)
        phase = "burn-in" if state.phase == "settling" else info.phase
        if state.phase != "sampling":
            info = replace(info, phase=phase, snapshot=None)
        state = replace(state, inner=inner)
        if info.complete:
            state = self._proceed(state)
        return state, info

    def freeze(self, state):
        """End the tuning: go on to the sampling phase with the ensemble as it is."""
        if state.phase == "sampling":
            return state
        if state.phase in ("start", "burn-in"):
            state = self._settle(state)
        inner = state.inner
        if isinstance(self._kernel, InflatedDesign):
            inner = self._kernel.freeze(inner)
        return replace(state, phase="sampling", inner=inner)

    def finish(self, state, snapshots, rng):
        """Snapshots of a block as they are to be handed out; rough maps redraw them."""
        return self._kernel.finish(state.inner, snapshots, rng) if self.rough else snapshots

    # -- phases ---------------------------------------------------------------------------------

    def _proceed(self, state):
        """Go on to the next phase where the present one has done its work."""
        inner = state.inner
        if state.phase == "start":
            if not inner.complete:
                return state
            if state.skip_burn_in or self.scheme == "paper":
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
            return self.freeze(state) if done else state
        return state

    def _settle(self, state):
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
            if pointwise and not state.skip_burn_in:
                remaining = min(LONGEST_SETTLING, int(np.ceil(2 / dt)))
        state = replace(state, phase="settling", inner=inner, remaining=remaining)
        return state if remaining else self.freeze(state)


def default_ensemble_size(dimension):
    """``max(100, 4 (d + 2))`` particles: an even number."""
    return max(100, 4 * (dimension + 2))
