"""When dynamics with small steps have come to rest."""

from dataclasses import dataclass

from .linearization import Anomalies
from .tempering import STANDSTILLS, standstill


@dataclass(frozen=True)
class Settling:
    """Comparison of an ensemble with itself, one relaxation time ago.

    Attributes
    ----------
    elapsed : float
        Time since the reference, in units in which the ensemble relaxes at the rate one.
    reference : Anomalies or None
        Statistics of the ensemble then.
    hits : int
        Consecutive comparisons in which mean and covariance stood still.
    """

    elapsed: float = 0.0
    reference: Anomalies | None = None
    hits: int = 0

    @property
    def done(self) -> bool:
        """Whether the ensemble has come to rest."""
        return self.hits >= STANDSTILLS

    def after(self, anomalies: Anomalies, time: float) -> "Settling":
        """Take note of an ensemble, some time later."""
        elapsed = self.elapsed + time
        if self.reference is None:
            return Settling(0.0, anomalies, 0)
        if elapsed < 1:
            return Settling(elapsed, self.reference, self.hits)
        hit = standstill(self.reference, anomalies)
        return Settling(0.0, anomalies, self.hits + 1 if hit else 0)


UNSETTLED = Settling()
