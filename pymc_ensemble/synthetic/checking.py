"""Checks that a synthetic likelihood is robust, and the same at other points of the posterior."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pymc_ensemble.samplers.weights import LEVEL

from .gaussian import Change, Spread, partial_log_ratio, varying_log_ratio
from .likelihood import LARGEST_LOG
from .simulator import Estimate

FloatArray = NDArray[np.float64]

REACH = 2.0  # distance from the mean, in posterior sd, of the points where variances are compared
RUNS, FEWEST_RUNS = 200, 20  # runs of all points; of each point, for a log variance to 0.32
COMPARED = 500  # number of weighted draws
REDRAWN = 100  # number of random estimates of the same size, which show the effect of chance


@dataclass(frozen=True)
class Design:
    """Points for replicates, and the coordinates for their comparison.

    Attributes
    ----------
    center : ndarray of shape (d,)
        Point of the first replicates.
    columns : sequence of int
        Coordinates on which the simulator depends, p of them.
    replicates : ndarray of shape (R, K)
        Replicates at the center that have not failed.
    U : ndarray of shape (n, d)
        Particles or draws of the posterior.
    """

    center: FloatArray
    columns: Sequence[int]
    replicates: FloatArray
    U: FloatArray

    @cached_property
    def root(self) -> FloatArray:
        """Principal axes of the posterior, scaled by their standard deviations, (p, p)."""
        part = self.U[:, list(self.columns)]
        values, vectors = np.linalg.eigh(np.cov(part.T).reshape(part.shape[1], -1))
        return vectors * np.sqrt(np.maximum(values, 1e-12 * values.max() + 1e-300))

    def relative(self, U: FloatArray) -> FloatArray:
        """Whitened coordinates relative to the center, shape (n, p)."""
        return np.linalg.solve(self.root, (U - self.center)[:, list(self.columns)].T).T

    def slopes(self, whitened: FloatArray) -> FloatArray:
        """Slopes in unconstrained coordinates, (K, p), from those in whitened ones."""
        return np.linalg.solve(self.root.T, whitened.T).T

    @property
    def points(self) -> FloatArray:
        """Both ends of each axis through the mean, shape (2 p, d)."""
        mean, p = self.U.mean(0), len(self.columns)
        points = np.repeat(mean[None], 2 * p, axis=0)
        points[:, list(self.columns)] += REACH * np.vstack([self.root.T, -self.root.T])
        return points

    @property
    def n_runs(self) -> int:
        """Number of runs at each of these points."""
        return max(FEWEST_RUNS, RUNS // (2 * len(self.columns)))


def check_posterior(
    data: FloatArray,
    estimate: Estimate,
    design: Design,
    spread: Spread,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Compare the posterior with posteriors of other likelihoods, by weights of the draws.

    Parameters
    ----------
    data : ndarray of shape (K,)
        Observed summaries.
    estimate : Estimate
    design : Design
        Design with the draws.
    spread : Spread
        Spread of the replicates.
    rng : numpy.random.Generator

    Returns
    -------
    dict
        ``checked`` is the number of runs. The other entries are the largest change of a mean, in
        posterior standard deviations, and of the logarithm of a standard deviation: ``varying``
        with variances that change as those of the replicates do, ``varying_by_chance`` with
        variances that change by chance only, ``without`` the summaries that are not Gaussian, and
        ``without_raised`` without those whose variances were raised.
    """
    U = design.U[rng.choice(len(design.U), min(COMPARED, len(design.U)), replace=False)]
    x = design.relative(U)
    residuals, matrix = data - spread.mean(x), estimate.matrix
    if estimate.slopes is not None:  # covariance as at the center, except the determinant
        log = x @ (estimate.slopes @ design.root).T
        residuals = residuals * np.exp(-0.5 * np.clip(log, -LARGEST_LOG, LARGEST_LOG))

    def varying(slopes: FloatArray) -> tuple[float, float]:
        return Change.of(U, varying_log_ratio(residuals, x, matrix, slopes)).largest

    chance = np.abs([varying(spread.by_chance(rng)) for _ in range(REDRAWN)])
    told: dict[str, Any] = {
        "checked": int(spread.counts[1:].sum()),
        "varying": varying(spread.slopes),
        "varying_by_chance": tuple(np.quantile(chance, LEVEL, axis=0).tolist()),
    }
    for which, key in (("odd", "without"), ("raised", "without_raised")):
        kept = np.ones(len(matrix), dtype=bool)
        kept[list(estimate.facts[which])] = False
        if kept.any() and not kept.all():
            told[key] = Change.of(U, partial_log_ratio(residuals, matrix, kept)).largest
    middle = data - spread.mean(x.mean(0)[None])[0]
    told["misfit"] = float(middle @ np.linalg.solve(matrix, middle))
    return told
