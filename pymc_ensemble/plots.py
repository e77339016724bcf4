"""Pictures of ensembles that ArviZ does not have: Axes in, Axes out.

Each function draws into the Axes that it is given, or into those of a new figure, and returns them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from pymc_ensemble.diagnosis.coverage import HIGHEST_DENSITY, Coverage
from pymc_ensemble.diagnosis.ensembles import ensemble_stats, to_ensemble
from pymc_ensemble.diagnosis.facts import facts_of
from pymc_ensemble.diagnosis.run import Run
from pymc_ensemble.diagnosis.weights import Weights
from pymc_ensemble.log import number, percent

__all__ = ["coverage", "misfit", "outputs", "path", "spread", "weights"]

FloatArray = NDArray[np.float64]

PATHS = 8  # of single particles
LINES = 12  # that can be told apart


def _axes(ax: Axes | None, **size: Any) -> Axes:
    if ax is not None:
        if not isinstance(ax, Axes):
            raise TypeError(f"`ax` has to be a matplotlib Axes, not {type(ax).__name__}.")
        return ax
    import matplotlib.pyplot as plt  # not before it is needed: it chooses a backend

    return plt.subplots(layout="constrained", **size)[1]


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
    """Names of the free variables that a posterior has, or None for all, if the draws do not tell.

    Functions of these, as `pm.Deterministic` records them, may have thousands of entries.
    """
    try:
        facts = facts_of(ensemble_stats(idata))
    except ValueError:  # of version 0.1, or too few draws
        return None
    return [v.name for v in facts.variables if v.name in idata["posterior"].data_vars] or None


def _is_inverted(idata: xr.DataTree) -> bool:
    """Whether `pymc_ensemble.invert` has returned it; what is no result is left to be refused."""
    return isinstance(idata, xr.DataTree) and "inversion" in idata.children


def _burn_in(idata: xr.DataTree) -> tuple[xr.Dataset, xr.Dataset] | None:
    """Draws and stats of the iterations of the burn-in, if they were kept."""
    if not {"warmup_posterior", "warmup_sample_stats"} <= set(idata.children):
        return None
    draws, stats = idata["warmup_posterior"].dataset, idata["warmup_sample_stats"].dataset
    n_evals = stats["n_evals"].transpose("chain", "draw").to_numpy()
    # tuning calls after the test has been passed show other particles, and do nothing
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
        it has the burn-in, which is drawn as crosses: one particle of each iteration. Or that of
        `invert`, whose iterations take the place of sweeps.
    x, y : str, optional
        Parameters on the axes, such as ``"rate"`` or ``"theta[1]"``; by default the first two
        entries of free variables. Of an inversion they are unconstrained coordinates.
    chain : int, default 0
        Number of the chain: each is an ensemble of its own.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        Particles are dots, colored by their sweep. Lines are the paths of some of them, and the
        black one is that of the mean.

    Raises
    ------
    ValueError
        If there are no two such parameters, or no such chain, or the result is not that of an
        ensemble step method.

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
    ax = _axes(ax)
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

    An ensemble that shrinks has collapsed, one that still grows has not arrived, and ensembles that
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
        One color for each parameter, in units of the standard deviation of all of its draws, and
        one line for each chain.

    Raises
    ------
    ValueError
        If there is one particle only, no such variable, or the result is not that of an ensemble
        step method.

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
            "Each chain has one particle, which has no spread. Draw the trace instead: "
            "`arviz.plot_trace`."
        )
    ax = _axes(ax)
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
    """Draw the negative log density by iteration: burn-in first, then the sweeps.

    Parameters
    ----------
    idata : DataTree
        Result of `pymc.sample` with an ensemble step method. With ``discard_tuned_samples=False``
        it has the burn-in, of which one particle of each iteration is drawn. Or that of `invert`.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        Each chain in its color: the mean over the particles in a band that holds 90% of them.
        Iterations of the burn-in are negative.

    Raises
    ------
    ValueError
        If the result is not that of an ensemble step method.

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
    ax = _axes(ax)
    for c, of_chain in enumerate(values):
        sweeps = np.arange(len(of_chain))
        low, high = np.nanquantile(of_chain, [0.05, 0.95], axis=1)
        if of_chain.shape[1] > 1:
            ax.fill_between(sweeps, low, high, color=f"C{c}", alpha=0.2, linewidth=0)
        ax.plot(sweeps, np.nanmean(of_chain, axis=1), color=f"C{c}", marker=".", label=f"chain {c}")
    if inverted:  # from the prior on, over many orders of magnitude
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


def outputs(
    predictions: xr.DataTree | ArrayLike | xr.DataArray,
    data: ArrayLike | None = None,
    *,
    var_name: str | None = None,
    x: ArrayLike | None = None,
    levels: Sequence[float] = (0.5, 0.9),
    ax: Axes | None = None,
) -> Axes:
    """Draw forward outputs as bands, with the data over them.

    Parameters
    ----------
    predictions : array_like of shape (..., K) or DataTree
        Outputs of the forward map at draws, the last axis being that of the K data; or a result
        with the group ``posterior_predictive``, as `pymc.sample_posterior_predictive` returns it.
    data : array_like of shape (K,), optional
        The data; those of the result by default.
    var_name : str, optional
        Observed variable of the result; may be left out if there is one only.
    x : array_like of shape (K,), optional
        Where the data were taken; by default the coordinate of the data, or their number.
    levels : sequence of float, default (0.5, 0.9)
        Probabilities of the bands, which lie about the median.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If shapes do not fit, a level is none, or there is no such variable.

    Examples
    --------
    >>> import numpy as np
    >>> import pymc_ensemble as pe
    >>> outputs = np.random.default_rng(1).normal(size=(200, 12)).cumsum(axis=1)
    >>> ax = pe.plots.outputs(outputs, outputs[0], x=np.arange(12) / 2)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['90%', '50%', 'median', 'data']
    """
    if any(not 0 < level < 1 for level in levels):
        raise ValueError(f"levels={tuple(levels)}: each has to lie between 0 and 1.")
    if isinstance(predictions, xr.DataTree):
        groups = predictions.children
        if "posterior_predictive" not in groups:
            raise ValueError(
                "The result has no group `posterior_predictive`. Add one: "
                "`pymc.sample_posterior_predictive(idata, extend_inferencedata=True)`."
            )
        names = [str(name) for name in groups["posterior_predictive"].data_vars]
        if var_name not in (names if len(names) > 1 else [None, *names]):
            raise ValueError(f"var_name={var_name!r} has to be one of {', '.join(names)}.")
        name = var_name or names[0]
        predictions = groups["posterior_predictive"][name].transpose("chain", "draw", ...)
        if data is None and "observed_data" in groups:
            data = groups["observed_data"][name]
    if x is None and isinstance(predictions, xr.DataArray):
        x = predictions.coords.get(predictions.dims[-1])
    values = np.asarray(predictions, dtype=float)
    if values.ndim < 2:
        raise ValueError(f"predictions have the shape {values.shape}, and not (..., K).")
    values = values.reshape(-1, values.shape[-1])
    K = values.shape[1]
    where = np.arange(K) if x is None else np.asarray(x)
    given = {"x": where} | ({} if data is None else {"data": np.asarray(data)})
    for what, array in given.items():
        if array.shape != (K,):
            raise ValueError(f"{what} has the shape {array.shape}, but there are {K} outputs.")
    ax = _axes(ax)
    for level in sorted(levels, reverse=True):
        low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
        ax.fill_between(where, low, high, color="C0", alpha=0.25, linewidth=0, label=f"{level:.0%}")
    ax.plot(where, np.nanmedian(values, axis=0), color="C0", label="median")
    if data is not None:
        ax.plot(where, given["data"], "o", color="black", markersize=4, label="data")
    ax.legend(frameon=False)
    return ax


def weights(idata: xr.DataTree, *, ax: Axes | None = None) -> Axes:
    """Draw the log density of the draws against that of the law that the ensemble believes in.

    Where both agree, the posterior is what the ensemble takes it to be: the dots then lie along the
    line. Above it are regions that the ensemble visits too seldom.

    Parameters
    ----------
    idata : DataTree
        Result of `pymc.sample` with a step method of this package.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        Draws are dots; those of the largest importance weights are orange. If the draws follow that
        law, as those of a plain ensemble Kalman sampler do, the title tells the Pareto k-hat of the
        weights and their efficiency.

    Raises
    ------
    ValueError
        If the result does not come from an ensemble step method.

    See Also
    --------
    diagnose : what follows from the weights, and from more than them.

    Examples
    --------
    >>> import pymc as pm
    >>> import pymc_ensemble as pe
    >>> with pe.gallery.decay(noise_sd=0.3):
    ...     idata = pm.sample(
    ...         300, step=pe.EnsembleKalmanSampler(adjust=False), chains=2, cores=1, random_seed=1,
    ...         progressbar=False,
    ...     )
    >>> ax = pe.plots.weights(idata)
    >>> ax.get_title()
    'k-hat ..., efficiency ...%'
    """
    run = Run.of(idata)
    log_ratio = run.log_ratio
    log_q, lp = run.stats["log_q"], run.stats["lp"]
    finite = np.isfinite(log_ratio)
    n = len(lp)
    in_tail = np.zeros(n, dtype=bool)
    in_tail[np.argsort(np.where(finite, log_ratio, -np.inf))[-_tail_length(n) :]] = True
    ax = _axes(ax)
    for chosen, color, size, label in (
        (finite & ~in_tail, "C0", 4, "draws"),
        (finite & in_tail, "C1", 10, "largest weights"),
    ):
        ax.scatter(log_q[chosen], lp[chosen], s=size, color=color, linewidths=0, label=label)
    offset = np.median(log_ratio[finite])
    ends = np.quantile(log_q[finite], [0.0, 1.0])
    ax.plot(ends, ends + offset, color="0.5", linewidth=1, label="as the ensemble believes")
    # a few draws that are far down would leave no room for the others
    low, high = np.quantile(lp[finite], [0.005, 1.0])
    ax.set_ylim(low - 0.2 * (high - low), high + 0.05 * (high - low))
    ax.set(
        xlabel="log density of the ensemble's law",
        ylabel="log density",
    )
    if run.origin.law == "gaussian":  # draws of other laws have no such weights
        found = Weights.of(run.X, log_ratio)
        ax.set_title(f"k-hat {number(found.khat, '.2f')}, efficiency {percent(found.efficiency)}")
    ax.legend(frameon=False)
    return ax


def _tail_length(n: int) -> int:
    """Number of weights whose tail is fitted, as of Pareto-smoothed importance sampling."""
    return max(5, int(min(0.2 * n, 3 * np.sqrt(n))))


def coverage(result: Coverage | xr.DataTree, *, ax: Axes | None = None) -> Axes:
    """Draw how often regions hold the truth against how often they claim to.

    Curves below the diagonal are those of regions that are too small, or in the wrong place.

    Parameters
    ----------
    result : Coverage or DataTree
        Result of `pymc_ensemble.coverage`, or its ``data``, as loaded from disk.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        Regions of highest density in black, the central intervals of each parameter in color, and
        the band that holds all of them together if the sampler is calibrated.

    See Also
    --------
    arviz.plot_ecdf_pit : draws the ranks, of ``result.data``.

    Examples
    --------
    >>> import pymc as pm
    >>> import pymc_ensemble as pe
    >>> with pm.Model() as model:
    ...     x = pm.Normal("x")
    ...     y = pm.Normal("y", x, 0.5, observed=0.0)
    >>> result = pe.coverage(
    ...     model, pe.EnsembleKalmanSampler, simulations=5, draws=100, random_seed=1
    ... )
    >>> ax = pe.plots.coverage(result)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['highest density', 'x']
    """
    tree = result.data if isinstance(result, Coverage) else result
    if not isinstance(tree, xr.DataTree) or "coverage" not in tree.children:
        raise TypeError(
            "What pymc_ensemble.coverage returned is needed, or its data, not "
            f"{type(result).__name__} without a group `coverage`."
        )
    group = tree["coverage"].dataset
    ax = _axes(ax, figsize=(4.8, 4.8))
    level = group["level"].to_numpy()
    ax.fill_between(level, group["lower"], group["upper"], color="0.88", linewidth=0)
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    names = [str(name) for name in group["region"].values]
    for k, name in enumerate(names):
        highest = name == HIGHEST_DENSITY
        color, width = ("black", 2.0) if highest else (f"C{k - 1}", 1.0)
        label = name if k < LINES else None
        values = group["coverage"].sel(region=name)
        ax.step(level, values, where="post", color=color, linewidth=width, label=label)
    ax.set(xlabel="probability of the region", ylabel="share of simulations", aspect="equal")
    ax.set_title(str(group.attrs["verdict"]))
    ax.legend(frameon=False)
    return ax
