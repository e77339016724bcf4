"""Covariances of Gaussian noise, and the whitening of outputs by them."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import scipy  # parts of it are loaded when they are used first
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


class Whitening(Protocol):
    """A linear map that turns noise into independent standard normal noise."""

    @property
    def log_determinant(self) -> float:
        """Log determinant of the covariance of the noise."""

    def __call__(self, outputs: FloatArray, /) -> FloatArray:
        """Apply to rows of shape (n, K)."""


@dataclass(frozen=True)
class CholeskyNoise:
    """Gaussian noise with covariance L L^T.

    Parameters
    ----------
    factor : ndarray of shape (K, K)
        Lower triangular Cholesky factor L of the covariance.

    Examples
    --------
    >>> import numpy as np
    >>> from pymc_ensemble.problem import CholeskyNoise
    >>> noise = CholeskyNoise(np.linalg.cholesky(np.array([[4.0, 2.0], [2.0, 2.0]])))
    >>> noise(np.array([[2.0, 3.0]]))
    array([[1., 2.]])
    """

    factor: FloatArray

    @cached_property
    def log_determinant(self) -> float:
        """Log determinant of the covariance."""
        return 2 * float(np.log(np.diag(self.factor)).sum())

    def __call__(self, outputs: FloatArray) -> FloatArray:
        """Solve L x = output for each row."""
        return scipy.linalg.solve_triangular(
            self.factor, outputs.T, lower=True, check_finite=False
        ).T


@dataclass(frozen=True)
class LowRankNoise:
    """Gaussian noise with covariance diag(variances) + F F^T, which is never formed.

    Parameters
    ----------
    variances : ndarray of shape (K,)
        Variances of the independent part.
    factor : ndarray of shape (K, r)
        Factor F of the part of low rank.

    Notes
    -----
    Let D = diag(variances), with the thin singular value decomposition D^(-1/2) F = Q S V^T. Then
    the whitening is (I + Q ((1 + S^2)^(-1/2) - I) Q^T) D^(-1/2). It costs O(K r) per row.

    Examples
    --------
    >>> import numpy as np
    >>> from pymc_ensemble.problem import LowRankNoise
    >>> noise = LowRankNoise(np.ones(3), np.full((3, 1), 1.0))
    >>> noise(np.ones((1, 3))).round(2)  # along the factor, the variance is 1 + 3
    array([[0.5, 0.5, 0.5]])
    """

    variances: FloatArray
    factor: FloatArray

    @cached_property
    def _scaled_svd(self) -> tuple[FloatArray, FloatArray]:
        scaled = self.factor / np.sqrt(self.variances)[:, None]
        Q, S, _ = scipy.linalg.svd(scaled, full_matrices=False)
        return Q, S

    @cached_property
    def log_determinant(self) -> float:
        """Log determinant of the covariance."""
        _, S = self._scaled_svd
        return float(np.log(self.variances).sum() + np.log1p(S**2).sum())

    def __call__(self, outputs: FloatArray) -> FloatArray:
        """Whiten rows of outputs."""
        Q, S = self._scaled_svd
        scaled = outputs / np.sqrt(self.variances)
        return scaled + (scaled @ Q) * (1 / np.sqrt(1 + S**2) - 1) @ Q.T


def whitening(noise: Any, n_outputs: int) -> tuple[Whitening | None, FloatArray]:
    """Interpret the noise argument.

    Parameters
    ----------
    noise : float, array_like of shape (K,) or (K, K), CholeskyNoise or LowRankNoise
        Standard deviation(s), covariance matrix, or a structured covariance.
    n_outputs : int
        Number K of outputs.

    Returns
    -------
    whitening : callable or None
        None for independent noise, for which outputs do not change.
    scales : ndarray of shape (K,)
        Standard deviations of the (whitened) outputs.
    """
    if isinstance(noise, CholeskyNoise | LowRankNoise):
        if noise.factor.shape[0] != n_outputs:
            raise ValueError(
                f"The factor of `noise` has shape {noise.factor.shape}, but `data` has "
                f"{n_outputs} entries. It needs one row for each entry."
            )
        return noise, np.ones(n_outputs)
    noise = np.asarray(noise, dtype=np.float64)
    if noise.ndim < 2:
        if noise.ndim and noise.shape != (n_outputs,):
            raise ValueError(f"`noise` has shape {noise.shape}, `data` has {n_outputs} entries.")
        if not np.all(noise > 0):
            raise ValueError("`noise` must hold positive standard deviations.")
        return None, np.broadcast_to(noise, n_outputs).copy()
    if noise.shape != (n_outputs, n_outputs):
        raise ValueError(f"`noise` has shape {noise.shape}, `data` has {n_outputs} entries.")
    try:
        factor = scipy.linalg.cholesky(noise, lower=True)
    except ValueError as error:  # `LinAlgError` is one, and so is that of values not finite
        raise ValueError("`noise` is not a positive definite covariance matrix.") from error
    return CholeskyNoise(factor), np.ones(n_outputs)
