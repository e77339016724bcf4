"""Learning a surrogate from few evaluations, until fresh ones certify it.

A round has ten points or some more. Once the surrogate may be good enough it is proved: draws of
its posterior that it has not seen are evaluated, and their log weights decide. Before, points are
chosen as in other epochs, and half of them in places where the posterior may be, for all that is
known.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from pymc_ensemble.samplers.certificate import Certificate
from pymc_ensemble.samplers.ensemble import Array, Ensemble, Evaluations, Info
from pymc_ensemble.samplers.examination import Examination, Probes
from pymc_ensemble.samplers.weights import deep

from .basis import farthest_points
from .chains import Chains, Ladder
from .fitting import Fitting
from .learning import (
    MOVES,
    WIDTHS,
    Epoch,
    Learning,
    LearningState,
    first_particles,
    remembered,
)
from .proof import Proof, Repeats, unexplored

READY = 0.25  # surrogate error in posterior sd from which on rounds are proofs
REFUSALS = 4  # proofs in a row after which the forward map is examined
NOISY = 1.0  # noise of the loss with which the same is done
SETTLED = 8  # rounds after which noise is no longer taken for what a new fit has missed
BEYOND = 0.03  # share of particles beyond all points of the fit up to which a surrogate is proved
BLANK = 0.02  # share of unexplored particles of a temperature up to which the same is done
OVERSTATED = 2.0  # by so much the surrogate error of a rough map exceeds the real one
SHARE_OF_ROUND = 4  # a round has no less than one point for so many evaluations before
CLOSE = 0.2  # scale of the potentials of points that a fit of a smooth map sees
USUAL = 0.95  # quantile of the potential of particles: what is lower is a likely place


@dataclass(frozen=True)
class Budget:
    """What the learning may cost, and how good it has to be.

    Attributes
    ----------
    batch : int
        Evaluations of a round at least.
    tolerance : float
        Of the certificate.
    evaluations : int
        Evaluations at most, the first ones included.
    rounds : int or None
        Rounds at most, the first one included; None for no limit.
    """

    batch: int
    tolerance: float
    evaluations: int
    rounds: int | None = None

    def size(self, used: int, most: int) -> int:
        """Evaluations of the next round: at most so many, and none if they are used up."""
        return max(0, min(max(self.batch, used // SHARE_OF_ROUND), most, self.evaluations - used))

    def spent(self, used: int, rounds: int) -> bool:
        """Whether there is nothing left for another round."""
        return used >= self.evaluations or (self.rounds is not None and rounds >= self.rounds)


@dataclass(frozen=True, kw_only=True)
class GrowingState(LearningState):
    """State of the learning; `epochs` counts its rounds, the first evaluations included.

    Attributes
    ----------
    budget : Budget
    used : int
        Evaluations so far.
    blank : ndarray of bool, shape (L, J), or None
        Particles in unexplored places.
    lost : int
        Evaluations that have failed where the surrogate says that the posterior is.
    points : ndarray of shape (n, d) or None
        What is evaluated next.
    proof : Proof or None
        The same, if it is a proof.
    repeats : Repeats or None
        What is evaluated again beside it, before the other points.
    probes : Probes or None
        What is evaluated next, if the forward map is examined.
    certificate : Certificate or None
        Of the last proof.
    refused : int
        Proofs in a row that have failed.
    changed : bool
        Whether the forward map gave other outputs at a second call.
    found : Examination or None
        What was found out about the forward map, if it was examined.
    """

    budget: Budget
    used: int
    blank: Array | None = None
    lost: int = 0
    points: Array | None = None
    proof: Proof | None = None
    repeats: Repeats | None = None
    probes: Probes | None = None
    certificate: Certificate | None = None
    refused: int = 0
    changed: bool = False
    found: Examination | None = None

    @property
    def unexplored(self) -> float:
        """Largest share of particles in unexplored places among those of a temperature."""
        return 1.0 if self.blank is None else float(self.blank.mean(1).max())

    @property
    def known(self) -> bool:
        """Whether no place may hide a part of the posterior, as far as the surrogate can tell."""
        return self.unexplored <= BLANK and self.beyond <= BEYOND

    @property
    def fluctuation(self) -> float:
        """Standard deviation of the log density by roughness, 0 if none is known."""
        return 0.0 if self.found is None else float(np.nan_to_num(self.found.fluctuation))

    @property
    def rough(self) -> bool:
        """Whether fluctuations hide what a proof would tell of a smooth map."""
        return self.fluctuation > self.budget.tolerance

    @property
    def tolerance(self) -> float:
        """Of the certificate."""
        return self.budget.tolerance * (OVERSTATED if self.rough else 1.0)

    @property
    def hopeless(self) -> bool:
        """Whether no certificate will be given, whatever is evaluated."""
        return self.changed or (self.lost > 0 and self.refused >= REFUSALS)

    @property
    def verdict(self) -> str:
        """What is known about the surrogate, in words."""
        if self.changed:
            return (
                "not certified: the forward map gave other outputs when it was called again, so "
                "that earlier evaluations say nothing"
            )
        if self.lost:
            return (
                f"not certified: {self.lost} evaluations have failed where the posterior would be, "
                "so that it may be cut off"
            )
        if self.certificate is None:
            return "not certified: it came to no proof"
        if self.certificate.certified and self.burned_in and not self.converged:
            return "not certified: the next surrogate differs from the one that was proved"
        return str(self.certificate)


@dataclass(frozen=True)
class Growth(Learning):
    """Learn a surrogate of the forward outputs or of the loss until it is certified.

    Parameters
    ----------
    problem : InverseProblem
    forward : bool
        Whether the surrogate predicts the outputs, or the loss.
    """

    sure: ClassVar[float] = 10.0

    def begin(
        self,
        ensemble: Ensemble,
        particles: Array,
        seed: int,
        budget: Budget,
        used: int,
        archive: Ensemble | None = None,
    ) -> GrowingState:
        """State for first evaluations, and those that were made before.

        Parameters
        ----------
        ensemble : Ensemble
            First evaluations, with those that have failed.
        particles : ndarray of shape (J, d)
            Where the particles begin.
        seed : int
        budget : Budget
        used : int
            Evaluations that the first ones have taken.
        archive : Ensemble, optional
            Evaluations that were made before.
        """
        good, failed = ensemble[ensemble.ok], ensemble.U[~ensemble.ok]
        rng, J = np.random.default_rng(seed), len(particles)
        if archive is not None:
            good, failed = remembered(archive, good, failed)
            particles = first_particles(good, J, min(J, len(good)), rng)
        state = GrowingState(
            ensemble=good,
            last_epoch=0,
            seed=seed,
            highest_prior=self._highest_prior(particles),
            archive=good,
            failed=failed,
            ladder=Ladder.of(particles, len(WIDTHS)),
            epochs=1,
            budget=budget,
            used=used,
        )
        return self._learn(state, rng)

    def ask(self, state: Any, rng: np.random.Generator) -> tuple[Array, Epoch]:
        """Points of the next round, shape (n, d), and what `tell` needs."""
        return state.points.copy(), Epoch(state.points, int(rng.integers(2**63)), state)

    def tell(
        self, state: LearningState, pending: Epoch, evaluations: Evaluations
    ) -> tuple[LearningState, Info]:
        """State after the round, and an account of it."""
        assert isinstance(pending.origin, GrowingState)
        before = pending.origin.bound(self.problem)
        new = Ensemble.evaluated(self.problem, pending.points, evaluations)
        judged = self._judged(before, new, evaluations)
        judged = replace(
            judged,
            seed=pending.seed,
            used=judged.used + len(new),
            archive=Ensemble.joined(judged.archive, new[new.ok]),
            failed=np.concatenate([judged.failed, new.U[~new.ok]]),
            epochs=judged.epochs + 1,
        )
        learned = self._learn(judged, np.random.default_rng(pending.seed))
        if self._certified(learned, before):
            # draws come from the surrogate that was proved; the next one has only agreed
            learned = replace(
                learned,
                posterior=before.bound(None).posterior,
                region=before.region,
                radius=before.radius,
                ladder=before.ladder,
                ensemble=before.ensemble,
                surrogate_error=before.surrogate_error,
                burned_in=True,
                converged=True,
            )
        return learned, Info.of(evaluations, "burn-in", self.account(learned))

    # -- parts ----------------------------------------------------------------------------------

    def _judged(self, state: GrowingState, new: Ensemble, evaluations: Evaluations) -> GrowingState:
        """State that knows what the evaluations say about the surrogate before them."""
        if state.probes is not None:
            return replace(state, found=state.probes.judge(self.problem, evaluations))
        if state.proof is None or state.repeats is None:
            return state
        n = len(state.repeats.points)
        again, fresh = new[np.arange(n)], new[np.arange(n, len(new))]
        certificate = state.proof.judge(state.fit.posterior, fresh, state.tolerance)
        if state.rough:
            certificate = certificate.under_noise(state.fluctuation, state.largest_error)
        return replace(
            state,
            certificate=certificate,
            changed=state.changed or state.repeats.contradicted(again, state.budget.tolerance),
            refused=0 if certificate.certified and not state.lost else state.refused + 1,
        )

    def _certified(self, learned: GrowingState, before: GrowingState) -> bool:
        """Whether the last round has proved the surrogate, and the next one agrees with it."""
        certificate = learned.certificate
        if before.proof is None or certificate is None or not certificate.certified:
            return False
        sure = learned.largest_error <= max(READY, before.tolerance)
        if learned.changed or learned.lost or before.lost or not (sure and learned.known):
            return False
        after = learned.bound(self.problem).fit.posterior
        # two laws, each within the tolerance of the posterior
        tolerance = 2 * before.tolerance
        return before.proof.agrees(before.fit.posterior, after, learned.particles, tolerance)

    def _planned(self, state: GrowingState, rng: np.random.Generator) -> GrowingState:
        """Choose the points of the next round: to be proved, to be examined, or to learn."""
        posterior = state.fit.posterior
        blank = unexplored(posterior, state.ladder, state.fluctuation, rng)
        state = replace(state, blank=blank, lost=self._lost(state))
        state = replace(state, points=None, proof=None, repeats=None, probes=None)
        size = state.budget.size(state.used, len(state.particles))
        if state.budget.spent(state.used, state.epochs) or state.hopeless:
            return replace(state, burned_in=True)
        if self._examines(state):
            probes = Probes.of(state.archive[self._likely(state)], rng)
            return replace(state, probes=probes, points=probes.points[: self._left(state)])
        ready = state.tolerance if state.rough else max(READY, state.tolerance)
        repeats = Repeats.of(state.archive, self._likely(state), posterior)
        room = size + len(repeats.points) <= self._left(state)
        if state.largest_error <= ready and state.known and room:
            assert state.region is not None
            chains = Chains(posterior, WIDTHS**2, state.region)
            proof, ladder = Proof.of(chains, state.ladder, MOVES, size, rng)
            points = np.concatenate([repeats.points, proof.points])
            return replace(
                state, proof=proof, repeats=repeats, ladder=ladder, points=points, level=0
            )
        level = self._best_level(state, size)
        chosen = rng.choice(len(state.particles), size, replace=False)
        points = state.ladder.particles[level][chosen]
        places = state.ladder.particles[blank]
        if state.exponent == 1 and len(places):  # half of the round goes there
            x = posterior.whitening.coordinates(places)
            half = places[farthest_points(x, min(size // 2, len(places)))]
            points = np.concatenate([half, points[len(half) :]])
        return replace(state, level=level, points=points)

    def _left(self, state: GrowingState) -> int:
        return state.budget.evaluations - state.used

    def _examines(self, state: GrowingState) -> bool:
        """Whether it is time to find out if the forward map fluctuates."""
        if state.found is not None or state.exponent < 1 or state.epochs < SETTLED:
            return False
        enough = len(Probes.of(state.archive[self._likely(state)], np.random.default_rng(0)).points)
        noisy = state.refused >= REFUSALS or state.fit.noise() > NOISY
        return noisy and enough <= self._left(state)

    def _likely(self, state: GrowingState) -> Array:
        """Evaluations that the surrogate takes for draws of the posterior, the oldest first."""
        archive, d = state.archive, self.problem.dimension
        potential = state.fit.loss(archive.U) + archive.prior
        n = int((potential < potential.min() + deep(d)).sum())
        return np.sort(np.argsort(potential)[: max(n, d + 2)])

    def _lost(self, state: GrowingState) -> int:
        """Evaluations that have failed in places as likely as those of the particles."""
        posterior = state.fit.posterior
        usual, failed = (
            posterior.potential(posterior.whitening.coordinates(U))[0]
            for U in (state.particles, state.failed)
        )
        return int((failed < np.quantile(usual, USUAL)).sum())  # eq. (G16)

    def _fitting(self, state: LearningState) -> Fitting:
        assert isinstance(state, GrowingState)
        return Fitting(self.problem, self.forward, 1.0 if state.rough else CLOSE)

    def _late(self, state: LearningState) -> bool:
        assert isinstance(state, GrowingState)
        return state.used > state.budget.evaluations / 2

    def account(self, state: LearningState) -> str:
        """One line on the state of the learning."""
        assert isinstance(state, GrowingState)
        parts = [super().account(state)]
        if state.unexplored > BLANK:
            parts.append(f"{state.unexplored:.0%} of wide particles where nothing is known")
        return ", ".join([*parts, state.verdict])
