"""A run of an ensemble step method as arrays: its draws, their stats, and what made them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pymc as pm
import xarray as xr
from numpy.typing import NDArray

from pymc_ensemble.problem.points import in_model
from pymc_ensemble.samplers.ensemble import Origin

from .ensembles import ensemble_layout, ensemble_stats, segments_of, sweeps_and_particles
from .facts import Facts, entries, facts_of, variables_of

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

NEEDED = ("lp", "log_q", "acceptance", "n_evals", "n_failed", "converged")  # stats


@dataclass(frozen=True)
class Run:
    """Draws and stats of a run as arrays.

    Attributes
    ----------
    facts : Facts
        What the sampler has declared.
    U : ndarray of shape (n, d)
        All draws, in the unconstrained coordinates that the sampler moves.
    X : ndarray of shape (n, p)
        Values of the parameters that are shown: first those of these coordinates, then variables
        that other step methods move.
    labels, owners : list of str
        Labels of the parameters, and the variables that they are entries of.
    stats : dict of str to ndarray of shape (n,)
    numbers : ndarray of int, shape (n,)
        Numbers of these draws among all draws, counted chain by chain.
    draw : ndarray of int, shape (C, S, J)
        Numbers of the draws that make up complete paths: chains, sweeps, particles.
    evaluated, failed : int
        Forward evaluations after the burn-in, and how many of them failed.
    shown : callable
        Gives `X` at coordinates.
    burn_in : tuple of ndarray
        Points of the burn-in that were kept: coordinates (m, d), and their log densities (m,).
    missing : tuple of str
        Free variables that the posterior does not have.
    """

    facts: Facts
    U: FloatArray
    X: FloatArray
    labels: list[str]
    owners: list[str]
    stats: dict[str, NDArray[Any]]
    numbers: IntArray
    draw: IntArray
    evaluated: int = 0
    failed: int = 0
    shown: Callable[[FloatArray], FloatArray] = field(default=np.asarray, repr=False)
    burn_in: tuple[FloatArray, FloatArray] | None = field(default=None, repr=False)
    missing: tuple[str, ...] = ()

    @classmethod
    def of(cls, idata: xr.DataTree, model: pm.Model | None = None) -> "Run":
        """Read a result.

        Parameters
        ----------
        idata : DataTree
        model : pm.Model, optional
            Its model, for variables whose transforms are not known without it.
        """
        if not isinstance(idata, xr.DataTree):
            raise TypeError(
                "`idata` must be a DataTree as `pymc.sample` returns it, not "
                f"{type(idata).__name__}."
            )
        posterior = idata["posterior"].dataset if "posterior" in idata else xr.Dataset()
        if {"khat", "efficiency"} <= set(posterior.attrs):
            raise ValueError(
                "These draws are reweighted, so they are no longer the path of a sampler, and "
                "cannot be diagnosed or corrected. Diagnose the result of pymc.sample. "
                'posterior.attrs["khat"] says how reliable the weights are.'
            )
        stats = ensemble_stats(idata)
        if missing := set(NEEDED) - set(stats):
            raise ValueError(
                f"The result has no stat `{min(missing)}`: it does not come from a sampler of "
                "pymc_ensemble, or the stat was removed. Pass the DataTree as `pymc.sample` "
                "returned it."
            )
        facts = facts_of(stats)
        shown, labels = _shown(facts, model)
        owners = [name for name in labels for _ in labels[name]]
        sweep, particle = sweeps_and_particles(stats)
        segments = segments_of(sweep, particle)
        numbers = np.flatnonzero(segments >= 0)
        U = stats["unconstrained"].transpose("chain", "draw", ...).to_numpy()
        U = U.reshape(sweep.size, -1)[numbers]
        arrays = {
            str(name): values.transpose("chain", "draw", ...).to_numpy()
            for name, values in stats.items()
            if name not in ("unconstrained", "made_by") and {"chain", "draw"} <= set(values.dims)
        }
        arrays = {k: v.reshape(sweep.size, *v.shape[2:])[numbers] for k, v in arrays.items()}
        runs = segments * len(sweep) + np.arange(len(sweep))[:, None]
        made, failed = (
            sum(int(np.ptp(arrays[name][one])) for one in _groups(runs.ravel()[numbers]))
            for name in ("n_evals", "n_failed")
        )
        names = [variable.name for variable in facts.variables]
        return cls(
            facts,
            U[:, : facts.dimension],
            shown(U),
            [label for of_one in labels.values() for label in of_one],
            owners,
            arrays,
            numbers,
            _paths(sweep, particle, numbers),
            made,
            failed,
            shown,
            _burn_in(idata, facts),
            tuple(name for name in names if name not in posterior),
        )

    @classmethod
    def of_chain(
        cls,
        facts: Facts,
        U: FloatArray,
        stats: dict[str, NDArray[Any]],
        labels: Sequence[str],
    ) -> "Run":
        """Draws `U`, shape (n, d), of one chain while it runs, with labels of coordinates."""
        chain = stats["sweep"][None], stats["particle"][None]
        made, failed = (int(np.ptp(stats[name])) for name in ("n_evals", "n_failed"))
        numbers = np.arange(len(U))
        draw = ensemble_layout(*chain)[2]
        return cls(facts, U, U, list(labels), [], stats, numbers, draw, made, failed)

    @property
    def origin(self) -> Origin:
        """What the draws follow, as the sampler has declared."""
        return self.facts.origin

    @property
    def paths(self) -> FloatArray:
        """Parameters of complete paths, shape (C, S, J, p)."""
        return self.X[self.draw]

    @property
    def log_ratio(self) -> FloatArray:
        """Log density against the law of the ensemble, eq. (D3), shape (n,)."""
        return self.stats["lp"] - self.stats["log_q"]

    @property
    def acceptance(self) -> float:
        """Mean acceptance, actual or would-be."""
        known = self.stats["acceptance"][~np.isnan(self.stats["acceptance"])]
        return float(known.mean()) if len(known) else np.nan

    @property
    def independent_acceptance(self) -> float:
        """Mean acceptance of independent proposals; NaN where there were none."""
        independent = np.isinf(self.stats["step_size"])
        if not independent.any():
            return float("nan")
        return float(np.nanmean(self.stats["acceptance"][independent]))

    @property
    def converged(self) -> bool:
        """Whether the burn-in of all chains has passed its test."""
        return bool(self.stats["converged"].all())

    @property
    def failures(self) -> float:
        """Share of forward evaluations that failed after the burn-in."""
        return self.failed / max(self.evaluated, 1)

    @property
    def alone(self) -> bool:
        """Whether no other step method has moved variables, so that densities are comparable."""
        return not self.facts.others


def _shown(
    facts: Facts, model: pm.Model | None
) -> tuple[Callable[[FloatArray], FloatArray], dict[str, list[str]]]:
    """Function that gives values at coordinates, and their labels by variable."""
    if model is not None:
        own, given = {v.name: replace(v, moved=True) for v in facts.variables}, variables_of(model)
        if different := {name for name in own | given if own.get(name) != given.get(name)}:
            name = min(different)
            what = "has another shape or transform in it"
            if name not in own or name not in given:
                what = "is a free variable of one of them only"
            raise ValueError(
                f"The draws come from another model: `{name}` {what}. Pass the model that was "
                "sampled."
            )
        if not facts.others and any(variable.backward is None for variable in facts.variables):
            labels = {v.name: entries(v.name, v.shape) for v in facts.variables}
            return lambda U: in_model(model, U), labels
    return facts.values, {v.name: v.labels for v in facts.variables}


def _groups(numbers: IntArray) -> list[IntArray]:
    """Where each of the numbers is."""
    order = np.argsort(numbers, kind="stable")
    _, first = np.unique(numbers[order], return_index=True)
    return np.split(order, first[1:])


def _paths(sweep: IntArray, particle: IntArray, numbers: IntArray) -> IntArray:
    """Complete paths as numbers of draws. Thinned draws have the paths that are left."""
    where = np.full(sweep.size, -1)
    where[numbers] = np.arange(len(numbers))
    offset = sweep.shape[1] * np.arange(len(sweep))[:, None, None]
    *_, draw = ensemble_layout(sweep, particle)
    if 2 * draw.size < len(numbers):
        *_, left = ensemble_layout(_ranks(sweep, particle), particle)
        draw = left if left.size > draw.size else draw
    return where[draw + offset]


def _ranks(sweep: IntArray, particle: IntArray) -> IntArray:
    """Which draw of its particle each draw is, shape (n_chains, n_draws)."""
    result = np.full(sweep.shape, -1)
    for of_chain, which, rank in zip(sweep, particle, result, strict=True):
        order = np.lexsort((of_chain, which))
        order = order[of_chain[order] >= 0]
        _, first, counts = np.unique(which[order], return_index=True, return_counts=True)
        rank[order] = np.arange(len(order)) - np.repeat(first, counts)
    return result


def _burn_in(idata: xr.DataTree, facts: Facts) -> tuple[FloatArray, FloatArray] | None:
    """Points of the burn-in, if they were kept."""
    if "warmup_sample_stats" not in idata.children:
        return None
    stats = idata["warmup_sample_stats"].dataset
    U = stats["unconstrained"].transpose("chain", "draw", ...).to_numpy()[..., : facts.dimension]
    lp = stats["lp"].transpose("chain", "draw").to_numpy().ravel()
    U = U.reshape(lp.size, -1)
    known = np.isfinite(U).all(1)
    return U[known], lp[known]
