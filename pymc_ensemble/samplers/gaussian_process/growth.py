"""Learning a surrogate from few evaluations, until new ones certify it.

A round has ten points or some more. Once the surrogate may be good enough, a round is a proof: new
draws of its posterior are evaluated, and their log weights decide. Before that, points are chosen
as in other epochs. Half of them are in places where the surrogate does not exclude the posterior.

In some cases no certificate can be expected: the map is rough or noisy, failures cut the posterior
off, or many evaluations had no success. Then the learning goes on in epochs, with all evaluations.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from pymc_ensemble.samplers.ensemble import Array, Ensemble, Evaluations, Info
from pymc_ensemble.samplers.examination import Probes
from pymc_ensemble.samplers.weights import deep, usual
from pymc_ensemble.samplers.words import percent

from .basis import farthest_points
from .chains import Chains, Ladder
from .epochs import Epochs
from .fitting import Fitting
from .growing_state import REFUSALS, SETTLED, Budget, GrowingState
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
from .verification import OUTLIERS, UNSURE

NOISY = 1.0  # noise of the loss above which the map is examined, as after failed proofs
CLOSE = 0.2  # scale of the potentials of points that a fit of a smooth map sees


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

    @cached_property
    def in_epochs(self) -> Epochs:
        """Learning that goes on if no certificate can be expected."""
        return Epochs(self.problem, self.forward)

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
            First evaluations, also those that have failed.
        particles : ndarray of shape (J, d)
            First positions of the particles.
        seed : int
        budget : Budget
        used : int
            Number of the first evaluations.
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
            noisy=bool(getattr(self.problem, "stochastic", False)),
        )
        return self._learn(state, rng)

    def ask(self, state: Any, rng: np.random.Generator) -> tuple[Array, Epoch]:
        """Points of the next round, shape (n, d), and what `tell` needs."""
        if state.points is None:
            return self.in_epochs.ask(state, rng)
        return state.points.copy(), Epoch(state.points, int(rng.integers(2**63)), state)

    def tell(
        self, state: LearningState, pending: Epoch, evaluations: Evaluations
    ) -> tuple[LearningState, Info]:
        """State after the round, and an account of it."""
        assert isinstance(pending.origin, GrowingState)
        if pending.origin.points is None:
            return self._tell_epoch(pending, evaluations)
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
        rng = np.random.default_rng(pending.seed)
        if judged.ended:
            learned = self._looked_again(judged, rng)
            return learned.bound(None), Info.of(evaluations, "burn-in", self.account(learned))
        learned = self._looked(self._fitted(judged, rng), rng)
        if self._certified(learned, before):
            # draws come from the surrogate with the proof; the next one only agrees with it
            learned = replace(
                learned,
                posterior=before.posterior,
                region=before.region,
                radius=before.radius,
                ladder=before.ladder,
                ensemble=before.ensemble,
                surrogate_error=before.surrogate_error,
                burned_in=True,
                converged=True,
            )
        else:
            learned = self._planned(learned, rng)
        return learned.bound(None), Info.of(evaluations, "burn-in", self.account(learned))

    # -- parts ----------------------------------------------------------------------------------

    def _tell_epoch(self, pending: Epoch, evaluations: Evaluations) -> tuple[GrowingState, Info]:
        """State after an epoch, if no certificate could be expected."""
        before = pending.origin
        assert isinstance(before, GrowingState)
        learned, info = self.in_epochs.tell(before, pending, evaluations)
        assert isinstance(learned, GrowingState)
        learned = replace(learned, used=before.used + len(pending.points))
        if before.verifying:
            certificate = self.in_epochs.certificate(before, learned, evaluations)
            learned = replace(learned, certificate=certificate)
        budget, J = before.budget, len(before.particles)
        rng = np.random.default_rng([learned.seed, 1])
        learned = self._looking(learned.bound(self.problem), rng).bound(None)
        beside, rounds = (0, 0) if learned.points is None else (len(learned.points), 1)
        over = budget.spent(learned.used + beside + J - 1, learned.epochs + rounds)
        return replace(learned, burned_in=learned.burned_in or over), info

    def _looking(self, state: GrowingState, rng: np.random.Generator) -> GrowingState:
        """State that examines the map before the first verification that may pass.

        Only now the particles follow the posterior. Where an earlier examination was made, a steep
        map may have looked rough. What a fit takes for noise may be what it has missed.
        """
        may_pass = state.verifying and state.largest_error < UNSURE
        if not may_pass or state.looked or state.burned_in or state.smooth:
            return state
        return replace(self._probed(state, rng, by_mode=True), looked=True)

    def _looked_again(self, state: GrowingState, rng: np.random.Generator) -> GrowingState:
        """State after an examination between epochs."""
        state = replace(state, probes=None, points=None)
        return self._growing_on(state, rng) if self._may_grow(state) else state

    def _may_grow(self, state: GrowingState) -> bool:
        """Whether the surrogate should leave the epochs, once, because the map is smooth."""
        return state.smooth and not (state.grown or state.noisy or state.burned_in)

    def _growing_on(self, state: GrowingState, rng: np.random.Generator) -> GrowingState:
        """State that has left the epochs."""
        state = replace(
            state,
            ended="",
            grown=True,
            verifying=False,
            verification=None,
            certificate=None,
            refused=0,
        )
        return self._learn(state, rng)

    def _judged(self, state: GrowingState, new: Ensemble, evaluations: Evaluations) -> GrowingState:
        """State with the judgement of the evaluations about the surrogate before them."""
        if state.probes is not None:
            return replace(state, found=state.probes.judge(self.problem, evaluations))
        if state.repeats is None:
            return state
        tolerance, n = state.budget.tolerance, len(state.repeats.points)
        again, fresh = new[np.arange(n)], new[np.arange(n, len(new))]
        other = state.repeats.contradicted(again, tolerance)
        if state.proof is None:
            return replace(state, noisy=other, changed=not other)
        # an evaluation that fails now but did not before has failed by chance
        certificate = state.proof.judge(state.fit.posterior, fresh, tolerance)
        return replace(
            state,
            certificate=certificate,
            doubted=other,
            noisy=bool(not again.ok.all()),
            repeats=state.repeats.renewed(again) if other else None,
            refused=0 if certificate.certified and not state.lost else state.refused + 1,
        )

    def _certified(self, learned: GrowingState, before: GrowingState) -> bool:
        """Whether the last round has proved the surrogate, and the next one agrees with it."""
        certificate = learned.certificate
        if before.proof is None or certificate is None or not certificate.certified:
            return False
        sure = learned.ready and learned.known
        if learned.doubted or learned.lost or before.lost or not sure:
            return False
        after = learned.bound(self.problem).fit.posterior
        # two laws, each within the tolerance of the posterior
        tolerance = 2 * before.budget.tolerance
        return before.proof.agrees(before.fit.posterior, after, learned.particles, tolerance)

    def _learn(self, state: Any, rng: np.random.Generator) -> Any:
        """Fit the surrogate, move the particles on it, and choose where to evaluate next."""
        return self._planned(self._looked(self._fitted(state, rng), rng), rng).bound(None)

    def _looked(self, state: GrowingState, rng: np.random.Generator) -> GrowingState:
        """State with the places where the posterior may be hidden or cut off."""
        blank = unexplored(state.fit.posterior, state.ladder, state.fluctuation, rng)
        return replace(state, blank=blank, lost=self._lost(state))

    def _planned(self, state: GrowingState, rng: np.random.Generator) -> GrowingState:
        """Choose the points of the next round: for a proof, an examination, or to learn."""
        again = state.repeats if state.doubted and not (state.noisy or state.changed) else None
        state = replace(state, points=None, proof=None, repeats=None, probes=None)
        left, most = self._left(state), len(state.particles)
        if state.budget.spent(state.used, state.epochs) or state.changed:
            return replace(state, burned_in=True)
        if again is not None and len(again.points) <= left:
            return replace(state, repeats=again, points=again.points)
        if self._examines(state):
            probed = self._probed(state, rng, by_mode=False)
            if probed.probes is not None:
                return probed
        if state.hopeless:
            return self._going_on(state, rng)
        posterior = state.fit.posterior
        repeats = Repeats.of(state.archive, self._likely(state), posterior)
        size = state.budget.size(state.used, most, len(repeats.points))
        room = size + len(repeats.points) <= left
        if state.ready and state.known and room:
            assert state.region is not None
            chains = Chains(posterior, WIDTHS**2, state.region)
            proof, ladder = Proof.of(chains, state.ladder, MOVES, size, rng)
            points = np.concatenate([repeats.points, proof.points])
            return replace(
                state, proof=proof, repeats=repeats, ladder=ladder, points=points, level=0
            )
        size = state.budget.size(state.used, most)
        level = self._best_level(state, size)
        chosen = rng.choice(len(state.particles), size, replace=False)
        points = state.ladder.particles[level][chosen]
        places = state.ladder.particles[state.blank]
        if state.exponent == 1 and len(places):  # half of the round goes there
            x = posterior.whitening.coordinates(places)
            half = places[farthest_points(x, min(size // 2, len(places)))]
            points = np.concatenate([half, points[len(half) :]])
        return replace(state, level=level, points=points)

    def _going_on(self, state: GrowingState, rng: np.random.Generator) -> GrowingState:
        """State that goes on in epochs, if the budget has room for an epoch and a verification.

        The earlier evaluations count as epochs. The surrogate is fitted anew, and the loss is
        tempered again, because the surrogate of the growth may be wrong.
        """
        budget, J = state.budget, len(state.particles)
        epochs, left = -(-state.used // J), self._left(state) // J
        if budget.rounds is not None:
            left = min(left, budget.rounds - state.epochs)
            budget = replace(budget, rounds=budget.rounds - state.epochs + epochs)
        if left < 2:
            return replace(state, burned_in=True)
        state = replace(
            state,
            ended=state.hopeless,
            budget=budget,
            last_epoch=min(budget.epochs, epochs + left - 1),
            epochs=epochs,
            first_epoch=epochs,
            posterior=None,
            exponent=0.0,
            crowded=0,
            level=0,
            refused=0,
        )
        learned = self.in_epochs._learn(state, rng)
        return self._looking(learned.bound(self.problem), rng)

    def _left(self, state: GrowingState) -> int:
        return state.budget.evaluations - state.used

    def _examines(self, state: GrowingState) -> bool:
        """Whether it is time to examine if the forward map fluctuates."""
        if state.found is not None or state.epochs < SETTLED or state.noisy:
            return False
        doubtful = state.refused >= REFUSALS or state.fit.noise() > NOISY
        return state.slow or (doubtful and state.exponent == 1)

    def _probed(self, state: GrowingState, rng: np.random.Generator, by_mode: bool) -> GrowingState:
        """State that examines the map next, if the budget has room for it."""
        probes = Probes.of(state.archive[self._likely(state)], rng, by_mode=by_mode)
        if len(probes.points) > self._left(state):
            return state
        return replace(state, probes=probes, points=probes.points)

    def _likely(self, state: GrowingState) -> Array:
        """Evaluations that the surrogate takes for draws of the posterior, the oldest first."""
        archive, d = state.archive, self.problem.dimension
        potential = state.fit.loss(archive.U) + archive.prior
        n = int((potential < potential.min() + deep(d)).sum())
        return np.sort(np.argsort(potential)[: max(n, d + 2)])

    def _lost(self, state: GrowingState) -> int:
        """Evaluations that have failed in places as likely as those of the particles."""
        posterior = state.fit.posterior
        known, failed = (
            posterior.potential(posterior.whitening.coordinates(U))[0]
            for U in (state.particles, state.failed)
        )
        return int((failed < usual(known)).sum())  # eq. (G16)

    def _fitting(self, state: LearningState) -> Fitting:
        assert isinstance(state, GrowingState)
        return Fitting(self.problem, self.forward, CLOSE)

    def _late(self, state: LearningState) -> bool:
        assert isinstance(state, GrowingState)
        return state.used > state.budget.evaluations / 2

    def account(self, state: LearningState) -> str:
        """One line on the state of the learning."""
        assert isinstance(state, GrowingState)
        parts = [super().account(state)]
        if state.unexplored > OUTLIERS:
            parts.append(f"{percent(state.unexplored)} of wide particles where nothing is known")
        return ", ".join([*parts, state.verdict])
