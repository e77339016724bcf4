"""Half and twice of the numbers that verdicts depend on: rows of docs/tuned_numbers.csv.

    python benchmarks/diagnosis.py --seeds 1 --runs outputs/diagnosis     first, to have runs
    python benchmarks/diagnosis_numbers.py --runs outputs/diagnosis

The evidence of every finished run is gathered once, and judged with each number halved and doubled.
Printed is of how many wrong runs, and of how many right ones, something is said against: with the
numbers as they are, and with each one changed. ``--refit`` gathers the evidence anew, for numbers
of the regression, and ``--every 5`` takes one run of five.
"""

import argparse
import logging
import warnings
from pathlib import Path

import numpy as np
import pytensor
import xarray as xr
from changed_numbers import changed, home_of
from diagnosis import CASES, MEAN, SD, errors
from known_posteriors import PROBLEMS

from pymc_ensemble.diagnosis import findings, modes
from pymc_ensemble.diagnosis.known import Evidence
from pymc_ensemble.diagnosis.run import Run

OF_VERDICTS = {
    "diagnosis.known.OFF": (0.425, 0.925),
    "samplers.certificate.CERTAIN": (1.25, 5.0),
    "diagnosis.findings.LARGEST_KHAT": (0.35, 1.4),
    "diagnosis.limits.FAR": (0.5, 2.0),
    "diagnosis.limits.LEAST_EFFICIENCY": (0.025, 0.1),
    "samplers.proposals.GOOD": (0.25, 0.75),
    "diagnosis.known.CHANCE_LIMIT": (0.1, 0.4),
    "diagnosis.known.POSSIBLE": (0.75, 3.0),
    "diagnosis.ensembles.LOST": (0.05, 0.2),
    "diagnosis.regression.ROUGH": (0.3, 1.2),
    "diagnosis.findings.UNEQUAL": (float(np.hypot(1, 0.15)), float(np.hypot(1, 0.6))),
    "diagnosis.findings.WIDE_OPEN": (10.0, 40.0),
    "samplers.proposals.POOR": (0.125, 0.5),
    "diagnosis.weights.FEWEST_WEIGHTS": (25, 100),
    "diagnosis.modes.FEWEST_VISITS": (1, 4),
}
OF_REGRESSION = {
    "diagnosis.regression.LARGEST_WEIGHT": (5, 20),
    "diagnosis.regression.SHARE_OF_LAW": (0.15, 0.6),
    "diagnosis.regression.BOTTOM": (5, 20),
    "diagnosis.regression.HORIZON": (1.5, 6.0),
    "diagnosis.regression.CLOSE": (0.1, 0.4),
    "diagnosis.regression.VAGUE": (0.05, 0.2),
    "diagnosis.regression.FUNCTIONS": (25, 100),
    "diagnosis.regression.N_KERNELS": (150, 600),
    "diagnosis.regression.ROUNDS": (3, 10),
    "diagnosis.regression.KERNEL_ROUNDS": (1, 4),
}


def finished(folder, seeds):
    """Finished runs with their names, and whether each is wrong."""
    references = {}
    for case in CASES:
        for seed in range(seeds):
            path = folder / f"{case.name}, {seed}.nc".replace(" ", "_")
            if not path.exists():
                continue
            if case.problem not in references:
                references[case.problem] = PROBLEMS[case.problem].reference()
            with xr.open_datatree(path, engine="h5netcdf") as opened:
                idata = opened.load()
            mean, sd = errors(idata, references[case.problem])
            yield path.stem, Run.of(idata, None), mean > MEAN or sd > SD


def evidence_of(run):
    """All that is known of a run."""
    return Evidence.of(run, None, np.random.default_rng(0))


def modes_lost(run):
    """Whether the burn-in has seen a mode that the draws do not have."""
    known = run.burn_in is not None and run.alone and run.origin.density_known
    return bool(known and modes.missed_mode(run, *run.burn_in, "{}"))


def doubted(gathered, lost):
    """Whether anything is said against each of the runs."""
    judged = [bool(findings.judge(evidence)) for evidence in gathered]
    return np.array(judged) | np.array(lost)


def main():
    """Print what half and twice do."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("outputs/diagnosis"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--refit", action="store_true", help="numbers of the regression")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="one run of N")
    parser.add_argument("--only", nargs="*", help="only these numbers")
    options = parser.parse_args()
    pytensor.config.mode = "FAST_COMPILE"
    logging.getLogger("pymc_ensemble").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    runs = list(finished(options.runs, options.seeds))[:: options.every]
    wrong = np.array([one for _, _, one in runs])
    gathered = [evidence_of(run) for _, run, _ in runs]
    lost = [modes_lost(run) for _, run, _ in runs]
    usual = doubted(gathered, lost)
    print(f"{len(runs)} runs: {usual[wrong].sum()} of {wrong.sum()} wrong ones are told")
    print(f"and {usual[~wrong].sum()} of {(~wrong).sum()} right ones doubted", flush=True)
    for name, one, told in zip([name for name, _, _ in runs], wrong, usual, strict=True):
        if one != told:
            print(f"  {'missed' if one else 'false alarm'}: {name}")
    for number, values in (OF_REGRESSION if options.refit else OF_VERDICTS).items():
        module, name = home_of(number)
        if options.only and name not in options.only:
            continue
        for value in values:
            with changed(number, value):
                if options.refit:
                    now = doubted([evidence_of(run) for _, run, _ in runs], lost)
                elif module is modes:
                    now = doubted(gathered, [modes_lost(run) for _, run, _ in runs])
                else:
                    now = doubted(gathered, lost)
            which = [name for (name, _, _), a, b in zip(runs, now, usual, strict=True) if a != b]
            counts = f"{now[wrong].sum()} told and {now[~wrong].sum()} doubted"
            print(
                f"{number} {value}: {counts}; {len(which)} change: {', '.join(which[:6])}",
                flush=True,
            )


if __name__ == "__main__":
    main()
