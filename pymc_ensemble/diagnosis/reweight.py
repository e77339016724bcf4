"""Draws that are corrected by importance weights."""

from collections.abc import Mapping

import numpy as np
import pymc as pm
import scipy  # parts of it are loaded when they are used first
import xarray as xr
from numpy.typing import NDArray

from pymc_ensemble.log import logger, number, percent
from pymc_ensemble.problem.checks import given_generator
from pymc_ensemble.problem.points import free_values
from pymc_ensemble.samplers.options import require_flags
from pymc_ensemble.samplers.weights import systematic_resample

from .findings import LARGEST_KHAT
from .limits import LEAST_EFFICIENCY
from .regression import MOST_PARAMETERS, Regression
from .run import Run
from .weights import FEWEST_WEIGHTS, SamplingError, Weights

FloatArray = NDArray[np.float64]


def reweight(
    idata: xr.DataTree,
    *,
    proposals: bool = False,
    model: pm.Model | None = None,
    random_seed: int = 0,
) -> xr.DataTree:
    """Correct draws by their log densities, without a further forward evaluation.

    Parameters
    ----------
    idata : DataTree
        Result of `pymc.sample` with a step method of this package.
    proposals : bool, default False
        Weight the independent proposals of a run with a Metropolis test, and not its draws.
        Rejected proposals count, too, so means and standard deviations become more precise.
    model : pm.Model, optional
        The model that was sampled. `proposals` needs it if a variable has a transform that is
        not one of PyMC's own.
    random_seed : int, default 0
        Seed of the resampling.

    Returns
    -------
    DataTree
        The same groups with as many draws, resampled from all chains by their weights. Chains, the
        order of draws and their stats have no meaning then, so `diagnose` refuses the result. The
        attributes of its posterior tell the Pareto ``khat`` of the weights [1]_ and their
        ``efficiency``, the effective share of the draws. With `proposals` the posterior has the
        free variables only. `pymc.compute_deterministics` adds the others, and evaluates the
        forward map again if these depend on it.

    Raises
    ------
    ValueError
        If the result does not come from an ensemble step method, is reweighted already, or is that
        of a surrogate or a fit, whose draws carry no density but its own. If nothing can correct
        the draws: they follow no known law, and no regression is reliable. If ``khat`` is above
        0.7 or ``efficiency`` below 0.05, so that weights are unreliable.
        With `proposals`, if the draws do not carry them, or are worth more than twice as much.

    Notes
    -----
    Draws of a plain ensemble Kalman sampler whose forces are those of its linear fit follow a known
    law, so their importance weights are the posterior density over the density of that law. If
    the regression of `diagnose` is reliable, weights are changed as little as possible so that
    means and variances are those of the regression.

    With `proposals` the weights are the posterior density over the density from which a point was
    proposed. Such averages are those of importance sampling, and do not depend on chains [2]_.

    References
    ----------
    .. [1] Vehtari, A., Simpson, D., Gelman, A., Yao, Y. and Gabry, J. (2024). Pareto smoothed
       importance sampling. Journal of Machine Learning Research, 25(72), 1-58.
       https://arxiv.org/abs/1507.02646
    .. [2] Frenkel, D. (2004). Speed-up of Monte Carlo simulations by sampling of rejected states.
       Proceedings of the National Academy of Sciences, 101, 17571-17575.
       https://doi.org/10.1073/pnas.0407950101

    Examples
    --------
    >>> import pymc as pm
    >>> import pymc_ensemble as pe
    >>> model = pe.gallery.decay(noise_sd=0.3)
    >>> with model:
    ...     idata = pm.sample(
    ...         1000, step=pe.EnsembleKalmanSampler(adjust=False), chains=4, cores=1, random_seed=1,
    ...         progressbar=False,
    ...     )
    >>> error = (idata.posterior.mean() - model.reference.sel(statistic="mean")) / (
    ...     model.reference.sel(statistic="sd")
    ... )
    >>> better = pe.reweight(idata)
    >>> left = (better.posterior.mean() - model.reference.sel(statistic="mean")) / (
    ...     model.reference.sel(statistic="sd")
    ... )
    >>> bool(abs(left["log_amplitude"]) < abs(error["log_amplitude"]) / 3)
    True
    """
    require_flags(proposals=proposals)
    run = Run.of(idata, model)
    if run.origin.law == "amortized":
        raise ValueError(
            "The draws carry the density of an amortized estimate, which cannot correct them. If "
            "the model has a likelihood, use AmortizedPosterior.refine(data, evaluations=200)."
        )
    if run.facts.map == "stochastic":
        raise ValueError(
            "The forward model is stochastic, so weights would prefer draws with lucky runs. If "
            "the sampler averages (rough=True), use the draws as they are."
        )
    if not run.origin.density_known:
        raise ValueError(
            f"These draws come from a {run.origin.law}, and carry its log density. So they cannot "
            "be corrected. Sample with adjust=True instead."
        )
    if not run.alone:
        raise ValueError(
            f"Other step methods have moved `{run.facts.others[0].name}`, so the log densities of "
            "the draws are not those of the model, and cannot correct them. Draw more instead."
        )
    if not np.isfinite(run.log_ratio).any():
        raise ValueError(
            "These draws carry no log densities, so they cannot be corrected. Use them as they are."
        )
    rng = given_generator(random_seed, "random_seed")
    if proposals:
        return _recycled(idata, run, model, rng)
    X = run.X
    base, khat = np.zeros(len(X)), -np.inf
    if run.origin.law == "gaussian":
        weights = Weights.of(X, run.log_ratio)
        base, khat = weights.log_weights, weights.khat
    regression = None
    if run.facts.dimension <= MOST_PARAMETERS:
        regression = Regression.of(run.U, run.stats["lp"], run.shown, rng)
    if regression is not None and regression.reliable:
        if khat > LARGEST_KHAT:  # such weights would spoil the moments of the regression
            base = np.zeros(len(X))
        base = _tilted(base, X, regression)
        khat = Weights.of(X, base).khat
    elif run.origin.law != "gaussian":
        raise ValueError(
            "These draws cannot be corrected: they do not follow a known law, so they have no "
            "importance weights, and their log densities do not determine the moments. "
            + ("Draw more." if run.origin.adjusted else "Sample with adjust=True instead.")
        )
    w = np.exp(base - base.max())
    left = float(w.sum() ** 2 / (w**2).sum())
    efficiency = _efficiency(left, len(w), khat)
    chosen = _picked(w, run.U, len(w), rng)
    return _resampled(idata, run.numbers[chosen], khat, efficiency)


def _picked(w: FloatArray, U: FloatArray, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Resample points `U`, shape (n, d), by weights: each place gets its share up to one draw."""
    order = _neighbors(U)
    picked = systematic_resample(w[order] / w.sum(), size, rng.random())
    return rng.permutation(order[picked])


def _neighbors(U: FloatArray, depth: int = 0) -> NDArray[np.int64]:
    """Order in which neighbors follow each other: halves along one coordinate after the other."""
    order = np.argsort(U[:, depth % U.shape[1]], kind="stable")
    if len(U) < 3:
        return order
    halves = np.array_split(order, 2)
    return np.concatenate([half[_neighbors(U[half], depth + 1)] for half in halves])


def _efficiency(left: float, n: int, khat: float) -> float:
    """Share of `n` draws that weights leave; an error if they cannot be relied upon."""
    efficiency = left / n
    if khat > LARGEST_KHAT or efficiency < LEAST_EFFICIENCY:
        reason = (
            f"So few leave means open by {number(left**-0.5, '.2g')} posterior sd."
            if efficiency < LEAST_EFFICIENCY
            else "The tail of the weights is so heavy that a part of the posterior may be missing, "
            "and nothing tells the error of the result."
        )
        raise ValueError(
            f"These draws cannot be corrected: their weights are worth {number(left, '.0f')} of "
            f"{n} draws ({percent(efficiency)}; {percent(LEAST_EFFICIENCY)} are needed), with "
            f"a Pareto k-hat of {number(khat, '.2f')} (at most {LARGEST_KHAT}). {reason} Sample "
            "with adjust=True instead, or draw more."
        )
    return efficiency


def _recycled(
    idata: xr.DataTree, run: Run, model: pm.Model | None, rng: np.random.Generator
) -> xr.DataTree:
    """Proposals of a run, accepted or not, resampled by their importance weights."""
    if "proposal" not in run.stats:
        raise ValueError(
            "The draws do not carry the proposed points (stat `proposal`). Sample with "
            "EnsembleKalmanSampler(adjust=True), which keeps them."
        )
    stats = run.stats
    independent = np.flatnonzero(np.isfinite(stats["proposal_log_q"]))
    if len(independent) < FEWEST_WEIGHTS:
        raise ValueError(
            f"The run has {len(independent)} independent proposals ({FEWEST_WEIGHTS} are "
            "needed) for their weights to count. Sample with adjust=True, or draw more."
        )
    log_w = (stats["proposal_lp"] - stats["proposal_log_q"])[independent]  # eq. (W2)
    weights = Weights.of(np.empty((len(log_w), 0)), log_w)
    efficiency = _efficiency(weights.ess, len(run.U), weights.khat)
    worth = float(SamplingError.of(run.paths).ess.min()) if run.draw.size else 0.0
    if 2 * weights.ess < worth:  # both are estimates, and short paths give too high ones
        raise ValueError(
            f"The proposals are worth {weights.ess:.0f} independent draws, but the draws "
            f"themselves are worth {worth:.0f}. Use the draws as they are."
        )
    size = idata["sample_stats"].sizes["chain"] * idata["sample_stats"].sizes["draw"]
    w = np.exp(weights.log_weights)
    chosen = independent[_picked(w, stats["proposal"][independent], size, rng)]
    U = stats["proposal"][chosen]
    found = _resampled(idata, run.numbers[chosen], weights.khat, efficiency)
    changed = {"unconstrained": U, "lp": stats["proposal_lp"][chosen]}
    groups = {name: group.to_dataset() for name, group in found.children.items()}
    of_draws = {name for name, data in groups.items() if {"chain", "draw"} <= set(data.sizes)}
    for name in of_draws - {"posterior", "sample_stats"}:
        del groups[name]
    groups["sample_stats"] = _with_values(groups["sample_stats"].drop_vars("log_q"), changed)
    groups["posterior"] = _free_variables(groups["posterior"], run, model, U)
    return xr.DataTree.from_dict(groups, name=idata.name)


def _free_variables(
    posterior: xr.Dataset, run: Run, model: pm.Model | None, U: FloatArray
) -> xr.Dataset:
    """Posterior with the values of the free variables at points `U`, and without the others."""
    values = {} if model is None else free_values(model, U)
    start = 0
    for variable in run.facts.moved if model is None else ():
        u = U[:, start : start + variable.size].reshape(-1, *variable.coordinates)
        start += variable.size
        if variable.backward is None:
            raise ValueError(
                f"The transform of `{variable.name}` is not one of PyMC's own, so only the model "
                "can compute its values. Pass the model: reweight(idata, proposals=True, "
                "model=model)."
            )
        values[variable.name] = variable.backward(u)
    if left_out := [str(name) for name in posterior if name not in values]:
        logger.info(
            f"reweight: the posterior has only the free variables, without {', '.join(left_out)}. "
            "pymc.compute_deterministics adds these."
        )
    names = [name for name in values if name in posterior]
    return _with_values(posterior[names], {name: values[name] for name in names})


def _with_values(data: xr.Dataset, values: Mapping[str, FloatArray]) -> xr.Dataset:
    """Data with other values of some variables, given as arrays (n, ...) over all chains."""
    new = {}
    for name, array in values.items():
        old = data[name].transpose("chain", "draw", ...)
        new[name] = old.copy(data=array.reshape(old.shape).astype(old.dtype, copy=False))
    return data.assign(new)


def _tilted(log_weights: FloatArray, X: FloatArray, regression: Regression) -> FloatArray:
    """Log weights that are nearest to the given ones and have the moments of the regression."""
    z = (X - regression.mean) / regression.sd
    T = np.concatenate([z, z**2 - 1], axis=1)

    def dual(a: FloatArray) -> tuple[float, FloatArray]:
        exponent = log_weights + T @ a  # eq. (W1)
        top = exponent.max()
        w = np.exp(exponent - top)
        value = float(np.log(w.sum()) + top)
        return value, T.T @ w / w.sum()

    found = scipy.optimize.minimize(dual, np.zeros(T.shape[1]), jac=True, method="L-BFGS-B")
    return log_weights + T @ found.x


def _resampled(
    idata: xr.DataTree, chosen: NDArray[np.int64], khat: float, efficiency: float
) -> xr.DataTree:
    """Pick draws by their numbers among those of all chains, shape (n,)."""
    n_chains, n_draws = (idata["sample_stats"].sizes[dim] for dim in ("chain", "draw"))
    chosen = np.resize(chosen, (n_chains, n_draws))
    chain, draw = (
        xr.DataArray(number, dims=("chain", "draw")) for number in np.divmod(chosen, n_draws)
    )
    groups = {}
    for name, group in idata.children.items():
        if name.startswith("warmup_"):
            continue
        data = group.dataset
        if (data.sizes.get("chain"), data.sizes.get("draw")) == chosen.shape:
            labels = {dim: data[dim] for dim in ("chain", "draw") if dim in data.coords}
            data = data.drop_vars(list(labels)).isel(chain=chain, draw=draw)
            data = data.assign_coords(labels)
        groups[name] = data
    groups["posterior"] = groups["posterior"].assign_attrs(khat=khat, efficiency=efficiency)
    return xr.DataTree.from_dict(groups, name=idata.name)
