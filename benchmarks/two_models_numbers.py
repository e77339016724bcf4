"""Half and twice of the numbers that two models depend on: rows of docs/tuned_numbers.csv.

    python benchmarks/two_models_numbers.py --seeds 2

Three pairs: two modes, a cheap model that is far off, and one that is near. Runs are kept in a
file, one a line, and an interrupted command goes on. Printed are geometric means of errors, fine
evaluations and cheap ones, relative to runs with the numbers as they are.
"""

import argparse
import warnings
from functools import partial
from pathlib import Path

import numpy as np
from changed_numbers import changed
from two_models import runs, two_models

PAIRS = ["Lorenz, two modes", "Darcy, 4 x 4", "Burgers"]
NUMBERS = {
    "samplers.gaussian_process.targets.MANY_OUTPUTS": (6, 24),
    "samplers.multifidelity.correction.SMALLEST_COMPONENT": (0.005, 0.02),
    "samplers.multifidelity.exploration.MIXED": (2, 8),
    "samplers.multifidelity.exploration.LONGEST": (60, 240),
    "samplers.multifidelity.exploration.EVOLUTIONS": (0, 2),
    "tolerance": (0.05, 0.2),
}


def run_with(number, value, pair, seed):
    """A run with another value of a number, or of an option."""
    if "." not in number:
        return two_models(pair, seed, **{number: value})
    with changed(number, value):
        return two_models(pair, seed)


def compared(found, usual):
    """What has changed, in words."""
    both = list(zip(found, usual, strict=True))
    if all((a["error"], a["cheap"]) == (b["error"], b["cheap"]) for a, b in both):
        return "the same, bit for bit"
    logs = np.array(
        [
            [np.log(np.max(a[what]) / np.max(b[what])) for what in ("error", "fine", "cheap")]
            for a, b in both
        ]
    )
    error, fine, cheap = np.exp(logs.mean(0))
    doubt = error * logs[:, 0].std(ddof=1) / np.sqrt(len(logs))
    told = f"error ×{error:.2f} ± {doubt:.2f}, evaluations ×{fine:.2f}, cheap ones ×{cheap:.2f}"
    lost = sum(not run["certified"] for run in found)
    return told + (f"; {lost} of {len(found)} runs not certified" if lost else "")


def main():
    """Print a line for each number and value."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--file", type=Path, default=Path("two_models_numbers.jsonl"))
    options = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)  # of simulators that blow up
    cases = [(pair, seed) for pair in PAIRS for seed in range(options.seeds)]

    def all_runs(what, function):
        jobs = [(f"{what}: {pair}, seed {n}", partial(function, pair, n)) for pair, n in cases]
        return runs(options.file, jobs)

    usual, told = all_runs("two models", two_models), []
    for number, values in NUMBERS.items():
        for value in values:
            found = all_runs(f"{number}={value}", partial(run_with, number, value))
            told.append(f"{number}={value}: {compared(found, usual)}")
    print("\n".join(told))


if __name__ == "__main__":
    main()
