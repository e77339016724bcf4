"""Coordinates in which a prior is standard normal."""

import numpy as np
import pytest

from pymc_ensemble import InverseProblem
from pymc_ensemble.samplers.ensemble import EnsembleFailure
from pymc_ensemble.samplers.informed.reference import reference_of


def problem(prior):
    d = 2 if not isinstance(prior, tuple) else len(prior[0])
    return InverseProblem(lambda u: u, prior=prior, data=np.zeros(d), noise=1.0)


def scaled(d, rng, correlated):
    scales = 10.0 ** rng.uniform(-3, 3, d)
    if not correlated:
        return scales * rng.standard_normal(d), scales**2
    root = np.tril(rng.standard_normal((d, d))) + 3 * np.eye(d)
    return scales * rng.standard_normal(d), (root @ root.T) * np.outer(scales, scales)


@pytest.mark.parametrize("correlated", [False, True])
def test_a_gaussian_prior_is_its_own_reference(correlated):
    rng = np.random.default_rng(1)
    mean, covariance = scaled(12, rng, correlated)
    p = problem((mean, covariance))
    reference = reference_of(p, rng)
    assert (reference.root is None) == (not correlated)
    x = rng.standard_normal((5, 12))
    U = reference.points(x)
    np.testing.assert_allclose(reference.coordinates(U), x, atol=1e-7)
    # the density of the coordinates is that of independent standard normal variables
    normal = 0.5 * (x**2).sum(1) + 6 * np.log(2 * np.pi) + reference.log_volume
    np.testing.assert_allclose(p.prior_potential(U), normal, rtol=1e-7, atol=1e-6)
    np.testing.assert_allclose(reference.pull_back(p.prior_gradient(U)), x, atol=1e-6)


class Logistic:
    """Independent logistic coordinates: quartiles at plus and minus log 3, times the scale."""

    def sample(self, size, rng):
        return 5.0 + rng.logistic(size=(size, 2)) * [1.0, 10.0]

    def logpdf(self, points):
        z = (points - 5.0) / [1.0, 10.0]
        return (-z - 2 * np.logaddexp(0, -z)).sum(1) - np.log(10.0)


def test_any_other_prior_has_one_of_its_location_and_scale():
    """Quartiles of 200 draws are known to about 10%."""
    reference = reference_of(problem(Logistic()), np.random.default_rng(2))
    scale = np.log(3) / 0.6744898
    np.testing.assert_allclose(reference.scale, [scale, 10 * scale], rtol=0.4)
    np.testing.assert_allclose(reference.mean, [5, 5], atol=0.5 * reference.scale.max())


class Constant:
    """A prior that is one point."""

    def sample(self, size, rng):
        return np.ones((size, 2))

    def logpdf(self, points):
        return np.zeros(len(points))


def test_a_prior_without_spread_is_refused():
    with pytest.raises(EnsembleFailure, match="do not spread"):
        reference_of(problem(Constant()), np.random.default_rng(3))
