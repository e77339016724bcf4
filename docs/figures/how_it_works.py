"""Draw the five pictures of docs/how_it_works.md.

    python docs/figures/how_it_works.py

They show real runs: 100 particles fit the speed of an enzyme to four measurements. The pictures go
into docs/images. This takes half a minute.
"""

import logging
from pathlib import Path

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pymc as pm
from matplotlib.ticker import FixedLocator, NullLocator

import pymc_ensemble as pe
from pymc_ensemble.samplers.kalman.sampler import EnsembleKalman

IMAGES = Path(__file__).parents[1] / "images"
BLUE, ORANGE, GREEN, GRAY = "#0072b2", "#d55e00", "#009e73", "0.55"  # told apart by all eyes
SUBSTRATE = np.array([0.5, 1.0, 2.0, 4.0])  # mmol per litre
TRUE, NOISE = (1.0, 1.5), 0.1
SEED = 4
WIDE = np.log([[0.04, 0.02], [30, 50]])  # windows of the pictures: v_max, K
NEAR = np.log([[0.35, 0.03], [2.5, 12]])
SHOWN = np.linspace(0, 4.6, 60)  # concentrations of the curves


def speed(v_max, K, substrate=SUBSTRATE):
    """Michaelis-Menten law; called as a black box."""
    return v_max * substrate / (K + substrate)


DATA = speed(*TRUE) + NOISE * np.random.default_rng(1).normal(size=len(SUBSTRATE))


def enzyme():
    """Model of the page."""
    forward = pe.forward_model(speed, output_shape=(len(SUBSTRATE),))
    with pm.Model() as model:
        v_max, K = pm.LogNormal("v_max", 0, 1.5), pm.LogNormal("K", 0, 1.5)
        pm.Normal("speed", forward(v_max, K), NOISE, observed=DATA)
    return model


def exact(window):
    """Axes of a grid over a window, and the posterior density of the logarithms on it."""
    axes = [np.linspace(a, b, 401) for a, b in window.T]
    u, k = np.meshgrid(*axes)
    y = np.moveaxis(speed(np.exp(u)[..., None], np.exp(k)[..., None]), -1, 0)
    V = ((y - DATA[:, None, None]) ** 2).sum(0) / (2 * NOISE**2) + (u**2 + k**2) / (2 * 1.5**2)
    return axes, np.exp(V.min() - V)


def follow(sweeps=3):
    """Stages of a burn-in, and the rounds of the sweeps after it.

    A stage is the weight of the data, the particles at its end, and the runs of the simulator so
    far; a round is where particles were, where they were to go, and which of them went there.
    """
    problem = pe.InverseProblem.from_model(enzyme())
    rng = np.random.default_rng(SEED)
    sampler = EnsembleKalman(problem, 100, adjust=True)
    state = sampler.start(problem.sample_prior(100, rng), redraw=True)
    stages, rounds, runs = [], [], 0
    while len(rounds) < 2 * sweeps:
        points, pending = sampler.ask(state, rng)
        before, (state, info) = state, sampler.tell(state, pending, problem.evaluate(points))
        runs += info.n_evaluations
        if before.burned_in:
            old = before.ensemble.U[pending.index]
            rounds.append((old, points, (state.ensemble.U[pending.index] != old).any(1)))
        elif info.complete:
            weight = getattr(state.inner, "exponent", 1.0) if stages else 0.0
            stages.append((weight, state.ensemble.U, runs))
    return stages, rounds, state.ensemble.U, runs


def sample(**options):
    """Draws of the step method, and what `diagnose` says."""
    model = enzyme()
    with model:
        idata = pm.sample(
            step=pe.EnsembleKalmanSampler(**options),
            chains=4,
            cores=1,
            random_seed=SEED,
            progressbar=False,
        )
    return idata, pe.diagnose(idata, model=model)


# -- pictures -------------------------------------------------------------------------------------


def parameters(ax, window=NEAR, *, shaded=True):
    """Axes of the two parameters, with the exact posterior as a shade."""
    if shaded:
        (u, k), density = exact(window)
        ax.contourf(u, k, density, levels=np.linspace(0.02, 1, 7), cmap="Blues", alpha=0.6)
        ax.contour(u, k, density, levels=[0.02], colors=[BLUE], linewidths=0.7)
    fine = [0.5, 1, 2] if window is NEAR else [0.1, 1, 10]
    for axis, ticks in ((ax.xaxis, fine), (ax.yaxis, [0.1, 1, 10])):
        axis.set_major_locator(FixedLocator(np.log(ticks)))
        axis.set_minor_locator(NullLocator())
        axis.set_ticklabels([f"{tick:g}" for tick in ticks])
    ax.set(xlim=window[:, 0], ylim=window[:, 1])
    ax.set(xlabel="highest speed $v_{max}$", ylabel="constant $K$")


def label_of_shade(ax):
    """Say what the shade is."""
    style = {"transform": ax.transAxes, "color": BLUE, "size": 9, "va": "top"}
    ax.text(0.03, 0.98, "shaded: the exact posterior", **style)


def curves(ax, U, color, *, alpha=0.25):
    """What the simulator predicts for each particle, and the measurements."""
    ax.plot(SHOWN, speed(*np.exp(U).T[:, None], SHOWN[:, None]), color=color, lw=0.6, alpha=alpha)
    style = {"fmt": "o", "color": "black", "ms": 4, "capsize": 2, "zorder": 5}
    ax.errorbar(SUBSTRATE, DATA, 2 * NOISE, label="measured", **style)
    ax.set(xlim=(0, 4.6), ylim=(0, 1.25), xlabel="concentration", ylabel="speed")
    ax.legend(loc="upper left", frameon=True, framealpha=0.9)


def pair():
    """Figure of two axes."""
    return plt.subplots(1, 2, figsize=(8, 3.7), layout="constrained")


def save(figure, number, name):
    """Write a picture for the page."""
    path = IMAGES / f"how_{number}_{name}.png"
    figure.savefig(path, dpi=100, pil_kwargs={"optimize": True})
    plt.close(figure)
    print(path, f"{path.stat().st_size / 1e3:.0f} kB")


def draw_prior(stages):
    """The first ensemble, and its predictions."""
    figure, (left, right) = pair()
    U = stages[0][1]
    parameters(left, WIDE, shaded=False)
    left.plot(*U.T, "o", ms=5, color=GRAY, mec="white", mew=0.4)
    left.set_title(f"{len(U)} particles, drawn from the prior")
    curves(right, U, GRAY, alpha=0.5)
    right.set_title("What the simulator predicts for each")
    save(figure, 1, "prior")


def draw_tempering(stages):
    """Particles while the data gain weight."""
    figure, axes = plt.subplots(1, 4, figsize=(10, 3), layout="constrained", sharey=True)
    chosen = [0, 1, 2, len(stages) - 1]
    for ax, before in zip(axes[1:], chosen, strict=False):
        ax.plot(*stages[before][1].T, ".", ms=4, color="0.75")
    for ax, k in zip(axes, chosen, strict=True):
        weight, U, runs = stages[k]
        parameters(ax, WIDE)
        ax.plot(*U.T, "o", ms=4, color=ORANGE, mec="white", mew=0.3)
        ax.set_title(f"weight of the data {weight:.2g}\n{runs} runs", size=10)
        ax.label_outer()
    label_of_shade(axes[0])
    save(figure, 2, "tempering")


def draw_posterior(U, runs):
    """The ensemble where it has arrived, and its predictions."""
    figure, (left, right) = pair()
    parameters(left)
    left.plot(*U.T, "o", ms=4.5, color=BLUE, mec="white", mew=0.5)
    left.set_title(f"The particles after {runs} runs")
    label_of_shade(left)
    curves(right, U, BLUE)
    right.set_title("What the simulator predicts for each")
    save(figure, 3, "posterior")


def draw_test(old, proposed, accepted):
    """Moves of half an ensemble, those that are made and those that are not."""
    figure, (left, right) = pair()
    parameters(left)
    arrow = {"arrowstyle": "->", "lw": 0.9, "shrinkA": 0, "shrinkB": 0}
    for a, b in zip(old[accepted], proposed[accepted], strict=True):
        left.annotate("", b, a, arrowprops=arrow | {"color": GREEN})
    left.plot(*old[accepted].T, "o", ms=3, color=GREEN)
    left.set_title(f"Accepted: {accepted.sum()} of {len(old)} particles move ...")
    parameters(right)
    for a, b in zip(old[~accepted], proposed[~accepted], strict=True):
        right.annotate("", b, a, arrowprops=arrow | {"color": ORANGE, "alpha": 0.4})
    right.plot(*proposed[~accepted].T, "x", ms=6, mew=1.5, color=ORANGE, label="rejected")
    right.plot(*old[~accepted].T, "o", ms=4, color=BLUE, label="stays")
    right.set_title(f"... rejected: {(~accepted).sum()} stay")
    right.legend(loc="upper left", frameon=False)
    save(figure, 4, "test")


def draw_verdict(runs):
    """Draws with and without the test, and what `diagnose` says of them."""
    figure, axes = pair()
    for ax, (title, (idata, diagnosis)) in zip(axes, runs.items(), strict=True):
        color = BLUE if diagnosis.trustworthy else ORANGE
        parameters(ax, shaded=False)
        (u, k), density = exact(NEAR)
        draws = az.extract(idata)
        ax.plot(np.log(draws["v_max"]), np.log(draws["K"]), ".", ms=2, color=color, alpha=0.5)
        ax.contour(u, k, density, levels=[0.02], colors=["black"], linewidths=1.2)
        ax.set_title(title)
        style = {"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": color, "lw": 2}
        where = {"transform": ax.transAxes, "ha": "right", "size": 12}
        ax.text(0.95, 0.07, diagnosis.verdict, color=color, bbox=style, **where)
    axes[0].text(
        0.03, 0.93, "line: edge of the exact posterior", transform=axes[0].transAxes, size=9
    )
    save(figure, 5, "verdict")


def main():
    """Run the sampler, and draw what it did."""
    logging.getLogger("pymc").setLevel(logging.ERROR)
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10})
    stages, rounds, U, runs = follow()
    draw_prior(stages)
    draw_tempering(stages)
    draw_posterior(U, runs)
    draw_test(*rounds[0])
    results = {
        "4000 draws with the test": sample(adjust=True),
        "4000 draws without it": sample(adjust=False),
    }
    for _, diagnosis in results.values():
        print(diagnosis)
    draw_verdict(results)


if __name__ == "__main__":
    main()
