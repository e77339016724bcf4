"""The whole sampler on arrays: exact posteriors of linear maps, invariance, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import scipy
from array_problems import GaussianProblem, run, step, sweeps, within

from pymc_ensemble.samplers.ensemble import Ensemble, EnsembleFailure
from pymc_ensemble.samplers.informed import curvature, linearized, walk
from pymc_ensemble.samplers.informed.curvature import Curvature
from pymc_ensemble.samplers.informed.law import InformedLaw
from pymc_ensemble.samplers.informed.learning import LATELY, TrialState, _drifts, _rises
from pymc_ensemble.samplers.informed.linearized import LinearizedPosterior
from pymc_ensemble.samplers.informed.reference import GaussianReference
from pymc_ensemble.samplers.informed.sampler import LikelihoodInformed
from pymc_ensemble.samplers.informed.walk import InformedWalk, expected_acceptance
from pymc_ensemble.samplers.rest import AT_REST


def deconvolution(d=100, seed=1):
    """Blurred random walk on a circle, every third value observed: a linear map of many
    parameters, whose prior is correlated.
    """
    rng = np.random.default_rng(seed)
    where = np.arange(d)
    apart = np.minimum((where[:, None] - where) % d, (where - where[:, None]) % d)
    P0 = np.linalg.inv(np.exp(-apart / (0.1 * d)))
    A = 8 * np.exp(-0.5 * (apart[::3] / (0.03 * d)) ** 2)
    A = A / 3
    truth = np.linalg.solve(np.linalg.cholesky(P0).T, rng.standard_normal(d))
    data = A @ truth + rng.standard_normal(len(A))
    problem = GaussianProblem(lambda U: U @ A.T, data, np.zeros(d), P0)
    precision = P0 + A.T @ A
    return problem, np.linalg.solve(precision, A.T @ data), np.linalg.inv(precision)


def learned(problem, seed, **options):
    rng = np.random.default_rng(seed)
    sampler = LikelihoodInformed(problem, **options)
    state = sampler.start(problem.sample_prior(sampler.start_size, rng), redraw=True)
    problem.n_evaluations = 0
    while state.phase in ("start", "burn-in"):
        state, _ = step(sampler, problem, state, rng)
    return sampler, state, rng


@pytest.mark.parametrize("seed", range(3))
def test_posterior_of_a_linear_map_is_learned_exactly(seed):
    """No map of 100 parameters is known from less than 101 evaluations; it takes 250 to be sure."""
    problem, mean, covariance = deconvolution()
    _, state, _ = learned(problem, seed)
    assert problem.n_evaluations <= 250
    target = state.inner.target
    variance = np.diag(covariance)
    law_mean = target.reference.points(target.law.center[None])[0]
    assert np.abs((law_mean - mean) / np.sqrt(variance)).max() < 1e-6
    eye = np.eye(len(mean))
    root = target.reference.points(eye) - target.reference.mean
    covariances = root.T @ target.law.contract(eye) @ root
    np.testing.assert_allclose(np.diag(covariances), variance, rtol=1e-6)


def test_independent_moves_of_a_linear_map_are_all_made():
    problem, mean, covariance = deconvolution()
    sampler, state, rng = learned(problem, 3)
    while not state.burned_in:
        state, _ = step(sampler, problem, state, rng)
    assert state.converged
    state, snapshots = sweeps(sampler, problem, state, 40, rng)
    assert np.mean([snapshot.acceptance for snapshot in snapshots]) > 0.98
    U = np.concatenate([snapshot.U for snapshot in snapshots])
    error = (U.mean(0) - mean) / np.sqrt(np.diag(covariance) / len(U))
    assert np.abs(error).max() < 4.5  # of a hundred
    np.testing.assert_allclose(U.std(0) / np.sqrt(np.diag(covariance)), 1, atol=0.1)


@pytest.mark.parametrize("kind", ["independent", "correlated", "differential"])
def test_a_wrong_law_leaves_the_posterior_invariant(monkeypatch, kind):
    """Walkers that start in the posterior stay there, with a law of a tenth of noise: 2e5 draws."""
    rng = np.random.default_rng(5)
    d, K, walkers = 20, 10, 400
    A = rng.standard_normal((K, d))
    problem = GaussianProblem(lambda U: U @ A.T, rng.standard_normal(K), np.zeros(d), np.eye(d))
    precision = np.eye(d) + A.T @ A
    mean = np.linalg.solve(precision, A.T @ problem.data)
    covariance = np.linalg.inv(precision)
    wrong = A * (1 + 0.1 * rng.standard_normal(A.shape))
    law = InformedLaw(mean + 0.1, wrong)
    target = LinearizedPosterior(
        GaussianReference(np.zeros(d), np.ones(d), np.ones(d, bool)),
        law,
        mean,
        A @ mean,
        wrong,
        gaussian=True,
    )
    kernel = InformedWalk(problem)
    U = rng.multivariate_normal(mean, covariance, walkers)
    monkeypatch.setattr(walk, "kind_of", lambda quality, uniform: kind)
    state = replace(kernel.start(target, walkers), size=0.4, rest=AT_REST)
    state = replace(state, ensemble=problem.ensemble(U))
    state, snapshots = sweeps(kernel, problem, state, 500, rng)
    paths = np.array([snapshot.U for snapshot in snapshots])
    assert within(paths.mean(0), mean, 4.0)  # walkers are independent: errors are known
    if kind == "correlated":  # few of the other moves are accepted
        ratio = paths.std((0, 1)) / np.sqrt(np.diag(covariance))
        np.testing.assert_allclose(ratio, 1, atol=0.02)
    second = ((paths - mean) ** 2).mean(0)
    assert within(second, np.diag(covariance), 4.5)


class CountsProblem(GaussianProblem):
    """Poisson counts with a log link."""

    quadratic_loss = False

    def pointwise_loss(self, Z):
        return np.exp(np.minimum(Z, 300)) - self.data * Z

    def loss_gradient(self, Z):
        return np.exp(Z) - self.data

    def curvature(self, Z):
        return np.exp(Z)


def test_loss_and_prior_are_no_part_of_what_has_to_be_learned():
    """With a linear map the linearized posterior is the posterior, whatever the loss is."""
    rng = np.random.default_rng(6)
    A = np.vander(np.linspace(-1, 1, 15), 4)
    data = rng.poisson(np.exp(A @ [0.3, -0.5, 0.2, -0.5]))
    problem = CountsProblem(lambda U: U @ A.T, data, np.zeros(4), np.eye(4))
    sampler, state, rng = learned(problem, 7)
    while not state.burned_in:
        state, _ = step(sampler, problem, state, rng)
    state, snapshots = sweeps(sampler, problem, state, 20, rng)
    assert np.mean([snapshot.acceptance for snapshot in snapshots]) > 0.98
    # importance weights of prior draws, a million of them, give the moments
    prior = rng.standard_normal((1_000_000, 4))
    weights = np.exp(-problem.loss(prior @ A.T) + problem.loss(prior @ A.T).min())
    mean = weights @ prior / weights.sum()
    sd = np.sqrt(weights @ (prior - mean) ** 2 / weights.sum())
    U = np.concatenate([snapshot.U for snapshot in snapshots])
    assert np.abs((U.mean(0) - mean) / sd).max() < 4.5 / np.sqrt(len(U) / 2)
    np.testing.assert_allclose(U.std(0) / sd, 1, atol=0.12)


def test_a_law_centered_where_the_loss_allows_nothing_leaves_densities_finite():
    """A step along the line may end where counts would have a negative mean."""

    class Counts(CountsProblem):
        def pointwise_loss(self, Z):
            return np.where(Z > 0, Z, np.nan)

    problem = Counts(lambda U: U, np.ones(1), np.zeros(1), np.eye(1))
    reference = GaussianReference(np.zeros(1), np.ones(1), np.ones(1, bool))
    law = InformedLaw(np.array([-0.5]), np.ones((1, 1)))
    target = LinearizedPosterior(reference, law, np.ones(1), np.ones(1), np.ones((1, 1)), False)
    density = target.log_density(problem, np.array([[0.5], [2.0], [-1.0]]))
    assert density[0] - density[1] == pytest.approx(1.5 + (2**2 - 0.5**2) / 2)
    assert density[2] == -np.inf


class ProbabilitiesProblem(GaussianProblem):
    """Binary data whose probabilities are outputs, clipped: where a line leaves them, they stay."""

    quadratic_loss = False

    def __init__(self):
        super().__init__(
            lambda U: np.clip(0.5 + 0.6 * U[:, :2], 1e-6, 1 - 1e-6),
            [1.0, 0.0],
            np.zeros(10),
            np.eye(10),
        )

    def pointwise_loss(self, Z):
        chances = np.where(self.data > 0, Z, 1 - Z)
        with np.errstate(divide="ignore", invalid="ignore"):
            return -np.log(np.where(chances > 1, np.nan, chances))

    def loss_gradient(self, Z):
        return (Z - self.data) / (Z * (1 - Z))

    def curvature(self, Z):
        return 1 / (Z * (1 - Z))


@pytest.mark.parametrize("seed", range(3))
def test_draws_reach_where_the_line_leaves_what_the_loss_allows(seed):
    """Of the posterior of a parameter 41% are there, and moments are those of a quadrature.

    Without these the mean is off by 0.67 sd, and the sd is 0.55 of the right one.
    """
    problem = ProbabilitiesProblem()
    sampler, state, rng = learned(problem, seed)
    while not state.burned_in:
        state, _ = step(sampler, problem, state, rng)
    state, snapshots = sweeps(sampler, problem, state, 40, rng)
    assert np.mean([snapshot.acceptance for snapshot in snapshots]) > 0.9
    u = np.linspace(-6, 6, 4001)
    density = np.exp(-0.5 * u**2) * np.clip(0.5 + 0.6 * u, 1e-6, 1 - 1e-6)
    density /= density.sum()
    mean = density @ u
    sd = np.sqrt(density @ (u - mean) ** 2)
    U = np.concatenate([snapshot.U[:, :2] for snapshot in snapshots]) * [1, -1]
    assert np.abs(U.mean(0) - mean).max() < 4 * sd / np.sqrt(len(U) / 1.2)
    np.testing.assert_allclose(U.std(0) / sd, 1, atol=0.08)  # four errors


def test_proposals_are_independent_where_the_law_is_far_too_narrow():
    """They forget a start at the center, though the law is ten times as narrow as the posterior."""
    problem = GaussianProblem(lambda U: 0.3 * U[:, :1], [0.0], np.zeros(5), np.eye(5))
    reference = GaussianReference(np.zeros(5), np.ones(5), np.ones(5, bool))
    law = InformedLaw(np.zeros(5), 10 * np.eye(5)[:1])
    slope = 0.3 * np.eye(5)[:1]
    target = LinearizedPosterior(reference, law, np.zeros(5), np.zeros(1), slope, gaussian=False)
    x = target.propose(problem, np.zeros((2000, 5)), np.random.default_rng(4))
    sds = 1 / np.sqrt([1.09, 1, 1, 1, 1])
    np.testing.assert_allclose(x.std(0) / sds, 1, atol=4 / np.sqrt(2 * 2000))


class FlowProblem(GaussianProblem):
    """Flow along a line, whose log conductivity has 40 parameters: the law at the mode is poor."""

    def __init__(self):
        x, modes, rng = (np.arange(64) + 0.5) / 64, np.arange(40), np.random.default_rng(16)
        B = np.sqrt(2) * np.cos(np.pi * np.outer(modes, x)) / (1 + (modes / 3) ** 1.5)[:, None]
        T = np.tril(np.ones((64, 64)))[7::8] / 64
        flow = np.exp(-rng.standard_normal(40) @ B) @ T.T
        self.noise = 0.05 * flow.max()
        data = flow / self.noise + rng.standard_normal(8)
        super().__init__(
            lambda U: np.exp(-U @ B) @ T.T / self.noise, data, np.zeros(40), np.eye(40)
        )


def test_curvature_is_learned_where_the_law_is_poor():
    problem = FlowProblem()
    sampler, state, rng = learned(problem, 15)
    curvature = state.inner.target.curvature
    assert curvature.law_acceptance < 0.25
    x = state.inner.target.propose(problem, curvature.last(300), rng)
    predicted, outputs = state.inner.target.predicted(x), problem.forward_map(x)
    along = outputs - replace(state.inner.target, curvature=None).predicted(x)
    assert ((outputs - predicted) ** 2).mean() < 0.25 * (along**2).mean()
    while not state.burned_in:
        state, _ = step(sampler, problem, state, rng)
    assert sampler.origin(state).law_acceptance < 0.01  # walkers are where the law is too low
    state, snapshots = sweeps(sampler, problem, state, 10, rng)
    independent = [s.acceptance.mean() for s in snapshots if np.isinf(s.step_size)]
    assert np.mean(independent) > 0.25


def parabola(U):
    """A tenth as wide as it is long: some 40% of the draws of the law at the mode are accepted."""
    return np.stack([10 * (U[:, 0] - 0.5 * U[:, 1] ** 2 - 0.3 * U[:, 2]), U[:, 1]], axis=1)


@pytest.mark.parametrize("seed", range(2))
def test_curvature_brings_walkers_to_the_tails(seed):
    """Standard deviations are those of a quadrature; without curvature one was 0.7 of it."""
    problem = GaussianProblem(parabola, [0.0, 1.0], np.zeros(3), np.eye(3))
    sampler, state, rng = learned(problem, seed)
    assert state.inner.target.curvature is not None
    while not state.burned_in:
        state, _ = step(sampler, problem, state, rng)
    assert state.inner.quality == "usable"  # by moves that reach what proposals miss
    state, snapshots = sweeps(sampler, problem, state, 20, rng)
    u = np.linspace(-4, 5, 901)
    along = 0.5 * u**2  # what is left of the prior of the first, and of the third
    density = np.exp(-0.5 * along**2 / (1 + 0.01 + 0.09) - 0.5 * u**2 - 0.5 * (u - 1) ** 2)
    density /= density.sum()
    mean = density @ u
    sd = np.sqrt(density @ (u - mean) ** 2)
    U = np.concatenate([snapshot.U[:, 1] for snapshot in snapshots])
    assert abs(U.mean() - mean) < 0.15 * sd  # four errors of 700 independent draws
    np.testing.assert_allclose(U.std() / sd, 1, atol=0.12)


def test_tails_are_foreseen_that_few_draws_of_the_law_do_not_show():
    """Three quarters of the first draws would be accepted, and 0.6 of them by walkers."""

    def wide(U):
        return np.stack([4 * (U[:, 0] - 0.5 * U[:, 1] ** 2 - 0.3 * U[:, 2]), U[:, 1]], axis=1)

    problem = GaussianProblem(wide, [0.0, 1.0], np.zeros(50), np.eye(50))
    _, state, _ = learned(problem, 1)
    curvature = state.inner.target.curvature
    assert curvature.law_acceptance > 0.7


@pytest.mark.parametrize("seed", range(3))
def test_draws_of_the_prior_tell_of_an_arm_that_proposals_miss(seed):
    """A parabola has two arms, and its mode lies on one; where it is a line nothing is missed."""
    two_arms, line = (
        GaussianProblem(forward_map, [1 / 0.3], np.zeros(20), np.eye(20))
        for forward_map in (
            lambda U: (U[:, 1:2] + U[:, :1] ** 2) / 0.3,
            lambda U: (U[:, 1:2] + U[:, :1]) / 0.3,
        )
    )
    found = []
    for problem in (two_arms, line):
        sampler, state, rng = learned(problem, seed)
        while not state.burned_in:
            state, _ = step(sampler, problem, state, rng)
        found.append(sampler.origin(state).reached)
    assert found[0] < 0.5
    assert found[1] > 0.95


def test_acceptances_that_rise_no_more():
    rising = (0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.4, 0.5, 0.5)
    assert _rises(rising, 100)
    assert _rises(rising[:9][::-1], 100)  # too few to tell
    assert not _rises((*rising, 0.4, 0.4, 0.4, 0.4, 0.4), 100)
    for n, known in ((99, False), (101, True)):  # a rise of 0.05 is half of 1 / sqrt(100)
        assert _rises((*(0.2,) * LATELY, *(0.25,) * LATELY), n) is known


def banana(U):
    """Of three parameters two are informed about, and lie on a parabola."""
    return 2 * (U[:, :1] - U[:, 1:2] ** 2)


def corrected_banana(rng):
    """Problem, and its linearized posterior with a correction that is wrong."""
    problem = GaussianProblem(banana, [0.0], np.zeros(3), np.eye(3))
    law = InformedLaw(np.zeros(3), np.array([[2.0, 0.5, 0.0], [0.5, 2.0, 0.0]]))
    reference = GaussianReference(np.zeros(3), np.ones(3), np.ones(3, bool))
    slope = np.array([[2.0, 0.5, 0.0]])
    line = LinearizedPosterior(reference, law, np.zeros(3), np.zeros(1), slope, gaussian=True)
    x = rng.standard_normal((40, 3))
    residuals = banana(x) - line.predicted(x) + rng.standard_normal((40, 1))
    return problem, line.curved(problem, x, residuals, 0.1)


def test_proposals_that_drift():
    """Their means differ significantly in one of two coordinates, by 0.3 standard deviations."""
    before, variances = np.zeros(2), np.array([4.0, 1.0])
    rounds = (np.stack([before, variances]),) * LATELY
    n = round(2 * (scipy.stats.norm.isf(0.025) / 0.3) ** 2)
    assert _drifts(rounds, n)  # too few to tell
    assert not _drifts(rounds + rounds, n)
    for shift, drifts in ((0.59, False), (0.61, True)):
        now = (np.stack([np.array([shift, 0.0]), variances]),) * LATELY
        assert _drifts(rounds + now, n) is drifts
    nothing = (np.empty((2, 0)),) * 2 * LATELY
    assert not _drifts(nothing, n)


@pytest.mark.parametrize("precision", [0.0, 25.0])
def test_tails_of_single_numbers_are_explored_as_far_as_the_law_allows(precision):
    """The first coordinate scales the others, and data of its own may determine it.

    Its proposals are ``N(0, 1)``, wherever those before were, or within twice what the data allow.
    """

    def scaled(U):
        return np.concatenate([np.sqrt(precision) * U[:, :1], np.exp(U[:, :1]) * U[:, 1:]], axis=1)

    problem = GaussianProblem(scaled, np.zeros(6), np.zeros(6), np.eye(6))
    problem.coordinate_names = ["scale", *(f"field[{i}]" for i in range(5))]
    rng = np.random.default_rng(21)
    sampler = LikelihoodInformed(problem, round_size=400)
    reference = GaussianReference(np.zeros(6), np.ones(6), np.ones(6, bool))
    slope = np.diag([np.sqrt(precision), *np.ones(5)])
    law = InformedLaw(np.zeros(6), slope)
    plain = LinearizedPosterior(reference, law, np.zeros(6), np.zeros(6), slope, gaussian=True)
    x = law.draw(400, rng)
    x[:, 0] = 0.5
    target = plain.curved(problem, x, scaled(x) - plain.predicted(x), 0.1)
    search = Ensemble.evaluated(problem, x[:1], problem.evaluate(x[:1]))
    nothing = np.empty((0, 6))
    state = TrialState(search, None, plain, target, nothing, nothing)
    _, pending = sampler.burn_in.ask(state, rng)
    far = pending.x[-pending.wide :]
    size = min(1.0, 2 / np.sqrt(1 + precision))
    center = 0.5 * np.sqrt(1 - size**2)
    n = pending.wide
    assert far[:, 0].mean() == pytest.approx(center, abs=4 * size / np.sqrt(n))
    assert far[:, 0].std() == pytest.approx(size, rel=4 / np.sqrt(2 * n))


def test_curvature_is_learned_from_the_newest(monkeypatch):
    monkeypatch.setattr(curvature, "MOST", 30)
    _, target = corrected_banana(np.random.default_rng(1))
    assert len(target.curvature.sites) == len(target.curvature.weights) == 30


def test_corrected_outputs_leave_the_posterior_invariant():
    """Walkers that start in the posterior stay there, with a correction that is wrong."""
    rng = np.random.default_rng(17)
    problem, target = corrected_banana(rng)
    along, across = np.meshgrid(np.linspace(-4, 4, 401), np.linspace(-3, 3, 401))
    u = np.stack([across + along**2, along], -1).reshape(-1, 2)
    density = np.exp(-0.5 * (banana(u)[:, 0] ** 2 + (u**2).sum(1)))
    density /= density.sum()
    kernel = InformedWalk(problem)
    U = np.column_stack([u[rng.choice(len(u), 400, p=density)], rng.standard_normal(400)])
    state = replace(kernel.start(target, 400), rest=AT_REST)
    state = replace(state, ensemble=problem.ensemble(U))
    state, snapshots = sweeps(kernel, problem, state, 20, rng)
    assert 0.1 < np.mean([s.acceptance.mean() for s in snapshots]) < 0.9
    paths, mean = np.array([s.U for s in snapshots])[..., :2], density @ u
    assert within(paths.mean(0), mean, 4.5)
    assert within(((paths - mean) ** 2).mean(0), density @ (u - mean) ** 2, 4.5)


@pytest.mark.parametrize("steps", [7, 8])
def test_free_moves_are_made_in_an_order_that_is_the_same_backwards(monkeypatch, steps):
    """Reversible moves of two kinds, made in turn, would not be reversible together."""
    rng, made = np.random.default_rng(18), []
    problem, target = corrected_banana(rng)

    def recorded(kind, of):
        def move(self, *args):
            made.append(kind)
            return of(self, *args)

        return move

    for owner, kind in ((LinearizedPosterior, "crank_nicolson"), (Curvature, "move")):
        monkeypatch.setattr(owner, kind, recorded(kind, getattr(owner, kind)))
    monkeypatch.setattr(linearized, "CURVED_STEPS", steps)
    target.propose(problem, target.curvature.last(3), rng)
    assert len(made) == steps
    assert made == made[::-1]
    assert len(set(made)) == 2


@pytest.mark.parametrize("few", ["directions", "proposals"])
def test_where_no_curvature_can_be_learned_the_law_is_kept(few):
    """A map that is flat at its mode informs of no direction; one point has no differences."""
    rng = np.random.default_rng(19)
    problem = GaussianProblem(lambda U: (U**2)[:, :1] / 0.05, [0.0], np.zeros(2), np.eye(2))
    sampler = LikelihoodInformed(problem)
    U = problem.sample_prior(20, rng)
    search = sampler.burn_in.search.start(Ensemble.evaluated(problem, U, problem.evaluate(U)))
    slope = np.zeros((1, 2)) if few == "directions" else np.ones((1, 2))
    reference = GaussianReference(np.zeros(2), np.ones(2), np.ones(2, bool))
    law = InformedLaw(np.zeros(2), slope)
    plain = LinearizedPosterior(reference, law, np.zeros(2), np.zeros(1), slope, gaussian=True)
    nothing = np.empty((0, 2))
    state = TrialState(search.ensemble, search, plain, plain, nothing, nothing[:, :1])
    points, pending = sampler.burn_in.ask(state, rng)
    evaluations = problem.evaluate(points)
    if few == "proposals":
        evaluations.outputs[1:] = np.nan
    state, _ = sampler.burn_in.tell(state, pending, evaluations)
    assert state.done
    assert state.target is plain


def test_expected_acceptance():
    weights = np.random.default_rng(8).lognormal(size=50)
    exact = np.minimum.outer(weights, weights).mean() / weights.mean()
    assert expected_acceptance(np.log(weights)) == pytest.approx(exact)
    assert expected_acceptance(np.full(5, -np.inf)) == 0


def curved(U):
    return np.stack([U[:, 0] + 0.3 * U[:, 1] ** 2, U.sum(1), np.exp(0.3 * U[:, 2])], axis=1)


def curved_problem():
    return GaussianProblem(curved, [1.0, 0.5, 1.2], np.zeros(6), np.eye(6))


def test_failures_are_left_out():
    """A tenth of the evaluations fail; the draws are from where they do not."""
    problem = curved_problem().failing(lambda U: U[:, 5] > 1.3)
    sampler = LikelihoodInformed(problem, walkers=20, round_size=20)
    _, draws = run(sampler, problem, np.random.default_rng(9), n_sweeps=20)
    assert draws[..., 5].max() <= 1.3
    assert np.isfinite(draws).all()


def test_a_noisy_map_is_refused():
    rng = np.random.default_rng(10)
    problem = GaussianProblem(
        lambda U: U + 0.1 * rng.standard_normal(U.shape), np.zeros(3), np.zeros(3), np.eye(3)
    )
    sampler = LikelihoodInformed(problem)
    with pytest.raises(EnsembleFailure, match="other outputs when the same point"):
        run(sampler, problem, np.random.default_rng(11), n_sweeps=1)


def test_same_seed_same_draws():
    one, two = (
        run(LikelihoodInformed(p), p, np.random.default_rng(12), n_sweeps=3)[1]
        for p in (curved_problem(), curved_problem())
    )
    np.testing.assert_array_equal(one, two)


def test_learning_that_was_cut_short_has_not_converged():
    problem, *_ = deconvolution()
    sampler = LikelihoodInformed(problem, round_size=20, max_rounds=2)
    state, _ = run(sampler, problem, np.random.default_rng(13), n_sweeps=2)
    assert not state.converged


def test_without_a_forward_map_there_is_nothing_to_learn():
    problem = curved_problem()
    problem.density_only = True
    with pytest.raises(EnsembleFailure, match="no forward map"):
        LikelihoodInformed(problem)


def test_sizes():
    with pytest.raises(ValueError, match="walkers must be an integer of at least 4"):
        LikelihoodInformed(curved_problem(), walkers=3)
    with pytest.raises(ValueError, match="round_size must be an integer of at least 20"):
        LikelihoodInformed(curved_problem(), round_size=5)


def test_search_begins_where_it_is_told():
    problem = curved_problem()
    sampler = LikelihoodInformed(problem)
    U = problem.sample_prior(10, np.random.default_rng(14))
    ensemble = Ensemble.evaluated(problem, U, problem.evaluate(U))
    state = sampler.burn_in.start(ensemble, 3)
    np.testing.assert_array_equal(state.ensemble.U[0], U[3])
