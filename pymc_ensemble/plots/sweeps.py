"""Pictures of how an ensemble moves, by sweep or by iteration."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from pymc_ensemble.diagnosis.ensembles import ensemble_stats, to_ensemble
from pymc_ensemble.diagnosis.facts import facts_of
from pymc_ensemble.plots.axes import LINES, axes_of

FloatArray = NDArray[np.float64]

PATHS = 8  # number of particles whose paths are drawn


def _columns(
    group: xr.Dataset, dims: Sequence[str], var_names: Sequence[str] | None = None
) -> dict[str, FloatArray]:
    """Scalar parameters of a group by name, each an array with the given dimensions."""
    columns = {}
    if isinstance(var_names, str):
        var_names = [var_names]
    for name, values in group.data_vars.items():
        if var_names is not None and str(name) not in {v.split("[")[0] for v in var_names}:
            continue
        array = values.transpose(*dims, ...).to_numpy()
        for index in np.ndindex(array.shape[len(dims) :]):
            label = f"{name}[{','.join(map(str, index))}]" if index else str(name)
            if var_names is None or {label, str(name)} & set(var_names):
                columns[label] = array[(..., *index)].astype(float)
    known = {str(name) for name in group.data_vars} | set(columns)
    if unknown := [name for name in var_names or () if name not in known]:
        raise ValueError(
            f"The posterior has no {', '.join(map(repr, unknown))}; its variables are "
            f"{', '.join(map(repr, map(str, group.data_vars)))}."
        )
    return columns


def _free_variables(idata: xr.DataTree) -> list[str] | None:
    """Names of the free variables of a posterior, or None, for all, if the draws do not tell.

    What `pm.Deterministic` records may have thousands of entries, and is left out.
    """
    try:
        facts = facts_of(ensemble_stats(idata))
    except ValueError:  # draws of version 0.1, or too few of them
        return None
    return [v.name for v in facts.variables if v.name in idata["posterior"].data_vars] or None


def _is_inverted(idata: xr.DataTree) -> bool:
    """Whether `pymc_ensemble.invert` returned it. Others refuse what is not a result at all."""
    return isinstance(idata, xr.DataTree) and "inversion" in idata.children


def _burn_in(idata: xr.DataTree) -> tuple[xr.Dataset, xr.Dataset] | None:
    """Draws and stats of the iterations of the burn-in, if they were kept."""
    if not {"warmup_posterior", "warmup_sample_stats"} <= set(idata.children):
        return None
    draws, stats = idata["warmup_posterior"].dataset, idata["warmup_sample_stats"].dataset
    n_evals = stats["n_evals"].transpose("chain", "draw").to_numpy()
    # after the burn-in has passed its test, tuning draws only show further particles
    moved = np.diff(n_evals, axis=1, prepend=-1).any(axis=0)
    return draws.isel(draw=moved), stats.isel(draw=moved)


def path(
    idata: xr.DataTree,
    x: str | None = None,
    y: str | None = None,
    *,
    chain: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draw the path of an ensemble through the space of two parameters.

    Parameters
    ----------
    idata : DataTree
        Result of `pymc.sample` with an ensemble step method. With ``discard_tuned_samples=False``
        it has the burn-in, too. Crosses show it: one particle of each iteration. Or a result of
        `invert`, whose iterations take the place of sweeps.
    x, y : str, optional
        Parameters on the axes, such as ``"rate"`` or ``"theta[1]"``. By default they are the first
        two entries of free variables. For a result of `invert` they are unconstrained coordinates.
    chain : int, default 0
        Number of the chain. Each chain is an ensemble of its own.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        Particles are dots, colored by their sweep. Thin lines are the paths of some particles, the
        black line is the path of the mean.

    Raises
    ------
    ValueError
        If there are no two such parameters or no such chain, or if no ensemble step method made the
        result.

    Examples
    --------
    >>> import pymc as pm
    >>> import pymc_ensemble as pe
    >>> with pe.gallery.decay():
    ...     idata = pm.sample(
    ...         300, step=pe.EnsembleKalmanSampler(), chains=2, cores=1, random_seed=1,
    ...         progressbar=False, discard_tuned_samples=False,
    ...     )
    >>> ax = pe.plots.path(idata)
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('log_amplitude', 'log_rate')
    """
    inverted = _is_inverted(idata)
    if inverted:
        group = idata["inversion"]["unconstrained"]
        columns = {
            str(name): group.sel(coordinate=name)
            .transpose("iteration", "particle")
            .to_numpy()[None]
            for name in group["coordinate"].to_numpy()
        }
    else:
        dims = ("chain", "sweep", "particle")
        columns = _columns(to_ensemble(idata)["posterior"].dataset, dims)
    names = list(columns)
    chosen = [name for name in (x, y) if name is not None]
    default = None if inverted else _free_variables(idata)
    likely = names if default is None else [n for n in names if n.split("[")[0] in default]
    chosen += [name for name in likely if name not in chosen][: 2 - len(chosen)]
    if x is None and y is not None:
        chosen.reverse()
    if len(chosen) < 2 or (unknown := set(chosen) - set(names)):
        what = f"`{min(unknown)}` is none of them" if len(chosen) == 2 else "two are needed"
        raise ValueError(f"The parameters are {', '.join(map(repr, names))}; {what}.")
    n_chains = len(columns[chosen[0]])
    if chain not in range(-n_chains, n_chains):
        raise ValueError(f"There is no chain {chain!r}: there are {n_chains}, counted from 0.")
    U, V = (columns[name][chain] for name in chosen)
    ax = axes_of(ax)
    S, J = U.shape
    sweeps = np.broadcast_to(np.arange(S)[:, None], U.shape)
    if (burn_in := _burn_in(idata)) is not None:
        early = _columns(burn_in[0], ("chain", "draw"))
        u, v = (early[name][chain] for name in chosen)
        ax.plot(u, v, color="0.8", linewidth=0.5, zorder=1)
        ax.scatter(u, v, color="0.4", s=18, marker="x", label="burn-in", zorder=2)
    followed = np.linspace(0, J - 1, min(PATHS, J)).astype(int)
    ax.plot(U[:, followed], V[:, followed], color="0.5", linewidth=0.6, alpha=0.6, zorder=1)
    dots = ax.scatter(U, V, c=sweeps, cmap="viridis", s=6, linewidths=0, alpha=0.8, zorder=3)
    if J > 1:
        ax.plot(U.mean(1), V.mean(1), color="black", linewidth=1.5, label="mean", zorder=4)
    ax.figure.colorbar(dots, ax=ax, label="iteration" if inverted else "sweep")
    ax.set(xlabel=chosen[0], ylabel=chosen[1])
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False)
    return ax


def spread(
    idata: xr.DataTree, var_names: Sequence[str] | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw the standard deviation over the particles by sweep.

    An ensemble that shrinks has collapsed. One that still grows has not arrived. Ensembles that
    differ from each other sit in different places.

    Parameters
    ----------
    idata : DataTree
        Result of `pymc.sample` with an ensemble step method.
    var_names : list of str, optional
        Variables, or elements of them such as ``"theta[1]"``; all free ones by default.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        There is one color for each parameter and one line for each chain. The unit is the standard
        deviation of all draws of the parameter.

    Raises
    ------
    ValueError
        If there is only one particle or no such variable, or if no ensemble step method made the
        result.

    Examples
    --------
    >>> import pymc as pm
    >>> import pymc_ensemble as pe
    >>> with pe.gallery.decay():
    ...     idata = pm.sample(
    ...         300, step=pe.EnsembleKalmanSampler(), chains=2, cores=1, random_seed=1,
    ...         progressbar=False,
    ...     )
    >>> ax = pe.plots.spread(idata)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['log_amplitude', 'log_rate']
    """
    posterior = to_ensemble(idata)["posterior"].dataset
    chosen = _free_variables(idata) if var_names is None else var_names
    columns = _columns(posterior, ("chain", "sweep", "particle"), chosen)
    if posterior.sizes["particle"] < 2:
        raise ValueError(
            "Each chain has only one particle, so there is no spread over particles. Draw the "
            "trace instead: `arviz.plot_trace(idata)`."
        )
    ax = axes_of(ax)
    for k, (name, values) in enumerate(columns.items()):
        scale = max(values.std(), 1e-300)
        for c, of_chain in enumerate(values.std(axis=2) / scale):
            label = name if c == 0 and k < LINES else None
            ax.plot(of_chain, color=f"C{k}", linewidth=1, marker=".", label=label)
    ax.axhline(1.0, color="0.7", linewidth=0.8, zorder=0)
    ax.set(xlabel="sweep", ylabel="spread / sd of all draws")
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False)
    return ax


def misfit(idata: xr.DataTree, *, ax: Axes | None = None) -> Axes:
    """Draw the negative log density by iteration: first the burn-in, then the sweeps.

    Parameters
    ----------
    idata : DataTree
        Result of `pymc.sample` with an ensemble step method. With ``discard_tuned_samples=False``
        it has the burn-in, too, and one particle of each of its iterations is drawn. Or a result of
        `invert`.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        Each chain has a color: a line for the mean over the particles, in a band that holds 90% of
        them. Iterations of the burn-in have negative numbers.

    Raises
    ------
    ValueError
        If no ensemble step method made the result.

    Examples
    --------
    >>> import pymc as pm
    >>> import pymc_ensemble as pe
    >>> with pe.gallery.decay():
    ...     idata = pm.sample(
    ...         300, step=pe.EnsembleKalmanSampler(), chains=2, cores=1, random_seed=1,
    ...         progressbar=False, discard_tuned_samples=False,
    ...     )
    >>> ax = pe.plots.misfit(idata)
    >>> bool(ax.get_xlim()[0] < -3)
    True
    """
    if inverted := _is_inverted(idata):
        lp = idata["inversion"]["lp"].transpose("iteration", "particle").to_numpy()
        values = -np.where(np.isfinite(lp), lp, np.nan)[None]
    else:
        stats = to_ensemble(idata)["sample_stats"].dataset
        values = -stats["lp"].transpose("chain", "sweep", "particle").to_numpy()
    ax = axes_of(ax)
    for c, of_chain in enumerate(values):
        sweeps = np.arange(len(of_chain))
        low, high = np.nanquantile(of_chain, [0.05, 0.95], axis=1)
        if of_chain.shape[1] > 1:
            ax.fill_between(sweeps, low, high, color=f"C{c}", alpha=0.2, linewidth=0)
        ax.plot(sweeps, np.nanmean(of_chain, axis=1), color=f"C{c}", marker=".", label=f"chain {c}")
    if inverted:  # the misfit falls from that of the prior, over many orders of magnitude
        ax.set_yscale("symlog", linthresh=max(np.nanmax(np.abs(values[:, -1])), 1.0))
    if (burn_in := _burn_in(idata)) is not None:
        early = -burn_in[1]["lp"].transpose("chain", "draw").to_numpy()
        iterations = np.arange(-early.shape[1], 0)
        for c, of_chain in enumerate(early):
            ax.plot(iterations, of_chain, color=f"C{c}", linestyle="", marker="x", markersize=4)
        ax.axvline(-0.5, color="0.7", linewidth=0.8)
        largest = np.nanmax(np.where(np.isfinite(early), early, np.nan))
        if largest - values.min() > 20 * max(np.ptp(values), 1e-300):
            ax.set_yscale("symlog", linthresh=max(np.abs(values).max(), 1.0))
    ax.set(xlabel="iteration", ylabel="-log density")
    ax.legend(frameon=False)
    return ax
