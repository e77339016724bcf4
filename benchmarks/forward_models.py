"""What workers gain, and what the wrapper of forward models costs.

    python benchmarks/forward_models.py            # everything; needs the extra "dask"
    python benchmarks/forward_models.py overhead   # speed, chains, overhead or memory

All figures are ratios of times of one run, or counts.
"""

import argparse
import logging
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
import pymc as pm

import pymc_ensemble as pe

SLEEP = 0.05  # seconds that the forward model takes
LONG_SLEEP = 0.2
ENSEMBLE_SIZE = 64


def sleeping(u):
    """Take a nap."""
    time.sleep(SLEEP)
    return u[:3] * 2


def sleeping_longer(u):
    """Take a longer nap, next to which the work of Dask on two cores is small."""
    time.sleep(LONG_SLEEP)
    return u[:3] * 2


def trivial(u):
    """Take a few microseconds."""
    return np.array([u[0] + u[1], u[0] * u[1], np.exp(-u[0]), u[1] ** 2, 1.0])


def model_of(function, n_outputs, **options):
    """Model with three standard normal unknowns, and its forward model."""
    forward = pe.forward_model(function, output_shape=(n_outputs,), **options)
    with pm.Model() as model:
        u = pm.Normal("u", shape=3)
        pm.Normal("y", forward(u), 1.0, observed=np.zeros(n_outputs))
    return model, forward


def seconds_per_round(function, n_outputs, size, repeats=5, **options):
    """Median time of a batch of new points."""
    model, forward = model_of(function, n_outputs, **options)
    problem, rng, times = pe.InverseProblem.from_model(model), np.random.default_rng(1), []
    for _ in range(repeats + 1):
        points = rng.normal(size=(size, 3))
        started = time.perf_counter()
        evaluations = problem.evaluate(points)
        times.append(time.perf_counter() - started)
        assert not evaluations.failed.any()
    forward.close()
    return median(times[1:])  # workers start in the first round


def sample(model, **options):
    """Sample, and return the seconds that it took."""
    settings = {"tune": 10, "cores": 1, "random_seed": 1, "progressbar": False}
    settings |= {"compute_convergence_checks": False, "quiet": True}
    started = time.perf_counter()
    with model:
        pm.sample(**settings | options)
    return time.perf_counter() - started


def dask_cluster(workers, threads):
    """Local cluster of separate worker processes."""
    from distributed import Client, LocalCluster

    return Client(
        LocalCluster(
            n_workers=workers,
            threads_per_worker=threads,
            processes=True,
            dashboard_address=None,
            silence_logs=50,
        )
    )


def speed():
    """Rounds of 64 members that take 50 ms each, and whole runs of the sampler."""
    print(f"Forward model of {1e3 * SLEEP:.0f} ms, rounds of {ENSEMBLE_SIZE}")
    serial = seconds_per_round(sleeping, 3, ENSEMBLE_SIZE, repeats=2)
    print(f"    serial               {serial:6.3f} s")

    def show(name, executor, required):
        seconds = seconds_per_round(sleeping, 3, ENSEMBLE_SIZE, executor=executor)
        ratio = f"{serial / seconds:5.2f} times as fast (at least {required})"
        print(f"    {name:20} {seconds:6.3f} s, {ratio}")

    show("2 processes", 2, 1.9)
    with ThreadPoolExecutor(16) as threads:
        show("16 threads", threads, 14)
    with dask_cluster(2, 1) as client:
        show("Dask, 2 workers", client.get_executor(), 1.8)

    def run(executor):
        model, forward = model_of(sleeping, 3, executor=executor)
        step = pe.EnsembleKalmanSampler(ensemble_size=ENSEMBLE_SIZE, scheme="paper")
        seconds = sample(model, draws=ENSEMBLE_SIZE, tune=4, chains=1, step=step)
        forward.close()
        return seconds

    print('pm.sample, scheme="paper", start-up of workers and compilation included')
    run(None)
    alone = run(None)
    with ThreadPoolExecutor(16) as threads:
        for name, executor in (("2 processes", 2), ("16 threads", threads)):
            print(f"    {name:20} {alone / run(executor):5.2f} times as fast")


def chains():
    """Four chains on one cluster that has workers for all of them."""
    size = 32  # rounds of half of them
    times = {1: [], 4: []}
    with dask_cluster(2, size) as client:
        for number in (1, 4, 1, 4):
            model, _ = model_of(sleeping_longer, 3, executor=client.get_executor())
            step = pe.EnsembleKalmanSampler(ensemble_size=size)
            options = {"draws": 20 * size, "chains": number, "cores": number, "step": step}
            times[number].append(sample(model, **options))
    one, four = min(times[1]), min(times[4])
    print(f"Forward model of {1e3 * LONG_SLEEP:.0f} ms, a Dask cluster with workers for all chains")
    print(f"    one chain {one:5.2f} s, four chains {four:5.2f} s: {four / one:4.2f} times as long")
    print("    (at most 1.4)")


def overhead():
    """Cost of the wrapper, next to a bare Python loop."""
    size, rng = 1000, np.random.default_rng(1)
    model, _ = model_of(trivial, 5)
    problem, bare, serial = pe.InverseProblem.from_model(model), [], []
    for _ in range(101):
        points = rng.normal(size=(size, 3))
        started = time.process_time()
        np.array([trivial(u) for u in points])
        between = time.process_time()
        problem.evaluate(points)
        bare.append(between - started)
        serial.append(time.process_time() - between)
    loop, ours = median(bare), median(serial[1:])  # the first one compiles
    print(f"Trivial function, batch of {size}")
    print(
        f"    bare loop {1e6 * loop / size:5.2f} us a member, serial {1e6 * ours / size:5.2f} us:"
        f" {ours / loop:4.2f} times as long (at most 2)"
    )
    processes = seconds_per_round(trivial, 5, size, repeats=20, executor=2)
    each = (processes - loop / 2) / size
    print(f"    2 processes: overhead {1e3 * each:6.4f} ms a member (below 0.2)")
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "runs.db"
        stored = seconds_per_round(trivial, 5, size, store=store)
    print(f"    with a store {1e3 * stored / size:6.4f} ms a member")


def large():
    """One chain with a million outputs; prints the peak of its memory."""
    K, J = 10**6, 100
    x, rng = np.linspace(0, 1, K), np.random.default_rng(1)

    def field(u):
        waves = u[2] * np.sin(7 * x) + u[3] * np.cos(3 * x)
        return u[0] + u[1] * x + waves + u[4] * x * x

    forward = pe.forward_model(field, output_shape=(K,))
    with pm.Model() as model:
        u = pm.Normal("u", shape=5)
        pm.Normal("y", forward(u), 1.0, observed=field(0.1 * np.ones(5)) + rng.normal(size=K))
    sample(model, draws=2 * J, chains=1, step=pe.EnsembleKalmanSampler(ensemble_size=J))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def memory():
    """Peak memory with K = 10^6 outputs, J = 100, d = 5."""
    run = subprocess.run(
        [sys.executable, __file__, "large"], capture_output=True, text=True, check=True
    )
    print("K = 10^6 outputs, J = 100, d = 5, one chain")
    print(f"    peak of memory {float(run.stdout):4.2f} GiB (below 4)")


def main():
    """Print the figures that were asked for."""
    for name in ("pymc", "pymc_ensemble", "distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    figures = {"speed": speed, "chains": chains, "overhead": overhead, "memory": memory}
    if sys.argv[1:] == ["large"]:
        large()
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=", ".join(figures))
    names = parser.parse_args().figures
    if unknown := [name for name in names if name not in figures]:
        parser.error(f"there is no figure {unknown[0]}; there are {', '.join(figures)}.")
    for name in names or figures:
        figures[name]()


if __name__ == "__main__":
    main()
