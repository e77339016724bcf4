from itertools import combinations

import numpy as np
import pytest

from pymc_ensemble.benchmark.metrics import (
    first_within,
    mode_error,
    moment_errors,
    sliced_wasserstein,
)


def test_moments_are_measured_in_posterior_sd():
    draws = np.random.default_rng(1).standard_normal((1000, 2)) * [2.0, 3.0] + [1.0, 5.0]
    sd = draws.std(0)
    mean_error, sd_error = moment_errors(
        draws, draws.mean(0) - np.array([0.4, -0.3]), sd / [1.0, 1.1]
    )
    assert mean_error == pytest.approx([0.4 / sd[0], 0.33 / sd[1]])
    assert sd_error == pytest.approx([0.0, 0.1])


def test_sliced_wasserstein_of_a_shift_is_its_mean_projection():
    # in two dimensions the mean of |cos| of a random direction is 2 / pi
    x = np.random.default_rng(1).standard_normal((1500, 2))
    distance = sliced_wasserstein(x + np.array([0.5, 0.0]), x, np.ones(2))
    assert distance == pytest.approx(0.5 * 2 / np.pi, abs=0.05)
    assert sliced_wasserstein(3 * x + np.array([1.5, 0.0]), 3 * x, 3 * np.ones(2)) == pytest.approx(
        distance
    )


def test_sliced_wasserstein_sees_what_moments_do_not():
    rng = np.random.default_rng(2)
    normal = rng.standard_normal((5, 2000, 1))
    signs = np.where(rng.random((2000, 1)) < 0.5, -1.0, 1.0)
    # the transport takes |z| to 1: E||z| - 1| = 0.5354
    assert sliced_wasserstein(signs, normal[0], np.ones(1)) == pytest.approx(0.535, abs=0.05)
    same = [sliced_wasserstein(x, y, np.ones(1)) for x, y in combinations(normal, 2)]
    # expected is sqrt(4 / (pi n)) times the integral of sqrt(F (1 - F)), which is about 1.7
    assert np.mean(same) < 4 / np.sqrt(2000)


def test_the_worst_mode_counts():
    def side(u):
        return (u[:, 0] > 0).astype(int)

    reference = np.array([[-1.0], [1.0]])
    assert mode_error(np.array([[-1.0], [-1.0], [-1.0], [1.0]]), reference, side) == 0.25
    assert mode_error(np.array([[-1.0]]), reference, side) == 0.5


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([0.3, 0.05, 0.05], 200.0),
        ([0.05, 0.05, 0.05], 100.0),
        ([0.05, 0.3, 0.05], 300.0),  # had it by chance, and lost it again
        ([0.05, 0.05, 0.3], np.inf),
    ],
)
def test_precision_has_to_stay(errors, expected):
    costs = np.array([100, 200, 300])
    order = [2, 0, 1]
    assert first_within(costs[order], (np.array(errors)[order], 0.1)) == expected


def test_all_errors_have_to_keep_their_bounds():
    costs = np.array([1.0, 2.0, 3.0])
    errors = (np.array([0.0, 0.0, 0.0]), 0.1), (np.array([1.0, 1.0, 0.0]), 0.1)
    assert first_within(costs, *errors) == 3.0
