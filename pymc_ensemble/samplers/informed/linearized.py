"""Posterior of linearized outputs: a linear map takes the place of the forward map.

The loss and the prior stay as they are. If the map is far from linear, a correction is added. None
of this costs a forward evaluation. If the loss is quadratic and the prior Gaussian, it is the
learned law itself. Otherwise it is sampled by moves that the law proposes.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pymc_ensemble.samplers import proposals
from pymc_ensemble.samplers.ensemble import Array, Ensemble, Problem

from .curvature import LEAST_INFORMATION, SIZES, Curvature
from .law import InformedLaw
from .reference import GaussianReference

INNER_STEPS = 60  # moves without evaluations that make a proposal
CURVED_STEPS = 300  # the same if outputs are curved, half of them by differences
# Powers of the likelihood in the laws that moves are drawn from, down to the prior. Where outputs
# at the mode are at their limit, as probabilities may be, the law is ten times too narrow.
TAMED = np.array([1.0, 0.1, 0.01, 0.0])


@dataclass(frozen=True)
class LinearizedPosterior:
    """Density of ``exp(-loss(z + A (x - x_0) + c(x)) - prior potential)``.

    Attributes
    ----------
    reference : GaussianReference
    law : InformedLaw
        Gaussian law in reference coordinates.
    origin : ndarray of shape (d,)
        Point x_0 of the linearization, in reference coordinates.
    outputs : ndarray of shape (K,)
        Outputs z there.
    slope : ndarray of shape (K, d)
    gaussian : bool
        Whether it is the law.
    curvature : Curvature or None
        Correction c of the outputs.
    seen : ndarray of shape (2, K), or None
        Least and largest outputs that were evaluated.
    """

    reference: GaussianReference
    law: InformedLaw
    origin: Array
    outputs: Array
    slope: Array
    gaussian: bool
    curvature: Curvature | None = None
    seen: Array | None = None

    @classmethod
    def of(
        cls,
        problem: Problem,
        reference: GaussianReference,
        law: InformedLaw,
        outputs: Array,
        slope: Array,
        step: Array,
    ) -> "LinearizedPosterior":
        """Linearize at the end of the search. The Newton `step` from there centers the law."""
        gaussian = problem.quadratic_loss and problem.gaussian_prior
        centered = InformedLaw(law.center + step, law.factor)
        return cls(reference, centered, law.center, outputs, slope, gaussian)

    def having_seen(self, values: Ensemble) -> "LinearizedPosterior":
        """The same, with outputs of an evaluated ensemble among those that were seen."""
        Z = values.Z[np.isfinite(values.potential)]
        if self.seen is not None:
            Z = np.concatenate([self.seen, Z])
        return replace(self, seen=np.stack([Z.min(0), Z.max(0)])) if len(Z) else self

    def curved(
        self, problem: Problem, x: Array, residuals: Array, acceptance: float
    ) -> "LinearizedPosterior":
        """The posterior with a correction that is learned from residuals of outputs at points `x`.

        The correction depends on the directions along which outputs change, and on the coordinates
        whose prior is not Gaussian.
        """
        law, basis = self.law, self.informed
        units = np.sqrt(problem.curvature(self.outputs[None])[0])
        information = ((basis @ law.factor.T) ** 2).sum(1)
        curvature = Curvature.of(
            basis,
            information,
            single_numbers(problem),
            self.origin,
            x,
            residuals,
            units,
            acceptance,
        )
        return replace(self, gaussian=False, curvature=curvature)

    def predicted(self, x: Array) -> Array:
        """Outputs at `x`, shape (n, d) to (n, K), as far as they are known."""
        outputs: Array = self.outputs + (x - self.origin) @ self.slope.T
        return outputs if self.curvature is None else outputs + self.curvature(x)

    def log_density(self, problem: Problem, x: Array) -> Array:
        """Log density at `x`, shape (n, d) to (n,), normalized as well as the law."""
        if self.gaussian:
            return self.law.log_density(x) - self.reference.log_volume
        # the law and this density agree at its center, or, where outputs along the line leave what
        # the loss allows before, where these were evaluated
        known = np.stack([self.law.center, self.origin])
        potential = self._potential(problem, np.concatenate([known, x]))
        best = potential[:2].argmin()
        top = self.law.log_density(known)[best] - self.reference.log_volume
        return top + potential[best] - potential[2:]

    def _potential(self, problem: Problem, x: Array, power: float = 1.0) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            outputs = self.predicted(x)
            loss = problem.loss(outputs)
            outside = ~np.isfinite(loss)
            if self.seen is not None and outside.any():
                # A map may turn where a line leaves what the loss allows. The density must not
                # vanish there: walkers would never go there.
                loss = np.where(outside, 0.0, loss)
                loss[outside] = problem.loss(np.clip(outputs[outside], *self.seen))
            potential = power * loss
            potential = potential + problem.prior_potential(self.reference.points(x))
        return np.where(np.isnan(potential), np.inf, potential)

    def propose(
        self,
        problem: Problem,
        x: Array,
        rng: np.random.Generator,
        power: float = 1.0,
        held: Array | None = None,
    ) -> Array:
        """Moves from `x`, shape (n, d), that are reversible for this density.

        The likelihood is raised to a power, and draws of the law are not. Coordinates that are
        `held`, shape (d,), stay where they are, for which moves along differences are not exactly
        reversible any more.

        If this density is the law, the moves are independent draws. Otherwise they are a random
        mixture of preconditioned Crank-Nicolson moves, repeated until little is left of the start.
        Their laws have different powers of the likelihood, as the law at the mode may be far too
        narrow. Two kinds of moves take turns in an order that is the same backwards. In another
        order the whole would not be reversible. Each walker has its own sizes and powers.
        """
        if self.gaussian:
            return self.law.draw(len(x), rng)
        curvature = self.curvature
        steps = INNER_STEPS if curvature is None else CURVED_STEPS
        if held is not None and held.any():
            # without what is held the law is a product, and its moves of the rest are reversible
            given = InformedLaw(self.law.center, np.where(held, 0.0, self.law.factor))
            return replace(self, law=given)._moved(problem, x, rng, power, steps, held)
        return self._moved(problem, x, rng, power, steps, np.zeros(x.shape[1], dtype=bool))

    def _moved(
        self,
        problem: Problem,
        x: Array,
        rng: np.random.Generator,
        power: float,
        steps: int,
        held: Array,
    ) -> Array:
        """Points after so many moves without evaluations."""
        potential, curvature = self._potential(problem, x, power), self.curvature
        for step, size in enumerate(rng.choice(SIZES, (steps, len(x), 1))):
            if curvature is not None and min(step, steps - 1 - step) % 2:
                moved, log_ratio = curvature.move(x, rng)
                moved = np.where(held, x, moved)
            else:
                tamed = rng.choice(TAMED, (len(x), 1))
                moved = np.where(held, x, self.crank_nicolson(x, size, rng, tamed))
                distances = (self.law.distance(at, tamed) for at in (moved, x))
                log_ratio = 0.5 * np.subtract(*distances)
            new = self._potential(problem, moved, power)
            accepted = rng.random(len(x)) < proposals.acceptance(potential, new, log_ratio)
            x = np.where(accepted[:, None], moved, x)
            potential = np.where(accepted, new, potential)
        return x

    def differential(self, x: Array, partners: Array, rng: np.random.Generator) -> Array:
        """Moves of `x`, shape (n, d), by differences of partners, in a subspace.

        The informed directions and the coordinates whose prior is not Gaussian span the subspace.
        """
        V = self.subspace
        along, others = x @ V.T, partners @ V.T
        moved = proposals.differential_evolution(along, others, np.eye(len(V)), rng)
        return x + (moved - along) @ V

    @cached_property
    def informed(self) -> Array:
        """Orthonormal rows that a correction depends on, shape (r, d); where the map is flat, none.

        They are the informed directions and the coordinates whose prior is not Gaussian.
        """
        return self._with_odd(self.law.directions[self.law.information > LEAST_INFORMATION])

    @cached_property
    def subspace(self) -> Array:
        """Orthonormal rows, shape (r, d), with r of at least one."""
        return self._with_odd(self.law.directions[: max(1, len(self.law.informed))])

    def _with_odd(self, rows: Array) -> Array:
        """Orthonormal rows, with the coordinates in whose directions the prior is not Gaussian."""
        if self.reference.gaussian.all():
            return rows
        odd = np.eye(len(self.origin))[~self.reference.gaussian]
        left, _ = np.linalg.qr(np.concatenate([rows, odd]).T)
        return left.T

    def crank_nicolson(
        self,
        x: Array,
        size: float | Array,
        rng: np.random.Generator,
        power: float | Array = 1.0,
    ) -> Array:
        """Moves from `x`, shape (n, d), that are reversible for the law.

        Their size is at most 1. The likelihood of the law may be raised to a power. Walkers may
        have different sizes and powers, shape (n, 1).
        """
        kept = np.sqrt(1 - size**2) * (x - self.law.center)
        return self.law.center + kept + size * self.law.noise(len(x), rng, power)  # eq. (F10)


def single_numbers(problem: Problem) -> Array:
    """Coordinates, shape (d,), of variables that are single numbers. None without names."""
    names = getattr(problem, "coordinate_names", None)
    if names is None:
        return np.zeros(problem.dimension, dtype=bool)
    return np.array(["[" not in name for name in names])
