"""Samplers of other packages, each run as its documentation says."""

from time import perf_counter
from typing import Any

import numpy as np
import pymc as pm

import pymc_ensemble as pe
from pymc_ensemble.benchmark.metrics import Array
from pymc_ensemble.benchmark.ours import (
    CHAINS_FACTOR,
    QUIET,
    Runner,
    columns,
    fast_compiling,
    gradient_price,
    sampled,
)
from pymc_ensemble.benchmark.problems import Problem
from pymc_ensemble.benchmark.traces import Meter, Run, Trace

PEERS_FACTOR = 10
"""How many times more evaluations than ours the ensembles of other packages may spend."""

STRETCH_FACTOR = 30
"""The same for emcee with its defaults, the main sampler of the comparison."""

NUTS_DRAWS = 2000


def emcee(moves: str = "stretch", start: str = "prior", factor: int = PEERS_FACTOR) -> Runner:
    """Affine-invariant walkers in unconstrained coordinates: 4 d of them, at least 32.

    Parameters
    ----------
    moves : {"stretch", "differential evolution"}
        emcee's default move, or the mixture of 80% differential evolution and 20% snooker moves
        that its documentation proposes.
    start : {"prior", "ensemble Kalman"}
        Where walkers start. Either in the prior, or where the problem starts its ensembles. Or from
        the last sweep of an adjusted ensemble Kalman sampler, whose evaluations count, too.
    factor : int
        How many times more evaluations than ours it may spend.
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
            kalman, _, _ = sampled(
                problem, pe.EnsembleKalmanSampler, size, seed, adjust=True, ensemble_size=size
            )
            draws, evaluations, rounds = columns(kalman.traces[0])
            walkers = draws[-n_walkers:]
            kalman_evaluations, kalman_rounds = int(evaluations[-1]), int(rounds[-1])
            forward_seconds = kalman.forward_seconds
        model = problem.model()
        with model, fast_compiling():
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
                for _ in range(100):  # walkers must start where the density is positive
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


def nuts(package: str) -> Runner:
    """NUTS with its default warm-up, on the model that has gradients.

    Each leapfrog step counts as one evaluation, times the price of a gradient.
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
    """PyMC's differential evolution with a memory. Its tuning draws may count as draws."""
    started = perf_counter()
    draws = CHAINS_FACTOR * budget
    with problem.model() as model, fast_compiling():
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
    """PyMC's sequential Monte Carlo with its default kernel, and particles as the budget allows."""
    started = perf_counter()
    traces, seconds = [], 0.0
    for n in (100, 300, 1000, 2000, 5000):
        with problem.model() as model, fast_compiling():
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
