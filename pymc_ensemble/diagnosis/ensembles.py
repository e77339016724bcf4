"""Diagnostics that know how ensembles become draws.

They take the DataTree that `pymc.sample` returned, and need only its stats ``particle`` and
``sweep``: which member of the ensemble a draw is, and in which sweep of the chain it was there.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

__all__ = ["ess", "to_ensemble"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def to_ensemble(idata: xr.DataTree) -> xr.DataTree:
    """Rearrange draws by the sweep and the particle that they are.

    Parameters
    ----------
    idata : DataTree
        Result of `pymc.sample` with an ensemble step method, as returned or loaded from disk.

    Returns
    -------
    DataTree
        Every group with the dimensions ``(chain, draw)`` (posterior, sample_stats,
        log_likelihood, ...) with ``(chain, sweep, particle)`` in their place; the other groups as
        they are, without those of the tuning phase. Only particles with a complete path in all
        chains are kept. The path is shortened where that would cost more than half of the draws, as
        after an interrupt.

    Raises
    ------
    ValueError
        If `idata` does not come from an ensemble step method.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> stats = {"particle": [[0, 0, 1, 1]], "sweep": [[0, 1, 0, 1]]}
    >>> idata = xr.DataTree.from_dict(
    ...     {
    ...         "posterior": xr.Dataset({"x": (("chain", "draw"), [[0.0, 0.1, 1.0, 1.1]])}),
    ...         "sample_stats": xr.Dataset({k: (("chain", "draw"), v) for k, v in stats.items()}),
    ...     }
    ... )
    >>> to_ensemble(idata)["posterior"]["x"].to_numpy()
    array([[[0. , 1. ],
            [0.1, 1.1]]])
    """
    stats = ensemble_stats(idata)
    sweeps, particles, draw = ensemble_layout(
        stats["sweep"].transpose("chain", "draw").to_numpy(),
        stats["particle"].transpose("chain", "draw").to_numpy(),
    )
    n_draws = stats.sizes["draw"]
    chains = xr.DataArray(np.arange(len(draw)), dims="chain")
    indexer = xr.DataArray(draw, dims=("chain", "sweep", "particle"))

    def rearranged(group: xr.Dataset) -> xr.Dataset:
        if group.sizes.get("chain") != len(draw) or group.sizes.get("draw") != n_draws:
            return group
        group = group.drop_vars(["draw", "sweep", "particle"], errors="ignore")
        picked = group.isel(chain=chains, draw=indexer, missing_dims="ignore")
        if "chain" in group.coords:
            picked = picked.assign_coords(chain=group["chain"])
        picked = picked.assign_coords(sweep=sweeps, particle=particles)
        return picked.transpose("chain", "sweep", "particle", ..., missing_dims="ignore")

    return xr.DataTree.from_dict(
        {
            name: rearranged(group.dataset)
            for name, group in idata.children.items()
            if not name.startswith("warmup_")
        },
        name=idata.name,
    )


def ensemble_stats(idata: xr.DataTree) -> xr.Dataset:
    """Stats of a run, if it comes from an ensemble step method; refuse anything else."""
    if not isinstance(idata, xr.DataTree):
        raise TypeError(
            f"A DataTree as `pymc.sample` returns it is needed, not {type(idata).__name__}."
        )
    stats = idata["sample_stats"].dataset if "sample_stats" in idata.children else xr.Dataset()
    if not {"particle", "sweep"} <= set(stats):
        raise ValueError(
            "The result has no stats `particle` and `sweep`, so it does not come from an ensemble "
            "step method. Sample with one, for example "
            "`pm.sample(step=pymc_ensemble.EnsembleKalmanSampler())`."
        )
    return stats


def ensemble_layout(sweep: IntArray, particle: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Where the draws of an ensemble are that are complete in all chains.

    Parameters
    ----------
    sweep, particle : ndarray of int, shape (n_chains, n_draws)
        Which sweep and which particle each draw is.

    Returns
    -------
    sweeps : ndarray of shape (S,)
        Labels of the leading sweeps that are kept.
    particles : ndarray of shape (J,)
        Labels of the particles that all chains have in all these sweeps.
    draw : ndarray of int, shape (n_chains, S, J)
        Number of the draw. S is the largest number that costs at most half of the draws.
    """
    sweeps, sweep_index = np.unique(sweep, return_inverse=True)
    particles, particle_index = np.unique(particle, return_inverse=True)
    n_chains, n_draws = sweep.shape
    draw = np.full((n_chains, len(sweeps), len(particles)), -1)
    chain_index = np.arange(n_chains)[:, None]
    draw[chain_index, sweep_index.reshape(sweep.shape), particle_index.reshape(sweep.shape)] = (
        np.arange(n_draws)
    )
    # complete[s, j]: all chains have particle j in each of the sweeps 0, ..., s
    complete = np.logical_and.accumulate((draw >= 0).all(axis=0), axis=0)
    kept = complete.sum(axis=1) * np.arange(1, len(sweeps) + 1)
    S = int(np.flatnonzero(kept > kept.max() / 2).max(initial=-1)) + 1
    chosen = complete[S - 1] if S else np.zeros(len(particles), dtype=bool)
    return sweeps[:S], particles[chosen], draw[:, :S, chosen]


def ess(idata: xr.DataTree, var_names: Sequence[str] | None = None) -> xr.Dataset:
    """Effective sample size of posterior means, from the paths of the particles.

    Parameters
    ----------
    idata : DataTree
        Result of `pymc.sample` with an ensemble step method.
    var_names : list of str, optional
        Variables of the posterior; all by default.

    Returns
    -------
    Dataset
        Effective sample size of the mean of each variable; as many as there are draws in
        `to_ensemble` if sweeps are independent.

    Notes
    -----
    The variance of the mean over S sweeps of J particles in C chains is the variance of the
    posterior times ``(1 + 2 sum_t (1 - t / S) rho_t) / (C S J)``, with the autocorrelation
    ``rho_t`` of a particle's path at a lag of t sweeps. It is estimated about the mean of
    everything and pooled over particles and chains, so that ten sweeps are enough. The sum ends
    where the estimate is lost in noise, by the rule of Geyer [1]_. Particles of one sweep count as
    independent, which they are up to an error of order 1/J.

    References
    ----------
    .. [1] Geyer, C. J. (1992). Practical Markov chain Monte Carlo. Statistical Science, 7,
       473-483. https://doi.org/10.1214/ss/1177011137

    Examples
    --------
    Fifty particles that stay where they are for ten sweeps are fifty draws, and not five hundred.

    >>> import numpy as np, xarray as xr
    >>> draws = {
    ...     "posterior": {"x": np.random.default_rng(1).normal(size=(1, 50)).repeat(10, axis=1)},
    ...     "sample_stats": {
    ...         "particle": np.repeat(np.arange(50), 10)[None],
    ...         "sweep": np.tile(np.arange(10), 50)[None],
    ...     },
    ... }
    >>> idata = xr.DataTree.from_dict(
    ...     {
    ...         group: xr.Dataset({name: (("chain", "draw"), x) for name, x in values.items()})
    ...         for group, values in draws.items()
    ...     }
    ... )
    >>> round(float(ess(idata)["x"]))
    50
    """
    posterior = to_ensemble(idata)["posterior"].dataset
    if var_names is not None:
        if not isinstance(var_names, Sequence) or not len(var_names):
            raise TypeError(f"`var_names` has to be a list of names, not {var_names!r}.")
        var_names = [var_names] if isinstance(var_names, str) else var_names
        if unknown := [name for name in var_names if name not in posterior]:
            raise ValueError(f"`var_names` has {unknown[0]!r}, which the posterior does not have.")
        posterior = posterior[list(var_names)]
    return xr.apply_ufunc(path_ess, posterior, input_core_dims=[["chain", "particle", "sweep"]])


def path_ess(paths: FloatArray) -> FloatArray:
    """Effective sample size of the mean of particle paths.

    Parameters
    ----------
    paths : ndarray of shape (..., n_chains, J, S)

    Returns
    -------
    ndarray of shape (...)
        NaN where the paths are constant.
    """
    S, n = paths.shape[-1], np.prod(paths.shape[-3:])
    x = paths - paths.mean(axis=(-3, -2, -1), keepdims=True)
    spectrum = np.abs(np.fft.rfft(x, n=2 * S, axis=-1)) ** 2
    lags = np.arange(S)
    covariance = np.fft.irfft(spectrum.mean(axis=(-3, -2)), axis=-1)[..., :S] / (S - lags)
    with np.errstate(invalid="ignore", divide="ignore"):
        rho = covariance / covariance[..., :1]
    # Sums of neighbouring lags are positive for a reversible chain: stop at the first that is not
    if S % 2:
        rho = np.concatenate([rho, np.zeros_like(rho[..., :1])], axis=-1)
    pairs = rho[..., ::2] + rho[..., 1::2]
    signal = np.logical_and.accumulate(pairs > 0, axis=-1)
    weights = np.repeat(signal, 2, axis=-1) * (1 - np.arange(rho.shape[-1]) / S)
    time = 2 * (rho * weights).sum(axis=-1) - 1
    return np.where(covariance[..., 0] > 0, n / np.maximum(time, 1 / np.log10(max(n, 10))), np.nan)
