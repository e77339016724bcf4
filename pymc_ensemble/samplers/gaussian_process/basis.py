"""Distances for kernels, and the polynomials of the mean of a Gaussian process."""

from typing import Literal

import numpy as np

from pymc_ensemble.samplers.ensemble import Array

Basis = Literal["constant", "linear", "quadratic"]


def squared_distances(a: Array, b: Array) -> Array:
    """Squared distances between the rows of `a` and those of `b`, shape (n, m)."""
    D = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
    return np.maximum(D, 0, out=D)


def basis_size(basis: Basis, dimension: int) -> int:
    """Number q of functions of a basis of the mean function."""
    sizes = {"constant": 1, "linear": dimension + 1}
    return sizes.get(basis, (dimension + 1) * (dimension + 2) // 2)


def basis_values(x: Array, basis: Basis) -> Array:
    """Functions of the mean at points (n, d): 1, x_i and, if quadratic, x_i x_j; shape (n, q)."""
    n, d = x.shape
    values = np.ones((n, basis_size(basis, d)))
    if basis != "constant":
        values[:, 1 : d + 1] = x
    if basis == "quadratic":
        i, j = np.triu_indices(d)
        values[:, d + 1 :] = x[:, i] * x[:, j]
    return values


def basis_gradient(x: Array, coefficients: Array, basis: Basis) -> Array:
    """Gradients, shape (n, d), of combinations with `coefficients` (n, q) of the functions."""
    n, d = x.shape
    if basis == "constant":
        return np.zeros((n, d))
    gradient = coefficients[:, 1 : d + 1]
    if basis == "quadratic":
        gradient = gradient + (quadratic_hessian(coefficients, d) @ x[..., None])[..., 0]
    return gradient


def quadratic_hessian(coefficients: Array, dimension: int) -> Array:
    """Hessians, shape (k, d, d), of quadratics with `coefficients` (k, q)."""
    i, j = np.triu_indices(dimension)
    Q = np.zeros((len(coefficients), dimension, dimension))
    Q[:, i, j] = coefficients[:, dimension + 1 :]
    return Q + Q.swapaxes(1, 2)


def farthest_points(x: Array, size: int) -> Array:
    """Indices of `size` points: the innermost first, then each farthest from those before it."""
    if len(x) <= size:
        return np.arange(len(x))
    chosen = np.empty(size, dtype=int)
    chosen[0] = ((x - x.mean(0)) ** 2).sum(1).argmin()
    distance = ((x - x[chosen[0]]) ** 2).sum(1)
    for i in range(1, size):
        chosen[i] = distance.argmax()
        np.minimum(distance, ((x - x[chosen[i]]) ** 2).sum(1), out=distance)
    return chosen
