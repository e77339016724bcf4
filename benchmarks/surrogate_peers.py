"""Posteriors from few evaluations: `EnsembleGaussianProcessSampler()` beside samplers of others.

    pip install "pymc_ensemble[benchmark]"
    python benchmarks/surrogate_peers.py --seeds 3

Of each run: all forward evaluations, counted by the forward map, the error of the worst mean (in
posterior standard deviations) or standard deviation (relative), whichever is larger, and processor
time. PyVBMC takes the model through its `PyMCTarget` with several limits of its evaluations: a run
that has ended by itself below one limit stands for the larger ones, too. The others run as their
documentation says. A run that takes more processor time than ``--limit`` is stopped, and is a row
that says so; so is one that crashes. Runs are kept in a file, one a line: an interrupted command
goes on, and more seeds can be added. ``--page docs/gaussian_process.md`` puts the table into its
page; with ``--report`` that is all.
"""

import argparse
import json
import logging
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import process_time

import numpy as np
import pymc as pm
from certificates import DRAWS, Problem
from scipy.stats import norm

import pymc_ensemble as pe
from pymc_ensemble.problem.inverse_problem import problem_of

DIMENSIONS = {
    "decay": 2,
    "bimodal": 2,
    "nonlinear, d = 5": 5,
    "four smooth modes": 2,
    "Poisson, d = 5": 5,
}
PROBLEMS = [*DIMENSIONS]
WALKERS, STEPS = 32, 300  # of emcee
PARTICLES = 1000  # of sequential Monte Carlo; its default is 2000

Method = Callable[[Problem, int], tuple[np.ndarray, bool]]


def ours(problem: Problem, seed: int) -> tuple[np.ndarray, bool]:
    """Four chains, by default options."""
    with problem.model:
        idata = pm.sample(
            step=pe.EnsembleGaussianProcessSampler(),
            draws=DRAWS,
            chains=4,
            cores=1,
            random_seed=seed,
            progressbar=False,
            compute_convergence_checks=False,
        )
    return problem.values(idata), bool(idata.sample_stats["converged"].all())


def vbmc(limit: Callable[[int], int]) -> Method:
    """PyVBMC with at most so many evaluations for d parameters."""

    def run(problem: Problem, seed: int) -> tuple[np.ndarray, bool]:
        import pyvbmc

        np.random.seed(seed)  # noqa: NPY002 -- its generator
        target = pyvbmc.PyMCTarget(problem.model, seed=seed)
        options = {"max_fun_evals": limit(target.D), "display": "off"}
        found, results = pyvbmc.VBMC(target, options=options).optimize()
        idata = target.to_arviz(found, n_samples=4 * DRAWS)
        return problem.values(idata), bool(results["success_flag"])

    return run


def smc(problem: Problem, seed: int) -> tuple[np.ndarray, bool]:
    """PyMC's sequential Monte Carlo."""
    with problem.model:
        idata = pm.sample_smc(
            draws=PARTICLES,
            chains=1,
            cores=1,
            random_seed=seed,
            progressbar=False,
            compute_convergence_checks=False,
        )
    return problem.values(idata), True


def emcee(problem: Problem, seed: int) -> tuple[np.ndarray, bool]:
    """Stretch moves from the prior; the first third of the steps is left out."""
    import emcee as package

    target, _ = problem_of(problem.model)
    walkers = target.sample_prior(WALKERS, np.random.default_rng(seed))
    sampler = package.EnsembleSampler(
        *walkers.shape, lambda U: log_density(target, U), vectorize=True
    )
    sampler.random_state = np.random.RandomState(seed).get_state()
    sampler.run_mcmc(walkers, STEPS, skip_initial_state_check=True)
    return sampler.get_chain(discard=STEPS // 3), True


def log_density(target: pe.InverseProblem, U: np.ndarray) -> np.ndarray:
    """Log posterior density at points (n, d)."""
    return -target.loss(target.evaluate(U).outputs) - target.prior_potential(U)


def of_cube(target: pe.InverseProblem) -> Callable[[np.ndarray], np.ndarray]:
    """Map of the unit cube whose image of its uniform law is the Gaussian prior."""
    origin = np.zeros(target.dimension)
    covariance = np.linalg.inv(target.prior_hessian(origin))
    mean = -covariance @ target.prior_gradient(origin[None])[0]
    factor = np.linalg.cholesky(covariance)
    return lambda cube: mean + norm.ppf(cube) @ factor.T


def dynesty(problem: Problem, seed: int) -> tuple[np.ndarray, bool]:
    """Static nested sampling with its default of 500 live points."""
    import dynesty as package

    target, _ = problem_of(problem.model)
    sampler = package.NestedSampler(
        lambda u: -float(target.loss(target.evaluate(u[None]).outputs)[0]),
        of_cube(target),
        target.dimension,
        rstate=np.random.default_rng(seed),
    )
    sampler.run_nested(print_progress=False)
    return sampler.results.samples_equal(rstate=np.random.default_rng(seed))[None], True


def nautilus(problem: Problem, seed: int) -> tuple[np.ndarray, bool]:
    """Importance nested sampling with its defaults."""
    import nautilus as package

    target, _ = problem_of(problem.model)
    sampler = package.Sampler(
        of_cube(target),
        lambda U: -target.loss(target.evaluate(U).outputs),
        n_dim=target.dimension,
        vectorized=True,
        pass_dict=False,
        seed=seed,
    )
    sampler.run(verbose=False)
    points, _, _ = sampler.posterior(equal_weight=True)
    return points[None], True


LIMITS: dict[str, Callable[[int], int]] = {  # of PyVBMC, from small to large
    "PyVBMC, 100": lambda d: 100,
    "PyVBMC, 200": lambda d: 200,
    "PyVBMC, 50 (d + 2)": lambda d: 50 * (d + 2),
    "PyVBMC, 100 (d + 2)": lambda d: 100 * (d + 2),
}
METHODS: dict[str, Method] = {
    "EnsembleGaussianProcessSampler()": ours,
    **{name: vbmc(limit) for name, limit in LIMITS.items()},
    "sample_smc": smc,
    "emcee": emcee,
    "dynesty": dynesty,
    "nautilus": nautilus,
}


class TooSlow(BaseException):
    """Processor time is used up. No handler of a package for its own errors may catch it."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Stop what takes more processor time, where the system can tell."""

    def stop(*_: object) -> None:
        raise TooSlow(f"stopped after {seconds:g} s")

    if not hasattr(signal, "setitimer"):  # Windows
        yield
        return
    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def run(name: str, method: str, seed: int, limit: float) -> dict:
    """One run, with what it costs and its error; a crash is an infinite one."""
    problem = Problem(name)
    forward = problem.model.forward  # type: ignore[attr-defined]
    before, started, crash = forward.n_evaluations, process_time(), ""
    error, converged = np.inf, False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with limited(limit):
                values, converged = METHODS[method](problem, seed)
            error = problem.error(values.reshape(-1, values.shape[-1]))
        except ImportError:
            raise
        except (Exception, TooSlow) as reason:  # whatever a package raises is its result
            crash = repr(reason)[:200]
    return {
        "problem": name,
        "method": method,
        "seed": seed,
        "evaluations": forward.n_evaluations - before,
        "error": error,
        "converged": converged,
        "seconds": process_time() - started,
        "crash": crash,
    }


def the_same(done: dict[tuple[str, str, int], dict], key: tuple[str, str, int]) -> dict | None:
    """Run of PyVBMC that a larger limit would repeat, if there is one."""
    name, method, seed = key
    if method not in LIMITS:
        return None
    for smaller, limit in LIMITS.items():
        if smaller == method:
            return None
        row, d = done.get((name, smaller, seed)), DIMENSIONS[name]
        if row is None:
            continue
        ended = row["converged"] and row["evaluations"] < limit(d)
        if ended or limit(d) == LIMITS[method](d):
            return row | {"method": method}
    return None


METHOD_NAMES = {
    "EnsembleGaussianProcessSampler()": "`EnsembleGaussianProcessSampler()`, four chains",
    "sample_smc": f"`pm.sample_smc`, {PARTICLES} particles",
    "emcee": f"emcee, {WALKERS} walkers",
} | {name: name.replace(", ", ", at most ") for name in LIMITS}
HEAD = "| problem | sampler | evaluations | error | seconds | |"


def spread(values: Sequence[float], form: str) -> str:
    """Median, with least and greatest where they differ; a dash for what was not reached."""
    least, middle, greatest = (
        f"{value:{form}}" if np.isfinite(value) else "–"
        for value in (min(values), float(np.median(values)), max(values))
    )
    return middle if least == greatest else f"{middle} ({least} to {greatest})"


def remark(rows: list[dict], most: int) -> str:
    """What is to be said of runs beside their figures."""
    said = [] if len(rows) == most else [f"{len(rows)} run" + "s" * (len(rows) > 1)]
    slow = [row for row in rows if row["crash"].startswith(TooSlow.__name__)]
    crashed = [row for row in rows if row["crash"] and row not in slow]
    others = [row for row in rows if not row["crash"] and not row["converged"]]
    for some, what in ((slow, "too slow"), (crashed, "crashed"), (others, "not converged")):
        if some:
            said.append(f"{what}: {len(some)} of {len(rows)}")
    return ", ".join(said)


def table(done: dict, problems: Sequence[str], methods: Sequence[str]) -> str:
    """Median and range of evaluations, errors and seconds; runs that are the same once."""
    lines = [HEAD, "|---|---|---|---|---|---|"]
    for name in problems:
        found = {
            method: [row for key, row in done.items() if key[:2] == (name, method)]
            for method in methods
        }
        most, shown = max(len(rows) for rows in found.values()), name
        for method, rows in found.items():
            if rows and not all(the_same(done, (name, method, row["seed"])) for row in rows):
                evaluations = spread([row["evaluations"] for row in rows], ",.0f")
                errors = spread([row["error"] for row in rows], ".3f")
                seconds = spread([row["seconds"] for row in rows], ".0f")
                lines.append(
                    f"| {shown} | {METHOD_NAMES.get(method, method)} | "
                    f"{evaluations.replace(',', ' ')} | {errors} | {seconds} | "
                    f"{remark(rows, most)} |"
                )
                shown = ""
    return "\n".join(lines)


def main():
    """Make the runs that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--problems", nargs="*", default=PROBLEMS, choices=PROBLEMS)
    parser.add_argument("--methods", nargs="*", default=[*METHODS], choices=[*METHODS])
    parser.add_argument("--limit", type=float, default=300, help="processor time of a run, seconds")
    parser.add_argument("--file", type=Path, default=Path("surrogate_peers.jsonl"))
    parser.add_argument("--report", action="store_true", help="make no runs")
    parser.add_argument("--page", type=Path, help="docs/gaussian_process.md, for its table")
    arguments = parser.parse_args()
    for name in ("pymc", "pymc_ensemble", "VBMC"):
        logging.getLogger(name).setLevel(logging.ERROR)
    lines = arguments.file.read_text().splitlines() if arguments.file.exists() else []
    done = {(r["problem"], r["method"], r["seed"]): r for r in map(json.loads, lines)}
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        for name in arguments.problems:
            for method in arguments.methods:
                key = (name, method, seed)
                if key not in done and not arguments.report:
                    done[key] = the_same(done, key) or run(*key, arguments.limit)
                    with arguments.file.open("a") as file:
                        file.write(json.dumps(done[key]) + "\n")
                    print(json.dumps(done[key]), flush=True)
    text = table(done, arguments.problems, arguments.methods)
    print(text)
    if arguments.page is not None:
        page = arguments.page.read_text(encoding="utf-8")
        before, rest = page.split(HEAD, 1)
        after = rest[rest.index("\n\n") :]
        arguments.page.write_text(before + text + after, encoding="utf-8")


if __name__ == "__main__":
    main()
