"""Draws against data, against the law that the ensemble has fitted, and against truths."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from pymc_ensemble.diagnosis.run import Run
from pymc_ensemble.diagnosis.uniformity import HIGHEST_DENSITY, Coverage
from pymc_ensemble.diagnosis.weights import Weights
from pymc_ensemble.log import number, percent
from pymc_ensemble.plots.axes import LINES, axes_of


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
        Outputs of the forward map at draws, with the K data along the last axis. Or a result with
        the group ``posterior_predictive``, as `pymc.sample_posterior_predictive` returns it.
    data : array_like of shape (K,), optional
        The data. By default they are those of the result.
    var_name : str, optional
        Observed variable of the result. Leave it out if there is only one.
    x : array_like of shape (K,), optional
        Where the data were taken. By default it is the coordinate of the data, or their index.
    levels : sequence of float, default (0.5, 0.9)
        Probabilities of the bands, which lie about the median.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        The Axes with the bands.

    Raises
    ------
    ValueError
        If shapes do not fit, a level is not between 0 and 1, or there is no such variable.

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
        raise ValueError(f"levels={tuple(levels)}: each level must lie between 0 and 1.")
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
        raise ValueError(
            f"`predictions` has the shape {values.shape}. Pass an array of shape (..., K), with "
            "the K data along its last axis."
        )
    values = values.reshape(-1, values.shape[-1])
    K = values.shape[1]
    where = np.arange(K) if x is None else np.asarray(x)
    given = {"x": where} | ({} if data is None else {"data": np.asarray(data)})
    for what, array in given.items():
        if array.shape != (K,):
            raise ValueError(f"{what} has the shape {array.shape}, but there are {K} outputs.")
    ax = axes_of(ax)
    for level in sorted(levels, reverse=True):
        low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
        ax.fill_between(where, low, high, color="C0", alpha=0.25, linewidth=0, label=f"{level:.0%}")
    ax.plot(where, np.nanmedian(values, axis=0), color="C0", label="median")
    if data is not None:
        ax.plot(where, given["data"], "o", color="black", markersize=4, label="data")
    ax.legend(frameon=False)
    return ax


def weights(idata: xr.DataTree, *, ax: Axes | None = None) -> Axes:
    """Draw the log density of the draws against that of the law that the ensemble has fitted.

    If both agree, the dots lie along the line: the posterior is the law that the ensemble has
    fitted. Dots above the line are in regions that the ensemble visits too rarely.

    Parameters
    ----------
    idata : DataTree
        Result of `pymc.sample` with a step method of this package.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        Draws are dots. Those with the largest importance weights are orange. If the draws follow
        the fitted law, as those of `EnsembleKalmanSampler(adjust=False)` do, the title has the
        Pareto k-hat of the weights, and their efficiency.

    Raises
    ------
    ValueError
        If the result does not come from an ensemble step method.

    See Also
    --------
    diagnose : judges the weights, and much besides.

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
    ax = axes_of(ax)
    for chosen, color, size, label in (
        (finite & ~in_tail, "C0", 4, "draws"),
        (finite & in_tail, "C1", 10, "largest weights"),
    ):
        ax.scatter(log_q[chosen], lp[chosen], s=size, color=color, linewidths=0, label=label)
    offset = np.median(log_ratio[finite])
    ends = np.quantile(log_q[finite], [0.0, 1.0])
    ax.plot(ends, ends + offset, color="0.5", linewidth=1, label="as the fitted law has it")
    # a few draws of very low density would leave no room for the others
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
    """Number of largest weights that Pareto smoothed importance sampling fits a tail to."""
    return max(5, int(min(0.2 * n, 3 * np.sqrt(n))))


def coverage(result: Coverage | xr.DataTree, *, ax: Axes | None = None) -> Axes:
    """Draw how often regions hold the truth against how often they claim to.

    A curve below the diagonal means that its regions are too small, or in the wrong place.

    Parameters
    ----------
    result : Coverage or DataTree
        Result of `pymc_ensemble.coverage`, or its ``data``, for example as loaded from disk.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        Regions of highest density are black, central intervals of each parameter have a color. If
        the sampler is calibrated, the gray band holds all curves together, with the probability
        that `pymc_ensemble.coverage` was called with.

    Raises
    ------
    TypeError
        If `result` is not that of `pymc_ensemble.coverage`.

    See Also
    --------
    arviz.plot_ecdf_pit : draws the ranks that ``result.data`` holds.

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
            "`result` must be what `pymc_ensemble.coverage` returned, or its `data`, not "
            f"{type(result).__name__} without a group `coverage`."
        )
    group = tree["coverage"].dataset
    ax = axes_of(ax, figsize=(4.8, 4.8))
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
