"""Draws and densities of an ensemble of networks, in the coordinates of the model."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import walking
from .diffusion import KernelDensity

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

MOST_TRIES = 50  # rounds for draws inside the prior: a guard, as 2% inside are then enough
KERNELS = 1000  # number of draws for a kernel density; their distances fit into 8 MB
WIDER = (
    2.0  # kernels than those that fit: with these, tails of weights were too heavy in 2 runs of 4
)
FEW_TRIES = 3  # rounds in a test, which then keeps draws outside the prior
MOST_CANDIDATES = 10_000  # prior draws as possible starts of walkers: a cap of cost


@dataclass(frozen=True)
class Drawn:
    """Draws given one data set.

    Attributes
    ----------
    U : ndarray of shape (chains, draws, d)
        Draws in unconstrained coordinates.
    lp : ndarray of shape (chains, draws)
        Log density of the estimate; for a ratio up to a constant; NaN without a density.
    sweep, particle : ndarray of int, shape (draws,)
    outside : float
        Share of the draws that lay outside the prior.
    acceptance : float
        Mean acceptance of moves; NaN for independent draws.
    """

    U: FloatArray
    lp: FloatArray
    sweep: IntArray
    particle: IntArray
    outside: float
    acceptance: float


@dataclass(frozen=True)
class Estimate:
    """Posterior from networks, in unconstrained coordinates.

    Attributes
    ----------
    sizes : Architecture
    networks : Module
        Networks with a leading axis for the members.
    center, scale : ndarray of shape (d,)
        Mean and standard deviation of the prior, from the simulations.
    candidates : ndarray of shape (n, d)
        Draws of the prior.
    floor : float
        Smallest log prior density of the simulations: the estimate has learned nothing below it.
    log_prior : callable
        Log prior density of points (n, d).
    """

    sizes: Any
    networks: Any = field(repr=False)
    center: FloatArray
    scale: FloatArray
    candidates: FloatArray = field(repr=False)
    floor: float
    log_prior: Callable[[FloatArray], FloatArray] = field(repr=False)

    @property
    def is_ratio(self) -> bool:
        """Whether networks give the ratio of the posterior to the prior."""
        return self.sizes.kind == "ratio"

    @property
    def has_density(self) -> bool:
        """Whether networks give a density. A map from noise to draws does not."""
        return self.sizes.kind != "diffusion"

    def log_density(self, U: FloatArray, X: FloatArray) -> FloatArray:
        """Log densities (D, n) of points (D, n, d) given standardized data (D, K).

        The density from a ratio is not normalized. Without a density the values are NaN.
        """
        if not self.has_density:
            return np.full(U.shape[:-1], np.nan)
        from .estimators import log_densities

        theta = ((U - self.center) / self.scale).astype(np.float32)
        values = np.asarray(log_densities(self.networks, theta, X.astype(np.float32)), dtype=float)
        if not self.is_ratio:
            return values - np.log(self.scale).sum()
        return values + self.log_prior(U.reshape(-1, U.shape[-1])).reshape(values.shape)

    def draw(
        self,
        X: FloatArray,
        draws: int,
        chains: int,
        rng: np.random.Generator,
        strict: bool = True,
    ) -> list[Drawn]:
        """Draws given each row of standardized data, shape (D, K).

        If the estimate lies outside the prior, this raises with `strict`, and otherwise returns the
        draws unchanged.
        """
        if self.is_ratio:
            return self._walked(X, draws, chains, rng)
        U, lp, outside = self._independent(X, draws * chains, rng, strict)
        shape, numbers = (chains, draws), np.arange(draws)
        return [
            Drawn(u.reshape(*shape, -1), one.reshape(shape), 0 * numbers, numbers, share, np.nan)
            for u, one, share in zip(U, lp, outside, strict=True)
        ]

    def propose(self, X: FloatArray, n: int, rng: np.random.Generator) -> Drawn:
        """Draws of one chain given data (1, K), with a density that can be evaluated.

        If the estimate has no density, kernels around its draws replace it.
        """
        [drawn] = self.draw(X, n if self.has_density else KERNELS, 1, rng)
        if self.has_density:
            return drawn
        kernels, numbers = KernelDensity.of(drawn.U[0], WIDER), np.arange(n)
        U = kernels.draw(n, rng)
        lp = kernels.log_density(U)
        return Drawn(U[None], lp[None], 0 * numbers, numbers, drawn.outside, np.nan)

    def _independent(
        self, X: FloatArray, n: int, rng: np.random.Generator, strict: bool
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Draws (D, n, d) inside the prior, their densities, and the shares outside it."""
        import jax

        from .estimators import draws

        inputs, d = X.astype(np.float32), len(self.center)
        U, found = np.empty((len(X), n, d)), np.zeros(len(X), int)
        tried, rejected = np.zeros(len(X)), np.zeros(len(X))
        for _ in range(MOST_TRIES if strict else FEW_TRIES):
            key = jax.random.key(int(rng.integers(2**31)))
            theta = np.asarray(draws(self.networks, key, inputs, n), dtype=float)
            new = self.center + self.scale * theta
            inside = (self.log_prior(new.reshape(-1, d)) >= self.floor).reshape(new.shape[:2])
            for k in np.flatnonzero(found < n):
                good = new[k, inside[k]][: n - found[k]]
                U[k, found[k] : found[k] + len(good)] = good
                found[k] += len(good)
                tried[k], rejected[k] = tried[k] + n, rejected[k] + (~inside[k]).sum()
            if (found == n).all():
                break
        if not strict:
            for k in np.flatnonzero(found < n):
                U[k, found[k] :] = new[k, found[k] :]
        elif (found < n).any():
            share = float((rejected / tried).max())
            raise RuntimeError(
                f"{share:.1%} of the draws of the estimate lie outside of the prior: it has not "
                "learned from data like these. Check the model and the data, or make more "
                "simulations."
            )
        return U, self.log_density(U, X), rejected / tried

    def _walked(
        self, X: FloatArray, draws: int, chains: int, rng: np.random.Generator
    ) -> list[Drawn]:
        """Sample the prior times the ratio with walkers, for all data sets in parallel."""
        d, D = len(self.center), len(X)
        J = walking.walkers(d)
        sweeps = -(-draws // J)
        ratio = self._log_ratio(self.candidates, X)
        start = walking.start(self.candidates, np.repeat(ratio, chains, axis=0), J, rng)

        def log_density(U: FloatArray) -> FloatArray:
            together = U.reshape(D, -1, d)
            return self.log_density(together, X).reshape(U.shape[:-1])

        walked = walking.walk(log_density, start, sweeps, rng)
        sweep, particle = np.divmod(np.arange(sweeps * J)[:draws], J)
        U = walked.U.reshape(D, chains, sweeps * J, d)[:, :, :draws]
        lp = walked.lp.reshape(D, chains, sweeps * J)[:, :, :draws]
        return [
            Drawn(u, one, sweep, particle, 0.0, walked.acceptance)
            for u, one in zip(U, lp, strict=True)
        ]

    def _log_ratio(self, U: FloatArray, X: FloatArray) -> FloatArray:
        """Log ratios (D, n) at points (n, d)."""
        from .estimators import log_densities

        theta = ((U - self.center) / self.scale).astype(np.float32)
        theta = np.broadcast_to(theta, (len(X), *theta.shape))
        return np.asarray(log_densities(self.networks, theta, X.astype(np.float32)), dtype=float)
