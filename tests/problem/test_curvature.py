"""Fisher weights against the mean squared gradient over simulated data."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
from scipy import special

from pymc_ensemble.problem import InverseProblem

N = 20_000
U = np.array([0.4, -0.3])


def information(distribution):
    """Weights at `U`, and the mean squared gradient over N simulated data, with its error.

    The data enter as N rows that each have outputs of their own, so that one gradient holds N
    draws.
    """
    draws = pm.draw(distribution(*(pt.full((N, 1), u) for u in U)), random_seed=1)
    with pm.Model():
        a = pm.Normal("a", shape=(N, 1))
        b = pm.Normal("b", shape=(N, 1))
        distribution(a, b, name="y", observed=draws)
        problem = InverseProblem.from_model()
    Z = problem.forward(np.repeat(U, N)[None])
    squares = problem.loss_gradient(Z).reshape(-1, N) ** 2
    weights = problem.curvature(Z).reshape(-1, N)
    return weights, squares.mean(1), squares.std(1) / np.sqrt(N)


def family(cls, *parameters, **options):
    """A distribution, with parameters that are functions of a and b."""

    def make(a, b, name=None, observed=None):
        keywords = {k: v(a, b) if callable(v) else v for k, v in options.items()}
        if name is None:
            return cls.dist(**keywords, shape=(N, 1))
        return cls(name, **keywords, observed=observed)

    return make


mean = lambda a, b: a  # noqa: E731
exp_a = lambda a, b: pm.math.exp(a)  # noqa: E731
exp_b = lambda a, b: pm.math.exp(b)  # noqa: E731
logistic = lambda a, b: pm.math.sigmoid(a)  # noqa: E731
shifted = lambda a, b: a + 1  # noqa: E731

CLOSED = {
    "Normal": family(pm.Normal, mu=mean, sigma=exp_b),
    "LogNormal": family(pm.LogNormal, mu=mean, sigma=exp_b),
    "HalfNormal": family(pm.HalfNormal, sigma=exp_b),
    "StudentT": family(pm.StudentT, nu=4.0, mu=mean, sigma=exp_b),
    "Laplace": family(pm.Laplace, mu=mean, b=exp_b),
    "Cauchy": family(pm.Cauchy, alpha=mean, beta=exp_b),
    "Logistic": family(pm.Logistic, mu=mean, s=exp_b),
    "Gumbel": family(pm.Gumbel, mu=mean, beta=exp_b),
    "Poisson": family(pm.Poisson, mu=exp_a),
    "Poisson identity": family(pm.Poisson, mu=shifted),
    "Bernoulli": family(pm.Bernoulli, p=logistic),
    "Bernoulli identity": family(pm.Bernoulli, p=lambda a, b: a),
    "Binomial": family(pm.Binomial, n=7, p=logistic),
    "Binomial identity": family(pm.Binomial, n=7, p=lambda a, b: a),
    "Geometric": family(pm.Geometric, p=logistic),
    "NegativeBinomial": family(pm.NegativeBinomial, mu=exp_a, alpha=2.5),
    "NegativeBinomial identity": family(pm.NegativeBinomial, mu=shifted, alpha=2.5),
    "NegativeBinomial n and p": family(pm.NegativeBinomial, n=2.5, p=logistic),
    "Exponential": family(pm.Exponential, scale=exp_a),
    "Exponential identity": family(pm.Exponential, scale=shifted),
    "Gamma": family(pm.Gamma, alpha=exp_b, beta=lambda a, b: pm.math.exp(-a)),
    "InverseGamma": family(pm.InverseGamma, alpha=exp_b, beta=exp_a),
    "Beta": family(pm.Beta, alpha=exp_a, beta=exp_b),
    "Weibull": family(pm.Weibull, alpha=exp_b, beta=exp_a),
}


@pytest.mark.parametrize("name", CLOSED)
def test_closed_weights(name):
    weights, mean_square, error = information(CLOSED[name])
    # independent draws: five standard errors, and a little for heavy tails
    np.testing.assert_allclose(weights[:, 0], mean_square, atol=np.max(5 * error))
    np.testing.assert_allclose(weights, np.repeat(weights[:, :1], N, axis=1), rtol=1e-12)


def test_multinomial_logits():
    logits = np.array([0.2, -0.5, 1.0])
    p = special.softmax(logits)
    with pm.Model():
        x = pm.Normal("x", shape=3)
        pm.Multinomial("y", n=[6, 9], p=pm.math.softmax(x), observed=[[1, 2, 3], [3, 3, 3]])
        pm.Categorical("z", logit_p=x, observed=[0, 1, 2, 0])
        problem = InverseProblem.from_model()
    Z = problem.forward(logits[None])
    expected = np.concatenate([15 * p * (1 - p), 4 * p * (1 - p)])
    np.testing.assert_allclose(problem.curvature(Z)[0], expected)


def test_weights_sum_over_broadcasting():
    """A scalar mean and a scalar scale for a matrix of data; and effects of groups."""
    data = np.arange(12.0).reshape(3, 4)
    with pm.Model():
        pm.Normal("y", pm.Normal("a"), pm.math.exp(pm.Normal("b")), observed=data)
        scalar = InverseProblem.from_model()
    Z = scalar.forward([[0.1, 0.2]])
    np.testing.assert_allclose(scalar.curvature(Z), [[12 * np.exp(-0.4), 24]])

    index = np.array([0, 0, 0, 1])
    with pm.Model():
        rate = pm.math.exp(pm.Normal("a", shape=2))
        pm.Poisson("y", rate[index] * np.arange(1.0, 4)[:, None], observed=np.ones((3, 4)))
        groups = InverseProblem.from_model()
    u = np.array([[0.3, -0.2]])
    # rates 1, 2 and 3 times exp(a) each feed three data of group 0 and one of group 1
    expected = 6 * np.exp(u[0]) * [3, 1]
    weights = groups.curvature(groups.forward(u))[0]
    if groups.n_outputs == 4:
        weights = np.bincount(index, weights)
    np.testing.assert_allclose(weights, expected)


def test_weights_without_a_closed_form():
    """A mixture of two equal components is its component; a censored one knows less."""
    x = np.linspace(-1, 1, 4)

    def curvature(define):
        with pm.Model():
            define(pm.Normal("a") + x)
            problem = InverseProblem.from_model()
        Z = problem.forward(np.array([[0.2]]))
        first, second = problem.curvature(Z), problem.curvature(np.repeat(Z, 2, axis=0))
        np.testing.assert_allclose(first, second[:1])
        np.testing.assert_array_equal(second[0], second[1])
        return first[0]

    plain = curvature(lambda mu: pm.Normal("y", mu, 0.5, observed=x))
    same = curvature(
        lambda mu: pm.Mixture("y", [0.3, 0.7], [pm.Normal.dist(mu, 0.5)] * 2, observed=x)
    )
    # squared normal gradients over 64 data sets have a relative error of sqrt(2 / 64)
    np.testing.assert_allclose(same, plain, rtol=5 * np.sqrt(2 / 64))
    censored = curvature(
        lambda mu: pm.Censored(
            "y", pm.Normal.dist(mu, 0.5), lower=-5, upper=0, observed=-np.ones(4)
        )
    )
    assert np.all(censored < plain * (1 + 5 * np.sqrt(2 / 64)))
    assert censored[0] > 2 * censored[-1]


def test_degrees_of_freedom():
    """Fisher information of log nu, by its closed form."""
    nu = 3.0
    with pm.Model():
        pm.StudentT("y", nu=pm.math.exp(pm.Normal("a")), mu=0, sigma=1, observed=np.ones(500))
        problem = InverseProblem.from_model()
    expected = (
        500
        * nu**2
        * (
            (special.polygamma(1, nu / 2) - special.polygamma(1, (nu + 1) / 2)) / 4
            - (nu + 5) / (2 * nu * (nu + 1) * (nu + 3))
        )
    )
    # mean of 64 squares of a nearly normal gradient
    weight = problem.curvature([[np.log(nu)]])
    np.testing.assert_allclose(weight, expected, rtol=5 * np.sqrt(2 / 64))


def test_observed_curvature_as_last_resort():
    """A density without a sampler: the second derivative at the data, where it is positive."""

    def logp(value, mu):
        return -((value - mu) ** 4)

    data = np.array([0.0, 1.0, 2.0])
    with pm.Model():
        pm.CustomDist("y", pm.Normal("a") * np.ones(3), logp=logp, observed=data)
        problem = InverseProblem.from_model()
    Z = np.array([[1.0, 1.0, 1.0], [0.5, 0.0, -1.0]])
    np.testing.assert_allclose(problem.curvature(Z), 12 * (Z - data) ** 2, rtol=1e-6, atol=1e-7)
