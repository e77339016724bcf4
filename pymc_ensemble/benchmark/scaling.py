"""How costs grow with parameters, particles, outputs and workers."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import process_time
from typing import Any

import numpy as np
import pymc as pm
import xarray as xr

import pymc_ensemble as pe
from pymc_ensemble import gallery
from pymc_ensemble.benchmark.metrics import moment_errors
from pymc_ensemble.benchmark.ours import QUIET
from pymc_ensemble.benchmark.problems import find
from pymc_ensemble.benchmark.traces import Meter

SWEEPS, SHORTEST, REPEATS = 10, 1000, 3
"""Sweeps that are timed, the least number of draws that they have, and how often they are timed."""

COSTS = ("own_seconds", "evaluations")
SPREAD = 0.5
"""Standard deviation of the logarithm of the time of an evaluation on the simulated cluster."""

DIMENSION_SAMPLERS = ("EKS", "EKS adjusted", "multiscale", "emcee", "emcee DE", "NUTS nutpie")


@dataclass(frozen=True)
class Cost:
    """Costs and draws of a run of the ensemble Kalman sampler."""

    own_seconds: float  # without the forward map
    evaluations: float
    posterior: xr.Dataset


def _run(model: pm.Model, forward: Any, size: int, sweeps: int) -> Cost:
    meter, started = Meter(forward, process_time), process_time()
    with model:
        idata = pm.sample(
            draws=size * sweeps,
            step=pe.EnsembleKalmanSampler(ensemble_size=size),
            random_seed=1,
            **QUIET,
        )
    seconds = process_time() - started - meter.seconds
    evaluations = float(idata["sample_stats"].to_dataset()["n_evals"].max())
    return Cost(seconds, evaluations, idata["posterior"].to_dataset())


def _per_particle(model: pm.Model, forward: Any, size: int) -> Cost:
    """Own processor time per particle and sweep: the difference of a long and a short run."""
    _run(model, forward, size, 1)  # compiles
    n = max(SWEEPS, SHORTEST // size)
    short, long = (
        min(
            (_run(model, forward, size, sweeps) for _ in range(REPEATS)),
            key=lambda run: run.own_seconds,
        )
        for sweeps in (1, 1 + n)
    )
    seconds = max(long.own_seconds - short.own_seconds, 0.0) / (n * size)
    return replace(long, own_seconds=seconds)


def ensemble_size(sizes: Sequence[int], dimension: int = 10) -> xr.Dataset:
    """Cost and error of the ensemble Kalman sampler by the number of particles.

    Parameters
    ----------
    sizes : sequence of int
        Numbers of particles J.
    dimension : int, default 10
        Parameters of the linear Gaussian problem.

    Returns
    -------
    xarray.Dataset
        With the dimension ``J``: ``own_seconds`` per particle and sweep, without the forward map;
        ``evaluations`` of the run; worst ``mean_error`` and ``sd_error`` of its draws.
    """
    rows = []
    problem = find(f"linear {dimension}-d")
    for size in sizes:
        model = gallery.linear_gaussian(dimension)
        cost = _per_particle(model, model.forward, size)
        errors = moment_errors(problem.draws(cost.posterior), *problem.moments)
        rows.append((cost.own_seconds, cost.evaluations, *(e.max() for e in errors)))
    return _table(rows, (*COSTS, "mean_error", "sd_error"), "J", sizes)


def outputs(numbers: Sequence[int], size: int = 100, dimension: int = 10) -> xr.Dataset:
    """Cost of the ensemble Kalman sampler by the number of forward outputs.

    Parameters
    ----------
    numbers : sequence of int
        Numbers of outputs K.
    size, dimension : int
        Particles, and parameters.

    Returns
    -------
    xarray.Dataset
        With the dimension ``K``: ``own_seconds`` per particle and sweep, and ``evaluations`` of the
        run.
    """
    rows = []
    for number in numbers:
        rng = np.random.default_rng(number)
        A = rng.standard_normal((number, dimension)) / np.sqrt(number)

        def linear(u: np.ndarray, A: np.ndarray = A) -> np.ndarray:
            return u @ A.T

        forward = pe.forward_model(linear, output_shape=(number,), vectorized=True)
        with pm.Model() as model:
            u = pm.Normal("u", shape=dimension)
            data = A @ rng.standard_normal(dimension)
            pm.Normal("y", forward(u), 0.1, observed=data)
        cost = _per_particle(model, forward, size)
        rows.append((cost.own_seconds, cost.evaluations))
    return _table(rows, COSTS, "K", numbers)


def makespan(batches: Sequence[int], workers: int, rng: np.random.Generator) -> tuple[float, float]:
    """Time of batches, one after the other, on workers that take the next evaluation when free.

    Parameters
    ----------
    batches : sequence of int
        Evaluations in each batch. A batch begins when the one before has ended.
    workers : int
        Number of workers.
    rng : Generator
        Evaluations take log-normal times with mean 1.

    Returns
    -------
    elapsed, work : float
        Time by the clock, and time of all evaluations together.

    Examples
    --------
    >>> import numpy as np
    >>> elapsed, work = makespan([4, 4], 1, np.random.default_rng(1))
    >>> bool(np.isclose(elapsed, work))
    True
    """
    elapsed = work = 0.0
    for n in batches:
        times = rng.lognormal(-(SPREAD**2) / 2, SPREAD, n)
        free = [0.0] * min(workers, n)
        for time in times:
            heapq.heapreplace(free, free[0] + time)
        elapsed += max(free)
        work += times.sum()
    return elapsed, work


def cluster(batches: Mapping[str, Sequence[int]], workers: Sequence[int]) -> xr.Dataset:
    """Speed-up on a simulated cluster.

    Parameters
    ----------
    batches : mapping
        Batches that each run has asked for, by the name of the run.
    workers : sequence of int
        Numbers of workers.

    Returns
    -------
    xarray.Dataset
        ``speed_up`` against one worker, by ``run`` and ``workers``. The ideal is the number of
        workers.
    """
    rng = np.random.default_rng(1)
    table = []
    for sizes in batches.values():
        pairs = [makespan(sizes, n, rng) for n in workers]
        table.append([work / elapsed for elapsed, work in pairs])
    return xr.Dataset(
        {"speed_up": (("run", "workers"), table)},
        coords={"run": list(batches), "workers": list(workers)},
    )


def measured_batches(sizes: Sequence[int] = (100, 1000), sweeps: int = 20) -> dict[str, list[int]]:
    """Batches of forward evaluations that samplers ask for on the linear problem.

    Parameters
    ----------
    sizes : sequence of int
        Numbers of particles of the ensemble Kalman sampler.
    sweeps : int, default 20
        Sweeps of each run.

    Returns
    -------
    dict
        Evaluations of each batch, by the name of the run.
    """
    found: dict[str, list[int]] = {}

    def sample(
        name: str, draws: int, step: pe.EnsembleKalmanSampler | pe.MultiscaleSampler
    ) -> None:
        model = gallery.linear_gaussian(10)
        meter = Meter(model.forward)
        with model:
            pm.sample(draws=draws, step=step, random_seed=1, **QUIET)
        found[name] = meter.batches

    for size in sizes:
        name = f"EKS, {size} particles"
        sample(name, size * sweeps, pe.EnsembleKalmanSampler(ensemble_size=size, adjust=True))
    sample("multiscale, 10 walkers", 10 * sweeps, pe.MultiscaleSampler(walkers=10))
    found["emcee, 40 walkers"] = [20] * (5 * sweeps)
    found["DEMetropolisZ, 4 chains"] = [4] * (25 * sweeps)
    return found


def _table(
    rows: Sequence[Sequence[float]], names: Sequence[str], dim: str, values: Sequence[int]
) -> xr.Dataset:
    columns = np.array(rows, dtype=float).T
    return xr.Dataset(
        {name: (dim, column) for name, column in zip(names, columns, strict=True)},
        coords={dim: list(values)},
    )
