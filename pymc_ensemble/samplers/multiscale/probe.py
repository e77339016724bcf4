"""Probe: stiffness of the posterior, and roughness of the forward map, at a few positions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pymc_ensemble.samplers.ensemble import Array, Ensemble, Evaluations, Problem, has_forward_map

from .explorers import Explorers
from .pilot import Pilot

PROBES = 10  # positions at which the stiffness is measured


@dataclass(frozen=True)
class ProbeRound:
    """A pending round that measures the stiffness by the clouds around a few positions."""

    points: Array
    directions: Array


@dataclass(frozen=True)
class Probe:
    """Clouds of a full frame around the first few positions of a pilot.

    Parameters
    ----------
    problem : InverseProblem
    explorers : Explorers
        Explorers of the probe, in opposite pairs.
    rough : bool
        Whether to measure the fluctuations of the forward map, too.
    """

    problem: Problem
    explorers: Explorers
    rough: bool = False

    def ask(self, pilot: Pilot, rng: np.random.Generator) -> tuple[Array, ProbeRound]:
        """Points of the clouds, shape (n, d), and what `tell` needs."""
        positions = pilot.positions[:PROBES]
        directions = self.explorers.directions(len(positions), rng)
        points = self.explorers.points(positions, directions, pilot.preconditioner.root)
        return points, ProbeRound(points, directions)

    def tell(
        self, pilot: Pilot, pending: ProbeRound, evaluations: Evaluations, walkers: Explorers
    ) -> Pilot:
        """Pilot with the stiffness, and with the noise of the drift that `walkers` measure."""
        values = Ensemble.evaluated(self.problem, pending.points, evaluations)
        size = self.explorers.cloud_size
        clouds = [values[k : k + size] for k in range(0, len(values), size)]
        axes = pending.directions @ pilot.preconditioner.root.T
        stiffness = [self.stiffness(*part) for part in zip(clouds, axes, strict=True)]
        pilot = replace(pilot, stiffness=float(np.quantile(_known(stiffness), 0.9)))
        if self.rough:
            noise = [self.noise(cloud, walkers) for cloud in clouds]
            pilot = replace(pilot, noise=float(np.median(_known(noise))))
        return pilot

    def stiffness(self, cloud: Ensemble, axes: Array) -> float:
        """Largest eigenvalue of the preconditioned Hessian at the center of a cloud.

        It is measured in the span of the explorers, which are displaced along the `axes`. For a
        density only the diagonal is measured. Over random directions the diagonal has the mean
        tr(H) / d, and its variance gives the Frobenius norm. From these follows an upper bound,
        which is sharp if all eigenvalues but one are the same.
        """
        d, J = self.problem.dimension, len(axes)
        if not cloud.ok[0]:
            return np.nan
        slopes = self.explorers.differences(cloud.Z)[0]
        bend = cloud.loss[1 : 1 + J] + cloud.loss[1 + J :] - 2 * cloud.loss[0]
        heard = np.isfinite(slopes).all(1) & np.isfinite(bend)
        if not heard.any():
            return np.nan
        axes, slopes = axes[heard], slopes[heard]
        H = axes @ self.problem.prior_hessian(cloud.U[0]) @ axes.T
        if has_forward_map(self.problem):
            H = H + (slopes * self.problem.curvature(cloud.Z[:1])[0]) @ slopes.T
            largest = np.linalg.eigvalsh(H)[-1] / d  # eq. (M5)
        else:
            diagonal = (np.diag(H) + bend[heard] / self.explorers.sigma**2) / d
            largest = diagonal.mean() + np.sqrt((d - 1) * (d + 2) / 2 * diagonal.var())  # eq. (M6)
        return float(max(largest, 0.0))

    def noise(self, cloud: Ensemble, walkers: Explorers) -> float:
        """Variance of the drift by the fluctuations of a rough map, for each parameter.

        If the map is smooth, second differences vanish. Otherwise they measure the fluctuations.
        These enter the drift through the outputs at the center, and through the differences.
        """
        d, J = self.problem.dimension, self.explorers.n_directions
        slopes = self.explorers.differences(cloud.Z)[0]
        bend = cloud.Z[1 : 1 + J] + cloud.Z[1 + J :] - 2 * cloud.Z[0]
        heard = np.isfinite(bend).all(1)
        if not heard.any():
            return np.nan
        fluctuation = (bend[heard] ** 2).mean(0) / np.square([1, 1, -2]).sum()
        curvature = self.problem.curvature(cloud.Z[:1])[0]
        gradient = self.problem.loss_gradient(cloud.Z[:1])[0]
        at_center = curvature**2 * (slopes[heard] ** 2).mean(0)
        differences = d / (2 * walkers.n_directions * walkers.sigma**2) * gradient**2
        return float(fluctuation @ (at_center + differences) / d)  # eq. (M7)


def _known(values: Sequence[float]) -> list[float]:
    """Values that could be measured, or a single NaN."""
    return [value for value in values if np.isfinite(value)] or [np.nan]
