"""What was not, or could not be checked of a run, and what need not worry."""

import numpy as np

from pymc_ensemble.log import number, percent

from .known import CHANCE_LIMIT, Evidence

PYMC_ESS, PYMC_R_HAT = 100, 1.01  # limits at which PyMC warns about chains


def notes_of(evidence: Evidence, probe: int) -> list[str]:
    """Notes: what was not checked, what could not be checked, and what is harmless."""
    notes = []
    run, fit, facts = evidence.run, evidence.fit, evidence.run.facts
    C, _, J = run.draw.shape
    law = run.origin.law
    if run.missing:
        names = ", ".join(f"`{name}`" for name in run.missing)
        notes.append(
            f"the posterior is missing {names}; the draws still carry the values, in the "
            "stat `unconstrained`"
        )
    if not run.alone:
        names = ", ".join(f"`{variable.name}`" for variable in facts.others)
        notes.append(
            f"other step methods have moved {names}, so that the log densities of the draws do "
            "not tell their moments"
        )
    elif law == "amortized":
        if verdict := facts.options.get("coverage"):
            notes.append(
                f"the estimate is {verdict} on average over the prior, which says nothing of these "
                "data in particular"
            )
        if not np.isfinite(run.stats["lp"]).any():
            notes.append(
                "the draws carry no log density: the map that made them from noise has none"
            )
    elif evidence.regression is None and law != "surrogate":
        notes.append("there are too many parameters, or too few draws, to check the moments")
    elif evidence.regression is not None and fit is None:
        notes.append(
            "the regression on log densities could not check means and standard deviations: it "
            "does not determine them"
        )
    if law == "surrogate" and evidence.regression is None:
        notes.append(
            "the draws carry the log density of the surrogate, which cannot contradict them; "
            "diagnose(idata, model=model, repeats=40) compares with the forward map"
        )
    if C < 2:
        notes.append(
            "there is only one ensemble, and none can disagree with it: run several chains"
        )
    if facts.small:
        notes.append(
            f"{J} particles are few for {facts.dimension} parameters; {facts.smallest_ensemble} "
            "are needed"
        )
    if law in ("gaussian", "approximate") and evidence.roughness > 1.0:
        notes.append(
            f"the forward map is rough: the log density scatters by {number(evidence.roughness)} "
            "about a smooth fit; rough=True is made for such maps"
        )
    if run.failures > 0:
        notes.append(
            f"{percent(run.failures)} of the forward evaluations failed: the posterior is the one "
            "given that the forward map works"
        )
    if C > 1 and float(evidence.chance.mean.max()) < CHANCE_LIMIT:
        error = float(evidence.chance.mean.max())
        short = float(np.min(evidence.ess_bulk)) < PYMC_ESS * C
        if short or float(np.nanmax(evidence.r_hat)) > PYMC_R_HAT:
            notes.append(
                f"PyMC warns below {PYMC_ESS} effective draws a chain, and above an R-hat of "
                f"{PYMC_R_HAT}; still, means are known to {error:.2f} posterior standard "
                "deviations"
            )
    if law == "fit":
        notes.append("with rough=True the burn-in is not examined for modes that were lost in it")
    if not probe and law != "amortized":
        notes.append(
            "modes that no particle has visited were not searched for; "
            "diagnose(idata, model=model, probe=2000) does that"
        )
    return notes
