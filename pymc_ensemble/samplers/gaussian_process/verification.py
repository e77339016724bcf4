"""Verification that a surrogate predicts the forward map where the posterior is."""

from dataclasses import dataclass

import numpy as np

from pymc_ensemble.samplers.ensemble import Array
from pymc_ensemble.samplers.weights import normalized_weights
from pymc_ensemble.samplers.words import number, percent

from .posterior import SurrogatePosterior
from .regression import Function

ERROR_DRAWS = 20
LOST = 0.05  # effective share of the particles below which the surrogate error is not known
OUTLIERS = 0.02  # share of particles that may be where the surrogate is wrong
UNSURE = 0.25  # surrogate error, in posterior sd, above which nothing is proved or verified


@dataclass(frozen=True)
class Verification:
    """Comparison of evaluations at the particles with what the surrogate had predicted.

    Attributes
    ----------
    mean, sd : float
        Mean and standard deviation of observed minus predicted loss, without the part of noise.
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
            Most by which noise can raise observed losses. (The fit may take for noise what it has
            missed elsewhere.)
        """
        nugget = max(float(np.median(noise)), 0.1)
        n = len(difference)
        difference = difference - np.clip(difference.mean(), 0.0, offset)
        by_noise = 4 * nugget
        outliers = float((np.abs(difference) > 5 + by_noise).mean())
        mean, sd = float(difference.mean()), float(difference.std())
        passed = (
            abs(mean) < 0.5 + by_noise / np.sqrt(n)  # eq. (G12)
            and sd < 1 + 2 * nugget
            and few(max(outliers, beyond), n)
        )
        return cls(mean, sd, outliers, nugget, beyond, bool(passed))

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "failed"
        return (
            f"verification {verdict}: observed minus predicted loss "
            f"{number(self.mean, '.2g')} +- {number(self.sd, '.2g')}, noise "
            f"{number(self.noise, '.2g')}, outliers {percent(self.outliers)}"
            + (
                f", {percent(self.beyond)} of the particles beyond all evaluations"
                if self.beyond
                else ""
            )
        )


def few(share: float, size: int) -> bool:
    """Whether a share of `size` particles is small enough, without one that may be chance."""
    return share * size <= OUTLIERS * size + 1


def surrogate_error(
    posterior: SurrogatePosterior, particles: Array, rng: np.random.Generator
) -> Array:
    """Standard deviation of posterior means and sd over functions that the data allow.

    Parameters
    ----------
    posterior : SurrogatePosterior
    particles : ndarray of shape (J, d)
        Draws of its mean function's posterior, which are weighted for each function.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of shape (2, d)
        Both in posterior sd; infinite, if the functions have nothing in common.
    """
    x = posterior.whitening.coordinates(particles)
    functions = posterior.process.draw(ERROR_DRAWS, rng)
    mean_loss, scaled = posterior.loss(x), (particles - particles.mean(0)) / particles.std(0)
    moments, sizes = [], []
    for kernel, basis in zip(functions.kernel, functions.basis, strict=True):
        # eq. (G11)
        w, size = normalized_weights(mean_loss - posterior.loss(x, Function(kernel, basis)))
        mean = w @ scaled
        moments.append([mean, np.sqrt(w @ (scaled - mean) ** 2)])
        sizes.append(size)
    if np.median(sizes) < LOST * len(x):
        return np.full((2, particles.shape[1]), np.inf)
    return np.std(moments, axis=0)
