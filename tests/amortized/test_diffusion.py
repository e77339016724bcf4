"""Conditional diffusion on arrays: where paths end, and densities of kernels."""

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import norm

from pymc_ensemble.amortized.diffusion import (
    Archive,
    KernelDensity,
    flow,
    moments,
    noise_levels,
    reverse,
)


def quantiles(n):
    """Latents that stand for the normal law, without chance."""
    return norm.ppf((np.arange(n) + 0.5) / n)[:, None]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_paths_end_on_points_with_the_probability_of_their_weights(seed):
    """The flow keeps probabilities: in one dimension, by the quantiles of the latent."""
    rng = np.random.default_rng(seed)
    points, weights = rng.standard_normal((20, 1)), rng.dirichlet(np.ones(20))
    ends = reverse(quantiles(4000), points, np.log(weights))
    distance = np.abs(ends - points.T)
    # neighbours may be as near as the smallest noise: a path then ends between them
    assert distance.min(1).max() < 1e-3
    share = np.bincount(distance.argmin(1), minlength=20) / 4000
    np.testing.assert_allclose(share, weights, atol=0.01)


def test_paths_in_three_dimensions():
    """Shares to 5 standard errors of 4000 independent latents."""
    rng = np.random.default_rng(1)
    points, weights = rng.standard_normal((10, 3)), rng.dirichlet(np.full(10, 3.0))
    ends = reverse(rng.standard_normal((4000, 3)), points, np.log(weights))
    distance = np.linalg.norm(ends[:, None] - points, axis=2)
    assert distance.min(1).max() < 1e-6
    share = np.bincount(distance.argmin(1), minlength=10) / 4000
    error = np.sqrt(weights * (1 - weights) / 4000)
    assert (np.abs(share - weights) < 5 * error + 0.005).all()


def test_the_solver_is_of_second_order():
    """Paths stop at a noise at which two points are one cloud; the law tells where they are.

    The distribution function of the noised law is constant along a path in one dimension. Twice the
    steps leave a quarter of the error.
    """
    points, weights, least = np.array([[-1.0], [1.0]]), np.array([0.3, 0.7]), 0.5
    z, errors = np.array([[-1.0], [-0.3], [0.8]]), []
    for steps in (40, 80, 160):
        x = flow(z, points, np.log(weights), np.geomspace(40.0, least, steps + 1))
        law = ndtr((x - points.T) / least) @ weights
        errors.append(np.abs(law - ndtr(z[:, 0])).max())
    assert errors[2] < 1e-3
    assert 2.5 < errors[0] / errors[1] < 6


def test_archives_of_each_row_are_those_of_all():
    rng = np.random.default_rng(1)
    z, points = rng.standard_normal((5, 2)), rng.standard_normal((7, 2))
    log_weights = rng.standard_normal(7)
    each = reverse(z, np.broadcast_to(points, (5, 7, 2)), np.broadcast_to(log_weights, (5, 7)))
    np.testing.assert_allclose(each, reverse(z, points, log_weights), atol=1e-8)
    center, spread = moments(points, np.zeros(7))
    np.testing.assert_allclose((center, spread), (points.mean(0), points.std(0)))


def test_what_is_given_are_the_nearest():
    """Far data have no part, and equal ones are told from others."""
    rng = np.random.default_rng(1)
    X = rng.uniform(-2, 2, (1000, 1))
    archive = Archive(X**3, X, neighbours=20)
    theta, log_weights = archive.given(np.array([[0.5]]))
    assert theta.shape == (1, 20, 1)
    np.testing.assert_allclose(theta.mean(), 0.125, atol=0.05)
    assert log_weights.max() <= 0
    assert log_weights.min() == pytest.approx(-2)  # the kernel ends at two of its widths
    ends = archive.labelled(np.full((200, 1), 0.5), rng.standard_normal((200, 1)))
    np.testing.assert_allclose(ends.mean(), 0.125, atol=0.05)
    same = Archive(X, np.zeros((1000, 1)))
    assert np.isfinite(same.labelled(np.zeros((3, 1)), np.zeros((3, 1)))).all()


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_kernels_are_a_density_that_is_drawn_from(dimension):
    """Normalized: ``E f / q = 1`` for a density f inside; narrow where there are two modes."""
    rng = np.random.default_rng(1)
    points = 0.1 * rng.standard_normal((500, dimension))
    points[::2, 0] += 4.0
    kernels = KernelDensity.of(points)
    drawn = kernels.draw(20_000, rng)
    between = np.abs(drawn[:, 0] - 2.0) < 1.0
    assert between.mean() < 0.01
    log_f = norm.logpdf(drawn, 0, 0.07).sum(1)
    ratio = np.exp(log_f - kernels.log_density(drawn))
    assert ratio.mean() == pytest.approx(1, abs=4 * ratio.std() / np.sqrt(len(ratio)) + 0.01)


def test_levels_fall_in_geometric_progression():
    levels = noise_levels(10)
    np.testing.assert_allclose(np.diff(np.log(levels)), np.log(levels[1] / levels[0]))
    assert len(levels) == 11
