import numpy as np
import pytest

from pymc_ensemble.samplers.gaussian_process.basis import basis_size, basis_values, farthest_points
from pymc_ensemble.samplers.gaussian_process.hyperparameters import (
    BASIS_VARIANCE,
    JITTER,
    NOISE_FLOOR,
    SHORTEST_LENGTH,
    Hyperparameters,
    HyperPrior,
    Levels,
    MarginalPosterior,
)
from pymc_ensemble.samplers.gaussian_process.regression import Function, GaussianProcess


def central_differences(f, x, step=1e-5):
    return np.array([(f(x + step * e) - f(x - step * e)) / (2 * step) for e in np.eye(len(x))])


def data(n=60, k=2, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 2))
    values = np.stack([np.sin(x[:, 0]), x[:, 1] ** 2, x.sum(1), x[:, 0] * x[:, 1]], 1)[:, :k]
    return x, values + 0.1 * rng.standard_normal(values.shape), rng


@pytest.mark.parametrize("basis", [None, "constant", "linear", "quadratic"])
@pytest.mark.parametrize(("k", "n_noise"), [(1, 1), (3, 3), (4, 1)])
@pytest.mark.parametrize("isotropic", [False, True])
def test_gradient_of_the_marginal_posterior(basis, k, n_noise, isotropic):
    x, values, rng = data(k=k)
    relative = rng.uniform(0.5, 2, len(x))
    objective = MarginalPosterior(x, values, relative, basis, HyperPrior(), isotropic)
    vector = np.r_[0.3, [0.2, -0.3][: 1 if isotropic else 2], np.full(n_noise, -1.2)]
    _, gradient = objective(vector)
    expected = central_differences(lambda v: objective(v)[0], vector)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-5)


def test_marginal_posterior_is_a_gaussian_density():
    """The determinant and the quadratic form of the dense covariance, and the prior."""
    x, values, _ = data(k=1)
    prior = HyperPrior()

    def expected(v):
        scaled = x / np.exp(v[1:3])
        R = np.exp(v[0] - 0.5 * ((scaled[:, None] - scaled[None]) ** 2).sum(2))
        H = basis_values(x, "linear")
        S = R + BASIS_VARIANCE * H @ H.T + (np.exp(2 * v[3]) + NOISE_FLOOR) * np.eye(len(x))
        fit = 0.5 * (values * np.linalg.solve(S, values)).sum()
        return fit + 0.5 * np.linalg.slogdet(S)[1] + prior.negative_log(Hyperparameters.of(v, 2))[0]

    objective = MarginalPosterior(x, values, np.ones(len(x)), "linear", prior)
    for vector in ([0.3, 0.2, -0.3, -1.2], [-2.0, 1.0, 1.0, 0.5]):
        np.testing.assert_allclose(objective(np.array(vector))[0], expected(np.array(vector)))


@pytest.mark.parametrize("k", [1, 3])
def test_evidence_for_levels_is_that_of_all_points(k):
    """Differences of the evidence agree with the dense formula, in the limit of a free mean."""
    rng = np.random.default_rng(1)
    n, lengths, prior = 80, np.zeros(2), HyperPrior()
    cross, H = rng.standard_normal((10, n)), rng.standard_normal((3, n))
    Y, relative = rng.standard_normal((n, k)), rng.uniform(0.5, 2, n)
    levels = Levels.of(cross, H, Y, relative, prior)

    def dense(v):
        total = prior.negative_log(Hyperparameters(v[0], lengths, v[1:]))[0]
        total -= 0.5 * ((v[0] - prior.amplitude[0]) / prior.amplitude[1]) ** 2
        for j in range(k):
            S = np.exp(2 * v[1 + j]) * np.diag(relative) + np.exp(v[0]) * cross.T @ cross
            S += 1e6 * H.T @ H
            total += 0.5 * (np.linalg.slogdet(S)[1] + Y[:, j] @ np.linalg.solve(S, Y[:, j]))
        return total

    a, b = np.r_[-1.0, np.full(k, -0.3)], np.r_[0.5, np.linspace(0.2, 0.4, k)]
    difference = levels.negative_log(a, lengths)[0] - levels.negative_log(b, lengths)[0]
    np.testing.assert_allclose(difference, dense(a) - dense(b), rtol=1e-4)
    expected = central_differences(lambda v: levels.negative_log(v, lengths)[0], a)
    np.testing.assert_allclose(levels.negative_log(a, lengths)[1], expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("basis", ["constant", "linear", "quadratic"])
def test_regression_is_that_of_a_dense_process(basis):
    """With an inducing point at every point the sparse regression is exact."""
    x, values, rng = data(n=40, k=1)
    process = GaussianProcess.fit(x, values, basis, rng)
    theta, scale = process.hyperparameters, process.scale

    def covariance(a, b):
        a, b = a / np.exp(theta.lengths), b / np.exp(theta.lengths)
        K = np.exp(theta.amplitude - 0.5 * ((a[:, None] - b[None]) ** 2).sum(2))
        return K, BASIS_VARIANCE

    def full(a, b, xa, xb):
        K, B = covariance(a, b)
        return K + B * basis_values(xa, basis) @ basis_values(xb, basis).T

    points = rng.standard_normal((7, 2))
    noise = np.exp(2 * theta.noise[0]) + NOISE_FLOOR
    S = full(x, x, x, x) + noise * np.eye(len(x))
    cross = full(points, x, points, x)
    mean = process.center + scale * cross @ np.linalg.solve(S, (values - process.center) / scale)
    variance = np.diag(full(points, points, points, points) - cross @ np.linalg.solve(S, cross.T))
    predicted, _ = process.evaluate(points)
    np.testing.assert_allclose(predicted, mean, rtol=1e-3, atol=1e-3 * scale)
    np.testing.assert_allclose(process.sd(points)[:, 0], scale * np.sqrt(variance), rtol=0.02)


@pytest.mark.parametrize("basis", ["constant", "linear", "quadratic"])
@pytest.mark.parametrize("own", [False, True])
def test_gradient_of_values(basis, own):
    """Of the mean, and of functions that were drawn, one for each point."""
    x, values, rng = data()
    process = GaussianProcess.fit(x, values, basis, rng)
    points, weights = rng.standard_normal((7, 2)), rng.standard_normal((7, 2))
    function = process.draw(7, rng) if own else None
    _, pull_back = process.evaluate(points, function)
    gradient, step = pull_back(weights), 1e-5
    for j, e in enumerate(np.eye(2)):
        upper, _ = process.evaluate(points + step * e, function)
        lower, _ = process.evaluate(points - step * e, function)
        expected = ((upper - lower) * weights).sum(1) / (2 * step)
        np.testing.assert_allclose(gradient[:, j], expected, rtol=1e-5, atol=1e-6)


def test_drawn_functions_have_the_stated_covariance():
    x, values, rng = data()
    process, n = GaussianProcess.fit(x, values, "linear", rng), 4000
    functions, points = process.draw(n, rng), np.array([[0.3, -0.2], [1.5, 1.0]])
    drawn = np.stack([process.evaluate(np.tile(p, (n, 1)), functions)[0] for p in points])
    sd = process.sd(points)
    standard_errors = np.abs(drawn.mean(1) - process.evaluate(points)[0]) / (sd / np.sqrt(n))
    assert (standard_errors < 4.5).all()
    # variance of a sample variance: 2 / n; what inducing points do not explain is not drawn
    assert (np.abs(drawn.var(1) / sd**2 - 1) < 4.5 * np.sqrt(2 / n) + 10 * JITTER / sd**2).all()


def test_expected_precision_of_a_design_is_what_it_brings():
    """`sd_with` agrees with a regression to which the design was added, whatever its values."""
    x, values, rng = data(n=40, k=1)
    process = GaussianProcess.fit(x, values, "linear", rng)
    design, points = rng.standard_normal((20, 2)), rng.standard_normal((5, 2))
    theta = process.hyperparameters
    both = np.concatenate([x, design])

    def kernel(a, b):
        a, b = a / np.exp(theta.lengths), b / np.exp(theta.lengths)
        return np.exp(theta.amplitude - 0.5 * ((a[:, None] - b[None]) ** 2).sum(2))

    H, h = basis_values(both, "linear"), basis_values(points, "linear")
    S = kernel(both, both) + BASIS_VARIANCE * H @ H.T
    S += (np.exp(2 * theta.noise[0]) + NOISE_FLOOR) * np.eye(len(both))
    cross = kernel(points, both) + BASIS_VARIANCE * h @ H.T
    prior = np.exp(theta.amplitude) + BASIS_VARIANCE * (h**2).sum(1)
    expected = prior - (cross * np.linalg.solve(S, cross.T).T).sum(1)
    found = process.sd_with(design, points)[:, 0] / process.scale
    np.testing.assert_allclose(found, np.sqrt(expected), rtol=0.05)
    assert (found * process.scale < process.sd(points)[:, 0]).all()


def test_noise_levels_of_several_outputs_are_told_apart():
    rng = np.random.default_rng(2)
    x, sd = rng.standard_normal((600, 2)), np.array([0.1, 0.3, 1.0, 3.0, 0.5])
    values = x @ rng.standard_normal((2, 5)) + sd * rng.standard_normal((600, 5))
    process = GaussianProcess.fit(x, values, "linear", rng)
    assert (np.abs(process.noise / sd - 1) < 4.5 / np.sqrt(2 * 600)).all()


def test_no_signal_beside_a_linear_mean_is_found_where_there_is_none():
    """All points tell, not a sample of them: the slope is as well known as by regression."""
    rng = np.random.default_rng(3)
    x = 3 * rng.standard_normal((1500, 2))
    values = x @ [[-1.0], [2.0]] + 3 * rng.standard_normal((1500, 1))
    process = GaussianProcess.fit(x, values, "linear", rng)
    line = 3 / np.sqrt(1500) * np.sqrt(2)
    assert process.sd(np.zeros((1, 2))) < 1.3 * line


def test_roughness_is_noise_and_not_signal():
    """A wave shorter than the shortest length goes into the noise: amplitude / sqrt(2)."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((400, 1))
    wave = np.sin(2 * np.pi * x / 0.3)
    process = GaussianProcess.fit(x, 2 * x + wave, "linear", rng)
    assert (np.exp(process.hyperparameters.lengths) >= 0.999 * SHORTEST_LENGTH).all()
    np.testing.assert_allclose(process.noise, 1 / np.sqrt(2), rtol=0.1)


def test_known_noise_levels_weigh_the_points():
    """Points whose noise is a hundred times larger hardly count."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((200, 1))
    loud = rng.random(200) < 0.5
    values = x + np.where(loud, 10.0, 0.1)[:, None] * rng.standard_normal((200, 1))
    relative = np.where(loud, 1e4, 1.0) / np.where(loud, 1e4, 1.0).mean()
    process = GaussianProcess.fit(x, values, "linear", rng, relative_noise=relative)
    quiet = 0.1 / np.sqrt((~loud).sum())
    at = np.zeros((1, 1))
    assert abs(process.evaluate(at)[0]).item() < 6 * quiet
    assert process.sd(at).item() < 4 * quiet


def test_guards_do_not_set_the_scale():
    rng = np.random.default_rng(6)
    x = rng.standard_normal((100, 1))
    values, guards = x.copy(), np.zeros(100, dtype=bool)
    guards[:5], x[:5], values[:5] = True, 8 + np.arange(5.0)[:, None], 1e5
    process = GaussianProcess.fit(x, values, "linear", rng, guards=guards)
    assert process.scale == pytest.approx(values[5:].std())
    near = np.linspace(-1, 1, 5)[:, None]
    np.testing.assert_allclose(process.evaluate(near)[0], near, atol=0.05)


@pytest.mark.parametrize("n_copies", [1, 40])
def test_constant_values_and_duplicates_are_harmless(n_copies):
    rng = np.random.default_rng(7)
    x = np.repeat(rng.standard_normal((10, 2)), n_copies, axis=0)
    values = np.column_stack([x[:, 0], np.full(len(x), 3.0)])
    process = GaussianProcess.fit(x, values, "linear", rng)
    predicted, pull_back = process.evaluate(x)
    np.testing.assert_allclose(predicted, values, atol=0.02)
    assert np.isfinite(pull_back(np.ones_like(values))).all()
    assert np.isfinite(process.sd(x)).all()


def test_a_warm_start_that_misleads_is_left():
    """From lengths of a very different problem the fit is as good as from scratch."""
    x, _, rng = data(n=80)
    values = np.sin(2 * x[:, :1])
    warm = Hyperparameters(-12.0, np.log([50.0, 50.0]), np.log([1.0]))
    process = GaussianProcess.fit(x, values, "linear", rng, warm=warm)
    np.testing.assert_allclose(process.evaluate(x)[0], values, atol=0.02)


def test_farthest_points_cover():
    x = np.linspace(0, 1, 101)[:, None]
    chosen = x[farthest_points(x, 5), 0]
    np.testing.assert_allclose(np.sort(chosen), [0, 0.25, 0.5, 0.75, 1], atol=0.02)
    assert len(farthest_points(x, 200)) == 101


def test_points_have_several_functions_in_turn():
    x, values = np.random.default_rng(3).standard_normal((2, 30, 2))
    process = GaussianProcess.fit(x, values, "linear", np.random.default_rng(4))
    functions = process.draw(3, np.random.default_rng(5))
    there, weights = process.at(x), np.random.default_rng(6).standard_normal((30, 2))
    found, pulled = there.values(functions), there.pull_back(weights, functions)
    for i in range(3):
        own, at = functions[np.array([i])], process.at(x[i::3])
        np.testing.assert_allclose(found[i::3], at.values(own))
        np.testing.assert_allclose(pulled[i::3], at.pull_back(weights[i::3], own), atol=1e-10)


def test_common_function_serves_all_points():
    process = GaussianProcess.fit(*data()[:2], "linear", np.random.default_rng(0))
    mean = process.mean
    assert mean[np.array([0, 1])] is mean
    functions = process.draw(3, np.random.default_rng(1))
    some = functions[np.array([2, 2])]
    assert isinstance(some, Function)
    assert np.array_equal(some.kernel[0], functions.kernel[2])


@pytest.mark.parametrize("basis", ["constant", "linear", "quadratic"])
def test_basis_size(basis):
    assert basis_values(np.zeros((1, 4)), basis).shape[1] == basis_size(basis, 4)
