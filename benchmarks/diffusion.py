"""Conditional diffusion as published, on its first example and on a posterior with two modes.

    python benchmarks/diffusion.py [ROW ...] [--seeds 3] [--file diffusion.jsonl]

Rows are the functions in `ROWS`. Runs are kept in a file, one a line: an interrupted command goes
on, and more seeds can be added.

The paper's text does not tell the noise of its first example. Here it is ``y = theta^2`` with
normal noise of 0.1, theta uniform on (-4, 4), 2000 simulations, and 1000 evaluations of the
likelihood for each of two data sets. The Kullback-Leibler divergence is that of the exact density
from one of normal kernels about draws, on a mesh of 4000 points. The bandwidth is Silverman's, by
the exact standard deviation of one mode and the number of draws, or what weighted ones are worth.
Exact draws have a divergence, too: it is told beside.

The other example is a path of the Lorenz system, which knows the square of a parameter: 6561 prior
simulations of the cheap model, with ten times the time step, and 2000 evaluations of the fine one.
"""

import argparse
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pymc as pm
from numpy.typing import NDArray

import pymc_ensemble as pe

Array = NDArray[np.float64]
Found = dict[str, Any]

NOISE, LIMIT, SIMULATIONS, EVALUATIONS = 0.1, 4.0, 2000, 1000
DATA = (1.0, 9.0)
MESH = np.linspace(-LIMIT, LIMIT, 4000)
WAYS = ("weights", "equation", "map")
LORENZ_SIMULATIONS, LORENZ_EVALUATIONS = 81 * 81, 2000


def square(observed: float = 1.0) -> pm.Model:
    """The first example of the paper: the square of a parameter is measured."""
    with pm.Model() as model:
        theta = pm.Uniform("theta", -LIMIT, LIMIT)
        pm.Normal("y", theta**2, NOISE, observed=observed)
    return model


def exact(y: float) -> Array:
    """Density on the mesh."""
    density = np.exp(-0.5 * ((y - MESH**2) / NOISE) ** 2)
    return density / (density.sum() * (MESH[1] - MESH[0]))


def smoothed(draws: Array, y: float, worth: float) -> Array:
    """Density of normal kernels about draws, on the mesh."""
    share = exact(y) * (MESH[1] - MESH[0])
    center = share @ np.abs(MESH)
    sd = np.sqrt(share @ (np.abs(MESH) - center) ** 2)
    width = 0.9 * sd * worth**-0.2
    density = np.zeros_like(MESH)
    for part in np.array_split(draws, max(1, len(draws) // 2000)):
        density += np.exp(-0.5 * ((MESH[:, None] - part) / width) ** 2).sum(1)
    return density / (density.sum() * (MESH[1] - MESH[0]))


def divergence(draws: Array, y: float, worth: float | None = None) -> float:
    """Kullback-Leibler divergence of the exact density from that of draws."""
    p, q = exact(y), smoothed(draws, y, len(draws) if worth is None else worth)
    inside = p > 1e-12
    ratio = np.log(p[inside] / np.maximum(q[inside], 1e-12))
    return float((p[inside] * ratio).sum() * (MESH[1] - MESH[0]))


def draws_of(idata: Any, name: str) -> Array:
    """All draws of a parameter."""
    return idata["posterior"][name].to_numpy().ravel()


def densities(seed: int) -> tuple[dict[float, dict[str, tuple[Array, float]]], Found]:
    """Draws of each way, and what they are worth, by data; and what else is known."""
    model, told = square(), {}
    made = pe.simulations(model, SIMULATIONS, random_seed=seed)
    began = process_time()
    learned = pe.amortize(model, made, method="diffusion", random_seed=seed)
    told["training"] = process_time() - began
    found: dict[float, dict[str, tuple[Array, float]]] = {}
    for y in DATA:
        low = draws_of(learned.sample({"y": y}, 5000, random_seed=seed), "theta")
        found[y] = {"low-fidelity map": (low, len(low))}
        for by in WAYS:
            n = {"weights": EVALUATIONS, "equation": 4000, "map": 20_000}[by]
            fine = learned.refine({"y": y}, EVALUATIONS, random_seed=seed, by=by, draws=n)
            worth = n if by == "map" else EVALUATIONS * fine["posterior"].attrs["efficiency"]
            found[y][by] = draws_of(fine, "theta"), worth
        told[f"khat, y = {y:g}"] = fine["posterior"].attrs["khat"]
        told[f"efficiency, y = {y:g}"] = fine["posterior"].attrs["efficiency"]
    return found, told


def first_example(seed: int) -> Found:
    """Divergences, masses of the positive mode, and shares between the modes."""
    found, told = densities(seed)
    rng = np.random.default_rng(seed)
    for y, ways in found.items():
        p = exact(y) / exact(y).sum()
        ways["exact"] = MESH[rng.choice(len(MESH), EVALUATIONS, p=p)], EVALUATIONS
        for way, (draws, worth) in ways.items():
            told[f"{way}, y = {y:g}"] = {
                "divergence": round(divergence(draws, y, worth), 4),
                "positive": round(float((draws > 0).mean()), 3),
                "between": round(float((np.abs(draws) < 0.6 * np.sqrt(y)).mean()), 4),
            }
    return told


def lorenz(seed: int) -> Found:
    """Masses of two modes, and errors, of draws that the fine model has refined."""
    fine = pe.gallery.lorenz63_modes()
    with pm.Model() as cheap:
        g, rho = pm.Normal("g", 0.0, 3.0), pm.Normal("rho", 25.0, 3.0)
        observed = fine.rvs_to_values[fine["y"]].data
        pm.Normal("y", fine.cheap(g, rho), 1.0, observed=observed)
    made = pe.simulations(cheap, LORENZ_SIMULATIONS, random_seed=seed)
    learned = pe.amortize(cheap, made, method="diffusion", random_seed=seed)
    reference = {
        name: (float(values.mean()), float(values.std()))
        for name, values in (
            ("g", np.abs(fine.reference_draws["g"].to_numpy())),
            ("rho", fine.reference_draws["rho"].to_numpy()),
        )
    }

    def errors(idata: Any) -> Found:
        draws = {name: draws_of(idata, name) for name in reference}
        positive = float((draws["g"] > 0).mean())
        between = float((np.abs(draws["g"]) < 1.6).mean())
        draws["g"] = np.abs(draws["g"])
        shift = [abs(draws[k].mean() - mean) / sd for k, (mean, sd) in reference.items()]
        ratio = [abs(draws[k].std() / sd - 1) for k, (_, sd) in reference.items()]
        return {
            "positive": round(positive, 3),
            "between": round(between, 3),
            "error": [round(float(max(each)), 2) for each in (shift, ratio)],
        }

    told: Found = {"low-fidelity map": errors(learned.sample(random_seed=seed))}
    for by in WAYS:
        idata = learned.refine(
            evaluations=LORENZ_EVALUATIONS, model=fine, random_seed=seed, by=by, draws=4000
        )
        told[by] = errors(idata)
    attrs = idata["posterior"].attrs
    return told | {name: attrs[name] for name in ("khat", "efficiency", "n_evals")}


ROWS: dict[str, Callable[[int], Found]] = {"square": first_example, "Lorenz": lorenz}


def main() -> None:
    """Run what is not yet in the file, and print all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--file", type=Path, default=Path("diffusion.jsonl"))
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    known = {}
    if options.file.exists():
        for line in map(json.loads, options.file.read_text("utf-8").splitlines()):
            known[line["row"], line["seed"]] = line
    for name in options.rows:
        for seed in range(1, options.seeds + 1):
            if (name, seed) not in known:
                try:
                    found = ROWS[name](seed)
                except (RuntimeError, ValueError) as error:  # refusals are results, too
                    found = {"refused": str(error)}
                known[name, seed] = {"row": name, "seed": seed, **found}
                with options.file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(known[name, seed], default=float) + "\n")
            for key, value in known[name, seed].items():
                print(f"{name}, seed {seed}: {key}: {value}", flush=True)


if __name__ == "__main__":
    main()
