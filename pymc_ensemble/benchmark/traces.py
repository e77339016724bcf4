"""Draws of a run against what it had spent until then."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from pymc_ensemble.benchmark.metrics import (
    Array,
    mode_error,
    moment_errors,
    sliced_wasserstein,
    thinned,
)
from pymc_ensemble.benchmark.problems import Problem

BUDGET_STEP = 0.125  # step of the decimal logarithm of evaluations

BUDGETS = np.round(10 ** np.arange(1.5, 7.01, BUDGET_STEP)).astype(int)
"""Numbers of evaluations at which errors are measured."""

BURN_IN = (0.1, 0.25, 0.5)
"""Shares of a trace with warm-up that may be left out. The share that suits it best is taken."""

SHOWN_DRAWS = 1000
"""Number of draws that are kept for pictures."""

CURVES = ("mean_worst", "mean_rms", "sd_worst", "sd_rms", "wasserstein", "mode_mass")


@dataclass(frozen=True)
class Trace:
    """Draws in the order in which they were made, with the costs until then.

    Parameters
    ----------
    draws : ndarray of shape (n, d)
        Draws in unconstrained coordinates.
    evaluations, rounds : ndarray of shape (n,)
        Evaluations, and rounds of them, from the start of the run until each draw was made.
    warm_up : bool, default False
        Whether the draws begin with the warm-up. Then the burn-in is chosen in hindsight, at each
        number of evaluations. No user can do so, and the comparison favors these samplers.
    growing : bool, default True
        Whether a shorter run would have given the first of these draws. If not, the trace counts
        only as a whole.
    """

    draws: Array
    evaluations: NDArray
    rounds: NDArray
    warm_up: bool = False
    growing: bool = True

    def samples(self) -> Iterator[tuple[float, float, list[Array]]]:
        """At each budget: evaluations, rounds, and the draws for each share that is left out."""
        if not self.growing:
            yield float(self.evaluations[-1]), float(self.rounds[-1]), [self.draws]
            return
        for budget in BUDGETS:
            n = int(np.searchsorted(self.evaluations, budget, side="right"))
            if n < 2 * self.draws.shape[1] + 8:
                continue
            skipped = [int(share * n) for share in BURN_IN] if self.warm_up else [0]
            spent = min(float(budget), float(self.evaluations[-1]))
            yield spent, float(self.rounds[n - 1]), [self.draws[k:n] for k in skipped]
            if n == len(self.draws):
                return


@dataclass
class Run:
    """Traces of one sampler on one problem, and their costs.

    Parameters
    ----------
    traces : sequence of Trace
        One trace. Or several of different length, for samplers whose longer run is not the
        same run with more draws.
    seconds : float
        Time by the clock, with compilation.
    forward_seconds : float
        Time spent in the forward map.
    attributes : dict
        Further facts: gradients, R-hat, settings.
    """

    traces: Sequence[Trace]
    seconds: float = 0.0
    forward_seconds: float = 0.0
    attributes: dict[str, Any] = field(default_factory=dict)


def curves(run: Run, problem: Problem) -> xr.Dataset:
    """Errors against costs.

    Returns
    -------
    xarray.Dataset
        With the dimension ``checkpoint``: ``evaluations``, ``rounds``, and the errors of `CURVES`.
        ``draws`` are those at the end.
    """
    mean, sd = problem.moments
    rows: list[list[float]] = []
    last = run.traces[-1].draws[-1:]
    for trace in run.traces:
        for evaluations, rounds, choices in trace.samples():
            errors = [moment_errors(draws, mean, sd) for draws in choices]
            best = int(np.argmin([max(e.max() for e in pair) for pair in errors]))
            last = choices[best]
            row = [evaluations, rounds]
            for error in errors[best]:
                row += [error.max(), np.sqrt((error**2).mean())]
            row.append(sliced_wasserstein(last, problem.reference_draws, sd))
            modes = problem.modes
            row.append(mode_error(last, problem.reference_draws, modes) if modes else np.nan)
            rows.append(row)
    table = np.array(rows, dtype=float).reshape(-1, 2 + len(CURVES))
    names = ("evaluations", "rounds", *CURVES)
    return xr.Dataset(
        {name: ("checkpoint", table[:, k]) for k, name in enumerate(names)}
        | {"draws": (("draw", "coordinate"), thinned(last, SHOWN_DRAWS).astype(np.float32))},
        attrs=run.attributes | {"seconds": run.seconds, "forward_seconds": run.forward_seconds},
    )


class Meter:
    """Counts the batches in which a forward model is evaluated, by replacing its method.

    Attributes
    ----------
    batches : list of int
        Evaluations of each batch, without points that were known before.
    seconds : float
        Time of the batches, by the clock.
    """

    def __init__(self, forward: Any, clock: Callable[[], float] = perf_counter):
        self.batches: list[int] = []
        self.seconds = 0.0
        evaluate = forward.evaluate

        def metered(*args: Any, **kwargs: Any) -> Any:
            before, started = forward.n_evaluations, clock()
            try:
                return evaluate(*args, **kwargs)
            finally:
                if n := forward.n_evaluations - before:
                    self.batches.append(n)
                    self.seconds += clock() - started

        forward.evaluate = metered

    def rounds(self, evaluations: ArrayLike) -> NDArray:
        """Number of batches until so many evaluations were made."""
        return np.searchsorted(np.cumsum(self.batches), np.asarray(evaluations), side="left") + 1
