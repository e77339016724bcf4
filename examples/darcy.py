"""Conductivity of a plate from its temperatures: the posterior mode first, then the posterior.

    python examples/darcy.py [--quick] [--seed SEED] [--output FILE]

The forward map solves an elliptic partial differential equation and gives no gradients. An ensemble
and a descent with measured gradients find the maximum a posteriori point of its 16 parameters; the
multiscale sampler then tells how certain that is. Both are drawn beside the truth.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pymc as pm

import pymc_ensemble as pe
from pymc_ensemble.gallery.darcy import CELLS, OBSERVED, log_conductivity


def find_mode(seed):
    """Find the posterior mode, and count the solutions of the equation that it takes."""
    model = pe.gallery.darcy()
    with model:
        mode = pe.find_MAP_ensemble(random_seed=seed)
    return mode, model.forward.n_evaluations


def sample(seed, steps):
    """Sample the posterior by ten walkers in two chains."""
    model = pe.gallery.darcy()
    with model:
        idata = pm.sample(
            5 * steps,
            step=pe.MultiscaleSampler(walkers=5),
            chains=2,
            cores=1,
            random_seed=seed,
        )
    return idata, model.forward.n_evaluations


def draw_picture(mode, idata, truth, path):
    """Draw the fields, what is not known of them, and the way to the mode."""
    draws = log_conductivity(idata.posterior["u"].stack(sample=("chain", "draw")).values.T)
    fields = {
        "truth": log_conductivity(truth),
        "posterior mode": log_conductivity(mode["u"]),
        "posterior mean": draws.mean(0),
        "posterior standard deviation": draws.std(0),
    }
    shown = np.stack([fields[name] for name in ("truth", "posterior mode", "posterior mean")])
    limits = {"vmin": shown.min(), "vmax": shown.max(), "cmap": "viridis"}
    fig, axes = plt.subplots(1, 5, figsize=(17, 3.6), layout="constrained")
    for ax, (name, field) in zip(axes, fields.items(), strict=False):
        style = {"cmap": "magma"} if name.endswith("deviation") else limits
        image = ax.imshow(field.T, origin="lower", extent=(0, 1, 0, 1), **style)
        ax.set(title=name, xticks=[], yticks=[])
        if name in ("posterior mean", "posterior standard deviation"):
            fig.colorbar(image, ax=ax, shrink=0.85, label="log conductivity")
    sensors = OBSERVED / CELLS
    axes[0].plot(*np.meshgrid(sensors, sensors), ".", color="white", ms=2)
    history = mode.history
    axes[4].plot(history.n_evals, history.potential - history.potential.min(), "o-", color="0.2")
    axes[4].set(
        yscale="log",
        xlabel="solutions of the equation",
        ylabel="negative log density above its minimum",
        title="descent to the mode",
    )
    axes[4].spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=110)
    plt.close(fig)


def main():
    """Run the example from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the draws")
    parser.add_argument("--seed", type=int, default=1856)
    parser.add_argument("--output", type=Path, default=Path("outputs/darcy.png"))
    options = parser.parse_args()

    model = pe.gallery.darcy()
    mode, calls = find_mode(options.seed)
    print(f"posterior mode: {calls} solutions of the equation, converged: {mode.converged}")
    idata, sampling_calls = sample(options.seed, steps=20 if options.quick else 200)
    reference = model.reference["u"]
    mean, sd = (reference.sel(statistic=name).values for name in ("mean", "sd"))
    posterior = idata.posterior["u"]
    error = (posterior.mean(("chain", "draw")).values - mean) / sd
    ratio = posterior.std(("chain", "draw")).values / sd
    print(f"posterior: {sampling_calls} solutions of the equation")
    print(f"mean error {np.sqrt((error**2).mean()):.2f} posterior sd")
    print(f"sd ratio {ratio.min():.2f} to {ratio.max():.2f}")
    draw_picture(mode, idata, model.truth["u"], options.output)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
