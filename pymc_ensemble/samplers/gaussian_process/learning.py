"""Learning a surrogate posterior, in epochs of evaluations that the fit before has chosen.

All evaluations are kept in an archive. An epoch adds some, fits the surrogate to those that matter,
and moves particles on it at several temperatures. The next evaluations are made at the particles of
that temperature from which the fit will learn most about the posterior. For a smooth map they are
close to the posterior itself. Slopes under noise are learned from far away.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, TypeVar

import numpy as np

from pymc_ensemble.samplers.ensemble import Array, Ensemble, Evaluations, Info, Problem
from pymc_ensemble.samplers.linearization import Anomalies
from pymc_ensemble.samplers.rest import standstill
from pymc_ensemble.samplers.weights import deep, next_exponent, normalized_weights
from pymc_ensemble.samplers.words import number

from .chains import Chains, Ladder, Region
from .fitting import SMALL, Fit, Fitting
from .posterior import SurrogatePosterior
from .verification import UNSURE, Verification, surrogate_error

WIDTHS = 1.5 ** np.arange(5)  # of the particles' laws, in posterior sd
GROWTH = 2  # levels by which a design may become wider in an epoch
MOVES = 50  # moves on the surrogate in an epoch
WALL = 1.25  # radius, relative to that of the points of the fit, where particles stop
CROWDED = 0.5  # share of particles beyond these points that is a crowd, relative to a uniform law
PATIENCE = 2  # epochs with a crowd after which the wall is moved out, twice as far each time
PRECISE = 0.05  # surrogate error in posterior sd that ends the learning


@dataclass(frozen=True)
class LearningState:
    """State of the learning.

    Attributes
    ----------
    ensemble : Ensemble
        Particles with the losses that the surrogate predicts.
    last_epoch : int
        Epochs before the verification, the first evaluations included.
    seed : int
        Seed of the moves after the learning.
    highest_prior : float
        Prior potential above which no particle goes, from the first ensemble.
    archive : Ensemble
        All evaluations that did not fail.
    failed : ndarray of shape (m, d)
        Points whose evaluation failed.
    ladder : Ladder
        Particles at all temperatures.
    posterior : SurrogatePosterior or None
        The fit, None before the first.
    region : Region or None
        Region where the fit may be used.
    radius : float
        Radius of the points of the fit, in its coordinates.
    exponent : float
        Inverse temperature of the loss.
    crowded : int
        Epochs in a row after which particles crowded between the points of the fit and the wall.
    level : int
        Temperature whose particles are evaluated next.
    epochs : int
        Epochs so far, the first evaluations included.
    verifying : bool
        Whether the next evaluations are a verification.
    verification : Verification or None
        The last one.
    surrogate_error : ndarray of shape (2, d) or None
        Standard deviation, over functions that the data allow, of posterior means and sd, both in
        posterior sd.
    rescued : int
        Particles that were replaced in the last epoch.
    beyond : float
        Share of particles farther out than all points of the fit.
    acceptance : float
        Mean acceptance of the Langevin moves of the particles.
    burned_in, converged : bool
        Whether the learning is over, and has been verified.
    """

    ensemble: Ensemble
    last_epoch: int
    seed: int
    highest_prior: float
    archive: Ensemble
    failed: Array
    ladder: Ladder
    posterior: SurrogatePosterior | None = None
    region: Region | None = None
    radius: float = np.inf
    exponent: float = 0.0
    crowded: int = 0
    level: int = 0
    epochs: int = 0
    verifying: bool = False
    verification: Verification | None = None
    surrogate_error: Array | None = None
    rescued: int = 0
    beyond: float = 1.0
    acceptance: float = np.nan
    burned_in: bool = False
    converged: bool = False

    @property
    def particles(self) -> Array:
        """Particles of the posterior, shape (J, d)."""
        return self.ladder.particles[0]

    @property
    def largest_error(self) -> float:
        """Largest surrogate error, infinite as long as it is not known."""
        return np.inf if self.surrogate_error is None else float(self.surrogate_error.max())

    @property
    def fit(self) -> Fit:
        """The present surrogate, for the next fit."""
        assert self.posterior is not None
        return Fit(self.posterior, self.exponent, self.particles)

    def bound(self, problem: Problem | None) -> Self:
        """State whose posterior has the problem, or, before it is stored, has none."""
        if self.posterior is None:
            return self
        return replace(self, posterior=self.posterior.bound(problem))


State = TypeVar("State", bound=LearningState)


@dataclass(frozen=True)
class Epoch:
    """A pending epoch: where the forward map is evaluated, and the seed of what follows."""

    points: Array
    seed: int
    origin: LearningState


@dataclass(frozen=True)
class Learning:
    """Learn a surrogate of the forward outputs or of the loss.

    Parameters
    ----------
    problem : InverseProblem
    forward : bool
        Whether the surrogate predicts the outputs, or the loss.
    """

    sure: ClassVar[float] = 1.0  # sd of the loss at the particles up to which it counts in full

    problem: Problem
    forward: bool = True

    def start(
        self, ensemble: Ensemble, seed: int, last_epoch: int, archive: Ensemble | None = None
    ) -> LearningState:
        """State for an evaluated ensemble, and evaluations that were made before."""
        good = ensemble[ensemble.ok]
        failed = ensemble.U[~ensemble.ok]
        U, rng = ensemble.U, np.random.default_rng(seed)
        if archive is not None:
            good, failed = remembered(archive, good, failed)
            U = first_particles(good, len(U), len(U), rng)
        elif len(failed):  # particles that failed start from others
            U = U.copy()
            U[~ensemble.ok] = ensemble.U[rng.choice(np.flatnonzero(ensemble.ok), len(failed))]
        ladder = Ladder.of(U, len(WIDTHS))
        highest = self._highest_prior(U)
        state = LearningState(good, last_epoch, seed, highest, good, failed, ladder, epochs=1)
        return self._learn(state, rng)

    def ask(self, state: LearningState, rng: np.random.Generator) -> tuple[Array, Epoch]:
        """Points of the next epoch, shape (J, d), and what `tell` needs."""
        points = state.ladder.particles[state.level].copy()
        return points, Epoch(points, int(rng.integers(2**63)), state)

    def tell(
        self, state: LearningState, pending: Epoch, evaluations: Evaluations
    ) -> tuple[LearningState, Info]:
        """State after the epoch, and an account of it."""
        state = pending.origin.bound(self.problem)
        new = Ensemble.evaluated(self.problem, pending.points, evaluations)
        good = new[new.ok]
        verification = state.verification
        if state.verifying:
            verification = self._verify(state, good)
        state = replace(
            state,
            seed=pending.seed,
            archive=Ensemble.joined(state.archive, good),
            failed=np.concatenate([state.failed, new.U[~new.ok]]),
            epochs=state.epochs + 1,
            verification=verification,
        )
        learned = self._learn(state, np.random.default_rng(pending.seed))
        if state.verifying and verification is not None and verification.passed:
            kept = learned if self._confirms(learned, state, good) else state.bound(None)
            learned = replace(kept, burned_in=True, converged=True)
        return learned, Info.of(evaluations, "burn-in", self.account(learned))

    def account(self, state: LearningState) -> str:
        """One line on the state of the learning."""
        if state.posterior is None:
            return "first evaluations"
        theta = state.posterior.process.hyperparameters
        parts = [
            f"loss exponent {number(state.exponent, '.2g')}",
            f"lengths {_range(np.exp(theta.lengths))} sd",
            f"noise {_range(state.posterior.process.noise)}",
        ]
        if state.surrogate_error is not None:
            largest = float(state.surrogate_error.max())
            parts.append(f"surrogate error {number(largest, '.2g')} sd")
        if state.rescued:
            parts.append(f"{state.rescued} particles rescued")
        if state.verification is not None:
            parts.append(str(state.verification))
        return ", ".join(parts)

    # -- parts ----------------------------------------------------------------------------------

    def _verify(self, state: LearningState, good: Ensemble) -> Verification:
        """Compare evaluations with predictions. Half of them must have succeeded."""
        if len(good) < 0.5 * len(state.particles):
            return Verification(np.nan, np.nan, 1.0, np.nan, 0.0, False)
        posterior = state.fit.posterior
        x = posterior.whitening.coordinates(good.U)
        verification = Verification.of(
            good.loss - posterior.loss(x),
            self._loss_noise(state, x),
            posterior.loss_offset,
            _beyond(x, state.radius),
        )
        sure = state.largest_error < UNSURE
        return replace(verification, passed=verification.passed and sure)

    def _loss_noise(self, state: LearningState, x: Array) -> Array:
        """Standard deviation of the noise of observed losses at points (n, d), shape (n,)."""
        return state.fit.posterior.loss_noise(x)

    def _confirms(self, learned: LearningState, verified: LearningState, good: Ensemble) -> bool:
        """Whether the surrogate that learned from the verification agrees with the verified one."""
        before, after = (Anomalies.of(state.particles) for state in (verified, learned))
        surer = learned.largest_error <= max(PRECISE, verified.largest_error)
        return (
            standstill(before, after)
            and surer
            and self._verify(learned.bound(self.problem), good).passed
        )

    def _learn(self, state: State, rng: np.random.Generator) -> State:
        """Fit the surrogate, move the particles on it, and choose where to evaluate next."""
        return self._planned(self._fitted(state, rng), rng).bound(None)

    def _fitted(self, state: State, rng: np.random.Generator) -> State:
        """Fit the surrogate, and move the particles on it."""
        before = None if state.posterior is None else state.fit
        posterior, radius = self._fitting(state)(state.archive, state.particles, before, rng)
        state = replace(state, posterior=posterior, radius=radius)
        state = self._rescued(state, rng)
        state = self._moved(replace(state, exponent=self._exponent(state)), rng)
        error = surrogate_error(posterior, state.particles, rng) if state.exponent == 1 else None
        return replace(state, surrogate_error=error, ensemble=self._predicted(state))

    def _planned(self, state: Any, rng: np.random.Generator) -> Any:
        """Choose where to evaluate next."""
        enough = state.epochs >= state.last_epoch
        if len(state.archive) > len(state.particles):
            enough = enough or state.largest_error < PRECISE
        verifying = state.verifying or enough
        level = 0 if verifying else self._best_level(state, len(state.particles))
        return replace(state, verifying=verifying, level=level)

    def _fitting(self, state: LearningState) -> Fitting:
        return Fitting(self.problem, self.forward)

    def _moved(self, state: State, rng: np.random.Generator) -> State:
        """Move the particles, each on a function of its own, within a wall around the fit."""
        posterior, wall = state.fit.posterior, WALL * 2.0 ** max(0, state.crowded - PATIENCE)
        highest = max(state.highest_prior, self._highest_prior(state.particles))
        whitening = posterior.whitening
        region = Region.of(wall * state.radius, whitening, state.archive.U, state.failed, highest)
        J, d = state.particles.shape
        functions = posterior.process.draw(J, rng)
        chains = Chains(posterior, WIDTHS**2, region, state.exponent, functions)
        ladder, acceptance = chains.run(state.ladder, MOVES, rng)
        beyond = _beyond(whitening.coordinates(ladder.particles[0]), state.radius)
        return replace(
            state,
            region=region,
            ladder=ladder,
            acceptance=float(acceptance[0]),
            beyond=beyond,
            crowded=state.crowded + 1 if beyond > CROWDED * (1 - wall**-d) else 0,
        )

    def _predicted(self, state: LearningState) -> Ensemble:
        """Particles as the present surrogate sees them."""
        return state.fit.posterior.predicted(state.particles, state.archive.Z.shape[1])

    def _highest_prior(self, U: Array) -> float:
        """Prior potential up to which a surrogate is used, a little above that of particles."""
        prior = self.problem.prior_potential(U)
        return float(prior[np.isfinite(prior)].max(initial=-np.inf)) + deep(U.shape[1])

    def _rescued(self, state: State, rng: np.random.Generator) -> State:
        """Replace particles that the surrogate says are far from the posterior."""
        fit, archive = state.fit, state.archive
        exponent, d = max(state.exponent, SMALL), archive.U.shape[1]
        candidates = exponent * fit.loss(archive.U) + archive.prior
        particles = self._predicted(state)
        own = exponent * particles.loss + particles.prior
        best = np.sort(candidates)[: max(20, len(own))]
        far = ~(own < best.mean() + deep(d))
        if not far.any() or state.epochs == 1:
            return replace(state, rescued=0)
        weights, _ = normalized_weights(-np.maximum(candidates - candidates.min(), 0))
        chosen = rng.choice(len(archive), int(far.sum()), p=weights)
        jitter = SMALL * rng.standard_normal((len(chosen), d)) @ fit.posterior.whitening.root.T
        U = state.ladder.particles.copy()
        U[0, far] = archive.U[chosen] + jitter
        return replace(state, ladder=replace(state.ladder, particles=U), rescued=int(far.sum()))

    def _exponent(self, state: LearningState) -> float:
        """Inverse temperature at which the surrogate is sure of the loss, up to one."""
        if self._late(state):
            return 1.0
        posterior = state.fit.posterior
        sd = np.median(posterior.loss_sd(posterior.whitening.coordinates(state.particles)))
        return max(state.exponent, min(1.0, self.sure / max(float(sd), 1e-9)))  # eq. (G8)

    def _late(self, state: LearningState) -> bool:
        """Whether the loss must count in full, however uncertain it is."""
        return state.epochs > state.last_epoch / 2

    def _best_level(self, state: LearningState, size: int) -> int:
        """Temperature whose particles would teach most about the posterior."""
        posterior = state.fit.posterior
        coordinates = posterior.whitening.coordinates(state.ladder.particles)
        errors = []
        for design in coordinates[: state.level + GROWTH + 1, :size]:
            relative = posterior.relative_noise(posterior.loss(design))
            sd = posterior.process.sd_with(design, coordinates[0], relative)
            errors.append((sd**2).mean())
        return int(np.argmin(errors))  # eq. (G10)


def remembered(archive: Ensemble, good: Ensemble, failed: Array) -> tuple[Ensemble, Array]:
    """Evaluations that did not fail, and points of those that did, with what was known before."""
    return (
        Ensemble.joined(archive[archive.ok], good),
        np.concatenate([archive.U[~archive.ok], failed]),
    )


def first_particles(known: Ensemble, size: int, even: int, rng: np.random.Generator) -> Array:
    """Particles where evaluations say the posterior is. `even` is the effective size of weights."""
    exponent = next_exponent(known.potential, 0.0, even)
    weights, _ = normalized_weights(-exponent * known.potential)
    return known.U[rng.choice(len(known), size, p=weights)]


def _beyond(x: Array, radius: float) -> float:
    """Share of points (n, d) farther out than a radius."""
    return float(((x**2).sum(1) > radius**2).mean())


def _range(values: Array) -> str:
    """Smallest and largest of some values."""
    least, largest = number(float(values.min()), ".2g"), number(float(values.max()), ".2g")
    return least if least == largest else f"{least} to {largest}"
