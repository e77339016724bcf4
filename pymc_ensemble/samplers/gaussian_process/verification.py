"""Whether a surrogate predicts the forward map where it matters."""

from dataclasses import dataclass

import numpy as np

from pymc_ensemble.samplers.ensemble import Array

UNSURE = 0.5  # surrogate error with which no verification is passed


@dataclass(frozen=True)
class Verification:
    """Comparison of evaluations at the particles with what the surrogate had predicted.

    Attributes
    ----------
    mean, sd : float
        Mean and standard deviation of observed minus predicted loss, less what noise explains.
    outliers : float
        Share of particles with a difference beyond all noise.
    noise : float
        Standard deviation of the noise of the loss.
    beyond : float
        Share of particles farther out than all points of the fit: the posterior may go on there.
    passed : bool
    """

    mean: float
    sd: float
    outliers: float
    noise: float
    beyond: float
    passed: bool

    @classmethod
    def of(
        cls, difference: Array, noise: Array, offset: float = 0.0, beyond: float = 0.0
    ) -> "Verification":
        """Judge observed minus predicted losses.

        Parameters
        ----------
        difference, noise : ndarray of shape (n,)
            Differences, and the standard deviations of the noise at these particles.
        offset : float, default 0.0
            By how much noise raises observed losses at most: the fit may take for noise what it
            has missed elsewhere.
        """
        nugget = max(float(np.median(noise)), 0.1)
        n = len(difference)
        difference = difference - np.clip(difference.mean(), 0.0, offset)
        outliers = float((np.abs(difference) > 5 + 4 * nugget).mean())
        mean, sd = float(difference.mean()), float(difference.std())
        passed = (
            abs(mean) < 0.5 + 4 * nugget / np.sqrt(n)
            and sd < 1 + 2 * nugget
            and max(outliers, beyond) * n <= 0.02 * n + 1
        )
        return cls(mean, sd, outliers, nugget, beyond, bool(passed))

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "failed"
        return (
            f"verification {verdict}: observed minus predicted loss {self.mean:.2g} +- "
            f"{self.sd:.2g}, noise {self.noise:.2g}, outliers {self.outliers:.0%}"
            + (
                f", {self.beyond:.0%} of the particles beyond all evaluations"
                if self.beyond
                else ""
            )
        )
