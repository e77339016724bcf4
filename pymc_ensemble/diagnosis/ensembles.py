"""Diagnostics that know how ensembles become draws.

They take the DataTree that `pymc.sample` returned, and need only its stats ``particle`` and
``sweep``: the particle of a draw, and the sweep of the chain in which it was there.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

__all__ = ["ess", "to_ensemble"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

LOST = 0.1  # share of draws that may be left out: the tail of a Gaussian moves its mean by 0.2 sd
OF_MODEL = {"sweep": "sweep_of_model", "particle": "particle_of_model"}  # names of the model's own


def to_ensemble(idata: xr.DataTree) -> xr.DataTree:
    """Rearrange draws by sweep and particle.

    Parameters
    ----------
    idata : DataTree
        Result of `pymc.sample` with an ensemble step method, as returned or loaded from disk. If
        runs were put together along ``draw``, the count of sweeps goes on from one to the next.

    Returns
    -------
    DataTree
        Groups with the dimensions ``(chain, draw)`` (posterior, sample_stats, log_likelihood, ...)
        have ``(chain, sweep, particle)`` instead. Other groups stay as they are. Those of the
        tuning phase are left out. Only particles with a complete path in all chains are kept. If
        that would cost more than half of the draws, as after an interrupt, the paths are shortened.
        If the model itself uses the name ``sweep`` or ``particle``, it becomes ``sweep_of_model``
        or ``particle_of_model`` here.

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
    sweep, particle = sweeps_and_particles(ensemble_stats(idata))
    sweeps, particles, draw = ensemble_layout(sweep, particle)
    chains = xr.DataArray(np.arange(len(draw)), dims="chain")
    indexer = xr.DataArray(draw, dims=("chain", "sweep", "particle"))

    def rearranged(name: str, group: xr.Dataset) -> xr.Dataset:
        if (group.sizes.get("chain"), group.sizes.get("draw")) != sweep.shape:
            return group
        group = group.drop_vars("draw", errors="ignore")
        if name == "sample_stats":
            group = group.drop_vars(["sweep", "particle"])
        taken = {*group.dims, *group.variables}
        group = group.rename({old: new for old, new in OF_MODEL.items() if old in taken})
        picked = group.isel(chain=chains, draw=indexer, missing_dims="ignore")
        if "chain" in group.coords:
            picked = picked.assign_coords(chain=group["chain"])
        picked = picked.assign_coords(sweep=sweeps, particle=particles)
        return picked.transpose("chain", "sweep", "particle", ..., missing_dims="ignore")

    groups = {
        name: group.dataset
        for name, group in idata.children.items()
        if not name.startswith("warmup_")
    }
    return xr.DataTree.from_dict(
        {name: rearranged(name, group) for name, group in groups.items()}, name=idata.name
    )


def ensemble_stats(idata: xr.DataTree) -> xr.Dataset:
    """Stats of a run, if it comes from an ensemble step method; refuse anything else."""
    if not isinstance(idata, xr.DataTree):
        raise TypeError(
            f"`idata` must be a DataTree as `pymc.sample` returns it, not {type(idata).__name__}."
        )
    stats = idata["sample_stats"].dataset if "sample_stats" in idata.children else xr.Dataset()
    if not {"particle", "sweep"} <= set(stats):
        raise ValueError(
            "The result has no stats `particle` and `sweep`, so it does not come from an ensemble "
            "step method. Sample with one, for example "
            "`pm.sample(step=pymc_ensemble.EnsembleKalmanSampler())`."
        )
    if set(stats["sweep"].dims) != {"chain", "draw"}:
        raise ValueError(
            f"The stat `sweep` has the dimensions {stats['sweep'].dims}, not (chain, draw): "
            "several ensemble step methods have moved variables in one run, and the stats do not "
            "say which draws belong to which. Use one ensemble step method."
        )
    return stats


def sweeps_and_particles(stats: xr.Dataset) -> tuple[IntArray, IntArray]:
    """Sweep and particle of each draw, shape (n_chains, n_draws); -1 where there is no draw."""
    arrays = (stats[name].transpose("chain", "draw").to_numpy() for name in ("sweep", "particle"))
    sweep, particle = (np.nan_to_num(values, nan=-1).astype(np.int64) for values in arrays)
    return sweep, particle


def segments_of(sweep: IntArray, particle: IntArray) -> IntArray:
    """Number of the run of each draw, for runs that were put together along ``draw``.

    In one run each particle has each sweep once, so a run ends where the same pair comes again. If
    draws are not in this order, the number is how often the same pair has come before.

    Parameters
    ----------
    sweep, particle : ndarray of int, shape (n_chains, n_draws)

    Returns
    -------
    ndarray of int, shape (n_chains, n_draws)
        Numbers from 0; -1 where there is no draw.
    """
    result = np.where(sweep < 0, -1, 0)
    for which, of_chain, number in zip(sweep, particle, result, strict=True):
        valid = np.flatnonzero(number == 0)
        key = which[valid] * (of_chain.max(initial=0) + 1) + of_chain[valid]
        _, inverse, counts = np.unique(key, return_inverse=True, return_counts=True)
        most = counts.max(initial=1)
        if most == 1:
            continue
        start = segment = 0
        while start < len(key) and segment <= most:
            _, first = np.unique(key[start:], return_index=True)
            again = np.setdiff1d(np.arange(len(key) - start), first)
            stop = start + again[0] if len(again) else len(key)
            number[valid[start:stop]] = segment
            start, segment = stop, segment + 1
        if segment > most:
            order = np.argsort(inverse, kind="stable")
            ends = np.cumsum(counts)
            number[valid[order]] = np.arange(len(key)) - np.repeat(ends - counts, counts)
    return result


def ensemble_layout(sweep: IntArray, particle: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Positions of the draws of sweeps and particles that are complete in all chains.

    Parameters
    ----------
    sweep, particle : ndarray of int, shape (n_chains, n_draws)
        Which sweep and which particle each draw is; -1 where there is no draw.

    Returns
    -------
    sweeps : ndarray of shape (S,)
        Labels of the leading sweeps that are kept, of each run that was put together.
    particles : ndarray of shape (J,)
        Labels of the particles that all chains have in all these sweeps.
    draw : ndarray of int, shape (n_chains, S, J)
        Number of the draw. For each run, S is the largest number that costs at most half of it.
    """
    segments = segments_of(sweep, particle)
    parts, offset = [], 0
    for segment in range(segments.max(initial=-1) + 1):
        here = segments == segment
        sweeps, particles, draw = _one_run(np.where(here, sweep, -1), particle)
        parts.append((sweeps + offset, particles, draw))
        offset += int(sweep[here].max()) + 1
    if not parts:
        return np.empty(0, int), np.empty(0, int), np.empty((len(sweep), 0, 0), int)
    # short rests of runs must not cost the other runs draws
    largest = max(draw.size for *_, draw in parts)
    kept = [part for part in parts if part[2].size > LOST * largest] if largest else parts[:1]
    common = kept[0][1]
    for _, particles, _ in kept[1:]:
        common = np.intersect1d(common, particles)
    draws = [draw[:, :, np.isin(particles, common)] for _, particles, draw in kept]
    return (
        np.concatenate([sweeps for sweeps, *_ in kept]),
        common,
        np.concatenate(draws, axis=1),
    )


def _one_run(sweep: IntArray, particle: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Layout of the draws of one run: those with a sweep that is not negative."""
    chain, number = np.nonzero(sweep >= 0)
    sweeps, sweep_index = np.unique(sweep[chain, number], return_inverse=True)
    particles, particle_index = np.unique(particle[chain, number], return_inverse=True)
    draw = np.full((len(sweep), len(sweeps), len(particles)), -1)
    draw[chain, sweep_index, particle_index] = number
    # complete[s, j]: all chains have particle j in each of the sweeps 0, ..., s
    complete = np.logical_and.accumulate((draw >= 0).all(axis=0), axis=0)
    kept = complete.sum(axis=1) * np.arange(1, len(sweeps) + 1)
    S = int(np.flatnonzero(kept > kept.max(initial=0) / 2).max(initial=-1)) + 1
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
        Effective sample size of the mean of each variable. If sweeps are independent, it is the
        number of draws in `to_ensemble`.

    Raises
    ------
    TypeError
        If `idata` is not a DataTree, or `var_names` not a list of names.
    ValueError
        If no ensemble step method made the result, or it lacks a variable of `var_names`.

    Notes
    -----
    The variance of the mean over S sweeps of J particles in C chains is the variance of the
    posterior times ``(1 + 2 sum_t (1 - t / S) rho_t) / (C S J)``, with the autocorrelation
    ``rho_t`` of a particle's path at a lag of t sweeps. It is estimated about the mean of all
    draws, and pooled over particles and chains, so that ten sweeps are enough. The sum ends where
    noise hides the estimate, by the rule of Geyer [1]_. Particles of one sweep count as
    independent. This is right up to an error of order 1/J.

    References
    ----------
    .. [1] Geyer, C. J. (1992). Practical Markov chain Monte Carlo. Statistical Science, 7,
       473-483. https://doi.org/10.1214/ss/1177011137

    Examples
    --------
    Fifty particles that do not move for ten sweeps are fifty draws, not five hundred.

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
            raise TypeError(f"`var_names` must be a list of names, not {var_names!r}.")
        var_names = [var_names] if isinstance(var_names, str) else var_names
        if unknown := [name for name in var_names if name not in posterior]:
            raise ValueError(
                f"`var_names` has {unknown[0]!r}, which is not a variable of the posterior."
            )
        posterior = posterior[list(var_names)]
    result = xr.apply_ufunc(path_ess, posterior, input_core_dims=[["chain", "particle", "sweep"]])
    return under_own_names(result)


def under_own_names(data: xr.Dataset) -> xr.Dataset:
    """Data with all names as in the model."""
    taken = {*data.dims, *data.variables}
    return data.rename({new: old for old, new in OF_MODEL.items() if new in taken})


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
    time = 2 * (rho * weights).sum(axis=-1) - 1  # eq. (D1)
    return np.where(covariance[..., 0] > 0, n / np.maximum(time, 1 / max(np.log10(n), 1.0)), np.nan)
