"""Command line of the benchmark."""

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import xarray as xr
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pymc_ensemble.benchmark import report, scaling, study
from pymc_ensemble.benchmark.problems import PROBLEMS
from pymc_ensemble.benchmark.samplers import SAMPLERS, silence
from pymc_ensemble.benchmark.study import Case

QUICK = {
    "problems": ["decay", "rough linear", "bimodal"],
    "samplers": ["EKS", "EKS adjusted", "multiscale", "EGPS", "emcee", "DEMetropolisZ"],
    "budget": 2000,
    "seeds": 1,
}
FULL = {"problems": list(PROBLEMS), "samplers": list(SAMPLERS), "budget": 10_000, "seeds": 5}
STUDIES = ("comparison", "scaling")


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m pymc_ensemble.benchmark",
        description="Compare the ensemble samplers with NUTS, emcee and others. Each run is kept "
        "in a file. After an interrupt, the same command goes on with the runs that are missing.",
    )
    made.add_argument(
        "studies", nargs="*", metavar="STUDY", help=f"{' or '.join(STUDIES)}; both by default"
    )
    made.add_argument(
        "--quick", action="store_true", help="run a small one, in under three minutes"
    )
    made.add_argument("--problems", nargs="+", choices=list(PROBLEMS), metavar="NAME")
    made.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), metavar="NAME")
    made.add_argument("--seeds", type=int, help="runs of each sampler on each problem; default 5")
    made.add_argument(
        "--budget",
        type=int,
        help="evaluations that ensembles of this package may spend; single chains may spend 4 "
        "times, ensembles of other packages 10 to 30 times as many; default 10000",
    )
    made.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    made.add_argument(
        "--output", type=Path, default=Path("benchmark-results"), help="folder of the results"
    )
    made.add_argument(
        "--report", action="store_true", help="only write tables and pictures of the kept runs"
    )
    made.add_argument("--list", action="store_true", help="show problems and samplers, and stop")
    return made


@contextmanager
def progress(console: Console, total: int, what: str) -> Iterator[Callable[[Case], None]]:
    """Progress bar that counts runs."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=total)
        yield lambda case: bar.update(
            task, advance=1, description=f"{case.problem}, {case.sampler}"
        )


def main(arguments: list[str] | None = None) -> None:
    """Run what the command line asks for.

    Parameters
    ----------
    arguments : list of str, optional
        Arguments of the command line, by default those of the process.
    """
    matplotlib.use("Agg")
    console = Console()
    made = parser()
    options = made.parse_args(arguments)
    if unknown := set(options.studies) - set(STUDIES):
        made.error(f"unknown: {', '.join(unknown)}. There are {' and '.join(STUDIES)}.")
    for name in ("seeds", "budget", "workers"):
        value = getattr(options, name)
        if value is not None and value < 1:
            made.error(f"--{name} must be at least 1, not {value}.")
    if options.list:
        console.print("Problems: " + ", ".join(PROBLEMS))
        missing = [name for name, sampler in SAMPLERS.items() if not sampler.installed]
        console.print("Samplers: " + ", ".join(SAMPLERS))
        console.print("not installed: " + (", ".join(missing) or "none"))
        return
    defaults = QUICK if options.quick else FULL
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    studies = options.studies or STUDIES
    folder = options.output / ("quick" if options.quick else "full")
    if "comparison" in studies:
        compare(options, folder, console)
    if "scaling" in studies:
        scale(options, folder, console)


def compare(options: argparse.Namespace, folder: Path, console: Console) -> None:
    """Run samplers on problems, and write what came out."""
    runs = folder / "runs"
    if not options.report:
        todo = study.cases(options.problems, options.samplers, options.budget, options.seeds)
        for name in options.samplers:
            if not SAMPLERS[name].installed:
                console.print(f"{name} is left out: {SAMPLERS[name].requires} is not installed.")
        with progress(console, len(todo), "comparison") as told:
            study.run_all(todo, runs, options.workers, told)
    results = study.load(runs, options.budget)
    if not results:
        console.print(f"There are no results in {runs}.")
        return
    study.combined(results).to_netcdf(folder / "comparison.nc", engine="h5netcdf")
    text = report.tables(results)
    if {"EKS adjusted", "emcee"} <= {sampler for _, sampler in results}:
        text += "\n## What the ensemble Kalman sampler saves\n\n" + report.savings(results)
    (folder / "comparison.md").write_text(text, encoding="utf-8")
    report.draw_errors(results, folder / "comparison.png")
    console.print(text, markup=False, soft_wrap=True)
    console.print(f"Tables, pictures and netCDF are in {folder}.")


def scale(options: argparse.Namespace, folder: Path, console: Console) -> None:
    """Measure costs by dimension, particles, outputs and workers, and write them."""
    quick = options.quick
    dimensions = (2, 5) if quick else (2, 5, 10, 20, 50, 100)
    samplers = ("EKS", "emcee") if quick else scaling.DIMENSION_SAMPLERS
    runs = folder / "dimension"
    if not options.report:
        names = [f"linear {d}-d" for d in dimensions]
        todo = study.cases(names, samplers, options.budget, min(options.seeds, 3))
        with progress(console, len(todo), "dimension") as told:
            study.run_all(todo, runs, options.workers, told)
    found: dict[str, xr.Dataset] = {}
    makers: dict[str, Callable[[], xr.Dataset]] = {
        "J": lambda: scaling.ensemble_size((30, 100) if quick else (30, 100, 300, 1000, 10_000)),
        "K": lambda: scaling.outputs((1, 100) if quick else (1, 10, 100, 1000, 10_000, 100_000)),
        "workers": lambda: scaling.cluster(
            scaling.measured_batches((100,) if quick else (100, 1000)),
            (1, 10, 100) if quick else (1, 3, 10, 30, 100, 300, 1000),
        ),
    }
    for name, make in makers.items():
        file = folder / f"{name}.nc"
        if not file.exists() and not options.report:
            console.print(f"Scaling by {name}")
            file.parent.mkdir(parents=True, exist_ok=True)
            with silence():
                make().to_netcdf(file, engine="h5netcdf")
        if file.exists():
            found[name] = xr.load_dataset(file, engine="h5netcdf")
    results = study.load(runs, options.budget)
    if not results and not found:
        console.print(f"There are no results in {folder}.")
        return
    text = report.scaling_tables(results, found)
    (folder / "scaling.md").write_text(text, encoding="utf-8")
    report.draw_scaling(results, found, folder / "scaling.png")
    console.print(text, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
