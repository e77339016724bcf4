"""The elliptic solver behind `gallery.darcy`."""

import numpy as np
import pytensor
import pytest
from pytensor.gradient import verify_grad

from pymc_ensemble import gallery
from pymc_ensemble.gallery.darcy import (
    CELLS,
    OBSERVED,
    Temperatures,
    _misfit,
    _slope,
    log_conductivity,
    temperatures,
)


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


@pytest.mark.parametrize("d", [9, 16, 64])
def test_batches(d):
    """A batch gives what its members give one by one, also where it is more than one chunk."""
    U = np.random.default_rng(d).standard_normal((70, d))
    one_by_one = np.array([temperatures(u) for u in U])
    np.testing.assert_allclose(temperatures(U), one_by_one, rtol=1e-12)
    assert temperatures(U.reshape(2, 35, d)).shape == (2, 35, 100)


def test_fields_of_many_modes_contain_those_of_few():
    """The first three by three modes are among the eight by eight, with the same scales."""
    few, many = (log_conductivity(np.eye(d)).reshape(d, -1) for d in (9, 64))
    distances = np.abs(few[:, None] - many).max(-1)
    np.testing.assert_allclose(distances.min(1), 0, atol=1e-12)
    rms = np.array(
        [np.sqrt(np.trapezoid(np.trapezoid(f**2))) / CELLS for f in many.reshape(64, 33, 33)]
    )
    assert (np.diff(rms) < 1e-12).all(), "sqrt(lambda_k) falls from mode to mode"


@pytest.mark.filterwarnings("ignore:Numba will use object mode")  # verify_grad's own choice
def test_gradient_of_the_native_version():
    rng = np.random.default_rng(8)
    for d in (9, 16):
        u = rng.standard_normal(d)
        verify_grad(lambda u: Temperatures()(u)[0], [u], rng=rng, mode="FAST_COMPILE")


def test_gradient_needs_one_factorization():
    """The log density and its gradient together hold one solution of the problem."""
    model = gallery.darcy(9, native=True)
    both = model.compile_fn(
        [model.logp(), *pytensor.grad(model.logp(), model.value_vars)],
        inputs=model.value_vars,
        mode="CVM",
    )
    solves = [node for node in both.f.maker.fgraph.apply_nodes if isinstance(node.op, Temperatures)]
    assert len(solves) == 1


@pytest.mark.parametrize("d", [4, 10, 1089])
def test_numbers_of_modes_that_are_no_squares(d):
    with pytest.raises(ValueError, match=rf"9, 16, 25, \.\.\., 1024, not {d}\."):
        gallery.darcy(d)


def test_reference_beyond_those_that_are_stored():
    """The gradient by the adjoint method, and the slope, are those of the black box."""
    rng = np.random.default_rng(9)
    u, y = rng.standard_normal(81), rng.standard_normal(100)
    h = 1e-6 * np.eye(81)
    slope = ((temperatures(u + h) - temperatures(u - h)) / 2e-6).T
    value, gradient = _misfit(u, y, 0.5)
    misfit = (temperatures(u) - y) / 0.5
    assert value == pytest.approx(misfit @ misfit / 2)
    np.testing.assert_allclose(_slope(u), slope, atol=1e-6)
    np.testing.assert_allclose(gradient, misfit @ slope / 0.5, atol=1e-3)
