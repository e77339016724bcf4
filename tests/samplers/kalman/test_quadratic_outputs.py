"""How curved outputs are: the test of squares and products against its law."""

import numpy as np
import pytest

from pymc_ensemble.samplers.kalman.quadratic_outputs import curvature_excess


@pytest.mark.parametrize("noise", [1e-3, 10.0])
def test_curvature_of_linear_outputs_is_insignificant(noise):
    """A standardized statistic: mean 0 and sd 1 over 300 replicas, up to Monte Carlo."""
    rng = np.random.default_rng(2)
    A = rng.standard_normal((6, 3))
    excess = []
    for _ in range(300):
        points = rng.standard_normal((100, 3))
        excess.append(
            curvature_excess(points, points @ A.T + noise * rng.standard_normal((100, 6)))
        )
    assert abs(np.mean(excess)) < 0.3
    assert 0.7 < np.std(excess) < 1.3


@pytest.mark.parametrize("term", [lambda x: x[:, 0] ** 2, lambda x: x[:, 1] * x[:, 2]])
def test_curvature_of_squares_and_products_is_seen(term):
    rng = np.random.default_rng(3)
    points = rng.standard_normal((100, 3)) @ [[1, 5, 0], [0, 1, 1], [0, 0, 9]]
    outputs = points[:, :1] + term(points)[:, None] + 0.1 * rng.standard_normal((100, 1))
    assert curvature_excess(points, outputs) > 10
    assert curvature_excess(points[:9], outputs[:9]) == 0  # too few to tell
