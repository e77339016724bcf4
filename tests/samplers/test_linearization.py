from dataclasses import replace

import numpy as np
import pytest
from array_problems import PoissonRegression, random_linear, within
from scipy.linalg import expm
from scipy.stats import multivariate_normal

from pymc_ensemble.samplers.ensemble import EnsembleFailure
from pymc_ensemble.samplers.linearization import (
    Anomalies,
    LinearMap,
    fit_law,
    prior_slope,
)


@pytest.fixture(params=[None, "weighted"])
def weights(request):
    rng = np.random.default_rng(7)
    return None if request.param is None else rng.random(12)


def test_covariance_divides_by_the_ensemble_size(weights):
    U = np.random.default_rng(0).standard_normal((12, 3)) @ [[1, 2, 0], [0, 1, 5], [0, 0, 3]]
    anomalies = Anomalies.of(U, weights)
    expected = np.cov(U.T, bias=True, aweights=weights)
    np.testing.assert_allclose(anomalies.mean, np.average(U, 0, weights))
    np.testing.assert_allclose(anomalies.L @ anomalies.L.T, expected, rtol=1e-12)
    np.testing.assert_allclose(anomalies.L_pinv @ anomalies.L, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(anomalies.Q.T @ anomalies.Q, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(2 * anomalies.log_volume, np.linalg.slogdet(expected)[1])


def test_rank_is_that_of_the_span_in_any_units():
    rng = np.random.default_rng(1)
    U = rng.standard_normal((5, 3)) @ rng.standard_normal((3, 8)) * 10.0 ** np.arange(-8, 8, 2)
    assert Anomalies.of(U).rank == 3
    assert Anomalies.of(U[:3]).rank == 2


@pytest.mark.parametrize("copies", [1, 5])
def test_frame_turns_with_the_coordinates(copies):
    """Also where members are copies of one another, as they are after a resampling."""
    rng = np.random.default_rng(2)
    U, B = rng.standard_normal((10, 3)), rng.standard_normal((3, 3))
    U = np.repeat(U, copies, 0)
    one, other = Anomalies.of(U), Anomalies.of(U @ B.T + 1.0)
    np.testing.assert_allclose(one.frame @ one.frame.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(B @ one.L @ one.frame.T, other.L @ other.frame.T, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("exponent", [1.0, 0.3])
def test_law_of_a_linear_problem_is_its_posterior(seed, exponent):
    """Whatever the ensemble, its weights and members that failed."""
    problem, rng = random_linear(4, seed), np.random.default_rng(seed)
    U = 3 * rng.standard_normal((15, 4)) + 2
    problem.fails = lambda U: np.arange(len(U)) % 5 == 0
    ensemble, weights = problem.ensemble(U), rng.random(15)
    weights[1] = 0
    law = fit_law(problem, ensemble, weights, exponent)
    likelihood = problem.precision - problem.P0
    precision = exponent * likelihood + problem.P0
    mean = np.linalg.solve(
        precision,
        exponent * (problem.precision @ problem.mean - problem.P0 @ problem.prior_mean)
        + problem.P0 @ problem.prior_mean,
    )
    np.testing.assert_allclose(law.mean, mean, rtol=1e-9)
    np.testing.assert_allclose(law.precision, precision, rtol=1e-9)
    np.testing.assert_allclose(law.covariance, np.linalg.inv(precision), rtol=1e-8, atol=1e-12)
    points = rng.standard_normal((6, 4))
    np.testing.assert_allclose(
        law.log_density(points),
        multivariate_normal(mean, np.linalg.inv(precision)).logpdf(points),
        rtol=1e-8,
    )


@pytest.mark.parametrize("decades", [(0, 0), (-8, 8), (-8, -8)])
def test_law_is_affine_invariant(decades):
    """u -> B u + c turns the law N(m, P^-1) into N(B m + c, B P^-1 B^T), in any units."""
    problem, rng = PoissonRegression(), np.random.default_rng(3)
    d = problem.dimension
    B = np.logspace(*decades, d)[:, None] * (np.eye(d) + 0.3 * rng.random((d, d)))
    c = B @ rng.standard_normal(d)
    other = problem.transformed(B, c)
    U = problem.mean + 0.2 * rng.standard_normal((20, d))
    law, image = (fit_law(p, p.ensemble(X)) for p, X in ((problem, U), (other, U @ B.T + c)))
    scale = np.sqrt(np.diag(image.covariance))
    np.testing.assert_allclose((B @ law.mean + c) / scale, image.mean / scale, rtol=1e-8)
    np.testing.assert_allclose(
        B @ law.covariance @ B.T / np.outer(scale, scale),
        image.covariance / np.outer(scale, scale),
        atol=1e-8,
    )
    np.testing.assert_allclose(
        law.log_density(U) - image.log_density(U @ B.T + c), np.linalg.slogdet(B)[1], atol=1e-6
    )


@pytest.mark.parametrize("dt", [0.1, 1.0, 30.0, np.inf])
def test_relaxation_is_the_exact_transition(dt):
    """du = -C P (u - m) dt + sqrt(2 C) dW over the time dt, in the coordinates of u."""
    problem, rng = random_linear(3), np.random.default_rng(4)
    ensemble = problem.ensemble(rng.standard_normal((9, 3)))
    law = fit_law(problem, ensemble)
    C = law.anomalies.L @ law.anomalies.L.T
    decay = np.zeros((3, 3)) if np.isinf(dt) else expm(-dt * C @ problem.precision)
    U = rng.standard_normal((5, 3))
    x = law.map.coordinates(U)

    def moved(xi):
        return law.map.particles(law.relax(x, law.linear_force(x), dt, xi))

    still = moved(np.zeros((5, 3)))
    expected = problem.mean + (U - problem.mean) @ decay.T
    np.testing.assert_allclose(still, expected, rtol=1e-8, atol=1e-10)
    kicks = np.stack([moved(np.tile(e, (5, 1))) - still for e in np.eye(3)])[:, 0]
    stationary = problem.covariance
    covariance = stationary - decay @ stationary @ decay.T
    np.testing.assert_allclose(kicks.T @ kicks, covariance, rtol=1e-8, atol=1e-10)


def test_noise_is_standard():
    """The covariance of 40 000 vectors is known to 4 / sqrt(40 000) = .02."""
    law = fit_law(p := random_linear(3), p.ensemble(np.random.default_rng(5).random((9, 3))))
    xi = law.noise(40_000, np.random.default_rng(6))
    np.testing.assert_allclose(np.cov(xi.T), np.eye(3), atol=0.03)


def test_slope_of_a_gaussian_prior_is_its_precision():
    problem = random_linear(3)
    U = np.random.default_rng(8).standard_normal((7, 3))
    anomalies = Anomalies.of(U)
    gradient, slope = prior_slope(problem, anomalies, U)
    np.testing.assert_allclose(slope, anomalies.L.T @ problem.P0 @ anomalies.L, atol=1e-12)
    at_mean = problem.prior_gradient(anomalies.mean[None])[0]
    np.testing.assert_allclose(gradient, at_mean @ anomalies.L, atol=1e-12)


def test_indefinite_part_of_a_prior_slope_is_dropped():
    """The potential u1^2 - u2^2 has the Hessian diag(2, -2)."""

    class Saddle:
        gaussian_prior = False

        def prior_gradient(self, U):
            return U * [2.0, -2.0]

    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], float)  # mean 0, covariance I
    anomalies = Anomalies.of(signs)
    _, slope = prior_slope(Saddle(), anomalies, signs)
    P0 = anomalies.L_pinv.T @ slope @ anomalies.L_pinv
    np.testing.assert_allclose(P0, np.diag([2.0, 0.0]), atol=1e-12)


@pytest.mark.parametrize("names", [None, ("a", "tau_log__")])
def test_slopes_that_are_not_finite_are_told_by_coordinate(names):
    """Both that of the prior, at one point, and that of the outputs; coordinates are correlated."""
    problem, U = random_linear(2), np.random.default_rng(7).standard_normal((9, 2))
    U[:, 0] += 3 * U[:, 1]
    if names:
        problem.coordinate_names = names
    name = "`tau_log__`" if names else "number 1"
    ensemble, gradient = problem.ensemble(U), problem.prior_gradient
    steep = replace(ensemble, Z=ensemble.Z + 1e200 * U[:, 1:])
    for rough in (False, True):
        with pytest.raises(EnsembleFailure, match=f"overflows.* most along the coordinate {name}"):
            fit_law(problem, steep, rough=rough)
    problem.prior_gradient = lambda U: np.where([False, True], np.exp(800 * U), gradient(U))
    with pytest.raises(EnsembleFailure, match=f"prior is not finite in the coordinate {name}"):
        fit_law(problem, ensemble)


@pytest.mark.parametrize(("N", "weighted"), [(10, False), (24, True)])
def test_slope_noise_is_removed_from_the_information(N, weighted):
    """White noise of variance s^2 adds s^2 K sum(w^2) I to A^T A on average, and the correction
    subtracts it: 4000 replicas on a fixed ensemble agree with the noise-free slope.

    With ten members, two fifths of the noise are lost in the residuals of the fit.
    """
    problem, rng = random_linear(3), np.random.default_rng(10)
    U, K, noise = 2 * rng.standard_normal((N, 3)), 5, 0.7
    anomalies = Anomalies.of(U, 0.5 + rng.random(N) if weighted else None)
    exact = LinearMap.fit(anomalies, problem.forward_map(U)).slope
    raw, corrected = [], []
    for _ in range(4000):
        Z = problem.forward_map(U) + noise * rng.standard_normal((N, K))
        fit = LinearMap.fit(anomalies, Z)
        slope = fit.slope_without_noise(fit.residual_variance(U, Z), np.ones(K))
        raw.append(np.trace(fit.slope.T @ fit.slope))
        corrected.append(np.trace(slope.T @ slope))
    information = np.trace(exact.T @ exact)
    added = 3 * noise**2 * K * (anomalies.weights**2).sum()
    assert within(raw, information + added)
    assert within(corrected, information)
