"""What is known of a surrogate that grows, and what it may cost."""

from dataclasses import dataclass

import numpy as np

from pymc_ensemble.samplers.certificate import Certificate
from pymc_ensemble.samplers.ensemble import Array
from pymc_ensemble.samplers.examination import Examination, Probes
from pymc_ensemble.samplers.words import number

from .learning import LearningState
from .proof import Proof, Repeats
from .verification import OUTLIERS, few

REFUSALS = 4  # proofs in a row after which the forward map is examined
SETTLED = 8  # rounds after which noise is no longer taken for what a new fit has missed
SHARE_OF_ROUND = 4  # a round has no less than one point for so many evaluations before


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
    growth : int
        Evaluations after which a surrogate that is not certified goes on in epochs.
    epochs : int
        Of those, before the verification.
    rounds : int or None
        Rounds at most, the first one included; None for no limit.
    workers : int
        Evaluations that are made at the same time: a round is to occupy all of them.
    """

    batch: int
    tolerance: float
    evaluations: int
    growth: int
    epochs: int
    rounds: int | None = None
    workers: int = 1

    def size(self, used: int, most: int, beside: int = 0) -> int:
        """Evaluations of the next round: at most so many, and none if they are used up.

        Parameters
        ----------
        used : int
            Evaluations so far.
        most : int
        beside : int, default 0
            What is evaluated in the same round beside them.
        """
        size = whole(max(self.batch, used // SHARE_OF_ROUND) + beside, self.workers) - beside
        return max(0, min(size, most, self.evaluations - used))

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
    doubted : bool
        Whether the forward map gave other outputs at a second call.
    noisy, changed : bool
        Whether it gave others again at a third one, or those of the second.
    found : Examination or None
        What was found out about the forward map, if it was examined.
    ended : str
        Why the learning went on in epochs; empty if it did not.
    first_epoch : int
        Number of the first of these.
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

    @property
    def unexplored(self) -> float:
        """Largest share of particles in unexplored places among those of a temperature."""
        return 1.0 if self.blank is None else float(self.blank.mean(1).max())

    @property
    def known(self) -> bool:
        """Whether no place may hide a part of the posterior, as far as the surrogate can tell."""
        return self.unexplored <= OUTLIERS and few(self.beyond, len(self.particles))

    @property
    def fluctuation(self) -> float:
        """Standard deviation of the log density by roughness, 0 if none is known."""
        return 0.0 if self.found is None else float(np.nan_to_num(self.found.fluctuation))

    @property
    def astray(self) -> bool:
        """Whether functions that the data allow have nothing in common after many rounds."""
        return self.epochs >= SETTLED and not np.isfinite(self.largest_error)

    @property
    def hopeless(self) -> str:
        """Why there will be no certificate, whatever is evaluated; empty if there may be one."""
        if self.noisy:
            return "the forward map gives other outputs at each call"
        if self.fluctuation > self.budget.tolerance:
            return f"the log density fluctuates by {number(self.fluctuation, '.2g')}"
        if self.lost and self.refused >= REFUSALS:
            return f"{self.lost} evaluations have failed where the posterior would be"
        if self.used >= self.budget.growth or self.astray:
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
