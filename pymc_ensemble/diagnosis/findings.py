"""What speaks against a result, and what to do about it, from the evidence about a run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .regression import Regression
from .run import Run
from .weights import SamplingError, Weights

FloatArray = NDArray[np.float64]
Verdict = Literal["trustworthy", "doubtful", "wrong"]

# Errors that make a result wrong are 0.3 posterior sd in a mean, and 20% in an sd. What is
# estimated is estimated with an error, so less is enough to be doubted.
MEAN_LIMIT, SD_LIMIT, SUM_LIMIT = 0.27, 0.15, 1.25
CHANCE_LIMIT = 0.2  # standard error of a mean beyond which chance alone may make it wrong
DISAGREEMENT = 0.6  # the same, where chains are in different places
UNEQUAL = 1.05  # R-hat of chains that differ by more than chance
APART = 1.2  # R-hat of chains that have not seen the same posterior
LARGEST_KHAT = 0.7
VAGUE = 0.3  # standard error of a moment by a regression that says nothing about it
ROUGH = 0.6  # scatter of the log density about a smooth fit
LOW_ACCEPTANCE = 0.05  # of Metropolis tests
LOW_WOULD_BE = 0.6  # of moves that met none
LONG = 5  # sweeps that tell whether ensembles are still on their way
LOST = 0.1  # share of a posterior that may be cut off: of a Gaussian one, 0.2 sd of the mean
UNTRUE = 1.0  # error of a surrogate's log density
OPEN = 1.0  # uncertainty of a regression that has lost the posterior
WIDE_OPEN = 15.0  # the same, where chains agree: in tails that count for little
ADJUST = "Use adjust=True, which is exact for deterministic forward maps"
SMOOTH = "Use EnsembleKalmanSampler(rough=True), unless the fluctuations are meant"


@dataclass(frozen=True)
class Finding:
    """Something that speaks against a result, and what to do about it."""

    severity: Verdict
    reason: str
    remedy: str


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
    noise : float, default 0.0
        Scatter of the log density at one and the same point, where it was evaluated again.
    """

    run: Run
    chance: SamplingError
    weights: Weights
    regression: Regression | None
    r_hat: FloatArray
    ess_bulk: FloatArray
    noise: float = 0.0

    @property
    def fit(self) -> Regression | None:
        """The regression, if it says anything about the posterior."""
        fit = self.regression
        return fit if fit is not None and fit.reliable and fit.largest_error < VAGUE else None

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
        """What to do about an approximation: a Metropolis test would sample noise."""
        return SMOOTH if self.noise > ROUGH and not self.run.fitted else ADJUST

    @property
    def apart(self) -> bool:
        """Whether chains are in different places."""
        return bool(np.nan_to_num(self.r_hat).max() > APART)

    @property
    def disagree(self) -> bool:
        """Whether no chain could do without the others."""
        return bool(np.nan_to_num(self.r_hat).max() > UNEQUAL) and bool(
            self.chance.mean.max() > CHANCE_LIMIT
        )


def judge(evidence: Evidence) -> list[Finding]:
    """What speaks against a run.

    Parameters
    ----------
    evidence : Evidence

    Returns
    -------
    list of Finding
        The worst first.
    """
    parts = [
        _rough,
        _off,
        _by_chance,
        _mode_lost,
        _not_the_law,
        _not_arrived,
        _hardly_moved,
        _surrogate,
        _cut_off,
    ]
    return by_severity([finding for part in parts for finding in part(evidence)])


def first_look(run: Run) -> list[Finding]:
    """What speaks against one chain, as far as that can be told in next to no time.

    Parameters
    ----------
    run : Run
        With a single chain.

    Returns
    -------
    list of Finding
        The worst first.
    """
    unknown = np.full(len(run.labels), np.nan)
    weights = Weights.of(run.pooled, run.log_ratio)
    evidence = Evidence(run, SamplingError.of(run.X), weights, None, unknown, unknown)
    parts = [_not_the_law, _not_arrived, _hardly_moved, _surrogate, _cut_off]
    return by_severity([finding for part in parts for finding in part(evidence)])


def by_severity(found: Sequence[Finding]) -> list[Finding]:
    """The worst first, else in the same order."""
    order: list[Verdict] = ["wrong", "doubtful"]
    return sorted(found, key=lambda finding: order.index(finding.severity))


def worst(values: FloatArray, labels: Sequence[str]) -> tuple[float, str]:
    """Largest absolute value, and its label."""
    k = int(np.nanargmax(np.abs(values)))
    return float(values[k]), labels[k]


def _rough(evidence: Evidence) -> Iterator[Finding]:
    """A forward map whose fluctuations an exact sampler takes at face value."""
    run, fit, noise = evidence.run, evidence.fit, evidence.roughness
    told = f"the forward map is rough: the log density scatters by {noise:.1f} about a smooth fit."
    if run.exact and evidence.rough:
        told += (
            " An exact sampler samples the fluctuations, too, and not the smooth posterior behind "
            "them."
        )
        yield Finding("doubtful", told, f"{SMOOTH}.")
    elif not run.exact and noise > 1.0 and fit is None:
        yield Finding("doubtful", told, f"{SMOOTH}.")


def _off(evidence: Evidence) -> Iterator[Finding]:
    """Moments that differ from those of the density that the draws carry."""
    run, fit = evidence.run, evidence.fit
    if fit is None:
        return
    by = "by the log density that the draws carry."
    shift, where = worst(_beyond(fit.shift, fit.shift_error), run.labels)
    log_ratio = np.log(np.maximum(fit.sd_ratio, 1e-300))
    ratio, which = worst(_beyond(log_ratio, fit.sd_ratio_error), run.labels)
    both = abs(shift) / 0.3 + abs(ratio) / 0.2 > SUM_LIMIT
    if abs(shift) > MEAN_LIMIT or (both and abs(ratio) <= SD_LIMIT):
        k = run.labels.index(where)
        yield Finding(
            "wrong",
            f"the mean of `{where}` is off by {fit.shift[k]:+.2f} posterior standard deviations, "
            + by,
            _remedy_of_error(evidence, fit.shift[k], evidence.chance.mean[k]),
        )
    if abs(ratio) > SD_LIMIT or (both and abs(shift) <= MEAN_LIMIT):
        k = run.labels.index(which)
        yield Finding(
            "wrong",
            f"the standard deviation of `{which}` is {fit.sd_ratio[k]:.2f} times what it should "
            f"be, {by}",
            _remedy_of_error(evidence, log_ratio[k], evidence.chance.sd[k]),
        )


def _beyond(values: FloatArray, errors: FloatArray) -> FloatArray:
    """Values, nearer to zero by their standard errors."""
    return np.sign(values) * np.maximum(np.abs(values) - errors, 0.0)


def _remedy_of_error(evidence: Evidence, error: float, by_chance: float) -> str:
    """What to do about moments that are off."""
    run = evidence.run
    reweight = "or correct these draws: pymc_ensemble.reweight."
    if evidence.rough and run.exact:
        return f"{SMOOTH}: more draws would not help, and weights neither."
    if run.failed > 0.02:
        return (
            f"{run.failed:.0%} of the forward evaluations failed: make the forward map work there, "
            "as a posterior is cut off where it fails."
        )
    if not run.converged:
        return f"Give the burn-in more time (tune), or start nearer to the posterior; {reweight}"
    if run.small:
        return f"Use an ensemble_size of {run.smallest_ensemble} or more; {reweight}"
    if evidence.apart:
        return f"{_remedy_of_modes(run)}, or draw more; {reweight}"
    if not run.exact:
        exact = evidence.to_be_exact
        return f"{exact}; {reweight}" if exact == ADJUST else f"{exact}."
    if not run.adjusted and abs(error) > 3 * by_chance:
        return f"Use adjust=True, or a smaller step_size; {reweight}"
    return f"Draw more; {reweight}"


def _remedy_of_modes(run: Run) -> str:
    """What to do about ensembles that may be in different modes."""
    if run.cost > 1:
        return "If ensembles sit in different modes, use more walkers"
    return (
        "If ensembles sit in different modes, use MultiscaleSampler with many walkers, or a larger "
        "ensemble_size"
    )


def _by_chance(evidence: Evidence) -> Iterator[Finding]:
    """Too few independent draws, or ensembles that disagree."""
    run = evidence.run
    error, where = worst(evidence.chance.mean, run.labels)
    if error <= (CHANCE_LIMIT if evidence.fit is None else DISAGREEMENT):
        return
    reason = f"the mean of `{where}` is known to {error:.2f} posterior standard deviations only"
    remedy = "Draw more."
    if evidence.apart:
        reason += f" (R-hat {np.nanmax(evidence.r_hat):.2f}): the ensembles have not seen the same"
        reason += " posterior"
        remedy = f"Draw more. {_remedy_of_modes(run)}."
    if run.small:
        remedy = f"Use an ensemble_size of {run.smallest_ensemble} or more, or draw more."
    yield Finding("doubtful", f"{reason}.", remedy)


def _mode_lost(evidence: Evidence) -> Iterator[Finding]:
    """Likely places of the burn-in in which no chain has draws."""
    lost = evidence.run.stats.get("lost")
    if lost is not None and lost.all():
        yield Finding(
            "doubtful" if evidence.rough else "wrong",
            "the burn-in came by likely places without draws: a mode was lost on the way.",
            f"{_remedy_of_modes(evidence.run)}. The log of the run says where it is, and so does "
            "pymc.sample(discard_tuned_samples=False).",
        )


def _not_the_law(evidence: Evidence) -> Iterator[Finding]:
    """A posterior that is not what the ensemble takes it to be, where its moments are not known."""
    run, weights, regression = evidence.run, evidence.weights, evidence.regression
    if evidence.fit is not None or run.cost == 0:
        return
    if run.drawn_from_law and weights.khat > LARGEST_KHAT:
        yield Finding(
            "doubtful",
            "the posterior is not what the ensemble takes it to be (Pareto k-hat "
            f"{weights.khat:.2f} of its importance weights): it is skewed, heavy-tailed, or has "
            "several modes.",
            f"{evidence.to_be_exact}, or coordinates in which the posterior is nearer to a "
            "Gaussian.",
        )
    elif regression is not None and regression.uncertainty > (
        WIDE_OPEN if _settled(evidence) else OPEN
    ):
        yield Finding(
            "doubtful",
            "the posterior has tails, or regions, that the draws hardly reach.",
            "Draw more, or write the model in coordinates in which its posterior is compact.",
        )
    suspect = weights.khat > 0.5 or weights.efficiency < 0.5
    if run.drawn_from_law and suspect and run.acceptance < LOW_WOULD_BE:
        yield Finding(
            "doubtful",
            f"a Metropolis test would have accepted only {run.acceptance:.0%} of the moves.",
            f"{evidence.to_be_exact}.",
        )


def _settled(evidence: Evidence) -> bool:
    """Whether several chains of an exact sampler stay in one and the same place."""
    run, chance = evidence.run, evidence.chance
    C, S = run.X.shape[:2]
    return (
        run.exact
        and C > 1
        and (run.converged or S >= LONG)
        and float(chance.mean.max()) < CHANCE_LIMIT
        and float(np.abs(chance.drift).max()) < CHANCE_LIMIT
        and not evidence.apart
    )


def _not_arrived(evidence: Evidence) -> Iterator[Finding]:
    """Ensembles that were still on their way, where their moments are not known."""
    run = evidence.run
    if run.fitted and not run.converged:
        yield Finding(
            "doubtful",
            "the linear fit of rough=True did not pass its test: the forward map is curved where "
            "the posterior is, or the burn-in was too short.",
            "Use EnsembleGaussianProcessSampler, which learns curved maps, or give the burn-in "
            "more time (tune).",
        )
        return
    if evidence.fit is not None or run.cost == 0:
        return
    if not run.converged and not _settled(evidence):
        yield Finding(
            "doubtful",
            "the burn-in had not passed its test.",
            "Give it more time (tune), or start nearer to the posterior.",
        )
    drift, where = worst(evidence.chance.drift, run.labels)
    by_chance = 2 * evidence.chance.mean[run.labels.index(where)]  # of the halves' difference
    if abs(drift) > max(0.3, 4 * by_chance):
        yield Finding(
            "doubtful",
            f"`{where}` drifts: its mean moved by {drift:+.2f} posterior standard deviations "
            "between the halves of the run.",
            "Give the burn-in more time (tune), and draw more.",
        )


def _hardly_moved(evidence: Evidence) -> Iterator[Finding]:
    """Metropolis tests that hardly anything has passed."""
    run = evidence.run
    if run.adjusted and run.acceptance < LOW_ACCEPTANCE:
        yield Finding(
            "doubtful",
            f"only {run.acceptance:.1%} of the moves were accepted.",
            f"{SMOOTH}."
            if evidence.rough
            else "Draw more, or write the model in coordinates in which its posterior is compact."
            if run.cost > 1
            else "Draw more, or use MultiscaleSampler.",
        )


def _surrogate(evidence: Evidence) -> Iterator[Finding]:
    """A surrogate that does not predict what the forward map gives."""
    run = evidence.run
    if run.cost:
        return
    remedy = "Give it more epochs (tune), a larger ensemble, or use adjust=True."
    if not run.converged:
        yield Finding("wrong", "the surrogate did not pass its verification.", remedy)
    errors = [run.stats.get(name) for name in ("surrogate_error", "surrogate_error_sd")]
    mean, sd = (0.0 if e is None else float(np.nan_to_num(e).max()) for e in errors)
    if mean > CHANCE_LIMIT or sd > SD_LIMIT:
        yield Finding(
            "doubtful",
            f"the surrogate leaves means open by {mean:.2f} posterior standard deviations, and "
            f"standard deviations by {sd:.0%}.",
            remedy,
        )


def _cut_off(evidence: Evidence) -> Iterator[Finding]:
    """Failures that may have cut off a part of the posterior, where that cannot be told."""
    run = evidence.run
    if evidence.fit is None and run.failed > LOST:
        yield Finding(
            "doubtful",
            f"{run.failed:.0%} of the forward evaluations failed after the burn-in: the posterior "
            "is cut off where they fail.",
            "Find out where that is, with forward_model(store=...) and diagnose(store=...), and "
            "make the forward map work there, or choose priors that leave it out.",
        )
