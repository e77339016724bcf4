"""The forward map evaluated again at some draws."""

from dataclasses import dataclass

import numpy as np
import pymc as pm
from numpy.typing import NDArray

from pymc_ensemble.log import ProgressLog
from pymc_ensemble.problem.driver import Account, Driver
from pymc_ensemble.problem.inverse_problem import InverseProblem, problem_of
from pymc_ensemble.problem.points import unconstrained

from .findings import ROUGH, SMOOTH, UNTRUE, Evidence, Finding
from .run import Run

FloatArray = NDArray[np.float64]

REPEATS = 4  # evaluations at each of some draws
JITTER = 1e-6  # in posterior sd: deterministic models remember points that are the same


def _log_density(problem: InverseProblem, U: FloatArray, Z: FloatArray) -> FloatArray:
    """Log densities from forward outputs, NaN where these are not finite."""
    failed = ~np.isfinite(Z).all(1)
    return np.where(failed, np.nan, -problem.loss(Z) - problem.prior_potential(U))


@dataclass(frozen=True)
class Repeated:
    """What evaluations at some draws, made again, have shown.

    Attributes
    ----------
    n_evaluations, n_failed : int
    noise : float
        Standard deviation of the log density at one and the same point.
    luck : float
        By how much the log density of draws is higher than that of their points, usually.
    error : float
        Standard deviation of the log densities of draws about those of their points, without what
        noise explains.
    """

    n_evaluations: int
    n_failed: int
    noise: float
    luck: float
    error: float

    def judge(self, evidence: Evidence) -> tuple[list[Finding], list[str]]:
        """What speaks against the run, and what is to be noted."""
        run, found = evidence.run, []
        told = (
            f"evaluated again at the same points, the log density scatters by {self.noise:.1f}: "
            "the forward map is stochastic, or rough at the smallest scale"
        )
        if self.noise > ROUGH and run.exact:
            reason = f"{told}. A Metropolis test keeps lucky evaluations"
            if self.luck > 2 * self.noise / np.sqrt(self.n_evaluations / REPEATS):
                reason += f": the draws' log densities are higher by {self.luck:.1f}"
            found.append(Finding("doubtful", f"{reason}.", f"{SMOOTH}."))
        elif self.noise > 1.0 and run.drawn_from_law and not run.fitted and evidence.fit is None:
            found.append(Finding("doubtful", f"{told}.", f"{SMOOTH}."))
        if run.cost == 0 and self.error > UNTRUE:
            found.append(
                Finding(
                    "wrong",
                    f"the surrogate's log density is off by {self.error:.1f} at the draws.",
                    "Give it more epochs (tune), a larger ensemble, or use adjust=True.",
                )
            )
        note = f"{self.n_evaluations} forward evaluations were made again at draws"
        note += f", of which {self.n_failed} failed" if self.n_failed else ""
        return found, [f"{note}: their log density scatters by {self.noise:.2g}"]


def repeat(
    model: pm.Model, run: Run, n_evaluations: int, rng: np.random.Generator, seed: int
) -> Repeated:
    """Evaluate the forward map several times at some draws.

    Parameters
    ----------
    model : pm.Model
    run : Run
        Draws of the model's free variables.
    n_evaluations : int
        Forward evaluations to spend.
    rng : numpy.random.Generator
    seed : int
        Of a stochastic forward model.

    Returns
    -------
    Repeated
    """
    problem, _ = problem_of(model)
    lp = run.stats["lp"].ravel()
    usable = np.flatnonzero(np.isfinite(lp))
    chosen = rng.choice(usable, min(n_evaluations // REPEATS, len(usable)), replace=False)
    shapes, values, start = model.eval_rv_shapes(), {}, 0
    for name in run.names:
        size = int(np.prod(shapes[name]))
        values[name] = run.pooled[chosen, start : start + size].reshape(-1, *shapes[name])
        start += size
    U = unconstrained(model, values)
    points = np.repeat(U, REPEATS, axis=0)
    points = points + JITTER * U.std(0) * rng.standard_normal(points.shape)
    driver = Driver(problem, model, Account(), ProgressLog("Repeated evaluations"))
    outputs = driver.evaluate(points, np.random.SeedSequence(seed)).outputs
    again = _log_density(problem, points, outputs).reshape(len(U), REPEATS)
    told = np.isfinite(again).sum(1)
    kept = told > 1
    if not kept.any():
        raise ValueError(
            f"All of the {again.size} forward evaluations at draws failed, the first one at "
            f"{driver.account.first_failure}\nDoes the forward map still work?"
        )
    again, told = again[kept], told[kept]
    mean, variance = np.nanmean(again, axis=1), np.nanvar(again, axis=1, ddof=1)
    difference = lp[chosen][kept] - mean
    explained = float((variance / told).mean())
    return Repeated(
        points.shape[0],
        int((~np.isfinite(outputs).all(1)).sum()),
        float(np.sqrt(variance.mean())),
        float(np.median(difference)),
        float(np.sqrt(max(difference.var() - explained, 0.0))),
    )
