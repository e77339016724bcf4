"""Evidence about a run, from its draws and other evaluations, and findings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pymc_ensemble.samplers.ensemble import Law

from .cells import Misplaced
from .limits import WRONG_MEAN
from .regression import MOST_PARAMETERS, ROUGH, Regression
from .run import Run
from .weights import SamplingError, Weights

FloatArray = NDArray[np.float64]
Verdict = Literal["trustworthy", "doubtful", "wrong"]

# Estimates have errors themselves. So the verdict is "wrong" from this share of what makes a result
# wrong. Errors of a mean and of an sd count as the sides of a right angle
OFF = 0.85
POSSIBLE = 1.5  # standard errors that chance alone may well bring about
CHANCE_LIMIT = WRONG_MEAN / POSSIBLE  # standard error of a mean that chance may make wrong
ADJUST = "Use adjust=True, which is exact for deterministic forward maps"
SAMPLE = "Sample, from here on: pm.sample(step=EnsembleKalmanSampler(initial_ensemble=result))"
SMOOTH = "Use EnsembleKalmanSampler(rough=True), unless the fluctuations are meant"


@dataclass(frozen=True)
class Finding:
    """A finding against a result, and its remedy."""

    severity: Verdict
    reason: str
    remedy: str


def by_severity(found: Sequence[Finding]) -> list[Finding]:
    """Findings with the worst first, otherwise in the same order."""
    order: list[Verdict] = ["wrong", "doubtful"]
    return sorted(found, key=lambda finding: order.index(finding.severity))


@dataclass(frozen=True)
class Evidence:
    """All that is known of a run.

    Attributes
    ----------
    run : Run
    chance : SamplingError
    weights : Weights
    regression : Regression or None
    r_hat, ess_bulk : ndarray of shape (p,)
        Those of ArviZ; R-hat is NaN for a single chain.
    misplaced : Misplaced or None
        Draws where the posterior has almost no mass. None if a regression tells more, or if moves
        met a Metropolis test.
    noise : float, default 0.0
        Scatter of the log density at the same point, if evaluations were repeated.
    """

    run: Run
    chance: SamplingError
    weights: Weights
    regression: Regression | None
    r_hat: FloatArray
    ess_bulk: FloatArray
    misplaced: Misplaced | None = None
    noise: float = 0.0

    @classmethod
    def of(
        cls,
        run: Run,
        others: tuple[FloatArray, FloatArray] | None,
        rng: np.random.Generator,
    ) -> "Evidence":
        """Look at the draws, and at other points, shape (m, d), with log densities (m,)."""
        law, paths = run.origin.law, run.paths
        of_model, known = law not in ("surrogate", "amortized"), None if law == "fit" else others
        regression = None
        if run.alone and run.facts.dimension <= MOST_PARAMETERS and (of_model or known is not None):
            lp = run.stats["lp"] if of_model else np.full(len(run.U), np.nan)
            regression = Regression.of(run.U, lp, run.shown, rng, known)
        weights = Weights.of(run.X, run.log_ratio)
        evidence = cls(run, SamplingError.of(paths), weights, regression, *_arviz(paths))
        approximate = law in ("density", "gaussian", "approximate") and not run.origin.adjusted
        if evidence.fit is not None or not run.alone or not approximate:
            return evidence
        misplaced = Misplaced.of(run.U[run.draw], run.stats["lp"][run.draw], paths)
        return replace(evidence, misplaced=misplaced)

    @property
    def fit(self) -> Regression | None:
        """The regression, if it says anything about the posterior."""
        fit = self.regression
        return fit if fit is not None and fit.reliable and fit.largest_error < WRONG_MEAN else None

    @property
    def roughness(self) -> float:
        """Scatter of the log density about a smooth fit."""
        return 0.0 if self.regression is None else self.regression.noise

    @property
    def rough(self) -> bool:
        """Whether an exact sampler would sample fluctuations of the forward map."""
        fit = self.regression
        return fit is not None and fit.noise > max(ROUGH, fit.uncertainty)

    @property
    def to_be_exact(self) -> str:
        """Remedy for an approximation. If the map is noisy, a Metropolis test is no remedy."""
        if self.law == "inversion":
            return SAMPLE
        return SMOOTH if self.noise > ROUGH and self.law != "fit" else ADJUST

    @property
    def law(self) -> Law:
        """What the draws follow, as the sampler has declared."""
        return self.run.origin.law

    @property
    def apart(self) -> bool:
        """Whether chains are in different places: means scatter by twice the limit of an error."""
        return bool(np.nan_to_num(self.r_hat).max() > np.hypot(1, 2 * WRONG_MEAN))


def _arviz(X: FloatArray) -> tuple[FloatArray, FloatArray]:
    """R-hat and bulk effective sample size of ArviZ, each ensemble one chain."""
    import arviz_stats as az  # takes longer to load than PyMC, and arviz itself, with plots, more

    C, S, J, p = X.shape
    draws = xr.Dataset({"x": (("chain", "draw", "p"), np.moveaxis(X, 2, 1).reshape(C, J * S, p))})
    if C < 2:
        return np.full(p, np.nan), az.ess(draws)["x"].to_numpy()
    return az.rhat(draws)["x"].to_numpy(), az.ess(draws)["x"].to_numpy()
