"""Certified posteriors: what they cost, and whether a certificate was ever given to a wrong one.

    python benchmarks/certificates.py table --seeds 10      the table of docs/gaussian_process.md
    python benchmarks/certificates.py wrong --seeds 4       gallery and hard posteriors
    python benchmarks/certificates.py adjusted --seeds 3    lynx and hare with `adjust=True`

Every run has four chains and the `EnsembleGaussianProcessSampler()` with its defaults. All forward
evaluations are counted outside of the sampler. The error is that of the worst mean, in posterior
standard deviations, or of the worst standard deviation, relative to it, whichever is larger. A run
that is certified has a certificate; one that is converged has that, or a verification after epochs.
With ``adjust=True`` each draw costs an evaluation: those are counted after which the error of all
draws so far stays within 0.15. Runs are kept in a file, one a line: an interrupted command goes on,
and more seeds can be added.
"""

import argparse
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from time import process_time

import numpy as np
import pymc as pm
import pytensor.tensor as pt

import pymc_ensemble as pe
from pymc_ensemble import gallery
from pymc_ensemble.problem.inverse_problem import problem_of
from pymc_ensemble.samplers.gaussian_process.growing import TOLERANCE
from pymc_ensemble.samplers.phases import default_ensemble_size

ADJUSTED = "lynx and hare, adjusted"
WITHIN = 0.15  # error that is aimed at
WRONG = 0.3  # error with which a certificate is a false one
DRAWS = 500  # of each of four chains
GRID = 81  # points an axis of the quadrature of hard posteriors

TABLE: dict[str, tuple[Callable, int]] = {  # with the evaluations that a run may take
    "decay": (gallery.decay, 100),
    "bimodal": (gallery.bimodal, 100),
    "nonlinear, d = 5": (gallery.smooth_nonlinear, 200),
    "Poisson, d = 5": (gallery.poisson_regression, 200),
    "four smooth modes": (lambda: gallery.four_modes(rough=False), 200),
    "linear, d = 20": (lambda: gallery.linear_gaussian(20), 250),
    "Darcy, d = 16": (gallery.darcy, 400),
    "influenza": (gallery.influenza, 200),
    "lynx and hare": (gallery.lynx_hare, 500),
    ADJUSTED: (gallery.lynx_hare, 1200),
}


# -- hard posteriors, with quadrature in unconstrained coordinates ------------------------------


def heavy_prior():
    """Weak data under priors with tails of Student's t law."""
    with pm.Model() as model:
        x = pm.StudentT("x", nu=3, shape=2)
        pm.Normal("y", pt.stack([x[0] + x[1], 0.3 * x[0] ** 2]), [1.0, 0.7], observed=[1.0, 0.5])
    return model, 14.0


def heavy_noise():
    """A straight line through data with outliers."""
    t = np.linspace(-1, 1, 9)
    data = 1.0 - 2.0 * t + np.array([0.1, -0.1, 0.05, 2.5, 0.0, -0.1, 0.1, -3.0, 0.0])
    with pm.Model() as model:
        x = pm.Normal("x", 0, 3, shape=2)
        pm.StudentT("y", nu=1.5, mu=x[0] + x[1] * t, sigma=0.15, observed=data)
    return model, 4.0


def unknown_noise():
    """Decay from eight data, whose noise is not known."""
    t = np.linspace(0.2, 3, 8)
    rng = np.random.default_rng(1)
    data = 1.5 * np.exp(-0.9 * t) + 0.1 * rng.standard_normal(8)
    with pm.Model() as model:
        x = pm.Normal("x", shape=2)
        sigma = pm.HalfNormal("sigma", 1.0)
        pm.Normal("y", pm.math.exp(x[0] - pm.math.exp(x[1]) * t), sigma, observed=data)
    return model, 6.0


def density(log_density, scale=3.0, half_width=9.0, angle=0.0):
    """A log density of two rotated coordinates, times a wide prior."""
    c, s = np.cos(angle), np.sin(angle)
    with pm.Model() as model:
        x = pm.Normal("x", 0, scale, shape=2)
        pm.Potential("target", log_density(c * x[0] - s * x[1], s * x[0] + c * x[1]))
    return model, half_width


def funnel(a, b):
    """Neal's funnel: the width of the second coordinate depends on the first."""
    return -0.5 * (a / 1.5) ** 2 - 0.5 * b**2 * pt.exp(-a) - 0.5 * a


def banana(a, b):
    """A bent ridge."""
    return -0.5 * a**2 - 4 * (b - 0.7 * a**2 + 1) ** 2


def ring(a, b):
    """A ring."""
    return -8 * (pt.sqrt(a**2 + b**2 + 1e-12) - 2) ** 2


def two_narrow(a, b):
    """Two narrow modes far from one another, the second with a third of the mass."""
    left = -0.5 * ((a + 3) ** 2 + b**2) / 0.16
    right = -0.5 * ((a - 3) ** 2 + b**2) / 0.16 - np.log(2)
    return pt.logaddexp(left, right)


def bounded():
    """A product of two shares that is nearly one."""
    with pm.Model() as model:
        p, q = pm.Uniform("p"), pm.Beta("q", 1, 1)
        pm.Normal("y", p * q, 0.05, observed=0.98)
    return model, 12.0


def lopsided():
    """Two modes of different masses behind one output."""
    with pm.Model() as model:
        x = pm.Normal("x", shape=2)
        pm.Normal("y", pt.stack([x[0] ** 2 + 0.3 * x[0], x[1] - x[0]]), 0.25, observed=[1.5, 0.0])
    return model, 5.0


HARD: dict[str, Callable] = {
    "heavy prior": heavy_prior,
    "heavy noise": heavy_noise,
    "unknown noise": unknown_noise,
    "funnel": lambda: density(funnel),
    "funnel, rotated": lambda: density(funnel, angle=0.6),
    "banana": lambda: density(banana),
    "banana, rotated": lambda: density(banana, angle=0.8),
    "ring": lambda: density(ring),
    "two narrow modes": lambda: density(two_narrow),
    "two narrow modes, rotated": lambda: density(two_narrow, angle=0.5),
    "bounded": bounded,
    "lopsided": lopsided,
}


def quadrature(model: pm.Model, half_width: float) -> tuple[np.ndarray, np.ndarray]:
    """Means and sd of the unconstrained coordinates, on a grid that is narrowed twice."""
    problem, _ = problem_of(model)
    d = problem.dimension
    n = GRID if d == 3 else 401
    low, high = np.full(d, -half_width), np.full(d, half_width)
    for _ in range(3):
        axes = [np.linspace(a, b, n) for a, b in zip(low, high, strict=True)]
        points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, d)
        parts = [
            problem.loss(problem.evaluate(part).outputs) + problem.prior_potential(part)
            for part in np.array_split(points, max(1, len(points) // 20_000))
        ]
        log_density = -np.concatenate(parts)
        w = np.exp(log_density - log_density.max())
        w /= w.sum()
        mean = w @ points
        sd = np.sqrt(w @ (points - mean) ** 2)
        inside = points[w > 1e-9 * w.max()]
        low, high = inside.min(0) - 0.1 * sd, inside.max(0) + 0.1 * sd
    return mean, sd


# -- runs -----------------------------------------------------------------------------------------


class Problem:
    """A model, its moments, and a count of its forward evaluations."""

    def __init__(self, name: str):
        self.name, self.unconstrained = name, name in HARD
        if self.unconstrained:
            self.model, half_width = HARD[name]()
            self.moments = quadrature(self.model, half_width)
        else:
            self.model = TABLE[name][0]()
            reference = self.model.reference
            self.names = [rv.name for rv in self.model.free_RVs]
            self.moments = tuple(
                np.concatenate(
                    [np.ravel(reference[name].sel(statistic=kind)) for name in self.names]
                )
                for kind in ("mean", "sd")
            )

    def count(self, idata) -> int:
        """Evaluations of a run, as the forward map has counted them, if there is one."""
        forward = getattr(self.model, "forward", None)
        if forward is not None:
            return forward.n_evaluations
        return int(idata.sample_stats["n_evals"].values.max(1).sum())

    def values(self, idata) -> np.ndarray:
        """Draws in the coordinates of the moments, shape (chain, draw, p)."""
        if self.unconstrained:
            return idata.sample_stats["unconstrained"].values
        posterior = idata.posterior
        parts = [
            posterior[name].values.reshape(*posterior[name].shape[:2], -1) for name in self.names
        ]
        return np.concatenate(parts, axis=2)

    def error(self, values: np.ndarray) -> float:
        """Worst error of draws (n, p)."""
        mean, sd = self.moments
        shift = np.abs(values.mean(0) - mean) / sd
        return float(max(shift.max(), np.abs(values.std(0) / sd - 1).max()))


def run(problem: Problem, seed: int) -> dict:
    """One run, its evaluations and its error."""
    before = getattr(getattr(problem.model, "forward", None), "n_evaluations", 0)
    started = process_time()
    with warnings.catch_warnings(), problem.model:
        warnings.simplefilter("ignore")
        idata = pm.sample(
            step=pe.EnsembleGaussianProcessSampler(adjust=problem.name == ADJUSTED),
            draws=DRAWS,
            chains=4,
            cores=1,
            random_seed=seed,
            progressbar=False,
            compute_convergence_checks=False,
        )
    values, stats = problem.values(idata), idata.sample_stats
    converged, limit = bool(stats["converged"].all()), float(stats["certificate"][0, 0])
    evaluations = problem.count(idata) - before
    if problem.name == ADJUSTED:
        evaluations = until_within(problem, values, evaluations)
    proved = bool(np.isnan(stats["verification_mean"][0, 0]))  # no epochs have verified it
    result = {
        "evaluations": evaluations,
        "error": problem.error(values.reshape(-1, values.shape[2])),
        "certified": converged and limit <= TOLERANCE and proved,
        "converged": converged,
        "certificate": limit,
        "seconds": process_time() - started,
    }
    if problem.name == "four smooth modes":
        u = values.reshape(-1, 2)
        masses = [((u > 0) == signs).all(1).mean() for signs in np.ndindex(2, 2)]
        result["masses"] = float(np.abs(np.array(masses) - 0.25).max())
    return result


def until_within(problem: Problem, values, total: int) -> float | None:
    """Evaluations of all chains after which the error stays small; None if it is large at the end.

    Draws (chain, draw, p) come in whole sweeps, each of them for one evaluation, and chains are
    taken to draw at the same time. All evaluations, those of the learning included, are `total`.
    """
    chains, draws, p = values.shape
    sweep = default_ensemble_size(p)
    ends = np.arange(sweep, draws + 1, sweep)
    errors = [problem.error(values[:, :n].reshape(-1, p)) for n in ends]
    large = np.flatnonzero(np.array(errors) > WITHIN)
    first = 0 if not len(large) else large[-1] + 1
    return None if first == len(ends) else float(total - chains * (draws - ends[first]))


def measure(names, seeds, path: Path) -> list[dict]:
    """Runs of all problems and seeds, those of the file included."""
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(row["problem"], row["seed"]): row for row in known}
    rows = []
    for name in names:
        problem = None
        for seed in seeds:
            key = (name, seed)
            if key not in done:
                problem = problem or Problem(name)
                row = {"problem": name, "seed": seed}
                done[key] = row | run(problem, seed)
                with path.open("a") as file:
                    file.write(json.dumps(done[key]) + "\n")
                print(json.dumps(done[key]), flush=True)
            rows.append(done[key])
    return rows


def median(values) -> float:
    """Median; what is None counts as infinite."""
    return float(np.median([np.inf if value is None else value for value in values]))


def tell(rows: list[dict]) -> None:
    """Print a table, and all false certificates."""
    print("| problem | evaluations | bound | error | worst | certified | converged | false |")
    print("|---|---|---|---|---|---|---|---|")
    for name in dict.fromkeys(row["problem"] for row in rows):
        own = [row for row in rows if row["problem"] == name]
        used = median(
            row["evaluations"] if row["certified"] and row["error"] <= WITHIN else None
            for row in own
        )
        errors = [row["error"] for row in own]
        false = sum(row["converged"] and row["error"] > WRONG for row in own)
        print(
            f"| {name} | {used:.0f} | {TABLE[name][1] if name in TABLE else ''} | "
            f"{np.median(errors):.2f} | {max(errors):.2f} | "
            f"{sum(row['certified'] for row in own)}/{len(own)} | "
            f"{sum(row['converged'] for row in own)}/{len(own)} | {false} |"
        )
    wrong = [row for row in rows if row["converged"] and row["error"] > WRONG]
    print(f"{len(wrong)} of {len(rows)} runs have converged and are off by more than {WRONG}")
    for row in wrong:
        print(row)


def main():
    """Run the part that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["table", "wrong", "adjusted"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--only", default="", help="problems with this in their names")
    parser.add_argument("--file", type=Path, default=Path("certificates.jsonl"))
    arguments = parser.parse_args()
    logging.getLogger("pymc").setLevel(logging.ERROR)
    gallery_names = [name for name in TABLE if name != ADJUSTED]
    names = {
        "table": gallery_names,
        "wrong": [*HARD, *gallery_names],
        "adjusted": [ADJUSTED],
    }
    chosen = [name for name in names[arguments.part] if arguments.only in name]
    tell(measure(chosen, range(arguments.first, arguments.first + arguments.seeds), arguments.file))


if __name__ == "__main__":
    main()
