"""Models whose posterior means and standard deviations are known, for `diagnosis.py`.

They come in three parts: those with which the thresholds of `diagnose` were chosen, some that were
held back then, and some from other families that were written later, when the first two parts were
known, and measured before anything was changed on their account.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from numpy.typing import NDArray
from pymc.pytensorf import join_nonshared_inputs
from pytensor.graph.replace import vectorize_graph
from scipy.optimize import minimize
from scipy.stats import multivariate_t, norm

import pymc_ensemble as pe
from pymc_ensemble import gallery

Array = NDArray[np.float64]
Moments = dict[str, dict[str, Array]]
Part = Literal["chosen", "held back", "fresh"]

# -- exact posteriors ---------------------------------------------------------------------------


def log_density(model: pm.Model) -> tuple[int, Callable[[Array], Array]]:
    """Dimension of a model, and its log density at points of shape (n, d), unconstrained."""
    problem = pe.InverseProblem.from_density(model)

    def at(U: Array) -> Array:
        value = -problem.loss(problem.evaluate(U).outputs) - problem.prior_potential(U)
        return np.where(np.isfinite(value), value, -np.inf)

    return problem.dimension, at


def moments_of(model: pm.Model, U: Array, weights: Array) -> Moments:
    """Moments of the free variables of a model, at weighted points, unconstrained."""
    outputs, u = join_nonshared_inputs(
        point=model.initial_point(),
        outputs=model.replace_rvs_by_values(model.free_RVs),
        inputs=model.value_vars,
        shared_inputs={},
    )
    batch = pt.matrix("U", shape=(None, u.type.shape[0]))
    evaluate = pytensor.function([batch], vectorize_graph(outputs, {u: batch}))
    found = {}
    for rv, values in zip(model.free_RVs, evaluate(U), strict=True):
        mean = np.tensordot(weights, values, 1)
        found[rv.name] = {
            "mean": mean,
            "sd": np.sqrt(np.tensordot(weights, (values - mean) ** 2, 1)),
        }
    return found


def quadrature(model: pm.Model, half_width: float = 8.0) -> Moments:
    """Moments of the posterior of a model in one to three dimensions, on a grid."""
    d, density = log_density(model)
    n = {1: 20001, 2: 801, 3: 141}[d]
    center, width = np.zeros(d), np.full(d, half_width)
    for _ in range(2):  # once to find the posterior, once to resolve it
        axes = [np.linspace(c - w, c + w, n) for c, w in zip(center, width, strict=True)]
        grid = np.stack([x.ravel() for x in np.meshgrid(*axes, indexing="ij")], axis=1)
        value = np.concatenate([density(some) for some in np.array_split(grid, 1 + n**d // 400000)])
        weights = np.exp(value - value.max())
        weights /= weights.sum()
        center = weights @ grid
        width = np.minimum(half_width, 10 * np.sqrt(weights @ (grid - center) ** 2))
    kept = weights > 1e-12
    return moments_of(model, grid[kept], weights[kept])


def importance(model: pm.Model, n: int = 400_000) -> Moments:
    """Moments of the posterior of a model with one mode, by adaptive importance sampling."""
    d, density = log_density(model)
    rng = np.random.default_rng(0)
    start = minimize(
        lambda u: -density(u[None])[0], np.zeros(d), method="Nelder-Mead", options={"maxiter": 4000}
    )
    center, covariance = start.x, np.eye(d)
    for size in (n // 10, n // 10, n // 4, n):
        law = multivariate_t(center, covariance, df=5, seed=rng)
        U = law.rvs(size).reshape(size, d)
        value = density(U) - law.logpdf(U)
        weights = np.exp(value - value.max())
        weights /= weights.sum()
        center = weights @ U
        covariance = ((U - center).T * weights) @ (U - center) * 1.1
    if (effective := 1 / (weights**2).sum()) < 20_000:
        raise RuntimeError(f"only {effective:.0f} effective points of {n}")
    return moments_of(model, U, weights)


def conditional(nodes: Array, log_weights: Array, mean: Array, variance: Array) -> dict[str, Array]:
    """Moments of what is Gaussian given a scalar, from its moments (n, K) at nodes of this."""
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    center = weights @ mean
    return {"mean": center, "sd": np.sqrt(weights @ (variance + (mean - center) ** 2))}


# -- the problems with which thresholds were chosen, and the first that were held back ----------


def black_box_free(forward: Callable[[Any], Any], prior: Any, likelihood: Any) -> pm.Model:
    """Model of one vector ``u`` with a prior, a forward map in PyTensor, and a likelihood."""
    with pm.Model() as model:
        likelihood(forward(prior()))
    return model


def normal(d: int = 2, sd: float = 1.0) -> Callable[[], Any]:
    """Gaussian prior of ``u``."""
    return lambda: pm.Normal("u", 0.0, sd, shape=d)


def observed(data: Any, sd: Any) -> Callable[[Any], Any]:
    """Gaussian likelihood."""
    return lambda z: pm.Normal("y", z, sd, observed=np.asarray(data, dtype=float))


TIMES = np.linspace(0.2, 3.0, 8)


def banana() -> pm.Model:
    """Bent by a square."""
    return black_box_free(
        lambda u: pm.math.stack([u[0], u[1] - u[0] ** 2]),
        normal(2, 2.0),
        observed([0.5, 0], [1, 0.4]),
    )


def cubic_banana() -> pm.Model:
    """Bent by a cube."""
    return black_box_free(
        lambda u: pm.math.stack([u[0], u[1] - u[0] ** 3]),
        normal(2, 2.0),
        observed([0, 0], [1, 0.3]),
    )


def mild_banana() -> pm.Model:
    """Bent a little."""
    return black_box_free(
        lambda u: pm.math.stack([u[0], u[1] - 0.1 * u[0] ** 2]),
        normal(2, 2.0),
        observed([0.5, 0.2], [0.5, 0.4]),
    )


def hyperbola() -> pm.Model:
    """Only a product is observed: two ridges."""
    return black_box_free(lambda u: u[0] * u[1], normal(2, 1.0), observed(0.8, 0.2))


def ring() -> pm.Model:
    """Only a radius is observed."""
    return black_box_free(lambda u: (u**2).sum(), normal(2, 1.0), observed(2.0, 0.3))


def saturation() -> pm.Model:
    """Growth that saturates, with little noise."""
    rate = [0.55, 0.85, 1.1, 1.15, 1.35, 1.3, 1.35, 1.3]
    return black_box_free(
        lambda u: pm.math.exp(0.5 * u[0]) * (1 - pm.math.exp(-pm.math.exp(u[1]) * TIMES)),
        normal(2, 1.0),
        observed(rate, 0.1),
    )


def weak_saturation() -> pm.Model:
    """The same with much noise."""
    rate = [0.1, 0.9, 0.3, 1.0, 1.9, 0.8, 1.7, 1.1]
    return black_box_free(
        lambda u: pm.math.exp(u[0]) * (1 - pm.math.exp(-pm.math.exp(u[1]) * TIMES)),
        normal(2, 1.0),
        observed(rate, 0.6),
    )


def robust_line() -> pm.Model:
    """A line with an outlier, and heavy-tailed noise."""
    data = [0.1, 0.9, 2.2, 2.8, 9.0, 5.1, 5.8, 7.3]
    return black_box_free(
        lambda u: u[0] + u[1] * np.arange(8.0),
        normal(2, 3.0),
        lambda z: pm.StudentT("y", nu=3, mu=z, sigma=0.3, observed=data),
    )


def cauchy_location() -> pm.Model:
    """Two groups of data with Cauchy noise: two modes."""
    return black_box_free(
        lambda u: u[0] + np.zeros(4),
        normal(1, 5.0),
        lambda z: pm.Cauchy("y", z, 0.5, observed=[-3.0, -2.4, 2.6, 3.1]),
    )


def heavy_prior() -> pm.Model:
    """A sum is observed, of unknowns with a heavy-tailed prior."""
    return black_box_free(
        lambda u: u[0] + u[1],
        lambda: pm.StudentT("u", nu=2.5, mu=0, sigma=1, shape=2),
        observed(3.0, 1.0),
    )


def counts() -> pm.Model:
    """Exponential growth of counts."""
    return black_box_free(
        lambda u: pm.math.exp(u[0] + u[1] * (TIMES - 1.6)),
        normal(2, 1.0),
        lambda z: pm.Poisson("y", z, observed=[3, 2, 6, 4, 9, 7, 12, 15]),
    )


def few_counts() -> pm.Model:
    """The same with hardly any counts."""
    return black_box_free(
        lambda u: pm.math.exp(u[0] + u[1] * (TIMES - 1.6)),
        normal(2, 2.0),
        lambda z: pm.Poisson("y", z, observed=[0, 0, 0, 1, 0, 0, 1, 2]),
    )


def shares() -> pm.Model:
    """Logistic regression."""
    return black_box_free(
        lambda u: u[0] + u[1] * (TIMES - 1.6),
        normal(2, 1.5),
        lambda z: pm.Binomial("y", n=10, logit_p=z, observed=[1, 3, 2, 5, 4, 8, 9, 9]),
    )


def unknown_noise() -> pm.Model:
    """Gaussian data of unknown scale: the second unknown is its logarithm."""
    return black_box_free(
        lambda u: u,
        normal(2, 2.0),
        lambda u: pm.Normal("y", u[0], pm.math.exp(u[1]), observed=[0.3, 1.4, -0.6, 2.9, 1.1]),
    )


def funnel() -> pm.Model:
    """Scale of a group of effects and one of these, centered."""
    return black_box_free(
        lambda u: u,
        normal(2, 1.5),
        lambda u: (
            pm.Potential("effect", pm.logp(pm.Normal.dist(0, pm.math.exp(1.5 * u[0])), u[1])),
            pm.Normal("y", u[1], 1.0, observed=[0.6]),
        ),
    )


# -- fresh problems -----------------------------------------------------------------------------


def rosenbrock() -> pm.Model:
    """A long and narrow bent valley."""
    return black_box_free(
        lambda u: pm.math.stack([u[0], 4 * (u[1] - u[0] ** 2)]),
        normal(2, 2.0),
        observed([1.0, 0.0], [1.0, 1.0]),
    )


CHAIN = 5


def rosenbrock_chain() -> pm.Model:
    """Five unknowns; each bends the next."""
    return black_box_free(
        lambda u: pm.math.concatenate([u[:1], 2 * (u[1:] - u[:-1] ** 2)]),
        normal(CHAIN, 1.5),
        observed([0.6, *np.zeros(CHAIN - 1)], [0.5, *np.ones(CHAIN - 1)]),
    )


def rosenbrock_chain_moments() -> Moments:
    """By messages along the chain of unknowns, on a grid."""
    x = np.linspace(-5.0, 8.0, 1301)
    prior = norm.logpdf(x, 0, 1.5)
    move = norm.logpdf(2 * (x[None, :] - x[:, None] ** 2))  # from a row to a column
    first = prior + norm.logpdf(x, 0.6, 0.5)
    forward, backward = [np.exp(first - first.max())], [np.ones_like(x)]
    step = np.exp(move) * np.exp(prior)[None, :]
    for _ in range(CHAIN - 1):
        message = forward[-1] @ step
        forward.append(message / message.max())
        message = step @ backward[0]
        backward.insert(0, message / message.max())
    weights = np.array([f * b for f, b in zip(forward, backward, strict=True)])
    weights /= weights.sum(1, keepdims=True)
    mean = weights @ x
    return {"u": {"mean": mean, "sd": np.sqrt(weights @ x**2 - mean**2)}}


SCHOOLS = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])
SCHOOL_ERRORS = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])


def schools() -> pm.Model:
    """Eight schools, centered: a hierarchical model with a funnel."""
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 10)
        tau = pm.HalfNormal("tau", 10)
        theta = pm.Normal("theta", mu, tau, shape=8)
        pm.Normal("y", theta, SCHOOL_ERRORS, observed=SCHOOLS)
    return model


def schools_moments() -> Moments:
    """Everything is Gaussian, given tau."""
    tau = np.exp(np.linspace(-9, 4.5, 6001))
    noise = SCHOOL_ERRORS**2 + tau[:, None] ** 2
    precision = 1 / 100 + (1 / noise).sum(1)
    mu = (SCHOOLS / noise).sum(1) / precision
    log_weights = (
        norm.logpdf(tau, 0, 10)
        + np.log(tau)
        - 0.5 * (np.log(noise).sum(1) + np.log(precision))
        - 0.5 * ((SCHOOLS**2 / noise).sum(1) - precision * mu**2)
    )
    shrink = tau[:, None] ** 2 / noise
    theta = shrink * SCHOOLS + (1 - shrink) * mu[:, None]
    variance = shrink * SCHOOL_ERRORS**2 + (1 - shrink) ** 2 / precision[:, None]
    zero = np.zeros_like(tau)
    return {
        "mu": conditional(tau, log_weights, mu, 1 / precision),
        "tau": conditional(tau, log_weights, tau, zero),
        "theta": conditional(tau, log_weights, theta, variance),
    }


EFFECTS = np.array([0.5, -0.2, 1.2, -0.8])


def neal() -> pm.Model:
    """Neal's funnel with weak data."""
    with pm.Model() as model:
        v = pm.Normal("v", 0, 1)
        x = pm.Normal("x", 0, pm.math.exp(v), shape=len(EFFECTS))
        pm.Normal("y", x, 1.0, observed=EFFECTS)
    return model


def neal_moments() -> Moments:
    """Everything is Gaussian, given v."""
    v = np.linspace(-8, 8, 8001)
    variance = np.exp(2 * v)[:, None]
    log_weights = norm.logpdf(v) + norm.logpdf(EFFECTS, 0, np.sqrt(1 + variance)).sum(1)
    shrink = variance / (1 + variance)
    return {
        "v": conditional(v, log_weights, v, np.zeros_like(v)),
        "x": conditional(v, log_weights, shrink * EFFECTS, shrink * np.ones(len(EFFECTS))),
    }


def gamma_rates() -> pm.Model:
    """Rates of rare events: two skewed posteriors."""
    with pm.Model() as model:
        rate = pm.Gamma("rate", alpha=1.0, beta=0.5, shape=2)
        pm.Poisson("y", rate * np.array([1.0, 2.0]), observed=[0, 2])
    return model


def gamma_rates_moments() -> Moments:
    """Conjugate."""
    alpha, beta = np.array([1.0, 3.0]), np.array([1.5, 2.5])
    return {"rate": {"mean": alpha / beta, "sd": np.sqrt(alpha) / beta}}


def uneven_modes() -> pm.Model:
    """A narrow mode with most of the mass, and a wide one."""
    return black_box_free(
        lambda u: u[0] + np.zeros(2),
        normal(1, 5.0),
        lambda z: pm.NormalMixture(
            "y", w=[0.5, 0.5], mu=pt.stack([z, z + 3.0], axis=-1), sigma=[0.3, 0.9], observed=[1, 1]
        ),
    )


OUTLIERS = np.array([0.2, 0.7, 0.9, 1.9, 6.0, 2.2, 2.4, 2.1, -3.0, 1.4, 1.1, 0.1])


def robust_curve() -> pm.Model:
    """A parabola with outliers, and Student-t noise."""
    t = np.linspace(-1, 1, len(OUTLIERS))
    return black_box_free(
        lambda u: u[0] + u[1] * t + u[2] * t**2,
        normal(3, 2.0),
        lambda z: pm.StudentT("y", nu=2, mu=z, sigma=0.3, observed=OUTLIERS),
    )


def heavy_location() -> pm.Model:
    """A location with a heavy-tailed prior and two vague Cauchy data."""
    return black_box_free(
        lambda u: u[0] + np.zeros(2),
        lambda: pm.StudentT("u", nu=4, mu=0, sigma=2, shape=1),
        lambda z: pm.Cauchy("y", z, 1.0, observed=[1.0, 3.0]),
    )


def logistic() -> pm.Model:
    """Logistic regression with four coefficients, nearly separable."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((40, 3))
    y = rng.random(40) < 1 / (1 + np.exp(-(0.3 + x @ [2.5, -1.5, 0.5])))
    return black_box_free(
        lambda u: u[0] + pt.dot(x, u[1:]),
        normal(4, 3.0),
        lambda z: pm.Bernoulli("y", logit_p=z, observed=y.astype(int)),
    )


def shell() -> pm.Model:
    """A sphere with one side a little better."""
    return black_box_free(
        lambda u: pm.math.stack([(u**2).sum(), u[0]]),
        normal(3, 1.0),
        observed([2.5, 0.8], [0.4, 1.2]),
    )


PLANE = np.array([[1.0, 0.3, 0.0], [0.0, 1.0, -0.5], [0.4, 0.0, 1.0], [0.6, -0.5, 0.3]])


def plane(roughness: float = 0.0) -> pm.Model:
    """A linear map of three unknowns, with ripples."""

    def forward(u: Any) -> Any:
        ripples = pm.math.sin(60 * pt.dot(PLANE[::-1], u)) + pm.math.cos(47 * u.sum())
        return pt.dot(PLANE, u) + roughness * ripples

    return black_box_free(forward, normal(3, 1.0), observed([0.5, -0.3, 0.8, 0.1], 0.25))


def kinetics(noise: float = 0.0) -> pm.Model:
    """Saturation kinetics; with `noise` in the simulator, beside that of the data."""
    supply = np.array([0.3, 0.6, 1.0, 2.0, 4.0, 6.0])
    data = np.array([0.42, 0.71, 0.95, 1.34, 1.58, 1.74])

    def simulate(speed: float, half: float, rng: np.random.Generator) -> Array:
        return speed * supply / (half + supply) + noise * rng.standard_normal(len(supply))

    with pm.Model() as model:
        speed, half = pm.LogNormal("speed", 0, 1), pm.LogNormal("half", 0, 1)
        if noise:
            box = pe.forward_model(simulate, output_shape=supply.shape, stochastic=True)
            z = box(speed, half)
        else:
            z = speed * supply / (half + supply)
        pm.Normal("y", z, 0.1, observed=data)
    return model


def heteroscedastic() -> pm.Model:
    """A line whose noise grows with its slope."""
    t = np.linspace(0.2, 2, 7)
    return black_box_free(
        lambda u: (u[0] + u[1] * t, 0.2 + 0.4 * pm.math.abs(u[1]) * t),
        normal(2, 2.0),
        lambda z: pm.Normal("y", *z, observed=[0.2, 1.1, 0.6, 2.2, 1.2, 3.9, 2.8]),
    )


def corner() -> pm.Model:
    """Two positive numbers whose sum is next to nothing: a posterior in a corner."""
    with pm.Model() as model:
        u = pm.Uniform("u", 0, 1, shape=2)
        pm.Normal("y", u[0] + 2 * u[1], 0.15, observed=0.02)
    return model


def exchange() -> pm.Model:
    """Two decays that can be exchanged: two modes."""
    t = np.linspace(0.2, 4, 10)
    return black_box_free(
        lambda u: pm.math.exp(-pm.math.exp(u[0]) * t) + pm.math.exp(-pm.math.exp(u[1]) * t),
        normal(2, 1.0),
        observed(np.exp(-0.3 * t) + np.exp(-1.8 * t), 0.05),
    )


def wave() -> pm.Model:
    """A sine: many modes."""
    return black_box_free(
        lambda u: pm.math.sin(2 * u[0]) + 0.2 * u[0], normal(1, 2.0), observed([0.7], 0.15)
    )


def kink() -> pm.Model:
    """An absolute value: two ridges that meet."""
    return black_box_free(
        lambda u: pm.math.stack([pm.math.abs(u[0]) - 0.3 * u[1], u[1]]),
        normal(2, 1.0),
        observed([0.3, 0.5], [0.2, 0.6]),
    )


def breakdown(checked: bool = False) -> pm.Model:
    """A simulator that fails where its two unknowns are large together."""

    def simulate(a: float, b: float) -> Array:
        if a + b > 1.2:
            raise FloatingPointError("no convergence")
        return np.array([np.exp(0.5 * a), a - b])

    box = pe.forward_model(simulate, output_shape=(2,))
    with pm.Model() as model:
        a, b = pm.Normal("a", 0, 1), pm.Normal("b", 0, 1)
        if checked:
            z = pm.math.stack([pm.math.exp(0.5 * a), a - b])
            pm.Potential("works", pt.switch(a + b > 1.2, -np.inf, 0.0))
        else:
            z = box(a, b)
        pm.Normal("y", z, [0.4, 0.5], observed=[1.3, 0.2])
    return model


# -- all of them --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """A model whose posterior is known.

    Attributes
    ----------
    model : callable
    part : {"chosen", "held back", "fresh"}
        Whether thresholds were chosen with it.
    smooth : callable, optional
        The model behind a rough or noisy one.
    exact : callable, optional
        Finds the moments; by default those of the gallery, or a grid.
    """

    model: Callable[[], pm.Model]
    part: Part = "chosen"
    smooth: Callable[[], pm.Model] | None = None
    exact: Callable[[], Moments] | None = None

    def reference(self) -> Moments:
        """Mean and standard deviation of every variable."""
        if self.exact is not None:
            return self.exact()
        model = (self.smooth or self.model)()
        if not isinstance(model, gallery.model.GalleryModel):
            return quadrature(model)
        known = model.reference
        return {
            str(name): {k: known[name].sel(statistic=k).values for k in ("mean", "sd")}
            for name in known.data_vars
        }


PROBLEMS = {
    "linear 10-d": Problem(lambda: gallery.linear_gaussian(10)),
    "linear 20-d": Problem(lambda: gallery.linear_gaussian(20), "held back"),
    "decay": Problem(gallery.decay),
    "noisy decay": Problem(lambda: gallery.decay(noise_sd=0.3)),
    "poisson": Problem(gallery.poisson_regression, "held back"),
    "smooth 5-d": Problem(gallery.smooth_nonlinear),
    "bimodal": Problem(gallery.bimodal),
    "four modes": Problem(lambda: gallery.four_modes(rough=False)),
    "rough": Problem(
        lambda: gallery.linear_multiscale(prior_variance=1.0),
        smooth=lambda: gallery.linear_multiscale(prior_variance=1.0, rough=False),
    ),
    "rough decay": Problem(lambda: gallery.decay(roughness=0.2), "held back", smooth=gallery.decay),
    "banana": Problem(banana),
    "cubic banana": Problem(cubic_banana, "held back"),
    "mild banana": Problem(mild_banana),
    "hyperbola": Problem(hyperbola, "held back"),
    "ring": Problem(ring),
    "saturation": Problem(saturation, "held back"),
    "weak saturation": Problem(weak_saturation),
    "robust line": Problem(robust_line),
    "cauchy location": Problem(cauchy_location),
    "heavy prior": Problem(heavy_prior, "held back"),
    "counts": Problem(counts),
    "few counts": Problem(few_counts, "held back"),
    "shares": Problem(shares),
    "unknown noise": Problem(unknown_noise, "held back"),
    "funnel": Problem(funnel),
    "rosenbrock": Problem(rosenbrock, "fresh"),
    "rosenbrock chain": Problem(rosenbrock_chain, "fresh", exact=rosenbrock_chain_moments),
    "schools": Problem(schools, "fresh", exact=schools_moments),
    "neal": Problem(neal, "fresh", exact=neal_moments),
    "gamma rates": Problem(gamma_rates, "fresh", exact=gamma_rates_moments),
    "uneven modes": Problem(uneven_modes, "fresh"),
    "robust curve": Problem(robust_curve, "fresh"),
    "heavy location": Problem(heavy_location, "fresh"),
    "logistic": Problem(logistic, "fresh", exact=lambda: importance(logistic())),
    "shell": Problem(shell, "fresh"),
    "ripples": Problem(lambda: plane(0.05), "fresh", smooth=plane),
    "rough plane": Problem(lambda: plane(0.4), "fresh", smooth=plane),
    "quiet kinetics": Problem(lambda: kinetics(0.01), "fresh", smooth=kinetics),
    "loud kinetics": Problem(lambda: kinetics(0.12), "fresh", smooth=kinetics),
    "heteroscedastic": Problem(heteroscedastic, "fresh"),
    "corner": Problem(corner, "fresh"),
    "exchange": Problem(exchange, "fresh"),
    "wave": Problem(wave, "fresh"),
    "kink": Problem(kink, "fresh"),
    "breakdown": Problem(breakdown, "fresh", smooth=lambda: breakdown(checked=True)),
    "linear 40-d": Problem(lambda: gallery.linear_gaussian(40), "fresh"),
}
