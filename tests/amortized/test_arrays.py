"""Parts that know arrays only: scaling, familiarity, and walkers."""

import numpy as np
import pytest

from pymc_ensemble.amortized.familiarity import Familiarity
from pymc_ensemble.amortized.scaling import Scaling, told_by_numbers
from pymc_ensemble.amortized.walking import walk


def test_where_numbers_lie():
    assert told_by_numbers(np.array([0.0, 3.0])) == "counts"
    assert told_by_numbers(np.array([0.1, 3.0])) == "positive"
    assert told_by_numbers(np.array([0.0, 0.5])) == "real"
    assert told_by_numbers(np.array([-1.0, 3.0])) == "real"


def test_scaling_stabilizes(caplog):
    """Counts of any rate get the same scatter; lognormal data become normal ones."""
    rng = np.random.default_rng(1)
    n = 20_000
    data = {
        "c": np.column_stack([rng.poisson(rate, n) for rate in (20, 80)]),
        "p": np.exp(1 + 2 * rng.normal(size=n)),
        "u": 1 / (1 + np.exp(-rng.normal(size=n))),
        "z": np.zeros(n),
    }
    with caplog.at_level("INFO", "pymc_ensemble"):
        scaling = Scaling.of(data, {"c": "counts", "p": "positive", "u": "unit", "z": "real"})
    assert "such as z" in caplog.text
    assert scaling.size == 4
    # Anscombe's transform: a variance of 1/4
    np.testing.assert_allclose(scaling.scale[:2], 0.5, rtol=0.03)
    assert (scaling.center[2], scaling.scale[2]) == pytest.approx((1, 2), abs=0.06)
    X = scaling(data)
    np.testing.assert_allclose(X.mean(0), 0, atol=1e-10)
    np.testing.assert_allclose(X.std(0), 1, rtol=1e-10)
    rows = {"c": [[-1, 2], [1, 2], [1, 2]], "p": [1, 0, 1], "u": [0.5] * 3, "z": [0, 0, 1]}
    other = {name: np.array(values) for name, values in rows.items()}
    assert scaling.impossible(other).tolist() == [True, True, True]
    assert np.isfinite(scaling(other)).all()
    assert not scaling.impossible(data).any()
    again = Scaling.restored(scaling.arrays(), scaling.words())
    np.testing.assert_array_equal(again(data), X)
    with pytest.raises(ValueError, match="`z`: the values are the same in all simulations"):
        Scaling.of({"z": np.ones((9, 2))}, {"z": "real"})


def ring(n, rng):
    """Data on a circle, with a little noise."""
    angle = rng.uniform(0, 2 * np.pi, n)
    return np.column_stack([np.cos(angle), np.sin(angle)]) + 0.02 * rng.normal(size=(n, 2))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_surprise_is_uniform_for_what_is_simulated(seed):
    rng = np.random.default_rng(seed)
    known = Familiarity.of(ring(1000, rng), rng)
    fresh = np.sort(known.surprise(ring(2000, rng)))
    # largest distance of two empirical laws, of 2000 and 500 points, at a level of 10^-3
    distance = np.abs(fresh - np.arange(1, 2001) / 2000).max()
    assert distance < 1.95 * np.sqrt(1 / 2000 + 1 / 500)
    assert (fresh > 0.99).mean() < 0.05


def test_holes_and_far_away_data_surprise():
    rng = np.random.default_rng(1)
    known = Familiarity.of(ring(1000, rng), rng)
    assert known.surprise(np.array([[0.0, 0.0], [3.0, 3.0], [1.3, 0.0]])).min() > 0.99


def test_walkers_sample_several_densities_side_by_side():
    """Normal laws, one with a correlation: moments to 5 standard errors."""
    rng = np.random.default_rng(1)
    precision = np.stack([np.eye(2), np.linalg.inv([[1.0, 0.9], [0.9, 1.0]])])
    center = np.array([[0.0, 0.0], [3.0, -1.0]])[:, None]

    def log_density(U):
        z = U - center
        return -0.5 * np.einsum("dni,dij,dnj->dn", z, precision, z)

    walked = walk(log_density, rng.normal(size=(2, 100, 2)), 60, rng)
    assert walked.U.shape == (2, 60, 100, 2)
    # ten sweeps are about one autocorrelation time
    error = 5 / np.sqrt(60 * 100 / 2)
    np.testing.assert_allclose(walked.U.mean((1, 2)), center[:, 0], atol=error)
    covariance = np.cov(walked.U[1].reshape(-1, 2).T)
    np.testing.assert_allclose(covariance, [[1.0, 0.9], [0.9, 1.0]], atol=2 * error)
    positions = walked.U.reshape(2, -1, 2)
    np.testing.assert_allclose(walked.lp.reshape(2, -1), log_density(positions))
    assert 0.2 < walked.acceptance < 0.7
