"""Learning a surrogate posterior: epochs of evaluations, each one chosen by the fit before it.

All evaluations are kept in an archive. An epoch adds some, fits the surrogate to those that matter,
and moves particles on it at several temperatures. The next evaluations are made where particles of
one temperature are: that from which the fit will learn most about the posterior. For a smooth map
that is close to the posterior itself; slopes under noise are learned from far away.
"""

from dataclasses import dataclass, replace

import numpy as np

from pymc_ensemble.samplers.ensemble import Array, Ensemble, Evaluations, Info, Problem
from pymc_ensemble.samplers.linearization import Anomalies
from pymc_ensemble.samplers.phases import standstill
from pymc_ensemble.samplers.weights import next_exponent, normalized_weights

from .basis import Basis, basis_size, farthest_points
from .chains import Chains, Ladder, Region
from .posterior import (
    Bend,
    ForwardTarget,
    NoiseLaw,
    PotentialTarget,
    SurrogatePosterior,
    Target,
    WhitenedPrior,
    Whitening,
)
from .regression import Function, GaussianProcess
from .verification import UNSURE, Verification

WIDTHS = np.array([1.0, 1.5, 2.25, 3.4, 5.0])  # of the particles' laws, in posterior sd
LARGEST_GROWTH = 2.3  # of the width of the design from epoch to epoch
MOVES = 50  # on the surrogate in an epoch
REACH = 200.0  # potential above that of the particles up to which points enter the fit
NEAR = 50.0  # potential above that of the particles up to which points of the fit have full weight
DEEP = 10.0  # potential that separates what matters from what does not, with 2 d added
GUARDS = 100  # points beyond it that keep the fit from running away
WALL = 1.25  # radius, relative to that of the points of the fit, where particles stop
CROWDED = 0.5  # share of particles beyond these points, of that of a uniform law, that is a crowd
PATIENCE = 2  # epochs with a crowd after which the wall is moved out, twice as far each time
PRECISE = 0.05  # surrogate error in posterior sd that ends the learning
REFERENCE_PARTICLES = 200  # at which the precision of a design is judged
ERROR_DRAWS = 20
LOST = 0.05  # effective share of the particles below which the surrogate error is not known


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
        Of the moves that follow the learning.
    highest_prior : float
        Prior potential that the first ensemble allows for.
    archive : Ensemble
        All evaluations that did not fail.
    failed : ndarray of shape (m, d)
        Points whose evaluation failed.
    ladder : Ladder
        Particles at all temperatures.
    posterior : SurrogatePosterior or None
        The fit, None before the first.
    region : Region or None
        Where it may be used.
    radius : float
        Of the points of the fit, in its coordinates.
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
    acceptance : float
        Of the Langevin moves of the particles.
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
    acceptance: float = np.nan
    burned_in: bool = False
    converged: bool = False

    def bound(self, problem: Problem | None) -> "LearningState":
        """State with a posterior that knows its problem, or, to be stored, does not."""
        if self.posterior is None:
            return self
        return replace(self, posterior=self.posterior.bound(problem))


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

    problem: Problem
    forward: bool = True

    def start(
        self, ensemble: Ensemble, seed: int, last_epoch: int, archive: Ensemble | None = None
    ) -> LearningState:
        """State for an evaluated ensemble, and evaluations that were made before."""
        good = ensemble[ensemble.ok]
        failed = ensemble.U[~ensemble.ok]
        if archive is not None:
            good = joined(archive[archive.ok], good)
        U, rng = ensemble.U, np.random.default_rng(seed)
        if archive is not None:  # particles start where the posterior is known to be
            exponent = next_exponent(good.potential, 0.0, len(U))
            weights, _ = normalized_weights(-exponent * good.potential)
            U = good.U[rng.choice(len(good), len(U), p=weights)]
        elif len(failed):  # their particles start from others
            U = U.copy()
            U[~ensemble.ok] = ensemble.U[rng.choice(np.flatnonzero(ensemble.ok), len(failed))]
        if archive is not None:
            failed = np.concatenate([archive.U[~archive.ok], failed])
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
            archive=joined(state.archive, good),
            failed=np.concatenate([state.failed, new.U[~new.ok]]),
            epochs=state.epochs + 1,
            verification=verification,
        )
        verified = state
        state = self._learn(state, np.random.default_rng(pending.seed))
        if state.verifying and verification is not None and verification.passed:
            same = standstill(
                Anomalies.of(verified.ladder.particles[0]), Anomalies.of(state.ladder.particles[0])
            )
            before, after = _largest(verified.surrogate_error), _largest(state.surrogate_error)
            surer = after <= max(PRECISE, before)
            if not (same and surer and self._verify(state.bound(self.problem), good).passed):
                state = verified.bound(None)  # what was learned afterwards is not verified
            state = replace(state, burned_in=True, converged=True)
        return state, Info.of(evaluations, "burn-in", self.account(state))

    def account(self, state: LearningState) -> str:
        """One line on the state of the learning."""
        if state.posterior is None:
            return "first evaluations"
        theta = state.posterior.process.hyperparameters
        parts = [
            f"loss exponent {state.exponent:.2g}",
            f"lengths {np.array2string(np.exp(theta.lengths), precision=2, threshold=6)} sd",
            f"noise {np.array2string(state.posterior.process.noise, precision=2, threshold=4)}",
        ]
        if state.surrogate_error is not None:
            parts.append(f"surrogate error {state.surrogate_error.max():.2g} sd")
        if state.rescued:
            parts.append(f"{state.rescued} particles rescued")
        if state.verification is not None:
            parts.append(str(state.verification))
        return ", ".join(parts)

    # -- parts ----------------------------------------------------------------------------------

    def _verify(self, state: LearningState, good: Ensemble) -> Verification:
        """Compare evaluations with predictions; half of the particles must have got one."""
        assert state.posterior is not None
        if len(good) < 0.5 * state.ladder.particles.shape[1]:
            return Verification(np.nan, np.nan, 1.0, np.nan, 0.0, False)
        x = state.posterior.whitening.coordinates(good.U)
        difference = good.loss - state.posterior.loss(x)
        noise, offset = state.posterior.loss_noise(x), state.posterior.loss_offset
        verification = Verification.of(difference, noise, offset, _beyond(x, state.radius))
        sure = _largest(state.surrogate_error) < UNSURE
        return replace(verification, passed=verification.passed and sure)

    def _learn(self, state: LearningState, rng: np.random.Generator) -> LearningState:
        """Fit the surrogate, move the particles on it, and choose where to evaluate next."""
        posterior, radius = self._fit(state, rng)
        state = replace(state, posterior=posterior)
        state = self._rescue(state, rng)
        highest = max(state.highest_prior, float(self._highest_prior(state.ladder.particles[0])))
        wall = WALL * 2.0 ** max(0, state.crowded - PATIENCE)
        region = Region.of(
            wall * radius,
            posterior.whitening,
            state.archive.U,
            state.failed,
            highest,
        )
        state = replace(state, exponent=self._exponent(state), region=region)
        particles = state.ladder.particles
        functions = posterior.process.draw(particles.shape[1], rng)
        chains = Chains(posterior, WIDTHS**2, region, state.exponent, functions)
        ladder, acceptance = chains.run(state.ladder, MOVES, rng)
        state = replace(state, ladder=ladder, acceptance=float(acceptance[0]))
        beyond = _beyond(posterior.whitening.coordinates(ladder.particles[0]), radius)
        crowded = beyond > CROWDED * (1 - wall ** -particles.shape[2])
        state = replace(state, crowded=state.crowded + 1 if crowded else 0, radius=radius)
        state = replace(state, surrogate_error=self._error(state, rng))
        enough = state.epochs >= state.last_epoch
        J = state.ladder.particles.shape[1]
        if len(state.archive) >= 1.5 * J:
            enough = enough or _largest(state.surrogate_error) < PRECISE
        verifying = state.verifying or enough
        level = 0 if verifying else self._best_level(state)
        ensemble = self._predicted(state)
        return replace(state, ensemble=ensemble, verifying=verifying, level=level).bound(None)

    def _predicted(self, state: LearningState) -> Ensemble:
        """Particles as the present surrogate sees them."""
        assert state.posterior is not None
        return state.posterior.predicted(state.ladder.particles[0], state.archive.Z.shape[1])

    def _highest_prior(self, U: Array) -> float:
        """Prior potential up to which a surrogate is used, some way beyond that of particles."""
        prior = self.problem.prior_potential(U)
        return prior[np.isfinite(prior)].max(initial=-np.inf) + DEEP + 2 * U.shape[1]

    def _fit(
        self, state: LearningState, rng: np.random.Generator
    ) -> tuple[SurrogatePosterior, float]:
        """Surrogate in the coordinates of the particles, and the radius of its points."""
        archive, d = state.archive, state.archive.U.shape[1]
        whitening = Whitening.of(state.ladder.particles[0])
        selected, guards, loss = self._select(state, whitening)
        points = np.concatenate([selected, guards])
        data = archive[points]
        x = whitening.coordinates(data.U)
        noise = 0.0
        if state.posterior is not None:
            at = state.posterior.whitening.coordinates(state.ladder.particles[0])
            noise = float(np.median(state.posterior.loss_noise(at)))
        target = self._target(archive, selected, loss, state.exponent, noise)
        values = target.values(data)
        basis: Basis = "linear"
        if not self.forward and len(selected) >= 1.5 * basis_size("quadratic", d):
            basis = "quadratic"
        warm = None if state.posterior is None else state.posterior.process.hyperparameters
        is_guard = np.arange(len(points)) >= len(selected)
        if loss is not None and isinstance(target, PotentialTarget):
            # a logarithm of losses is not quadratic where they are
            bent = loss[points] - target.reference > target.bend.start
            if (~bent[: len(selected)]).sum() >= d + 2:
                is_guard |= bent
        prior = WhitenedPrior.of(self.problem, whitening)
        law, relative = None, None
        if loss is not None and self.forward:
            # far from the posterior the process may be wrong: what it misses there is no noise
            potential = state.exponent * loss[points] + data.prior
            excess = potential - np.quantile(potential[: len(selected)], 0.05)
            relative = 1 + (np.clip(excess, 0, 10 * NEAR) / NEAR) ** 4
        elif loss is not None:
            law = NoiseLaw.of(loss[selected], archive.loss[selected], d)
            relative = law(loss[points])
        process = GaussianProcess.fit(
            x, values, basis, rng, relative_noise=relative, guards=is_guard, warm=warm
        )
        posterior = SurrogatePosterior(whitening, prior, target, process, law)
        if basis == "quadratic" and self._indefinite(posterior, max(state.exponent, 1e-3)):
            process = GaussianProcess.fit(
                x, values, "constant", rng, relative_noise=relative, guards=is_guard, warm=warm
            )
            posterior = replace(posterior, process=process)
        return posterior, float(np.sqrt((x[: len(selected)] ** 2).sum(1).max()))

    def _target(
        self,
        archive: Ensemble,
        selected: Array,
        loss: Array | None,
        exponent: float,
        noise: float,
    ) -> Target:
        """What the surrogate predicts; what is far beyond the selected points is bent."""
        losses = archive.loss[selected] if loss is None else loss[selected]
        least, d = float(np.quantile(losses, 0.02)), archive.U.shape[1]
        middle = float(np.median(losses)) - least
        if self.forward:
            straight = REACH / exponent if exponent > 0 else middle
            straight = max(REACH, min(straight, float(losses.max()) - least))
            return ForwardTarget.of(self.problem, archive[selected], Bend(np.sqrt(2 * straight)))
        relevant = DEEP + 2 * d
        # far out a loss is rarely quadratic, least so with few unknowns
        straight = relevant * max(3, d)
        if exponent == 0:
            return PotentialTarget(least, Bend(max(straight, middle)), max(relevant, middle))
        noise = min(noise, REACH / 10)
        return PotentialTarget(
            least, Bend(straight / exponent + 10 * noise), relevant / exponent + 4 * noise
        )

    def _indefinite(self, posterior: SurrogatePosterior, exponent: float) -> bool:
        """Whether the quadratic mean and the prior would let particles run away."""
        H = exponent * posterior.process.curvature[0]
        if posterior.prior.quadratic is not None:
            H = H + posterior.prior.quadratic[2]
        return bool(np.linalg.eigvalsh(H)[0] < 0)

    def _select(
        self, state: LearningState, whitening: Whitening
    ) -> tuple[Array, Array, Array | None]:
        """Points of the archive for the fit, guards, and the smoothed losses of the archive."""
        archive, d = state.archive, state.archive.U.shape[1]
        n, fewest = len(archive), 10 * (d + 2)
        loss = None
        if state.posterior is None:
            potential = archive.potential  # observed: a bias at the start does no harm
            reach = potential.min() + max(1e4, 10 * REACH)
        else:
            # by the smoothed potential: lucky noise must not decide
            loss = state.posterior.loss(state.posterior.whitening.coordinates(archive.U))
            potential = state.exponent * loss + archive.prior
            particles = self._predicted(state)
            own = state.exponent * particles.loss + particles.prior
            reach = np.quantile(own, 0.05) + REACH
        potential = np.where(np.isnan(potential), np.inf, potential)
        inside = potential < reach
        if inside.sum() < min(fewest, n):
            inside[np.argsort(potential)[:fewest]] = True
        selected, others = np.flatnonzero(inside), np.flatnonzero(~inside)
        guards = others
        if len(others) > GUARDS:
            guards = others[farthest_points(whitening.coordinates(archive.U[others]), GUARDS)]
        return selected, guards, loss

    def _rescue(self, state: LearningState, rng: np.random.Generator) -> LearningState:
        """Replace particles that the surrogate says are far from the posterior."""
        posterior, archive = state.posterior, state.archive
        assert posterior is not None
        exponent, d = max(state.exponent, 1e-3), archive.U.shape[1]
        x = posterior.whitening.coordinates(archive.U)
        candidates = exponent * posterior.loss(x) + archive.prior
        particles = self._predicted(state)
        own = exponent * particles.loss + particles.prior
        best = np.sort(candidates)[: max(20, len(own))]
        far = ~(own < best.mean() + 10 + 2 * d)
        if not far.any() or state.epochs == 1:
            return replace(state, rescued=0)
        weights = np.exp(-np.maximum(candidates - candidates.min(), 0))
        chosen = rng.choice(len(archive), int(far.sum()), p=weights / weights.sum())
        jitter = 1e-3 * rng.standard_normal((len(chosen), d)) @ posterior.whitening.root.T
        U = state.ladder.particles.copy()
        U[0, far] = archive.U[chosen] + jitter
        return replace(state, ladder=replace(state.ladder, particles=U), rescued=int(far.sum()))

    def _exponent(self, state: LearningState) -> float:
        """Inverse temperature at which the surrogate is sure of the loss, up to one."""
        assert state.posterior is not None
        if state.epochs > state.last_epoch / 2:
            return 1.0
        x = state.posterior.whitening.coordinates(state.ladder.particles[0])
        sd = float(np.median(state.posterior.loss_sd(x)))
        return max(state.exponent, min(1.0, 1 / max(sd, 1e-9)))

    def _best_level(self, state: LearningState) -> int:
        """Temperature whose particles would teach most about the posterior."""
        posterior = state.posterior
        assert posterior is not None
        coordinates = posterior.whitening.coordinates(state.ladder.particles)
        reference = coordinates[0][:REFERENCE_PARTICLES]
        widest = LARGEST_GROWTH * WIDTHS[state.level]
        errors = []
        for design in coordinates[widest >= WIDTHS]:
            relative = posterior.relative_noise(posterior.loss(design))
            sd = posterior.process.sd_with(design, reference, relative)
            errors.append((sd**2).mean())
        return int(np.argmin(errors))

    def _error(self, state: LearningState, rng: np.random.Generator) -> Array | None:
        """Standard deviation of posterior means and sd over functions that the data allow."""
        posterior = state.posterior
        assert posterior is not None
        if state.exponent < 1:
            return None
        U = state.ladder.particles[0]
        x = posterior.whitening.coordinates(U)
        functions = posterior.process.draw(ERROR_DRAWS, rng)
        mean_loss, scaled = posterior.loss(x), (U - U.mean(0)) / U.std(0)
        moments, sizes = [], []
        for i in range(ERROR_DRAWS):
            function = Function(functions.kernel[i], functions.basis[i])
            log_w = mean_loss - posterior.loss(x, function)
            w = np.exp(log_w - log_w.max())
            w /= w.sum()
            sizes.append(1 / (w @ w))
            mean = w @ scaled
            moments.append([mean, np.sqrt(w @ (scaled - mean) ** 2)])
        if np.median(sizes) < LOST * len(x):  # the functions have nothing in common
            return np.full((2, U.shape[1]), np.inf)
        return np.std(moments, axis=0)


def _largest(error: Array | None) -> float:
    """Largest surrogate error, infinite as long as it is not known."""
    return np.inf if error is None else float(error.max())


def _beyond(x: Array, radius: float) -> float:
    """Share of points (n, d) farther out than a radius."""
    return float(((x**2).sum(1) > radius**2).mean())


def joined(first: Ensemble, second: Ensemble) -> Ensemble:
    """Members of two evaluated ensembles."""
    return Ensemble(
        *(
            np.concatenate([getattr(first, name), getattr(second, name)])
            for name in ("U", "Z", "loss", "prior")
        )
    )
