"""Correction of a cheap model: a Gaussian process of the difference of outputs, fine less cheap."""

from dataclasses import dataclass

import numpy as np

from pymc_ensemble.samplers.ensemble import Array, Ensemble, Evaluations, Problem
from pymc_ensemble.samplers.gaussian_process.posterior import Whitening
from pymc_ensemble.samplers.gaussian_process.regression import GaussianProcess
from pymc_ensemble.samplers.gaussian_process.targets import MANY_OUTPUTS

SMALLEST_COMPONENT = 0.01  # root mean square, in units of the noise
ROUNDING = 1e-6  # share of the first component: smaller ones are rounding
SMALLEST_CURVATURE = 1e-8  # relative to the largest: outputs without information get no weight


@dataclass(frozen=True)
class Outputs:
    """Outputs at some points, with the fields of `Evaluations`.

    Attributes
    ----------
    outputs : ndarray of shape (n, K)
    failed : ndarray of bool, shape (n,)
    """

    outputs: Array
    failed: Array


@dataclass(frozen=True)
class Correction:
    """Difference of outputs, fine minus cheap, as a function of the parameters.

    Attributes
    ----------
    whitening : Whitening
        Coordinates of the processes.
    center : ndarray of shape (K,)
        Mean difference.
    directions : ndarray of shape (k, K)
        Outputs for each of the leading components.
    processes : tuple of GaussianProcess
        One for each component, with a linear mean.
    """

    whitening: Whitening
    center: Array
    directions: Array
    processes: tuple[GaussianProcess, ...]

    @classmethod
    def of(
        cls,
        problem: Problem,
        known: Ensemble,
        cheap: Array,
        particles: Array,
        rng: np.random.Generator,
    ) -> "Correction":
        """Learn the difference.

        Parameters
        ----------
        problem : InverseProblem
        known : Ensemble
            Evaluations of the fine model.
        cheap : ndarray of shape (n, K)
            Outputs of the cheap model at the same points.
        particles : ndarray of shape (J, d)
            Draws of the present posterior. Their spread is the unit of distances.
        rng : numpy.random.Generator
        """
        whitening = Whitening.of(particles)
        difference = known.Z - cheap
        # the difference matters in units of the noise
        best = np.argsort(known.potential)[: max(1, len(known) // 2)]
        curvature = np.median(problem.curvature(known.Z[best]), axis=0)
        scale = np.sqrt(np.maximum(curvature, SMALLEST_CURVATURE * curvature.max()))
        center = difference.mean(0)
        # eq. (B1)
        left, size, right = np.linalg.svd((difference - center) * scale, full_matrices=False)
        least = max(SMALLEST_COMPONENT * np.sqrt(len(known)), ROUNDING * size.max(initial=0.0))
        k = min(MANY_OUTPUTS, int((size > least).sum()))
        x = whitening.coordinates(known.U)
        processes = tuple(
            GaussianProcess.fit(x, (left[:, c] * size[c])[:, None], "linear", rng) for c in range(k)
        )
        return cls(whitening, center, right[:k] / scale, processes)

    def __call__(self, U: Array) -> Array:
        """Difference of outputs at points (n, d), shape (n, K)."""
        x = self.whitening.coordinates(U)
        if not self.processes:
            return np.tile(self.center, (len(U), 1))
        components = np.hstack([process.evaluate(x)[0] for process in self.processes])
        return self.center + components @ self.directions


def corrected(
    correction: Correction | None, points: Array, evaluations: Evaluations
) -> Evaluations:
    """Evaluations of the cheap model at points (n, d), with the correction, if there is one."""
    if correction is None:
        return evaluations
    return Outputs(evaluations.outputs + correction(points), evaluations.failed)
