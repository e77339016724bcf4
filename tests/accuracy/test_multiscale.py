"""The multiscale sampler: whole runs against exact posteriors, and the laws of its schemes.

Every seed has to stay below the bounds, with all evaluations counted by the forward map itself,
those of the pilot included. Bounds are two to three times the Monte Carlo error of the draws.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pymc as pm
import pytest
from array_problems import (
    GaussianProblem,
    PoissonRegression,
    bimodal,
    decay,
    errors,
    four_modes,
    run,
    sample_density,
    step,
    stiff_linear,
    sweeps,
)

import pymc_ensemble as pe
from pymc_ensemble import gallery
from pymc_ensemble.samplers.multiscale.explorers import Explorers, Preconditioner
from pymc_ensemble.samplers.multiscale.sampler import Multiscale
from pymc_ensemble.samplers.multiscale.walkers import Walkers

SEEDS = range(10)

pytestmark = pytest.mark.accuracy


@dataclass(frozen=True)
class Case:
    """A problem, the length of a run, and what is promised for it.

    `half_width` is that of the square in which the total variation from the exact law is taken.
    """

    gallery: tuple[str, dict]
    arrays: Callable[[], GaussianProblem]
    draws: int
    evaluations: int
    mean: float
    sd: float
    walkers: int = 10
    half_width: float | None = None
    total_variation: float = np.inf
    masses: Callable[[np.ndarray], np.ndarray] | None = None
    mass_error: float = np.inf
    options: dict = field(default_factory=dict)


def halves(U):
    above = (U[:, 0] > U[:, 1]).mean()
    return np.array([above, 1 - above])


def quadrants(U):
    return np.bincount(2 * (U[:, 0] > 0) + (U[:, 1] > 0), minlength=4) / len(U)


CASES = {
    "linear 10d": Case(
        ("linear_gaussian", {"d": 10}), lambda: stiff_linear(10), 3_350, 40_000, 0.05, 0.04
    ),
    "linear 20d": Case(
        ("linear_gaussian", {"d": 20}), lambda: stiff_linear(20), 1_650, 40_000, 0.08, 0.05
    ),
    "bimodal": Case(
        ("bimodal", {}), bimodal, 12_000, 40_000, 0.13, 0.07,
        half_width=4.0, total_variation=0.12, masses=halves, mass_error=0.08,
    ),
    "four modes": Case(
        ("four_modes", {"rough": False}), four_modes, 8_600, 40_000, np.inf, np.inf, walkers=40,
        # the worst of 400 runs: 0.15
        half_width=2.0, total_variation=0.17, masses=quadrants,
    ),
    "noisy decay": Case(
        ("decay", {"noise_sd": 0.3}), lambda: decay(noise=0.3), 2_500, 10_000, 0.10, 0.09
    ),
    "Poisson regression": Case(
        ("poisson_regression", {}), PoissonRegression, 6_000, 40_000, 0.08, 0.06
    ),
}  # fmt: skip


def total_variation(problem, half_width, U, bins=16, fine=50):
    """Of draws from the exact law on a square, both in bins."""
    edges = np.linspace(-half_width, half_width, bins + 1)
    nodes = np.linspace(-half_width, half_width, 2 * bins * fine + 1)[1::2]
    grid = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2)
    V = problem.loss(problem.forward_map(grid)) + problem.prior_potential(grid)
    exact = np.exp(V.min() - V).reshape(bins, fine, bins, fine).sum((1, 3))
    found = np.histogram2d(*U.T, bins=[edges, edges])[0] / len(U)
    return 0.5 * np.abs(found - exact / exact.sum()).sum() + 0.5 * (1 - found.sum())


def judge(case, evaluations, shift, ratio, U):
    """Figures of one run: evaluations, errors of mean and sd, total variation, error of masses."""
    distance, mass_error, least = 0.0, 0.0, 1.0
    if case.masses is not None:
        masses = case.masses(U)
        distance = total_variation(case.arrays(), case.half_width, U)
        mass_error, least = np.abs(masses - 1 / len(masses)).max(), masses.min() * len(masses)
    return evaluations, shift, ratio, distance, mass_error, least


def settle(case, name, figures, capsys):
    """Print medians and worst seeds; hold every seed against the bounds."""
    figures = np.array(figures)
    median, worst = np.median(figures, axis=0), figures.max(axis=0)
    titles = ("evaluations", "mean", "sd", "total variation", "mass")
    shown = [f"{t} {m:.4g} (worst {w:.4g})" for t, m, w in zip(titles, median, worst, strict=False)]
    with capsys.disabled():
        print(f"\n{name}: " + ", ".join(shown[: 5 if case.masses else 3]))
    assert (figures[:, 0] <= case.evaluations).all()
    assert (figures[:, 1] < case.mean).all()
    assert (figures[:, 2] < case.sd).all()
    assert (figures[:, 3] < case.total_variation).all()
    assert (figures[:, 4] < case.mass_error).all()
    assert (figures[:, 5] > 0.1).all()  # no mode is lost


def moment_errors(posterior: Any, reference: Any) -> tuple[float, float]:
    """Root mean square over the parameters of both errors, in posterior standard deviations."""
    shifts, ratios = [], []
    for name, moments in reference.items():
        draws = posterior[name].values.reshape(-1, *moments.shape[1:])
        mean, sd = moments.sel(statistic="mean").values, moments.sel(statistic="sd").values
        shifts.append(np.ravel((draws.mean(0) - mean) / sd))
        ratios.append(np.ravel(draws.std(0) / sd - 1))
    return tuple(float(np.sqrt((np.concatenate(v) ** 2).mean())) for v in (shifts, ratios))


@pytest.mark.parametrize("name", CASES)
def test_pymc_runs(name, capsys):
    case, figures = CASES[name], []
    model = getattr(gallery, case.gallery[0])(**case.gallery[1])
    for seed in SEEDS:
        before = model.forward.n_evaluations
        with model:
            idata = pm.sample(
                step=pe.MultiscaleSampler(adjust=False, walkers=case.walkers),
                draws=case.draws,
                chains=1,
                cores=1,
                random_seed=seed,
                progressbar=False,
                compute_convergence_checks=False,
            )
        counted = model.forward.n_evaluations - before
        assert counted <= int(idata.sample_stats.n_evals.max())  # less what is remembered
        U = None if case.masses is None else idata.posterior.u.to_numpy().reshape(-1, 2)
        figures.append(judge(case, counted, *moment_errors(idata.posterior, model.reference), U))
    settle(case, name, figures, capsys)


def test_ten_chains(capsys):
    """Chains share one pilot, and are as good as walkers."""
    case, figures = CASES["linear 10d"], []
    model = gallery.linear_gaussian(10)
    for seed in SEEDS:
        before = model.forward.n_evaluations
        with model:
            idata = pm.sample(
                step=pe.MultiscaleSampler(adjust=False),
                draws=335,
                chains=10,
                cores=1,
                random_seed=seed,
                progressbar=False,
                compute_convergence_checks=False,
            )
        counted = model.forward.n_evaluations - before
        figures.append((counted, *moment_errors(idata.posterior, model.reference), 0, 0, 1))
    settle(case, "linear 10d, ten chains", figures, capsys)


@pytest.mark.parametrize("name", CASES)
def test_array_runs(name, capsys):
    """The sampler alone, up to the last evaluation of its budget, with other seeds."""
    case, figures = CASES[name], []
    problem = case.arrays()
    for seed in range(1000, 1020):
        sampler = Multiscale(problem, walkers=case.walkers)
        state, draws = run(
            sampler, problem, np.random.default_rng(seed), max_evaluations=case.evaluations
        )
        assert state.converged
        U = draws.reshape(-1, problem.dimension)
        figures.append(judge(case, problem.n_evaluations, *errors(problem, U), U))
    settle(case, f"{name}, arrays", figures, capsys)


# -- laws of the schemes ------------------------------------------------------------------------


def tell(capsys, text):
    with capsys.disabled():
        print(f"\n{text}")


def spread(problem, h, n_directions, *, M=2000, n=30, delta=0.0, averaged=False, independent=True):
    """Standard deviation of long runs of the scheme in units of the exact one, and its error.

    The problem is linear, and the preconditioner is the covariance of its posterior.
    """
    rng = np.random.default_rng(11)
    law = Preconditioner(problem.mean, np.linalg.cholesky(problem.covariance))
    explorers = Explorers(problem, n_directions, 1e-3, independent=independent)
    kernel = Walkers(explorers, delta, averaged=averaged)
    state = kernel.start(problem.sample_posterior(M, rng), law, h)
    state, _ = step(kernel, problem, state, rng)
    state, _ = sweeps(kernel, problem, state, int(5 * (1 + delta**2) / h), rng)
    state, snapshots = sweeps(kernel, problem, state, n, rng)
    x = problem.standardized(np.array([s.U for s in snapshots]))
    squares = (x**2).mean((0, 2))
    return np.sqrt(squares.mean()), squares.std() / np.sqrt(M) / 2


@pytest.mark.parametrize("h", [0.2, 0.5, 1.0])
def test_averaged_steps_on_a_linear_problem(h, capsys):
    sd, error = spread(stiff_linear(10), h, 10, averaged=True, independent=False)
    euler, _ = spread(stiff_linear(10), h, 10, independent=False)
    tell(capsys, f"step {h}: sd {sd - 1:+.4f} +- {error:.4f}, Euler-Maruyama {euler - 1:+.4f}")
    assert 4 * error < 0.015
    assert abs(sd - 1) < 0.015
    assert euler == pytest.approx(1 / np.sqrt(1 - h / 2), rel=0.015)


@pytest.mark.parametrize(("h", "J"), [(0.1, 10), (0.2, 10), (0.5, 10), (0.1, 2)])
def test_bias_of_the_published_scheme(h, J, capsys):
    """sd +6 % at h = .1, +13 % at .2, +45 % at .5; +22 % at .1 with two directions."""
    d = 10
    sd, error = spread(stiff_linear(d), h, J)
    expected = np.sqrt(2 / (2 - h * (1 + (d + 1) / J)))
    tell(capsys, f"step {h}, J {J}: sd {sd - 1:+.3f} +- {error:.3f}, derived {expected - 1:+.3f}")
    assert abs(sd - expected) < 4 * error + 0.01 * (expected - 1)


def test_bias_of_relaxing_directions(capsys):
    """Up to delta = .1 there is none; then it grows by delta^2 / J, and then by delta."""
    problem, h = stiff_linear(5), 0.1
    bias = {
        (delta, J): spread(problem, h, J, delta=delta, M=1000)[0]
        / spread(problem, h, J, M=1000)[0] - 1
        for delta, J in [(0.1, 5), (0.3, 5), (0.5, 5), (1.0, 5), (0.5, 20)]
    }  # fmt: skip
    tell(capsys, ", ".join(f"delta {k[0]}, J {k[1]}: sd {v:+.3f}" for k, v in bias.items()))
    assert abs(bias[0.1, 5]) < 0.001
    assert abs(bias[0.3, 5]) < 0.03
    assert 0.02 < bias[0.5, 5] < 0.12 < bias[1.0, 5] < 0.4
    assert bias[0.5, 20] < 0.5 * bias[0.5, 5]


def kernel_run(problem, U, steps, n, seed=0, *, sigma=1e-3, J=2, **options):
    """Positions after `n` of the `steps` and later, shape (steps - n, M, 2)."""
    rng = np.random.default_rng(seed)
    h, central = options.pop("h"), options.pop("central", False)
    kernel = Walkers(Explorers(problem, J, sigma, central), **options)
    state = kernel.start(U, Preconditioner.of_points(U), h)
    state, _ = step(kernel, problem, state, rng)
    state, snapshots = sweeps(kernel, problem, state, steps, rng)
    return np.array([s.U for s in snapshots[n:]])


@pytest.mark.parametrize("J", [1, 2])
def test_adjusted_steps_are_unbiased(J, capsys):
    """One explorer as far away as the posterior is wide, on the decay of little noise."""
    problem, rng = decay(), np.random.default_rng(0)
    start = sample_density(problem, [-0.2, -0.9], [0.8, 0.5], 8000, rng)
    U = kernel_run(problem, start, 100, 50, sigma=1.0, J=J, h=0.4, adjust=True)
    x = ((U - problem.mean) / problem.sd).mean(0), ((U - problem.mean) ** 2 / problem.sd**2).mean(0)
    shift, ratio = x[0].mean(0), np.sqrt(x[1].mean(0)) - 1
    errors_ = x[0].std(0) / np.sqrt(8000), x[1].std(0) / np.sqrt(8000) / 2
    tell(capsys, f"J {J}, sigma 1: mean {shift.round(4)}, sd {ratio.round(4)}")
    assert (np.abs(shift) < 4 * errors_[0]).all()
    assert (np.abs(ratio) < 4 * errors_[1]).all()
    assert max(errors_[0].max(), errors_[1].max()) < 0.012


def test_order_in_the_distance_of_the_explorers(capsys):
    """The law's bias is quartered when central differences are taken at half the distance."""
    problem, rng = decay(noise=0.3), np.random.default_rng(0)
    start = sample_density(problem, [-2.5, -5.0], [2.5, 3.5], 4000, rng)
    means = {
        sigma: kernel_run(problem, start, 120, 40, sigma=sigma, h=0.2, central=True)
        .mean((0, 1))
        for sigma in (0.001, 0.5, 1.0)
    }  # fmt: skip
    near, far = ((means[s] - means[0.001]) / problem.sd for s in (0.5, 1.0))
    order = np.log2(np.linalg.norm(far) / np.linalg.norm(near))
    tell(capsys, f"sigma .5: {near.round(3)}, 1: {far.round(3)} sd, order {order:.2f}")
    assert 1.6 < order < 2.6


def test_order_in_the_step_size(capsys):
    """The variance has an error of second order with averaged steps, of first order without."""
    problem, M = GaussianProblem(lambda U: U + U**3 / 3, [1.0], [0.0], [[1.0]]), 100_000
    u = np.linspace(-5, 5, 20_001)[:, None]
    V = problem.loss(problem.forward_map(u)) + problem.prior_potential(u)
    w = np.exp(-V) / np.exp(-V).sum()
    mean, variance = w @ u[:, 0], w @ u[:, 0] ** 2 - (w @ u[:, 0]) ** 2

    def bias(h, averaged):
        rng = np.random.default_rng(1)
        kernel = Walkers(Explorers(problem, 1, 1e-4, central=True), averaged=averaged)
        start = rng.choice(u, M, p=w)
        law = Preconditioner(np.array([mean]), np.sqrt([[variance]]))
        state, _ = step(kernel, problem, kernel.start(start, law, h), rng)
        state, _ = sweeps(kernel, problem, state, int(4 / h), rng)
        state, snapshots = sweeps(kernel, problem, state, int(6 / h), rng)
        return ((np.array([s.U for s in snapshots]) - mean) ** 2).mean() / variance - 1

    found = {k: bias(*k) for k in [(0.1, False), (0.2, False), (0.2, True), (0.4, True)]}
    tell(capsys, ", ".join(f"h {h}, averaged {a}: {v:+.4f}" for (h, a), v in found.items()))
    # Monte Carlo errors are about .003; Euler-Maruyama steps of .4 explode
    assert 0.7 < np.log2(found[0.2, False] / found[0.1, False]) < 1.6
    assert abs(found[0.2, True]) < 0.2 * abs(found[0.2, False])
    assert abs(found[0.4, True]) < 0.2 * abs(found[0.2, False])


def test_potential_alone(capsys):
    """A ring, given by its log density alone, through `pm.sample`."""
    axis = np.linspace(-3, 3, 601)
    x, y = np.meshgrid(axis, axis, indexing="ij")
    w = np.exp(-8 * (np.hypot(x, y) - 1) ** 2 - (x - 0.5) ** 2 / 2 - y**2 / 2)
    w /= w.sum()
    mean = np.array([(w * x).sum(), 0.0])
    sd = np.sqrt([(w * x**2).sum() - mean[0] ** 2, (w * y**2).sum()])
    figures = []
    for seed in SEEDS:
        with pm.Model():
            u = pm.Normal("u", [0.5, 0.0], 1.0)
            pm.Potential("ring", -8 * (pm.math.sqrt((u**2).sum()) - 1) ** 2)
            idata = pm.sample(
                step=pe.MultiscaleSampler(adjust=False, walkers=10),
                draws=12_000,
                chains=1,
                cores=1,
                random_seed=seed,
                progressbar=False,
                compute_convergence_checks=False,
            )
        U = idata.posterior.u.to_numpy().reshape(-1, 2)
        figures.append([*np.abs((U.mean(0) - mean) / sd), *np.abs(U.std(0) / sd - 1)])
    figures = np.array(figures)
    tell(capsys, f"ring: median {np.median(figures, 0).round(3)}, worst {figures.max(0).round(3)}")
    assert (figures < 0.2).all()
