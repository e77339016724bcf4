"""The evidence of a model: the integral of its likelihood over its prior."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pymc as pm
import xarray as xr
from numpy.typing import NDArray

from pymc_ensemble.log import number
from pymc_ensemble.problem.checks import given_generator, given_model
from pymc_ensemble.problem.forward_models import is_stochastic
from pymc_ensemble.problem.leaves import without_leaves
from pymc_ensemble.samplers.options import require_counts

from .bridge import averaged, bridge, chains_of, control_variates
from .findings import LARGEST_KHAT
from .run import Run
from .weights import FEWEST_WEIGHTS, Weights

__all__ = ["LogEvidence", "log_evidence"]

FloatArray = NDArray[np.float64]
Method = Literal["proposals", "importance", "bridge"]

TOLD: dict[Method, str] = {
    "proposals": "independence proposals of the run",
    "importance": "draws of a mixture that was fitted to the run",
    "bridge": "draws of a mixture, and as many of the run as were held back,",
}


@dataclass(frozen=True)
class LogEvidence:
    """Logarithm of the evidence of a model. Print it to get a sentence.

    Attributes
    ----------
    value : float
        Natural logarithm of the integral of the likelihood over the prior, with all constants.
    standard_error : float
        Standard error of `value`.
    effective_size : float
        Number of independent draws of the posterior that the evaluated points are worth.
    khat : float
        Pareto shape of the tail of the importance weights.
    n_points : int
        Points whose densities were averaged.
    method : {"proposals", "importance", "bridge"}
        Kind of these points: independence proposals of the run; draws of a mixture that was fitted
        to the run; or such draws together with held-out draws of the run.
    """

    value: float
    standard_error: float
    effective_size: float
    khat: float
    n_points: int
    method: Method

    def __str__(self) -> str:
        return (
            f"log evidence {number(self.value, '.3f')}, standard error "
            f"{number(self.standard_error, '.2g')}: from {self.n_points} {TOLD[self.method]} "
            f"worth {self.effective_size:.0f} draws of the posterior "
            f"(Pareto k-hat {number(self.khat, '.2f')})"
        )


def log_evidence(
    idata: xr.DataTree,
    *,
    model: pm.Model | None = None,
    evaluations: int | None = None,
    random_seed: int = 0,
    compile_kwargs: Mapping[str, Any] | None = None,
) -> LogEvidence:
    """Evidence of a model: the density of its data, averaged over its prior.

    Parameters
    ----------
    idata : DataTree
        Result of `pymc.sample`. Without `evaluations` it must be that of a sampler whose moves meet
        a Metropolis test, such as ``EnsembleKalmanSampler(adjust=True)``.
    model : pm.Model, optional
        The model that was sampled; needed with `evaluations`. By default the one on the context
        stack.
    evaluations : int, optional
        Forward evaluations to make, at least 100. With them you can give any run, also that of
        `pymc.NUTS`. By default none are made.
    random_seed : int, default 0
        Seed of the points that are evaluated, and of the fits of laws.
    compile_kwargs : dict, optional
        Options for the compilation of the forward map, if evaluations are made.

    Returns
    -------
    LogEvidence
        The value, its standard error, the effective sample size, and Pareto's k-hat [2]_. All
        chains count together.

    Raises
    ------
    TypeError
        If `evaluations` are asked for without a model.
    ValueError
        If the run has no independence proposals, or too few; if these carry the log density of a
        surrogate or of a corrected cheap model, and no `evaluations` are made; if draws contradict
        the evaluations that are made, as those of a run that had not arrived; if the forward map is
        stochastic or was taken as rough, so that the likelihood is not known; if the prior is
        improper; if other step methods have moved variables; if a mode was lost; and if k-hat is
        above 0.7, so that the value is unreliable.

    Notes
    -----
    Without `evaluations` the estimate is free. Independence proposals, accepted or not, are draws
    from a law whose density is known. So the mean of the posterior density over that density
    is an unbiased estimate of the evidence: see the stats `proposal_lp` and `proposal_log_q`. Draws
    of `EnsembleKalmanSampler` also carry the proposed points (stat `proposal`). There, the same
    average is taken of laws that are fitted to the draws. It is known to be one, and its error
    corrects the estimate [3]_.

    With `evaluations` a mixture of Student-t laws is fitted to half of the draws, and draws of the
    mixture are evaluated. A bridge connects them with the draws of the other half [1]_, if these
    are exact: if they have met a Metropolis test after a burn-in that has passed its own, or come
    from another step method, such as NUTS. Draws of other samplers do not enter.

    Parts of a model count as they are written: the evidence is that of ``exp(logp)``, and contains
    a `pymc.Potential` as a factor of the likelihood. Where evaluations fail, the density counts as
    zero.

    References
    ----------
    .. [1] Meng, X.-L. and Wong, W. H. (1996). Simulating ratios of normalizing constants via a
       simple identity: a theoretical exploration. Statistica Sinica, 6, 831-860.
       https://www.jstor.org/stable/24306045
    .. [2] Vehtari, A., Simpson, D., Gelman, A., Yao, Y. and Gabry, J. (2024). Pareto smoothed
       importance sampling. Journal of Machine Learning Research, 25(72), 1-58.
       https://arxiv.org/abs/1507.02646
    .. [3] Owen, A. and Zhou, Y. (2000). Safe and effective importance sampling. Journal of the
       American Statistical Association, 95, 135-143.
       https://doi.org/10.1080/01621459.2000.10473909

    Examples
    --------
    >>> import pymc as pm
    >>> import pymc_ensemble as pe
    >>> with pm.Model():
    ...     x = pm.Normal("x")
    ...     y = pm.Normal("y", x, 1.0, observed=0.7)
    ...     idata = pm.sample(
    ...         500,
    ...         step=pe.EnsembleKalmanSampler(adjust=True),
    ...         chains=2,
    ...         cores=1,
    ...         random_seed=1,
    ...         progressbar=False,
    ...     )
    >>> found = pe.log_evidence(idata)
    >>> exact = pm.logp(pm.Normal.dist(0, 2**0.5), 0.7).eval()
    >>> bool(abs(found.value - exact) < 3 * found.standard_error)
    True
    """
    require_counts(2 * FEWEST_WEIGHTS, evaluations=evaluations)  # half may go to draws
    rng = given_generator(random_seed, "random_seed")
    if evaluations is None:
        run = _known_run(idata)
        return _of_proposals(run, chains_of(run, idata), rng)
    model = without_leaves(given_model(model))
    if is_stochastic(model):
        raise ValueError(STOCHASTIC)
    known = _known_run(idata, model) if _is_ours(idata) else None
    found, weights, exact = bridge(idata, known, model, evaluations, rng, compile_kwargs)
    method: Method = "bridge" if exact else "importance"
    estimate = LogEvidence(*found, weights.khat, len(weights.log_weights), method)
    if not exact:  # a bridge has bounded terms, whatever the tail of the weights
        _require_tail(weights, "the draws: sample with adjust=True, or draw more")
    elif not estimate.effective_size >= FEWEST_WEIGHTS:
        raise ValueError(
            "The mixture that was fitted to the draws overlaps with the posterior in only "
            f"{number(estimate.effective_size, '.0f')} effective draws ({FEWEST_WEIGHTS} are "
            "needed). Draw more, or make more `evaluations`."
        )
    return estimate


STOCHASTIC = (
    "The forward model is stochastic: its likelihood is random, and the mean of that is not known "
    "from it. Give the forward model a fixed seed, or write the likelihood of the noise."
)


def _is_ours(idata: xr.DataTree) -> bool:
    if not isinstance(idata, xr.DataTree):
        raise TypeError(
            f"`idata` must be a DataTree as `pymc.sample` returns it, not {type(idata).__name__}."
        )
    return "sample_stats" in idata.children and "made_by" in idata["sample_stats"].dataset


def _known_run(idata: xr.DataTree, model: pm.Model | None = None) -> Run:
    """A run of this package, if its evidence is defined and is that of the whole model."""
    run = Run.of(idata, model)
    if run.facts.map == "stochastic":
        raise ValueError(STOCHASTIC)
    if run.facts.map == "rough":
        raise ValueError(
            "The run has averaged out fluctuations of the forward map (rough=True, or the map was "
            "found to be rough). So the draws carry the densities of a fit, and the evidence is "
            "not known. If the map does not fluctuate, sample with adjust=True."
        )
    if not run.facts.proper:
        raise ValueError(
            "The prior is improper (pm.Flat or pm.HalfFlat), so the evidence depends on an "
            "arbitrary constant. Give each variable a proper prior."
        )
    if not run.alone:
        raise ValueError(
            f"Other step methods have moved `{run.facts.others[0].name}`, so the proposals do not "
            "have one common posterior. Sample all variables with "
            "EnsembleKalmanSampler(adjust=True)."
        )
    if run.stats["lost"].any():
        raise ValueError(
            "A chain has probably lost a mode (its stat `lost` is true), and the evidence would "
            "lack it. Use a larger ensemble_size."
        )
    return run


def _of_proposals(run: Run, chain: NDArray[np.int64], rng: np.random.Generator) -> LogEvidence:
    """Evidence from the independence proposals of a run, with the chain of each draw."""
    again = "log_evidence(idata, model=model, evaluations=1000), which makes evaluations"
    if "proposal_log_q" not in run.stats:
        raise ValueError(
            "The run has no stat `proposal_log_q`: an earlier version sampled it, or the stat was "
            f"removed. Sample again, or use {again}."
        )
    if not run.origin.density_known:
        raise ValueError(
            f"Draws and proposals of this {run.facts.sampler} carry the log density of the "
            f"surrogate, so they give the evidence of the surrogate. Use {again} of the model "
            "itself. With adjust=True, the draws count as well."
        )
    lp, log_q = run.stats["proposal_lp"], run.stats["proposal_log_q"]
    independent = np.isfinite(log_q)
    if independent.sum() < FEWEST_WEIGHTS:
        raise ValueError(
            f"The run has made {independent.sum()} independence proposals ({FEWEST_WEIGHTS} are "
            "needed) to tell the evidence. Sample with EnsembleKalmanSampler(adjust=True), or use "
            f"{again}."
        )
    log_w = (lp - log_q)[independent]
    weights = Weights.of(np.empty((len(log_w), 0)), log_w)
    _require_tail(weights, f"the proposals: use a larger ensemble_size, draw more, or use {again}")
    controls = None
    if "proposal" in run.stats:
        points = np.where(independent[:, None], run.stats["proposal"], run.U)
        controls = control_variates(run.U, _second_half(chain), points, log_q, rng)
        controls = None if controls is None else controls[independent]
    value, error = averaged(log_w, chain[independent], controls)
    return LogEvidence(value, error, weights.ess, weights.khat, len(log_w), "proposals")


def _second_half(chain: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which draws are of the second half of their chain."""
    rank = np.concatenate([np.arange((chain == one).sum()) for one in np.unique(chain)])
    return np.asarray(rank >= np.bincount(chain)[chain] // 2, dtype=bool)


def _require_tail(weights: Weights, remedy: str) -> None:
    """Refuse an average that few points may decide."""
    if not weights.khat <= LARGEST_KHAT:
        n, khat = len(weights.log_weights), number(weights.khat, ".2f")
        raise ValueError(
            f"The evidence is not known: the importance weights of {n} points have a Pareto k-hat "
            f"of {khat} (at most {LARGEST_KHAT}), so only a few of them decide. The posterior has "
            f"tails or modes that are missing from {remedy}."
        )
