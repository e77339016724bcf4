"""Problems from plain functions, without PyMC."""

import cloudpickle
import numpy as np
import pytest
from scipy import stats

from pymc_ensemble.problem import CholeskyNoise, InverseProblem, LowRankNoise

rng = np.random.default_rng(0)
DESIGN = rng.normal(size=(5, 2))
DATA = np.arange(5.0)
SCALES = np.linspace(0.5, 2, 5)
FACTOR = rng.normal(size=(5, 2))
COVARIANCE = np.diag(SCALES**2) + FACTOR @ FACTOR.T
U = rng.normal(size=(7, 2))

NOISES = {
    "standard deviation": (0.3, 0.09 * np.eye(5)),
    "standard deviations": (SCALES, np.diag(SCALES**2)),
    "covariance": (COVARIANCE, COVARIANCE),
    "Cholesky factor": (CholeskyNoise(np.linalg.cholesky(COVARIANCE)), COVARIANCE),
    "low rank": (LowRankNoise(SCALES**2, FACTOR), COVARIANCE),
}


def line(u):
    return DESIGN @ u


def make(noise=0.3, **options):
    prior = options.pop("prior", (np.zeros(2), np.eye(2)))
    return InverseProblem(line, prior=prior, data=DATA, noise=noise, **options)


@pytest.mark.parametrize("kind", NOISES)
def test_gaussian_noise(kind):
    noise, covariance = NOISES[kind]
    problem = make(noise)
    Z = problem.forward(U)
    law = stats.multivariate_normal(DATA, covariance)
    np.testing.assert_allclose(problem.loss(Z), -law.logpdf(U @ DESIGN.T))
    # the chain rule through the whitened outputs, which are linear in u
    slope = problem.forward(np.eye(2)) - problem.forward(np.zeros((2, 2)))
    gradient = problem.loss_gradient(Z) @ slope.T
    residual = U @ DESIGN.T - DATA
    np.testing.assert_allclose(gradient, np.linalg.solve(covariance, residual.T).T @ DESIGN)
    precision = (slope * problem.curvature(Z)[0]) @ slope.T
    np.testing.assert_allclose(precision, DESIGN.T @ np.linalg.solve(covariance, DESIGN))
    assert problem.quadratic_loss
    assert (problem.dimension, problem.n_outputs) == (2, 5)
    assert problem.coordinate_names == ("u[0]", "u[1]")


def test_large_low_rank_noise_is_never_formed():
    K = 200_000
    problem = InverseProblem(
        lambda u: np.full(K, u[0]),
        prior=([0.0], [1.0]),
        data=np.zeros(K),
        noise=LowRankNoise(np.ones(K), np.ones((K, 1))),
    )
    # the outputs are u times the constant vector; along it the noise has variance 1 + K
    slope = problem.forward([[1.0]])[0]
    np.testing.assert_allclose(slope @ slope, K / (1 + K), rtol=1e-9)


def test_gaussian_prior():
    mean, covariance = np.array([1.0, -1.0]), np.array([[2.0, 0.5], [0.5, 1.0]])
    law = stats.multivariate_normal(mean, covariance)
    for prior in ((mean, covariance), law):
        problem = make(prior=prior)
        assert problem.gaussian_prior
        np.testing.assert_allclose(problem.prior_potential(U), -law.logpdf(U))
        precision = np.linalg.inv(covariance)
        np.testing.assert_allclose(problem.prior_gradient(U), (U - mean) @ precision)
        np.testing.assert_allclose(problem.prior_hessian(U[0]), precision)
        sample = problem.sample_prior(20_000, np.random.default_rng(1))
        np.testing.assert_allclose(sample.mean(0), mean, atol=5 * np.sqrt(2 / 20_000))
        np.testing.assert_allclose(np.cov(sample.T), covariance, atol=5 * 2 * np.sqrt(2 / 20_000))


def test_prior_object():
    class Logistic:
        def sample(self, size, rng):
            return rng.logistic(size=(size, 2))

        def logpdf(self, points):
            return stats.logistic.logpdf(points).sum(1)

    class WithGradient(Logistic):
        def grad_logpdf(self, points):
            return -np.tanh(points / 2)

    for prior in (Logistic(), WithGradient(), stats.logistic(loc=np.zeros(2))):
        problem = make(prior=prior)
        assert not problem.gaussian_prior
        potential = -stats.logistic.logpdf(U).sum(1)
        np.testing.assert_allclose(problem.prior_potential(U), potential)
        np.testing.assert_allclose(problem.prior_gradient(U), np.tanh(U / 2), atol=1e-8)
        hessian = np.diag(0.5 / np.cosh(U[0] / 2) ** 2)
        np.testing.assert_allclose(problem.prior_hessian(U[0]), hessian, atol=1e-5)


def test_any_loss():
    def loss(Z):
        return np.sum(np.exp(Z) - DATA * Z, axis=1)

    def gradient(Z):
        return np.exp(Z) - DATA

    by_differences = InverseProblem(line, prior=(np.zeros(2), np.ones(2)), loss=loss, n_outputs=5)
    exact = InverseProblem(
        line,
        prior=(np.zeros(2), np.ones(2)),
        loss=loss,
        loss_gradient=gradient,
        curvature=np.exp,
        n_outputs=5,
    )
    Z = exact.forward(U)
    np.testing.assert_array_equal(exact.loss_gradient(Z), gradient(Z))
    np.testing.assert_array_equal(exact.curvature(Z), np.exp(Z))
    np.testing.assert_allclose(by_differences.loss_gradient(Z), gradient(Z), atol=1e-7)
    np.testing.assert_allclose(by_differences.curvature(Z), np.exp(Z), rtol=1e-3, atol=1e-4)
    assert not exact.quadratic_loss


@pytest.mark.parametrize("with_gradient", [False, True])
def test_curvature_by_differences_takes_few_calls(with_gradient):
    calls = []

    def loss(Z):
        calls.append(Z)
        return np.sum(np.exp(Z), axis=1)

    def gradient(Z):
        calls.append(Z)
        return np.exp(Z)

    problem = InverseProblem(
        line,
        prior=(np.zeros(2), np.ones(2)),
        loss=loss,
        loss_gradient=gradient if with_gradient else None,
        n_outputs=5,
    )
    Z = np.random.default_rng(4).uniform(-1, 1, (7, 5))
    # second differences of step h: h^2 / 12 of truncation, 4 eps / h^2 of rounding; h^2 = 1.5e-8
    np.testing.assert_allclose(problem.curvature(Z), np.exp(Z), atol=1e-6)
    assert len(calls) == (10 if with_gradient else 11)


def test_curvature_where_the_loss_is_infinite_next_door():
    def loss(Z):
        return np.where(Z[:, 0] < 0, np.inf, Z[:, 0] ** 2)

    problem = InverseProblem(line, prior=(np.zeros(2), np.ones(2)), loss=loss, n_outputs=1)
    np.testing.assert_allclose(problem.curvature([[0.0], [1.0]]), [[1e-8], [2.0]], rtol=1e-6)


def test_vectorized_forward_and_failures():
    def many(points):
        if np.any(points > 10):
            raise RuntimeError("too large")
        outputs = points @ DESIGN.T
        outputs[points[:, 0] < -10] = np.nan
        return outputs

    problem = InverseProblem(
        many, prior=(np.zeros(2), np.eye(2)), data=DATA, noise=COVARIANCE, vectorized=True
    )
    reference = make(COVARIANCE)
    np.testing.assert_allclose(problem.forward(U), reference.forward(U))
    evaluations = problem.evaluate([[11.0, 0.0], [0.0, 1.0], [-11.0, 0.0]])
    np.testing.assert_array_equal(evaluations.failed, [True, False, True])
    assert "too large" in dict(evaluations.errors)[0]
    np.testing.assert_array_equal(problem.loss(evaluations.outputs) == np.inf, evaluations.failed)


@pytest.mark.parametrize("vectorized", [False, True])
def test_forward_that_writes_into_its_argument(vectorized):
    def careless(u):
        u *= 2
        return u @ DESIGN.T / 2

    problem = InverseProblem(
        careless, prior=(np.zeros(2), np.eye(2)), data=DATA, noise=0.3, vectorized=vectorized
    )
    points = U.copy()
    Z = problem.forward(points)
    np.testing.assert_array_equal(points, U)
    np.testing.assert_allclose(Z, U @ DESIGN.T)


def test_wrong_use():
    with pytest.raises(TypeError, match="`data` and `noise`, or `loss`"):
        InverseProblem(line, prior=(np.zeros(2), np.eye(2)), data=DATA)
    with pytest.raises(TypeError, match="n_outputs"):
        InverseProblem(line, prior=(np.zeros(2), np.eye(2)), loss=np.sum)
    with pytest.raises(TypeError, match="logpdf"):
        make(prior=object())
    with pytest.raises(ValueError, match="positive definite"):
        make(prior=(np.zeros(2), -np.eye(2)))
    with pytest.raises(ValueError, match="positive definite"):
        make(-np.eye(5))
    with pytest.raises(ValueError, match="positive standard deviations"):
        make(-1.0)
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        make(np.ones(4))
    with pytest.raises(ValueError, match="1 coordinate names for 2"):
        make(coordinate_names=["a"])


def test_plain_functions_need_no_compiling():
    def never(u):
        raise AssertionError("not to be called")

    InverseProblem(never, prior=(np.zeros(2), np.eye(2)), data=DATA, noise=1.0).compile()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": np.ones((3, 1))}, r"`data` has shape \(3, 1\)"),
        ({"data": [1.0, np.nan]}, "`data` must be finite"),
        ({"noise": CholeskyNoise(np.eye(4))}, r"factor of `noise` has shape \(4, 4\).*5 entries"),
        ({"noise": LowRankNoise(np.ones(4), np.ones((4, 1)))}, r"shape \(4, 1\).*5 entries"),
        ({"noise": np.full(5, np.nan)}, "positive standard deviations"),
        ({"noise": np.full((5, 5), np.nan)}, "positive definite"),
        ({"prior": (np.zeros(3), np.eye(2))}, r"covariance has shape \(2, 2\), the mean has 3"),
        ({"prior": (np.zeros((2, 1)), np.eye(2))}, r"mean has shape \(2, 1\)"),
        ({"prior": ([0.0, np.nan], np.eye(2))}, "must be finite"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    options = {"prior": (np.zeros(2), np.eye(2)), "data": DATA, "noise": 0.3} | options
    with pytest.raises(ValueError, match=message):
        InverseProblem(line, **options)


def test_functions_of_the_wrong_shape():
    problem = InverseProblem(
        line,
        prior=(np.zeros(2), np.ones(2)),
        loss=np.sum,
        loss_gradient=lambda Z: Z[0],
        curvature=lambda Z: np.ones((5, 7)),
        n_outputs=5,
    )
    Z = problem.forward(U)
    with pytest.raises(ValueError, match=r"`loss` returned .* shape \(\), expected \(7,\)"):
        problem.loss(Z)
    with pytest.raises(ValueError, match=r"`loss_gradient` .* \(5,\), expected \(7, 5\)"):
        problem.loss_gradient(Z)
    with pytest.raises(ValueError, match=r"`curvature` .* \(5, 7\), expected \(7, 5\)"):
        problem.curvature(Z)


def test_pickles():
    problem = cloudpickle.loads(cloudpickle.dumps(make(COVARIANCE)))
    np.testing.assert_array_equal(problem.forward(U), make(COVARIANCE).forward(U))
