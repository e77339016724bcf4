"""Posteriors of the gallery against exact ones, through `pymc.sample`: the figures of the docs.

Every seed has to stay below the bounds, with all evaluations counted by the forward map itself. The
bounds are two to three times the Monte Carlo error of the draws, which a median prints beside them.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pymc as pm
import pytest

import pymc_ensemble as pe
from pymc_ensemble import gallery

SEEDS = range(10)

pytestmark = pytest.mark.accuracy


@dataclass(frozen=True)
class Case:
    """A problem, the options and length of a run, and what is promised for it."""

    problem: str
    evaluations: int
    mean: float
    sd: float
    draws: int
    arguments: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)
    unit_box: bool = False
    reference: dict | None = None

    def model(self) -> Any:
        return getattr(gallery, self.problem)(**self.arguments)

    def moments(self) -> Any:
        arguments = self.arguments if self.reference is None else self.reference
        return getattr(gallery, self.problem)(**arguments).reference

    def __str__(self) -> str:
        options = {**self.arguments, **self.options}
        return self.problem + "".join(f"-{k}={v}" for k, v in options.items())


CASES = [
    Case("linear_gaussian", 2100, 0.08, 0.05, 1800, {"d": 10}),
    Case("linear_gaussian", 4200, 0.06, 0.03, 3800, {"d": 50}, {"ensemble_size": 200}),
    Case("linear_multiscale", 2100, 0.10, 0.05, 1800, {"rough": False}, unit_box=True),
    Case(
        "linear_multiscale",
        4200,
        0.20,
        0.04,
        2500,
        {"rough": True},
        {"rough": True},
        unit_box=True,
        reference={"rough": False},
    ),
    Case(
        "decay",
        6600,
        0.20,
        0.10,
        4000,
        {"roughness": 4.0},
        {"rough": True},
        reference={"roughness": 0.0},
    ),
    Case("poisson_regression", 4100, 0.08, 0.05, 3600),
    Case("darcy", 2100, 0.12, 0.06, 1000),
    Case("decay", 20100, 0.03, 0.03, 19000, {"noise_sd": 0.3}, {"adjust": True}),
    Case("bimodal", 10400, 0.06, 0.03, 9400, {}, {"adjust": True}),
]


def errors(posterior: Any, reference: Any) -> tuple[float, float]:
    """Root mean square over the parameters of both errors, in posterior standard deviations."""
    shifts, ratios = [], []
    for name, moments in reference.items():
        draws = posterior[name].values.reshape(-1, *moments.shape[1:])
        mean, sd = moments.sel(statistic="mean").values, moments.sel(statistic="sd").values
        shifts.append(np.ravel((draws.mean(0) - mean) / sd))
        ratios.append(np.ravel(draws.std(0) / sd - 1))
    return tuple(float(np.sqrt((np.concatenate(v) ** 2).mean())) for v in (shifts, ratios))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_seed_is_within_bounds(case, capsys):
    model, reference = case.model(), case.moments()
    figures = []
    for seed in SEEDS:
        options = {"ensemble_size": 100, "adjust": False, **case.options}
        if case.unit_box:
            options["initial_ensemble"] = np.random.default_rng(seed).random((100, 2))
        before = model.forward.n_evaluations if model.forward else 0
        with model:
            idata = pm.sample(
                step=pe.EnsembleKalmanSampler(**options),
                draws=case.draws,
                chains=1,
                cores=1,
                random_seed=seed,
                progressbar=False,
                compute_convergence_checks=False,
            )
        counted = int(idata.sample_stats.n_evals[0, -1])
        if model.forward:
            assert model.forward.n_evaluations - before == counted
        figures.append((counted, *errors(idata.posterior, reference)))
    figures = np.array(figures)
    with capsys.disabled():
        median, worst = np.median(figures, axis=0), figures.max(axis=0)
        print(
            f"\n{case}: evaluations {median[0]:.0f}, mean {median[1]:.3f} (worst {worst[1]:.3f}), "
            f"sd {median[2]:.3f} (worst {worst[2]:.3f})"
        )
    assert (figures[:, 0] <= case.evaluations).all()
    assert (figures[:, 1] <= case.mean).all()
    assert (figures[:, 2] <= case.sd).all()
