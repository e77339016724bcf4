"""Markov chains on a surrogate, at several temperatures at once. They cost no evaluation.

Cold particles follow the posterior of the surrogate. Hot particles reach farther, and bring cold
ones over barriers. Moves are Langevin steps with a Metropolis test, differential evolution among
the particles of one temperature, and exchanges between neighboring temperatures.
"""

from dataclasses import dataclass

import numpy as np
import scipy  # parts of it are loaded when they are used first

from pymc_ensemble.samplers.ensemble import Array
from pymc_ensemble.samplers.langevin_steps import EULER_STEP, bounded, log_ratio, tuned
from pymc_ensemble.samplers.proposals import differential_evolution

from .posterior import SurrogatePosterior, Whitening
from .regression import Function

DE_SHARE = 0.1  # share of differential evolution among the moves
MODE_JUMP = 0.5  # of its steps lead to other modes: here they cost no evaluation
NEIGHBORS = 5  # no particle goes where all of so many nearest evaluations but one failed


@dataclass(frozen=True)
class Ladder:
    """Particles at several temperatures.

    Attributes
    ----------
    particles : ndarray of shape (L, n, d)
        Particles; the first temperature is one.
    steps : ndarray of shape (L,)
        Langevin steps, in the covariance of the particles of that temperature.
    """

    particles: Array
    steps: Array

    @classmethod
    def of(cls, U: Array, n_levels: int) -> "Ladder":
        """Copies of the particles `U`, shape (n, d), at all temperatures."""
        return cls(np.tile(U, (n_levels, 1, 1)), np.full(n_levels, EULER_STEP))


@dataclass(frozen=True)
class Region:
    """Where a surrogate may be used.

    Attributes
    ----------
    wall : float
        Radius in whitened coordinates. No particle goes farther.
    tree : cKDTree or None
        All evaluated points, if some have failed.
    failed : ndarray of bool
        Which of these points have failed.
    highest_prior : float
        Prior potential above which no particle goes.
    """

    wall: float
    tree: "scipy.spatial.cKDTree | None" = None
    failed: Array | None = None
    highest_prior: float = np.inf

    @classmethod
    def of(
        cls,
        wall: float,
        whitening: Whitening,
        good: Array,
        failed: Array,
        highest_prior: float,
    ) -> "Region":
        """Region within a wall, without places where nearly all evaluations have failed."""
        if len(failed) == 0 or len(good) + len(failed) < NEIGHBORS:
            return cls(wall, None, None, highest_prior)
        points = whitening.coordinates(np.concatenate([good, failed]))
        mask = np.arange(len(points)) >= len(good)
        return cls(wall, scipy.spatial.cKDTree(points), mask, highest_prior)

    def contains(self, x: Array, prior: Array) -> Array:
        """Whether whitened points (n, d) of some prior potential (n,) lie inside, shape (n,)."""
        with np.errstate(over="ignore", invalid="ignore"):
            inside = (np.vecdot(x, x) <= self.wall**2) & (prior <= self.highest_prior)
        if self.tree is not None and self.failed is not None and inside.any():
            _, neighbors = self.tree.query(x[inside], NEIGHBORS)
            inside[inside] = self.failed[neighbors].sum(1) < NEIGHBORS - 1
        return inside


@dataclass(frozen=True)
class Chains:
    """Moves on a surrogate.

    Parameters
    ----------
    posterior : SurrogatePosterior
    temperatures : ndarray of shape (L,)
    region : Region
        Where particles may be.
    exponent : float, default 1.0
        Inverse temperature of the loss alone.
    function : Function, optional
        Functions of the particles. All temperatures have the same ones.
    surest : float, default inf
        Standard deviation of the surrogate's loss above which no particle goes.
    """

    posterior: SurrogatePosterior
    temperatures: Array
    region: Region
    exponent: float = 1.0
    function: Function | None = None
    surest: float = np.inf

    def run(
        self, ladder: Ladder, n_moves: int, rng: np.random.Generator, *, adapt: bool = True
    ) -> tuple[Ladder, Array]:
        """Make a number of moves.

        Parameters
        ----------
        ladder : Ladder
        n_moves : int
        rng : numpy.random.Generator
        adapt : bool, default True
            Whether to adapt the steps.

        Returns
        -------
        ladder : Ladder
        acceptance : ndarray of shape (L,)
            Mean acceptance of the Langevin steps.
        """
        x = self.posterior.whitening.coordinates(ladder.particles)
        L, n, _ = x.shape
        radius = np.sqrt((x**2).sum(2, keepdims=True))
        x = x * np.minimum(1.0, 0.99 * self.region.wall / np.maximum(radius, 1e-300))
        factors = np.stack([covariance_factor(level) for level in x])
        steps, accepted, tried = ladder.steps.copy(), np.zeros(L), 0
        potential, gradient = self._evaluate(x)
        state = _State(x, potential, gradient)
        inverse = 1 / self.temperatures[:, None]
        for _ in range(n_moves):
            if n // 2 > 1 and rng.random() < DE_SHARE:  # a difference needs two others
                self._evolve(state, factors, rng)
            else:
                alpha = self._langevin(state, factors, steps, inverse, rng)
                accepted += alpha
                tried += 1
                if adapt:
                    steps = bounded(tuned(steps, alpha))
            if L > 1:
                self._exchange(state, int(rng.integers(2)), rng)
        particles = self.posterior.whitening.particles(state.x)
        return Ladder(particles, steps), accepted / max(tried, 1)

    def _evaluate(self, x: Array, index: Array | None = None) -> tuple[Array, Array]:
        """Potentials (L, n) and gradients of particles (L, n, d) with the numbers `index`."""
        L, n, d = x.shape
        function = self.function
        if function is not None and index is not None:
            function = function[index]
        flat = x.reshape(L * n, d)
        surest = np.isfinite(self.surest)
        surface = self.posterior.surface(flat, function, self.exponent, with_sd=surest)
        potential, gradient = surface.potential, surface.gradient
        usable = self.region.contains(flat, surface.prior) & ~np.isnan(potential)
        if surface.loss_sd is not None:
            usable &= surface.loss_sd <= self.surest
        potential = np.where(usable, potential, np.inf)
        gradient = np.where(usable[:, None] & np.isfinite(gradient), gradient, 0.0)
        return potential.reshape(L, n), gradient.reshape(L, n, d)

    def _langevin(
        self,
        state: "_State",
        factors: Array,
        steps: Array,
        inverse: Array,
        rng: np.random.Generator,
    ) -> Array:
        """Metropolis-adjusted Langevin step of all particles; mean acceptance (L,)."""
        h = steps[:, None, None]
        force = state.gradient @ factors * inverse[..., None]  # in the frame of the covariance
        noise = rng.standard_normal(state.x.shape)
        move = -h * force + np.sqrt(2 * h) * noise
        proposed = state.x + move @ factors.swapaxes(1, 2)
        potential, gradient = self._evaluate(proposed)
        with np.errstate(invalid="ignore", over="ignore"):
            back = -move + h * (gradient @ factors) * inverse[..., None]
            log_alpha = inverse * (state.potential - potential)
            log_alpha += log_ratio(np.sqrt(2 * h) * noise, back, h[..., 0])
        alpha = np.where(np.isfinite(potential), np.exp(np.minimum(0, log_alpha)), 0.0)
        alpha = np.where(np.isnan(alpha), 0.0, alpha)
        state.update(rng.random(alpha.shape) < alpha, proposed, potential, gradient)
        return alpha.mean(1)

    def _evolve(self, state: "_State", factors: Array, rng: np.random.Generator) -> None:
        """Differential evolution: each half moves along differences of the other, in turn."""
        L, n, _ = state.x.shape
        order = rng.permutation(n)
        halves = order[: n // 2], order[n // 2 :]
        for half, other in (halves, halves[::-1]):
            m = len(half)
            x, partners = state.x[:, half], state.x[:, other]
            proposed = differential_evolution(x, partners, factors, rng, MODE_JUMP)
            potential, gradient = self._evaluate(proposed, half)
            with np.errstate(invalid="ignore", over="ignore"):
                log_alpha = (state.potential[:, half] - potential) / self.temperatures[:, None]
            accepted = np.log(rng.random((L, m))) < log_alpha
            state.update(accepted, proposed, potential, gradient, half)

    def _exchange(self, state: "_State", parity: int, rng: np.random.Generator) -> None:
        """Exchange particles of the same number between neighboring temperatures."""
        L, n = state.potential.shape
        inverse, low = 1 / self.temperatures, np.arange(parity, L - 1, 2)
        with np.errstate(invalid="ignore"):
            excess = state.potential[low] - state.potential[low + 1]
            log_alpha = (inverse[low] - inverse[low + 1])[:, None] * excess  # eq. (G9)
        pair, who = np.nonzero(np.log(rng.random((len(low), n))) < log_alpha)
        cold, hot = (low[pair], who), (low[pair] + 1, who)
        for values in (state.x, state.potential, state.gradient):
            values[cold], values[hot] = values[hot], values[cold]


@dataclass
class _State:
    """Positions, potentials and gradients of all particles."""

    x: Array
    potential: Array
    gradient: Array

    def update(
        self,
        accepted: Array,
        x: Array,
        potential: Array,
        gradient: Array,
        index: Array | None = None,
    ) -> None:
        """Take over the proposals of those that were accepted, (L, m)."""
        level, who = np.nonzero(accepted)
        target = who if index is None else index[who]
        self.x[level, target] = x[level, who]
        self.potential[level, target] = potential[level, who]
        self.gradient[level, target] = gradient[level, who]


def covariance_factor(x: Array) -> Array:
    """Cholesky factor of the covariance of particles (n, d)."""
    d = x.shape[1]
    C = np.cov(x.T, bias=True).reshape(d, d)
    C[np.diag_indices(d)] += 1e-6 * max(np.trace(C) / d, 1e-12)
    return np.linalg.cholesky(C)
