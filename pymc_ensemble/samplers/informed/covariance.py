"""Covariance of the error of a slope: a matrix, or a diagonal minus a low rank."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy  # parts of it are loaded when they are used first

from pymc_ensemble.samplers.ensemble import Array, EnsembleFailure

MATRIX_LIMIT = 2000  # parameters up to which the matrix is kept
WINDOW = 1000  # with more parameters, so many evaluations are remembered


class Covariance(Protocol):
    """Covariance S of a row of the slope, shape (d, d), in whatever form."""

    def times(self, X: Array, /) -> Array:
        """Product of the rows of `X`, shape (n, d), with S."""

    @property
    def diagonal(self) -> Array:
        """Variances, shape (d,)."""

    def plus(self, variances: Array, /) -> "Covariance":
        """With independent variances added, shape (d,)."""

    def reduced(self, X: Array, noise: Array, /) -> tuple["Covariance", Array]:
        """After observations along `X` with noise of variances `noise`, and their gain (n, d)."""


def _innovation_root(X: Array, XS: Array, noise: Array) -> Array:
    """Lower Cholesky factor of the covariance of observations."""
    with np.errstate(over="ignore", invalid="ignore"):
        M = XS @ X.T
    M[np.diag_indices_from(M)] += noise
    try:
        return scipy.linalg.cholesky((M + M.T) / 2, lower=True)
    except ValueError as error:  # not finite; or not positive, a LinAlgError, which is one, too
        raise EnsembleFailure(
            "Forward outputs differ by so many orders of magnitude that their slope cannot be "
            "learned.",
            "Let the forward model return their logarithms, or NaN where they make no sense.",
        ) from error


@dataclass(frozen=True)
class MatrixCovariance:
    """The matrix itself, shape (d, d)."""

    matrix: Array

    @classmethod
    def of(cls, variances: Array, known: Array) -> "MatrixCovariance":
        """``diag(variances) - known^T known``."""
        return cls(np.diag(variances) - known.T @ known)

    def times(self, X: Array) -> Array:
        """Product of the rows of `X` with it."""
        return X @ self.matrix

    @property
    def diagonal(self) -> Array:
        """Variances."""
        return np.diag(self.matrix)

    def plus(self, variances: Array) -> "MatrixCovariance":
        """With independent variances added."""
        return MatrixCovariance(self.matrix + np.diag(variances))

    def reduced(self, X: Array, noise: Array) -> tuple["MatrixCovariance", Array]:
        """After observations along `X`, and their gain."""
        XS = self.times(X)
        root = _innovation_root(X, XS, noise)
        known = scipy.linalg.solve_triangular(root, XS, lower=True)
        matrix = self.matrix - known.T @ known
        return MatrixCovariance(matrix), scipy.linalg.solve_triangular(
            root, known, lower=True, trans=1
        )


@dataclass(frozen=True)
class ReducedCovariance:
    """``diag(variances) - known^T known``: each evaluation adds a row to `known`.

    If there are more than `WINDOW` rows, the oldest are forgotten. This makes the covariance
    larger.

    Attributes
    ----------
    variances : ndarray of shape (d,)
    known : ndarray of shape (N, d)
    """

    variances: Array
    known: Array

    @classmethod
    def of(cls, variances: Array, known: Array) -> "ReducedCovariance":
        """``diag(variances) - known^T known``."""
        return cls(variances, known)

    def times(self, X: Array) -> Array:
        """Product of the rows of `X` with it."""
        return X * self.variances - (X @ self.known.T) @ self.known

    @property
    def diagonal(self) -> Array:
        """Variances."""
        return np.maximum(self.variances - np.einsum("nd,nd->d", self.known, self.known), 0.0)

    def plus(self, variances: Array) -> "ReducedCovariance":
        """With independent variances added."""
        return ReducedCovariance(self.variances + variances, self.known)

    def reduced(self, X: Array, noise: Array) -> tuple["ReducedCovariance", Array]:
        """After observations along `X`, and their gain."""
        XS = self.times(X)
        root = _innovation_root(X, XS, noise)
        new = scipy.linalg.solve_triangular(root, XS, lower=True)
        known = np.concatenate([self.known, new])[-WINDOW:]
        return ReducedCovariance(self.variances, known), scipy.linalg.solve_triangular(
            root, new, lower=True, trans=1
        )


def covariance_of(variances: Array, known: Array) -> Covariance:
    """``diag(variances) - known^T known`` in the form that takes less memory."""
    if len(variances) <= MATRIX_LIMIT:
        return MatrixCovariance.of(variances, known)
    return ReducedCovariance.of(variances, known)
