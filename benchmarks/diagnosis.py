"""How often `diagnose` flags posteriors that are wrong, and spares those that are right.

    python benchmarks/diagnosis.py [--seeds 5] [--cases NAME ...] [--runs FOLDER]

samples problems whose posteriors are known, about half of them such that the result is wrong on
purpose, and prints the confusion table: once for the problems with which thresholds were chosen,
once for those that were held back. Wrong is a mean that is off by more than 0.3 posterior standard
deviations, or a standard deviation that is off by more than 20%, in any parameter. Finished runs
are kept in a folder, so that only what is missing is computed.
"""

import argparse
import logging
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import xarray as xr

import pymc_ensemble as pe
from pymc_ensemble import gallery

MEAN, SD = 0.3, 0.2  # errors beyond which a result is wrong


def quadrature(model: pm.Model, half_width: float = 8.0, n: int = 801) -> dict[str, Any]:
    """Moments of the posterior of a model without transforms, in one or two dimensions."""
    problem = pe.InverseProblem.from_density(model)
    center, width = np.zeros(problem.dimension), half_width
    for _ in range(2):  # once to find the posterior, once to resolve it
        axes = [np.linspace(c - w, c + w, n) for c, w in np.broadcast(center, width)]
        grid = np.stack([x.ravel() for x in np.meshgrid(*axes, indexing="ij")], axis=1)
        potential = problem.loss(problem.evaluate(grid).outputs) + problem.prior_potential(grid)
        weights = np.exp(potential.min() - potential)
        weights /= weights.sum()
        center = weights @ grid
        sd = np.sqrt(weights @ (grid - center) ** 2)
        width = np.minimum(half_width, 10 * sd)
    [name] = [rv.name for rv in model.free_RVs]
    return {name: {"mean": center, "sd": sd}}


# -- problems -----------------------------------------------------------------------------------


def black_box_free(forward: Callable[[Any], Any], prior: Any, likelihood: Any) -> pm.Model:
    """Model of one vector ``u`` with a prior, a forward map in PyTensor, and a likelihood."""
    with pm.Model() as model:
        likelihood(forward(prior()))
    return model


def normal(d: int = 2, sd: float = 1.0) -> Callable[[], Any]:
    """Gaussian prior of ``u``."""
    return lambda: pm.Normal("u", 0.0, sd, shape=d)


def observed(data: Any, sd: Any) -> Callable[[Any], Any]:
    """Gaussian likelihood."""
    return lambda z: pm.Normal("y", z, sd, observed=np.asarray(data, dtype=float))


TIMES = np.linspace(0.2, 3.0, 8)


def banana() -> pm.Model:
    """Bent by a square."""
    return black_box_free(
        lambda u: pm.math.stack([u[0], u[1] - u[0] ** 2]),
        normal(2, 2.0),
        observed([0.5, 0], [1, 0.4]),
    )


def cubic_banana() -> pm.Model:
    """Bent by a cube."""
    return black_box_free(
        lambda u: pm.math.stack([u[0], u[1] - u[0] ** 3]),
        normal(2, 2.0),
        observed([0, 0], [1, 0.3]),
    )


def mild_banana() -> pm.Model:
    """Bent a little."""
    return black_box_free(
        lambda u: pm.math.stack([u[0], u[1] - 0.1 * u[0] ** 2]),
        normal(2, 2.0),
        observed([0.5, 0.2], [0.5, 0.4]),
    )


def hyperbola() -> pm.Model:
    """Only a product is observed: two ridges."""
    return black_box_free(lambda u: u[0] * u[1], normal(2, 1.0), observed(0.8, 0.2))


def ring() -> pm.Model:
    """Only a radius is observed."""
    return black_box_free(lambda u: (u**2).sum(), normal(2, 1.0), observed(2.0, 0.3))


def saturation() -> pm.Model:
    """Growth that saturates, with little noise."""
    rate = [0.55, 0.85, 1.1, 1.15, 1.35, 1.3, 1.35, 1.3]
    return black_box_free(
        lambda u: pm.math.exp(0.5 * u[0]) * (1 - pm.math.exp(-pm.math.exp(u[1]) * TIMES)),
        normal(2, 1.0),
        observed(rate, 0.1),
    )


def weak_saturation() -> pm.Model:
    """The same with much noise."""
    rate = [0.1, 0.9, 0.3, 1.0, 1.9, 0.8, 1.7, 1.1]
    return black_box_free(
        lambda u: pm.math.exp(u[0]) * (1 - pm.math.exp(-pm.math.exp(u[1]) * TIMES)),
        normal(2, 1.0),
        observed(rate, 0.6),
    )


def robust_line() -> pm.Model:
    """A line with an outlier, and heavy-tailed noise."""
    data = [0.1, 0.9, 2.2, 2.8, 9.0, 5.1, 5.8, 7.3]
    return black_box_free(
        lambda u: u[0] + u[1] * np.arange(8.0),
        normal(2, 3.0),
        lambda z: pm.StudentT("y", nu=3, mu=z, sigma=0.3, observed=data),
    )


def cauchy_location() -> pm.Model:
    """Two groups of data with Cauchy noise: two modes."""
    return black_box_free(
        lambda u: u[0] + np.zeros(4),
        normal(1, 5.0),
        lambda z: pm.Cauchy("y", z, 0.5, observed=[-3.0, -2.4, 2.6, 3.1]),
    )


def heavy_prior() -> pm.Model:
    """A sum is observed, of unknowns with a heavy-tailed prior."""
    return black_box_free(
        lambda u: u[0] + u[1],
        lambda: pm.StudentT("u", nu=2.5, mu=0, sigma=1, shape=2),
        observed(3.0, 1.0),
    )


def counts() -> pm.Model:
    """Exponential growth of counts."""
    return black_box_free(
        lambda u: pm.math.exp(u[0] + u[1] * (TIMES - 1.6)),
        normal(2, 1.0),
        lambda z: pm.Poisson("y", z, observed=[3, 2, 6, 4, 9, 7, 12, 15]),
    )


def few_counts() -> pm.Model:
    """The same with hardly any counts."""
    return black_box_free(
        lambda u: pm.math.exp(u[0] + u[1] * (TIMES - 1.6)),
        normal(2, 2.0),
        lambda z: pm.Poisson("y", z, observed=[0, 0, 0, 1, 0, 0, 1, 2]),
    )


def shares() -> pm.Model:
    """Logistic regression."""
    return black_box_free(
        lambda u: u[0] + u[1] * (TIMES - 1.6),
        normal(2, 1.5),
        lambda z: pm.Binomial("y", n=10, logit_p=z, observed=[1, 3, 2, 5, 4, 8, 9, 9]),
    )


def unknown_noise() -> pm.Model:
    """Gaussian data of unknown scale: the second unknown is its logarithm."""
    return black_box_free(
        lambda u: u,
        normal(2, 2.0),
        lambda u: pm.Normal("y", u[0], pm.math.exp(u[1]), observed=[0.3, 1.4, -0.6, 2.9, 1.1]),
    )


def funnel() -> pm.Model:
    """Scale of a group of effects and one of these, centered."""
    return black_box_free(
        lambda u: u,
        normal(2, 1.5),
        lambda u: (
            pm.Potential("effect", pm.logp(pm.Normal.dist(0, pm.math.exp(1.5 * u[0])), u[1])),
            pm.Normal("y", u[1], 1.0, observed=[0.6]),
        ),
    )


@dataclass(frozen=True)
class Problem:
    """A model whose posterior is known.

    `held_out` problems were not looked at when thresholds were chosen.
    """

    model: Callable[[], pm.Model]
    held_out: bool = False
    smooth: Callable[[], pm.Model] | None = None  # the model behind a rough one

    def reference(self) -> dict[str, Any]:
        """Mean and standard deviation of every variable."""
        model = (self.smooth or self.model)()
        if not isinstance(model, gallery.model.GalleryModel):
            return quadrature(model)
        known = model.reference
        return {
            str(name): {k: known[name].sel(statistic=k).values for k in ("mean", "sd")}
            for name in known.data_vars
        }


PROBLEMS = {
    "linear 10-d": Problem(lambda: gallery.linear_gaussian(10)),
    "linear 20-d": Problem(lambda: gallery.linear_gaussian(20), held_out=True),
    "decay": Problem(gallery.decay),
    "noisy decay": Problem(lambda: gallery.decay(noise_sd=0.3)),
    "poisson": Problem(gallery.poisson_regression, held_out=True),
    "smooth 5-d": Problem(gallery.smooth_nonlinear),
    "bimodal": Problem(gallery.bimodal),
    "four modes": Problem(lambda: gallery.four_modes(rough=False)),
    "rough": Problem(
        lambda: gallery.linear_multiscale(prior_variance=1.0),
        smooth=lambda: gallery.linear_multiscale(prior_variance=1.0, rough=False),
    ),
    "rough decay": Problem(
        lambda: gallery.decay(roughness=0.2), held_out=True, smooth=gallery.decay
    ),
    "banana": Problem(banana),
    "cubic banana": Problem(cubic_banana, held_out=True),
    "mild banana": Problem(mild_banana),
    "hyperbola": Problem(hyperbola, held_out=True),
    "ring": Problem(ring),
    "saturation": Problem(saturation, held_out=True),
    "weak saturation": Problem(weak_saturation),
    "robust line": Problem(robust_line),
    "cauchy location": Problem(cauchy_location),
    "heavy prior": Problem(heavy_prior, held_out=True),
    "counts": Problem(counts),
    "few counts": Problem(few_counts, held_out=True),
    "shares": Problem(shares),
    "unknown noise": Problem(unknown_noise, held_out=True),
    "funnel": Problem(funnel),
}


# -- cases --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A problem, a sampler and a setting."""

    problem: str
    sampler: str
    setting: str = ""
    draws: int = 1000
    tune: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    start: Callable[[np.random.Generator, int], Any] | None = None

    @property
    def name(self) -> str:
        """What identifies the case."""
        return ", ".join(filter(None, (self.problem, self.sampler, self.setting)))

    def step(self, d: int, seed: int) -> Any:
        """Step method of the case."""
        options = dict(self.options)
        if self.start is not None:
            options["initial_ensemble"] = self.start(np.random.default_rng(seed), d)
        if self.sampler == "multiscale":
            return pe.MultiscaleSampler(**{"walkers": 5} | options)
        return pe.EnsembleKalmanSampler(adjust=self.sampler == "adjusted", **options)


def far_off(rng: np.random.Generator, d: int) -> np.ndarray:
    """A tight ensemble far from any posterior."""
    return 6.0 + 0.3 * rng.standard_normal((100, d))


def in_one_mode(rng: np.random.Generator, d: int) -> np.ndarray:
    """An ensemble that knows the positive quadrant only."""
    return 1.0 + 0.2 * rng.standard_normal((100, d))


def each(problems: str, *arguments: Any, **keywords: Any) -> list[Case]:
    """One case for each of several problems."""
    return [Case(name.strip(), *arguments, **keywords) for name in problems.split(",")]


CASES = [
    *each(
        "linear 10-d, linear 20-d, decay, noisy decay, poisson, smooth 5-d, bimodal, four modes, "
        "rough, banana, cubic banana, mild banana, hyperbola, ring, saturation, weak saturation, "
        "robust line, cauchy location, heavy prior, counts, few counts, shares, unknown noise, "
        "funnel, rough decay",
        "plain",
    ),
    *each(
        "linear 10-d, decay, noisy decay, poisson, bimodal, banana, cubic banana, hyperbola, ring, "
        "weak saturation, cauchy location, heavy prior, few counts, unknown noise, funnel, "
        "rough, rough decay",
        "adjusted",
    ),
    *each(
        "linear 10-d, noisy decay, poisson, bimodal, banana, ring, shares, hyperbola, few counts, "
        "cauchy location",
        "multiscale",
    ),
    *each("rough, rough decay", "plain", "rough=True", options={"rough": True}),
    *each("four modes, ring, linear 20-d", "adjusted", "too short", draws=100, tune=2),
    *each("linear 10-d, smooth 5-d", "plain", "too short", draws=100, tune=2),
    *each("linear 20-d", "plain", "small ensemble", options={"ensemble_size": 23}),
    *each("noisy decay, saturation", "plain", "small ensemble", options={"ensemble_size": 5}),
    *each("decay, counts, linear 10-d", "plain", "far off", tune=2, start=far_off),
    *each("decay, robust line, linear 20-d", "adjusted", "far off", tune=2, start=far_off),
    *each("bimodal", "multiscale", "few steps", draws=100),
    *each("hyperbola", "multiscale", "one walker", options={"walkers": 1}),
]


def sample(case: Case, seed: int) -> xr.DataTree:
    """Run a case."""
    model = PROBLEMS[case.problem].model()
    d = sum(np.size(value) for value in model.initial_point().values())
    with model:
        return pm.sample(
            case.draws,
            tune=case.tune,
            chains=4,
            cores=1,
            step=case.step(d, seed),
            random_seed=seed,
            progressbar=False,
            compute_convergence_checks=False,
        )


def errors(idata: xr.DataTree, reference: dict[str, Any]) -> tuple[float, float]:
    """Largest error of a mean in posterior sd, and of an sd, in any parameter."""
    mean, sd = 0.0, 0.0
    for name, moments in reference.items():
        draws = idata.posterior[name].stack(sample=("chain", "draw"))
        shift = (draws.mean("sample").values - moments["mean"]) / moments["sd"]
        ratio = draws.std("sample").values / moments["sd"]
        mean = max(mean, float(np.abs(shift).max()))
        sd = max(sd, float(np.abs(ratio - 1).max()))
    return mean, sd


# -- the command --------------------------------------------------------------------------------


def load_or_sample(case: Case, seed: int, folder: Path) -> xr.DataTree:
    """Result of a case, from the folder of finished runs if it is there."""
    path = folder / f"{case.name}, {seed}.nc".replace(" ", "_")
    if not path.exists():
        idata = sample(case, seed)
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        idata.to_netcdf(partial, engine="h5netcdf")
        partial.rename(path)
    with xr.open_datatree(path, engine="h5netcdf") as idata:
        return idata.load()


def main() -> None:
    """Print the confusion table, and the runs that were judged wrongly."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cases", nargs="*", help="only cases whose name contains one of these")
    parser.add_argument("--runs", type=Path, default=Path("outputs/diagnosis"))
    options = parser.parse_args()
    pytensor.config.mode = "FAST_COMPILE"
    logging.getLogger("pymc").setLevel(logging.ERROR)
    logging.getLogger("pymc_ensemble").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")

    cases = [
        case
        for case in CASES
        if not options.cases or any(name in case.name for name in options.cases)
    ]
    references: dict[str, Any] = {}
    table: dict[tuple[bool, bool, bool], int] = defaultdict(int)
    for case in cases:
        problem = PROBLEMS[case.problem]
        if case.problem not in references:
            references[case.problem] = problem.reference()
        for seed in range(options.seeds):
            idata = load_or_sample(case, seed, options.runs)
            mean, sd = errors(idata, references[case.problem])
            diagnosis = pe.diagnose(idata)
            wrong, flagged = mean > MEAN or sd > SD, not diagnosis.trustworthy
            table[problem.held_out, wrong, flagged] += 1
            if wrong != flagged:
                kind = "missed" if wrong else "false alarm"
                print(
                    f"{kind:12}{case.name}, seed {seed}: mean off by {mean:.2f} sd, sd by {sd:.0%}"
                )
                print(f"{'':12}{diagnosis.headline}", flush=True)
    print(f"\n{len(cases)} cases, {options.seeds} seeds")
    for held_out in (False, True):
        print("problems that were held back" if held_out else "problems behind the thresholds")
        for wrong in (True, False):
            flagged, spared = table[held_out, wrong, True], table[held_out, wrong, False]
            share = flagged / max(flagged + spared, 1)
            name = "wrong" if wrong else "right"
            print(f"  {name}: {flagged} flagged, {spared} not ({share:.0%} flagged)")


if __name__ == "__main__":
    main()
