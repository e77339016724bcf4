"""A simulator that is a program of its own, which reads and writes files.

    python examples/external_program.py

The program gets its parameters in `input.json` and leaves `output.csv`. Each call runs in a scratch
folder of its own, four of them at the same time. Some runs hang; they are killed after a second.
Everything that was computed is in `outputs/external_program.db`: interrupt the script, or kill it,
and start it again; it goes on where it stopped.
"""

import json
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pymc as pm

import pymc_ensemble as pe
from pymc_ensemble.forward import ExternalProgram

# The program. Yours is more likely to be written in Fortran.
PROGRAM = """
import json, math, time
given = json.load(open("input.json"))
if given["rate"] > 4:
    time.sleep(3600)  # does not converge, and does not give up
with open("output.csv", "w") as file:
    for i in range(12):
        t = 0.2 + i * 3.8 / 11
        print(given["amplitude"] * math.exp(-given["rate"] * t), file=file)
"""

TIMES = np.linspace(0.2, 4, 12)
DATA = 1.3 * np.exp(-0.8 * TIMES) + 0.05 * np.random.default_rng(1).normal(size=12)


def write(folder, amplitude, rate):
    """Write the input files."""
    (folder / "input.json").write_text(json.dumps({"amplitude": amplitude, "rate": rate}))


def read(folder):
    """Read the output files."""
    return np.loadtxt(folder / "output.csv")


def main(folder=Path("outputs"), draws=200):
    """Sample, and show what it took."""
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / "external_program.db"
    with ThreadPoolExecutor(4) as workers:
        simulate = pe.forward_model(
            ExternalProgram([sys.executable, "-c", PROGRAM], write, read),
            output_shape=(12,),
            executor=workers,
            timeout=1.0,
            store=store,
        )
        with pm.Model():
            amplitude = pm.LogNormal("amplitude")
            rate = pm.LogNormal("rate")
            pm.Normal("y", simulate(amplitude, rate), 0.05, observed=DATA)
            idata = pm.sample(
                draws=draws,
                chains=1,
                cores=1,
                step=pe.EnsembleKalmanSampler(ensemble_size=20),
                random_seed=1,
                progressbar=False,
            )
    for name in ("amplitude", "rate"):
        values = idata.posterior[name]
        print(f"{name}: {values.mean().item():.3f} +- {values.std().item():.3f}")
    evaluations = pe.open_store(store)
    statuses, counts = np.unique(evaluations["status"], return_counts=True)
    print("Evaluations:", dict(zip(statuses.tolist(), counts.tolist(), strict=True)))
    print(f"Called in this run: {simulate.n_evaluations}")
    return idata


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
