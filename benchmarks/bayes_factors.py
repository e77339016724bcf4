"""The evidences of the notebook on Bayes factors, by other ways to them: a table.

    python benchmarks/bayes_factors.py [--models SIR ...] [--seeds 3]

The code of `examples/bayes_factors.md` is run as it stands, and its models are taken. The columns:
what the notebook finds; bridge sampling with 2000 further evaluations; `pymc.sample_smc` with four
chains of 250 particles; and dynesty with 250 live points, on the unit
cube of the prior. Several seeds are for the last two.
"""

import argparse
import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from evidence import by_smc
from numpy.typing import NDArray
from pytensor.graph.replace import graph_replace

import pymc_ensemble as pe

Array = NDArray[np.float64]

NOTEBOOK = Path(__file__).parents[1] / "examples" / "bayes_factors.md"
LIVE_POINTS = 250


def session() -> dict[str, Any]:
    """What the code of the notebook defines."""
    import matplotlib

    matplotlib.use("Agg")
    text = NOTEBOOK.read_text(encoding="utf-8")
    defined: dict[str, Any] = {}
    for cell in re.findall(r"^```\{code-cell\}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        exec(cell, defined)
    return defined


def on_the_cube(model: pm.Model) -> tuple[int, Callable[[Array], float]]:
    """Dimension, and the log likelihood at quantiles of independent scalar priors."""
    cube, values = pt.dvector("cube"), {}
    for k, rv in enumerate(model.free_RVs):
        value = pm.icdf(rv, cube[k])
        transform = model.rvs_to_transforms[rv]
        values[model.rvs_to_values[rv]] = transform.forward(value, *rv.owner.inputs)
    log_likelihood = model.logp(vars=model.observed_RVs, jacobian=False)
    return len(values), pytensor.function([cube], graph_replace([log_likelihood], values)[0])


def nested(model: pm.Model, seed: int) -> tuple[float, float]:
    """Evidence by dynesty, and its standard error."""
    import dynesty

    d, log_likelihood = on_the_cube(model)
    sampler = dynesty.NestedSampler(
        lambda u: float(log_likelihood(np.clip(u, 1e-12, 1 - 1e-12))),
        lambda u: u,
        d,
        nlive=LIVE_POINTS,
        rstate=np.random.default_rng(seed),
    )
    sampler.run_nested(print_progress=False, dlogz=0.1)
    found = sampler.results
    return float(found.logz[-1]), float(found.logzerr[-1])


def evaluations(defined: dict[str, Any]) -> int:
    """How often the forward models of the notebook were evaluated so far."""
    models = {id(value): value for value in defined.values() if hasattr(value, "n_evaluations")}
    return sum(model.n_evaluations for model in models.values())


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    defined = session()
    models, runs, found = (defined[name] for name in ("models", "runs", "found"))
    print("| model | here | bridge | `pm.sample_smc` | dynesty |")
    print("|---|---|---|---|---|")
    for name in options.models or models:
        model, seeds = models[name], range(options.seeds)
        bridge = pe.log_evidence(runs[name], model=model, evaluations=2000)
        free = found[name]
        others = []
        for way in (by_smc, nested):
            before = evaluations(defined)
            values = [way(model, seed) for seed in seeds]
            told = ", ".join(f"{value:.2f} ± {error:.2f}" for value, error in values)
            others.append(f"{told} from {(evaluations(defined) - before) / len(values):.0f}")
        print(
            f"| {name} | {free.value:.2f} ± {free.standard_error:.2f} from "
            f"{int(runs[name].sample_stats.n_evals.max('draw').sum())} | "
            f"{bridge.value:.2f} ± {bridge.standard_error:.2f} | {others[0]} | {others[1]} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
