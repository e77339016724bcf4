from dataclasses import replace

import numpy as np
import pytest
from array_problems import GaussianProblem, PoissonRegression, decay, random_linear

from pymc_ensemble.samplers.gaussian_process.posterior import (
    NoiseLaw,
    SurrogatePosterior,
    WhitenedPrior,
    Whitening,
)
from pymc_ensemble.samplers.gaussian_process.regression import GaussianProcess
from pymc_ensemble.samplers.gaussian_process.targets import Bend, ForwardTarget, PotentialTarget


def posterior_of(problem, forward=True, n=80, seed=0, bend=None):
    rng = np.random.default_rng(seed)
    archive = problem.ensemble(problem.sample_prior(n, rng))
    whitening = Whitening.of(archive.U)
    bend = Bend() if bend is None else bend
    target = ForwardTarget.of(problem, archive, bend) if forward else PotentialTarget(0.0, bend)
    x = whitening.coordinates(archive.U)
    process = GaussianProcess.fit(x, target.values(archive), "linear", rng)
    prior = WhitenedPrior.of(problem, whitening)
    return SurrogatePosterior(whitening, prior, target, process), archive


def test_whitened_ensembles_have_unit_covariance():
    rng = np.random.default_rng(0)
    U = rng.standard_normal((50, 3)) @ np.diag([1e-6, 1.0, 1e6]) + [1.0, 2.0, 3.0]
    whitening = Whitening.of(U)
    x = whitening.coordinates(U)
    np.testing.assert_allclose(np.cov(x.T, bias=True), np.eye(3), atol=1e-6)
    np.testing.assert_allclose(whitening.particles(x), U)


def test_whitening_of_an_ensemble_without_spread_is_finite():
    whitening = Whitening.of(np.ones((10, 2)))
    assert np.isfinite(whitening.coordinates(np.ones((3, 2)))).all()


@pytest.mark.parametrize("start", [2.0, np.inf])
def test_bend_is_undone_and_smooth(start):
    bend = Bend(start)
    values = np.linspace(-30, 30, 601)
    bent = bend(values)
    back, slope = bend.inverse(bent)
    np.testing.assert_allclose(back, values, atol=1e-12)
    np.testing.assert_allclose(np.gradient(values, bent)[1:-1], slope[1:-1], rtol=0.02)
    assert np.array_equal(bent[np.abs(values) <= start], values[np.abs(values) <= start])


def test_bend_tames_absurd_values():
    bent = Bend(20.0)(np.array([1e300, -1e12]))
    assert (np.abs(bent) < 20 * 700).all()
    assert np.isfinite(Bend(20.0).inverse(np.array([1e6]))[0]).all()


@pytest.mark.parametrize("make", [lambda: random_linear(3), decay, PoissonRegression])
@pytest.mark.parametrize("start", [1.0, np.inf])
def test_loss_of_the_outputs_themselves_is_that_of_the_problem(make, start):
    problem = make()
    archive = problem.ensemble(0.3 * problem.sample_prior(20, np.random.default_rng(0)))
    target = ForwardTarget.of(problem, archive, Bend(start))
    if target.directions.shape[0] == target.directions.shape[1]:
        np.testing.assert_allclose(target.loss(target.values(archive))[0], archive.loss, rtol=1e-8)
    else:  # projected on as many directions as lose least
        scaled = target.bend((archive.Z - target.center) * target.scale)
        s = np.linalg.svd(scaled - scaled.mean(0), compute_uv=False)
        lost = (s[target.directions.shape[1] :] ** 2).sum() / len(archive)
        assert target.lost == pytest.approx(lost, rel=1e-6)
        near = scaled @ target.directions @ target.directions.T
        Z = target.center + target.bend.inverse(near)[0] / target.scale
        np.testing.assert_allclose(target.loss(target.values(archive))[0], problem.loss(Z))


@pytest.mark.parametrize("make", [lambda: random_linear(3), decay, PoissonRegression])
@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize("start", [3.0, np.inf])
def test_gradient_of_the_surrogate_potential(make, forward, start):
    posterior, _ = posterior_of(make(), forward, bend=Bend(start))
    x, step = np.random.default_rng(1).standard_normal((6, posterior.dimension)), 1e-5
    _, gradient = posterior.potential(x, exponent=0.7)
    for j, e in enumerate(np.eye(posterior.dimension)):
        upper, _ = posterior.potential(x + step * e, exponent=0.7)
        lower, _ = posterior.potential(x - step * e, exponent=0.7)
        expected = (upper - lower) / (2 * step)
        tolerance = 1e-3 * np.abs(gradient).max()
        np.testing.assert_allclose(gradient[:, j], expected, rtol=1e-4, atol=tolerance)


def test_gaussian_prior_is_exact_and_asked_once():
    problem = random_linear(4)
    rng = np.random.default_rng(0)
    whitening = Whitening.of(problem.sample_prior(20, rng))
    prior = WhitenedPrior.of(problem, whitening)
    x = 3 * rng.standard_normal((10, 4))
    problem.prior_potential = problem.prior_gradient = None  # not asked again
    value, gradient = prior(x)
    U = whitening.particles(x)
    e = U - problem.prior_mean
    np.testing.assert_allclose(value, 0.5 * (e * (e @ problem.P0)).sum(1))
    np.testing.assert_allclose(gradient, e @ problem.P0 @ whitening.root)


def test_many_outputs_are_projected():
    """A hundred outputs of three parameters: few values, and nothing is lost."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((100, 3))
    problem = GaussianProblem(lambda U: U @ A.T, A @ [0.3, -0.2, 0.1], np.zeros(3), np.eye(3))
    posterior, archive = posterior_of(problem)
    assert posterior.process.center.shape[0] <= 12
    predicted = posterior.loss(posterior.whitening.coordinates(archive.U))
    np.testing.assert_allclose(predicted, archive.loss, atol=0.05)


def test_noise_of_the_loss():
    """Mean and spread of observed losses about those of the smooth map."""
    rng = np.random.default_rng(0)
    sd = np.array([0.5, 1.0, 2.0])
    problem = GaussianProblem(
        lambda U: U @ np.ones((2, 3)) + sd * rng.standard_normal((len(U), 3)),
        np.zeros(3),
        np.zeros(2),
        np.eye(2),
    )
    posterior, _ = posterior_of(problem, n=800)
    point = np.tile([0.5, -0.2], (4000, 1))
    x = posterior.whitening.coordinates(point)
    difference = problem.ensemble(point).loss - posterior.loss(x)
    assert posterior.loss_offset == pytest.approx(0.5 * (sd**2).sum(), rel=0.1)
    assert difference.mean() == pytest.approx(posterior.loss_offset, abs=0.35)
    assert difference.std() == pytest.approx(posterior.loss_noise(x)[0], rel=0.15)


def test_holes_below_the_depth_are_hills():
    target = PotentialTarget(10.0, Bend(100.0), depth=5.0)
    values = np.array([[-4.0], [-5.0], [-7.0]])
    loss, slope = target.loss(values)
    np.testing.assert_allclose(loss, [6.0, 5.0, 7.0])
    np.testing.assert_allclose(slope[:, 0], [1.0, 1.0, -1.0])


def test_losses_of_unequal_noise():
    posterior, _ = posterior_of(random_linear(2), forward=False)
    assert posterior.relative_noise(np.ones(3)) is None
    law = NoiseLaw(least=2.0, base=1.0, mean=3.0)
    loud = replace(posterior, noise_law=law)
    np.testing.assert_allclose(loud.relative_noise(np.array([1.0, 2.0, 7.0])), [1 / 3, 1 / 3, 2.0])


@pytest.mark.parametrize("base", [2.0, 16.0])
def test_law_of_the_noise_of_losses(base):
    """It is found within a factor of two, and outliers make no difference."""
    rng = np.random.default_rng(0)
    loss = 5 + rng.exponential(20, 2000)
    observed = loss + 3 * np.sqrt(loss - 5 + base) * rng.standard_normal(2000)
    observed[:20] += 1e4
    law = NoiseLaw.of(loss, observed, 2)
    assert 0.5 <= law.base / base <= 2
    assert law(loss).mean() == pytest.approx(1)
    assert NoiseLaw.of(loss, None, 2).base == 1
    assert np.isfinite(NoiseLaw.of(loss, loss, 2)(loss)).all()  # nothing to be learned
