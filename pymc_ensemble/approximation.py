"""A learned law as an approximate posterior, with importance weights."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pymc as pm
import xarray as xr
from numpy.typing import NDArray

from pymc_ensemble.diagnosis.facts import Facts
from pymc_ensemble.diagnosis.findings import LARGEST_KHAT
from pymc_ensemble.diagnosis.fountain import Fountain
from pymc_ensemble.diagnosis.stand_ins import LACKING
from pymc_ensemble.diagnosis.weights import Weights
from pymc_ensemble.inversion.results import labelled
from pymc_ensemble.problem.checks import given_generator, given_model
from pymc_ensemble.problem.driver import Account, Driver, seed_of_round
from pymc_ensemble.problem.leaves import without_leaves
from pymc_ensemble.samplers.ensemble import Ensemble, Origin
from pymc_ensemble.samplers.informed.averaged import AveragedLaw, AveragedState
from pymc_ensemble.samplers.informed.sampler import LikelihoodInformed
from pymc_ensemble.samplers.informed.walk import WalkState
from pymc_ensemble.samplers.options import require_counts, require_flags
from pymc_ensemble.samplers.phases import PhaseState

from .log import ProgressLog, number, percent, show_log
from .problem import InverseProblem

__all__ = ["approximate"]

FloatArray = NDArray[np.float64]

DRAWS = 500


def approximate(
    model: pm.Model | None = None,
    *,
    draws: int = DRAWS,
    weigh: bool = True,
    round_size: int = 50,
    maxiter: int = 100,
    random_seed: Any = None,
    progressbar: bool = True,
    compile_kwargs: Mapping[str, Any] | None = None,
) -> xr.DataTree:
    """Approximate the posterior of a model with hundreds of parameters by a learned law.

    The slope of the forward outputs is learned as in `LikelihoodInformedSampler`. The law is the
    posterior with linearized outputs; likelihood and prior stay unchanged. One evaluation of each
    draw gives its importance weight. If the forward map is noisy (``stochastic=True``), a
    regression that averages over the noise learns the slope. The draws then have no weights.

    Parameters
    ----------
    model : pm.Model, optional
        By default the one on the context stack.
    draws : int, default 500
        Number of draws, at least 2.
    weigh : bool, default True
        Whether to evaluate each draw once, for importance weights. With a noisy map there are no
        weights.
    round_size : int, default 50
        Forward evaluations in each batch while the slope is learned; at least 20.
    maxiter : int, default 100
        Largest number of rounds of the learning.
    random_seed : int, Generator or None
        Seed of the draws.
    progressbar : bool, default True
        Whether the log ``pymc_ensemble`` shows the progress.
    compile_kwargs : dict, optional
        Options for the compilation of the forward map.

    Returns
    -------
    DataTree
        ``posterior``: the draws of equal weight, as one chain. ``sample_stats``: among others the
        log density ``lp`` of the posterior, NaN without `weigh`; ``log_q``, that of the law; and
        ``log_weight``, smoothed and normalized. The attributes of ``posterior`` are ``n_evals``;
        with `weigh` the ``khat`` of the weights [1]_ and their ``efficiency``, the effective share
        of the draws; and ``noisy``, which is 1 for a noisy forward map, whose law is not corrected.

    Raises
    ------
    ValueError
        If the model has no proper prior, or if an option has an unknown value.
    NotImplementedError
        If the model has no forward map that can be separated from the likelihood.
    SamplingError
        If the forward map gives different outputs at the same point, or if it fails at most draws
        of the prior.

    Warns
    -----
    UserWarning
        If the slope was not learned to the end; if k-hat is above 0.7, since weights are then
        unreliable; if draws of the posterior would accept less than 0.1 of those of the law, as the
        draws may then lack tails; or if weights were asked for and the forward map is noisy.

    References
    ----------
    .. [1] Vehtari, A., Simpson, D., Gelman, A., Yao, Y. and Gabry, J. (2024). Pareto smoothed
       importance sampling. Journal of Machine Learning Research, 25(72), 1-58.
       https://arxiv.org/abs/1507.02646

    Examples
    --------
    >>> import numpy as np, pymc as pm
    >>> import pymc_ensemble as pe
    >>> with pm.Model():
    ...     field = pm.Normal("field", shape=60)
    ...     level = pm.math.cumsum(field)[4::5] / np.sqrt(60)
    ...     y = pm.Normal("y", level, 0.1, observed=np.linspace(0, 1, 12))
    ...     law = pe.approximate(random_seed=1, progressbar=False)
    >>> law["posterior"]["field"].shape, round(law["posterior"].attrs["efficiency"], 1)
    ((1, 500, 60), 1.0)
    """
    require_flags(weigh=weigh, progressbar=progressbar)
    require_counts(2, draws=draws)
    require_counts(1, maxiter=maxiter)
    model = without_leaves(given_model(model))
    rng = given_generator(random_seed, "random_seed")
    problem = InverseProblem.from_model(model, compile_kwargs=compile_kwargs)
    sampler: AveragedLaw | LikelihoodInformed
    if problem.stochastic:
        sampler = AveragedLaw(problem, round_size, maxiter)
    else:
        sampler = LikelihoodInformed(problem, round_size, maxiter, draws)
    log = ProgressLog("approximate")
    driver = Driver(problem, model, Account(), log)
    if progressbar:
        show_log()
    learned = _learned(sampler, driver, rng, progressbar)
    known = learned.known if isinstance(learned, WalkState) else learned.found
    if not known:
        warnings.warn(
            f"The slope of the forward outputs has not converged in {maxiter} rounds "
            f"({driver.account.n_evals} evaluations). Allow more rounds with `maxiter`.",
            stacklevel=2,
        )
    if weigh and problem.stochastic:
        weigh = False
        warnings.warn(
            "The forward model is noisy, so the draws have no importance weights: they follow the "
            "learned law, and how far the posterior is from it is not known. "
            "pm.sample(step=EnsembleKalmanSampler()) samples, and averages over the noise. "
            "weigh=False leaves out this warning.",
            stacklevel=2,
        )
    target = learned.target
    x = target.propose(problem, target.law.draw(draws, rng), rng)
    U, log_q = target.reference.points(x), target.log_density(problem, x)
    lp = np.full(draws, np.nan)
    if weigh:
        evaluations = driver.evaluate(U, seed_of_round(rng, driver.account.n_evals))
        evaluated = Ensemble.evaluated(problem, U, evaluations)
        lp = -evaluated.potential
        assert isinstance(learned, WalkState)
        share = replace(learned, ensemble=evaluated).law_acceptance(problem)
        if share is not None and share < LACKING:
            warnings.warn(
                "The posterior is far from the learned law: draws of the posterior would accept "
                f"only {percent(share)} of those of the law. Tails may be missing, and weights "
                "cannot tell. Compare with pm.sample(step=EnsembleKalmanSampler(adjust=True)).",
                stacklevel=2,
            )
    return _result(model, sampler, U, lp, log_q, known, driver.account, problem.stochastic)


def _learned(
    sampler: AveragedLaw | LikelihoodInformed, driver: Driver, rng: np.random.Generator, told: bool
) -> WalkState | AveragedState:
    """What was learned."""
    U = sampler.problem.sample_prior(sampler.start_size, rng)
    state: PhaseState = sampler.start(U, redraw=True)
    while True:
        state, info = driver.round(sampler, state, rng)
        if told:
            driver.tell(f"learning, {info.message}")
        if isinstance(state.inner, WalkState):
            return state.inner
        if isinstance(state.inner, AveragedState) and state.inner.done:
            return state.inner


def _result(
    model: pm.Model,
    sampler: AveragedLaw | LikelihoodInformed,
    U: FloatArray,
    lp: FloatArray,
    log_q: FloatArray,
    known: bool,
    account: Account,
    noisy: bool,
) -> xr.DataTree:
    """Draws in the form of the results of samplers."""
    n, posterior = len(U), labelled(model, U)
    posterior.attrs["n_evals"] = account.n_evals
    posterior.attrs["noisy"] = int(noisy)
    log_weights = np.full(n, np.nan)
    if np.isfinite(lp).any():
        weights = Weights.of(U, lp - log_q)
        log_weights = weights.log_weights
        posterior.attrs |= {"khat": weights.khat, "efficiency": weights.efficiency}
        if weights.khat > LARGEST_KHAT:
            warnings.warn(
                f"Pareto's k-hat of the importance weights is {number(weights.khat, '.2f')}: the "
                "posterior is too far from the learned law for importance weights. Use "
                "pm.sample(step=LikelihoodInformedSampler()), which is exact.",
                stacklevel=3,
            )
    numbers, unknown = np.arange(n), np.full(n, np.nan)
    options = {"round_size": sampler.round_size, "maxiter": sampler.max_rounds}
    facts = Facts.of(model, model.value_vars, "approximate", options, Origin("gaussian"), n)
    stats: dict[str, Any] = {
        "lp": lp,
        "log_q": log_q,
        "log_weight": log_weights,
        "particle": numbers,
        "sweep": np.zeros(n, dtype=int),
        "n_evals": np.full(n, account.n_evals),
        "acceptance": unknown,
        "step_size": np.full(n, np.inf),
        "n_failed": np.full(n, account.n_failed),
        "converged": np.full(n, known),
        "lost": np.zeros(n, dtype=bool),
        "tune": np.zeros(n, dtype=bool),
    }
    vectors: dict[str, np.ndarray] = {
        "unconstrained": U,
        "made_by": Fountain.of(facts.text()).packets(0, stats["sweep"], numbers),
    }
    draws = ("chain", "draw")
    sample_stats = xr.Dataset({name: (draws, values[None]) for name, values in stats.items()})
    for name, values in vectors.items():
        sample_stats[name] = ((*draws, f"{name}_dim_0"), values[None])
    return xr.DataTree.from_dict({"posterior": posterior, "sample_stats": sample_stats})
