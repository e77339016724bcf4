"""A run of an ensemble step method as arrays: its draws, its burn-in, and their stats."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .coordinates import Bounds, bounds_of
from .ensembles import to_ensemble
from .free_variables import independent_blocks, logarithmic, needed_blocks

FloatArray = NDArray[np.float64]

MOST_COLUMNS = 60  # of a variable that may be a parameter


@dataclass(frozen=True)
class Run:
    """Draws and stats of a run as arrays.

    Attributes
    ----------
    X : ndarray of shape (C, S, J, p)
        Free parameters: chains, sweeps, particles, parameters.
    labels : list of str
        One for each parameter.
    stats : dict of str to ndarray of shape (C, S, J)
    names : tuple of str
        Variables of which the parameters are the entries.
    burn_in : tuple of ndarray
        What is left of the burn-in: points of shape (n, p), and their log densities (n,).
    left_out : tuple of str
        Variables that were taken for functions of the others.
    """

    X: FloatArray
    labels: list[str]
    stats: dict[str, NDArray[Any]]
    names: tuple[str, ...] = ()
    burn_in: tuple[FloatArray, FloatArray] | None = field(default=None, repr=False)
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(cls, idata: xr.DataTree, var_names: Sequence[str] | None = None) -> "Run":
        """Take a result apart; deterministic variables are left out where that can be told."""
        if not isinstance(idata, xr.DataTree):
            raise TypeError(
                f"A DataTree as `pymc.sample` returns it is needed, not {type(idata).__name__}."
            )
        if {"khat", "efficiency"} <= set(idata["posterior"].attrs if "posterior" in idata else ()):
            raise ValueError(
                "These draws are reweighted: their frequencies do not come from a sampler any "
                "more, and cannot be diagnosed or corrected. Diagnose the result of pymc.sample; "
                'how far weights can be relied upon is in posterior.attrs["khat"].'
            )
        tree = to_ensemble(idata)
        dims = ("chain", "sweep", "particle")
        stats = tree["sample_stats"].dataset
        if missing := {"lp", "log_q", "acceptance", "n_evals", "converged"} - set(stats):
            raise ValueError(
                f"The result has no stat `{min(missing)}`, so it does not come from a sampler of "
                "pymc_ensemble, or was stripped of it. Diagnose the DataTree as it was returned."
            )
        arrays = {str(k): stats[k].transpose(*dims, ...).to_numpy() for k in stats}
        posterior = tree["posterior"].dataset
        blocks: dict[str, FloatArray] = {}
        labels: dict[str, list[str]] = {}
        if isinstance(var_names, str):
            var_names = [var_names]
        if var_names is not None and not len(var_names):
            raise ValueError("`var_names` is empty: leave it out, or name the free variables.")
        if var_names is not None and (unknown := set(var_names) - set(posterior)):
            raise ValueError(
                f"The posterior has no `{min(unknown)}`. It has "
                f"{', '.join(f'`{name}`' for name in posterior)}."
            )
        for name in posterior if var_names is None else var_names:
            block = posterior[name].transpose(*dims, ...).to_numpy()
            shape = block.shape[3:]
            blocks[str(name)] = block.reshape(*block.shape[:3], -1).astype(float)
            labels[str(name)] = entries(str(name), shape)
        if var_names is None and len(blocks) > 1:
            rows = {n: b.reshape(-1, b.shape[-1]) for n, b in blocks.items()}
            discrete = {name for name in blocks if posterior[name].dtype.kind in "iub"}
            blocks = {n: blocks[n] for n in _free_variables(rows, arrays, discrete)}
        X = np.concatenate(list(blocks.values()), axis=-1)
        names = tuple(blocks)
        left_out = tuple(name for name in labels if name not in blocks)
        burn_in = None
        if {"warmup_posterior", "warmup_sample_stats"} <= set(idata.children):
            warmup = idata["warmup_posterior"].dataset
            lp = idata["warmup_sample_stats"].dataset["lp"].transpose("chain", "draw").to_numpy()
            columns = [warmup[name].transpose("chain", "draw", ...).to_numpy() for name in names]
            points = [values.reshape(lp.size, -1).astype(float) for values in columns]
            burn_in = np.concatenate(points, axis=1), lp.ravel()
        parameters = [label for name in names for label in labels[name]]
        return cls(X, parameters, arrays, names, burn_in, left_out)

    def columns_of(self, name: str) -> list[int]:
        """Numbers of the parameters that are entries of a variable."""
        return [
            k
            for k, label in enumerate(self.labels)
            if label == name or label.startswith(f"{name}[")
        ]

    @property
    def pooled(self) -> FloatArray:
        """All draws, shape (n, p)."""
        return self.X.reshape(-1, self.X.shape[-1])

    @property
    def log_ratio(self) -> FloatArray:
        """Log density against the law that the ensemble believes in, shape (n,)."""
        return (self.stats["lp"] - self.stats["log_q"]).ravel()

    @cached_property
    def bounds_and_density(self) -> tuple[Bounds, FloatArray]:
        """Bounds of the parameters, and the log densities of these at the draws, shape (n,).

        Runs of early versions do not have the Jacobian: there, logarithms are the only transforms
        that can be told.
        """
        lp, stretched = self.stats["lp"].ravel(), self.stats.get("log_jacobian")
        if stretched is None or not np.isfinite(stretched).all():
            bounds = Bounds.logarithmic(logarithmic(self.pooled, self.stats["log_q"].ravel()))
            return bounds, lp - bounds.log_jacobian(self.pooled)
        return bounds_of(self.pooled, stretched.ravel()), lp - stretched.ravel()

    @property
    def acceptance(self) -> float:
        """Mean acceptance, actual or would-be."""
        return float(np.nanmean(self.stats["acceptance"]))

    @property
    def converged(self) -> bool:
        """Whether the burn-in of all chains has passed its test."""
        return bool(self.stats["converged"].all())

    @property
    def cost(self) -> int:
        """Forward evaluations a draw: 1 of an ensemble, more of walkers, 0 of a surrogate."""
        evaluations = self.stats["n_evals"][:, :, 0]
        if evaluations.shape[1] < 2:
            return 1
        return round(float(np.median(np.diff(evaluations, axis=1)) / self.X.shape[2]))

    @property
    def failed(self) -> float:
        """Share of forward evaluations that failed, after the burn-in if that can be told."""
        failed, made = (self.stats[name][:, :, 0] for name in ("n_failed", "n_evals"))
        if failed.shape[1] > 1 and self.cost:
            failed, made = failed[:, -1] - failed[:, 0], made[:, -1] - made[:, 0]
        else:
            failed, made = failed[:, -1], made[:, -1]
        return float(failed.sum() / max(made.sum(), 1))

    @property
    def adjusted(self) -> bool:
        """Whether moves were refused by a Metropolis test: draws are then repeated."""
        if self.X.shape[1] < 2:
            return False
        repeated = (np.diff(self.X, axis=1) == 0).all(-1).mean() - self.failed
        return bool(repeated > 0.02 and repeated > 0.6 * (1 - self.acceptance))

    @property
    def exact(self) -> bool:
        """Whether draws follow the density that they carry, but for chance and steps too long."""
        return self.adjusted or self.cost > 1

    @property
    def fitted(self) -> bool:
        """Whether draws come from a fitted model of the forward map, as with ``rough=True``."""
        return bool(np.isposinf(self.stats["step_size"]).all())

    @property
    def drawn_from_law(self) -> bool:
        """Whether draws follow the law whose density is ``log_q``, as those of a plain EKS do."""
        return not self.adjusted and self.cost == 1

    @property
    def smallest_ensemble(self) -> int:
        """How many particles the parameters ask for, if they are to be split in halves."""
        return 2 * (self.X.shape[3] + 2)

    @property
    def small(self) -> bool:
        """Whether there are fewer."""
        return self.cost == 1 and 1 < self.X.shape[2] < self.smallest_ensemble


def entries(name: str, shape: Sequence[int]) -> list[str]:
    """Labels of the entries of a variable."""
    if not shape:
        return [name]
    return [f"{name}[{','.join(map(str, index))}]" for index in np.ndindex(*shape)]


def _free_variables(
    blocks: dict[str, FloatArray], stats: dict[str, NDArray[Any]], discrete: Collection[str]
) -> list[str]:
    """Names of the variables, each of shape (n, p_k), that are not functions of the others.

    Of discrete ones, which other step methods have sampled, the stats do not tell it.
    """
    kept = independent_blocks(list(blocks.values()), MOST_COLUMNS)
    names = [name for name, needed in zip(blocks, kept, strict=True) if needed]
    rows, stretched = [blocks[name] for name in names], stats.get("log_jacobian")
    if stretched is not None and np.isfinite(stretched).all():
        rows = _without_bounds(rows, stretched.ravel())
    kept = needed_blocks(rows, stats["log_q"].ravel(), MOST_COLUMNS)
    return [n for n, needed in zip(names, kept, strict=True) if needed or n in discrete]


def _without_bounds(blocks: list[FloatArray], log_jacobian: FloatArray) -> list[FloatArray]:
    """Variables, each of shape (n, p_k), in coordinates without bounds, but for very large ones."""
    small = [k for k, block in enumerate(blocks) if block.shape[1] <= MOST_COLUMNS]
    if not small:
        return blocks
    X = np.concatenate([blocks[k] for k in small], axis=1)
    Y = bounds_of(X, log_jacobian).coordinates(X)
    ends = np.cumsum([blocks[k].shape[1] for k in small])
    free = dict(zip(small, np.split(Y, ends[:-1], axis=1), strict=True))
    return [free.get(k, block) for k, block in enumerate(blocks)]
