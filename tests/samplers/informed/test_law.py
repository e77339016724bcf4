"""The learned law against the matrices that it never forms."""

import numpy as np
import pytest
from scipy import stats

from pymc_ensemble.samplers.informed.law import InformedLaw


@pytest.fixture(params=[(4, 9), (9, 4), (1, 1)], ids=str)
def law(request):
    K, d = request.param
    rng = np.random.default_rng(K)
    return InformedLaw(rng.standard_normal(d), 3 * rng.standard_normal((K, d)))


def precision(law):
    return np.eye(len(law.center)) + law.factor.T @ law.factor


def test_density_is_that_of_the_matrix(law):
    x = np.random.default_rng(1).standard_normal((5, len(law.center)))
    exact = stats.multivariate_normal(law.center, np.linalg.inv(precision(law)))
    np.testing.assert_allclose(law.log_density(x), exact.logpdf(x).reshape(5), rtol=1e-10)


def test_products_with_the_covariance(law):
    x = np.random.default_rng(2).standard_normal((3, len(law.center)))
    np.testing.assert_allclose(law.contract(x), np.linalg.solve(precision(law), x.T).T, atol=1e-10)


def test_noise_has_the_covariance_of_the_law(law):
    """Noise is a linear map of standard noise: its square is the covariance, without sampling."""

    class Rows:
        def standard_normal(self, shape):
            return np.eye(*shape)

    root = law.noise(len(law.center), Rows())
    np.testing.assert_allclose(root.T @ root, np.linalg.inv(precision(law)), atol=1e-10)


@pytest.mark.parametrize("damping", [0.0, 2.5])
def test_newton_step(law, damping):
    gradient = np.random.default_rng(3).standard_normal(len(law.center))
    H = precision(law) + damping * np.eye(len(law.center))
    np.testing.assert_allclose(
        law.newton_step(gradient, damping), -np.linalg.solve(H, gradient), atol=1e-10
    )


def test_informed_directions():
    law = InformedLaw(np.zeros(3), np.diag([0.5, 4.0, 0.0]))
    assert law.informed.shape == (1, 3)
    np.testing.assert_allclose(np.abs(law.informed[0]), [0, 1, 0], atol=1e-12)
    assert law.degrees == pytest.approx(16 / 17 + 0.25 / 1.25)


def test_without_information_it_is_the_prior():
    law = InformedLaw(np.zeros(3), np.zeros((2, 3)))
    x = np.ones((1, 3))
    np.testing.assert_allclose(law.contract(x), x)
    np.testing.assert_allclose(law.log_density(x), stats.norm.logpdf(x).sum())
