"""Likelihoods that are estimates: Gaussians of summaries, with a covariance from replicates."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pymc_ensemble.log import number, percent

from .ensembles import LOST
from .facts import Facts
from .known import Finding
from .limits import FAR, RARE, WRONG_MEAN, WRONG_SD

Likelihood = Mapping[str, Any]

ESTIMATE = "Estimate it where the posterior is: pymc_ensemble.sample_synthetic(model=model)."
OTHERS = (
    "Take other summaries; or do without a Gaussian: pymc_ensemble.amortize, or pm.sample_smc with "
    "pm.Simulator."
)
FEWER = "Take fewer summaries, and none that follow from the others."
LET_IT_CHANGE = 'Let it change: pymc_ensemble.synthetic_likelihood(..., covariance="linear").'
LEAVE_OUT = (
    "Transform these summaries: roots of counts, logarithms of what is positive; or leave them out."
)


def judge_likelihoods(facts: Facts) -> list[Finding]:
    """Findings about likelihoods that are estimates.

    Parameters
    ----------
    facts : Facts
        What the draws carry.
    """
    return [
        finding
        for name, known in facts.likelihoods.items()
        for part in (_origin, _varying, _raised, _shape, _unlike, _failures)
        for finding in part(name, known)
    ]


def _origin(name: str, known: Likelihood) -> Iterator[Finding]:
    if known["covariance"] == "prior":
        yield Finding(
            "doubtful",
            f"the covariance of the summaries in `{name}` is a first guess, that of the noise on "
            "average over the prior: the posterior may be too wide, too narrow, and elsewhere.",
            ESTIMATE,
        )
    elif known["covariance"] == "estimated" and "checked" not in known:
        yield Finding(
            "doubtful",
            f"nothing has tested whether the covariance of the summaries in `{name}` is the same "
            "all over the posterior.",
            "Leave out check=False of sample_synthetic.",
        )


def _varying(name: str, known: Likelihood) -> Iterator[Finding]:
    """Find a covariance that differs at the ends of the posterior."""
    if "varying" not in known:
        return
    found, chance = (np.array(known[key]) for key in ("varying", "varying_by_chance"))
    if chance[0] > FAR:
        yield Finding(
            "doubtful",
            f"{known['checked']} replicates do not tell whether the covariance of the summaries in "
            f"`{name}` changes over the posterior: by chance alone they would move means by "
            f"{number(chance[0], '.1f')} posterior standard deviations.",
            FEWER,
        )
        return
    beyond = np.sqrt(np.maximum(found**2 - chance**2, 0.0))
    if beyond[0] <= WRONG_MEAN and beyond[1] <= np.log1p(WRONG_SD):
        return
    what = f"means move by {number(abs(found[0]), '.2f')} posterior standard deviations"
    if beyond[0] <= WRONG_MEAN:
        factor = number(np.exp(found[1]), ".2f")
        what = f"a standard deviation changes by a factor of {factor}"
    yield Finding(
        "wrong",
        f"the covariance of the summaries in `{name}` changes over the posterior: with one that "
        f"changes as in {known['checked']} replicates, {what}.",
        OTHERS if known.get("linear") else LET_IT_CHANGE,
    )


def _raised(name: str, known: Likelihood) -> Iterator[Finding]:
    """Find variances that were raised to a share of those over the prior, and matter."""
    raised = known.get("raised", [])
    if raised and "checked" in known and _rests_upon(known, "without_raised"):
        yield Finding(
            "doubtful",
            f"{_listed(raised)} in `{name}` {_vary(raised)} far less in the replicates than over "
            f"the prior. The variance was raised to a twentieth of that, and the posterior, which "
            f"rests upon {_them(raised)}, may be too wide.",
            "Give priors that are narrower, or initial_covariance: nothing is raised then.",
        )


def _shape(name: str, known: Likelihood) -> Iterator[Finding]:
    """Find summaries that are not Gaussian, and matter for the posterior."""
    if known.get("gaussian", 1.0) >= RARE:
        return
    if known["odd"] and not _rests_upon(known, "without"):
        return
    told = f"the summaries in `{name}` are not Gaussian (p = {number(known['gaussian'], '.2g')})"
    if known["odd"] and "without" in known:
        shift = number(abs(known["without"][0]), ".2f")
        told += (
            f": not {_listed(known['odd'])}, and without {_them(known['odd'])} means move by "
            f"{shift} posterior standard deviations"
        )
    yield Finding("doubtful", f"{told}.", LEAVE_OUT)


def _rests_upon(known: Likelihood, without: str) -> bool:
    """Whether moments change without some summaries. True if there are no others."""
    if without not in known:
        return True
    shift, log_sd = known[without]
    return abs(shift) > WRONG_MEAN or abs(log_sd) > np.log1p(WRONG_SD)


def _unlike(name: str, known: Likelihood) -> Iterator[Finding]:
    """Find data that the simulator does not make where the posterior is."""
    if "misfit" not in known:
        return
    from scipy.special import chdtrc

    if chdtrc(known["summaries"], known["misfit"]) < RARE:
        yield Finding(
            "doubtful",
            f"the simulator does not make data like those in `{name}` where the posterior is: "
            f"their squared distance is {number(known['misfit'], '.0f')}, where "
            f"{known['summaries']} is expected.",
            "Check the model and the data; or sample once more from there, with stages=3.",
        )


def _failures(name: str, known: Likelihood) -> Iterator[Finding]:
    """Find replicates that have failed."""
    share = known.get("failed", 0) / max(known.get("replicates", 1), 1)
    if share > LOST:
        yield Finding(
            "doubtful",
            f"{percent(share)} of the replicates for `{name}` failed: the Gaussian is that of runs "
            "that work.",
            "Make the simulator work there, or let it return a value instead of failing.",
        )


def notes_on_likelihoods(facts: Facts) -> list[str]:
    """Notes on likelihoods that are estimates: what was done, and what is not known."""
    notes = []
    for name, known in facts.likelihoods.items():
        notes.append(
            f"the draws follow the posterior given {described(known)} in `{name}`; what the "
            "summaries leave out of the data is not known"
        )
        raised = known.get("raised", [])
        # if all variances were raised, no change is seen, not even by chance
        seen = len(raised) < known["summaries"]
        if seen and known.get("varying_by_chance", [np.inf])[0] <= FAR:
            smallest = number(known["varying_by_chance"][0], ".2f")
            notes.append(
                f"a covariance in `{name}` that changes would have been seen if it moved means by "
                f"{smallest} posterior standard deviations, and may have moved them by less"
            )
        odd = known.get("odd", [])
        if odd and known["gaussian"] < RARE and not _rests_upon(known, "without"):
            shift = number(abs(known["without"][0]), ".2f")
            notes.append(
                f"not Gaussian in `{name}`: {_listed(odd)}; without {_them(odd)} means move by "
                f"{shift} posterior standard deviations"
            )
        if raised:
            notes.append(
                f"{_listed(raised)} in `{name}` hardly {_vary(raised)} "
                "in the replicates, and the variance was raised to a twentieth of that of the prior"
            )
        if 0 < known.get("failed", 0) <= LOST * known["replicates"]:
            notes.append(f"{known['failed']} of the replicates for `{name}` failed")
    return notes


def described(known: Likelihood) -> str:
    """What a synthetic likelihood is, in words that follow "given"."""
    K = known["summaries"]
    what = f"a Gaussian of {K} {'summaries' if K > 1 else 'summary'}"
    if known["covariance"] == "prior":
        return f"{what}, with the covariance of {known['pilot']} simulations over the prior"
    if known["covariance"] == "given":
        return f"{what}, with a covariance that was given and not tested"
    wider = percent(known["correction"] - 1)
    change = ", whose log variances are linear in the parameters" if known.get("linear") else ""
    return (
        f"{what}, with a covariance from {known['replicates']} replicates at one point{change} "
        f"(enlarged by {wider} for the error of its inverse)"
    )


def results_of_tests(known: Likelihood) -> str:
    """Results of the tests, as a sentence; empty if there were none."""
    if "gaussian" not in known:
        return ""
    p = number(known["gaussian"], ".2g")
    told = f"Tests of Mardia's skewness and kurtosis gave p = {p}"
    if "varying" in known:
        found, chance = (number(abs(known[k][0]), ".2f") for k in ("varying", "varying_by_chance"))
        told += (
            f"; a covariance that changes as in {known['checked']} more replicates would move "
            f"posterior means by {found} standard deviations, where {chance} may come by chance"
        )
    return f"{told}."


def _listed(which: Sequence[int]) -> str:
    """Summaries by their numbers."""
    return f"{'summaries' if len(which) > 1 else 'summary'} {', '.join(map(str, which))}"


def _vary(which: Sequence[int]) -> str:
    return "vary" if len(which) > 1 else "varies"


def _them(which: Sequence[int]) -> str:
    return "them" if len(which) > 1 else "it"
