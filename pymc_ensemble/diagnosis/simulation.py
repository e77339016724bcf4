"""One simulated data set, and the ranks of its parameters among the draws given it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import xarray as xr
from numpy.typing import NDArray

from pymc_ensemble.problem.points import layout_of, points_of, unconstrained
from pymc_ensemble.problem.remembered import remembered

from .ensembles import path_ess, to_ensemble

FloatArray = NDArray[np.float64]

type StepFactory = Callable[[], Any]


@dataclass(frozen=True)
class Simulation:
    """Results of one simulation.

    Attributes
    ----------
    ranks : Dataset
        Normalized rank of the truth, for every element of every free variable.
    highest_density : float
        Probability of the smallest region of highest density that holds the truth.
    by_lp : bool
        Whether the density is that of the model, and not a Gaussian fit.
    n_draws : int
        Draws that the ranks count, thinned to independent ones.
    n_evals : int
        Forward evaluations; 0 if the step method does not tell.
    """

    ranks: xr.Dataset
    highest_density: float
    by_lp: bool
    n_draws: int
    n_evals: int


def simulated(
    model: pm.Model, step: StepFactory, settings: dict[str, Any], seed: np.random.SeedSequence
) -> Simulation:
    """Draw parameters and data, sample given the data, and rank the parameters."""
    of_data, of_run, of_ranks = seed.generate_state(3)
    free = [rv.name for rv in model.free_RVs]
    observed = [rv.name for rv in model.observed_RVs]
    with model:
        drawn = pm.sample_prior_predictive(
            1, var_names=[*free, *observed], random_seed=int(of_data)
        )
    truth = drawn["prior"].dataset.isel(chain=0, draw=0, drop=True)[free]
    data = drawn["prior_predictive"].dataset.isel(chain=0, draw=0)
    for name in observed:
        values = data[name].to_numpy()
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            place = ", ".join(f"{of}={truth[of].to_numpy().tolist()}" for of in free)
            raise ValueError(f"`{name}` is not finite given {place}: the forward map fails there.")
    given = {name: data[name].to_numpy() for name in observed}
    conditioned = pm.observe(model, given)
    defaults = {
        "cores": 1,
        "progressbar": False,
        "compute_convergence_checks": False,
        "var_names": free,
    }
    with conditioned:
        idata = pm.sample(step=step(), random_seed=int(of_run), **defaults | settings)
    if idata["posterior"].sizes["draw"] < settings["draws"]:
        raise KeyboardInterrupt  # PyMC has made a short run of one
    rng = np.random.default_rng(of_ranks)
    posterior = thinned(idata, rng)
    of_draws, of_truth, by_lp = log_densities(model, posterior, truth, given)
    ranks = {
        name: xr.apply_ufunc(
            partial(rank, rng=rng), posterior[name], truth[name], input_core_dims=[["draw"], []]
        )
        for name in free
    }
    n_evals = 0
    if "n_evals" in idata["sample_stats"]:
        n_evals = int(idata["sample_stats"]["n_evals"].max("draw").sum())
    return Simulation(
        xr.Dataset(ranks),
        1 - float(rank(of_draws, np.asarray(of_truth), rng=rng)),
        by_lp,
        posterior.sizes["draw"],
        n_evals,
    )


def _flat(values: xr.DataArray, dims: list[str]) -> FloatArray:
    """Elements of a variable as one axis after the given dimensions."""
    array = values.transpose(*dims, ...).to_numpy().astype(float)
    return array.reshape(*array.shape[: len(dims)], -1)


def rank(draws: FloatArray, truth: FloatArray, *, rng: np.random.Generator) -> FloatArray:
    """Normalized rank of the truth among draws on the last axis, uniform if it is one of them.

    Ties are broken at random, as is the place within the gap between two draws.
    """
    truth = np.asarray(truth)[..., None]
    below, equal = (draws < truth).sum(-1), (draws == truth).sum(-1)
    return (below + rng.random(below.shape) * (equal + 1)) / (draws.shape[-1] + 1)


def thinned(idata: xr.DataTree, rng: np.random.Generator) -> xr.Dataset:
    """Nearly independent draws, with ``lp`` if there is one, dimension ``draw``."""
    stats = idata["sample_stats"].dataset
    dims: tuple[str, ...] = ("chain", "draw")
    if {"sweep", "particle"} <= set(stats):
        idata = to_ensemble(idata)
        dims = ("chain", "sweep", "particle")
    variables = dict(idata["posterior"].dataset.data_vars)
    if "lp" in stats:
        variables["lp"] = idata["sample_stats"]["lp"]
    together = xr.Dataset(variables).transpose(*dims, ...)
    time = dims[1]
    n = int(np.prod([together.sizes[dim] for dim in dims]))
    ess = float(n)
    for values in together.data_vars.values():
        x = _flat(values, list(dims)).reshape(*(together.sizes[dim] for dim in dims), -1)
        if len(dims) == 2:
            x = x[:, :, None]
        paths = np.moveaxis(x, (3, 0, 2, 1), (0, 1, 2, 3))
        square = (paths - paths.mean((1, 2, 3), keepdims=True)) ** 2
        for quantity in (paths, square):
            ess = min(ess, float(np.nan_to_num(path_ess(quantity), nan=1.0).min()))
    stride = min(round(n / max(ess, 1.0)), together.sizes[time])
    together = together.isel({time: slice((together.sizes[time] - 1) % stride, None, stride)})
    flat = together.stack(sample=dims, create_index=False)
    flat = flat.drop_vars([*dims], errors="ignore").rename(sample="draw")
    kept = max(1, min(flat.sizes["draw"], round(ess)))
    return flat.isel(draw=rng.choice(flat.sizes["draw"], kept, replace=False))


def log_densities(
    model: pm.Model, draws: xr.Dataset, truth: xr.Dataset, data: Mapping[str, np.ndarray]
) -> tuple[FloatArray, float, bool]:
    """Log densities of draws and of the truth given data, and whether they are the model's."""
    carried = draws["lp"].to_numpy() if "lp" in draws else np.empty(0)
    if np.isfinite(carried).any():
        highest = int(np.nanargmax(carried))
        own, of_truth = _log_density(model, data, draws.isel(draw=highest), truth)
        if np.isclose(own, carried[highest], rtol=1e-6, atol=1e-6):
            return carried, of_truth, True
    names = list(truth)
    X = np.concatenate([_flat(draws[name], ["draw"]) for name in names], axis=1)
    point = np.concatenate([_flat(truth[name], []) for name in names])
    return *fitted_levels(X, point), False


def fitted_levels(X: FloatArray, point: FloatArray) -> tuple[FloatArray, float]:
    """Levels of draws (n, p) and of a point (p,) by a Gaussian fit, in place of log densities."""
    # draws are nearer to a fit to themselves than the truth is: take other draws for the ranks
    half = len(X) // 2
    far = distance(X[:half], np.vstack([X[half:], point]))
    return -far[:-1], -float(far[-1])


def _log_density(
    model: pm.Model, data: Mapping[str, np.ndarray], *points: xr.Dataset
) -> list[float]:
    """Log density given data, of points with a value of every free variable."""

    def make() -> tuple[dict[str, Any], Callable[[Any], Any]]:
        places = {
            name: pytensor.shared(values, shape=values.shape) for name, values in data.items()
        }
        return places, pm.observe(model, places).compile_logp(mode="FAST_COMPILE")

    places, log_density = remembered(model, ["density of data", *data], make)
    for name, values in data.items():
        places[name].set_value(values)
    names = [rv.name for rv in model.free_RVs]
    U = unconstrained(
        model, {name: np.stack([p[name].to_numpy() for p in points]) for name in names}
    )
    return [float(log_density(point)) for point in points_of(layout_of(model), U)]


def distance(fitted: FloatArray, X: FloatArray) -> FloatArray:
    """Squared distance of points, shape (n, p), in the metric of a Gaussian fit."""
    center, scale = fitted.mean(0), np.maximum(fitted.std(0), 1e-300)
    z = (fitted - center) / scale
    values, vectors = np.linalg.eigh(z.T @ z / len(z))
    usable = values > 1e-10 * values.max()
    root = vectors[:, usable] / np.sqrt(values[usable])
    return (((X - center) / scale @ root) ** 2).sum(1)
