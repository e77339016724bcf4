"""Forward outputs are the natural parameters of the likelihood, as the user spells them."""

import numpy as np
import pymc as pm
import pymc.dims as pmd
import pytensor.tensor as pt
import pytest
from pytensor.xtensor import as_xtensor
from scipy import linalg, stats

from pymc_ensemble.problem import InverseProblem

X = np.linspace(-1, 1, 5)
EXPOSURE = np.arange(1.0, 6.0)
INDEX = np.array([0, 1, 1, 0, 1])
COUNTS = np.array([0, 1, 2, 3, 4])
U = np.array([[0.3, -0.7], [1.1, 0.2]])
A, B = U[:, :1], U[:, 1:]
PREDICTOR = A + B * X


def outputs(define):
    """Outputs at `U` of a model with the unknowns a and b."""
    with pm.Model():
        define(pm.Normal("a"), pm.Normal("b"))
        return InverseProblem.from_model().forward(U)


RATES = {
    "exp": (lambda a, b: pm.math.exp(a + b * X), PREDICTOR),
    "exposure": (lambda a, b: EXPOSURE * pm.math.exp(a + b * X), PREDICTOR),
    "product": (lambda a, b: pm.math.exp(a) * pm.math.exp(b * X), PREDICTOR),
    "product with offset": (lambda a, b: 3 * pm.math.exp(a) * EXPOSURE * pt.exp(b * X), PREDICTOR),
    "quotient": (lambda a, b: EXPOSURE * pm.math.exp(a) / pm.math.exp(-b * X) / 2, PREDICTOR),
    "powers": (lambda a, b: pm.math.sqrt(pm.math.exp(2 * a)) * pt.exp(b) ** X, PREDICTOR),
    "square": (lambda a, b: pm.math.exp((a + b * X) / 2) ** 2, PREDICTOR),
    "indexed predictor": (lambda a, b: pm.math.exp(pt.stack([a, b])[INDEX]), U[:, INDEX]),
    "indexed rate": (lambda a, b: pm.math.exp(a + b * X)[::-1], PREDICTOR),
    "gathered rate": (
        lambda a, b: pm.math.exp(pt.stack([a, b]))[INDEX] * pm.math.exp(b * X),
        U[:, INDEX] + B * X,
    ),
    "indexed with factor": (
        lambda a, b: (EXPOSURE * pm.math.exp(a))[::-1] * pm.math.exp(b * X),
        PREDICTOR,
    ),
    "reshaped": (lambda a, b: pm.math.exp(a + b * X).reshape((1, 5)).flatten(), PREDICTOR),
    "one for all": (lambda a, b: pm.math.exp(a + b), A + B),
    "filled": (lambda a, b: pt.full((5,), pm.math.exp(a + b)), A + B),
    "deterministic": (
        lambda a, b: pm.Deterministic("mu", 2 * pm.Deterministic("e", pt.exp(a + b * X))),
        PREDICTOR,
    ),
    "not a link": (lambda a, b: 1 + pm.math.exp(a + b * X), 1 + np.exp(PREDICTOR)),
    "identity": (lambda a, b: 10 + a + b * X, 10 + PREDICTOR),
}


@pytest.mark.parametrize("spelling", RATES)
def test_rate_is_seen_as_linear_predictor(spelling):
    rate, expected = RATES[spelling]

    def define(a, b):
        pm.Poisson("y", mu=rate(a, b), observed=COUNTS)

    np.testing.assert_allclose(outputs(define), expected)


@pytest.mark.parametrize("spelling", ["exp", "exposure", "product", "one for all", "identity"])
def test_negative_binomial_is_seen_by_its_mean(spelling):
    rate, expected = RATES[spelling]

    def define(a, b):
        pm.NegativeBinomial("y", mu=rate(a, b), alpha=2.5, observed=COUNTS)

    np.testing.assert_allclose(outputs(define), expected)


def test_exponential_rate_becomes_log_scale():
    def define(a, b):
        pm.Exponential("y", lam=2 * pm.math.exp(a + b * X), observed=EXPOSURE)

    np.testing.assert_allclose(outputs(define), -PREDICTOR)


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        (lambda x: pm.math.sigmoid(x), PREDICTOR),
        (lambda x: 1 - pm.math.sigmoid(x), -PREDICTOR),
        (lambda x: pm.math.invlogit(x)[::-1], PREDICTOR),
        (lambda x: 0.9 * pm.math.sigmoid(x), 0.9 / (1 + np.exp(-PREDICTOR))),
    ],
)
def test_probability_is_seen_as_logit(link, expected):
    def define(a, b):
        pm.Bernoulli("y", p=link(a + b * X), observed=COUNTS > 1)

    np.testing.assert_allclose(outputs(define), expected)


def test_softmax_is_seen_as_logits():
    def define(a, b):
        logits = pt.stack([a, b, a + b])
        pm.Multinomial("y", n=9, p=pm.math.softmax(logits), observed=[4, 3, 2])

    np.testing.assert_allclose(outputs(define), np.column_stack([A, B, A + B]))


def test_location_is_never_stepped_back():
    def define(a, b):
        pm.Normal("y", pm.math.exp(a + b * X), 1.0, observed=X)

    np.testing.assert_allclose(outputs(define), np.exp(PREDICTOR))


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (lambda a, b: pm.math.exp(a), A),
        (lambda a, b: pm.math.exp(a + b * X), PREDICTOR),
        (lambda a, b: EXPOSURE * pm.math.exp(a + b * X), PREDICTOR),
        (lambda a, b: pm.math.exp(pt.stack([a, b]))[INDEX], U),
        (lambda a, b: 10 + a + b * X, np.log(10 + PREDICTOR)),
    ],
)
def test_scale_is_seen_as_logarithm(scale, expected):
    def define(a, b):
        pm.Normal("y", 0, scale(a, b), observed=X)

    np.testing.assert_allclose(outputs(define), expected)


def test_prior_transform_is_a_link():
    with pm.Model():
        mu = pm.Normal("mu")
        pm.Normal("y", mu * X, pm.HalfNormal("sigma"), observed=X)
        problem = InverseProblem.from_model()
    U = np.array([[0.5, -1.0], [2.0, 0.3]])
    np.testing.assert_allclose(problem.forward(U), np.column_stack([U[:, :1] * X, U[:, 1]]))
    # sigma is fitted by all five data: information 2 each
    np.testing.assert_allclose(problem.curvature(problem.forward(U))[:, -1], 10)


def test_labelled_rates():
    with pm.Model(coords={"obs": range(5), "group": range(2)}):
        a = pmd.Normal("a", dims="group")
        rate = as_xtensor(EXPOSURE, dims=("obs",)) * pmd.math.exp(a)
        counts = as_xtensor(np.arange(10).reshape(5, 2), dims=("obs", "group"))
        pmd.Poisson("y", mu=rate, observed=counts)
        problem = InverseProblem.from_model()
    Z = problem.forward(U)
    np.testing.assert_allclose(Z, U)
    expected = np.exp(U) * EXPOSURE.sum()
    np.testing.assert_allclose(problem.curvature(Z), expected)


@pytest.mark.parametrize("spelling", ["cov", "chol", "tau"])
def test_known_covariance_is_whitened(spelling):
    covariance = np.exp(-np.abs(X[:, None] - X))
    chol = np.linalg.cholesky(covariance)
    matrix = {"cov": covariance, "chol": chol, "tau": np.linalg.inv(covariance)}[spelling]
    data = np.array([X, X**2, 1 + X])

    def define(a, b):
        pm.MvNormal("y", a + b * X, **{spelling: matrix}, observed=data)

    with pm.Model():
        define(pm.Normal("a"), pm.Normal("b"))
        problem = InverseProblem.from_model()
    Z = problem.forward(U)
    np.testing.assert_allclose(Z, np.linalg.solve(chol, PREDICTOR.T).T)
    residual = 3 * Z - np.linalg.solve(chol, data.sum(0))
    np.testing.assert_allclose(problem.loss_gradient(Z), residual)
    np.testing.assert_allclose(problem.curvature(Z), 3)
    assert problem.quadratic_loss


def ar1(memory, K=5):
    return memory ** np.abs(np.subtract.outer(np.arange(K), np.arange(K)))


@pytest.mark.parametrize("n_vectors", [1, 3])
def test_unknown_covariance_gives_entries_given_those_before(n_vectors):
    """An AR(1) process: y[k] has the mean mu[k] + memory (y[k-1] - mu[k-1])."""
    data = np.random.default_rng(1).normal(size=(n_vectors, 5))
    with pm.Model():
        a, s = pm.Normal("a"), pm.HalfNormal("s")
        cov = s**2 / (1 - 0.6**2) * ar1(0.6)
        pm.MvNormal("y", a * X, cov, observed=data if n_vectors > 1 else data[0])
        problem = InverseProblem.from_model()
    Z = problem.forward(U)
    a, log_s = U.T
    mean = np.tile(a[:, None, None] * X, (1, n_vectors, 1))
    mean[..., 1:] += 0.6 * (data - a[:, None, None] * X)[..., :-1]
    log_scales = np.tile(log_s[:, None], 5)
    log_scales[:, 0] -= 0.5 * np.log(1 - 0.6**2)
    np.testing.assert_allclose(Z, np.column_stack([mean.reshape(len(U), -1), log_scales]))
    precision = np.tile(np.exp(-2 * log_scales), n_vectors)
    weights = np.column_stack([precision, np.full((len(U), 5), 2 * n_vectors)])
    np.testing.assert_allclose(problem.curvature(Z), weights)
    laws = [stats.multivariate_normal(u * X, np.exp(2 * v) * ar1(0.6) / 0.64) for u, v in U]
    loss = [-law.logpdf(data).sum() for law in laws]
    np.testing.assert_allclose(problem.loss(Z), loss)


def test_what_is_no_covariance_has_no_density():
    with pm.Model():
        pm.MvNormal("y", np.zeros(5), np.eye(5) + pm.Normal("c"), observed=X)
        problem = InverseProblem.from_model()
    evaluations = problem.evaluate([[0.5], [-0.5]])
    assert not evaluations.failed.any()
    loss = problem.loss(evaluations.outputs)
    assert np.isfinite(loss[0])
    assert loss[1] == np.inf


def test_many_vectors_keep_mean_and_covariance():
    data = np.random.default_rng(1).normal(size=(2, 2))
    with pm.Model():
        pm.MvNormal("y", pm.Normal("m", shape=2), pm.HalfNormal("s") * np.eye(2), observed=data)
        assert InverseProblem.from_model().n_outputs == 6


def test_ill_conditioned_covariance_is_whitened():
    t = np.linspace(0, 1, 30)
    covariance = np.exp(-0.5 * (t[:, None] - t) ** 2 / 0.3**2) + 1e-8 * np.eye(30)
    assert 1e8 < np.linalg.cond(covariance) < 1e10
    with pm.Model():
        pm.MvNormal("y", pm.Normal("a") * t, cov=covariance, observed=np.sin(t))
        problem = InverseProblem.from_model()
    Z = problem.forward(np.array([[0.4]]))
    slope = problem.loss_gradient(Z) @ np.linalg.solve(np.linalg.cholesky(covariance), t)
    expected = t @ np.linalg.solve(covariance, 0.4 * t - np.sin(t))
    np.testing.assert_allclose(slope, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "spelling", ["chol", "upper", "shared", "product", "square root", "transposed"]
)
def test_given_factor_is_used_itself(spelling):
    """Singular values from 1 to 1e-9: the covariance L L^T is singular to working precision."""
    K, rng = 6, np.random.default_rng(1)
    left, _ = np.linalg.qr(rng.normal(size=(K, K)))
    right, _ = np.linalg.qr(rng.normal(size=(K, K)))
    root = (left * np.logspace(0, -9, K)) @ right.T
    chol = np.linalg.qr(root.T, mode="r").T
    chol *= np.sign(np.diag(chol))
    t = np.linspace(0, 1, K)
    data = np.array([0.4 * t, t**2]) + rng.normal(size=(2, K)) @ chol.T
    with pm.Model():
        options = {
            "chol": {"chol": chol},
            "upper": {"chol": chol.T, "lower": False},
            "shared": {"chol": pm.Data("chol", chol)},
            "product": {"cov": pt.dot(chol, pt.as_tensor(chol).T)},
            "transposed": {"cov": pt.dot(pt.as_tensor(chol.T).T, chol.T)},
            "square root": {"cov": pt.dot(root, pt.as_tensor(root).T)},
        }[spelling]
        pm.MvNormal("y", pm.Normal("a") * t, **options, observed=data)
        problem = InverseProblem.from_model()
    u = np.array([[0.4], [0.0]])
    Z = problem.forward(u)
    whitened = linalg.solve_triangular(
        chol, (data[None] - u[:, :, None] * t).reshape(4, K).T, lower=True
    )
    squares = np.sum(whitened**2, axis=0).reshape(2, 2).sum(1)
    expected = squares / 2 + 2 * np.log(np.diag(chol)).sum() + K * np.log(2 * np.pi)
    np.testing.assert_allclose(problem.loss(Z), expected, rtol=1e-6)
    np.testing.assert_allclose(problem.curvature(Z), 2)
    assert problem.quadratic_loss


def test_quadratic_loss_and_gaussian_prior():
    def flags(prior, likelihood):
        with pm.Model():
            likelihood(prior("a"))
            problem = InverseProblem.from_model()
        return problem.quadratic_loss, problem.gaussian_prior

    def normal(a):
        pm.Normal("y", a * X, 0.5, observed=X)

    def unknown_noise(a):
        pm.Normal("y", a * X, pm.math.exp(a), observed=X)

    def lognormal(a):
        pm.LogNormal("y", a * X, 0.5, observed=EXPOSURE)

    def student(a):
        pm.StudentT("y", 4, mu=a * X, sigma=0.5, observed=X)

    tiny = lambda name: pm.Normal(name, 1e6, 1e-3)  # noqa: E731
    assert flags(pm.Normal, normal) == (True, True)
    assert flags(tiny, lognormal) == (True, True)
    assert flags(pm.HalfNormal, normal) == (True, False)
    assert flags(lambda name: pm.Laplace(name, 0, 1), normal) == (True, False)
    assert flags(lambda name: pm.Cauchy(name, 0, 1e6), unknown_noise) == (False, False)
    assert flags(pm.Normal, student) == (False, True)


def test_outputs_beyond_the_domain():
    with pm.Model():
        pm.Poisson("y", pm.math.exp(pm.Normal("a") * X), observed=COUNTS)
        problem = InverseProblem.from_model()
    Z = np.full((3, 5), 40.0)
    Z[1] = -800.0
    Z[2, 0] = np.nan
    assert problem.loss(Z)[0] == pytest.approx(5 * np.exp(40), rel=1e-6)
    assert problem.loss(Z)[2] == np.inf
    # clipped to 30 in absolute value for gradients
    np.testing.assert_allclose(problem.loss_gradient(Z)[0], np.exp(30) - COUNTS)
    np.testing.assert_allclose(problem.curvature(Z)[1], np.exp(-30))
    assert np.isnan(problem.loss_gradient(Z)[2]).all()
    # no usable rows at all
    assert np.isnan(problem.curvature(Z[2:])).all()
    assert problem.loss(Z[:0]).shape == (0,)
    assert problem.curvature(Z[:0]).shape == problem.forward(Z[:0, :1]).shape == (0, 5)


def test_identity_links_are_clipped_in_gradients_only():
    with pm.Model():
        pm.Poisson("y", 5 + pm.Normal("a") * X, observed=COUNTS)
        rate = InverseProblem.from_model()
    with pm.Model():
        pm.Bernoulli("y", pm.Beta("p", 1, 1) * np.ones(5) * 0.9, observed=COUNTS > 2)
        probability = InverseProblem.from_model()
    Z = np.full((1, 5), -2.0)
    assert rate.loss(Z) == np.inf
    np.testing.assert_allclose(rate.loss_gradient(Z)[0], 1 - COUNTS / 1e-6)
    np.testing.assert_allclose(rate.curvature(Z)[0], 1e6)
    assert probability.loss(Z) == np.inf
    np.testing.assert_allclose(probability.curvature(Z)[0], 1 / (1e-6 * (1 - 1e-6)))
    np.testing.assert_allclose(probability.curvature(-Z)[0], 1 / (1e-6 * (1 - 1e-6)), rtol=1e-9)
