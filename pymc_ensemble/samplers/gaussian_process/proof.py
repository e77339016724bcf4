"""Proofs: rounds of evaluations that test a surrogate."""

from dataclasses import dataclass

import numpy as np

from pymc_ensemble.samplers.certificate import Certificate, disagreement
from pymc_ensemble.samplers.ensemble import REPEATABLE, Array, Ensemble
from pymc_ensemble.samplers.weights import normalized_weights, usual

from .chains import Chains, Ladder
from .posterior import SurrogatePosterior
from .regression import Function
from .verification import ERROR_DRAWS

WIDER = 1  # temperature of the wider law among those of the ladder
WIDE_SHARE = 6  # one point in so many comes from the wider law
OUTERMOST = 1  # points at the outermost particles
REPEATED = 3  # points that are evaluated a second time
NUDGE = 1e-9  # in posterior sd: repeated points are moved, so that no memory knows them
UNKNOWN = 2.0  # the lowest of twenty functions so far below the mean: the loss has an sd of one


def unexplored(
    posterior: SurrogatePosterior, ladder: Ladder, fluctuation: float, rng: np.random.Generator
) -> Array:
    """Particles where the surrogate does not exclude a posterior density of the usual size.

    Parameters
    ----------
    posterior : SurrogatePosterior
    ladder : Ladder
    fluctuation : float
        Standard deviation of the log density by roughness or noise.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of bool, shape (L, J)
        True if a function that the data allow is as low there as at particles of the posterior, and
        well below the mean function.
    """
    L, J, d = ladder.particles.shape
    x = posterior.whitening.coordinates(ladder.particles).reshape(L * J, d)
    potential, lowest = posterior.potential(x)[0], np.full(L * J, np.inf)
    prior = posterior.prior(x)[0]
    functions = posterior.process.draw(ERROR_DRAWS, rng)
    for kernel, basis in zip(functions.kernel, functions.basis, strict=True):
        np.minimum(lowest, posterior.loss(x, Function(kernel, basis)) + prior, out=lowest)
    unknown = potential - lowest > UNKNOWN * max(1.0, fluctuation)
    return (unknown & (lowest < usual(potential[:J]))).reshape(L, J)  # eq. (G14)


@dataclass(frozen=True)
class Repeats:
    """Repeats of earlier evaluations, to test whether the forward map is deterministic.

    Attributes
    ----------
    loss : ndarray of shape (n,)
        Losses of the earlier evaluations.
    points : ndarray of shape (n, d)
        Points of the repeats.
    shift : ndarray of shape (d,)
        Difference of these points from the earlier ones.
    """

    loss: Array
    points: Array
    shift: Array

    @classmethod
    def of(cls, archive: Ensemble, likely: Array, posterior: SurrogatePosterior) -> "Repeats":
        """The first evaluation, and the first ones of the posterior, hardly moved.

        Parameters
        ----------
        archive : Ensemble
            Evaluations in their order. The oldest are most likely to be out of date.
        likely : ndarray of int
            Indices of those that the surrogate takes for draws of the posterior, in order.
        posterior : SurrogatePosterior
            Its standard deviations are the unit of the shift.
        """
        chosen = archive[np.concatenate([[0], likely[likely > 0][: REPEATED - 1]])]
        shift = NUDGE * posterior.whitening.root.sum(1)
        return cls(chosen.loss, chosen.U + shift, shift)

    def renewed(self, evaluated: Ensemble) -> "Repeats":
        """The points a third time, moved as far again, to compare with the second values."""
        return Repeats(evaluated.loss, self.points + self.shift, self.shift)

    def contradicted(self, evaluated: Ensemble, tolerance: float) -> bool:
        """Whether losses differ by more than a tolerance, or some evaluation has failed now."""
        with np.errstate(invalid="ignore"):
            # eq. (G15)
            same = np.abs(evaluated.loss - self.loss) <= tolerance + REPEATABLE * np.abs(self.loss)
        return not same.all()


@dataclass(frozen=True)
class Proof:
    """Points whose evaluations are compared with the predictions of a surrogate.

    Attributes
    ----------
    particles : ndarray of shape (J, d)
        Draws of the surrogate's posterior.
    wide, outer, own : ndarray of shape (m, d)
        Points to evaluate: draws of the wider law, the outermost particles, and other draws.
    reach : ndarray of shape (m,)
        Density of the posterior at the wide points, relative to that of the wider law.
    """

    particles: Array
    wide: Array
    outer: Array
    own: Array
    reach: Array

    @classmethod
    def of(
        cls, chains: Chains, ladder: Ladder, moves: int, size: int, rng: np.random.Generator
    ) -> tuple["Proof", Ladder]:
        """Proof with `size` points, and the ladder after some moves on the mean surrogate.

        Parameters
        ----------
        chains : Chains
            Chains on the mean function, with the temperatures of the ladder.
        ladder : Ladder
        moves : int
            Moves after which the particles are draws of the mean surrogate.
        size : int
            Number of points.
        rng : numpy.random.Generator
        """
        ladder, _ = chains.run(ladder, moves, rng)
        posterior, (cold, hot) = chains.posterior, ladder.particles[[0, WIDER]]
        size = min(size, len(cold))
        x = posterior.whitening.coordinates(cold)
        order = np.argsort(-((x - x.mean(0)) ** 2).sum(1))
        outer, others = order[:OUTERMOST], order[OUTERMOST:]
        n_wide = size // WIDE_SHARE
        own = rng.choice(others, size - n_wide - OUTERMOST, replace=False)
        # density of the posterior over that of the wider law; its mean over the wider law is one
        potential, _ = posterior.potential(posterior.whitening.coordinates(hot))
        share = 1 - chains.temperatures[0] / chains.temperatures[WIDER]
        reach, _ = normalized_weights(-share * np.nan_to_num(potential, nan=np.inf))
        wide = rng.choice(len(hot), n_wide, replace=False)
        proof = cls(cold, hot[wide], cold[outer], cold[own], reach[wide] * len(hot))
        return proof, ladder

    @property
    def points(self) -> Array:
        """All points, last those that follow the posterior."""
        return np.concatenate([self.wide, self.outer, self.own])

    def judge(
        self, posterior: SurrogatePosterior, evaluated: Ensemble, tolerance: float
    ) -> Certificate:
        """Certificate of the surrogate, from evaluations of the `points`."""
        x = posterior.whitening.coordinates(evaluated.U)
        with np.errstate(invalid="ignore"):
            log_weights = posterior.loss(x) - evaluated.loss
        n_wide, n_outer = len(self.wide), len(self.outer)
        wide, outer, own = np.split(log_weights, [n_wide, n_wide + n_outer])
        return Certificate.of(own, tolerance, wide, self.reach, outer)

    def agrees(
        self,
        before: SurrogatePosterior,
        after: SurrogatePosterior,
        particles: Array,
        tolerance: float,
    ) -> bool:
        """Whether the surrogate with the proof agrees with the one after it.

        Parameters
        ----------
        before, after : SurrogatePosterior
        particles : ndarray of shape (J, d)
            Particles of the surrogate after the proof.
        tolerance : float
        """

        def change(U: Array) -> Array:
            """Log density of the surrogate after, relative to that before."""
            losses = [p.loss(p.whitening.coordinates(U)) for p in (before, after)]
            return losses[0] - losses[1]

        there = disagreement(self.particles, change(self.particles))
        back = disagreement(particles, -change(particles))
        return max(there, back) <= tolerance
