"""Curvature of outputs on a design, by a least-squares fit with squares and products."""

from dataclasses import dataclass

import numpy as np

from pymc_ensemble.samplers.ensemble import Array
from pymc_ensemble.samplers.gaussian_process.basis import basis_values
from pymc_ensemble.samplers.linearization import Anomalies


@dataclass(frozen=True)
class QuadraticFit:
    """Least-squares fit of outputs by squares and products, beside a linear one.

    Attributes
    ----------
    anomalies : Anomalies
        Anomalies of the points.
    squares : bool
        Whether there are only squares, because there were too few points for the products.
    coefficients : ndarray of shape (1 + r + q, K)
    """

    anomalies: Anomalies
    squares: bool
    coefficients: Array

    @classmethod
    def of(cls, points: Array, outputs: Array) -> "QuadraticFit | None":
        """Fit to outputs (n, K) at points (n, d). None if there are too few points."""
        anomalies = Anomalies.of(points)
        for squares in (False, True):
            features = _features(anomalies, points, squares)
            if len(points) >= 2 * features.shape[1]:
                return cls(anomalies, squares, np.linalg.lstsq(features, outputs, rcond=None)[0])
        return None

    def features(self, U: Array) -> Array:
        """Columns of the fit at `U`, shape (n, 1 + r + q): one, coordinates, squares."""
        return _features(self.anomalies, U, self.squares)

    def __call__(self, U: Array) -> Array:
        """Fitted outputs at `U`, shape (n, K)."""
        return self.features(U) @ self.coefficients


def _features(anomalies: Anomalies, U: Array, squares: bool) -> Array:
    x = (U - anomalies.mean) @ anomalies.L_pinv.T
    return np.hstack([basis_values(x, "linear"), x**2]) if squares else basis_values(x, "quadratic")


def curvature_excess(points: Array, outputs: Array) -> float:
    """Significance of quadratic terms in the outputs on the design, in standard errors.

    The share of the variance that squares and products explain is compared with the share that they
    would explain of white residuals.
    """
    fit = QuadraticFit.of(points, outputs)
    if fit is None:
        return 0.0
    features = fit.features(points)
    n, linear = len(points), features[:, : 1 + fit.anomalies.rank]
    q, dof = features.shape[1] - linear.shape[1], n - features.shape[1]
    predicted = features @ fit.coefficients
    explained = predicted - linear @ np.linalg.lstsq(linear, predicted, rcond=None)[0]
    noise = ((outputs - predicted) ** 2).sum(0) / dof
    used = noise > 0
    ratio = (explained[:, used] ** 2).sum(0) / (q * noise[used])
    if not used.any():
        return 0.0
    K = used.sum()
    return float((ratio.mean() - 1) / np.sqrt(2 / (q * K) + 2 / dof))  # eq. (R3)
