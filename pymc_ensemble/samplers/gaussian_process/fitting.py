"""The fit of a surrogate: points of the archive, their values, and how much each counts.

A surrogate must be precise where the posterior is. Points close to it have full weight. Farther
out values are bent, and count less. Beyond that, a few guards keep the fit from running away.
"""

from dataclasses import dataclass, replace

import numpy as np

from pymc_ensemble.samplers.ensemble import Array, Ensemble, Problem
from pymc_ensemble.samplers.weights import UNUSUAL, deep

from .basis import Basis, basis_size, farthest_points
from .posterior import NoiseLaw, SurrogatePosterior, WhitenedPrior, Whitening, smallest
from .regression import GaussianProcess
from .targets import Bend, ForwardTarget, PotentialTarget, Target

REACH = 200.0  # potential above that of the particles up to which points enter the fit
FIRST_REACH = 1e4  # the same for draws of the prior, whose potentials have a wide range
NEAR = 50.0  # potential above that of the particles up to which points of the fit have full weight
SMALL = 1e-3  # an exponent, or a share of a standard deviation, that is almost zero
GUARDS = 100  # points beyond the reach that keep the fit from running away


@dataclass(frozen=True)
class Fit:
    """A surrogate posterior, with the exponent and the particles that it was fitted for.

    Attributes
    ----------
    posterior : SurrogatePosterior
    exponent : float
        Inverse temperature of the loss at that time.
    particles : ndarray of shape (J, d)
        Particles of the posterior.
    """

    posterior: SurrogatePosterior
    exponent: float
    particles: Array

    def loss(self, U: Array) -> Array:
        """Smoothed loss at points, shape (n,)."""
        return self.posterior.loss(self.posterior.whitening.coordinates(U))

    def noise(self) -> float:
        """Usual standard deviation of the noise of losses at the particles."""
        x = self.posterior.whitening.coordinates(self.particles)
        return float(np.median(self.posterior.loss_noise(x)))


@dataclass(frozen=True)
class Selection:
    """Points of an archive that enter a fit.

    Attributes
    ----------
    points : Ensemble
        Those near the posterior, and then the guards.
    n_near : int
        Number of points near the posterior. They come first.
    loss : ndarray of shape (n,) or None
        Their smoothed losses, if there has been a fit before.
    """

    points: Ensemble
    n_near: int
    loss: Array | None

    @property
    def near(self) -> Ensemble:
        """Points that are not guards."""
        return self.points[: self.n_near]

    @property
    def near_loss(self) -> Array:
        """Losses of these points: smoothed ones, if there are any."""
        return (self.points.loss if self.loss is None else self.loss)[: self.n_near]

    @classmethod
    def of(
        cls, archive: Ensemble, whitening: Whitening, before: Fit | None, reach: float = REACH
    ) -> "Selection":
        """Select by potential: the smoothed one of the earlier fit, or at first the observed one.

        Observed potentials would prefer lucky noise. At the start that does no harm.
        """
        d, loss = archive.U.shape[1], None
        if before is None:
            potential = archive.potential
            limit = potential.min() + FIRST_REACH
        else:
            loss = before.loss(archive.U)
            potential = before.exponent * loss + archive.prior
            particles = before.posterior.predicted(before.particles, archive.Z.shape[1])
            own = before.exponent * particles.loss + particles.prior
            limit = np.quantile(own, UNUSUAL) + reach
        potential = np.where(np.isnan(potential), np.inf, potential)
        inside, fewest = potential < limit, 10 * (d + 2)
        if inside.sum() < min(fewest, len(archive)):
            inside[np.argsort(potential)[:fewest]] = True
        near, guards = np.flatnonzero(inside), np.flatnonzero(~inside)
        if len(guards) > GUARDS:
            x = whitening.coordinates(archive.U[guards])
            guards = guards[farthest_points(x, GUARDS)]
        index = np.concatenate([near, guards])
        return cls(archive[index], len(near), None if loss is None else loss[index])


@dataclass(frozen=True)
class Fitting:
    """Fit a surrogate posterior to an archive.

    Parameters
    ----------
    problem : InverseProblem
    forward : bool
        Whether the surrogate predicts the outputs, or the loss.
    scale : float, default 1.0
        Factor of the potentials up to which points enter the fit, and have full weight.
    """

    problem: Problem
    forward: bool
    scale: float = 1.0

    def __call__(
        self, archive: Ensemble, particles: Array, before: Fit | None, rng: np.random.Generator
    ) -> tuple[SurrogatePosterior, float]:
        """Surrogate in the coordinates of the particles, and the radius of its points."""
        whitening = Whitening.of(particles)
        chosen = Selection.of(archive, whitening, before, self.scale * REACH)
        target = self._target(chosen, before)
        x, values = whitening.coordinates(chosen.points.U), target.values(chosen.points)
        (law, relative), guards = self._noise(chosen, before), self._guards(chosen, target)
        basis: Basis = "linear"
        if not self.forward and chosen.n_near >= 1.5 * basis_size("quadratic", x.shape[1]):
            basis = "quadratic"

        def process(basis: Basis) -> GaussianProcess:
            return GaussianProcess.fit(
                x,
                values,
                basis,
                rng,
                relative_noise=relative,
                guards=guards,
                warm=None if before is None else before.posterior.process.hyperparameters,
            )

        prior = WhitenedPrior.of(self.problem, whitening)
        posterior = SurrogatePosterior(whitening, prior, target, process(basis), law)
        exponent = 0.0 if before is None else before.exponent
        if basis == "quadratic" and _indefinite(posterior, max(exponent, SMALL)):
            posterior = replace(posterior, process=process("constant"))
        return posterior, float(np.sqrt((x[: chosen.n_near] ** 2).sum(1).max()))

    def _target(self, chosen: Selection, before: Fit | None) -> Target:
        """What the surrogate predicts. Values far beyond those of near points are bent."""
        losses, d = chosen.near_loss, chosen.points.U.shape[1]
        exponent = 0.0 if before is None else before.exponent
        least = smallest(losses)
        middle = float(np.median(losses)) - least
        if self.forward:
            reach = self.scale * REACH
            straight = reach / exponent if exponent > 0 else middle
            straight = max(reach, min(straight, float(losses.max()) - least))
            return ForwardTarget.of(self.problem, chosen.near, Bend(np.sqrt(2 * straight)))
        relevant = deep(d)
        # far out a loss is rarely quadratic, and least of all with few unknowns
        straight = relevant * max(3, d)
        if before is None or exponent == 0:
            return PotentialTarget(least, Bend(max(straight, middle)), max(relevant, middle))
        noise = min(before.noise(), REACH / 10)
        return PotentialTarget(
            least, Bend(straight / exponent + 10 * noise), relevant / exponent + 4 * noise
        )

    def _noise(self, chosen: Selection, before: Fit | None) -> tuple[NoiseLaw | None, Array | None]:
        """Law of the noise of losses, and variances of the noise relative to one another."""
        if before is None or chosen.loss is None:
            return None, None
        if not self.forward:
            d = chosen.points.U.shape[1]
            law = NoiseLaw.of(chosen.near_loss, chosen.near.loss, d)
            return law, law(chosen.loss)
        # far from the posterior the process may be wrong, and its errors there are not noise
        potential = before.exponent * chosen.loss + chosen.points.prior
        excess = potential - np.quantile(potential[: chosen.n_near], UNUSUAL)
        near = self.scale * NEAR
        return None, 1 + (np.clip(excess, 0, 10 * near) / near) ** 4  # eq. (G7)

    def _guards(self, chosen: Selection, target: Target) -> Array:
        """Mask of the points that have little weight, shape (n,)."""
        guards = np.arange(len(chosen.points)) >= chosen.n_near
        if chosen.loss is not None and isinstance(target, PotentialTarget):
            # a logarithm of losses is not quadratic where they are
            bent = chosen.loss - target.reference > target.bend.start
            if (~bent[: chosen.n_near]).sum() >= chosen.points.U.shape[1] + 2:
                guards |= bent
        return guards


def _indefinite(posterior: SurrogatePosterior, exponent: float) -> bool:
    """Whether the quadratic mean and the prior would let particles run away."""
    H = exponent * posterior.process.curvature[0]
    if posterior.prior.quadratic is not None:
        H = H + posterior.prior.quadratic[2]
    return bool(np.linalg.eigvalsh(H)[0] < 0)
