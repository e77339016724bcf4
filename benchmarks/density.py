"""What a log density costs that gives only its values: a table.

    python benchmarks/density.py [--problems decay ...] [--seeds 10] [--false 20]

Problems are those of the gallery, with their forward maps hidden: `EnsembleKalmanSampler` sees
values of the log density. The columns: medians (and largest) of the evaluations after which the
burn-in is over, and after which means are known to 0.1 posterior standard deviations and standard
deviations to 10%, in the root mean square over parameters, for good; then in how many of the runs
the converged ensemble and the next four sweeps were off by more than half a standard deviation in
the mean of one of them, and the largest such error. One ensemble of 100 has errors of 0.2 or so by
chance.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pymc_ensemble as pe
from pymc_ensemble.benchmark.ours import Hidden
from pymc_ensemble.problem.points import unconstrained
from pymc_ensemble.samplers.kalman.sampler import EnsembleKalman

Array = NDArray[np.float64]

PROBLEMS: dict[str, Callable[[], pe.gallery.GalleryModel]] = {
    "decay": pe.gallery.decay,
    "bimodal": pe.gallery.bimodal,
    "poisson": pe.gallery.poisson_regression,
    "nonlinear": pe.gallery.smooth_nonlinear,
    "four modes": lambda: pe.gallery.four_modes(rough=False),
    "rough four modes": pe.gallery.four_modes,
    "influenza": pe.gallery.influenza,
    "linear 20": lambda: pe.gallery.linear_gaussian(20),
    "darcy 16": lambda: pe.gallery.darcy(16),
    "lynx and hare": pe.gallery.lynx_hare,
}
SWEEPS = 20
FOR_ERRORS = 4


def known(model: pe.gallery.GalleryModel) -> tuple[Array, Array]:
    """Mean and standard deviation of the unconstrained coordinates."""
    draws = model.reference_draws
    values = {rv.name: draws[rv.name].transpose("draw", ...).to_numpy() for rv in model.free_RVs}
    U = unconstrained(model, values)
    return U.mean(0), U.std(0)


def run(problem: Any, mean: Array, sd: Array, sweeps: int, seed: int) -> tuple[float, ...]:
    """Evaluations of the burn-in and until precision, and the largest error of a mean."""
    sampler, rng = EnsembleKalman(problem), np.random.default_rng(seed)
    state = sampler.start(problem.sample_prior(sampler.size, rng), redraw=True)
    draws: list[Array] = []
    n = burn_in = 0
    while len(draws) < sweeps:
        sampling = state.burned_in
        points, pending = sampler.ask(state, rng)
        state, info = sampler.tell(state, pending, problem.evaluate(points))
        n += len(points)
        if not sampling and state.burned_in:
            burn_in, first = n, state.evaluated.U
        if sampling and info.snapshot is not None:
            draws.append(info.snapshot.U)
    precise = []
    for k in range(1, sweeps + 1):
        U = np.concatenate(draws[:k])
        of_mean, of_sd = (U.mean(0) - mean) / sd, np.log(U.std(0) / sd)
        precise.append(np.sqrt((of_mean**2).mean()) < 0.1 and np.sqrt((of_sd**2).mean()) < 0.1)
    late = np.flatnonzero(~np.array(precise))  # sweeps after which it was not
    steps = np.inf if not precise[-1] else 1 if not len(late) else late[-1] + 2
    errors = [
        np.abs((U.mean(0) - mean) / sd).max() for U in (first, np.concatenate(draws[:FOR_ERRORS]))
    ]
    return burn_in, burn_in + steps * sampler.size, *errors, state.converged


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=PROBLEMS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--false", type=int, default=20, help="runs in which errors are looked for")
    options = parser.parse_args()
    print("| problem | burn-in | to precision | ensembles off by > 0.5 | four sweeps | converged |")
    print("|---|---|---|---|---|---|")
    for name in options.problems:
        model = PROBLEMS[name]()
        problem = Hidden(pe.InverseProblem.from_model(model))
        mean, sd = known(model)
        rows = [
            run(problem, mean, sd, SWEEPS if seed < options.seeds else FOR_ERRORS, seed)
            for seed in range(max(options.seeds, options.false))
        ]
        burn_in, until, first, after, converged = np.array(rows, dtype=float).T
        until = until[: options.seeds]
        print(
            f"| {name} | {np.median(burn_in):.0f} (at most {burn_in.max():.0f}) | "
            f"{np.median(until):.0f} (at most {until.max():.0f}) | {(first > 0.5).sum()} of "
            f"{len(first)}, at most {first.max():.2f} | {(after > 0.5).sum()}, at most "
            f"{after.max():.2f} | {converged.sum():.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
