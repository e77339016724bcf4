"""Figures of the page on the likelihood-informed sampler: fields, directions, and a Cox process.

python docs/figures/likelihood_informed.py
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pymc as pm

import pymc_ensemble as pe
from pymc_ensemble import gallery
from pymc_ensemble.gallery.darcy import OBSERVED, log_conductivity
from pymc_ensemble.samplers.informed.mode import ModeSearch

IMAGES = Path(__file__).parents[1] / "images"
MODES = 256


def fields():
    """Truth, mean, standard deviation, three draws, and the informed directions of Darcy flow."""
    model = gallery.darcy(MODES)
    with model:
        idata = pm.sample(
            draws=500, chains=4, cores=1, step=pe.LikelihoodInformedSampler(), random_seed=1
        )
    u = idata.posterior["u"].values.reshape(-1, MODES)
    drawn = log_conductivity(u)
    with model:
        problem = pe.InverseProblem.from_model(jacobian=False)
    search = ModeSearch(problem)
    rng = np.random.default_rng(1)
    state = search.start(problem.sample_prior(50, rng), redraw=True)
    while not state.burned_in:
        points, pending = search.ask(state, rng)
        state, _ = search.tell(state, pending, problem.evaluate(points))
    law = search.kernel.law(state.inner)
    shown = {
        "truth": log_conductivity(model.truth["u"]),
        "mean": drawn.mean(0),
        "standard deviation": drawn.std(0),
        "a draw": drawn[0],
        "another": drawn[len(drawn) // 2],
        "a third": drawn[-1],
    }
    for k in (0, 4, 16, 24):
        shown[f"direction {k + 1}, information {law.information[k]:.0f}"] = log_conductivity(
            law.directions[k]
        )
    figure, axes = plt.subplots(2, 5, figsize=(11, 4.8), layout="constrained")
    limit = np.abs(shown["truth"]).max()
    for axis, (title, values) in zip(axes.ravel(), shown.items(), strict=True):
        symmetric = limit if "direction" not in title else np.abs(values).max()
        options = {"vmin": -symmetric, "vmax": symmetric, "cmap": "RdBu_r"}
        if title == "standard deviation":
            options = {"vmin": 0, "cmap": "viridis"}
        axis.imshow(values.T, origin="lower", extent=(0, 1, 0, 1), **options)
        axis.set(title=title, xticks=[], yticks=[])
        axis.title.set_fontsize(9)
    where = np.array(np.meshgrid(OBSERVED, OBSERVED)).reshape(2, -1) / 32
    axes[0, 0].plot(*where, "k.", ms=2)
    figure.savefig(IMAGES / "likelihood_informed_fields.png", dpi=110)
    stats = idata.sample_stats
    print(
        f"{int(stats.n_evals.max('draw').sum())} evaluations, acceptance "
        f"{float(stats.acceptance.mean()):.2f}, {len(law.informed)} informed directions"
    )


def counts():
    """Intensity of a Cox process: truth, counts, and what the posterior says."""
    model = gallery.cox_process()
    with model:
        idata = pm.sample(
            draws=500, chains=4, cores=1, step=pe.LikelihoodInformedSampler(), random_seed=1
        )
    cells = model.coords["cell"]
    modes = np.arange(MODES)
    B = np.sqrt(2) * np.cos(np.pi * np.outer(cells, modes)) / (1 + (modes / 3) ** 1.5)
    intensity = np.exp(2 + idata.posterior["u"].values.reshape(-1, MODES) @ B.T)
    figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
    low, middle, high = np.quantile(intensity, [0.05, 0.5, 0.95], axis=0)
    axis.fill_between(cells, low, high, alpha=0.3, label="posterior, 5% to 95%")
    axis.plot(cells, middle, label="median")
    axis.plot(cells, np.exp(2 + B @ model.truth["u"]), "k--", label="truth")
    axis.plot(cells, model.rvs_to_values[model["counts"]].data, "k.", ms=4, label="counts")
    axis.set(xlabel="place", ylabel="intensity")
    axis.legend(fontsize=8)
    figure.savefig(IMAGES / "likelihood_informed_counts.png", dpi=110)
    print(f"{int(idata.sample_stats.n_evals.max('draw').sum())} evaluations of the Cox process")


if __name__ == "__main__":
    fields()
    counts()
