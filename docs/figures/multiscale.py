"""Draw the figures of docs/multiscale.md, and print the numbers behind them.

    python docs/figures/multiscale.py [clouds] [modes] [bias] [convergence] [price]

Without names all figures are drawn, into docs/images. This takes a few minutes.
"""

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pymc as pm

import pymc_ensemble as pe
from pymc_ensemble.forward.evaluation import Evaluations
from pymc_ensemble.samplers.multiscale.explorers import Explorers, Preconditioner
from pymc_ensemble.samplers.multiscale.walkers import Walkers

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


# -- problems whose posteriors are known -------------------------------------------------------


class StandardNormal:
    """The prior of all of them."""

    def __init__(self, d):
        self.d = d

    def sample(self, size, rng):
        """Draws, shape (size, d)."""
        return rng.standard_normal((size, self.d))

    def logpdf(self, U):
        """Log density, shape (n,)."""
        return -0.5 * (U**2).sum(1) - 0.5 * self.d * np.log(2 * np.pi)

    def grad_logpdf(self, U):
        """Its gradient, shape (n, d)."""
        return -U


class Target:
    """An inverse problem with unit normal prior whose posterior is known.

    Parameters
    ----------
    forward : callable
        Forward map of all points at once, (n, d) to (n, K).
    data : array_like of shape (K,)
    noise : float
    """

    def __init__(self, forward, data, noise, d):
        self.forward = forward
        self.problem = pe.InverseProblem(
            forward, prior=StandardNormal(d), data=data, noise=noise, vectorized=True
        )

    def known(self, mean, covariance, draw):
        """Add moments of the posterior, and a function (n, rng) for exact draws."""
        self.mean, self.covariance, self.draw = mean, covariance, draw
        self.sd = np.sqrt(np.diag(covariance))
        self.preconditioner = Preconditioner(mean, np.linalg.cholesky(covariance))
        return self

    def quadrature(self, *axes):
        """Add moments and draws from a grid with the nodes `axes`."""
        U = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
        spacing = np.array([axis[1] - axis[0] for axis in axes])
        weights = self.density(U)
        weights /= weights.sum()
        mean = weights @ U

        def draw(n, rng):
            nodes = U[rng.choice(len(U), n, p=weights)]
            return nodes + spacing * (rng.random(nodes.shape) - 0.5)

        return self.known(mean, ((U - mean).T * weights) @ (U - mean), draw)

    def density(self, U):
        """Posterior density over its largest value among the points, shape (n,)."""
        potential = self.problem.loss(self.forward(U)) + self.problem.prior_potential(U)
        return np.exp(potential.min() - potential)

    def evaluate(self, U):
        """Forward evaluations; none fails."""
        return Evaluations(self.forward(U), np.zeros(len(U), dtype=bool))


def linear(d=10):
    """Linear forward map: the posterior is Gaussian."""
    rng = np.random.default_rng(1000)
    A, data = rng.standard_normal((2 * d, d)), rng.standard_normal(2 * d)
    covariance = np.linalg.inv(A.T @ A + np.eye(d))
    mean = covariance @ A.T @ data
    return Target(lambda U: U @ A.T, data, 1.0, d).known(
        mean, covariance, lambda n, rng: rng.multivariate_normal(mean, covariance, n)
    )


def square():
    """One parameter, whose square is observed: a light-tailed posterior."""
    return Target(lambda U: U**2, [0.0], 1.0, 1).quadrature(np.linspace(-4, 4, 4001))


def sine():
    """One parameter, and twice its sine is observed: small, and far from linear."""
    return Target(lambda U: 2 * np.sin(U), [1.0], 1.0, 1).quadrature(np.linspace(-6, 6, 4001))


def decay():
    """Logs of amplitude and rate of an exponential decay that is hidden by noise."""
    times, rng = np.linspace(0.2, 4, 12), np.random.default_rng(7)
    data = np.exp(0.3 - np.exp(-0.2) * times) + 0.3 * rng.standard_normal(12)
    target = Target(lambda U: np.exp(U[:, :1] - np.exp(U[:, 1:]) * times), data, 0.3, 2)
    return target.quadrature(np.linspace(-1.5, 2, 301), np.linspace(-3, 2.5, 301))


def bimodal():
    """The square of a difference is observed: two ridges."""
    target = Target(lambda U: (U[:, :1] - U[:, 1:]) ** 2, [2.0], 1.0, 2)
    return target.quadrature(*[np.linspace(-5, 5, 401)] * 2)


def advance(walkers, target, state, n_steps, rng):
    """States of the walkers at their start and after each of `n_steps` steps."""
    for _ in range(1 + n_steps):
        points, pending = walkers.ask(state, rng)
        state, _ = walkers.tell(state, pending, target.evaluate(points))
        yield state


def moments(kernel, target, step_size, size, time, seed=1):
    """Moments of a walker's law, from many walkers over a long time.

    Returns
    -------
    ndarray of shape (size, d), (size, d)
        First and second moment of each walker, about the exact mean and in units of exact sd.
    """
    rng = np.random.default_rng(seed)
    start = kernel.start(target.draw(size, rng), target.preconditioner, step_size)
    burn_in, n_steps = int(5 / step_size), int(time / step_size)
    first, second = np.zeros((2, size, target.problem.dimension))
    for k, state in enumerate(advance(kernel, target, start, burn_in + n_steps, rng)):
        if k > burn_in:
            x = (state.U - target.mean) / target.sd
            first += x / n_steps
            second += x**2 / n_steps
    return first, second


def sd_error(second):
    """Relative error of the sd, mean over the coordinates, and its standard error."""
    second = second.mean(1)
    return np.sqrt(second.mean()) - 1, second.std() / 2 / np.sqrt(len(second))


def contours(ax, target, lower, upper):
    """Draw the exact posterior as a background."""
    axes = [np.linspace(a, b, 161) for a, b in zip(lower, upper, strict=True)]
    U = np.stack(np.meshgrid(*axes), axis=-1)
    density = target.density(U.reshape(-1, 2)).reshape(U.shape[:-1])
    ax.contourf(*axes, density, [0.02, 0.1, 0.3, 0.6, 1.0], cmap="Greys", alpha=0.55)
    ax.set(xlim=(lower[0], upper[0]), ylim=(lower[1], upper[1]))


# -- figures -----------------------------------------------------------------------------------


def clouds():
    """Clouds at the same four places for different options, and the drifts that they measure."""
    target = decay()
    own, none = target.preconditioner, Preconditioner(target.mean, 0.25 * np.eye(2))
    panels = {
        "directions=1": ({"n_directions": 1}, {}, own),
        "directions=2, the default": ({}, {}, own),
        "directions=6": ({"n_directions": 6}, {}, own),
        'directions=6, scheme="paper"': ({"n_directions": 6, "independent": True}, {}, own),
        "sigma=0.1": ({"sigma": 0.1}, {}, own),
        "central=True": ({"central": True}, {}, own),
        "delta=1": ({}, {"delta": 1.0}, own),
        "preconditioner=None": ({}, {}, none),
    }
    places = np.array([[-0.15, 0.25], [0.3, 0.85], [0.55, -0.55], [-0.2, -1.0]])
    fig, axes = plt.subplots(2, 4, figsize=(11, 6), sharex=True, sharey=True)
    for ax, (title, (explorers, options, preconditioner)) in zip(
        axes.flat, panels.items(), strict=True
    ):
        contours(ax, target, (-0.95, -1.75), (1.05, 1.25))
        usual = {"n_directions": 2, "sigma": 0.5}
        kernel = Walkers(Explorers(target.problem, **usual | explorers), **options)
        exact = Walkers(Explorers(target.problem, 2, 1e-4, central=True))
        rng = np.random.default_rng(8)
        state = kernel.start(places[:1], preconditioner, 0.1)
        for place in places:  # the directions are those of successive steps
            state = replace(state, U=place[None], measurement=None)
            points, pending = kernel.ask(state, rng)
            state, _ = kernel.tell(state, pending, target.evaluate(points))
            for explorer in points[1:]:
                ax.plot(*np.transpose([place, explorer]), "-o", color=ORANGE, lw=0.8, ms=3.5)
            [truth] = advance(exact, target, exact.start(state.U, preconditioner, 0.1), 0, rng)
            arrows = {"angles": "xy", "scale_units": "xy", "scale": 1, "zorder": 3}
            for measurement, color, width in [
                (truth.measurement, "black", 0.016),
                (state.measurement, GREEN, 0.008),
            ]:
                drift = 0.4 * preconditioner.root @ measurement.drift[0]
                ax.quiver(*place, *drift, color=color, width=width, **arrows)
            ax.plot(*place, "o", color=BLUE, ms=6, zorder=4)
        ax.set_title(title)
    for ax in axes[1]:
        ax.set_xlabel("log amplitude")
    for ax in axes[:, 0]:
        ax.set_ylabel("log rate")
    legend = [
        (BLUE, "o", "walker"),
        (ORANGE, "o", "explorers"),
        (GREEN, ">", "measured drift"),
        ("black", ">", "exact drift"),
    ]
    handles = [plt.Line2D([], [], color=c, marker=m, ls="", label=name) for c, m, name in legend]
    fig.legend(handles=handles, loc="outside lower center", ncols=4)
    return fig


def modes():
    """Truth, multiscale sampler and ensemble Kalman sampler on two modes, at equal price."""
    steps = {
        "multiscale": (pe.MultiscaleSampler(adjust=False, walkers=10), 12_000),
        "ensemble Kalman": (pe.EnsembleKalmanSampler(adjust=False), 39_000),
    }
    target, draws = bimodal(), {}
    draws["exact"] = target.draw(300_000, np.random.default_rng(1))
    model = pe.gallery.bimodal()
    for name, (step, n) in steps.items():
        with model:
            idata = sample(step, n, chains=1)
        draws[name] = idata.posterior["u"].values.reshape(-1, 2)
        price = int(idata.sample_stats["n_evals"].max("draw").sum())
        exact, found = (
            np.histogram2d(*draws[which].T, bins=16, range=[[-4, 4]] * 2)[0] / len(draws[which])
            for which in ("exact", name)
        )
        first = (draws[name][:, 0] > draws[name][:, 1]).mean()
        print(f"{name}: {price} evaluations, {first:.0%} of the draws in the first mode,", end=" ")
        print(f"total variation {0.5 * np.abs(exact - found).sum():.2f}")
    fig, axes = plt.subplots(1, 3, figsize=(9, 3.4), sharex=True, sharey=True)
    for ax, (name, points) in zip(axes, draws.items(), strict=True):
        mass = np.histogram2d(*points.T, bins=48, range=[[-4, 4]] * 2, density=True)[0]
        ax.imshow(mass.T, extent=[-4, 4, -4, 4], origin="lower", cmap="viridis", vmin=0, vmax=0.25)
        ax.set(title=name, xlabel="$u_1$")
    axes[0].set_ylabel("$u_2$")
    return fig


def sample(step, draws, chains=4):
    """Sample the model on the context stack."""
    return pm.sample(draws, step=step, chains=chains, cores=1, random_seed=1, progressbar=False)


def bias():
    """Error of the sd for a linear map against step size, delta and directions."""
    target = linear()

    def error(averaged, step_size=0.1, directions=10, delta=0.0):
        explorers = Explorers(target.problem, directions, 1e-3, independent=not averaged)
        kernel = Walkers(explorers, delta=delta, averaged=averaged)
        return sd_error(moments(kernel, target, step_size, size=100, time=60)[1])

    settings = {
        "step_size": ([0.05, 0.1, 0.2, 0.5, 1.0], [0.05, 0.1, 0.2, 0.3, 0.5]),
        "delta": ([0.0, 0.1, 0.3, 0.5, 1.0], [0.0, 0.1, 0.3, 0.5, 1.0]),
        "directions": ([2, 5, 10, 20, 40], [2, 5, 10, 20, 40]),
    }
    schemes = [("averaged", BLUE, "o"), ("paper", ORANGE, "s")]
    fig, axes = plt.subplots(1, 3, figsize=(11, 3.4), sharey=True)
    for ax, (name, values) in zip(axes, settings.items(), strict=True):
        for (scheme, color, marker), x in zip(schemes, values, strict=True):
            results = [error(scheme == "averaged", **{name: value}) for value in x]
            percent, bar = 100 * np.transpose(results)
            print(f"{scheme}, {name} {x}: {percent.round(1)} +- {bar.max():.1f} %")
            label = f'scheme="{scheme}"'
            ax.errorbar(x, percent, 2 * bar, color=color, marker=marker, label=label)
        ax.axhline(0, color=GRAY, lw=0.8)
        ax.set(xlabel=name)
    axes[2].set(xscale="log", xticks=x, xticklabels=x)
    axes[2].minorticks_off()
    axes[0].set(ylabel="error of the posterior sd, %")
    axes[0].legend()
    return fig


def convergence():
    """Errors against step size and sigma, with the orders that they follow."""
    fig, axes = plt.subplots(1, 3, figsize=(11, 3.8))
    for ax in axes:
        ax.set(xscale="log", yscale="log")

    target, h = square(), np.array([0.05, 0.1, 0.14, 0.2, 0.28, 0.4])
    schemes = [
        ("paper", ORANGE, "s", 1, {"n_directions": 8, "independent": True}, h[:4], 2000, 100),
        ("averaged", BLUE, "o", 2, {"n_directions": 1}, h[2:], 8000, 600),
    ]
    for scheme, color, marker, order, options, steps, size, time in schemes:
        explorers = Explorers(target.problem, sigma=1e-3, **options)
        kernel = Walkers(explorers, averaged=scheme == "averaged")
        runs = [moments(kernel, target, step, size, time, k) for k, step in enumerate(steps)]
        error, bar = np.abs(np.transpose([sd_error(second) for _, second in runs]))
        report(f"{scheme}, sd against step size", steps, error, bar)
        label = f'scheme="{scheme}"'
        axes[0].errorbar(steps, error, 2 * bar, color=color, marker=marker, label=label, ls="")
        guide(axes[0], steps, error, order)

    target = sine()
    sigma = np.array([0.1, 0.2, 0.4, 0.8])
    for central, color, marker in [(False, ORANGE, "s"), (True, BLUE, "o")]:
        limit, *runs = [
            Walkers(Explorers(target.problem, 1, s, central=central)) for s in (1e-4, *sigma)
        ]
        label, (end, moment) = f"central={central}", coupled(limit, target)
        paths, errors, bars = [], [], []
        for kernel in runs:
            other, second = coupled(kernel, target)
            paths.append(np.sqrt(((other - end) ** 2).mean()))
            errors.append(abs(second.mean() - moment.mean()) / 2)
            bars.append((second - moment).std() / 2 / np.sqrt(len(moment)))
        report(f"{label}, paths against sigma", sigma, paths, np.array(paths) / 100)
        report(f"{label}, sd against sigma", sigma, errors, bars)
        axes[1].plot(sigma, paths, marker, color=color, label=label)
        guide(axes[1], sigma, paths, 2 if central else 1)
        axes[2].errorbar(
            sigma, errors, 2 * np.array(bars), color=color, marker=marker, label=label, ls=""
        )
        if central:
            guide(axes[2], sigma, errors, 2)

    titles = [
        "law: error",
        "paths: difference from σ → 0",
        "law: difference from σ → 0",
    ]
    for ax, title, x in zip(axes, titles, (h, sigma, sigma), strict=True):
        ax.minorticks_off()
        ax.set(title=title, xlabel="step_size" if x is h else "sigma", xticks=x, xticklabels=x)
        ax.legend(loc="center left" if ax is axes[0] else "upper left")
    axes[0].set_ylabel("error of the sd, in posterior sd")
    axes[1].set_ylabel("root mean square, in posterior sd")
    axes[2].set_ylabel("change of the sd, in posterior sd")
    return fig


def coupled(kernel, target, size=8000):
    """Ends of paths at the time 1, and second moments, always from the same random numbers."""
    rng = np.random.default_rng(1)
    start = kernel.start(target.draw(size, rng), target.preconditioner, 0.2)
    *_, last = advance(kernel, target, start, 5, rng)
    return last.U / target.sd, moments(kernel, target, 0.2, size, 100)[1]


def report(name, x, error, bar):
    """Print errors with their slope on logarithmic scales."""
    slope = np.polyfit(np.log(x), np.log(error), 1, w=np.array(error) / bar)[0]
    print(f"{name} {x}: {np.array(error)} +- {np.array(bar)}, slope {slope:.2f}")


def guide(ax, x, errors, order):
    """Draw a line of the given order through the last but one of the errors."""
    line = errors[-2] * (x / x[-2]) ** order
    ax.plot(x, line, color=GRAY, lw=1, zorder=0)
    ax.annotate(
        f"order {order}", (x[1], line[1]), (6, -10), textcoords="offset points", color="0.35"
    )


def price():
    """Evaluations for each effective draw, once the burn-in is paid."""
    gallery = pe.gallery
    models = {f"linear, d={d}": (lambda d=d: gallery.linear_gaussian(d)) for d in (2, 5, 10, 20)}
    models |= {"decay": lambda: gallery.decay(0.3), "bimodal": gallery.bimodal}
    samplers = {
        "multiscale": (lambda: pe.MultiscaleSampler(adjust=False), BLUE, "o", 2000),
        "multiscale, adjusted": (lambda: pe.MultiscaleSampler(adjust=True), GREEN, "^", 2000),
        "ensemble Kalman, adjusted": (
            lambda: pe.EnsembleKalmanSampler(adjust=True),
            ORANGE,
            "s",
            4000,
        ),
    }
    fig, ax = plt.subplots(figsize=(7, 3.8))
    for name, (step, color, marker, draws) in samplers.items():
        prices = []
        for problem, model in models.items():
            with model():
                idata = sample(step(), draws)
            n_evals = idata.sample_stats["n_evals"].values
            total, burn_in = n_evals.max(1).sum(), n_evals.min(1).sum()
            effective = min(float(value.min()) for value in az.ess(idata).values())
            prices.append((total - burn_in) / effective)
            print(f"{name}, {problem}: {prices[-1]:.1f} evaluations per effective draw,", end=" ")
            print(
                f"burn-in {burn_in}, step size {idata.sample_stats['step_size'].values[0, -1]:.2g}"
            )
        ax.plot(prices, marker, color=color, ms=8, label=name)
    ax.set(yscale="log", ylabel="evaluations per effective draw")
    ax.set_xticks(range(len(models)), models, rotation=20)
    ax.grid(axis="y", color="0.9")
    ax.legend()
    return fig


FIGURES = (clouds, modes, bias, convergence, price)


def main():
    """Draw from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [figure.__name__ for figure in FIGURES]
    parser.add_argument("figures", nargs="*", choices=names, metavar="figure")
    wanted = parser.parse_args().figures or names
    for package in ("pymc", "pymc_ensemble"):
        logging.getLogger(package).setLevel(logging.ERROR)
    for figure in FIGURES:
        if figure.__name__ in wanted:
            with plt.rc_context(STYLE):
                picture = figure()
                picture.savefig(IMAGES / f"multiscale_{figure.__name__}.png", dpi=100)
                plt.close(picture)


if __name__ == "__main__":
    main()
