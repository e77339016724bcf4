"""Repeated evaluations of the forward map at some draws."""

from dataclasses import dataclass

import numpy as np
import pymc as pm
from numpy.typing import NDArray

from pymc_ensemble.log import ProgressLog, number
from pymc_ensemble.problem.driver import Account, Driver
from pymc_ensemble.problem.inverse_problem import InverseProblem, problem_of

from .known import OFF, SMOOTH, Evidence, Finding
from .limits import FAR, WRONG_SD
from .regression import ROUGH
from .run import Run

FloatArray = NDArray[np.float64]

REPEATS = 4  # evaluations at each of some draws
REPEATS_OF_SURROGATE = 2  # the same for a surrogate: more draws show more than more repeats
JITTER = 1e-6  # in posterior sd: a deterministic model would remember the same point


def _log_density(problem: InverseProblem, U: FloatArray, Z: FloatArray) -> FloatArray:
    """Log densities from forward outputs, NaN where these are not finite."""
    failed = ~np.isfinite(Z).all(1)
    return np.where(failed, np.nan, -problem.loss(Z) - problem.prior_potential(U))


@dataclass(frozen=True)
class Agreement:
    """Agreement of the log density that draws carry with that of the forward map.

    The second is a linear function of the first, plus a rest. With a slope of b, the standard
    deviations of the draws are about the square root of b times the right ones.

    Attributes
    ----------
    error, error_sd : float
        Standard deviation of the difference over the draws, without what noise explains, and the
        standard error of that.
    slope, slope_sd : float
        Slope, and its standard error.
    """

    error: float
    error_sd: float
    slope: float
    slope_sd: float

    @classmethod
    def of(
        cls, carried: FloatArray, true: FloatArray, explained: float, spread: float
    ) -> "Agreement":
        """Compare log densities, each of shape (m,).

        Parameters
        ----------
        carried : ndarray of shape (m,)
            Those that draws carry.
        true : ndarray of shape (m,)
            Those of the forward map.
        explained : float
            Variance of `true` that its noise explains.
        spread : float
            Standard deviation of `carried` over all draws.
        """
        s, t = carried - carried.mean(), true - true.mean()
        m = len(s)
        if m < 4 or not s.any():
            return cls(float(np.std(t - s)), np.inf, np.nan, np.inf)
        slope = float(s @ t / (s @ s))
        rest = t - slope * s
        variance = float(rest @ rest) / (m - 2)
        slope_sd = float(np.sqrt(variance / (s @ s)))
        tilt = ((slope - 1) ** 2 - slope_sd**2) * spread**2  # eq. (D9)
        error = float(np.sqrt(max(tilt + variance - explained, 0.0)))
        # standard errors of the two terms; the second is a mean of squares
        of_rest = float(np.std(rest**2) / np.sqrt(m))
        of_tilt = 2 * abs(slope - 1) * slope_sd * spread**2
        error_sd = np.hypot(of_rest, of_tilt) / max(2 * error, 1e-300) if error else 0.0
        return cls(float(error), float(error_sd), slope, float(slope_sd))

    @property
    def wrong(self) -> str:
        """Reason against the density that draws carry, if one is certain."""
        if self.error - self.error_sd > FAR:
            return f"is off by {number(self.error)} (standard error {number(self.error_sd)})"
        low, high = (max(self.slope + k * self.slope_sd, 1e-300) for k in (-1, 1))
        if 0.5 * np.log(low) > OFF * WRONG_SD or 0.5 * np.log(high) < -OFF * WRONG_SD:
            flat = self.slope > 1
            factor = self.slope if flat else 1 / max(self.slope, 1e-300)
            return f"is {number(factor)} times too {'flat' if flat else 'steep'}"
        return ""


@dataclass(frozen=True)
class Repeated:
    """Results of repeated evaluations at some draws.

    Attributes
    ----------
    n_evaluations, n_failed, n_draws : int
    noise : float
        Standard deviation of the log density at one and the same point.
    luck : float
        Median difference of the log density that draws carry and that of their points.
    agreement : Agreement
        How the log density of draws agrees with that of their points.
    """

    n_evaluations: int
    n_failed: int
    n_draws: int
    noise: float
    luck: float
    agreement: Agreement

    def judge(self, evidence: Evidence) -> tuple[list[Finding], list[str]]:
        """Findings against the run, and notes."""
        found = []
        told = (
            "evaluated again at the same points, the log density scatters by "
            f"{number(self.noise)}: the forward map is stochastic, or rough at the smallest scale"
        )
        if self.noise > ROUGH and evidence.law == "density":
            reason = f"{told}. A Metropolis test keeps lucky evaluations"
            if self.luck > 2 * self.noise / np.sqrt(self.n_draws):
                reason += f": the draws' log densities are higher by {number(self.luck)}"
            found.append(Finding("doubtful", f"{reason}.", f"{SMOOTH}."))
        elif (
            self.noise > 1.0
            and evidence.law in ("gaussian", "approximate")
            and evidence.fit is None
        ):
            found.append(Finding("doubtful", f"{told}.", f"{SMOOTH}."))
        if evidence.law == "surrogate" and (wrong := self.agreement.wrong):
            found.append(
                Finding(
                    "wrong",
                    f"the surrogate's log density {wrong} at the draws.",
                    "Give it more epochs (tune), a larger ensemble, or use adjust=True.",
                )
            )
        note = f"{self.n_evaluations} forward evaluations were made again at draws"
        note += f" ({self.n_failed} of them failed)" if self.n_failed else ""
        return found, [f"{note}: their log density scatters by {number(self.noise)}"]


def repeat(
    model: pm.Model, run: Run, n_evaluations: int, rng: np.random.Generator, seed: int
) -> Repeated:
    """Evaluate the forward map several times at some draws.

    Parameters
    ----------
    model : pm.Model
    run : Run
        Draws of the model.
    n_evaluations : int
        Forward evaluations to spend.
    rng : numpy.random.Generator
    seed : int
        Seed of a stochastic forward model.

    Returns
    -------
    Repeated
    """
    problem, _ = problem_of(model)
    times = REPEATS_OF_SURROGATE if run.origin.law == "surrogate" else REPEATS
    lp = run.stats["lp"]
    usable = np.flatnonzero(np.isfinite(lp))
    usable = usable[np.argsort(lp[usable])]
    m = min(n_evaluations // times, len(usable))
    chosen = usable[((np.arange(m) + rng.random()) * len(usable) / m).astype(int)]  # of all heights
    U = run.U[chosen]
    points = np.repeat(U, times, axis=0)
    points = points + JITTER * U.std(0) * rng.standard_normal(points.shape)
    driver = Driver(problem, model, Account(), ProgressLog("Repeated evaluations"))
    outputs = driver.evaluate(points, np.random.SeedSequence(seed)).outputs
    again = _log_density(problem, points, outputs).reshape(m, times)
    told = np.isfinite(again).sum(1)
    kept = told > 1
    if not kept.any():
        raise ValueError(
            f"All of the {again.size} forward evaluations at draws failed, the first one at "
            f"{driver.account.first_failure}\nCheck that the forward map still works."
        )
    again, told, carried = again[kept], told[kept], lp[chosen][kept]
    mean, variance = np.nanmean(again, axis=1), np.nanvar(again, axis=1, ddof=1)
    return Repeated(
        points.shape[0],
        int((~np.isfinite(outputs).all(1)).sum()),
        len(again),
        float(np.sqrt(variance.mean())),
        float(np.median(carried - mean)),
        Agreement.of(carried, mean, float((variance / told).mean()), float(lp[usable].std())),
    )
