"""The samplers of this package, run for the benchmark."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import xarray as xr
from pytensor.graph.basic import Variable

import pymc_ensemble as pe
from pymc_ensemble.benchmark.metrics import Array
from pymc_ensemble.benchmark.problems import Problem
from pymc_ensemble.benchmark.traces import Meter, Run, Trace
from pymc_ensemble.forward import Evaluations

Runner = Callable[[Problem, int, int], Run]
"""Takes a problem, a number of evaluations that may be spent, and a seed."""

QUIET = {"progressbar": False, "compute_convergence_checks": False, "chains": 1, "cores": 1}

CHAINS_FACTOR = 4
"""The same for single chains: those of PyMC, and the multiscale sampler of this package."""

LEARNED_DRAWS = 2000
"""Number of draws from a surrogate. They cost nothing, and so many have a small error."""

START_SIZE = 100
"""Number of particles of an ensemble that starts where the paper of the problem starts it."""


class Hidden:
    """A problem whose forward map is hidden: its loss is its only output."""

    density_only = True
    quadratic_loss = False
    n_outputs = 1

    def __init__(self, problem: pe.InverseProblem):
        self._problem = problem

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_problem"], name)

    def evaluate(self, U: Array, *args: Any, **kwargs: Any) -> Evaluations:
        """Losses, shape (n, 1)."""
        values = self._problem.evaluate(U, *args, **kwargs)
        loss = np.where(values.failed, np.nan, self._problem.loss(values.outputs))
        return Evaluations.from_outputs(loss[:, None])

    def loss(self, Z: Array) -> Array:
        """The output itself."""
        return np.where(np.isfinite(Z[:, 0]), Z[:, 0], np.inf)


class DensitySampler(pe.EnsembleKalmanSampler):
    """Ensemble Kalman sampler that sees nothing but values of the log density."""

    def _make_problem(self, model: pm.Model, vars: list[Variable]) -> Any:
        return Hidden(pe.InverseProblem.from_model(model, vars))


def fast_compiling() -> Any:
    """Context manager in which models are compiled quickly."""
    return pytensor.config.change_flags(mode="FAST_COMPILE")


def _in_time_order(problem: Problem, idata: xr.DataTree) -> tuple[Array, np.ndarray]:
    """Draws of an ensemble step method by sweep, and the evaluations until each of them."""
    stats = idata["sample_stats"].to_dataset()
    order = np.lexsort((stats["particle"].values[0], stats["sweep"].values[0]))
    draws = problem.draws(idata["posterior"].to_dataset())[order]
    return draws, stats["n_evals"].values[0][order]


def sampled(
    problem: Problem, step: Callable[..., Any], draws: int, seed: int, native: bool = False,
    from_prior: bool = False, **options: Any,
) -> tuple[Run, xr.DataTree, list[int]]:  # fmt: skip
    """Run `pymc.sample` with a step method of this package."""
    started = perf_counter()
    make = problem.native if native else problem.model
    assert make is not None
    model = make()
    price = gradient_price(model) if native else 1.0
    with model, fast_compiling():
        meter = None if native else Meter(model.forward)
        initial = None
        if problem.start is not None and not from_prior:
            size = options.get("ensemble_size", START_SIZE)
            initial = problem.start(size, np.random.default_rng([seed, 1]))
        idata = pm.sample(
            draws=draws,
            step=step(initial_ensemble=initial, **options),
            random_seed=seed,
            **QUIET,
        )
    values, evaluations = _in_time_order(problem, idata)
    batches = [] if meter is None else meter.batches
    if meter is None:  # all particles are evaluated at once
        rounds = evaluations / (1 + idata["sample_stats"].to_dataset()["particle"].values.max())
    else:
        rounds = meter.rounds(evaluations)
    converged = bool(idata["sample_stats"]["converged"].all())
    run = Run(
        [Trace(values, evaluations * price, rounds)],
        seconds=perf_counter() - started,
        forward_seconds=0.0 if meter is None else meter.seconds,
        attributes={"converged": int(converged), "gradient_price": price},
    )
    return run, idata, batches


def ensemble(
    step: Callable[..., Any], native: bool = False, roughness: bool = False, **options: Any
) -> Runner:
    """Runner of a step method for which each draw is one evaluation.

    Parameters
    ----------
    step : callable
        Class of the step method.
    native : bool, default False
        Whether it needs gradients.
    roughness : bool, default False
        Whether to pass ``rough=True`` for problems that are rough.
    **options
        Options of the step method.
    """

    def run(problem: Problem, budget: int, seed: int) -> Run:
        told = {"rough": problem.rough} if roughness else {}
        result, _, batches = sampled(problem, step, budget, seed, native=native, **options, **told)
        result.attributes["batches"] = batches[:20_000]
        return result

    return run


def multiscale(**options: Any) -> Runner:
    """Runner of the multiscale sampler: a draw costs d + 1 evaluations for d parameters."""

    def run(problem: Problem, budget: int, seed: int) -> Run:
        draws = max(50, CHAINS_FACTOR * budget // (len(problem.moments[0]) + 1))
        told = {} if options.get("adjust") else {"adjust": False, "rough": problem.rough}
        return sampled(problem, pe.MultiscaleSampler, draws, seed, **options, **told)[0]

    return run


def gaussian_process(sizes: tuple[int, ...] = (50, 100, 200), **options: Any) -> Runner:
    """Runner of Gaussian process samplers of several sizes, as draws are free after learning."""

    def run(problem: Problem, budget: int, seed: int) -> Run:
        total = Run([], attributes={"converged": 1})
        for size in sizes:
            if size < 4 * (len(problem.moments[0]) + 2):
                continue
            part, _, _ = sampled(
                problem,
                pe.EnsembleGaussianProcessSampler,
                20 * size,
                seed,
                ensemble_size=size,
                **options,
            )
            (trace,) = part.traces
            total.traces = [*total.traces, Trace(*columns(trace), growing=False)]
            total.seconds += part.seconds
            total.forward_seconds += part.forward_seconds
            total.attributes["converged"] &= part.attributes["converged"]
        if not total.traces:
            raise ValueError(
                f"All ensembles of {sizes} particles are too small for so many parameters. Leave "
                "this sampler out."
            )
        return total

    return run


def growing(problem: Problem, budget: int, seed: int) -> Run:
    """The ensemble Gaussian process sampler with its defaults: it stops when it is certified.

    It starts in the prior on all problems, as an initial ensemble would choose another scheme.
    """
    step = pe.EnsembleGaussianProcessSampler
    run, _, batches = sampled(problem, step, LEARNED_DRAWS, seed, from_prior=True)
    run.traces = [Trace(*columns(trace), growing=False) for trace in run.traces]
    run.attributes["batches"] = batches
    return run


def columns(trace: Trace) -> tuple[Array, np.ndarray, np.ndarray]:
    """Draws, evaluations and rounds of a trace."""
    return trace.draws, trace.evaluations, trace.rounds


def gradient_price(model: pm.Model) -> float:
    """Cost of a log density with its gradient, as a multiple of the log density alone.

    PyMC compiles both. They are timed in turn at the initial point.
    """
    logp = model.compile_logp()
    logp_dlogp = model.logp_dlogp_function(ravel_inputs=True)
    logp_dlogp.set_extra_values({})
    point = model.initial_point()
    raveled = pm.blocking.DictToArrayBijection.map(point)
    logp(point), logp_dlogp(raveled)
    times: list[list[float]] = [[], []]
    for _ in range(7):
        for k, call in enumerate((lambda: logp(point), lambda: logp_dlogp(raveled))):
            repeats, started = 0, perf_counter()
            while perf_counter() - started < 0.05:
                call()
                repeats += 1
            times[k].append((perf_counter() - started) / repeats)
    return max(1.0, min(times[1]) / min(times[0]))
