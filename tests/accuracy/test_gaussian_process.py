"""Posteriors of the ensemble Gaussian process sampler, through `pymc.sample`, over many seeds.

All evaluations are counted by the forward map itself. The figures are errors of the worst
parameter, in posterior standard deviations; the median has to stay below the first bound, every
seed below the second. For rough maps the truth is the posterior of the smooth map behind them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pymc as pm
import pytest

import pymc_ensemble as pe
from pymc_ensemble import gallery

pytestmark = pytest.mark.accuracy

SEEDS = range(10)
LOCK_IN_SEEDS = range(50)
DRAWS = 3000


def unit_square(rng, J):
    return rng.random((J, 2))


def square(rng, J):
    return rng.uniform(-2, 2, (J, 2))


def mostly_one_quadrant(rng, J):
    U = rng.uniform(0, 2, (J, 2))
    others = rng.random(J) < 0.2
    U[others] *= np.array([(-1, 1), (1, -1), (-1, -1)])[rng.integers(3, size=others.sum())]
    return U


def lorenz_box(rng, J):
    return np.log(rng.uniform([27, 2.25], [29, 3.5], (J, 2)))


def standard_normal(rng, J, d):
    return rng.standard_normal((J, d))


def linear_10d():
    rng = np.random.default_rng(10)
    Q, _ = np.linalg.qr(rng.standard_normal((15, 10)))
    W, _ = np.linalg.qr(rng.standard_normal((10, 10)))
    A = (Q * np.geomspace(8, 0.8, 10)) @ W.T
    y = A @ rng.standard_normal(10) + 0.5 * rng.standard_normal(15)
    covariance = np.linalg.inv(A.T @ A / 0.25 + np.eye(10))
    forward = pe.forward_model(lambda u: A @ u, output_shape=(15,))
    with pm.Model() as model:
        u = pm.Normal("u", shape=10)
        pm.Normal("y", forward(u), 0.5, observed=y)
    model.forward = forward
    return model, {"u": (covariance @ A.T @ y / 0.25, np.sqrt(np.diag(covariance)))}


def of_gallery(make, smooth=None, names=("u",)):
    def build():
        model, reference = make(), (make if smooth is None else smooth)().reference
        moments = {
            name: tuple(reference[name].sel(statistic=k).values for k in ("mean", "sd"))
            for name in names
        }
        return model, moments

    return build


def rough(prior_variance):
    def make(is_rough):
        return lambda: gallery.linear_multiscale(prior_variance, is_rough, data=(1, 2))

    return of_gallery(make(True), make(False))


four_modes = of_gallery(gallery.four_modes, lambda: gallery.four_modes(rough=False))


@dataclass(frozen=True)
class Case:
    """A problem, a run, and the bounds of its median and of every seed.

    No run may take more than so many evaluations. With `on_average` all of them together may not:
    each verification that fails adds an epoch, and how many fail is chance.
    """

    build: Callable
    start: Callable
    ensemble_size: int
    evaluations: int
    mean: tuple[float, float] = (np.inf, np.inf)
    sd: tuple[float, float] = (np.inf, np.inf)
    masses: tuple[float, float] | None = None
    options: dict = field(default_factory=dict)
    on_average: bool = False


POTENTIAL = {"target": "potential"}


def normal(d):
    return lambda rng, J: standard_normal(rng, J, d)


CASES = {
    "rough, forward": Case(rough(0.05), unit_square, 200, 1800, (0.15, 0.7), (0.06, 0.3)),
    "rough, potential": Case(
        rough(0.05),
        unit_square,
        200,
        2000,
        (0.3, 0.9),
        (0.15, 0.45),
        options=POTENTIAL,
        on_average=True,
    ),
    "rough, wide prior": Case(rough(1.0), unit_square, 200, 1800, (0.18, 0.45), (0.08, 0.35)),
    "Lorenz 63": Case(
        of_gallery(gallery.lorenz63, names=("r", "b")),
        lorenz_box,
        100,
        1000,
        (0.18, 0.3),
        (0.1, 0.2),
        on_average=True,
    ),
    "four modes, forward": Case(
        four_modes, square, 100, 900, (0.1, 0.3), (0.03, 0.12), (0.05, 0.1)
    ),
    "four modes, potential": Case(
        four_modes, square, 100, 900, (0.1, 0.3), (0.03, 0.12), (0.05, 0.1), POTENTIAL
    ),
    "four modes, lopsided start": Case(
        four_modes, mostly_one_quadrant, 200, 2000, masses=(0.06, 0.1)
    ),
    "smooth nonlinear, forward": Case(
        of_gallery(gallery.smooth_nonlinear), normal(5), 50, 300, (0.12, 0.2), (0.1, 0.16)
    ),
    "smooth nonlinear, potential": Case(
        of_gallery(gallery.smooth_nonlinear),
        normal(5),
        50,
        300,
        (0.12, 0.2),
        (0.1, 0.16),
        options=POTENTIAL | {"epochs": 5},
    ),
    "linear, forward": Case(linear_10d, normal(10), 50, 300, (0.12, 0.2), (0.1, 0.16)),
    "linear, potential": Case(
        linear_10d,
        normal(10),
        50,
        300,
        (0.12, 0.2),
        (0.1, 0.16),
        options=POTENTIAL | {"epochs": 5},
    ),
}


def run(model, case, seed):
    """Draws of one chain, the evaluations that it took, and whether it was verified."""
    before = model.forward.n_evaluations
    with model:
        idata = pm.sample(
            step=pe.EnsembleGaussianProcessSampler(
                initial_ensemble=case.start(np.random.default_rng(seed), case.ensemble_size),
                **case.options,
            ),
            draws=DRAWS,
            chains=1,
            cores=1,
            random_seed=seed,
            progressbar=False,
            compute_convergence_checks=False,
        )
    counted = model.forward.n_evaluations - before
    return idata.posterior, counted, bool(idata.sample_stats.converged.all())


def worst_errors(posterior, moments):
    """Errors of mean and sd of the worst parameter."""
    shifts, ratios = [], []
    for name, (mean, sd) in moments.items():
        draws = posterior[name].values.reshape(-1, *np.shape(mean))
        shifts.append(np.abs((draws.mean(0) - mean) / sd).max())
        ratios.append(np.abs(draws.std(0) / sd - 1).max())
    return max(shifts), max(ratios)


def worst_mass(posterior):
    """Largest error of the masses of the four quadrants."""
    u = posterior["u"].values.reshape(-1, 2)
    masses = [((u > 0) == signs).all(1).mean() for signs in np.ndindex(2, 2)]
    return np.abs(np.array(masses) - 0.25).max()


@pytest.mark.filterwarnings("ignore:The burn-in had not passed its test:UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_errors_are_within_bounds(name, capsys):
    case = CASES[name]
    model, moments = case.build()
    figures, masses = [], []
    for seed in SEEDS:
        posterior, counted, converged = run(model, case, seed)
        figures.append((counted, *worst_errors(posterior, moments), converged))
        masses.append(worst_mass(posterior) if case.masses else 0.0)
    evaluations, mean, sd, converged = np.transpose(figures)
    with capsys.disabled():
        print(
            f"\n{name}: {evaluations.mean():.0f} evaluations (most {evaluations.max():.0f}), "
            f"mean {np.median(mean):.3f} (worst {mean.max():.3f}), "
            f"sd {np.median(sd):.3f} (worst {sd.max():.3f}), "
            + (f"masses {np.median(masses):.3f} (worst {max(masses):.3f}), " * bool(case.masses))
            + f"verified {converged.mean():.0%}"
        )
    used = evaluations.mean() if case.on_average else evaluations.max()
    assert used <= case.evaluations
    for values, bounds in ((mean, case.mean), (sd, case.sd), (masses, case.masses or (1, 1))):
        assert np.median(values) <= bounds[0]
        assert np.max(values) <= bounds[1]


@pytest.mark.filterwarnings("ignore:The burn-in had not passed its test:UserWarning")
@pytest.mark.parametrize(
    "name", ["rough, forward", "rough, potential", "four modes, forward", "four modes, potential"]
)
def test_no_run_goes_wrong_without_a_warning(name, capsys):
    case = CASES[name]
    model, moments = case.build()
    wrong, warned = [], 0
    for seed in LOCK_IN_SEEDS:
        posterior, _, converged = run(model, case, seed + 1000)
        warned += not converged
        if worst_errors(posterior, moments)[0] > 1:
            wrong.append((seed, converged))
    with capsys.disabled():
        print(f"\n{name}: {len(wrong)} of {len(LOCK_IN_SEEDS)} wrong, {warned} with a warning")
    assert not [seed for seed, converged in wrong if converged]
