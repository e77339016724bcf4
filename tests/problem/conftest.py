"""Models of many kinds, each with another likelihood, prior transform or graph.

A test with an argument `any_model` runs for each of them; `make_model` makes one by its name.
"""

import warnings
from collections.abc import Callable

import numpy as np
import pymc as pm
import pymc.dims as pmd
import pytensor
import pytensor.tensor as pt
import pytest
from pymc.distributions import transforms
from pytensor.xtensor import as_xtensor

X = np.linspace(-1, 1, 6)
Y = np.array([0.3, -0.2, 0.5, 0.9, -1.1, 0.4])
POSITIVE = np.abs(Y) + 0.1
COUNTS = np.array([0, 1, 2, 3, 4, 0])
GROUP = np.array([0, 1, 2, 0, 1, 2])
COVARIANCE = np.exp(-np.abs(X[:, None] - X))
MASK = [0, 1, 0, 0, 0, 1]

MODELS: dict[str, Callable[[], pm.Model]] = {}


def register(define: Callable[[], None]) -> Callable[[], None]:
    """Make a model out of a function that adds variables to the model on the stack."""

    def build() -> pm.Model:
        with pm.Model(coords={"time": range(6), "group": range(3)}) as model:
            define()
        return model

    MODELS[define.__name__] = build
    return define


def masked(values: np.ndarray, mask=MASK) -> np.ma.MaskedArray:
    return np.ma.masked_array(values, mask)


def labelled(values, *dims: str):
    return as_xtensor(np.asarray(values), dims=dims)


CALLS: list[np.ndarray] = []


@pytensor.wrap_py(itypes=[pt.dvector], otypes=[pt.dvector])
def black_box(u):
    CALLS.append(u.copy())
    return u[0] + u[1] * X


@register
def normal():
    b = pm.Normal("b", shape=2)
    pm.Normal("y", b[0] + b[1] * X, pm.HalfNormal("s"), observed=Y)


@register
def normal_known_noise():
    b = pm.Normal("b", mu=[1, 2], sigma=[0.1, 10], shape=2)
    pm.Normal("y", b[0] + b[1] * X, np.linspace(0.5, 1, 6), observed=Y)


@register
def normal_precision():
    pm.Normal("y", pm.Normal("mu", 0, 10), tau=pm.Gamma("tau", 2, 1), observed=Y)


@register
def normal_matrix():
    a = pm.Normal("a", shape=(3, 1))
    s = pm.HalfNormal("s", shape=(1, 4))
    pm.Normal("y", a * np.ones((3, 4)), s, observed=np.arange(12.0).reshape(3, 4) / 6)


@register
def hierarchical():
    center = pm.Normal("center")
    spread = pm.HalfCauchy("spread", 1)
    effect = pm.Normal("effect", center, spread, shape=3)
    s = pm.HalfNormal("s", shape=3)
    pm.Normal("y", effect[GROUP], s[GROUP], observed=Y)


@register
def lognormal():
    pm.LogNormal("y", pm.math.exp(pm.Gamma("a", 2, 1) * X), 0.3, observed=POSITIVE)


@register
def student_t():
    nu = pm.Gamma("nu", 2, 0.1)
    pm.StudentT("y", nu, mu=pm.Normal("a") * X, sigma=pm.Uniform("s", 0.1, 2), observed=Y)


@register
def cauchy():
    pm.Cauchy("y", pm.StudentT("a", 4) * X, pm.HalfCauchy("b", 1), observed=Y)


@register
def laplace():
    pm.Laplace("y", pm.Laplace("a", 0, 1) * X, pm.InverseGamma("b", 2, 1), observed=Y)


@register
def von_mises():
    pm.VonMises("y", pm.VonMises("a", 0, 2), pm.HalfNormal("kappa"), observed=Y)


@register
def skew_normal():
    a = pm.Normal("a")
    pm.SkewNormal("y", mu=a * X, sigma=1.0, alpha=a, observed=Y)


@register
def poisson_exposure():
    rate = np.arange(1.0, 7) * pm.math.exp(pm.Normal("a")) * pm.math.exp(pm.Normal("b") * X)
    pm.Poisson("y", rate, observed=COUNTS)


@register
def poisson_indexed():
    a = pm.Normal("a", shape=3)
    pm.Poisson("y", pm.math.exp(a[GROUP]), observed=COUNTS)
    pm.Poisson("z", pm.math.exp(a)[GROUP], observed=COUNTS)
    pm.Poisson("w", pm.Deterministic("rate", pm.math.exp(a[0]) * pt.ones(6)), observed=COUNTS)


@register
def poisson_identity():
    pm.Poisson("y", pm.TruncatedNormal("a", 1, 1, lower=0) * (X + 2) + 1, observed=COUNTS)


@register
def negative_binomial():
    mu = pm.math.exp(pm.Normal("a") + X)
    pm.NegativeBinomial("y", mu=mu, alpha=pm.Exponential("alpha", 1.0), observed=COUNTS)


@register
def negative_binomial_identity():
    mu = 1 + pm.LogNormal("a") * (X + 1)
    pm.NegativeBinomial("y", mu=mu, alpha=2.0, observed=COUNTS)


@register
def bernoulli():
    pm.Bernoulli("y", pm.Beta("p", 2, 2), observed=COUNTS > 1)


@register
def bernoulli_complement():
    a = pm.Uniform("a", 0, 1, shape=2)
    pm.Bernoulli("y", 1 - pm.math.sigmoid(a[COUNTS % 2] * X), observed=COUNTS > 1)


@register
def binomial():
    pm.Binomial("y", n=np.arange(5, 11), logit_p=pm.Normal("a") * X, observed=COUNTS)


@register
def binomial_identity():
    p = pm.Kumaraswamy("p", 2, 2) * np.linspace(0.5, 0.9, 6)
    pm.Binomial("y", n=5, p=p, observed=COUNTS)


@register
def geometric():
    pm.Geometric("y", pm.math.sigmoid(pm.Normal("a") + X), observed=COUNTS + 1)


@register
def beta_binomial():
    a = pm.HalfNormal("a", shape=2)
    pm.BetaBinomial("y", alpha=a[0] + 1, beta=a[1] + 1, n=6, observed=COUNTS)


@register
def exponential():
    a = pm.Normal("a")
    pm.Exponential("y", 2 * pm.math.exp(a * X), observed=POSITIVE)
    pm.Exponential("z", scale=pm.math.exp(a) ** 2, observed=POSITIVE)


@register
def gamma_mean():
    alpha = pm.Exponential("alpha", 1)
    beta = alpha / pm.math.exp(pm.Normal("a") * X)
    pm.Gamma("y", alpha, beta, observed=POSITIVE)


@register
def gamma_moments():
    pm.Gamma("y", mu=pm.math.exp(pm.Normal("a") * X), sigma=0.3, observed=POSITIVE)


@register
def inverse_gamma():
    beta = pm.math.exp(pm.Normal("a") + X)
    pm.InverseGamma("y", pm.HalfNormal("alpha"), beta, observed=POSITIVE)


@register
def weibull():
    pm.Weibull("y", pm.HalfNormal("k"), pm.math.exp(pm.Normal("a") * X), observed=POSITIVE)


@register
def beta():
    k = pm.HalfNormal("k", 10)
    mu = pm.math.sigmoid(pm.Normal("a") * X)
    pm.Beta("y", alpha=mu * k, beta=(1 - mu) * k, observed=POSITIVE / 2)


@register
def categorical():
    b = pm.Normal("b", shape=(2, 3))
    pm.Categorical("y", logit_p=b[[0, 1, 0, 1]], observed=[0, 1, 2, 0])


@register
def ordered_logistic():
    cut = pm.Normal("cut", [-1, 1], transform=transforms.ordered, initval=[-1.0, 1.0], shape=2)
    pm.OrderedLogistic("y", eta=pm.Normal("a") * X, cutpoints=cut, observed=COUNTS % 3)


@register
def multinomial():
    pm.Multinomial("y", n=6, p=pm.Dirichlet("p", np.ones(3)), observed=[[1, 2, 3], [2, 2, 2]])


@register
def multinomial_softmax():
    b = pm.ZeroSumNormal("b", shape=3)
    p = pm.math.softmax(b + np.ones((2, 1)), axis=-1)
    pm.Multinomial("y", n=[6, 6], p=p, observed=[[1, 2, 3], [2, 2, 2]])


@register
def mv_normal():
    a = pm.Normal("a")
    pm.MvNormal("y", a * X, cov=COVARIANCE, observed=Y)
    pm.MvNormal("z", a * X, chol=np.linalg.cholesky(COVARIANCE), observed=Y)
    pm.MvNormal("w", a * np.ones(6), tau=np.linalg.inv(COVARIANCE), observed=np.stack([Y, X]))


@register
def mv_normal_free():
    chol, _, _ = pm.LKJCholeskyCov("L", n=2, eta=2.0, sd_dist=pm.HalfNormal.dist(1.0))
    pm.MvNormal("y", pm.Normal("a") * np.ones(2), chol=chol, observed=Y.reshape(3, 2))


@register
def mv_student_t():
    scale = np.eye(3) + 0.1
    pm.MvStudentT("y", nu=4, mu=pm.Normal("a") * X[:3], scale=scale, observed=Y.reshape(2, 3))


@register
def zero_inflated_poisson():
    psi = pm.Beta("psi", 1, 1)
    pm.ZeroInflatedPoisson("y", psi, pm.math.exp(pm.Normal("a") * X), observed=COUNTS)


@register
def hurdle_negative_binomial():
    psi = pm.Beta("psi", 1, 1)
    mu = pm.math.exp(pm.Normal("a") * X)
    pm.HurdleNegativeBinomial("y", psi, mu, alpha=2.0, observed=COUNTS)


@register
def mixture():
    w = pm.Dirichlet("w", np.ones(2))
    components = [pm.Normal.dist(a := pm.Normal("a"), 1.0), pm.StudentT.dist(3, mu=-a, sigma=1.0)]
    pm.Mixture("y", w, components, observed=Y)


@register
def normal_mixture_ordered():
    w = pm.Dirichlet("w", np.ones(3))
    mu = pm.Normal("mu", shape=3, transform=transforms.ordered, initval=[-1, 0, 1])
    pm.NormalMixture("y", w, mu, sigma=pm.HalfNormal("s"), observed=Y)


@register
def censored():
    latent = pm.Normal.dist(pm.Normal("a") * X, pm.HalfNormal("s"))
    pm.Censored("y", latent, lower=-0.5, upper=0.5, observed=np.clip(Y, -0.5, 0.5))


@register
def truncated():
    pm.Truncated("y", pm.Normal.dist(pm.Normal("a") * X, 1.0), lower=-2, upper=2, observed=Y)


@register
def truncated_normal():
    pm.TruncatedNormal("y", pm.Normal("a") * X, 1.0, lower=-2, upper=2, observed=Y)


@register
def custom_logp():
    def logp(value, mu):
        return -(pt.abs(value - mu) ** 1.5)

    pm.CustomDist("y", pm.Normal("a") * X, logp=logp, observed=Y)


@register
def custom_dist():
    def dist(mu, size):
        return pm.math.exp(pm.Normal.dist(mu, 1.0, size=size))

    pm.CustomDist("y", pm.Normal("a") * X, dist=dist, observed=POSITIVE)


@register
def potential():
    a = pm.Normal("a", shape=3)
    pm.Potential("sum_is_one", -((a.sum() - 1) ** 2))
    pm.Normal("y", a[0] * X + a[1], 0.5, observed=Y)


@register
def gp_marginal():
    gp = pm.gp.Marginal(cov_func=pm.gp.cov.ExpQuad(1, pm.Gamma("ell", 2, 1)))
    gp.marginal_likelihood("y", X[:, None], Y, sigma=pm.HalfNormal("s"))


@register
def gp_latent():
    gp = pm.gp.Latent(cov_func=pm.gp.cov.Matern32(1, pm.Gamma("ell", 5, 5)))
    pm.Normal("y", gp.prior("f", X[:, None]), 0.3, observed=Y)


@register
def latent_observed_directly():
    pm.Normal("y", pm.Normal("a", shape=6), pm.HalfNormal("s"), observed=Y)


@register
def observed_feeds_observed():
    a = pm.Normal("a")
    y = pm.Normal("y", a, 1.0, observed=Y)
    pm.Normal("z", y * a, pm.math.exp(y), observed=Y)


@register
def interval_of_variable():
    low = pm.Normal("low")
    pm.Normal("y", pm.Uniform("a", low, low + 2), 1.0, observed=Y)


@register
def data_containers():
    x, counts = pm.Data("x", X), pm.Data("counts", COUNTS)
    exposure, index = pm.Data("exposure", np.arange(1.0, 7)), pm.Data("index", GROUP)
    effect = pm.Normal("effect", shape=3)
    rate = exposure * pm.math.exp(pm.Normal("a") * x + effect[index])
    pm.Poisson("y", rate, observed=counts)


@register
def autoregressive():
    start = pm.Normal.dist(0, 1)
    sigma = pm.HalfNormal("s")
    pm.AR("y", [pm.Uniform("rho", -1, 1)], sigma=sigma, init_dist=start, observed=Y)


@register
def random_walk_prior():
    start = pm.Normal.dist(0, 1)
    w = pm.GaussianRandomWalk("w", sigma=pm.HalfNormal("s"), init_dist=start, steps=5)
    pm.Normal("y", w, 0.5, observed=Y)


@register
def scan():
    path = pytensor.scan(
        lambda x, a: x + 0.1 * a * (1 - x),
        outputs_info=[pt.constant(0.1)],
        non_sequences=[pm.LogNormal("a", 0, 0.3)],
        n_steps=6,
        return_updates=False,
    )
    pm.Normal("y", path, 0.1, observed=POSITIVE)


@register
def missing():
    with warnings.catch_warnings(action="ignore"):
        pm.Normal("y", pm.Normal("a") * X, pm.HalfNormal("s"), observed=masked(Y))


@register
def missing_vectors():
    mask = [[0, 1, 0], [0, 0, 1]]
    with warnings.catch_warnings(action="ignore"):
        mu, cov = pm.Normal("a") * X[:3], np.eye(3) + 0.5
        pm.MvNormal("y", mu, cov, observed=masked(Y.reshape(2, 3), mask))


@register
def foreign():
    prediction = black_box(pm.Normal("u", shape=2))
    pm.Normal("y", prediction, pm.HalfNormal("s"), observed=Y)
    pm.Poisson("z", pm.math.exp(prediction), observed=COUNTS)


@register
def foreign_missing():
    prediction = black_box(pm.Normal("u", shape=2))
    with warnings.catch_warnings(action="ignore"):
        pm.Normal("y", prediction, pm.HalfNormal("s"), observed=masked(Y))
        pm.Exponential("z", scale=pm.math.exp(prediction), observed=masked(POSITIVE))


@register
def foreign_latent():
    x = pm.Normal("x", black_box(pm.Normal("u", shape=2)), 0.3, shape=6)
    pm.Normal("y", x, 0.5, observed=Y)
    pm.Bernoulli("z", logit_p=x[0], observed=1)


@register
def dims_regression():
    x = pmd.Data("x", X, dims="time")
    slope = pmd.Normal("slope", dims="group")
    mu = slope * x
    observed = labelled(np.outer([1, 2, -1], X) + 0.1, "group", "time")
    pmd.Normal("y", mu, pmd.HalfNormal("s", dims="group"), observed=observed)
    success = labelled(np.arange(18).reshape(6, 3) % 2, "time", "group")
    pmd.Bernoulli("z", p=pmd.math.sigmoid(mu), observed=success)


@register
def dims_counts():
    x = pmd.Data("x", X + 2, dims="time")
    mu = pmd.math.exp(pmd.Normal("a", dims="group")) * x
    counts = labelled(np.arange(18).reshape(6, 3) % 4, "time", "group")
    pmd.Poisson("y", mu=mu, observed=counts)
    pmd.NegativeBinomial("z", mu=mu, alpha=pmd.HalfNormal("alpha"), observed=counts)


@register
def dims_zero_sum_censored():
    effect = pmd.ZeroSumNormal("effect", core_dims="group")
    values = labelled(np.clip(np.outer([1, 2, -1], X), -1, 1), "group", "time")
    pmd.Censored("y", pmd.Normal.dist(effect, 1.0), lower=-1, upper=1, observed=values)


@pytest.fixture(params=MODELS)
def any_model(request):
    return MODELS[request.param]()


@pytest.fixture
def make_model():
    return lambda name: MODELS[name]()


@pytest.fixture
def calls():
    """Points at which the black box was called."""
    CALLS.clear()
    return CALLS
