"""Hares and lynxes in Canada: a differential equation without gradients, sampled by ensembles.

    python examples/lynx_hare.py [--quick] [--seed SEED] [--output FILE]

The Lotka-Volterra equations are solved by SciPy, which gives no derivatives, so that NUTS cannot be
used. Four ensembles start from draws of the prior and find the posterior of all eight parameters;
the result is compared with a long run of NUTS on a version of the model that does have gradients,
and drawn over the data.
"""

import argparse
from pathlib import Path
from time import perf_counter

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pymc as pm

import pymc_ensemble as pe
from pymc_ensemble.gallery.lynx_hare import PELTS, YEARS, log_populations

PARAMETERS = ["alpha", "beta", "gamma", "delta", "initial", "sigma"]
SPECIES = {"hare": "#b5651d", "lynx": "#2f5d8a"}


def run(step_options, draws, seed):
    """Sample the black-box model, and count the solutions of the equations that it takes."""
    model = pe.gallery.lynx_hare()
    start = perf_counter()
    with model:
        idata = pm.sample(
            draws,
            step=pe.EnsembleKalmanSampler(**step_options),
            chains=4,
            cores=1,  # one solution takes less than a millisecond: processes would not pay, and
            # would keep their counts of solutions to themselves
            random_seed=seed,
        )
    return idata, model.forward.n_evaluations, perf_counter() - start


def comparison(idata, reference):
    """Compare a run with the reference, parameter by parameter.

    Returns
    -------
    dict
        ``{label: (mean error in posterior sd, sd ratio, R-hat)}``.
    """
    posterior = idata.posterior.dataset[PARAMETERS]
    mean, sd = (reference[PARAMETERS].sel(statistic=name, drop=True) for name in ("mean", "sd"))
    error = (posterior.mean(("chain", "draw")) - mean) / sd
    ratio = posterior.std(("chain", "draw")) / sd
    rhat = az.rhat(posterior)
    labels = [label for name in PARAMETERS for label in label_each(name, mean[name])]
    columns = [
        np.concatenate([np.ravel(statistic[name]) for name in PARAMETERS])
        for statistic in (error, ratio, rhat)
    ]
    return dict(zip(labels, zip(*columns, strict=True), strict=True))


def label_each(name, values):
    """One label for each element of a variable."""
    return [f"{name}[{s}]" for s in values.species.values] if values.ndim else [name]


def print_table(adjusted, plain, reference):
    """Print both runs beside the reference."""
    mean, sd = (reference[PARAMETERS].sel(statistic=name) for name in ("mean", "sd"))
    print(f"\n{'':14}{'NUTS reference':^21}{'adjusted (exact)':^28}{'plain (approximate)':^28}")
    run_header = f"{'error':>8} {'sd ratio':>9} {'R-hat':>7}   "
    print(f"{'':14}{'mean':>9} {'sd':>9}  {run_header}{run_header}")
    values = [np.concatenate([np.ravel(x[name]) for name in PARAMETERS]) for x in (mean, sd)]
    for label, m, s in zip(adjusted, *values, strict=True):
        runs = "".join(
            f"{error:+8.2f} {ratio:9.2f} {rhat:7.3f}   "
            for error, ratio, rhat in (adjusted[label], plain[label])
        )
        print(f"{label:14}{m:9.4f} {s:9.4f}  {runs}")
    print("\nerror: of the mean, in posterior standard deviations")


def draw_picture(idata, path, n_curves=1000):
    """Draw the posterior of the populations over the pelts, in time and in the phase plane."""
    posterior = az.extract(idata, num_samples=n_curves, random_seed=0)
    rates = [posterior[name].values for name in ("alpha", "beta", "gamma", "delta")]
    parameters = np.column_stack([*rates, posterior["initial"].values.T])
    years = np.linspace(YEARS[0], YEARS[-1], 401)
    curves = np.exp([log_populations(p, years) for p in parameters])
    # One random number for a whole curve leaves each year's law as it is, and the bands smooth.
    noise = np.random.default_rng(0).standard_normal((n_curves, 1, 2))
    pelts = curves * np.exp(posterior["sigma"].values.T[:, None] * noise)

    fig, (ax, phase) = plt.subplots(
        1, 2, figsize=(12, 4.6), width_ratios=[1.9, 1], layout="constrained"
    )
    for k, (species, color) in enumerate(SPECIES.items()):
        low, high = np.quantile(pelts[..., k], [0.05, 0.95], axis=0)
        ax.fill_between(years, low, high, color=color, alpha=0.13, lw=0)
        low, middle, high = np.quantile(curves[..., k], [0.05, 0.5, 0.95], axis=0)
        ax.fill_between(years, low, high, color=color, alpha=0.4, lw=0)
        ax.plot(years, middle, color=color, lw=1.8, label=species)
        ax.plot(YEARS, PELTS[:, k], "o", color=color, mec="white", mew=0.8, ms=6.5)
    ax.set(
        xlabel="year",
        ylabel="pelts, thousands",
        ylim=(0, 130),
        xlim=(YEARS[0] - 0.4, YEARS[-1] + 0.4),
        title="90% bands of the populations, and of the pelts",
    )
    ax.xaxis.set_major_locator(plt.MultipleLocator(5))
    ax.legend(frameon=False, loc="upper right")

    for curve in curves[:120]:
        phase.plot(*curve.T, color="0.35", alpha=0.07, lw=0.8)
    phase.plot(*np.quantile(curves, 0.5, axis=0).T, color="0.1", lw=1.5)
    points = phase.scatter(*PELTS.T, c=YEARS, cmap="viridis", ec="white", s=48, zorder=3)
    fig.colorbar(points, ax=phase, label="year", ticks=[1900, 1910, 1920])
    phase.set(xlabel="hare pelts, thousands", ylabel="lynx pelts, thousands", title="Phase plane")
    for axes in (ax, phase):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=110)
    plt.close(fig)


def main():
    """Run the example from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a third of the draws")
    parser.add_argument("--seed", type=int, default=1900)
    parser.add_argument("--output", type=Path, default=Path("outputs/lynx_hare.png"))
    options = parser.parse_args()
    draws = 500 if options.quick else 1800

    reference = pe.gallery.lynx_hare().reference
    print("Adjusted ensemble Kalman sampler: exact, as ensembles meet a Metropolis test.")
    idata, calls, seconds = run({"adjust": True}, draws, options.seed)
    print("Plain ensemble Kalman sampler: an approximation, as it makes no such test.")
    plain, plain_calls, plain_seconds = run({"adjust": False}, draws, options.seed)

    print_table(comparison(idata, reference), comparison(plain, reference), reference)
    print(f"solutions of the equations: {calls} in {seconds:.0f} s (adjusted),", end=" ")
    print(f"{plain_calls} in {plain_seconds:.0f} s (plain)")
    draw_picture(idata, options.output)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
