"""Findings against a result, and their remedies, from the evidence about a run."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pymc_ensemble.log import number, percent
from pymc_ensemble.samplers.certificate import CERTAIN
from pymc_ensemble.samplers.proposals import GOOD

from .ensembles import LOST
from .known import (
    ADJUST,
    CHANCE_LIMIT,
    OFF,
    POSSIBLE,
    SAMPLE,
    SMOOTH,
    Evidence,
    Finding,
    by_severity,
)
from .limits import FAR, LEAST_EFFICIENCY, WRONG_MEAN, WRONG_SD
from .regression import MOST_PARAMETERS, Regression
from .run import Run
from .stand_ins import amortized, far_from_learned, inverted, law_alone, surrogate
from .weights import SamplingError, Weights

FloatArray = NDArray[np.float64]

UNEQUAL = float(np.hypot(1, WRONG_MEAN))  # R-hat if means of chains scatter by WRONG_MEAN
LARGEST_KHAT = 0.7
WIDE_OPEN = 20.0  # the same if chains agree: the error is then in tails that hardly count


def judge(evidence: Evidence) -> list[Finding]:
    """Findings against a run.

    Parameters
    ----------
    evidence : Evidence

    Returns
    -------
    list of Finding
        The worst first.
    """
    parts = [
        inverted,
        _rough,
        _wrong_moments,
        _too_few_draws,
        _mode_lost,
        _misplaced,
        _not_the_law,
        _not_arrived,
        _hardly_accepted,
        far_from_learned,
        law_alone,
        surrogate,
        amortized,
        _cut_off,
        _unchecked,
    ]
    return by_severity([finding for part in parts for finding in part(evidence)])


def first_look(run: Run) -> list[Finding]:
    """Findings against one chain, from quick checks.

    If nothing else has tested moves, a regression on log densities says whether moments are off.

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
    weights = Weights.of(run.X, run.log_ratio)
    evidence = Evidence(run, SamplingError.of(run.paths), weights, None, unknown, unknown)
    parts = [_not_the_law, _not_arrived, _hardly_accepted, far_from_learned, surrogate, _cut_off]
    found = [finding for part in parts for finding in part(evidence)]
    untested = run.origin.law in ("gaussian", "approximate") and not run.origin.adjusted
    if untested and run.alone and run.facts.dimension <= MOST_PARAMETERS:
        rng = np.random.default_rng(0)
        regression = Regression.of(run.U, run.stats["lp"], run.shown, rng)
        found = [*_wrong_moments(replace(evidence, regression=regression)), *found]
    return by_severity(found)


def worst(values: FloatArray, labels: Sequence[str]) -> tuple[float, str]:
    """Largest absolute value, and its label."""
    k = int(np.nanargmax(np.abs(values)))
    return float(values[k]), labels[k]


def _rough(evidence: Evidence) -> Iterator[Finding]:
    """Find a rough forward map, whose fluctuations an exact sampler samples."""
    fit, noise = evidence.fit, evidence.roughness
    told = (
        f"the forward map is rough: the log density scatters by {number(noise)} about a smooth fit."
    )
    if evidence.law == "density" and evidence.rough:
        told += (
            " An exact sampler samples the fluctuations, too, and not the smooth posterior behind "
            "them."
        )
        yield Finding("doubtful", told, f"{SMOOTH}.")
    elif evidence.law in ("gaussian", "approximate") and noise > 1.0 and fit is None:
        yield Finding("doubtful", told, f"{SMOOTH}.")


def _wrong_moments(evidence: Evidence) -> Iterator[Finding]:
    """Find moments that differ from those of the density that the draws carry."""
    run, fit = evidence.run, evidence.fit
    if fit is None:
        return
    by = "according to the log densities of the draws."
    shift, where = worst(_shrunk(fit.shift, fit.shift_error), run.labels)
    log_ratio = np.log(np.maximum(fit.sd_ratio, 1e-300))
    ratio, which = worst(_shrunk(log_ratio, fit.sd_ratio_error), run.labels)
    # A fit knows less about tails than the draws of an exact sampler that has settled. For these
    # draws, errors of variables count only if there are errors of unconstrained coordinates, too
    u_shift = np.abs(_shrunk(fit.u_shift, fit.u_shift_error)).max()
    u_ratio = np.abs(_shrunk(np.log(fit.u_sd_ratio), fit.u_sd_ratio_error)).max()
    seen = run.origin.adjusted and _settled(evidence)
    if seen and np.hypot(u_shift / WRONG_MEAN, u_ratio / WRONG_SD) <= OFF:
        return
    of_mean, of_sd = abs(shift) / WRONG_MEAN, abs(ratio) / WRONG_SD
    both = np.hypot(of_mean, of_sd) > OFF  # eq. (D7)
    if of_mean > OFF or (both and of_sd <= OFF):
        k = run.labels.index(where)
        yield Finding(
            "wrong",
            f"the mean of `{where}` is off by {number(fit.shift[k], '+.2f')} posterior standard "
            f"deviations, {by}",
            _remedy_of_error(evidence, fit.shift[k], evidence.chance.mean[k]),
        )
    if of_sd > OFF or (both and of_mean <= OFF):
        k = run.labels.index(which)
        yield Finding(
            "wrong",
            f"the standard deviation of `{which}` is {number(fit.sd_ratio[k], '.2f')} times what "
            f"it should be, {by}",
            _remedy_of_error(evidence, log_ratio[k], evidence.chance.sd[k]),
        )


def _shrunk(values: FloatArray, errors: FloatArray) -> FloatArray:
    """Values, moved towards zero by their standard errors."""
    return np.sign(values) * np.maximum(np.abs(values) - errors, 0.0)


def _remedy_of_error(evidence: Evidence, error: float, by_chance: float) -> str:
    """Remedy for moments that are wrong."""
    run = evidence.run
    if evidence.law == "inversion":
        return f"{SAMPLE}."
    reweight = "or correct these draws: pymc_ensemble.reweight."
    if evidence.rough and evidence.law == "density":
        return f"{SMOOTH}: neither more draws nor weights would help."
    if run.failures > LOST:
        return (
            f"{percent(run.failures)} of the forward evaluations failed. Make the forward map work "
            "there: where it fails, the posterior is cut off."
        )
    if not run.converged:
        return f"Give the burn-in more time (tune), or start nearer to the posterior; {reweight}"
    if run.facts.small:
        return f"Use an ensemble_size of {run.facts.smallest_ensemble} or more; {reweight}"
    if evidence.apart:
        return f"{_remedy_of_modes(run)}, or draw more; {reweight}"
    if evidence.law != "density":
        exact = evidence.to_be_exact
        return f"{exact}; {reweight}" if exact == ADJUST else f"{exact}."
    if not run.origin.adjusted and abs(error) > CERTAIN * by_chance:
        return f"Use adjust=True, or a smaller step_size; {reweight}"
    return f"Draw more; {reweight}"


def _remedy_of_modes(run: Run) -> str:
    """Remedy for ensembles that may be in different modes."""
    if run.origin.evaluations > 1:
        return "If ensembles sit in different modes, use more walkers"
    return (
        "If ensembles sit in different modes, use MultiscaleSampler with many walkers, or a larger "
        "ensemble_size"
    )


def _no_contradiction(evidence: Evidence) -> str:
    """Addition for a run that has not converged, if nothing contradicts its moments."""
    if evidence.fit is None or any(_wrong_moments(evidence)):
        return ""
    return "; the log densities of the draws contradict neither means nor standard deviations"


def _too_few_draws(evidence: Evidence) -> Iterator[Finding]:
    """Find too few independent draws, or ensembles that disagree."""
    run, chance = evidence.run, evidence.chance
    mean, where = worst(chance.mean, run.labels)
    sd, which = worst(chance.sd, run.labels)
    remedy = "Draw more."
    if evidence.apart:
        remedy = f"Draw more. {_remedy_of_modes(run)}."
    if run.facts.small:
        remedy = f"Use an ensemble_size of {run.facts.smallest_ensemble} or more, or draw more."
    r_hat, worst_one = worst(np.nan_to_num(evidence.r_hat), run.labels)
    if r_hat > UNEQUAL:
        reason = (
            f"the run has not converged: the ensembles disagree about `{worst_one}` (R-hat "
            f"{number(r_hat, '.3f')}, and at most {UNEQUAL:.3f} is allowed)"
        )
        if evidence.apart:
            reason += " and have not seen the same posterior"
        yield Finding("doubtful", f"{reason}{_no_contradiction(evidence)}.", remedy)
    if mean > (CHANCE_LIMIT if evidence.fit is None else 2 * WRONG_MEAN):
        yield Finding(
            "doubtful",
            f"the mean of `{where}` is known to {number(mean, '.2f')} posterior standard "
            "deviations only.",
            remedy,
        )
    elif sd > WRONG_SD / POSSIBLE and evidence.fit is None:
        yield Finding(
            "doubtful",
            f"the standard deviation of `{which}` is known to {percent(sd)} only.",
            remedy,
        )


def _mode_lost(evidence: Evidence) -> Iterator[Finding]:
    """Find likely places of the burn-in where no chain has draws."""
    lost = evidence.run.stats.get("lost")
    if lost is not None and lost.all():
        yield Finding(
            "doubtful" if evidence.rough else "wrong",
            "the burn-in found likely places where no chain has draws: a mode was lost on the way.",
            f"{_remedy_of_modes(evidence.run)}. The log of the run says where it is, and so does "
            "pymc.sample(discard_tuned_samples=False).",
        )


def _misplaced(evidence: Evidence) -> Iterator[Finding]:
    """Find draws where the posterior has almost no mass, if its moments are not known."""
    misplaced, labels = evidence.misplaced, evidence.run.labels
    if misplaced is None or misplaced.far <= FAR:
        return
    shift, where = worst(misplaced.shift, labels)
    k = int(np.argmax(np.abs(np.log(np.maximum(misplaced.sd_ratio, 1e-300)))))
    what = f"move the mean of `{where}` by {number(shift, '+.1f')} standard deviations"
    if abs(shift) <= FAR:
        what = f"make the standard deviation of `{labels[k]}` {number(misplaced.sd_ratio[k])} times"
        what += " that of the other draws"
    yield Finding(
        "wrong",
        f"{percent(misplaced.share)} of the draws are where the posterior has almost none of its "
        f"mass, according to their log densities. They {what}.",
        f"{evidence.to_be_exact}.",
    )


def _unchecked(evidence: Evidence) -> Iterator[Finding]:
    """Find draws of an approximation that no check could compare with their density."""
    run, origin = evidence.run, evidence.run.origin
    if evidence.fit is not None or origin.adjusted or origin.law not in ("density", "approximate"):
        return
    why = "the log densities of the draws do not determine their moments"
    if evidence.regression is None:
        why = "there are too few draws for a regression on their log densities"
        if run.facts.dimension > MOST_PARAMETERS:
            why = f"{run.facts.dimension} parameters are too many for a regression"
    yield Finding(
        "doubtful",
        f"moves met no Metropolis test, and {why}. So the error of the draws is not known.",
        f"{evidence.to_be_exact}.",
    )


def _not_the_law(evidence: Evidence) -> Iterator[Finding]:
    """Find a posterior that differs from the fitted law, if its moments are not known."""
    run, weights, regression = evidence.run, evidence.weights, evidence.regression
    if evidence.fit is not None or evidence.law in ("surrogate", "amortized"):
        return
    if evidence.law == "gaussian" and weights.khat > LARGEST_KHAT:
        off = (run.U.mean(0) - weights.mean(run.U)) / np.maximum(run.U.std(0), 1e-300)
        if np.abs(off).max() > OFF * WRONG_MEAN + CERTAIN / np.sqrt(weights.ess):
            yield Finding(
                "wrong",
                "the ensemble is not where the posterior is: importance weights, with an effective "
                f"sample size of {number(weights.ess, '.0f')}, move the mean of a coordinate by "
                f"{number(np.abs(off).max())} standard deviations.",
                f"{evidence.to_be_exact}.",
            )
        yield Finding(
            "doubtful",
            "the posterior is not the law that was fitted to the ensemble (Pareto k-hat "
            f"{number(weights.khat, '.2f')} of the importance weights): it is skewed, "
            "heavy-tailed, or has several modes.",
            f"{evidence.to_be_exact}, or coordinates in which the posterior is nearer to a "
            "Gaussian.",
        )
    elif regression is not None and regression.uncertainty > (
        WIDE_OPEN if _settled(evidence) else FAR
    ):
        yield Finding(
            "doubtful",
            "the posterior has tails, or regions, that the draws hardly reach.",
            "Draw more, or write the model in coordinates in which its posterior is compact.",
        )
    if evidence.law in ("gaussian", "approximate") and run.acceptance < GOOD:
        yield Finding(
            "doubtful",
            f"a Metropolis test would have accepted only {percent(run.acceptance)} of the moves.",
            f"{evidence.to_be_exact}.",
        )


def _settled(evidence: Evidence) -> bool:
    """Whether several chains of an exact sampler agree and stay where they are."""
    run, chance = evidence.run, evidence.chance
    return (
        evidence.law in ("density", "smooth")
        and len(run.draw) > 1
        and run.converged
        and float(chance.mean.max()) < CHANCE_LIMIT
        and float(np.abs(chance.drift).max()) < CHANCE_LIMIT
        and float(np.nan_to_num(evidence.r_hat).max()) <= UNEQUAL
    )


def _not_arrived(evidence: Evidence) -> Iterator[Finding]:
    """Find ensembles that had not reached the posterior, if its moments are not known."""
    run = evidence.run
    if evidence.law == "fit" and not run.converged:
        yield Finding(
            "doubtful",
            "the linear fit of rough=True did not pass its test: the forward map is curved where "
            "the posterior is, or the burn-in was too short.",
            "Use EnsembleGaussianProcessSampler, which learns curved maps, or give the burn-in "
            "more time (tune).",
        )
        return
    if not run.converged and evidence.law != "surrogate":
        yield Finding(
            "doubtful",
            "the run has not converged: the burn-in had not passed its test"
            f"{_no_contradiction(evidence)}.",
            "Give the burn-in more time (tune), or start nearer to the posterior.",
        )
    if evidence.fit is not None or evidence.law == "surrogate":
        return
    drift, where = worst(evidence.chance.drift, run.labels)
    # standard error of the difference of the halves
    by_chance = 2 * evidence.chance.mean[run.labels.index(where)]
    if abs(drift) > max(WRONG_MEAN, CERTAIN * by_chance):
        yield Finding(
            "doubtful",
            f"`{where}` drifts: its mean moved by {number(drift, '+.2f')} posterior standard "
            "deviations between the halves of the run.",
            "Give the burn-in more time (tune), and draw more.",
        )


def _hardly_accepted(evidence: Evidence) -> Iterator[Finding]:
    """Find runs in which hardly any move has passed the Metropolis test."""
    run = evidence.run
    if run.origin.adjusted and run.acceptance < LEAST_EFFICIENCY:
        yield Finding(
            "doubtful",
            f"only {percent(run.acceptance)} of the moves were accepted.",
            f"{SMOOTH}."
            if evidence.rough
            else "Draw more, or write the model in coordinates in which its posterior is compact."
            if run.origin.evaluations > 1
            else "Draw more, or use MultiscaleSampler.",
        )


def _cut_off(evidence: Evidence) -> Iterator[Finding]:
    """Find failures that may have cut off a part of the posterior, if there is no store."""
    run = evidence.run
    if evidence.fit is None and run.failures > LOST:
        yield Finding(
            "doubtful",
            f"{percent(run.failures)} of the forward evaluations failed after the burn-in: the "
            "posterior is cut off where they fail.",
            "Find out where that is, with forward_model(store=...) and diagnose(store=...), and "
            "make the forward map work there, or choose priors that leave it out.",
        )
