"""Evaluations that are not draws, and findings from them.

They come from the burn-in, a store or an archive. Or they are made for this purpose: repeats at
draws, or a search for modes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import scipy  # parts of it are loaded when they are used first
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from pytensor.graph.replace import graph_replace
from pytensor.graph.traversal import ancestors

from pymc_ensemble.forward.op import ForwardOp
from pymc_ensemble.forward.store import BOOKKEEPING, EvaluationStore, open_store
from pymc_ensemble.problem.inverse_problem import problem_of
from pymc_ensemble.problem.points import layout_of, points_of, unconstrained
from pymc_ensemble.samplers.weights import LEVEL

from .ensembles import LOST
from .facts import entries
from .known import Finding
from .repeats import _log_density
from .run import Run

FloatArray = NDArray[np.float64]
Store = str | PathLike | EvaluationStore | xr.Dataset | tuple[Any, ArrayLike]

FEWEST = round(1 / LOST)  # fewest failures, or evaluations near the draws, that show such a share
ONE_SIDED = 0.5  # rank correlation with failures above which they are in a corner


@dataclass(frozen=True)
class OtherEvaluations:
    """Evaluations from a store or an archive.

    Attributes
    ----------
    inputs : ndarray of shape (n, q)
        What the forward model was called with.
    labels : list of str
        Names of the inputs.
    failed : ndarray of bool, shape (n,)
    U : ndarray of shape (n, d) or None
        The same points in unconstrained coordinates, if they are known.
    X : ndarray of shape (n, p) or None
        The same points in the parameters of the run, if they are known.
    lp : ndarray of shape (n,)
        Log densities in unconstrained coordinates, NaN where they are not known.
    """

    inputs: FloatArray
    labels: list[str]
    failed: NDArray[np.bool_]
    U: FloatArray | None
    X: FloatArray | None
    lp: FloatArray

    @property
    def known(self) -> tuple[FloatArray, FloatArray] | None:
        """Coordinates and log densities where both are known."""
        if self.U is None or not (usable := np.isfinite(self.lp)).any():
            return None
        return self.U[usable], self.lp[usable]


def other_evaluations(store: Store, run: Run, model: pm.Model | None) -> OtherEvaluations:
    """Read what the user has given as a store.

    Parameters
    ----------
    store : path-like, Dataset, or tuple
        An evaluation store, itself, by its path or as `open_store` reads it, or (points, outputs).
    run : Run
        If there is a model, of its free variables.
    model : pm.Model or None

    Returns
    -------
    OtherEvaluations
    """
    if isinstance(store, EvaluationStore):
        store = store.path
    if isinstance(store, str | PathLike):
        store = open_store(store)
    if isinstance(store, xr.Dataset):
        return _of_store(store, run, model)
    if not isinstance(store, tuple) or len(store) != 2:
        raise ValueError(
            "`store` must be the path of an evaluation store, what `pymc_ensemble.open_store` "
            f"returns, or a pair (points, outputs); it is of type {type(store).__name__}."
        )
    if model is None:
        raise ValueError("Outputs alone have no density. Pass the model, too: `model=`.")
    return _of_archive(store, run, model)


def _of_archive(pair: tuple[Any, ArrayLike], run: Run, model: pm.Model) -> OtherEvaluations:
    points, outputs = pair
    problem, _ = problem_of(model)
    U = (
        unconstrained(model, points, "store")
        if isinstance(points, Mapping)
        else np.asarray(points, float)
    )
    Z = np.asarray(outputs, dtype=float)
    if U.ndim != 2 or U.shape[1] != problem.dimension:
        raise ValueError(
            f"The points of `store` have shape {U.shape}, but the model has {problem.dimension} "
            f"unconstrained coordinates. Pass an array of shape (n, {problem.dimension})."
        )
    if Z.shape != (len(U), problem.n_outputs):
        raise ValueError(
            f"The outputs of `store` have shape {Z.shape}. Pass ({len(U)}, {problem.n_outputs}), "
            f"for {len(U)} points and {problem.n_outputs} outputs."
        )
    X = run.shown(U)
    failed = ~np.isfinite(Z).all(1)
    return OtherEvaluations(X, run.labels, failed, U, X, _log_density(problem, U, Z))


def _of_store(stored: xr.Dataset, run: Run, model: pm.Model | None) -> OtherEvaluations:
    if "evaluation" not in stored.dims or not set(stored.variables).issuperset(BOOKKEEPING):
        raise ValueError(
            "`store` is a Dataset, but not one of `pymc_ensemble.open_store`: it has no dimension "
            "`evaluation`, or no `status`. Pass the path of the store."
        )
    stored = _latest(stored)
    failed = stored["status"].to_numpy() != "ok"
    unknown = np.full(len(failed), np.nan)
    if model is None:
        inputs, labels = _table(stored, _inputs_of(stored, failed))
        X = None
        if set(labels) == set(run.labels):
            X = inputs[:, [labels.index(label) for label in run.labels]]
        return OtherEvaluations(inputs, labels, failed, None, X, unknown)
    nodes = {
        v.owner
        for v in ancestors([*model.basic_RVs, *model.potentials])
        if v.owner is not None and isinstance(v.owner.op, ForwardOp)
    }
    if len(nodes) != 1:
        raise ValueError(
            f"`store` holds one forward model, but the model has {len(nodes)}. Pass a pair "
            "(points, outputs) instead, or leave out `model=`."
        )
    [node] = nodes
    names = list(node.op.signature.names)
    if missing := [name for name in names if name not in stored]:
        raise ValueError(
            f"`store` has no `{missing[0]}`, which is an input of the forward model "
            f"{node.op.forward.name}. Pass the store of this forward model."
        )
    inputs, labels = _table(stored, names)
    where = dict(zip(node.inputs, names, strict=True))
    if not set(model.free_RVs) <= set(where):  # inputs are functions of the variables
        return OtherEvaluations(inputs, labels, failed, None, None, unknown)
    values = {rv.name: stored[where[rv]].to_numpy() for rv in model.free_RVs}
    U = unconstrained(model, values, "store")
    results = [str(name) for name in stored.data_vars if name not in (*BOOKKEEPING, *names)]
    lp = unknown.copy()
    lp[~failed] = _log_density_given(model, U[~failed], stored.isel(evaluation=~failed), results)
    return OtherEvaluations(inputs, labels, failed, U, run.shown(U), lp)


def _latest(stored: xr.Dataset) -> xr.Dataset:
    """The last attempts of the version that was used last."""
    if not stored.sizes["evaluation"]:
        raise ValueError("`store` is empty: no evaluation was saved in it. Leave it out.")
    version = stored["version"].to_numpy()
    rows = np.flatnonzero(version == version[-1])
    numeric, _ = _table(stored, _inputs_of(stored, stored["status"].to_numpy() != "ok"))
    keys = [
        (numeric[row].tobytes(), str(replicate))
        for row, replicate in zip(rows, stored["replicate"].to_numpy()[rows], strict=True)
    ]
    return stored.isel(evaluation=sorted(dict(zip(keys, rows, strict=True)).values()))


def _inputs_of(stored: xr.Dataset, failed: NDArray[np.bool_]) -> list[str]:
    """Names of the inputs: they come before the outputs, which are NaN where a call failed."""
    names = [str(name) for name in stored.data_vars if name not in BOOKKEEPING]
    given = [name for name in names if failed.any() and np.isfinite(stored[name][failed]).all()]
    return given or names


def _table(stored: xr.Dataset, names: Sequence[str]) -> tuple[FloatArray, list[str]]:
    """Columns of several variables, and their labels."""
    columns, labels = [], []
    for name in names:
        values = stored[name].to_numpy()
        columns.append(values.reshape(len(values), -1).astype(float))
        labels += entries(name, values.shape[1:])
    return np.concatenate(columns, axis=1), labels


def _log_density_given(
    model: pm.Model, U: FloatArray, stored: xr.Dataset, results: Sequence[str]
) -> FloatArray:
    """Log densities at points, from known outputs. Nothing is evaluated."""
    density = model.logp()
    [node] = {
        v.owner
        for v in ancestors([density])
        if v.owner is not None and isinstance(v.owner.op, ForwardOp)
    }
    given = [output.type() for output in node.outputs]
    [density] = graph_replace([density], dict(zip(node.outputs, given, strict=True)), strict=False)
    evaluate = pytensor.function(
        [*model.value_vars, *given], density, mode="FAST_COMPILE", on_unused_input="ignore"
    )
    layout = layout_of(model)
    outputs = zip(*(stored[name].to_numpy() for name in results), strict=True)
    lp = [
        evaluate(*(point[v.name] for v in model.value_vars), *values)
        for point, values in zip(points_of(layout, U), outputs, strict=True)
    ]
    return np.array(lp, dtype=float)


def failures(run: Run, others: OtherEvaluations) -> tuple[list[Finding], list[str]]:
    """Whether evaluations fail in a corner of parameter space, and whether draws are near it.

    Parameters
    ----------
    run : Run
    others : OtherEvaluations

    Returns
    -------
    findings : list of Finding
        One if a part of the posterior seems to be cut off.
    notes : list of str
        Where other evaluations failed.
    """
    failed = others.failed
    if failed.sum() < FEWEST or failed.all():
        return [], []
    ranks = scipy.stats.rankdata(others.inputs, axis=0)
    n, m = len(failed), int(failed.sum())
    # difference of the mean ranks of those that failed and of those that did not: -1 to 1
    difference = (ranks[failed].mean(0) - ranks[~failed].mean(0)) / (n / 2)
    order = np.argsort(-np.abs(difference))
    corner: list[str] = []
    for k in order[:3]:
        if abs(difference[k]) > ONE_SIDED:
            high = difference[k] > 0
            edge = np.quantile(others.inputs[failed, k], LOST if high else 1 - LOST)
            corner.append(f"`{others.labels[k]}` is {'above' if high else 'below'} {edge:.3g}")
    if not corner:
        return [], [f"{m / n:.0%} of the stored evaluations failed, here and there"]
    where = " and ".join(corner)
    near = _near(run, others)
    share = float(failed[near].mean()) if near.sum() >= FEWEST else run.failures
    told = f"{m / n:.0%} of the stored evaluations failed, most of them where {where}"
    if share < LOST:
        return [], [told]
    return [
        Finding(
            "doubtful",
            f"{told}; near the draws it is {share:.0%}, so that a part of the posterior is cut "
            "off.",
            f"Make the forward map work where {where}, or choose priors that leave this out.",
        )
    ], []


def _near(run: Run, others: OtherEvaluations) -> NDArray[np.bool_]:
    """Which of the evaluations are where most draws are."""
    if others.X is None:
        return np.zeros(len(others.failed), dtype=bool)
    draws = run.X
    center, p = draws.mean(0), draws.shape[1]
    values, vectors = np.linalg.eigh(np.cov(draws.T).reshape(p, p))
    root = vectors / np.sqrt(np.maximum(values, 1e-12 * values.max()))
    limit = np.quantile((((draws - center) @ root) ** 2).sum(1), LEVEL)
    return (((others.X - center) @ root) ** 2).sum(1) < limit
