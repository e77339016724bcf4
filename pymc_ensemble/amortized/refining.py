"""Correction of the draws of an estimate by the likelihood."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pymc as pm
import xarray as xr
from numpy.typing import NDArray

from pymc_ensemble.diagnosis.findings import LARGEST_KHAT
from pymc_ensemble.diagnosis.weights import Weights
from pymc_ensemble.log import ProgressLog, number
from pymc_ensemble.problem.driver import Account, Driver, seed_of_round
from pymc_ensemble.problem.forward_models import is_stochastic
from pymc_ensemble.problem.inverse_problem import InverseProblem
from pymc_ensemble.samplers.weights import systematic_resample

from .diffusion import moments, reverse
from .estimate import Drawn
from .learned import Learned
from .results import result_of

FloatArray = NDArray[np.float64]
Way = Literal["weights", "equation", "map"]
WAYS: tuple[Way, ...] = ("weights", "equation", "map")

LABELS = 4000  # latents from which a map learns the reverse equation; as FEWEST_PAIRS


class RefinementError(ValueError):
    """Weights of draws are unreliable. The error keeps the evaluated draws.

    Attributes
    ----------
    draws : DataTree
        The evaluated draws without a correction, as one chain: ``lp`` in ``sample_stats`` is the
        log density of the model, and ``log_weight`` the logarithm of the importance weight.
    """

    def __init__(self, message: str, draws: xr.DataTree):
        super().__init__(message, draws)
        self.draws = draws

    def __str__(self) -> str:
        return str(self.args[0])


def refined(
    learned: Learned,
    model: pm.Model,
    drawn: Drawn,
    observed: Mapping[str, np.ndarray],
    rng: np.random.Generator,
    by: Way,
    n: int,
) -> xr.DataTree:
    """Turn draws of one chain, and their importance weights, into draws of the posterior.

    Parameters
    ----------
    learned : Learned
    model : pymc.Model
        Model with a likelihood.
    drawn : Drawn
        Draws, with the density of their law.
    observed : dict of str to ndarray
        Data by the names of the observed variables.
    rng : numpy.random.Generator
    by : {"weights", "equation", "map"}
    n : int
        Number of returned draws.

    Raises
    ------
    ValueError
        If there is no likelihood, or if the weights are unreliable.
    """
    if is_stochastic(model):
        raise ValueError(
            "Draws cannot be refined, as the forward model is stochastic: its likelihood is "
            "random, and weights would prefer lucky runs. Sample instead, and start from the "
            "draws: pm.sample(step=EnsembleKalmanSampler(rough=True, "
            "initial_ensemble=amortized.sample(data)))."
        )
    try:
        problem = InverseProblem.from_model(_observing(model, observed))
    except NotImplementedError as error:
        raise ValueError(
            f"Draws cannot be refined, as the likelihood of the model cannot be evaluated: {error}"
        ) from error
    # a conditioned model may have its variables in another order
    order = [learned.generator.names.index(name) for name in problem.coordinate_names]
    U, log_q = np.ascontiguousarray(drawn.U[0][:, order]), drawn.lp[0]
    driver = Driver(problem, model, Account(), ProgressLog("Refinement"))
    evaluations = driver.evaluate(U, seed_of_round(rng, 0))
    with np.errstate(invalid="ignore"):
        lp = -problem.loss(evaluations.outputs) - problem.prior_potential(U)
    lp = np.where(np.isfinite(lp), lp, -np.inf)
    if not np.isfinite(lp).any():
        raise ValueError(
            f"None of the {len(U)} draws has a finite posterior density: the forward map fails at "
            "all of them, or the data are impossible there. Check the model and the data."
        )
    weights = Weights.of(U, lp - log_q)
    attrs: dict[str, Any] = {
        "khat": weights.khat,
        "efficiency": weights.efficiency,
        "n_evals": driver.account.n_evals,
        "n_failed": driver.account.n_failed,
    }
    if weights.khat > LARGEST_KHAT:
        raise RefinementError(
            f"Draws cannot be refined: Pareto's k-hat of their {len(U)} importance weights is "
            f"{number(weights.khat, '.2f')} (at most {LARGEST_KHAT}), and they are worth "
            f"{number(weights.ess, '.0f')} draws. The evaluated draws are kept as `draws` of this "
            "error. Catch it as `error`, and start a sampler there: "
            "pm.sample(step=EnsembleKalmanSampler(initial_ensemble=error.draws)). Or allow more "
            "`evaluations`, or make more simulations.",
            _as_evaluated(learned, drawn, lp, observed, attrs),
        )
    better, densities = drawn.U[0], np.full(n, np.nan)
    if by == "weights":
        share = np.exp(weights.log_weights - weights.log_weights.max())
        chosen = rng.permutation(systematic_resample(share / share.sum(), n, rng.random()))
        better, densities = better[chosen], lp[chosen]
    elif by == "equation":
        better = _led(better, weights.log_weights, rng.standard_normal((n, better.shape[1])))
    else:
        better = _mapped(better, weights.log_weights, n, learned.members, rng)
    numbers = np.arange(n)
    drawn = replace(drawn, U=better[None], lp=densities[None], sweep=0 * numbers, particle=numbers)
    attrs = {"refined": by, **attrs}
    options = learned.facts.options | {"refined": by}
    facts = replace(learned.facts, options=options, particles=n)
    return result_of(learned.generator, facts, drawn, observed, attrs)


def _as_evaluated(
    learned: Learned,
    drawn: Drawn,
    lp: FloatArray,
    observed: Mapping[str, np.ndarray],
    attrs: Mapping[str, Any],
) -> xr.DataTree:
    """Draws of the estimate with their densities, without impossible ones."""
    known = np.isfinite(lp)
    numbers, log_q = np.arange(known.sum()), drawn.lp[:, known]
    kept = replace(
        drawn,
        U=drawn.U[:, known],
        lp=lp[None, known],
        sweep=0 * numbers,
        particle=numbers,
    )
    options = learned.facts.options | {"refined": "refused"}
    facts = replace(learned.facts, options=options, particles=len(numbers))
    found = result_of(learned.generator, facts, kept, observed, attrs)
    draws = ("chain", "draw")
    stats = {"log_q": (draws, log_q), "log_weight": (draws, lp[None, known] - log_q)}
    found["sample_stats"] = xr.DataTree(found["sample_stats"].dataset.assign(stats))
    return found


def _led(U: FloatArray, log_weights: FloatArray, z: FloatArray) -> FloatArray:
    """Ends of latents (n, d) by the reverse equation, eq. (A3), with weights, eq. (A6)."""
    center, spread = moments(U, log_weights)
    spread = np.where(spread > 0, spread, 1.0)
    return center + spread * reverse(z, (U - center) / spread, log_weights)


def _mapped(
    U: FloatArray, log_weights: FloatArray, n: int, members: int, rng: np.random.Generator
) -> FloatArray:
    """Draws (n, d) of a map from noise that has learned the reverse equation."""
    import jax

    from .estimators import Architecture, draws
    from .training import train

    d = U.shape[1]
    z = rng.standard_normal((LABELS, d))
    ends = _led(U, log_weights, z)
    center, scale = ends.mean(0), np.maximum(ends.std(0), 1e-300)
    sizes, theta = Architecture.of("diffusion", d, 0), (ends - center) / scale
    trained = train(sizes, theta, lambda k: z, lambda k: z, members=members, balance=0.0, rng=rng)
    key, nothing = jax.random.key(int(rng.integers(2**31))), np.empty((1, 0), np.float32)
    return center + scale * np.asarray(draws(trained.networks, key, nothing, n), dtype=float)[0]


def _observing(model: pm.Model, observed: Mapping[str, np.ndarray]) -> pm.Model:
    """The model with other data."""
    known = {str(rv.name): rv for rv in model.observed_RVs}
    if missing := sorted(set(observed) - set(known)):
        raise ValueError(
            f"`model` does not observe `{missing[0]}`, but the model that was simulated does. "
            "Pass a model with the same observed variables."
        )
    return pm.observe(
        model, {name: values.astype(known[name].type.dtype) for name, values in observed.items()}
    )
