"""Draws of an estimate, corrected by the likelihood."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pymc as pm
import xarray as xr

from pymc_ensemble.diagnosis.findings import LARGEST_KHAT
from pymc_ensemble.diagnosis.weights import Weights
from pymc_ensemble.log import ProgressLog, number
from pymc_ensemble.problem.driver import Account, Driver, seed_of_round
from pymc_ensemble.problem.inverse_problem import InverseProblem
from pymc_ensemble.samplers.weights import systematic_resample

from .estimate import Drawn
from .results import result_of

if TYPE_CHECKING:
    from .posterior import AmortizedPosterior


def refined(
    amortized: "AmortizedPosterior",
    model: pm.Model,
    drawn: Drawn,
    observed: Mapping[str, np.ndarray],
    rng: np.random.Generator,
) -> xr.DataTree:
    """Resample draws of one chain by their importance weights.

    Parameters
    ----------
    amortized : AmortizedPosterior
    model : pymc.Model
        With a likelihood.
    drawn : Drawn
    observed : dict of str to ndarray
        Data by the names of the observed variables.
    rng : numpy.random.Generator

    Raises
    ------
    ValueError
        If there is no likelihood, or if the weights cannot be relied upon.
    """
    try:
        problem = InverseProblem.from_model(_observing(model, observed))
    except NotImplementedError as error:
        raise ValueError(
            f"Draws cannot be refined, as the model has no likelihood that could be evaluated: "
            f"{error}"
        ) from error
    # conditioned models have their variables in an order of their own
    order = [amortized.generator.names.index(name) for name in problem.coordinate_names]
    U, log_q = np.ascontiguousarray(drawn.U[0][:, order]), drawn.lp[0]
    driver = Driver(problem, model, Account(), ProgressLog("Refinement"))
    evaluations = driver.evaluate(U, seed_of_round(rng, 0))
    with np.errstate(invalid="ignore"):
        lp = -problem.loss(evaluations.outputs) - problem.prior_potential(U)
    lp = np.where(np.isfinite(lp), lp, -np.inf)
    if not np.isfinite(lp).any():
        raise ValueError(
            f"None of the {len(U)} draws has a posterior density: the forward map fails at all of "
            "them, or the data are impossible there."
        )
    weights = Weights.of(U, lp - log_q)
    if weights.khat > LARGEST_KHAT:
        raise ValueError(
            f"Draws cannot be refined: Pareto's k-hat of their {len(U)} importance weights is "
            f"{number(weights.khat, '.2f')} (at most {LARGEST_KHAT}), and they are worth "
            f"{number(weights.ess, '.0f')}. Sample, from where they are: pm.sample(step="
            "EnsembleKalmanSampler(initial_ensemble=amortized.sample(data))), or simulate more."
        )
    share = np.exp(weights.log_weights - weights.log_weights.max())
    chosen = rng.permutation(systematic_resample(share / share.sum(), len(U), rng.random()))
    better = replace(drawn, U=drawn.U[:, chosen], lp=lp[chosen][None])
    attrs = {
        "khat": weights.khat,
        "efficiency": weights.efficiency,
        "n_evals": driver.account.n_evals,
        "n_failed": driver.account.n_failed,
    }
    facts = replace(amortized.facts, particles=int(drawn.particle.max()) + 1)
    return result_of(amortized.generator, facts, better, observed, attrs)


def _observing(model: pm.Model, observed: Mapping[str, np.ndarray]) -> pm.Model:
    """The model with other data."""
    known = {str(rv.name): rv for rv in model.observed_RVs}
    if missing := sorted(set(observed) - set(known)):
        raise ValueError(f"`model` does not observe `{missing[0]}`, as the one that was simulated.")
    return pm.observe(
        model, {name: values.astype(known[name].type.dtype) for name, values in observed.items()}
    )
