"""What ensemble Kalman inversion costs, and how far it can be relied upon.

    python benchmarks/inversion.py gallery        # every problem: errors, evaluations
    python benchmarks/inversion.py darcy          # a field of 64 and 256 coefficients
    python benchmarks/inversion.py losses         # gap to the penalized maximum in the span

Each takes --seeds.
"""

import argparse
import warnings
from collections.abc import Iterator

import numpy as np
import pymc as pm
from scipy.optimize import minimize

import pymc_ensemble as pe
from pymc_ensemble.benchmark.problems import PROBLEMS
from pymc_ensemble.gallery.darcy import temperatures


def gallery(seeds: int, problems: list[str]) -> None:
    """Errors of the posterior, and what the mode and a fit cost, on all problems."""
    print("| problem | d | posterior: evaluations | misfit | worst mean, sd | sd | mode | fit |")
    print("|---|---|---|---|---|---|---|---|")
    for name in problems or PROBLEMS:
        problem = PROBLEMS[name]
        rows = []
        for seed in range(seeds):
            with problem.model() as model, warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                start = None
                if problem.start is not None:
                    start = problem.start(100, np.random.default_rng(seed))
                options = {"initial_ensemble": start, "random_seed": seed, "progressbar": False}
                try:
                    posterior = pe.invert(**options)
                    others = [pe.invert(target=target, **options) for target in ("map", "fit")]
                except NotImplementedError:
                    break
            mean, sd = problem.moments
            U = posterior["sample_stats"]["unconstrained"].to_numpy()[0]
            every = [posterior, *others]
            cost = [int(one["inversion"]["n_evals"][-1]) for one in every]
            cost = [
                c if one["inversion"].attrs["converged"] else np.nan
                for c, one in zip(cost, every, strict=True)
            ]
            shift, ratio = np.abs((U.mean(0) - mean) / sd).max(), U.std(0, ddof=1) / sd
            misfit = float(posterior["inversion"]["misfit"][-1])
            rows.append([cost[0], misfit, shift, ratio.min(), ratio.max(), *cost[1:]])
        if not rows:
            print(f"| {name} | | no forward map | | | | | |", flush=True)
            continue
        n, misfit, shift, low, high, mode, fit = np.median(rows, axis=0)
        told = [f"{c:.0f}" if np.isfinite(c) else "–" for c in (mode, fit)]
        print(
            f"| {name} | {model.reference.sizes and len(mean)} | {n:.0f} | {misfit:.2f} "
            f"| {shift:.2f} | {low:.2f} to {high:.2f} | {told[0]} | {told[1]} |",
            flush=True,
        )


def darcy(seeds: int) -> None:
    """Evaluations until the misfit per datum is below 1.1, and the rounds."""
    for d, J in ((64, 50), (256, 100)):
        rng = np.random.default_rng(77)
        data = temperatures(rng.standard_normal((1, d)))[0] + 0.01 * rng.standard_normal(100)
        forward = pe.forward_model(temperatures, output_shape=100, vectorized=True)
        with pm.Model() as model:
            pm.Normal("y", forward(pm.Normal("u", shape=d)), 0.01, observed=data)
        for seed in range(seeds):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                result = pe.invert(model, ensemble_size=J, random_seed=seed, progressbar=False)
            history = result["inversion"]
            below = np.flatnonzero(history["misfit"].to_numpy() < 1.1)
            n = history["n_evals"].to_numpy()
            print(
                f"d={d} J={J} seed {seed}: misfit {float(history['misfit'][-1]):.2f}, below 1.1 "
                f"after {n[below[0]] if len(below) else 'no'} of {n[-1]} evaluations in "
                f"{len(n)} rounds",
                flush=True,
            )


def regressions() -> Iterator[tuple[str, pm.Model]]:
    """Regressions that bend a little, with losses that are not quadratic."""
    rng = np.random.default_rng(3)
    X = 2 * rng.standard_normal((60, 12)) / np.sqrt(12)
    eta = X @ rng.standard_normal(12)
    counts = rng.poisson(np.exp(eta + 1))
    successes = (rng.random(60) < 1 / (1 + np.exp(-eta))).astype(int)
    values = eta + 0.3 * rng.standard_t(3, 60)
    for name in ("Poisson", "Bernoulli", "Student-t"):
        with pm.Model() as model:
            e = X @ pm.Normal("b", shape=12)
            e = e + 0.1 * pm.math.sin(3 * e)
            if name == "Poisson":
                pm.Poisson("y", pm.math.exp(e + 1), observed=counts)
            elif name == "Bernoulli":
                pm.Bernoulli("y", logit_p=e, observed=successes)
            else:
                pm.StudentT("y", nu=3, mu=e, sigma=0.3, observed=values)
        yield name, model


def losses(seeds: int) -> None:
    """Nats between the mode that is found and that of L-BFGS in the span of the start."""
    for name, model in regressions():
        problem = pe.InverseProblem.from_model(model)

        def potential(u: np.ndarray, problem: pe.InverseProblem = problem) -> float:
            [value] = problem.loss(problem.forward(u[None])) + problem.prior_potential(u[None])
            return float(value)

        for J in (100, 8):
            gaps, cost = [], []
            for seed in range(seeds):
                U = problem.sample_prior(J, np.random.default_rng(seed))
                mean = U.mean(0)
                V = np.linalg.svd(U - mean, full_matrices=False)[2][: min(J - 1, 12)]
                best = minimize(
                    lambda c, m=mean, V=V: potential(m + c @ V), np.zeros(len(V)), method="L-BFGS-B"
                )
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)
                    result = pe.invert(model, target="map", initial_ensemble=U, progressbar=False)
                gaps.append(potential(result["estimate"]["b"].to_numpy()) - best.fun)
                cost.append(int(result["inversion"]["n_evals"][-1]))
            print(
                f"{name}, J={J}: gap {np.min(gaps):.3f} to {np.max(gaps):.3f} nats, "
                f"{np.min(cost)} to {np.max(cost)} evaluations",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("gallery", "darcy", "losses"))
    parser.add_argument("names", nargs="*", help="problems of the gallery")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    match given.what:
        case "gallery":
            gallery(given.seeds, given.names)
        case "darcy":
            darcy(given.seeds)
        case "losses":
            losses(given.seeds)
