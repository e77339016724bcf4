from dataclasses import dataclass

import numpy as np
import pytest

from pymc_ensemble.samplers.gaussian_process.chains import NEIGHBORS, Chains, Ladder, Region
from pymc_ensemble.samplers.gaussian_process.posterior import Surface, Whitening
from pymc_ensemble.samplers.gaussian_process.regression import Function

IDENTITY = Whitening(np.zeros(2), np.eye(2), np.eye(2))
H = np.array([[2.0, 0.6], [0.6, 1.0]])  # precision of the Gaussian law


@dataclass(frozen=True)
class Gaussian:
    """A posterior ``N(0, H^-1)`` in the place of a surrogate's."""

    whitening: Whitening = IDENTITY
    shift: float = 0.0

    def prior(self, x):
        return 0.5 * (x**2).sum(1), x

    def surface(self, x, function=None, exponent=1.0, with_sd=False):
        center = 0.0
        if function is not None:
            center = np.resize(function.basis[:, 0], x.shape)
        e = x - center
        potential = 0.5 * exponent * (e * (e @ H)).sum(1)
        return Surface(potential, exponent * e @ H, self.prior(x)[0])


@dataclass(frozen=True)
class TwoWells:
    """Two wells on the first axis, with weights 1 and 3, behind a barrier."""

    whitening: Whitening = IDENTITY

    def prior(self, x):
        return 0.5 * (x**2).sum(1), x

    def surface(self, x, function=None, exponent=1.0, with_sd=False):
        wells = np.stack([self.well(x, -3.0, 0.0), self.well(x, 3.0, np.log(3.0))])
        logs = np.logaddexp(*-wells)
        weights = np.exp(-wells - logs)
        pulls = np.stack([x - [-3.0, 0.0], x - [3.0, 0.0]]) / 0.25
        return Surface(-logs, (weights[..., None] * pulls).sum(0), self.prior(x)[0])

    @staticmethod
    def well(x, center, log_weight):
        return 2 * ((x - [center, 0.0]) ** 2).sum(1) - log_weight


def run(chains, U, n_sweeps, rng, moves=10, burn_in=20):
    ladder, kept = Ladder.of(U, len(chains.temperatures)), []
    for _ in range(burn_in):
        ladder, _ = chains.run(ladder, moves, rng)
    for _ in range(n_sweeps):
        ladder, acceptance = chains.run(ladder, moves, rng, adapt=False)
        kept.append(ladder.particles)
    return np.array(kept), acceptance


def test_every_temperature_has_its_law():
    """At temperature T the covariance is T H^-1, whatever exchanges bring."""
    rng = np.random.default_rng(0)
    temperatures = np.array([1.0, 4.0, 16.0])
    chains = Chains(Gaussian(), temperatures, Region(100.0))
    draws, acceptance = run(chains, rng.standard_normal((60, 2)), 150, rng)
    assert (np.abs(acceptance - 0.6) < 0.2).all()
    for level, T in enumerate(temperatures):
        sample = draws[:, level].reshape(-1, 2)
        white = sample @ np.linalg.cholesky(H) / np.sqrt(T)
        # 9000 draws, correlated over a few sweeps: standard errors of about .02
        np.testing.assert_allclose(white.mean(0), 0, atol=0.09)
        np.testing.assert_allclose(np.cov(white.T), np.eye(2), atol=0.12)


def test_the_exponent_is_a_temperature():
    rng = np.random.default_rng(1)
    chains = Chains(Gaussian(), np.ones(1), Region(100.0), exponent=0.25)
    draws, _ = run(chains, rng.standard_normal((60, 2)), 100, rng)
    white = draws.reshape(-1, 2) @ np.linalg.cholesky(H) / 2
    np.testing.assert_allclose(np.cov(white.T), np.eye(2), atol=0.12)


def test_every_particle_has_its_function():
    """Functions that differ by a shift: each particle keeps to its own, at all temperatures."""
    rng = np.random.default_rng(2)
    shifts = np.repeat([-50.0, 50.0], 20)
    function = Function(np.zeros((40, 1, 1)), np.tile(shifts[:, None, None], (1, 1, 2)))
    chains = Chains(Gaussian(), np.array([1.0, 4.0]), Region(1e3), function=function)
    draws, _ = run(chains, np.tile(shifts[:, None], (1, 2)), 30, rng)
    assert (np.sign(draws) == np.sign(shifts)[:, None]).all()


def test_hot_particles_bring_cold_ones_over_barriers():
    """From one well alone both are found, in the proportion one to three."""
    rng = np.random.default_rng(3)
    start = [-3.0, 0.0] + 0.3 * rng.standard_normal((60, 2))
    cold = Chains(TwoWells(), np.ones(1), Region(100.0))
    ladder, _ = cold.run(Ladder.of(start, 1), 200, rng)
    assert (ladder.particles[0, :, 0] < 0).all()
    chains = Chains(TwoWells(), np.array([1.0, 2.25, 5.0, 11.0, 25.0]), Region(100.0))
    draws, _ = run(chains, start, 150, rng, burn_in=40)
    right = (draws[:, 0, :, 0] > 0).mean()
    assert right == pytest.approx(0.75, abs=0.05)


def test_no_particle_leaves_the_region():
    rng = np.random.default_rng(4)
    far = 50 * rng.standard_normal((30, 2))
    chains = Chains(Gaussian(), np.array([1.0, 25.0]), Region(1.5))
    draws, _ = run(chains, far, 10, rng)
    assert (np.linalg.norm(draws, axis=-1) <= 1.5).all()


def test_no_particle_goes_where_evaluations_fail():
    rng = np.random.default_rng(5)
    points = 2 * rng.standard_normal((300, 2))
    bad = points[:, 0] > 0.5
    region = Region.of(100.0, IDENTITY, points[~bad], points[bad], np.inf)
    chains = Chains(Gaussian(), np.ones(1), region)
    draws, _ = run(chains, points[~bad][:40], 30, rng)
    assert draws[..., 0].max() < 1.2
    assert (draws[..., 0] > 0.7).mean() < 0.05


def test_failures_at_random_forbid_next_to_nothing():
    """With 30% failures the share of places where 4 of 5 neighbors failed is 3%."""
    rng = np.random.default_rng(6)
    points = rng.standard_normal((400, 2))
    bad = rng.random(400) < 0.3
    region = Region.of(100.0, IDENTITY, points[~bad], points[bad], np.inf)
    inside = region.contains(rng.standard_normal((2000, 2)), np.zeros(2000))
    assert inside.mean() > 0.92


def test_region_without_failures_is_a_ball_of_plausible_points():
    region = Region.of(2.0, IDENTITY, np.zeros((NEIGHBORS, 2)), np.empty((0, 2)), 10.0)
    x = np.array([[0.5, 0.0], [1.5, 0.0], [0.0, 2.5], [np.inf, 0.0]])
    inside = region.contains(x, np.array([5.0, 15.0, 5.0, 5.0]))
    assert inside.tolist() == [True, False, False, False]


def test_particles_that_were_handed_in_stay():
    U = np.random.default_rng(7).standard_normal((20, 2))
    ladder, before = Ladder.of(U, 2), U.copy()
    Chains(Gaussian(), np.array([1.0, 4.0]), Region(10.0)).run(ladder, 5, np.random.default_rng(0))
    assert np.array_equal(U, before)
    assert np.array_equal(ladder.particles[0], before)
