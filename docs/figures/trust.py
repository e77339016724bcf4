"""Draw the figure of docs/trust.md.

    python docs/figures/trust.py

Most of the time, a few minutes, is for the 200 simulations of the last panel.
"""

import logging
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pymc as pm
import pytensor

import pymc_ensemble as pe

IMAGES = Path(__file__).parents[1] / "images"
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "font.size": 9,
}


def simulate(log_amplitude, log_rate):
    """Forward map of the page."""
    return np.exp(log_amplitude - np.exp(log_rate) * np.array([1.0, 3.0]))


def sample(model, step, draws=1000, **kwargs):
    """As on the page."""
    with model:
        return pm.sample(
            draws, step=step, chains=4, cores=1, random_seed=1, progressbar=False, **kwargs
        )


def main():
    """Draw four panels."""
    pytensor.config.mode = "FAST_COMPILE"
    warnings.simplefilter("ignore")
    logging.getLogger("pymc").setLevel(logging.ERROR)
    forward = pe.forward_model(simulate, output_shape=(2,))
    with pm.Model() as decay:
        log_amplitude = pm.Normal("log_amplitude")
        log_rate = pm.Normal("log_rate")
        pm.Normal("y", forward(log_amplitude, log_rate), 0.2, observed=[0.6, 0.3])

    plt.rcParams.update(STYLE)
    figure, axes = plt.subplots(2, 2, figsize=(9, 7.5), layout="constrained")
    weights, path, spread, coverage = axes.flat

    pe.plots.weights(sample(decay, pe.EnsembleKalmanSampler(adjust=False)), ax=weights)
    far = {"log_amplitude": 3.0, "log_rate": 2.0}
    rng = np.random.default_rng(1)
    start = {name: value + 0.3 * rng.standard_normal(100) for name, value in far.items()}
    step = pe.EnsembleKalmanSampler(adjust=True, initial_ensemble=start)
    pe.plots.path(sample(decay, step, discard_tuned_samples=False), ax=path)
    path.set_title("a far-off start")
    small = sample(
        pe.gallery.linear_gaussian(20), pe.EnsembleKalmanSampler(adjust=False, ensemble_size=23)
    )
    pe.plots.spread(small, ["u[0]", "u[19]"], ax=spread)
    spread.set_title("23 particles in 20 dimensions")
    calibration = pe.coverage(decay, lambda: pe.EnsembleKalmanSampler(adjust=False), random_seed=1)
    print(calibration)
    pe.plots.coverage(calibration, ax=coverage)
    coverage.set_title(f"plain sampler, 200 data sets: {calibration.verdict}")
    figure.savefig(IMAGES / "trust.png", dpi=100)


if __name__ == "__main__":
    main()
