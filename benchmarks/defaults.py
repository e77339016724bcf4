"""What the default of `EnsembleKalmanSampler` chooses, and whether the choice is right.

Every problem is sampled three times with every seed: by the default, with a Metropolis test, and
with rough=True. The choice is wrong where it matters if the error that it leads to is larger than
0.2 posterior standard deviations, and the other choice has less than half of it.

    python benchmarks/defaults.py runs.jsonl --seeds 3
    python benchmarks/defaults.py runs.jsonl --report

Runs that the file has already are not repeated. Errors are the largest over the parameters: of
means in posterior standard deviations, and of standard deviations in percent of these. Of noisy and
rough variants the reference is the smooth posterior.
"""

import argparse
import inspect
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
import pymc as pm

import pymc_ensemble as pe

SAMPLERS: dict[str, dict] = {"default": {}, "test": {"adjust": True}, "fit": {"rough": True}}
LEVELS = (0.1, 0.5, 2.0)  # of the fluctuations of outputs, in noise standard deviations
DRAWS, CHAINS = 1000, 2
MATTERS = 0.2

LINEAR = np.random.default_rng(3).standard_normal((8, 4))
TIMES = np.linspace(0.2, 4, 12)
FREQUENCIES = 40 * np.random.default_rng(4).standard_normal((12, 4))


def linear(u: np.ndarray) -> np.ndarray:
    """Eight linear outputs of four parameters."""
    return LINEAR @ u


def decay(u: np.ndarray) -> np.ndarray:
    """An exponential decay at twelve times, of two parameters, in noise standard deviations."""
    return np.exp(u[0] - np.exp(u[1]) * TIMES) / 0.2


def curved(u: np.ndarray) -> np.ndarray:
    """Three outputs of two parameters on a bent ridge."""
    return np.array([u[0], 2 * (u[1] - 0.5 * u[0] ** 2), u[0] + u[1]])


SMOOTH: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
    "linear": (linear, 4),
    "decay": (decay, 2),
    "curved": (curved, 2),
}


def fluctuating(
    function: Callable[[np.ndarray], np.ndarray], d: int, kind: str, level: float
) -> pm.Model:
    """A model whose forward map fluctuates."""
    truth = np.linspace(-0.5, 0.5, d)
    K = len(function(truth))
    data = function(truth) + np.random.default_rng(1).standard_normal(K)
    phases = 2 * np.pi * np.random.default_rng(2).random(K)

    def noisy(u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return function(u) + level * rng.standard_normal(K)

    def rough(u: np.ndarray) -> np.ndarray:
        waves = np.sin(FREQUENCIES[:K, :d] @ u + phases)
        return function(u) + level * np.sqrt(2) * waves

    def chaotic(u: np.ndarray) -> np.ndarray:
        x = np.modf(np.abs(1000 * (FREQUENCIES[:K, :d] @ u + phases)))[0]
        for _ in range(40):  # the logistic map forgets where it has started
            x = 4 * x * (1 - x)
        return function(u) + level * np.sqrt(8) * (x - 0.5)  # its law has the variance 1/8

    if kind == "noisy":
        forward = pe.forward_model(noisy, output_shape=(K,), stochastic=True)
    else:
        maps = {"smooth": function, "rough": rough, "chaotic": chaotic}
        forward = pe.forward_model(maps[kind], output_shape=(K,))
    with pm.Model() as model:
        u = pm.Normal("u", shape=d)
        pm.Normal("y", forward(u), 1.0, observed=data)
    return model


def problems() -> Iterator[tuple[str, Callable[[], pm.Model], Callable[[], tuple]]]:
    """Names, models, and their references."""
    for name, (function, d) in SMOOTH.items():
        exact = Exact(function, d)
        yield f"{name}", lambda f=function, d=d: fluctuating(f, d, "smooth", 0.0), exact
        for kind in ("noisy", "rough", "chaotic"):
            for level in LEVELS:
                yield (
                    f"{name}, {kind} {level:g}",
                    lambda f=function, d=d, k=kind, s=level: fluctuating(f, d, k, s),
                    exact,
                )
    for name in pe.gallery.__all__:
        make = getattr(pe.gallery, name)
        if isinstance(make, type):
            continue
        smooth = {"rough": False} if "rough" in inspect.signature(make).parameters else {}
        yield f"gallery {name}", make, lambda m=make, s=smooth: known(m(**s))


class Exact:
    """Moments of the smooth posterior, by importance sampling from a long exact run."""

    def __init__(self, function: Callable[[np.ndarray], np.ndarray], d: int):
        self.function, self.d = function, d
        self.moments: tuple[dict, dict] | None = None

    def __call__(self) -> tuple[dict, dict]:
        """Means and standard deviations by variable."""
        if self.moments is None:
            model = fluctuating(self.function, self.d, "smooth", 0.0)
            draws = run(model, {"adjust": True}, 0, 40_000).posterior["u"].to_numpy()
            flat = draws.reshape(-1, self.d)
            self.moments = {"u": flat.mean(0)}, {"u": flat.std(0)}
        return self.moments


def known(model: pm.Model) -> tuple[dict, dict]:
    """Means and standard deviations that the gallery has."""
    reference = model.reference
    return tuple(
        {str(name): reference[name].sel(statistic=what).to_numpy() for name in reference}
        for what in ("mean", "sd")
    )


def run(model: pm.Model, options: dict, seed: int, draws: int = DRAWS):
    """Sample."""
    with model, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pm.sample(
            draws,
            step=pe.EnsembleKalmanSampler(**options),
            chains=CHAINS,
            cores=1,
            random_seed=seed,
            quiet=True,
            compute_convergence_checks=False,
        )


def measure(model: pm.Model, reference: tuple[dict, dict], options: dict, seed: int) -> dict:
    """Errors of a run, its cost, and what it has chosen."""
    from pymc_ensemble.diagnosis.facts import facts_of

    started = perf_counter()
    idata = run(model, options, seed)
    means, sds = reference
    shift, ratio = 0.0, 0.0
    for name, mean in means.items():
        if name not in idata.posterior:
            continue
        draws = idata.posterior[name].to_numpy()
        draws = draws.reshape(-1, *draws.shape[2:])
        shift = max(shift, float(np.abs((draws.mean(0) - mean) / sds[name]).max()))
        ratio = max(ratio, float(np.abs(draws.std(0) / sds[name] - 1).max()))
    stats = idata.sample_stats
    return {
        "shift": shift,
        "ratio": ratio,
        "law": facts_of(stats.dataset).origin.law,
        "converged": bool(stats["converged"].all()),
        "verdict": pe.diagnose(idata).verdict,
        "evaluations": int(stats["n_evals"].max("draw").sum()),
        "seconds": round(perf_counter() - started, 1),
    }


def report(path: Path) -> None:
    """Print the choices, their errors, and which are wrong."""
    runs = [json.loads(line) for line in path.read_text().splitlines()]
    print("| problem | chosen | default | test | fit | evaluations |")
    print("|---|---|---|---|---|---|")
    wrong = 0
    for problem in dict.fromkeys(r["problem"] for r in runs):
        rows = [r for r in runs if r["problem"] == problem and "shift" in r]
        cells, told = [], {}
        for sampler in SAMPLERS:
            of_sampler = {r["seed"]: r for r in rows if r["sampler"] == sampler}
            told[sampler] = of_sampler
            worst = [max(r["shift"] for r in of_sampler.values()) if of_sampler else np.nan]
            worst += [max(r["ratio"] for r in of_sampler.values()) if of_sampler else np.nan]
            cells.append(f"{worst[0]:.2f}, {worst[1]:.0%}")
        laws = [r["law"] for r in told["default"].values()]
        mixed = f"test {laws.count('density')}, fit {laws.count('fit')}"
        for seed, chosen in told["default"].items():
            other = told["test" if chosen["law"] == "fit" else "fit"].get(seed)
            if other and chosen["shift"] > MATTERS and other["shift"] < 0.5 * chosen["shift"]:
                wrong += 1
                mixed += f"; wrong, seed {seed} (diagnose: {chosen.get('verdict', 'not asked')})"
        costs = [
            np.mean([r["evaluations"] for r in told[s].values()] or [np.nan]) for s in SAMPLERS
        ]
        shown = " / ".join(f"{cost:,.0f}" for cost in costs)
        print(f"| {problem} | {mixed} | {' | '.join(cells)} | {shown} |")
    print(f"\nwrong where it matters: {wrong}")


def main() -> None:
    """Run what is missing, or report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("path", type=Path, help="file of the runs, one JSON object a line")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--problems", nargs="*", help="only those whose name begins so")
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    if arguments.report:
        report(arguments.path)
        return
    logging.getLogger("pymc_ensemble").setLevel(logging.ERROR)
    done = set()
    if arguments.path.exists():
        lines = map(json.loads, arguments.path.read_text().splitlines())
        done = {(line["problem"], line["sampler"], line["seed"]) for line in lines}
    with arguments.path.open("a") as file:
        for name, make, reference in problems():
            if arguments.problems and not name.startswith(tuple(arguments.problems)):
                continue
            for seed in range(1, arguments.seeds + 1):
                for sampler, options in SAMPLERS.items():
                    if (name, sampler, seed) in done:
                        continue
                    key = {"problem": name, "sampler": sampler, "seed": seed}
                    try:
                        found = measure(make(), reference(), options, seed)
                    except (ValueError, NotImplementedError, pm.exceptions.SamplingError) as error:
                        found = {"error": str(error).splitlines()[0]}
                    file.write(json.dumps(key | found) + "\n")
                    file.flush()


if __name__ == "__main__":
    main()
