"""What samplers bear: kills and restarts, failing evaluations, evaluations that hang.

    python benchmarks/kills.py [--samplers multiscale gaussian_process] [--kills 30] [--seeds 4]

- kills: a run with a store is ended by SIGKILL at random moments, up to three times, and then left
  to its end. Its draws have to be those of a run that was not killed, bit by bit, and no finished
  evaluation may be made again.
- failures: 30% of all points fail. Errors of means and standard deviations, root mean squares over
  parameters and seeds in posterior standard deviations, beside those without failures.
- hangs: 2% of all points hang, with ``timeout=0.5`` in two worker processes. The same errors.

It needs `os.fork`. The exit status is 1 if a kill has changed or repeated something.
"""

import argparse
import logging
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pymc as pm

import pymc_ensemble as pe

SAMPLERS: dict[str, tuple[Callable[[], Any], int]] = {
    "kalman": (lambda: pe.EnsembleKalmanSampler(ensemble_size=20), 400),
    "multiscale": (lambda: pe.MultiscaleSampler(), 300),
    "gaussian_process": (lambda: pe.EnsembleGaussianProcessSampler(ensemble_size=40), 400),
}
KILLS_OF_A_RUN = 3
SECONDS = 2.0  # that the evaluations of a run take, unless it is killed
TIMEOUT = 0.5  # s
FORK = multiprocessing.get_context("fork")


def luck(x: np.ndarray) -> float:
    """Number between 0 and 1 that is the same whenever a point is evaluated."""
    return int.from_bytes(blake2b(x.tobytes(), digest_size=8).digest()) / 2**64


def simulator(
    seconds: float = 0.0, failing: float = 0.0, hanging: float = 0.0, log: str = ""
) -> Callable[[np.ndarray], np.ndarray]:
    """A map of two parameters that takes its time, fails, hangs, and notes its calls."""

    def simulate(x: np.ndarray) -> np.ndarray:
        time.sleep(seconds)
        if luck(x) < failing:
            raise RuntimeError("bad luck")
        if luck(x) < hanging:
            time.sleep(100 * TIMEOUT)
        if log:
            with Path(log).open("a") as file:
                file.write(x.tobytes().hex() + "\n")
        return np.array([x[0] + x[1], x[0] + 0.3 * x[1] ** 2])

    return simulate


def exact() -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of both parameters, by quadrature."""
    grid = np.linspace(-6, 6, 601)
    x, y = np.meshgrid(grid, grid, indexing="ij")
    outputs = (x + y, x + 0.3 * y**2)
    residual = sum((a - b) ** 2 for a, b in zip(outputs, (1.0, 0.5), strict=True))
    weights = np.exp(-0.5 * (x**2 + y**2) - 0.5 * residual / 0.5**2)
    weights /= weights.sum()
    means = np.array([(weights * v).sum() for v in (x, y)])
    squares = np.array([(weights * v**2).sum() for v in (x, y)])
    return means, np.sqrt(squares - means**2)


def run(name: str, seed: int = 1, store: str | None = None, **behaviour: Any) -> Any:
    """Sample with one of the samplers."""
    make, draws = SAMPLERS[name]
    options: dict[str, Any] = {"store": store, "version": "1"} if store else {}
    if "hanging" in behaviour:
        options |= {"timeout": TIMEOUT, "executor": 2}
    forward = pe.forward_model(simulator(**behaviour), output_shape=(2,), **options)
    with pm.Model():
        pm.Normal("y", forward(pm.Normal("x", shape=2)), 0.5, observed=[1.0, 0.5])
        return pm.sample(
            draws,
            chains=1,
            cores=1,
            step=make(),
            random_seed=seed,
            progressbar=False,
            compute_convergence_checks=False,
        )


def saved(name: str, result: str, **options: Any) -> None:
    """Run, and save all draws and stats."""
    idata = run(name, **options)
    stats = {k: v.to_numpy() for k, v in idata.sample_stats.items()}
    np.savez(result, x=idata.posterior["x"].to_numpy(), **stats)


def runs_with_kills(name: str, kills: int, rng: np.random.Generator) -> Iterator[tuple[int, str]]:
    """Kills of each run, and what is wrong with its end; nothing if all is well."""
    folder = Path(tempfile.mkdtemp())
    expected = str(folder / "undisturbed.npz")
    saved(name, expected, store=str(folder / "undisturbed.db"))
    calls = len(pe.open_store(folder / "undisturbed.db")["status"])
    done = 0
    while done < kills:
        store, log, result = (str(folder / f"{done}{end}") for end in (".db", ".log", ".npz"))
        options = {"store": store, "log": log}
        killed = 0
        for _ in range(min(KILLS_OF_A_RUN, kills - done)):
            slow = options | {"seconds": SECONDS / calls}
            process = FORK.Process(target=saved, args=(name, result), kwargs=slow)
            before = _size(log)
            process.start()
            while process.is_alive() and _size(log) == before:
                time.sleep(0.005)
            process.join(rng.uniform(0, SECONDS / KILLS_OF_A_RUN))
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            killed += 1
        process = FORK.Process(target=saved, args=(name, result), kwargs=options)
        process.start()
        process.join()
        done += killed
        yield killed, _difference(process.exitcode, expected, result, store, log)


def _size(path: str) -> int:
    return Path(path).stat().st_size if Path(path).exists() else 0


def _difference(status: int | None, expected: str, result: str, store: str, log: str) -> str:
    if status:
        return f"ended with status {status}"
    with np.load(expected) as first, np.load(result) as second:
        for name in first:
            if not np.array_equal(first[name], second[name], equal_nan=True):
                return f"{name} differs"
    calls = Path(log).read_text().split()
    # a kill after the note and before the evaluation is saved
    if len(calls) - len(set(calls)) > KILLS_OF_A_RUN:
        return f"{len(calls) - len(set(calls))} finished evaluations were repeated"
    if len(pe.open_store(store)["status"]) < len(set(calls)) - KILLS_OF_A_RUN:
        return "evaluations are missing in the store"
    return ""


def errors(name: str, seeds: int, **behaviour: Any) -> tuple[float, float, int, int]:
    """Errors of means and standard deviations, evaluations, and how many failed."""
    mean, sd = exact()
    of_means, of_sds, n_evals, n_failed = [], [], 0, 0
    for seed in range(seeds):
        idata = run(name, seed, **behaviour)
        draws = idata.posterior["x"].to_numpy()[0]
        of_means.append((draws.mean(0) - mean) / sd)
        of_sds.append(draws.std(0) / sd - 1)
        n_evals += int(idata.sample_stats["n_evals"].max())
        n_failed += int(idata.sample_stats["n_failed"].max())
    mean_error, sd_error = (float(np.sqrt(np.mean(np.square(e)))) for e in (of_means, of_sds))
    return mean_error, sd_error, n_evals, n_failed


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--samplers", nargs="*", default=list(SAMPLERS), choices=list(SAMPLERS))
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=4)
    arguments = parser.parse_args()
    logging.getLogger("pymc_ensemble").setLevel(logging.ERROR)
    logging.getLogger("pymc").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    bad = 0
    for name in arguments.samplers:
        rng, kills, runs = np.random.default_rng(os.getpid()), 0, 0
        for killed, wrong in runs_with_kills(name, arguments.kills, rng):
            kills, runs = kills + killed, runs + 1
            bad += bool(wrong)
            if wrong:
                print(f"{name}: after {killed} kills, {wrong}", flush=True)
        print(f"{name}: {kills} kills in {runs} runs", flush=True)
        if arguments.seeds:
            for what, behaviour in {
                "no failures": {},
                "30% failures": {"failing": 0.3},
                "2% hang": {"hanging": 0.02},
            }.items():
                mean, sd, n, failed = errors(name, arguments.seeds, **behaviour)
                print(
                    f"{name}, {what}: mean {mean:.3f}, sd {sd:.3f}; {failed} of {n} evaluations "
                    f"failed in {arguments.seeds} runs",
                    flush=True,
                )
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
