"""How often `diagnose` flags posteriors that are wrong, and spares those that are right.

    python benchmarks/diagnosis.py [--seeds 5] [--cases NAME ...] [--parts PART ...] [--runs FOLDER]

samples problems whose posteriors are known, many of them such that the result is wrong on purpose,
and prints the confusion table: for the problems with which thresholds were chosen, for those that
were held back then, and for those that were written later. Wrong is a mean that is off by more than
0.3 posterior standard deviations, or a standard deviation that is off by more than 20%, in any
parameter. Finished runs are kept in a folder, so that only what is missing is computed. All of it
is 750 runs, and takes about half an hour; ``--seeds 1`` takes a fifth of that.
"""

import argparse
import logging
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import xarray as xr
from known_posteriors import PROBLEMS, Moments

import pymc_ensemble as pe

PARTS = {
    "chosen": "problems with which thresholds were chosen",
    "held back": "problems that were held back then",
    "fresh": "problems that were written later",
}
MEAN, SD = 0.3, 0.2  # errors beyond which a result is wrong


# -- cases --------------------------------------------------------------------------------------


SAMPLERS: dict[str, Callable[..., Any]] = {
    "plain": partial(pe.EnsembleKalmanSampler, adjust=False),
    "adjusted": partial(pe.EnsembleKalmanSampler, adjust=True),
    "published": partial(pe.EnsembleKalmanSampler, scheme="paper"),
    "multiscale": partial(pe.MultiscaleSampler, walkers=5),
    "surrogate": pe.EnsembleGaussianProcessSampler,
    "tested surrogate": partial(pe.EnsembleGaussianProcessSampler, adjust=True),
    "Langevin": pe.EnsembleLangevinSampler,
}


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
        return SAMPLERS[self.sampler](**options)


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
    # the fresh ones
    *each(
        "rosenbrock, rosenbrock chain, schools, neal, gamma rates, uneven modes, robust curve, "
        "heavy location, logistic, shell, ripples, rough plane, quiet kinetics, loud kinetics, "
        "heteroscedastic, corner, exchange, wave, kink, breakdown, linear 40-d",
        "plain",
    ),
    *each(
        "rosenbrock, rosenbrock chain, schools, neal, gamma rates, uneven modes, robust curve, "
        "heavy location, shell, ripples, rough plane, quiet kinetics, loud kinetics, corner, "
        "exchange, wave, kink, breakdown",
        "adjusted",
    ),
    *each(
        "rosenbrock, gamma rates, uneven modes, heavy location, logistic, shell, heteroscedastic, "
        "exchange, wave, kink",
        "multiscale",
    ),
    *each("rosenbrock, logistic, heteroscedastic, ripples, rough plane, corner", "surrogate"),
    *each("rosenbrock, kink, loud kinetics", "tested surrogate"),
    *each("rosenbrock, wave, shell", "surrogate", "too short", tune=2),
    *each("rough plane, loud kinetics", "plain", "rough=True", options={"rough": True}),
    *each("rosenbrock chain, logistic, schools", "adjusted", "too short", draws=100, tune=2),
    *each("logistic, linear 40-d", "plain", "too short", draws=100, tune=2),
    *each("rosenbrock, gamma rates", "plain", "small ensemble", options={"ensemble_size": 6}),
    *each("linear 40-d", "plain", "small ensemble", options={"ensemble_size": 43}),
    *each("heteroscedastic, linear 40-d", "plain", "far off", tune=2, start=far_off),
    *each("logistic, rosenbrock", "adjusted", "far off", tune=2, start=far_off),
    *each("exchange", "multiscale", "few steps", draws=60),
    *each("gamma rates, heteroscedastic", "published"),
    *each("logistic, rosenbrock", "Langevin"),
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


def errors(idata: xr.DataTree, reference: Moments) -> tuple[float, float]:
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
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--runs", type=Path, default=Path("outputs/diagnosis"))
    options = parser.parse_args()
    pytensor.config.mode = "FAST_COMPILE"
    logging.getLogger("pymc").setLevel(logging.ERROR)
    logging.getLogger("pymc_ensemble").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")

    cases = [
        case
        for case in CASES
        if PROBLEMS[case.problem].part in options.parts
        and (not options.cases or any(name in case.name for name in options.cases))
    ]
    references: dict[str, Moments] = {}
    table: Counter[tuple[str, bool, bool]] = Counter()
    for case in cases:
        problem = PROBLEMS[case.problem]
        if case.problem not in references:
            references[case.problem] = problem.reference()
        for seed in range(options.seeds):
            try:
                idata = load_or_sample(case, seed, options.runs)
            except pm.exceptions.SamplingError as error:
                print(f"no result   {case.name}, seed {seed}: {str(error).splitlines()[0]}")
                continue
            mean, sd = errors(idata, references[case.problem])
            diagnosis = pe.diagnose(idata)
            wrong, flagged = mean > MEAN or sd > SD, not diagnosis.trustworthy
            table[problem.part, wrong, flagged] += 1
            if wrong != flagged:
                kind = "missed" if wrong else "false alarm"
                print(
                    f"{kind:12}{case.name}, seed {seed}: mean off by {mean:.2f} sd, sd by {sd:.0%}"
                )
                print(f"{'':12}{diagnosis.headline}", flush=True)
    print(f"\n{len(cases)} cases, {options.seeds} seeds")
    for part in options.parts:
        print(PARTS[part])
        for wrong in (True, False):
            flagged, spared = table[part, wrong, True], table[part, wrong, False]
            share = flagged / max(flagged + spared, 1)
            name = "wrong" if wrong else "right"
            print(f"  {name}: {flagged} flagged, {spared} not ({share:.0%} flagged)")


if __name__ == "__main__":
    main()
