"""Every problem of the gallery: its reference must be the posterior of its model."""

from functools import cache, partial

import cloudpickle
import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pymc.blocking import DictToArrayBijection, RaveledVars
from pytensor.graph.replace import vectorize_graph
from scipy.optimize import minimize

from pymc_ensemble import gallery

MODELS = {
    "linear_gaussian": gallery.linear_gaussian,
    "linear_gaussian_20": partial(gallery.linear_gaussian, 20),
    "linear_multiscale": gallery.linear_multiscale,
    "linear_multiscale_smooth": partial(gallery.linear_multiscale, rough=False),
    "linear_multiscale_wide": partial(gallery.linear_multiscale, 1.0, data=(1, 2)),
    "decay": gallery.decay,
    "decay_noisy": partial(gallery.decay, noise_sd=0.3),
    "decay_rough": partial(gallery.decay, roughness=4.0),
    "bimodal": gallery.bimodal,
    "four_modes": gallery.four_modes,
    "four_modes_smooth": partial(gallery.four_modes, rough=False),
    "poisson_regression": gallery.poisson_regression,
    "smooth_nonlinear": gallery.smooth_nonlinear,
    "darcy": gallery.darcy,
    "darcy_9": partial(gallery.darcy, 9),
    "darcy_25": partial(gallery.darcy, 25),
    "deconvolution_20": partial(gallery.deconvolution, 20),
    "cox_process_20": partial(gallery.cox_process, 20),
    "line_flow_12": partial(gallery.line_flow, 12),
    "initial_state_12": partial(gallery.initial_state, 12),
    "lorenz63": gallery.lorenz63,
    "lorenz96": gallery.lorenz96,
    "lynx_hare": gallery.lynx_hare,
    "influenza": gallery.influenza,
}


@cache
def made(name):
    """The model, once for all tests: its data and reference may take seconds."""
    return MODELS[name]()


ODE_TOLERANCE = {"lynx_hare": 2e-3, "influenza": 2e-3}
"""Solvers that differ; all other native versions compute the same numbers."""

NATIVE = [name for name in MODELS if not name.startswith(("lorenz", "initial_state"))]

SMOOTH_UNIMODAL = [
    "linear_gaussian",
    "linear_multiscale_smooth",
    "decay",
    "decay_noisy",
    "poisson_regression",
    "smooth_nonlinear",
    "darcy",
    "darcy_9",
    "darcy_25",
    "deconvolution_20",
    "cox_process_20",
    "initial_state_12",
    "lynx_hare",
    "influenza",
]


def log_density(model):
    """The model's own log posterior on raveled unconstrained points (d,)."""
    info = DictToArrayBijection.map(model.initial_point()).point_map_info
    logp = model.compile_logp()
    return lambda u: float(logp(DictToArrayBijection.rmap(RaveledVars(u, info))))


def log_densities(model):
    """The same at all rows of an array (n, d): vectorized by PyTensor, not by the package."""
    points, start, values, initial = pt.matrix(), 0, {}, model.initial_point()
    for variable in model.value_vars:
        shape = np.shape(initial[variable.name])
        stop = start + int(np.prod(shape))
        values[variable] = points[:, start:stop].reshape((-1, *shape))
        start = stop
    return pytensor.function([points], vectorize_graph(model.logp(), values))


def raveled_reference(model):
    """Moments of the unconstrained coordinates, shape (4, d), in the order of `log_density`."""
    names = [variable.name for variable in model.value_vars]
    return np.concatenate([model.reference[name].values.reshape(4, -1) for name in names], axis=1)


def assert_moments(draws, log_weights, reference, at_least):
    """Compare with importance sampling, to 4.5 of its standard errors."""
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    assert 1 / (weights**2).sum() > at_least, "the comparison has too few effective draws"
    mean, sd, mcse_mean, mcse_sd = reference
    estimate = weights @ draws
    squares = (draws - estimate) ** 2
    error_mean = np.hypot(np.sqrt(weights**2 @ squares), mcse_mean)
    np.testing.assert_array_less(np.abs(estimate - mean), 4.5 * error_mean)
    error_variance = np.sqrt(weights**2 @ (squares - sd**2) ** 2)
    error_sd = np.hypot(error_variance / (2 * sd), mcse_sd)
    np.testing.assert_array_less(np.abs(np.sqrt(weights @ squares) - sd), 4.5 * error_sd)


@pytest.mark.parametrize("name", SMOOTH_UNIMODAL)
def test_reference_is_the_posterior(name):
    """Importance sampling with the model's own density from a Student-t law about its mode."""
    model = made(name)
    density = log_densities(model)
    reference = raveled_reference(model)
    mean, sd = reference[:2]
    d, n, degrees = len(mean), 2000, 7

    def potential(v):
        return -density(mean + sd * v)

    def gradient(v, step=1e-6):
        steps = step * np.eye(d)
        return (potential(v + steps) - potential(v - steps)) / (2 * step)

    # In units of the reference the posterior is round enough for BFGS to find its curvature.
    mode = minimize(lambda v: potential(v[None])[0], np.zeros(d), jac=gradient, method="BFGS")
    steps = 0.05 * np.eye(d)
    pairs = steps[:, None] + steps, steps[:, None] - steps
    both, apart = (
        sum(potential(mode.x + sign * pair.reshape(-1, d)) for sign in (1, -1)).reshape(d, d)
        for pair in pairs
    )
    hessian = (both - apart) / (4 * 0.05**2)
    L = np.linalg.cholesky(hessian / 1.2**2)
    center, root, rng = mode.x, np.linalg.inv(L.T), np.random.default_rng(1)
    for size in (1000, n):  # a law about the mode misses the ends of what is bent
        normal, radius2 = rng.standard_normal((size, d)), degrees / rng.chisquare(degrees, size)
        v = center + normal @ root.T * np.sqrt(radius2)[:, None]
        log_proposal = -(degrees + d) / 2 * np.log1p((normal**2).sum(1) * radius2 / degrees)
        log_weights = -potential(v) - log_proposal
        weights = np.exp(log_weights - log_weights.max())
        center = np.average(v, axis=0, weights=weights)
        root = 1.2 * np.linalg.cholesky(np.cov(v.T, aweights=weights))
    assert_moments(mean + sd * v, log_weights, reference, at_least=300)


@pytest.mark.parametrize("name", ["bimodal", "four_modes", "four_modes_smooth"])
def test_reference_of_several_modes(name):
    """Importance sampling from a box that holds the posterior."""
    model = made(name)
    density = log_densities(model)
    reference = raveled_reference(model)
    draws = np.random.default_rng(2).uniform(-4 * reference[1], 4 * reference[1], (8000, 2))
    assert_moments(draws, density(draws), reference, at_least=100)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "decay_rough"])
def test_reference_draws_follow_the_reference(name):
    """Means and sds of 2000 draws, to 4.5 standard errors of independent ones; their order."""
    model = made(name)
    assert set(model.reference_draws) == set(model.reference)
    for variable, draws in model.reference_draws.items():
        assert draws.dims == ("draw", *model.reference[variable].dims[1:])
        mean, sd = model.reference[variable].values[:2]
        scores = (draws.values - mean) / sd
        n = len(scores)
        assert n == 2000
        np.testing.assert_array_less(np.abs(scores.mean(0)), 4.5 / np.sqrt(n))
        error = np.sqrt(((scores**2).var(0) + 1e-12) / n) / 2
        np.testing.assert_array_less(np.abs(np.sqrt((scores**2).mean(0)) - 1), 4.5 * error + 1e-3)
        # Neither sorted nor a slow chain: neighbors are uncorrelated.
        neighbors = (scores[1:] * scores[:-1]).mean(0)
        np.testing.assert_array_less(np.abs(neighbors), 4.5 / np.sqrt(n))
    assert model.reference_draws.equals(MODELS[name]().reference_draws)


def test_reference_draws_are_correlated_as_the_posterior():
    """The two rates of the decay, against a direct integral over the grid."""
    model = gallery.decay(noise_sd=0.3)
    density = log_densities(model)
    mean, sd = raveled_reference(model)[:2]
    axis = np.linspace(-5, 5, 61)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    values = density(mean + sd * points)
    weights = np.exp(values - values.max())
    weights /= weights.sum()
    correlation = weights @ points.prod(1)
    draws = np.stack([model.reference_draws[name].values for name in model.reference_draws], 1)
    assert np.corrcoef(draws.T)[0, 1] == pytest.approx(correlation, abs=4.5 / np.sqrt(2000))


@pytest.mark.parametrize("name", NATIVE)
def test_native_version_is_the_same_posterior(name):
    """The same density, data and truth, and a gradient that agrees with differences."""
    native, black_box = MODELS[name](native=True), made(name)
    assert native.forward is None
    assert native.description == black_box.description
    densities = [log_density(model) for model in (native, black_box)]
    gradient = native.compile_fn(
        pt.concatenate([g.ravel() for g in pytensor.grad(native.logp(), native.value_vars)]),
        inputs=native.value_vars,
    )
    info = DictToArrayBijection.map(native.initial_point()).point_map_info
    mean, sd = raveled_reference(gallery.decay() if name == "decay_rough" else native)[:2]
    rng = np.random.default_rng(6)
    for _ in range(1 if name in ODE_TOLERANCE else 3):  # in Python these take seconds
        u = mean + sd * rng.standard_normal(len(mean))
        direction = sd * rng.standard_normal(len(mean))
        values = [density(u) for density in densities]
        assert values[0] == pytest.approx(values[1], abs=ODE_TOLERANCE.get(name, 1e-8), rel=1e-9)
        point = DictToArrayBijection.rmap(RaveledVars(u, info))
        step = 1e-5
        difference = densities[0](u + step * direction) - densities[0](u - step * direction)
        slope = gradient(point) @ direction
        assert slope == pytest.approx(difference / (2 * step), rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("name", ["linear_multiscale", "linear_multiscale_wide"])
def test_reference_of_a_rough_map(name):
    """Nothing couples the coordinates, so each may be integrated with the other held fixed."""
    model = made(name)
    density = log_densities(model)
    mean, sd = raveled_reference(model)[:2]
    for k in range(2):
        grid = np.linspace(mean[k] - 7 * sd[k], mean[k] + 7 * sd[k], 3001)
        values = density(np.where(np.arange(2) == k, grid[:, None], mean))
        weights = np.exp(values - values.max())
        weights /= weights.sum()
        assert weights @ grid == pytest.approx(mean[k], abs=1e-5)
        assert weights @ (grid - mean[k]) ** 2 == pytest.approx(sd[k] ** 2, rel=1e-4)


@pytest.mark.parametrize("d", [10, 20, 50])
def test_linear_gaussian_in_data_space(d):
    """The same posterior by the Kalman gain, which inverts in the space of the data."""
    model = gallery.linear_gaussian(d)
    A = np.array([model.forward(e) for e in np.eye(d)]).T
    y = model.rvs_to_values[model["y"]].data
    gain = np.linalg.solve(A @ A.T + np.eye(2 * d), A).T
    mean, sd = model.reference["u"].values[:2]
    np.testing.assert_allclose(gain @ y, mean, atol=1e-10)
    np.testing.assert_allclose(np.sqrt(np.diag(np.eye(d) - gain @ A)), sd, rtol=1e-10)
    eigenvalues = np.linalg.eigvalsh(A.T @ A + np.eye(d))
    assert eigenvalues[-1] / eigenvalues[0] == pytest.approx(50.5)


def test_linear_multiscale_smooth_limit():
    """Closed form for A = diag(-1, 2), y = (1, 2), noise variance and prior variance .05."""
    reference = gallery.linear_multiscale(rough=False, data=(1, 2)).reference["u"]
    np.testing.assert_allclose(reference.sel(statistic="mean"), [-1 / 2, 4 / 5])
    np.testing.assert_allclose(reference.sel(statistic="sd"), np.sqrt([0.05 / 2, 0.05 / 5]))


def test_rough_decay_averages_to_the_smooth_one():
    smooth, rough = gallery.decay(), gallery.decay(roughness=4.0)
    # A window of many periods in each coordinate, about the posterior.
    U = np.array([0.3, -0.2]) + np.random.default_rng(0).uniform(-0.5, 0.5, (4000, 2))
    waves = np.array([rough.forward(u) - smooth.forward(u) for u in U])
    # Waves of four noise sd: amplitude .2, variance .02, mean zero.
    np.testing.assert_allclose(waves.var(0), 0.02, rtol=0.1)
    assert np.abs(waves.mean(0)).max() < 4.5 * np.sqrt(0.02 / 4000)
    with pytest.raises(ValueError, match="smooth one"):
        _ = rough.reference


def test_decay_without_data():
    with pytest.raises(ValueError, match=r"not for 0\.1"):
        gallery.decay(noise_sd=0.1)


@pytest.mark.parametrize("name", MODELS)
def test_forward_map_is_counted_and_has_no_gradient(name):
    model = made(name)
    assert isinstance(model, pm.Model)
    assert model.description.endswith(".")
    before = model.forward.n_evaluations
    logp = model.compile_logp()
    assert np.isfinite(logp(model.initial_point()))
    assert model.forward.n_evaluations == before + 1
    with pytest.raises(NotImplementedError):
        pytensor.grad(model.logp(), model.value_vars)


@pytest.mark.default_mode
def test_forward_map_is_counted_in_the_default_mode():
    model = gallery.bimodal()
    logp = model.compile_logp()
    for _ in range(3):
        logp(model.initial_point())
    assert model.forward.n_evaluations == 1, "the same point is not evaluated again"


def test_models_travel_to_other_processes():
    model = cloudpickle.loads(cloudpickle.dumps(gallery.decay()))
    assert log_density(model)(np.zeros(2)) == log_density(gallery.decay())(np.zeros(2))
    assert model.reference.equals(gallery.decay().reference)


def test_data_follow_from_the_truth():
    """Synthetic data lie within the noise of what the truth predicts: chi-square, 5 sd."""
    for name, noise_sd in [("linear_gaussian", 1.0), ("decay", 0.05), ("darcy", 0.01)]:
        model = MODELS[name]()
        truth = np.concatenate([np.ravel(value) for value in model.truth.values()])
        y = model.rvs_to_values[model["y"]].data
        chi2 = (((model.forward(truth) - y) / noise_sd) ** 2).sum()
        assert abs(chi2 - len(y)) < 5 * np.sqrt(2 * len(y))
