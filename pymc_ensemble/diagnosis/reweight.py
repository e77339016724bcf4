"""Draws that are corrected by importance weights."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.optimize import minimize

from pymc_ensemble.samplers.weights import systematic_resample

from .ensembles import to_ensemble
from .findings import LARGEST_KHAT
from .regression import MOST_PARAMETERS, Regression
from .run import Run
from .weights import Weights

FloatArray = NDArray[np.float64]


def reweight(
    idata: xr.DataTree, *, var_names: Sequence[str] | None = None, random_seed: int = 0
) -> xr.DataTree:
    """Correct draws by what their log densities say, without a further forward evaluation.

    Parameters
    ----------
    idata : DataTree
        Result of `pymc.sample` with a step method of this package.
    var_names : list of str, optional
        The free variables of the model, as of `diagnose`.
    random_seed : int, default 0
        Seed of the resampling.

    Returns
    -------
    DataTree
        The same groups with as many draws, resampled from all chains by their weights: chains, the
        order of draws and their stats mean nothing any more, so that `diagnose` refuses it. The
        attributes of its posterior tell
        the Pareto ``khat`` of the weights [1]_, beyond 0.7 of which they cannot be relied upon, and
        their ``efficiency``, the effective share of the draws.

    Raises
    ------
    ValueError
        If the result does not come from an ensemble step method, is reweighted already, or is that
        of a surrogate, whose draws carry no density but its own; and if nothing is known that could
        correct it: no law that the draws follow, and no regression that is reliable.

    Notes
    -----
    Draws of a plain ensemble Kalman sampler follow a known law, so their importance weights are the
    posterior density over the density of that law. Where the regression of `diagnose` is reliable,
    weights are tilted as little as possible such that means and variances are those of the
    regression.

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
    run = Run.of(idata, var_names)
    if run.cost == 0:
        raise ValueError(
            "These draws come from a surrogate, and their log density is its own, so it cannot "
            "correct them. Sample with adjust=True instead."
        )
    rng = np.random.default_rng(random_seed)
    X = run.pooled
    base, khat = np.zeros(len(X)), -np.inf
    if run.drawn_from_law:
        weights = Weights.of(X, run.log_ratio)
        base, khat = weights.log_weights, weights.khat
    regression = None
    if len(run.labels) <= MOST_PARAMETERS:
        bounds, lp = run.bounds_and_density
        regression = Regression.of(X, lp, bounds, rng)
    if regression is not None and regression.reliable:
        if khat > LARGEST_KHAT:  # they would spoil what the regression knows
            base = np.zeros(len(X))
        base = _tilted(base, X, regression)
        khat = Weights.of(X, base).khat
    elif not run.drawn_from_law:
        raise ValueError(
            "These draws cannot be corrected: they do not follow a known law, so that they have no "
            "importance weights, and their log densities do not determine the moments. Draw more."
        )
    w = np.exp(base - base.max())
    efficiency = w.sum() ** 2 / (w**2).sum() / len(w)
    chosen = rng.permutation(systematic_resample(w / w.sum(), len(w), rng.random()))
    return _resampled(idata, chosen.reshape(len(run.X), -1), khat, float(efficiency))


def _tilted(log_weights: FloatArray, X: FloatArray, regression: Regression) -> FloatArray:
    """Log weights that are nearest to the given ones and have the moments of the regression."""
    z = (X - regression.mean) / regression.sd
    T = np.concatenate([z, z**2 - 1], axis=1)

    def dual(a: FloatArray) -> tuple[float, FloatArray]:
        exponent = log_weights + T @ a
        top = exponent.max()
        w = np.exp(exponent - top)
        value = float(np.log(w.sum()) + top)
        return value, T.T @ w / w.sum()

    bounds = [(-20.0, 20.0)] * T.shape[1]
    found = minimize(dual, np.zeros(T.shape[1]), jac=True, method="L-BFGS-B", bounds=bounds)
    return log_weights + T @ found.x


def _resampled(
    idata: xr.DataTree, chosen: NDArray[np.int64], khat: float, efficiency: float
) -> xr.DataTree:
    """Pick draws by their numbers among all draws, chosen of shape (C, n)."""
    tree = to_ensemble(idata)
    chain, draw = (
        xr.DataArray(number, dims=("chain", "draw"))
        for number in np.divmod(chosen, chosen.shape[1])
    )
    groups = {}
    for name, group in tree.children.items():
        data = group.dataset
        if {"chain", "sweep", "particle"} <= set(data.sizes):
            # the order in which arrays of shape (S, J) are flattened
            stacked = data.stack(flat=("sweep", "particle"), create_index=False)
            stacked = stacked.drop_vars(["sweep", "particle"], errors="ignore")
            labels = data["chain"].to_numpy()
            data = stacked.drop_vars("chain").isel(chain=chain, flat=draw)
            data = data.assign_coords(chain=labels, draw=np.arange(chosen.shape[1]))
            data = data.transpose("chain", "draw", ..., missing_dims="ignore")
        groups[name] = data
    groups["posterior"] = groups["posterior"].assign_attrs(khat=khat, efficiency=efficiency)
    return xr.DataTree.from_dict(groups, name=idata.name)
