"""Every problem of the gallery: its reference must be the posterior of its model."""

import cloudpickle
import numpy as np
import pymc as pm
import pytensor
import pytest
from pymc.blocking import DictToArrayBijection, RaveledVars
from scipy.optimize import minimize

from pymc_ensemble import gallery

MODELS = {
    "linear_gaussian": gallery.linear_gaussian,
    "linear_gaussian_20": lambda: gallery.linear_gaussian(20),
    "linear_multiscale": gallery.linear_multiscale,
    "linear_multiscale_smooth": lambda: gallery.linear_multiscale(rough=False),
    "linear_multiscale_wide": lambda: gallery.linear_multiscale(1.0, data=(1, 2)),
    "decay": gallery.decay,
    "decay_noisy": lambda: gallery.decay(noise_sd=0.3),
    "decay_rough": lambda: gallery.decay(roughness=4.0),
    "bimodal": gallery.bimodal,
    "four_modes": gallery.four_modes,
    "four_modes_smooth": lambda: gallery.four_modes(rough=False),
    "poisson_regression": gallery.poisson_regression,
    "smooth_nonlinear": gallery.smooth_nonlinear,
    "darcy": gallery.darcy,
    "lorenz63": gallery.lorenz63,
    "lynx_hare": gallery.lynx_hare,
}

SMOOTH_UNIMODAL = [
    "linear_gaussian",
    "linear_multiscale_smooth",
    "decay",
    "decay_noisy",
    "poisson_regression",
    "smooth_nonlinear",
    "darcy",
    "lynx_hare",
]


def log_density(model):
    """The model's own log posterior on raveled unconstrained points (d,)."""
    info = DictToArrayBijection.map(model.initial_point()).point_map_info
    logp = model.compile_logp()
    return lambda u: float(logp(DictToArrayBijection.rmap(RaveledVars(u, info))))


def raveled_reference(model):
    """Moments of the unconstrained coordinates, shape (4, d), in the order of `log_density`."""
    names = list(model.initial_point())
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
    model = MODELS[name]()
    density = log_density(model)
    reference = raveled_reference(model)
    mean, sd = reference[:2]
    d, n, degrees = len(mean), 3000, 7

    # In units of the reference the posterior is round enough for BFGS to find its curvature.
    mode = minimize(lambda v: -density(mean + sd * v), np.zeros(d), method="BFGS")
    steps = 0.05 * np.eye(d)

    def potential(v):
        return -density(mean + sd * v)

    hessian = np.array(
        [
            [
                (
                    potential(mode.x + a + b)
                    - potential(mode.x + a - b)
                    - potential(mode.x - a + b)
                    + potential(mode.x - a - b)
                )
                / (4 * 0.05**2)
                for b in steps
            ]
            for a in steps
        ]
    )
    L = np.linalg.cholesky(hessian / 1.2**2)
    rng = np.random.default_rng(1)
    normal, radius2 = rng.standard_normal((n, d)), degrees / rng.chisquare(degrees, n)
    v = mode.x + np.linalg.solve(L.T, normal.T).T * np.sqrt(radius2)[:, None]
    log_proposal = -(degrees + d) / 2 * np.log1p((normal**2).sum(1) * radius2 / degrees)
    log_weights = np.array([-potential(x) for x in v]) - log_proposal
    assert_moments(mean + sd * v, log_weights, reference, at_least=300)


@pytest.mark.parametrize("name", ["bimodal", "four_modes", "four_modes_smooth"])
def test_reference_of_several_modes(name):
    """Importance sampling from a box that holds the posterior."""
    model = MODELS[name]()
    density = log_density(model)
    reference = raveled_reference(model)
    draws = np.random.default_rng(2).uniform(-4 * reference[1], 4 * reference[1], (8000, 2))
    assert_moments(draws, np.array([density(u) for u in draws]), reference, at_least=100)


@pytest.mark.parametrize("name", ["linear_multiscale", "linear_multiscale_wide"])
def test_reference_of_a_rough_map(name):
    """Nothing couples the coordinates, so each may be integrated with the other held fixed."""
    model = MODELS[name]()
    density = log_density(model)
    mean, sd = raveled_reference(model)[:2]
    for k in range(2):
        grid = np.linspace(mean[k] - 7 * sd[k], mean[k] + 7 * sd[k], 3001)
        values = np.array([density(np.where(np.arange(2) == k, x, mean)) for x in grid])
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
    model = MODELS[name]()
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
