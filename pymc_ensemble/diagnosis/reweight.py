"""Draws that are corrected by importance weights."""

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.optimize import minimize

from pymc_ensemble.log import number, percent
from pymc_ensemble.problem.checks import given_generator
from pymc_ensemble.samplers.weights import systematic_resample

from .findings import LARGEST_KHAT
from .regression import MOST_PARAMETERS, Regression
from .run import Run
from .weights import Weights

FloatArray = NDArray[np.float64]

LEAST_EFFICIENCY = 0.05  # share of the draws: of 4000 they leave 200, a mean's error of 0.07 sd


def reweight(idata: xr.DataTree, *, random_seed: int = 0) -> xr.DataTree:
    """Correct draws by what their log densities say, without a further forward evaluation.

    Parameters
    ----------
    idata : DataTree
        Result of `pymc.sample` with a step method of this package.
    random_seed : int, default 0
        Seed of the resampling.

    Returns
    -------
    DataTree
        The same groups with as many draws, resampled from all chains by their weights: chains, the
        order of draws and their stats mean nothing any more, so that `diagnose` refuses it. The
        attributes of its posterior tell the Pareto ``khat`` of the weights [1]_ and their
        ``efficiency``, the effective share of the draws.

    Raises
    ------
    ValueError
        If the result does not come from an ensemble step method, is reweighted already, or is that
        of a surrogate or a fit, whose draws carry no density but its own; if nothing is known that
        could correct it: no law that the draws follow, and no regression that is reliable; and if
        ``khat`` is above 0.7 or ``efficiency`` below 0.05, so that weights cannot be relied upon.

    Notes
    -----
    Draws of a plain ensemble Kalman sampler whose forces are those of its linear fit follow a known
    law, so their importance weights are the posterior density over the density of that law. Where
    the regression of `diagnose` is reliable, weights are tilted as little as possible such that
    means and variances are those of the regression.

    References
    ----------
    .. [1] Vehtari, A., Simpson, D., Gelman, A., Yao, Y. and Gabry, J. (2024). Pareto smoothed
       importance sampling. Journal of Machine Learning Research, 25(72), 1-58.
       https://arxiv.org/abs/1507.02646

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
    run = Run.of(idata)
    if not run.origin.density_known:
        raise ValueError(
            f"These draws come from a {run.origin.law}, and their log density is its own, so it "
            "cannot correct them. Sample with adjust=True instead."
        )
    if not run.alone:
        raise ValueError(
            f"Other step methods have moved `{run.facts.others[0].name}`, so that the log "
            "densities of the draws are not those of the model, and cannot correct them. Draw more."
        )
    if not np.isfinite(run.log_ratio).any():
        raise ValueError("These draws cannot be corrected: they carry no log densities.")
    rng = given_generator(random_seed, "random_seed")
    X = run.X
    base, khat = np.zeros(len(X)), -np.inf
    if run.origin.law == "gaussian":
        weights = Weights.of(X, run.log_ratio)
        base, khat = weights.log_weights, weights.khat
    regression = None
    if run.facts.dimension <= MOST_PARAMETERS:
        regression = Regression.of(run.U, run.stats["lp"], run.shown, rng)
    if regression is not None and regression.reliable:
        if khat > LARGEST_KHAT:  # they would spoil what the regression knows
            base = np.zeros(len(X))
        base = _tilted(base, X, regression)
        khat = Weights.of(X, base).khat
    elif run.origin.law != "gaussian":
        raise ValueError(
            "These draws cannot be corrected: they do not follow a known law, so that they have no "
            "importance weights, and their log densities do not determine the moments. "
            + ("Draw more." if run.origin.adjusted else "Sample with adjust=True instead.")
        )
    w = np.exp(base - base.max())
    efficiency = float(w.sum() ** 2 / (w**2).sum() / len(w))
    left = efficiency * len(w)
    if khat > LARGEST_KHAT or efficiency < LEAST_EFFICIENCY:
        raise ValueError(
            f"These draws cannot be corrected: their weights are worth {number(left, '.0f')} of "
            f"{len(w)} draws ({percent(efficiency)}; {percent(LEAST_EFFICIENCY)} are needed), with "
            f"a Pareto k-hat of {number(khat, '.2f')} (at most {LARGEST_KHAT}), so that the result "
            "would be worse than they are. Sample with adjust=True instead, or draw more."
        )
    chosen = rng.permutation(systematic_resample(w / w.sum(), len(w), rng.random()))
    return _resampled(idata, run.numbers[chosen], khat, efficiency)


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

    found = minimize(dual, np.zeros(T.shape[1]), jac=True, method="L-BFGS-B")
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
