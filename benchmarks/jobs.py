"""Three jobs as new users have them: what they cost, and what is on the screen.

    python benchmarks/jobs.py [--jobs ode emcee program] [--cores 2]

1. `ode`: a SciPy ODE with an unknown noise level.
2. `emcee`: a log density that was written for emcee, around a simulator that takes its time (0.2 s
   there, 0.005 s here). Only its simulator is kept.
3. `program`: an external program with eight parameters from 1e-4 to 1e9, errors that are an AR(1)
   process, and a region in which it crashes.

Each line tells the evaluations, how far a posterior mean is at most from the truth with which data
were made, in posterior standard deviations, seconds of processor time, children included, and the
verdict of `diagnose`. What else is on the screen is what a user sees.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from scipy.integrate import solve_ivp

import pymc_ensemble as pe
from pymc_ensemble.forward import ExternalProgram

OPTIONS = {"draws": 1000, "chains": 2, "random_seed": 1}


def ode() -> tuple[pm.Model, dict[str, float]]:
    """Predator and prey, with an unknown noise level."""
    truth = {"growth": 1.1, "predation": 0.4, "death": 0.4, "noise": 0.3}
    times = np.linspace(1, 20, 20)

    def solve(growth: float, predation: float, death: float) -> np.ndarray:
        def slope(t: float, y: np.ndarray) -> list[float]:
            return [y[0] * (growth - predation * y[1]), y[1] * (0.1 * y[0] - death)]

        return solve_ivp(slope, (0, 20), [10, 5], t_eval=times, rtol=1e-6).y.ravel()

    exact = solve(*list(truth.values())[:3])
    data = exact + truth["noise"] * np.random.default_rng(1).standard_normal(exact.size)
    forward = pe.forward_model(solve, output_shape=(exact.size,))
    with pm.Model() as model:
        names = list(truth)[:3]
        u = [pm.LogNormal(name, np.log(0.6), 0.5) for name in names]
        noise = pm.HalfNormal("noise", 1.0)
        pm.Normal("y", forward(*u), noise, observed=data)
    return model, truth


def emcee() -> tuple[pm.Model, dict[str, float]]:
    """A spectrum of two lines, from a simulator that takes its time."""
    truth = {"position": 0.4, "width": 0.1, "height": 2.0}
    x = np.linspace(0, 1, 40)

    def simulate(position: float, width: float, height: float) -> np.ndarray:
        time.sleep(0.005)
        first = np.exp(-0.5 * ((x - position) / width) ** 2)
        return height * (first + 0.3 * np.exp(-0.5 * ((x - position - 0.3) / width) ** 2))

    exact = simulate(**truth)
    data = exact + 0.1 * np.random.default_rng(2).standard_normal(x.size)
    forward = pe.forward_model(simulate, output_shape=(x.size,))
    with pm.Model() as model:
        position = pm.Uniform("position", 0, 1)
        width = pm.LogNormal("width", np.log(0.1), 0.5)
        height = pm.HalfNormal("height", 5.0)
        pm.Normal("y", forward(position, width, height), 0.1, observed=data)
    return model, truth


PROGRAM = """
import math, os, signal
p = [float(word) for word in open("input").read().split()]
if p[1] > 3e9:
    print("mesh is inverted", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
scaled = [math.log(v / s) for v, s in zip(p, (1e-4, 1e9, 1e-2, 1.0, 1e2, 1e4, 1e6, 10.0))]
with open("output", "w") as file:
    for k in range(24):
        t = k / 23
        y = sum(c * math.cos(math.pi * j * t) for j, c in enumerate(scaled))
        print(y + 0.1 * scaled[0] * scaled[1], file=file)
"""
SCALES = (1e-4, 1e9, 1e-2, 1.0, 1e2, 1e4, 1e6, 10.0)


def program() -> tuple[pm.Model, dict[str, float]]:
    """Eight parameters of very different size, and errors with a memory."""
    truth = {f"p{k}": scale * 1.2 for k, scale in enumerate(SCALES)}

    def write(folder: Path, *inputs: float) -> None:
        (folder / "input").write_text(" ".join(repr(float(value)) for value in inputs))

    def read(folder: Path) -> np.ndarray:
        return np.array((folder / "output").read_text().split(), dtype=float)

    external = ExternalProgram([sys.executable, "-S", "-c", PROGRAM], write, read)
    exact, rng = external(*truth.values()), np.random.default_rng(3)
    errors = np.zeros(exact.size)
    for k in range(exact.size):
        errors[k] = (0.6 * errors[k - 1] if k else 0.0) + 0.1 * rng.standard_normal()
    lags = np.abs(np.subtract.outer(np.arange(exact.size), np.arange(exact.size)))
    forward = pe.forward_model(external, output_shape=exact.shape, executor="threads")
    with pm.Model() as model:
        u = [pm.LogNormal(f"p{k}", np.log(scale), 0.5) for k, scale in enumerate(SCALES)]
        memory = pm.Beta("memory", 4, 4)
        noise = pm.HalfNormal("noise", 0.3)
        covariance = noise**2 / (1 - memory**2) * pt.power(memory, lags)
        pm.MvNormal("y", forward(*u), covariance, observed=exact + errors)
    return model, truth


JOBS: dict[str, Callable[[], tuple[pm.Model, dict[str, float]]]] = {
    "ode": ode,
    "emcee": emcee,
    "program": program,
}


def processor_time() -> float:
    """Seconds of this process and of its children that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def main() -> None:
    """Run the jobs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--jobs", nargs="*", default=list(JOBS), choices=list(JOBS))
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--adjust", action="store_true", help="adjust=True, and not the default")
    arguments = parser.parse_args()
    options = {"adjust": True} if arguments.adjust else {}
    for name in arguments.jobs:
        model, truth = JOBS[name]()
        spent = processor_time()
        with model:
            step = pe.EnsembleKalmanSampler(**options)
            idata = pm.sample(step=step, cores=arguments.cores, **OPTIONS)
        diagnosis = pe.diagnose(idata, model=model)
        spent = processor_time() - spent
        stats, errors = idata.sample_stats, []
        for variable, value in truth.items():
            draws = idata.posterior[variable].to_numpy()
            errors.append(abs(draws.mean() - value) / draws.std())
        evaluations, failed = (int(stats[n].max("draw").sum()) for n in ("n_evals", "n_failed"))
        print(
            f"{name}: {evaluations} evaluations, {failed} failed, truth within {max(errors):.1f} "
            f"sd, {spent:.0f} s of processor time; {diagnosis.headline}",
            flush=True,
        )


if __name__ == "__main__":
    main()
