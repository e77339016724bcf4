"""The adjoint of the weather model, by which its reference is known."""

import numpy as np

from pymc_ensemble.gallery.initial_state import _velocity, seen_later


def test_adjoint_is_the_derivative():
    rng = np.random.default_rng(1)
    start, w, h = 3 + 2 * rng.standard_normal((2, 11)), rng.standard_normal((2, 12)), 1e-6
    _, pull_back = seen_later(start)
    for k, product in enumerate(pull_back(w).T):
        step = h * np.eye(11)[k]
        change = seen_later(start + step)[0] - seen_later(start - step)[0]
        np.testing.assert_allclose(product, (change * w).sum(1) / (2 * h), rtol=1e-6, atol=1e-7)


def test_advection_conserves_the_energy():
    """``d/dt |x|^2 / 2 = sum(8 x - x^2)``: only forcing and damping change it."""
    x = np.random.default_rng(2).standard_normal((40, 3))
    np.testing.assert_allclose((x * _velocity(x)).sum(0), (8 * x - x**2).sum(0), atol=1e-10)
