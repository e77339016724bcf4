"""Whether a sampler can be trusted on a model: it is run on data that the model itself has made."""

import inspect
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, Protocol, runtime_checkable

import cloudpickle
import numpy as np
import pymc as pm
import xarray as xr
from numpy.typing import NDArray
from pymc.step_methods.compound import BlockedStep, CompoundStep
from scipy.stats import uniform

from pymc_ensemble.log import logger
from pymc_ensemble.problem.checks import given_generator
from pymc_ensemble.problem.points import layout_of, points_of, unconstrained
from pymc_ensemble.samplers.options import require_counts

from .ensembles import path_ess, to_ensemble

__all__ = ["Coverage", "coverage"]

FloatArray = NDArray[np.float64]
Verdict = Literal["calibrated", "overconfident", "conservative"]

type ModelSource = pm.Model | Callable[[], pm.Model]

type StepFactory = Callable[[], Any]


@runtime_checkable
class Testable(Protocol):
    """What tests itself, as an amortized posterior does."""

    def coverage(self, simulations: Any = ..., **options: Any) -> "Coverage":
        """Test on simulations of a model whether regions hold the truth."""


HIGHEST_DENSITY = "highest density"
BAND_SIMULATIONS = 4000
TOLD_LEVELS = (0.5, 0.9)
OWN = {"step", "model", "return_inferencedata", "kwargs"}  # of the arguments of pm.sample


@dataclass(frozen=True)
class Coverage:
    """How often posteriors hold the truth, over data sets that the model itself has made.

    Attributes
    ----------
    verdict : {"calibrated", "overconfident", "conservative"}
        Whether regions hold the truth as often as they claim to, less often, or more often.
    reasons : tuple of str
        What lies outside of the confidence bands, with the size of the deviation.
    finished, simulations : int
        Simulations that have finished, of so many.
    failures : dict of int to str
        Why the others have not, by the number of the simulation.
    data : xarray.DataTree
        Group ``prior_sbc``: rank of the truth among the draws, as a number between 0 and 1, for
        each variable, with the dimensions ``(chain, draw, ...)`` where a draw is a simulation:
        `arviz.plot_ecdf_pit` draws it. Group ``coverage``: share of the simulations whose region of
        nominal probability ``level`` holds the truth, for each ``region`` (that of highest density,
        and the central interval of each parameter), with the confidence band (``lower``, ``upper``)
        that it stays in if the sampler is calibrated. Group ``simulations``: the probability of the
        smallest region of highest density that holds the truth (``highest_density``), cost and
        number of draws of each simulation.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    finished: int
    simulations: int
    failures: dict[int, str]
    data: xr.DataTree

    @property
    def calibrated(self) -> bool:
        """Whether nothing lies outside of the bands."""
        return self.verdict == "calibrated"

    def __str__(self) -> str:
        group = self.data["coverage"].dataset
        band = float(group.attrs["probability"])
        lines = [f"{self.verdict}, by {self.finished} of {self.simulations} simulations"]
        lines += [f"  {reason}" for reason in self.reasons]
        regions = [str(name) for name in group["region"].values]
        width = max(map(len, regions))
        for region in regions:
            found = group["coverage"].sel(region=region)
            shares = [float(found.interp(level=level)) for level in TOLD_LEVELS]
            told = ", ".join(
                f"{share:.0%} in {level:.0%}"
                for share, level in zip(shares, TOLD_LEVELS, strict=True)
            )
            lines.append(f"{region.rjust(width)}  {told}")
        lines.append(f"bands hold all curves of a calibrated sampler with probability {band:.0%}")
        if self.failures:
            k, reason = next(iter(self.failures.items()))
            lines.append(f"note: {len(self.failures)} simulations failed; number {k}: {reason}")
        return "\n".join(lines)


def coverage(
    model: ModelSource,
    step: "StepFactory | Testable",
    *,
    simulations: int = 200,
    executor: Executor | None = None,
    draws: int = 1000,
    chains: int = 1,
    random_seed: int | None = None,
    probability: float = 0.95,
    **sample_kwargs: Any,
) -> Coverage:
    """Test a sampler on data that the model itself has made: simulation-based calibration.

    For each simulation parameters are drawn from the prior, and data given these parameters. The
    model is sampled given these data. If draws follow the posterior, the rank of the parameters
    among them is uniform [1]_, and a region of probability 90% holds them in 90% of the
    simulations.

    Parameters
    ----------
    model : pm.Model or callable
        The model; or a function without arguments that makes it, for models that cannot be sent to
        workers. Its data matter only by their shape.
    step : callable
        Makes a new step method for each simulation, such as
        ``lambda: pe.EnsembleKalmanSampler(adjust=True)``. Or what `amortize` has learned: that is
        tested in this process, on simulations of `model`.
    simulations : int, default 200
        Number of data sets.
    executor : concurrent.futures.Executor, optional
        Where simulations run, each as one task; one after the other in this process by default.
        Results do not depend on it.
    draws, chains : int, default 1000 and 1
        Draws of each chain, and chains, of each simulation.
    random_seed : int, optional
        Each simulation has a seed of its own that follows from this one.
    probability : float, default 0.95
        Probability of the confidence bands.
    **sample_kwargs
        Further arguments of `pymc.sample`, such as `tune`.

    Returns
    -------
    Coverage
        The verdict and all that is behind it. `pymc_ensemble.plots.coverage` draws it, and
        ``arviz.plot_ecdf_pit(result.data)`` the ranks.

    Raises
    ------
    TypeError
        If `step` is a step method, and not a function that makes one; if `pymc.sample` does not
        know an argument.
    ValueError
        If a number is out of its range; if the model has no observed variables; if it has
        potentials, from which data cannot be drawn.
    RuntimeError
        If fewer than half of the simulations have finished.

    Notes
    -----
    Ranks need independent draws, so that of each path only every so many sweeps are used, as its
    effective sample size tells. Regions of highest density need densities: those that draws carry
    as stat ``lp``, if the model's own agrees with it, and that of a Gaussian fit else, as for draws
    from a surrogate. This takes two forward evaluations of each simulation.

    Bands are simultaneous [2]_: all curves together stay in them with the given probability if the
    sampler is calibrated. With fewer than ten simulations they are too narrow. A calibrated sampler
    is right on average over the prior, and may yet be wrong for particular data; `diagnose` judges
    a particular run.

    A simulation that fails is left out, and told. What is left is no fair sample of the prior, if
    failures depend on parameters.

    References
    ----------
    .. [1] Talts, S., Betancourt, M., Simpson, D., Vehtari, A. and Gelman, A. (2018). Validating
       Bayesian inference algorithms with simulation-based calibration.
       https://arxiv.org/abs/1804.06788
    .. [2] Säilynoja, T., Bürkner, P.-C. and Vehtari, A. (2022). Graphical test for discrete
       uniformity and its applications in goodness-of-fit evaluation and multiple sample comparison.
       Statistics and Computing, 32. https://doi.org/10.1007/s11222-022-10090-6

    Examples
    --------
    >>> import pymc as pm
    >>> import pymc_ensemble as pe
    >>> with pm.Model() as model:
    ...     x = pm.Normal("x")
    ...     y = pm.Normal("y", x, 0.5, observed=0.0)
    >>> result = pe.coverage(
    ...     model, pe.EnsembleKalmanSampler, simulations=10, draws=100, random_seed=1
    ... )
    >>> result.finished, result.verdict
    (10, 'calibrated')
    """
    if isinstance(step, Testable):
        given = {"executor": executor is not None, "chains": chains != 1} | dict.fromkeys(
            sample_kwargs, True
        )
        if unused := [name for name, is_given in given.items() if is_given]:
            raise ValueError(
                f"`{unused[0]}` is for step methods: what `amortize` has learned is tested in this "
                "process, on independent draws, and takes milliseconds. Leave it out."
            )
        return step.coverage(
            simulations,
            model=_made(model),
            draws=draws,
            random_seed=random_seed,
            probability=probability,
        )
    if isinstance(step, BlockedStep | CompoundStep) or not callable(step):
        raise TypeError(
            "`step` has to be a function that makes a step method, as each simulation needs its "
            "own: for example `lambda: pymc_ensemble.EnsembleKalmanSampler(adjust=True)`."
        )
    require_counts(2, simulations=simulations)
    require_probability(probability)
    require_counts(1, draws=draws, chains=chains)
    known = set(inspect.signature(pm.sample).parameters) - OWN
    if unknown := [name for name in sample_kwargs if name not in known]:
        raise TypeError(
            f"`{unknown[0]}` is no argument of `pymc.sample` that can be given here. Options of "
            "the step method belong into the function that makes it."
        )
    given_generator(random_seed, "random_seed")
    _check(model, step)
    settings = {"draws": draws, "chains": chains, **sample_kwargs}
    simulate = partial(_outcome, model, step, settings)
    seeds = np.random.SeedSequence(random_seed).spawn(simulations)
    with _silence():
        if executor is None:
            outcomes = [simulate(seed) for seed in seeds]
        else:
            outcomes = _distributed(simulate, seeds, executor)
    failures = {k: outcome for k, outcome in enumerate(outcomes) if isinstance(outcome, str)}
    done = {k: outcome for k, outcome in enumerate(outcomes) if isinstance(outcome, Simulation)}
    if failures:
        first = next(iter(failures))
        text = f"{len(failures)} of {simulations} simulations failed; number {first}: "
        if 2 * len(done) < simulations:
            raise RuntimeError(text + failures[first])
        logger.warning(text + failures[first])
    return judged(done, simulations, failures, probability)


@dataclass(frozen=True)
class Simulation:
    """What one simulation tells.

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


def require_probability(probability: Any) -> None:
    """Refuse what is no probability of bands."""
    if not isinstance(probability, float) or not 0 < probability < 1:
        raise ValueError(f"probability={probability!r} must be between 0 and 1, such as 0.95.")


def _made(model: ModelSource) -> pm.Model:
    return model if isinstance(model, pm.Model) else model()


def _check(source: ModelSource, step: StepFactory) -> None:
    """Refuse what would fail in every simulation."""
    model: Any = _made(source) if isinstance(source, pm.Model) or callable(source) else source
    if not isinstance(model, pm.Model):
        raise TypeError(f"`model` has to be or to make a pymc.Model, and not {model!r}.")
    if not model.observed_RVs:
        raise ValueError(
            "The model has no observed variables, so there are no data that it could make."
        )
    if model.potentials:
        raise ValueError(
            f"The potential `{model.potentials[0].name}` is no distribution: neither parameters "
            "nor data can be drawn from it. Write it as a prior, or as an observed variable such "
            "as a pm.CustomDist with `random`."
        )
    with model:
        step()


@contextmanager
def _silence() -> Iterator[None]:
    """No lines for each of hundreds of runs."""
    loggers = [logging.getLogger("pymc"), logger]
    levels = [of.level for of in loggers]
    for of in loggers:
        of.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for of, level in zip(loggers, levels, strict=True):
            of.setLevel(level)


def _distributed(
    simulate: Callable[[np.random.SeedSequence], "Simulation | str"],
    seeds: list[np.random.SeedSequence],
    executor: Executor,
) -> list["Simulation | str"]:
    """Outcomes of all simulations, each a task of its own."""
    task, home = cloudpickle.dumps(simulate), os.getpid()
    futures = [executor.submit(_unpickled_outcome, task, seed, home) for seed in seeds]
    outcomes: list[Simulation | str] = []
    try:
        for future in futures:
            try:
                outcomes.append(future.result())
            except Exception as error:  # a worker that has died
                outcomes.append(_reason(error))
    finally:
        for future in futures:
            future.cancel()
    return outcomes


def _unpickled_outcome(task: bytes, seed: np.random.SeedSequence, home: int) -> "Simulation | str":
    simulate = cloudpickle.loads(task)
    if os.getpid() == home:  # a thread: silent already
        return simulate(seed)
    with _silence():
        return simulate(seed)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _outcome(
    source: ModelSource, step: StepFactory, settings: dict[str, Any], seed: np.random.SeedSequence
) -> Simulation | str:
    """Outcome of a simulation, or why it failed."""
    try:
        return _simulation(_made(source), step, settings, seed)
    except Exception as error:
        return _reason(error)


def _simulation(
    model: pm.Model, step: StepFactory, settings: dict[str, Any], seed: np.random.SeedSequence
) -> Simulation:
    """Draw parameters and data, sample given the data, and see where the parameters are."""
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
            given = ", ".join(f"{of}={truth[of].to_numpy().tolist()}" for of in free)
            raise ValueError(f"`{name}` is not finite given {given}: the forward map fails there.")
    conditioned = pm.observe(model, {name: data[name].to_numpy() for name in observed})
    defaults = {
        "cores": 1,
        "progressbar": False,
        "compute_convergence_checks": False,
        "var_names": free,
    }
    with conditioned:
        idata = pm.sample(step=step(), random_seed=int(of_run), **defaults | settings)
    if idata["posterior"].sizes["draw"] < settings["draws"]:
        raise KeyboardInterrupt  # of which PyMC has made a short run
    rng = np.random.default_rng(of_ranks)
    posterior = _thinned(idata, rng)
    of_draws, of_truth, by_lp = _log_densities(conditioned, posterior, truth)
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


def _thinned(idata: xr.DataTree, rng: np.random.Generator) -> xr.Dataset:
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


def _log_densities(
    model: pm.Model, draws: xr.Dataset, truth: xr.Dataset
) -> tuple[FloatArray, float, bool]:
    """Log densities of draws and of the truth, and whether they are the model's."""
    carried = draws["lp"].to_numpy() if "lp" in draws else np.empty(0)
    if np.isfinite(carried).any():
        highest = int(np.nanargmax(carried))
        own, of_truth = _log_density(model, draws.isel(draw=highest), truth)
        if np.isclose(own, carried[highest], rtol=1e-6, atol=1e-6):
            return carried, of_truth, True
    names = list(truth)
    X = np.concatenate([_flat(draws[name], ["draw"]) for name in names], axis=1)
    point = np.concatenate([_flat(truth[name], []) for name in names])
    # the draws of the fit would be nearer to it than the truth: take others for the ranks
    half = len(X) // 2
    distance = _distance(X[:half], np.vstack([X[half:], point]))
    return -distance[:-1], -float(distance[-1]), False


def _log_density(model: pm.Model, *points: xr.Dataset) -> list[float]:
    """Log density of points, each with a value of every free variable."""
    names = [rv.name for rv in model.free_RVs]
    U = unconstrained(
        model, {name: np.stack([p[name].to_numpy() for p in points]) for name in names}
    )
    log_density = model.compile_logp()
    return [float(log_density(point)) for point in points_of(layout_of(model), U)]


def _distance(fitted: FloatArray, X: FloatArray) -> FloatArray:
    """Squared distance of points, shape (n, p), in the metric of a Gaussian fit."""
    center, scale = fitted.mean(0), np.maximum(fitted.std(0), 1e-300)
    z = (fitted - center) / scale
    values, vectors = np.linalg.eigh(z.T @ z / len(z))
    usable = values > 1e-10 * values.max()
    root = vectors[:, usable] / np.sqrt(values[usable])
    return (((X - center) / scale @ root) ** 2).sum(1)


def judged(
    done: dict[int, Simulation], simulations: int, failures: dict[int, str], probability: float
) -> Coverage:
    """Compare ranks and levels with the uniform law."""
    numbers = list(done)
    ranks = xr.concat([done[k].ranks for k in numbers], dim="draw")
    ranks = ranks.assign_coords(draw=numbers).expand_dims(chain=[0])
    level = np.array([done[k].highest_density for k in numbers])
    labels, columns = [], []
    for name, ranked in ranks.data_vars.items():
        array = ranked.isel(chain=0).transpose("draw", ...).to_numpy()
        for index in np.ndindex(array.shape[1:]):
            labels.append(f"{name}[{','.join(map(str, index))}]" if index else str(name))
            columns.append(array[(slice(None), *index)])
    central = [2 * np.abs(column - 0.5) for column in columns]
    n_curves = 2 * len(columns) + 1
    x, lower, upper = _band(len(numbers), 1 - (1 - probability) / n_curves)
    curves = np.array([_curve(values, x) for values in (level, *central)])
    regions = [HIGHEST_DENSITY, *labels]
    reasons, direction = [], 0.0
    for region, values, curve in zip(regions, (level, *central), curves, strict=True):
        if (deviation := _outside(curve - x, lower - x, upper - x)) is None:
            continue
        where, size = deviation
        reasons.append(
            f"{region}: regions of {x[where]:.0%} hold the truth in {curve[where]:.0%} of the "
            f"simulations ({size:+.2f})."
        )
        direction += float(np.mean(values) - 0.5)
    for label, column in zip(labels, columns, strict=True):
        curve = _curve(column, x)
        if (deviation := _outside(curve - x, lower - x, upper - x)) is None:
            continue
        where, size = deviation
        reason = (
            f"`{label}`: {curve[where]:.0%} of the ranks are below {x[where]:.2f} ({size:+.2f})"
        )
        offset = (float(column.mean()) - 0.5) / uniform.std() * np.sqrt(len(column))
        if abs(offset) > 2:
            reason += f", and its draws are too {'low' if offset > 0 else 'high'}"
        reasons.append(f"{reason}.")
    verdict: Verdict = "calibrated"
    if reasons:  # what is off to one side only claims to know too much, too
        verdict = "conservative" if direction < 0 else "overconfident"
    names = ("n_draws", "n_evals", "by_lp")
    told = xr.Dataset(
        {name: ("simulation", [getattr(done[k], name) for k in numbers]) for name in names}
        | {"highest_density": ("simulation", level)},
        coords={"simulation": numbers},
    )
    group = xr.Dataset(
        {
            "coverage": (("region", "level"), curves),
            "lower": ("level", lower),
            "upper": ("level", upper),
        },
        coords={"region": regions, "level": x},
        attrs={"probability": probability, "verdict": verdict},
    )
    data = xr.DataTree.from_dict({"prior_sbc": ranks, "coverage": group, "simulations": told})
    return Coverage(verdict, tuple(reasons), len(numbers), simulations, failures, data)


@cache
def _band(n: int, probability: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Levels, and the simultaneous band of the ECDF of n uniform numbers at them."""
    from arviz_stats.ecdf_utils import ecdf_pit  # takes longer to load than PyMC

    rng = np.random.default_rng(0)
    x, _, lower, upper = ecdf_pit(np.zeros(n), probability, BAND_SIMULATIONS, rng=rng)
    return x, lower, upper


def _curve(values: FloatArray, x: FloatArray) -> FloatArray:
    """ECDF of values at x."""
    return np.searchsorted(np.sort(values), x, side="right") / len(values)


def _outside(
    deviation: FloatArray, lower: FloatArray, upper: FloatArray
) -> tuple[int, float] | None:
    """Where a curve is furthest from the diagonal, and how far, if it leaves its band."""
    if ((deviation >= lower) & (deviation <= upper)).all():
        return None
    where = int(np.argmax(np.abs(deviation)))
    return where, float(deviation[where])
