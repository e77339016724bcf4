"""Draw the figures of docs/gaussian_process.md.

    python docs/figures/gaussian_process.py [surface] [paper]

Without names both are drawn, into docs/images. This takes a few minutes.
"""

import argparse
import logging
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pymc as pm

import pymc_ensemble as pe
from pymc_ensemble import gallery

IMAGES = Path(__file__).parents[1] / "images"
BLUE, ORANGE, GREEN, GRAY = "#0072b2", "#d55e00", "#009e73", "0.55"  # told apart by all eyes
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "font.size": 10,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
J = 200
SWEEPS = 60  # of the baselines after their burn-in


# -- the problems of the paper, with gradients for the sampler that needs them ---------------------


def rough_native():
    """Problem 6.1 of the paper in PyTensor."""
    with pm.Model() as model:
        u = pm.Normal("u", 0.0, np.sqrt(0.05), shape=2)
        outputs = np.array([-1.0, 2.0]) * u + pm.math.sin(20 * np.pi * u)
        pm.Normal("y", outputs, np.sqrt(0.05), observed=[1.0, 2.0])
    return model


def modes_native():
    """Problem 6.3 of the paper in PyTensor."""
    with pm.Model() as model:
        u = pm.Normal("u", 0.0, np.sqrt(0.1), shape=2)
        wells = (u**2 - 1) ** 2 + 0.1 * pm.math.sin(20 * np.pi * u)
        pm.Normal("y", wells.sum(), np.sqrt(0.05), observed=0.0)
    return model


def rough_potential(u, amplitude=1.0):
    """Potential of problem 6.1, without the oscillation for amplitude 0."""
    outputs = np.array([-1.0, 2.0]) * u + amplitude * np.sin(20 * np.pi * u)
    return (((outputs - [1.0, 2.0]) ** 2).sum(-1) + (u**2).sum(-1)) / 0.1


def modes_potential(u):
    """Smooth potential of problem 6.3."""
    return ((u**2 - 1) ** 2).sum(-1) ** 2 / 0.1 + (u**2).sum(-1) / 0.2


def sample(model, step, draws, tune=None, seed=1):
    """Run of one chain."""
    with model, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the baselines do not always pass their tests
        return pm.sample(
            step=step,
            draws=draws,
            tune=tune,
            chains=1,
            cores=1,
            random_seed=seed,
            progressbar=False,
            compute_convergence_checks=False,
        )


def grid(low, high, n=301):
    """Points of a square or rectangle, shape (n, n, 2)."""
    axes = [np.linspace(a, b, n) for a, b in zip(low, high, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1)


# -- figures ---------------------------------------------------------------------------------------


def surface():
    """How the surrogate sees the rough potential, and where it looks."""
    model = gallery.linear_multiscale(data=(1, 2))
    start = np.random.default_rng(1).random((J, 2))
    with model:
        step = pe.EnsembleGaussianProcessSampler(initial_ensemble=start)
    idata = sample(model, step, 5 * J)
    learned, problem = step.learned, step._bound.problem
    posterior = learned.bound(problem).posterior
    mean, sd = np.array([-0.5, 0.8]), np.array([0.158114, 0.1])
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    line = np.stack([np.full(801, mean[0]), np.linspace(0.3, 1.3, 801)], 1)
    x = posterior.whitening.coordinates(line)
    seen, width = posterior.potential(x)[0], posterior.loss_sd(x)
    rough, smooth = rough_potential(line), rough_potential(line, 0.0)
    inside = np.abs(line[:, 1] - mean[1]) < sd[1]
    rough, smooth = rough - smooth.min(), smooth - smooth.min()
    seen = seen - seen[inside].mean() + smooth[inside].mean()
    left.plot(line[:, 1], rough, color=GRAY, lw=0.8, label="what is evaluated")
    left.plot(line[:, 1], smooth, color=ORANGE, label="smooth posterior behind it")
    left.plot(line[:, 1], seen, color=BLUE, label="surrogate, ± 2 sd")
    left.fill_between(line[:, 1], seen - 2 * width, seen + 2 * width, color=BLUE, alpha=0.2, lw=0)
    left.set(ylim=(-25, 55), xlabel="$u_2$, with $u_1$ at its mean", ylabel="$V$ above its minimum")
    left.legend(loc="upper center")
    points = learned.archive.U
    right.scatter(*points.T, s=3, color=GRAY, label="evaluations")
    right.scatter(*idata.posterior["u"].values[0, ::5].T, s=6, color=BLUE, label="draws")
    U = grid([-1.6, -0.2], [1.1, 1.5])
    levels = [-4.6, -0.5]
    right.contour(
        U[..., 0],
        U[..., 1],
        -rough_potential(U, 0.0) + smooth_minimum(),
        levels=levels,
        colors=ORANGE,
        linestyles="solid",
    )
    right.set(xlabel="$u_1$", ylabel="$u_2$", xlim=(-1.8, 1.3), ylim=(-0.6, 1.8))
    right.legend(loc="lower right")
    figure.savefig(IMAGES / "gaussian_process_surface.png", dpi=150)
    print(f"{len(points)} evaluations, surrogate error {learned.surrogate_error.max():.2f} sd")


def smooth_minimum():
    """Least value of the smooth potential of problem 6.1."""
    return rough_potential(np.array([-0.5, 0.8]), 0.0)


def paper():
    """Figures 3, 5 and 6 of the paper: three problems, three samplers."""
    rng = np.random.default_rng(1)
    unit, square = rng.random((J, 2)), rng.uniform(-2, 2, (J, 2))
    box = np.log(rng.uniform([27, 2.25], [29, 3.5], (J, 2)))
    rows = [
        (
            "linear, rough",
            gallery.linear_multiscale(data=(1, 2)),
            rough_native(),
            unit,
            ([-1.3, 0.2], [0.6, 1.4]),
            lambda u: rough_potential(u, 0.0),
            "u",
        ),
        ("Lorenz 63", gallery.lorenz63(), None, box, ([27.2, 2.48], [28.4, 2.74]), None, "rb"),
        (
            "four modes, rough",
            gallery.four_modes(),
            modes_native(),
            square,
            ([-1.6, -1.6], [1.6, 1.6]),
            modes_potential,
            "u",
        ),
    ]
    figure, axes = plt.subplots(3, 3, figsize=(10, 9.5))
    titles = ("EKS, published scheme", "ELS, with gradients", "EGPS")
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title)
    for row, (name, model, native, start, (low, high), potential, names) in zip(
        axes, rows, strict=True
    ):
        steps = [
            (model, pe.EnsembleKalmanSampler(scheme="paper", initial_ensemble=start), 200),
            (
                native,
                None
                if native is None
                else pe.EnsembleLangevinSampler(initial_ensemble=start, model=native),
                1000,
            ),
            (model, pe.EnsembleGaussianProcessSampler(initial_ensemble=start), None),
        ]
        for ax, (target, step, tune), title in zip(row, steps, titles, strict=True):
            ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
            if step is None:
                ax.text(
                    0.5,
                    0.5,
                    "no gradient:\nchaotic time averages",
                    ha="center",
                    va="center",
                    transform=ax.transAxes,
                    color=GRAY,
                )
                continue
            idata = sample(target, step, SWEEPS * J if tune else 5 * J, tune)
            last = pe.to_ensemble(idata).posterior.isel(chain=0, sweep=-1)
            draws = (
                last["u"].values if names == "u" else np.stack([last[n].values for n in names], 1)
            )
            ax.scatter(*draws.T, s=5, color=BLUE)
            count = int(idata.sample_stats["n_evals"].max())
            ax.set_xlabel(f"{count} evaluations")
            print(f"{name}, {title}: {count} evaluations, mean {draws.mean(0)}, sd {draws.std(0)}")
            if potential is not None:
                U = grid(low, high)
                V = potential(U)
                ax.contour(
                    U[..., 0],
                    U[..., 1],
                    V - V.min(),
                    levels=[0.5, 2, 4.6],
                    colors=ORANGE,
                    linewidths=0.9,
                )
            else:
                reference = model.reference
                for n, draw_line in zip(names, (ax.axvline, ax.axhline), strict=True):
                    m, s = (float(reference[n].sel(statistic=k)) for k in ("mean", "sd"))
                    draw_line(m, color=ORANGE, lw=0.9)
                    for side in (-2, 2):
                        draw_line(m + side * s, color=ORANGE, lw=0.6, ls=":")
        row[0].set_ylabel(name)
    figure.savefig(IMAGES / "gaussian_process_paper.png", dpi=120)


FIGURES = {f.__name__: f for f in (surface, paper)}


def main():
    """Draw the figures named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=", ".join(FIGURES))
    logging.getLogger("pymc_ensemble").setLevel(logging.WARNING)
    logging.getLogger("pymc").setLevel(logging.WARNING)
    with plt.rc_context(STYLE):
        for name in parser.parse_args().figures or FIGURES:
            FIGURES[name]()


if __name__ == "__main__":
    main()
