"""Runs of samplers on problems. Each has a file of its own, so that a study can be resumed."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import xarray as xr
from threadpoolctl import threadpool_limits

from pymc_ensemble import __version__
from pymc_ensemble.benchmark.metrics import first_within
from pymc_ensemble.benchmark.problems import find
from pymc_ensemble.benchmark.samplers import SAMPLERS, sample
from pymc_ensemble.benchmark.traces import BUDGET_STEP, CURVES, curves

MEAN_BOUND, SD_BOUND, MASS_BOUND = 0.1, 0.1, 0.1
"""Largest errors of a posterior that counts as found: those of means in posterior standard
deviations, relative ones of standard deviations, and those of the masses of modes."""

OVER = {"rms": "in the root mean square over parameters", "worst": "for the worst parameter"}
"""How the errors of several parameters become one number."""


@dataclass(frozen=True)
class Case:
    """One run.

    Parameters
    ----------
    problem, sampler : str
        Names of a problem (`problems.find`) and of one of `SAMPLERS`.
    budget : int
        Evaluations that a sampler of this package spends.
    seed : int
        Seed of the random numbers.
    """

    problem: str
    sampler: str
    budget: int
    seed: int

    @property
    def file(self) -> str:
        """Name of the file of the result."""
        name = f"{self.problem}--{self.sampler}--{self.budget}--{self.seed}.nc"
        return name.replace(" ", "_").replace(",", "")

    def is_done(self, folder: Path) -> bool:
        """Whether there is a result that is not a failure."""
        path = folder / self.file
        if not path.exists():
            return False
        with xr.open_dataset(path, engine="h5netcdf") as result:
            return "failed" not in result.attrs

    def run(self, folder: Path) -> Path:
        """Sample and keep the result. A run that fails keeps its error message.

        Returns
        -------
        Path
            The file. It appears when it is complete.
        """
        path = folder / self.file
        problem = find(self.problem)
        try:
            with threadpool_limits(1):
                run = sample(problem, SAMPLERS[self.sampler], self.budget, self.seed)
            result = curves(run, problem)
        except Exception as error:
            result = xr.Dataset(
                {name: ("checkpoint", []) for name in ("evaluations", "rounds", *CURVES)},
                attrs={"failed": f"{type(error).__name__}: {error}"},
            )
        result.attrs |= {
            "problem": self.problem,
            "sampler": self.sampler,
            "budget": self.budget,
            "seed": self.seed,
            "version": __version__,
        }
        partial = path.with_suffix(".partial")
        result.to_netcdf(partial, engine="h5netcdf")
        partial.rename(path)
        return path


def cases(problems: Sequence[str], samplers: Sequence[str], budget: int, seeds: int) -> list[Case]:
    """All runs of a comparison, seed by seed: after an early end, all pairs have some seeds.

    A sampler is left out if it does not suit a problem, or if its package is not installed.
    """
    return [
        Case(problem, sampler, budget, seed)
        for seed, problem, sampler in itertools.product(range(1, seeds + 1), problems, samplers)
        if SAMPLERS[sampler].installed and SAMPLERS[sampler].suits(find(problem))
    ]


def run_all(
    todo: Sequence[Case],
    folder: Path,
    workers: int = 1,
    told: Callable[[Case], None] = lambda case: None,
) -> None:
    """Run the cases that have no result yet, or failed.

    Parameters
    ----------
    todo : sequence of Case
        The cases.
    folder : Path
        Folder of the results.
    workers : int, default 1
        Number of processes.
    told : callable, optional
        Called with each case that is done, also with those that had a result before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = []
    for case in todo:
        if case.is_done(folder):
            told(case)
        else:
            missing.append(case)
    if workers == 1 or len(missing) < 2:
        for case in missing:
            case.run(folder)
            told(case)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        waiting: dict[Future, Case] = {executor.submit(case.run, folder): case for case in missing}
        for done in as_completed(waiting):
            done.result()
            told(waiting[done])


@dataclass(frozen=True)
class Summary:
    """Runs of one sampler on one problem.

    Parameters
    ----------
    runs : sequence of Dataset
        One dataset for each seed.
    """

    runs: Sequence[xr.Dataset]

    @property
    def failures(self) -> list[str]:
        """Error messages of runs that failed."""
        return [run.attrs["failed"] for run in self.runs if "failed" in run.attrs]

    @property
    def finished(self) -> list[xr.Dataset]:
        """Runs with a result."""
        return [run for run in self.runs if run.sizes["checkpoint"]]

    def reached(self, cost: str = "evaluations", over: str = "rms") -> np.ndarray:
        """Evaluations, or rounds, until errors `over` parameters stay in bounds, or infinity."""
        return np.array(
            [
                first_within(
                    run[cost].values,
                    (run[f"mean_{over}"].values, MEAN_BOUND),
                    (run[f"sd_{over}"].values, SD_BOUND),
                    (run["mode_mass"].fillna(0.0).values, MASS_BOUND),
                )
                for run in self.finished
            ]
            + [np.inf] * len(self.failures)
        )

    def spent(self, cost: str = "evaluations") -> float:
        """Largest cost of a run."""
        return max((float(run[cost].max()) for run in self.finished), default=np.nan)

    def at_end(self, metric: str) -> np.ndarray:
        """A metric at the largest number of evaluations, one value per run."""
        return np.array(
            [float(run[metric][int(run["evaluations"].values.argmax())]) for run in self.finished]
        )

    def curve(self, metric: str) -> Iterator[tuple[float, float, float, float]]:
        """Evaluations, and median, least and largest metric of the runs that have values there."""
        bins: dict[int, list[tuple[float, float]]] = {}
        for run in self.finished:
            pairs = zip(run["evaluations"].values, run[metric].values, strict=True)
            for evaluations, value in pairs:
                place = round(np.log10(evaluations) / BUDGET_STEP)
                bins.setdefault(place, []).append((evaluations, value))
        for place in sorted(bins):
            evaluations, some = np.transpose(bins[place])
            yield float(np.median(evaluations)), float(np.median(some)), some.min(), some.max()

    @property
    def own_seconds(self) -> float:
        """Median time without the forward map, but with compilation."""
        return float(
            np.median(
                [run.attrs["seconds"] - run.attrs["forward_seconds"] for run in self.finished]
            )
        )


def load(folder: Path, budget: int | None = None) -> dict[tuple[str, str], Summary]:
    """Read results.

    Parameters
    ----------
    folder : Path
        Folder of the results.
    budget : int, optional
        Read only runs with this budget.

    Returns
    -------
    dict
        Summaries by (problem, sampler).
    """
    runs: dict[tuple[str, str], list[xr.Dataset]] = {}
    for path in sorted(folder.glob("*--*.nc")):
        run = xr.load_dataset(path, engine="h5netcdf")
        if budget is None or run.attrs["budget"] == budget:
            runs.setdefault((run.attrs["problem"], run.attrs["sampler"]), []).append(run)
    return {key: Summary(some) for key, some in runs.items()}


def combined(results: dict[tuple[str, str], Summary]) -> xr.Dataset:
    """All curves in one dataset.

    Returns
    -------
    xarray.Dataset
        Dimensions ``run`` and ``checkpoint``, with the coordinates ``problem``, ``sampler`` and
        ``seed`` of each run. Values after the end of a run are NaN.
    """
    runs = [run for summary in results.values() for run in summary.runs]
    kept = ["evaluations", "rounds", *CURVES]
    return xr.concat(
        [run[kept].assign_coords(checkpoint=range(run.sizes["checkpoint"])) for run in runs],
        dim="run",
        join="outer",
    ).assign_coords(
        {
            name: ("run", [run.attrs[name] for run in runs])
            for name in ("problem", "sampler", "seed")
        }
    )
