"""Draw the pictures of the front page: the three samplers at work.

    python docs/figures/landing.py

They are drawn into docs/images. This takes a minute.
"""

from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pymc as pm

import pymc_ensemble as pe
from pymc_ensemble.samplers.kalman.sampler import EnsembleKalman
from pymc_ensemble.samplers.multiscale.sampler import Multiscale

IMAGES = Path(__file__).parents[1] / "images"
BLUE, ORANGE, GRAY = "#0072b2", "#d55e00", "0.55"  # told apart by all eyes
SHADES = "Blues"


def inverse_problem(forward, data, noise):
    """Inverse problem of two parameters with a standard normal prior."""
    prior = (np.zeros(2), np.eye(2))
    return pe.InverseProblem(forward, prior=prior, data=data, noise=noise, vectorized=True)


def rounds(problem, sampler, size, seed):
    """Points and ensembles of a run, round by round, until its caller has seen enough."""
    rng = np.random.default_rng(seed)
    state = sampler.start(problem.sample_prior(size, rng), redraw=True)
    while True:
        points, pending = sampler.ask(state, rng)
        state, info = sampler.tell(state, pending, problem.evaluate(points))
        yield points, state, info


def shade(ax, potential, low, high):
    """Shade a density on a rectangle."""
    axes = [np.linspace(a, b, 301) for a, b in zip(low, high, strict=True)]
    grid = np.stack(np.meshgrid(*axes), -1)
    V = potential(grid.reshape(-1, 2)).reshape(301, 301)
    density = np.exp(V.min() - V)
    ax.contourf(*axes, density, levels=np.linspace(0.03, 1, 9), cmap=SHADES, alpha=0.5)
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))


def square(name):
    """Picture without frame and ticks, and what saves it."""
    figure, ax = plt.subplots(figsize=(4, 4), layout="constrained")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_color("0.85")

    def save():
        path = IMAGES / f"landing_{name}.png"
        figure.savefig(path, dpi=110)
        plt.close(figure)
        print(path)

    return ax, save


def potential_of(problem):
    """Potential of many points at once."""

    def potential(U):
        return problem.loss(problem.forward(U)) + problem.prior_potential(U)

    return potential


def kalman():
    """An ensemble on its way from the prior to the posterior."""

    def parabola(u):
        return np.stack([u[:, 0], u[:, 1] - u[:, 0] ** 2], 1)

    problem = inverse_problem(parabola, [0.3, -0.6], [0.9, 0.35])
    sampler = EnsembleKalman(problem, 60, adjust=True)
    stages = []
    for _, state, info in rounds(problem, sampler, 60, seed=3):
        if info.complete:
            stages.append(state.ensemble.U)
        if state.burned_in:
            break
    ax, save = square("kalman")
    shade(ax, potential_of(problem), (-2.4, -2.4), (2.4, 2.4))
    chosen = [stages[0], stages[len(stages) // 3], stages[-1]]
    for before, after in pairwise(chosen):
        for a, b in zip(before, after, strict=True):
            ax.plot(*np.transpose([a, b]), color=GRAY, lw=0.4, alpha=0.6, zorder=1)
    styles = [("0.6", "start"), (ORANGE, "on the way"), (BLUE, "posterior")]
    for U, (color, label) in zip(chosen, styles, strict=True):
        ax.scatter(*U.T, s=16, color=color, ec="white", lw=0.4, label=label, zorder=2)
    ax.legend(loc="upper left", frameon=False)
    save()


def multiscale():
    """Walkers that feel their way with explorers."""

    def difference(u):
        return (u[:, :1] - u[:, 1:]) ** 2

    problem = inverse_problem(difference, [2.0], 1.0)
    sampler = Multiscale(problem, walkers=3, sigma=0.4, step_size=0.06, preconditioner=None)
    clouds = []
    for points, _, info in rounds(problem, sampler, sampler.start_size, seed=5):
        if info.snapshot is not None:
            clouds.append(points.reshape(3, 3, 2))
        if len(clouds) == 24:
            break
    walkers, explorers = np.array(clouds)[:, :, 0], np.array(clouds)[:, :, 1:]
    ax, save = square("multiscale")
    shade(ax, potential_of(problem), (-2.4, -2.4), (2.4, 2.4))
    for m in range(3):
        ax.plot(*walkers[:, m].T, color=BLUE, lw=1.4, label=None if m else "walkers")
        for step in range(0, len(clouds), 4):
            for explorer in explorers[step, m]:
                ax.plot(*np.transpose([walkers[step, m], explorer]), color=ORANGE, lw=0.9)
            ax.scatter(*explorers[step, m].T, s=10, color=ORANGE)
        ax.scatter(*walkers[-1, m], s=36, color=BLUE, ec="white", zorder=3)
    ax.plot([], [], "o-", color=ORANGE, ms=3, lw=0.9, label="explorers")
    ax.legend(loc="lower right", frameon=False)
    save()


def gaussian_process():
    """Four modes behind fluctuations, from a few hundred evaluations."""
    model = pe.gallery.four_modes()
    smooth = potential_of(pe.InverseProblem.from_model(pe.gallery.four_modes(rough=False)))
    with model:
        step = pe.EnsembleGaussianProcessSampler(ensemble_size=100)
        idata = pm.sample(1500, step=step, chains=1, cores=1, random_seed=1, progressbar=False)
    ax, save = square("gaussian_process")
    shade(ax, smooth, (-1.7, -1.7), (1.7, 1.7))
    U = step.learned.archive.U
    ax.scatter(*U.T, s=7, color=ORANGE, label=f"{len(U)} evaluations")
    ax.scatter(*idata.posterior["u"].values[0, ::3].T, s=4, color=BLUE, alpha=0.6, label="draws")
    ax.legend(loc="upper center", frameon=True, ncols=2, columnspacing=0.8, handletextpad=0.2)
    save()


if __name__ == "__main__":
    plt.rcParams["font.size"] = 11
    kalman()
    multiscale()
    gaussian_process()
