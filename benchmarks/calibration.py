"""Which samplers are calibrated on a curved problem, by simulation.

    python benchmarks/calibration.py [--simulations 200] [--samplers NAME ...] [--jobs 1]
                                     [--figure FILE]

draws the two parameters of an exponential decay from their prior and data with much noise from the
model, samples the posterior, and sees where the parameters lie among the draws: again and again. A
sampler that is calibrated keeps all of its curves in the bands. The four samplers of the default
take some ten minutes on one core.
"""

import argparse
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from time import perf_counter

import numpy as np
import pymc as pm
import pytensor

import pymc_ensemble as pe

TIMES = np.linspace(0.2, 4, 12)
NOISE = 0.3


def decay(u):
    """Outputs of all particles at once, shape (J, 12)."""
    return np.exp(u[..., :1] - np.exp(u[..., 1:]) * TIMES)


def model():
    """Exponential decay with much noise: a curved posterior of two parameters."""
    pytensor.config.mode = "FAST_COMPILE"  # of workers, too
    forward = pe.forward_model(decay, output_shape=(12,))
    with pm.Model() as model:
        log_amplitude = pm.Normal("log_amplitude")
        log_rate = pm.Normal("log_rate")
        mu = forward(pm.math.stack([log_amplitude, log_rate]))
        pm.Normal("y", mu, NOISE, observed=np.zeros(12))
    return model


SAMPLERS = {
    "EKS": lambda: pe.EnsembleKalmanSampler(adjust=False),
    "EKS, adjusted": lambda: pe.EnsembleKalmanSampler(adjust=True),
    "multiscale": lambda: pe.MultiscaleSampler(adjust=False, walkers=10),
    "EGPS": lambda: pe.EnsembleGaussianProcessSampler(),
    "multiscale, adjusted": lambda: pe.MultiscaleSampler(walkers=10, adjust=True),
    "EGPS, adjusted": lambda: pe.EnsembleGaussianProcessSampler(adjust=True),
}


def draw(results, file):
    """Draw the curves of all samplers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(3, len(results))
    rows = -(-len(results) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.2 * columns, 3.3 * rows), squeeze=False, layout="constrained"
    )
    for ax, (name, result) in zip(axes.flat, results.items(), strict=False):
        pe.plots.coverage(result, ax=ax)
        ax.set_title(f"{name}: {result.verdict}", fontsize="medium")
    figure.savefig(file, dpi=110)


def main():
    """Print verdicts, and what is behind them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=200)
    parser.add_argument("--samplers", nargs="*", default=list(SAMPLERS)[:4], choices=list(SAMPLERS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--figure")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    workers = nullcontext()
    if options.jobs > 1:
        workers = ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn"))
    results = {}
    with workers as executor:
        for name in options.samplers:
            started = perf_counter()
            result = results[name] = pe.coverage(
                model,
                SAMPLERS[name],
                simulations=options.simulations,
                executor=executor,
                draws=500,
                random_seed=options.seed,
            )
            seconds = perf_counter() - started
            told = result.data["simulations"].dataset
            ranks = result.data["prior_sbc"].dataset
            print(f"\n{name}: {result}")
            for parameter in ranks:
                mean = float(ranks[parameter].mean()) - 0.5
                error = 1 / np.sqrt(12 * result.finished)
                print(f"mean rank of {parameter}: {mean:+.3f} from 1/2, {mean / error:+.1f} se")
            print(
                f"{told['n_evals'].mean().item():.0f} evaluations and "
                f"{told['n_draws'].mean().item():.0f} independent draws a simulation, density "
                f"of the model in {told['by_lp'].mean().item():.0%}, {seconds:.0f} s",
                flush=True,
            )
            if result.finished != options.simulations:
                raise SystemExit(f"{options.simulations - result.finished} simulations failed")
    if options.figure:
        draw(results, options.figure)


if __name__ == "__main__":
    main()
