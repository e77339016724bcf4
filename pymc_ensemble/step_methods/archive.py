"""Earlier evaluations that a user gives to a sampler that learns from them."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pymc as pm
from numpy.typing import ArrayLike, NDArray
from pytensor.graph.traversal import ancestors
from xarray import Dataset, DataTree

from pymc_ensemble.diagnosis.run import Run
from pymc_ensemble.forward.op import ForwardOp
from pymc_ensemble.forward.store import open_store
from pymc_ensemble.problem.inverse_problem import InverseProblem
from pymc_ensemble.problem.points import unconstrained

FloatArray = NDArray[np.float64]
Archive = tuple[Any, ArrayLike] | DataTree | Dataset | str | PathLike


def known_evaluations(
    archive: Archive, model: pm.Model, problem: InverseProblem
) -> tuple[FloatArray, FloatArray]:
    """Points of an archive, shape (n, d), with their outputs or losses.

    Parameters
    ----------
    archive : (points, outputs), DataTree, Dataset or path
        Archive in a form that `EnsembleGaussianProcessSampler` accepts.
    model : pm.Model
    problem : InverseProblem
        Inverse problem of this model.

    Raises
    ------
    ValueError
        If the archive has none of these types, or comes from another model.
    """
    if isinstance(archive, DataTree):
        points, lp = exact_draws(archive, model)
        return points, -lp - problem.prior_potential(points)
    if isinstance(archive, str | PathLike | Dataset):
        return stored_evaluations(archive, model, problem)
    try:
        pair: Any = archive
        points, outputs = pair
    except (TypeError, ValueError) as error:
        raise ValueError(
            "archive must be a pair (points, outputs), or the result of an earlier run."
        ) from error
    if isinstance(points, Mapping):
        points = unconstrained(model, points, "archive")
    try:
        return np.asarray(points, dtype=float), np.asarray(outputs, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"archive must be a pair (points, outputs) of arrays of numbers: {error}."
        ) from error


def stored_evaluations(
    archive: Dataset | str | PathLike, model: pm.Model, problem: InverseProblem
) -> tuple[FloatArray, FloatArray]:
    """Points and outputs of an evaluation store."""
    stored = archive if isinstance(archive, Dataset) else open_store(archive)
    names = [rv.name for rv in model.free_RVs]
    if missing := [name for name in names if name not in stored]:
        raise ValueError(
            f"The archive has no values of `{missing[0]}`. A store has the inputs of its forward "
            "model by name. These must be all variables of the model. Give a pair (points, "
            "outputs) instead."
        )
    version = store_version(model, stored)
    kept = (stored["status"] == "ok") & (stored["version"] == version)
    if not kept.any():
        raise ValueError(
            "The archive has no successful evaluation of this version of the forward model, "
            f"{version!r}. Leave out `archive`."
        )
    stored = stored.isel(evaluation=kept.to_numpy())
    points = unconstrained(model, {name: stored[name].to_numpy() for name in names}, "archive")
    points = np.unique(points, axis=0)
    return points, problem.known_outputs(points)


def store_version(model: pm.Model, stored: Dataset) -> str:
    """Version of the model's forward model, after a check that the store belongs to it.

    Parameters
    ----------
    model : pm.Model
    stored : Dataset
        Store as `open_store` reads it.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If the model has no forward model, or several of them; if the forward model has another
        store; or if its arguments are not variables of the model.
    """
    nodes = {
        v.owner
        for v in ancestors(model.basic_RVs + model.potentials)
        if v.owner is not None and isinstance(v.owner.op, ForwardOp)
    }
    path = stored.attrs.get("store")
    remedy = "Give a pair (points, outputs) instead."
    if len(nodes) != 1:
        raise ValueError(
            f"The archive is the store of one forward model, but the model has {len(nodes)}. "
            + remedy
        )
    [node] = nodes
    forward, names = node.op.forward, node.op.signature.names
    own = None if forward.store is None else forward.store.path.resolve()
    if path is None or own != Path(path).resolve():
        raise ValueError(
            f"The archive {path} is not the store of {forward.name}, the forward model of this "
            "model. So it is not known whether its outputs are the same, and evaluating all "
            f"points again would be expensive. Use forward_model(..., store={str(path)!r}), or "
            "give a pair (points, outputs)."
        )
    inputs = dict(zip(names, node.inputs, strict=True))
    if changed := [rv.name for rv in model.free_RVs if inputs.get(rv.name) is not rv]:
        raise ValueError(
            f"The input `{changed[0]}` of {forward.name} is not the variable `{changed[0]}` of "
            f"the model, so the points of the archive are not known. {remedy}"
        )
    return forward.version


def exact_draws(idata: DataTree, model: pm.Model) -> tuple[FloatArray, FloatArray]:
    """Distinct draws of a run, shape (n, d), with the log densities that the run recorded.

    Parameters
    ----------
    idata : DataTree
        Result of an ensemble step method without ``rough=True``.
    model : pm.Model

    Raises
    ------
    ValueError
        If the densities belong to a fit or to a surrogate.
    """
    run = Run.of(idata, model)
    if not run.origin.density_known:
        raise ValueError(
            "The archive is a run whose `lp` comes from a fit or a surrogate, not from the model "
            "(rough=True, or an EnsembleGaussianProcessSampler without adjust=True). Nothing can "
            "be learned from it. Give a pair (points, outputs), or continue the run with "
            "`initial_ensemble`."
        )
    if not run.alone:
        raise ValueError(
            "The archive is a run in which other step methods moved "
            f"`{run.facts.others[0].name}`, so its `lp` is not that of the model. Give a pair "
            "(points, outputs)."
        )
    points, first = np.unique(run.U, axis=0, return_index=True)
    return points, run.stats["lp"][first]
