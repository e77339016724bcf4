"""What the package itself costs, next to the forward evaluations.

    python benchmarks/overhead.py

prints (a) the arithmetic of one sweep, without forward evaluations, and (b) the time for which a
draw is handed out and recorded, as a ratio to a step method that does nothing. Everything runs on
one core. Times are CPU times, which vary from machine to machine; ratios come from runs that
alternate.
"""

import argparse
import logging
from functools import partial
from statistics import median
from time import process_time

import numpy as np
import pymc as pm
from pymc.step_methods.compound import BlockedStep
from threadpoolctl import threadpool_limits

import pymc_ensemble as pe
from pymc_ensemble.samplers.kalman.sampler import EnsembleKalman, PublishedKalman
from pymc_ensemble.step_methods.draws import NO_STATS

ENSEMBLE_SIZE, DIMENSION, OUTPUTS = 1000, 10, 100
SAMPLERS = {
    "default": EnsembleKalman,
    "adjust=True": partial(EnsembleKalman, adjust=True),
    "rough=True": partial(EnsembleKalman, rough=True),
    'scheme="paper"': PublishedKalman,
}


def linear_model(dimension, outputs):
    """Linear map of `dimension` parameters to `outputs` noisy data."""
    rng = np.random.default_rng(1)
    A = rng.normal(size=(outputs, dimension)) / np.sqrt(dimension)
    with pm.Model() as model:
        u = pm.Normal("u", shape=dimension)
        pm.Normal("y", A @ u, 0.5, observed=rng.normal(size=outputs))
    return model


def poisson_model(dimension, outputs):
    """Counts with a log-linear rate: the forces of particles differ from the linear ones."""
    rng = np.random.default_rng(1)
    A = rng.normal(size=(outputs, dimension)) / np.sqrt(dimension)
    with pm.Model() as model:
        u = pm.Normal("u", shape=dimension)
        pm.Poisson("y", pm.math.exp(A @ u), observed=rng.poisson(np.exp(A @ np.ones(dimension))))
    return model


def seconds_per_sweep(model, make, sweeps=20):
    """Median time that sampler, loss and prior take for a sweep."""
    problem, rng = pe.InverseProblem.from_model(model), np.random.default_rng(2)
    sampler = make(problem, ensemble_size=ENSEMBLE_SIZE)
    state = sampler.start(problem.sample_prior(ENSEMBLE_SIZE, rng), redraw=True)
    seconds, spent = [], 0.0
    while len(seconds) < sweeps:
        started = process_time()
        points, pending = sampler.ask(state, rng)
        spent += process_time() - started
        evaluations = problem.evaluate(points)
        started = process_time()
        state, info = sampler.tell(state, pending, evaluations)
        spent += process_time() - started
        if info.complete:
            if info.snapshot is not None:
                seconds.append(spent)
            spent = 0.0
    return median(seconds)


class TrivialStep(BlockedStep):
    """Hands out the same point again and again, with as many stats as an ensemble."""

    name = "trivial"
    default_tune_steps = 0
    stats_dtypes_shapes = pe.EnsembleKalmanSampler.stats_dtypes_shapes

    def __init__(self, vars=None, *, model=None, rng=None, blocked=True):
        self.vars = pm.modelcontext(model).value_vars
        self.names = [v.name for v in self.vars]
        self.rng, self.tune = rng, True

    def step(self, point):
        """Copy the point."""
        values = {name: point[name].copy() for name in self.names}
        return values, [NO_STATS.copy()]


class TimedStep(pe.EnsembleKalmanSampler):
    """Knows the time that it spent in computing sweeps."""

    computing = 0.0

    def _compute_block(self):
        started = process_time()
        block = super()._compute_block()
        self.computing += process_time() - started
        return block

    def _burn_in_once(self):
        started = process_time()
        super()._burn_in_once()
        self.computing += process_time() - started


def seconds_per_draw(model, sweeps, repeats=7):
    """Time of `pm.sample` per draw, without computing sweeps: trivial step method, and ours."""
    draws = sweeps * ENSEMBLE_SIZE

    def run(step, draws):
        started = process_time()
        with model:
            pm.sample(
                draws=draws,
                tune=20,
                chains=1,
                cores=1,
                step=step,
                random_seed=1,
                progressbar=False,
                compute_convergence_checks=False,
                quiet=True,
            )
        return process_time() - started

    with model:
        trivial, ours = TrivialStep(), TimedStep(ensemble_size=ENSEMBLE_SIZE)

    def handing_out(draws):
        before = ours.computing
        return run(ours, draws) - (ours.computing - before)

    times = []
    for _ in range(repeats + 1):
        # what does not depend on the number of draws is paid by a single one, too
        t = run(trivial, draws) - run(trivial, 1)
        o = handing_out(draws) - handing_out(1)
        times.append((t / draws, o / draws))
    times = times[1:]  # the first run compiles
    return (
        median(t for t, _ in times),
        median(o for _, o in times),
        median(o / t for t, o in times),
    )


def main():
    """Print both tables."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    for name in ("pymc", "pymc_ensemble"):
        logging.getLogger(name).setLevel(logging.ERROR)
    print(f"(a) Arithmetic per sweep, J={ENSEMBLE_SIZE}, d={DIMENSION}, K={OUTPUTS}")
    for name, model in (("linear", linear_model), ("Poisson", poisson_model)):
        for shown, make in SAMPLERS.items():
            seconds = seconds_per_sweep(model(DIMENSION, OUTPUTS), make)
            print(f"    {name:8} {shown:16} {1e3 * seconds:6.2f} ms")
    print("(b) Time per recorded draw, cores=1, no bar")
    for dimension, sweeps in ((10, 20), (10, 5), (100, 20)):
        trivial, ours, ratio = seconds_per_draw(linear_model(dimension, 100), sweeps)
        print(
            f"    d={dimension:<4} {sweeps:3} sweeps: trivial step {1e6 * trivial:5.1f} us, "
            f"ensemble {1e6 * ours:5.1f} us, ratio {ratio:.2f}"
        )


if __name__ == "__main__":
    with threadpool_limits(limits=1):
        main()
