"""State and budget of a growing surrogate."""

from dataclasses import dataclass

import numpy as np

from pymc_ensemble.samplers.certificate import Certificate
from pymc_ensemble.samplers.ensemble import Array
from pymc_ensemble.samplers.examination import Examination, Probes
from pymc_ensemble.samplers.words import number

from .learning import LearningState
from .proof import Proof, Repeats
from .verification import OUTLIERS, UNSURE, few

REFUSALS = 4  # proofs in a row after which the forward map is examined
SETTLED = 8  # before so many rounds, noise may be what a new fit has missed
SHARE_OF_ROUND = 4  # a round has at least one point for so many earlier evaluations


@dataclass(frozen=True)
class Budget:
    """Limits of the cost of the learning, and its tolerance.

    Attributes
    ----------
    batch : int
        Fewest evaluations of a round.
    tolerance : float
        Tolerance of the certificate.
    evaluations : int
        Most evaluations, with the first ones.
    growth : int
        Evaluations after which a surrogate without a certificate goes on in epochs.
    epochs : int
        Number of these epochs before the verification.
    rounds : int or None
        Most rounds, with the first one. None for no limit.
    workers : int
        Evaluations that can run at the same time. A round should occupy all workers.
    """

    batch: int
    tolerance: float
    evaluations: int
    growth: int
    epochs: int
    rounds: int | None = None
    workers: int = 1

    def size(self, used: int, most: int, beside: int = 0) -> int:
        """Evaluations of the next round: at most `most`, and none if the budget is used up.

        Parameters
        ----------
        used : int
            Evaluations so far.
        most : int
            Most evaluations of the round.
        beside : int, default 0
            Further evaluations in the same round.
        """
        size = whole(max(self.batch, used // SHARE_OF_ROUND) + beside, self.workers) - beside
        return max(0, min(size, most, self.evaluations - used))

    def spent(self, used: int, rounds: int) -> bool:
        """Whether the budget has no room for another round."""
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
        Evaluations that have failed where the surrogate has the posterior.
    points : ndarray of shape (n, d) or None
        Points to evaluate next.
    proof : Proof or None
        The proof that these points belong to, if any.
    repeats : Repeats or None
        Points to evaluate again in the same round, before the other points.
    probes : Probes or None
        Points to evaluate next, if the forward map is examined.
    certificate : Certificate or None
        Certificate of the last proof.
    refused : int
        Proofs in a row that have failed.
    doubted : bool
        Whether the forward map gave other outputs at a second call.
    noisy, changed : bool
        Whether a third call gave other outputs again (noisy), or those of the second (changed).
    found : Examination or None
        Result of the examination of the forward map, if there was one.
    ended : str
        Why the learning went on in epochs. Empty if it did not.
    first_epoch : int
        Number of the first of these epochs.
    looked : bool
        Whether the map has been examined in these epochs, where the posterior is.
    grown : bool
        Whether the surrogate of a smooth map has grown on after epochs.
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
    doubted: bool = False
    noisy: bool = False
    changed: bool = False
    found: Examination | None = None
    ended: str = ""
    first_epoch: int = 0
    looked: bool = False
    grown: bool = False

    @property
    def unexplored(self) -> float:
        """Largest share of particles in unexplored places among those of a temperature."""
        return 1.0 if self.blank is None else float(self.blank.mean(1).max())

    @property
    def known(self) -> bool:
        """Whether, by the surrogate, no place may hide a part of the posterior."""
        return self.unexplored <= OUTLIERS and few(self.beyond, len(self.particles))

    @property
    def fluctuation(self) -> float:
        """Standard deviation of the log density by roughness, 0 if none is known."""
        return 0.0 if self.found is None else float(np.nan_to_num(self.found.fluctuation))

    @property
    def smooth(self) -> bool:
        """Whether an examination has found no roughness or noise that would matter."""
        return self.found is not None and self.found.fluctuation <= self.budget.tolerance

    @property
    def ready(self) -> bool:
        """Whether the surrogate error is small enough for a proof."""
        return self.largest_error <= max(UNSURE, self.budget.tolerance)

    @property
    def slow(self) -> bool:
        """Whether a surrogate of a smooth map would usually be certified by now.

        So it is after many evaluations, or if functions that the data allow have nothing in common
        after many rounds.
        """
        astray = self.epochs >= SETTLED and not np.isfinite(self.largest_error)
        return self.used >= self.budget.growth or astray

    @property
    def promising(self) -> bool:
        """Whether a slow surrogate of a smooth map should grow on."""
        if self.used < self.budget.growth and self.exponent < 1:
            return self.smooth
        return self.smooth and self.ready and self.refused < REFUSALS

    @property
    def hopeless(self) -> str:
        """Why no evaluation can give a certificate. Empty if a certificate is possible."""
        if self.noisy:
            return "the forward map gives other outputs at each call"
        if self.fluctuation > self.budget.tolerance:
            return f"the log density fluctuates by {number(self.fluctuation, '.2g')}"
        if self.lost and self.refused >= REFUSALS:
            return f"{self.lost} evaluations have failed where the posterior would be"
        if self.slow and not self.promising:
            return f"{self.used} evaluations were not enough"
        return ""

    @property
    def verdict(self) -> str:
        """What is known about the surrogate, in words."""
        if self.ended:
            return f"not certified: {self.ended}; {self.verification or 'not verified'}"
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


def whole(size: int, workers: int) -> int:
    """Evaluations of a round: as many as asked for, or some more, so that no worker is idle."""
    return -(-size // workers) * workers
