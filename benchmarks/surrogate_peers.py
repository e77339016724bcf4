"""Posteriors from few evaluations: `EnsembleGaussianProcessSampler()` beside samplers of others.

    pip install "pymc_ensemble[benchmark]"
    python benchmarks/surrogate_peers.py --seeds 3

Of each run: all forward evaluations, counted by the forward map, the error of the worst mean (in
posterior standard deviations) or standard deviation (relative), whichever is larger, and processor
time. PyVBMC takes the model through its `PyMCTarget` with several limits of its evaluations; the
others run as their documentation says. Runs are kept in a file, one a line: an interrupted command
goes on, and more seeds can be added.
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
from certificates import DRAWS, Problem
from scipy.stats import norm

import pymc_ensemble as pe
from pymc_ensemble.problem.inverse_problem import problem_of

PROBLEMS = ["decay", "bimodal", "nonlinear, d = 5", "four smooth modes", "Poisson, d = 5"]
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


METHODS: dict[str, Method] = {
    "EnsembleGaussianProcessSampler()": ours,
    "PyVBMC, 100": vbmc(lambda d: 100),
    "PyVBMC, 200": vbmc(lambda d: 200),
    "PyVBMC, 50 (d + 2)": vbmc(lambda d: 50 * (d + 2)),
    "sample_smc": smc,
    "emcee": emcee,
    "dynesty": dynesty,
    "nautilus": nautilus,
}


def run(name: str, method: str, seed: int) -> dict:
    """One run, with what it costs and its error; a crash is an infinite one."""
    problem = Problem(name)
    forward = problem.model.forward  # type: ignore[attr-defined]
    before, started, crash = forward.n_evaluations, process_time(), ""
    error, converged = np.inf, False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            values, converged = METHODS[method](problem, seed)
            error = problem.error(values.reshape(-1, values.shape[-1]))
        except ImportError:
            raise
        except Exception as reason:  # whatever a package raises is its result
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


def main():
    """Make the runs that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--problems", nargs="*", default=PROBLEMS, choices=PROBLEMS)
    parser.add_argument("--methods", nargs="*", default=[*METHODS], choices=[*METHODS])
    parser.add_argument("--file", type=Path, default=Path("surrogate_peers.jsonl"))
    arguments = parser.parse_args()
    for name in ("pymc", "pymc_ensemble", "VBMC"):
        logging.getLogger(name).setLevel(logging.ERROR)
    lines = arguments.file.read_text().splitlines() if arguments.file.exists() else []
    done = {(r["problem"], r["method"], r["seed"]): r for r in map(json.loads, lines)}
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        for name in arguments.problems:
            for method in arguments.methods:
                key = (name, method, seed)
                if key not in done:
                    done[key] = run(*key)
                    with arguments.file.open("a") as file:
                        file.write(json.dumps(done[key]) + "\n")
                    print(json.dumps(done[key]), flush=True)
    print("| problem | sampler | runs | evaluations | error | worst | seconds |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.problems:
        for method in arguments.methods:
            rows = [row for key, row in done.items() if key[:2] == (name, method)]
            if not rows:
                continue
            evaluations, errors, seconds = (
                [row[what] for row in rows] for what in ("evaluations", "error", "seconds")
            )
            print(
                f"| {name} | {method} | {len(rows)} | {np.median(evaluations):.0f} | "
                f"{np.median(errors):.2f} | {max(errors):.2f} | {np.median(seconds):.0f} |"
            )


if __name__ == "__main__":
    main()
