"""The elliptic solver behind `gallery.darcy`."""

import numpy as np
import pytest

from pymc_ensemble import gallery
from pymc_ensemble.gallery.darcy import CELLS, OBSERVED, temperatures


def poisson_series(x, y, n_terms=199):
    """Solution of -laplace(T) = 50 with T = 0 on the boundary, as a Fourier sine series."""
    k = np.arange(1, n_terms + 1, 2)
    i, j = np.meshgrid(k, k, indexing="ij")
    coefficients = 50 * 16 / (np.pi**4 * i * j * (i**2 + j**2))
    return np.sin(np.pi * np.outer(x, k)) @ coefficients @ np.sin(np.pi * np.outer(k, y))


def test_constant_conductivity():
    """For u = 0 the problem is Poisson's; the scheme is of second order, h = 1/32."""
    nodes = OBSERVED / CELLS
    exact = poisson_series(nodes, nodes).ravel()
    np.testing.assert_allclose(temperatures(np.zeros(16)), exact, atol=50 / (12 * CELLS**2))


def test_published_values():
    G0 = temperatures(np.zeros(16))
    assert G0[[0, 44]] == pytest.approx([0.591099, 3.656375], abs=1e-6)
    model = gallery.darcy()
    Gt = temperatures(model.truth["u"])
    assert Gt[:3] == pytest.approx([0.531102, 0.843023, 1.019599], abs=1e-6)
    y = model.rvs_to_values[model["y"]].data
    assert y[:3] == pytest.approx([0.540797, 0.836741, 1.018969], abs=1e-6)


def test_scaling_and_symmetry():
    """A constant factor in the conductivity divides T; mirrored fields give mirrored solutions."""
    u = np.zeros(16)
    u[0] = 9.0  # first mode: phi = 1, sqrt(lambda) = 1 / 9, so that log a = 1 everywhere
    np.testing.assert_allclose(temperatures(u), temperatures(np.zeros(16)) / np.e, rtol=1e-12)
    tilt = np.zeros(16)
    tilt[1], mirrored = 3.0, np.zeros(16)  # mode (0, 1) varies along y, mode (1, 0) along x
    mirrored[2] = 3.0
    T, M = (temperatures(v).reshape(10, 10) for v in (tilt, mirrored))
    np.testing.assert_allclose(T, M.T, rtol=1e-10)
    assert not np.allclose(T, T.T, rtol=1e-3)
