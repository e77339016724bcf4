"""Our samplers and their peers, each run as its documentation says."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import xarray as xr

import pymc_ensemble as pe
from pymc_ensemble.benchmark.metrics import Array
from pymc_ensemble.benchmark.problems import Problem
from pymc_ensemble.benchmark.traces import Meter, Run, Trace

Runner = Callable[[Problem, int, int], Run]
"""Takes a problem, a number of evaluations that may be spent, and a seed."""

QUIET = {"progressbar": False, "compute_convergence_checks": False, "chains": 1, "cores": 1}

PEERS_FACTOR = 10
"""How many times more evaluations ensembles from elsewhere may spend than ours."""

STRETCH_FACTOR = 30
"""The same for emcee as it comes, with which ours are compared above all."""

CHAINS_FACTOR = 4
"""The same for single chains: those of PyMC, and our multiscale sampler."""

NUTS_DRAWS = 2000

START_SIZE = 100
"""Particles of an ensemble that starts where the paper of a problem has it start."""


@dataclass(frozen=True)
class Sampler:
    """A sampler with its settings.

    Parameters
    ----------
    name : str
    run : callable
        Samples a problem.
    ours : bool, default True
        Whether it is one of this package.
    gradients : bool, default False
        Whether it needs a model with gradients.
    requires : str, optional
        Package that has to be installed.
    """

    name: str
    run: Runner
    ours: bool = True
    gradients: bool = False
    requires: str = "pymc"

    @property
    def installed(self) -> bool:
        """Whether what it requires is there."""
        return find_spec(self.requires) is not None

    def suits(self, problem: Problem) -> bool:
        """Whether the problem has what the sampler needs, and is meant for it."""
        if problem.only and self.name not in problem.only:
            return False
        return problem.native is not None or not self.gradients


def _fast_compiling() -> Any:
    return pytensor.config.change_flags(mode="FAST_COMPILE")


def _in_time_order(problem: Problem, idata: xr.DataTree) -> tuple[Array, np.ndarray]:
    """Draws of an ensemble step method in the order of their sweeps, and evaluations by then."""
    stats = idata["sample_stats"].to_dataset()
    order = np.lexsort((stats["particle"].values[0], stats["sweep"].values[0]))
    draws = problem.draws(idata["posterior"].to_dataset())[order]
    return draws, stats["n_evals"].values[0][order]


def _sampled(
    problem: Problem, step: Callable[..., Any], draws: int, seed: int, native: bool = False,
    **options: Any,
) -> tuple[Run, xr.DataTree, list[int]]:  # fmt: skip
    """Run `pymc.sample` with one of our step methods."""
    started = perf_counter()
    make = problem.native if native else problem.model
    assert make is not None
    model = make()
    price = gradient_price(model) if native else 1.0
    with model, _fast_compiling():
        meter = None if native else Meter(model.forward)
        initial = None
        if problem.start is not None:
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
    if meter is None:  # all particles at once
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
    """Step methods of which each draw is an evaluation.

    Parameters
    ----------
    step : callable
    native : bool, default False
        Whether it needs gradients.
    roughness : bool, default False
        Whether to tell the sampler of roughness where there is any.
    **options
        Of the step method.
    """

    def run(problem: Problem, budget: int, seed: int) -> Run:
        told = {"rough": problem.rough} if roughness else {}
        result, _, batches = _sampled(problem, step, budget, seed, native=native, **options, **told)
        result.attributes["batches"] = batches[:20_000]
        return result

    return run


def multiscale(**options: Any) -> Runner:
    """Walkers of the multiscale sampler: a draw costs one evaluation more than directions."""

    def run(problem: Problem, budget: int, seed: int) -> Run:
        draws = max(50, CHAINS_FACTOR * budget // (len(problem.moments[0]) + 1))
        told = {} if options.get("adjust") else {"adjust": False, "rough": problem.rough}
        return _sampled(problem, pe.MultiscaleSampler, draws, seed, **options, **told)[0]

    return run


def gaussian_process(sizes: tuple[int, ...] = (50, 100, 200), **options: Any) -> Runner:
    """Ensemble Gaussian process samplers of several sizes, as draws are free after learning."""

    def run(problem: Problem, budget: int, seed: int) -> Run:
        total = Run([], attributes={"converged": 1})
        for size in sizes:
            if size < 4 * (len(problem.moments[0]) + 2):
                continue
            part, _, _ = _sampled(
                problem,
                pe.EnsembleGaussianProcessSampler,
                20 * size,
                seed,
                ensemble_size=size,
                **options,
            )
            (trace,) = part.traces
            total.traces = [*total.traces, Trace(*_columns(trace), growing=False)]
            total.seconds += part.seconds
            total.forward_seconds += part.forward_seconds
            total.attributes["converged"] &= part.attributes["converged"]
        if not total.traces:
            raise ValueError("The ensembles are too small for so many parameters.")
        return total

    return run


def _columns(trace: Trace) -> tuple[Array, np.ndarray, np.ndarray]:
    return trace.draws, trace.evaluations, trace.rounds


def emcee(moves: str = "stretch", start: str = "prior", factor: int = PEERS_FACTOR) -> Runner:
    """Affine-invariant walkers in unconstrained coordinates: 4 d of them, at least 32.

    Parameters
    ----------
    moves : {"stretch", "differential evolution"}
        emcee's default move, or the mixture of 80% differential evolution and 20% snooker moves
        that its documentation proposes.
    start : {"prior", "ensemble Kalman"}
        Where walkers start: in the prior (or where the problem has its ensembles start), or from
        the last sweep of an adjusted ensemble Kalman sampler, whose evaluations count.
    factor : int
        How many times more evaluations than ours.
    """

    def run(problem: Problem, budget: int, seed: int) -> Run:
        import emcee as package

        started = perf_counter()
        kalman_evaluations = kalman_rounds = 0
        forward_seconds = 0.0
        rng = np.random.default_rng([seed, 2])
        d = len(problem.moments[0])
        n_walkers = max(32, 4 * d)
        if start == "ensemble Kalman":
            size = max(100, n_walkers)
            kalman, _, _ = _sampled(
                problem, pe.EnsembleKalmanSampler, size, seed, adjust=True, ensemble_size=size
            )
            draws, evaluations, rounds = _columns(kalman.traces[0])
            walkers = draws[-n_walkers:]
            kalman_evaluations, kalman_rounds = int(evaluations[-1]), int(rounds[-1])
            forward_seconds = kalman.forward_seconds
        model = problem.model()
        with model, _fast_compiling():
            posterior = pe.InverseProblem.from_model(model)
            meter = Meter(model.forward)

            def log_density(U: Array) -> Array:
                result = posterior.evaluate(U)
                outputs = np.where(result.failed[:, None], 0.0, result.outputs)
                density = -posterior.loss(outputs) - posterior.prior_potential(U)
                return np.where(result.failed | ~np.isfinite(density), -np.inf, density)

            if start == "prior":
                make = problem.start or posterior.sample_prior
                walkers = make(n_walkers, rng)
                for _ in range(100):  # walkers have to start where the density is positive
                    lost = ~np.isfinite(log_density(walkers))
                    if not lost.any():
                        break
                    walkers[lost] = make(int(lost.sum()), rng)
            move = None
            if moves != "stretch":
                move = [(package.moves.DEMove(), 0.8), (package.moves.DESnookerMove(), 0.2)]
            sampler = package.EnsembleSampler(n_walkers, d, log_density, moves=move, vectorize=True)
            sampler.random_state = np.random.RandomState(seed).get_state()
            n_start = sum(meter.batches)
            steps = max(10, (factor * budget - kalman_evaluations - n_start) // n_walkers)
            sampler.run_mcmc(walkers, steps, skip_initial_state_check=True)
        chain = sampler.get_chain(flat=True)
        by_step = kalman_evaluations + n_start + n_walkers * np.arange(2, steps + 2)
        rounds_by_step = kalman_rounds + 1 + 2 * np.arange(1, steps + 1)
        return Run(
            [
                Trace(
                    chain,
                    np.repeat(by_step, n_walkers),
                    np.repeat(rounds_by_step, n_walkers),
                    warm_up=True,
                )
            ],
            seconds=perf_counter() - started,
            forward_seconds=forward_seconds + meter.seconds,
        )

    return run


def gradient_price(model: pm.Model) -> float:
    """Cost of a log density with its gradient, as a multiple of the log density alone.

    Both are compiled as PyMC does it, and timed alternately at the initial point.
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


def nuts(package: str) -> Runner:
    """NUTS with its default warm-up, on the model that has gradients.

    A leapfrog step counts as one evaluation with its gradient, times the price of a gradient.
    """

    def run(problem: Problem, budget: int, seed: int) -> Run:
        started = perf_counter()
        assert problem.native is not None
        model = problem.native()
        price = gradient_price(model)
        with model:
            idata = pm.sample(
                draws=NUTS_DRAWS,
                nuts_sampler=package,
                random_seed=seed,
                discard_tuned_samples=False,
                **QUIET,
            )
        warm_up, steps = (
            idata[group]["n_steps"].values[0].astype(float)
            for group in ("warmup_sample_stats", "sample_stats")
        )
        gradients = warm_up.sum() + np.cumsum(steps)
        draws = problem.draws(idata["posterior"].to_dataset())
        return Run(
            [Trace(draws, gradients * price, gradients)],
            seconds=perf_counter() - started,
            attributes={"gradients": float(gradients[-1]), "gradient_price": price},
        )

    return run


def demetropolis_z(problem: Problem, budget: int, seed: int) -> Run:
    """PyMC's differential evolution with a memory; tuning draws may serve where they suit."""
    started = perf_counter()
    draws = CHAINS_FACTOR * budget
    with problem.model() as model, _fast_compiling():
        meter = Meter(model.forward)
        idata = pm.sample(
            draws=draws - draws // 4,
            tune=draws // 4,
            step=pm.DEMetropolisZ(),
            random_seed=seed,
            discard_tuned_samples=False,
            **QUIET,
        )
    parts = [idata[group].to_dataset() for group in ("warmup_posterior", "posterior")]
    values = np.concatenate([problem.draws(part) for part in parts])
    evaluations = np.linspace(0, sum(meter.batches), len(values) + 1)[1:]
    return Run(
        [Trace(values, evaluations, evaluations, warm_up=True)],
        seconds=perf_counter() - started,
        forward_seconds=meter.seconds,
    )


def smc(problem: Problem, budget: int, seed: int) -> Run:
    """PyMC's sequential Monte Carlo with its default kernel, with numbers of particles that fit."""
    started = perf_counter()
    traces, seconds = [], 0.0
    for n in (100, 300, 1000, 2000, 5000):
        with problem.model() as model, _fast_compiling():
            meter = Meter(model.forward)
            idata = pm.sample_smc(draws=n, random_seed=seed, **QUIET)
        spent = sum(meter.batches)
        values = problem.draws(idata["posterior"].to_dataset())
        ones = np.ones(len(values))
        traces.append(Trace(values, spent * ones, spent / n * ones, growing=False))
        seconds += meter.seconds
        if 3 * spent > CHAINS_FACTOR * budget:
            break
    return Run(traces, seconds=perf_counter() - started, forward_seconds=seconds)


def numpyro_aies(problem: Problem, budget: int, seed: int) -> Run:
    """NumPyro's affine-invariant ensemble, with its default move, on the model compiled by JAX."""
    import jax
    from numpyro.infer import AIES, MCMC
    from pymc.sampling.jax import get_jaxified_logp

    started = perf_counter()
    jax.config.update("jax_enable_x64", True)
    assert problem.native is not None
    model = problem.native()
    log_density = get_jaxified_logp(model)
    point = model.initial_point()
    shapes = [np.shape(point[variable.name]) for variable in model.value_vars]
    sizes = [int(np.prod(shape)) for shape in shapes]

    def potential(u: Any) -> Any:
        parts = jax.numpy.split(u, np.cumsum(sizes)[:-1])
        return -log_density([p.reshape(s) for p, s in zip(parts, shapes, strict=True)])

    d = sum(sizes)
    n_walkers = max(32, 4 * d)
    rng = np.random.default_rng([seed, 2])
    walkers = (problem.start or pe.InverseProblem.from_model(model).sample_prior)(n_walkers, rng)
    steps = PEERS_FACTOR * budget // n_walkers
    mcmc = MCMC(
        AIES(potential_fn=potential),
        num_warmup=0,
        num_samples=steps,
        num_chains=n_walkers,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.PRNGKey(seed), init_params=jax.numpy.asarray(walkers))
    chain = np.asarray(mcmc.get_samples(group_by_chain=True)).swapaxes(0, 1)
    spent = np.repeat(n_walkers * np.arange(1, len(chain) + 1), n_walkers)
    rounds = np.repeat(2 * np.arange(1, len(chain) + 1), n_walkers)
    return Run(
        [Trace(chain.reshape(-1, d), spent, rounds, warm_up=True)],
        seconds=perf_counter() - started,
    )


_kalman = partial(ensemble, pe.EnsembleKalmanSampler)

SAMPLERS = {
    sampler.name: sampler
    for sampler in (
        Sampler("EKS", _kalman(adjust=False, roughness=True)),
        Sampler("EKS adjusted", _kalman(adjust=True)),
        Sampler("EKS paper", _kalman(scheme="paper")),
        Sampler("multiscale", multiscale()),
        Sampler("multiscale adjusted", multiscale(adjust=True)),
        Sampler("multiscale, 40 walkers", multiscale(walkers=40)),
        Sampler("multiscale paper", multiscale(scheme="paper")),
        Sampler("EGPS", gaussian_process()),
        Sampler("EGPS potential", gaussian_process(target="potential")),
        Sampler("EGPS adjusted", ensemble(pe.EnsembleGaussianProcessSampler, adjust=True)),
        Sampler("EGPS paper", ensemble(pe.EnsembleGaussianProcessSampler, scheme="paper")),
        Sampler(
            "ELS",
            ensemble(pe.EnsembleLangevinSampler, native=True, adjust=True),
            gradients=True,
        ),
        Sampler("emcee", emcee(factor=STRETCH_FACTOR), ours=False, requires="emcee"),
        Sampler("emcee DE", emcee("differential evolution"), ours=False, requires="emcee"),
        Sampler("emcee from EKS", emcee(start="ensemble Kalman"), ours=False, requires="emcee"),
        Sampler("DEMetropolisZ", demetropolis_z, ours=False),
        Sampler("SMC", smc, ours=False),
        Sampler("NUTS nutpie", nuts("nutpie"), ours=False, gradients=True, requires="nutpie"),
        Sampler("NUTS PyMC", nuts("pymc"), ours=False, gradients=True),
        Sampler(
            "NumPyro AIES",
            numpyro_aies,
            ours=False,
            gradients=True,
            requires="numpyro",
        ),
    )
}
"""The samplers by their names."""


def sample(problem: Problem, sampler: Sampler, budget: int, seed: int) -> Run:
    """Run a sampler in silence.

    Parameters
    ----------
    problem : Problem
    sampler : Sampler
    budget : int
        Evaluations that one of ours is to spend; others may spend more.
    seed : int
    """
    with silence():
        return sampler.run(problem, round(problem.share * budget), seed)


@contextmanager
def silence() -> Iterator[None]:
    """Keep warnings, and logs below errors, to themselves."""
    loggers = [logging.getLogger(name) for name in ("pymc", "pymc_ensemble", "emcee")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
