"""Simulations of a model, from its prior."""

import hashlib
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from functools import lru_cache
from typing import Any

import cloudpickle
import numpy as np
import pymc as pm
import xarray as xr
from numpy.typing import NDArray

from pymc_ensemble.log import ProgressLog, logger
from pymc_ensemble.problem.checks import given_generator, given_model, quoted
from pymc_ensemble.problem.points import describe
from pymc_ensemble.samplers.options import require_given_counts
from pymc_ensemble.version import __version__

from .generating import Generator, Simulated

__all__ = ["simulations"]

FloatArray = NDArray[np.float64]

CHUNK = 100  # simulations per task: a few seconds for a simulator that takes some milliseconds
PRIOR = "prior"  # required value of the attribute `drawn_from`


def simulations(
    model: pm.Model | None = None,
    n: int = 10_000,
    executor: Executor | None = None,
    random_seed: Any = None,
) -> xr.Dataset:
    """Draw parameters from the prior of a model, and one data set given each of them.

    `amortize` learns from the result. Other packages for simulation-based inference take it, as
    arrays.

    Parameters
    ----------
    model : pymc.Model, optional
        By default the one on the context stack. Only the shape of its data matters. A likelihood
        may be a `pymc.Simulator`.
    n : int, default 10_000
        Number of simulations.
    executor : concurrent.futures.Executor, optional
        Processes where simulations run, 100 in each task. By default they run in this one, and
        forward models (`forward_model`) use their own workers. Threads of one process take
        turns.
    random_seed : int, Generator or None
        Simulations follow from it, whatever the executor is.

    Returns
    -------
    Dataset
        By ``simulation``: the free variables, under their names; the same in ``unconstrained``
        coordinates, whose names are in ``coordinate``; the data, under the names of the observed
        variables; ``outputs``, the forward outputs, if the likelihood is a function of them, as
        parameters of the likelihood in their natural form (the logarithm of a rate behind an
        exponential, for example); and whether it has ``failed``: then its data are NaN.

    Raises
    ------
    TypeError
        If there is no model.
    ValueError
        If parameters or data cannot be drawn from the model: it has no observed variable, discrete
        or improper parameters, a potential, or missing data.
    RuntimeError
        If all simulations fail.

    Notes
    -----
    A simulation fails if the forward model or the simulator raises, or gives numbers that are not
    finite. The log tells the first failure, with its parameters. A `pymc.Simulator` is called for
    one simulation after the other, as in `pymc.sample_prior_predictive`.

    Examples
    --------
    >>> import pymc as pm, pymc_ensemble as pe
    >>> with pm.Model():
    ...     rate = pm.LogNormal("rate")
    ...     counts = pm.Poisson("counts", rate, observed=[2, 3, 1])
    ...     made = pe.simulations(n=200, random_seed=1)
    >>> made["rate"].shape, made["counts"].shape, bool(made["failed"].any())
    ((200,), (200, 3), False)
    >>> made["coordinate"].values.tolist()
    ['rate_log__']
    """
    require_given_counts(1, n=n)
    model = given_model(model)
    rng = given_generator(random_seed, "random_seed")
    if executor is not None and not hasattr(executor, "submit"):
        raise TypeError(
            "`executor` must be an executor like those of `concurrent.futures`, not "
            f"{executor!r}. Workers for a forward model are an option of its own: "
            "pe.forward_model(executor=8)."
        )
    return simulated(Generator(model), n, rng, executor)


def simulated(
    generator: Generator, n: int, rng: np.random.Generator, executor: Executor | None = None
) -> xr.Dataset:
    """Simulations of a generator as a Dataset."""
    seeds = np.random.SeedSequence(int(rng.integers(2**63))).spawn(-(-n // CHUNK))
    sizes = [min(CHUNK, n - start) for start in range(0, n, CHUNK)]
    log, parts, n_failed = ProgressLog("Simulations"), [], 0
    log.begin()
    for part in _parts(generator, sizes, seeds, executor):
        if part.reason is not None and not n_failed:
            row, reason = part.reason
            logger.warning(
                f"A simulation failed, at {describe(generator.model, part.U[row])}\n{reason}\nIt "
                "is marked as failed. Later failures are counted, but not reported."
            )
        n_failed += int(part.failed.sum())
        parts.append(part)
        done = sum(len(one.U) for one in parts)
        log.tell("from the prior", done, n_failed, n - done)
    if n_failed == n:
        raise RuntimeError(
            f"All {n} simulations failed; the warning says why the first one did. Choose priors "
            "that stay where the forward map works, or let the forward map return a value instead "
            "of failing."
        )
    if n_failed:
        logger.warning(f"{n_failed} of {n} simulations failed.")
    return _dataset(generator, parts)


def _parts(
    generator: Generator,
    sizes: list[int],
    seeds: list[np.random.SeedSequence],
    executor: Executor | None,
) -> Iterator[Simulated]:
    """Chunks of simulations, in their order."""
    if executor is None:
        for size, seed in zip(sizes, seeds, strict=True):
            yield generator.simulate(size, seed)
        return
    task = cloudpickle.dumps(generator)
    name = hashlib.sha256(task).hexdigest()
    futures = [
        executor.submit(_run, task, name, size, seed)
        for size, seed in zip(sizes, seeds, strict=True)
    ]
    try:
        for future in futures:
            yield future.result()
    finally:
        for future in futures:
            future.cancel()


_lock = threading.Lock()  # compiled functions are not for several threads at once


class _Task(bytes):
    """A pickled generator, compared by its digest alone."""

    digest: str

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Task) and other.digest == self.digest


def _run(task: bytes, digest: str, size: int, seed: np.random.SeedSequence) -> Simulated:
    known = _Task(task)
    known.digest = digest
    with _lock:
        return _unpickled(known).simulate(size, seed)


@lru_cache(maxsize=4)
def _unpickled(task: _Task) -> Generator:
    """Generator of a task. Later tasks reuse its compiled functions."""
    return cloudpickle.loads(task)


def _dataset(generator: Generator, parts: list[Simulated]) -> xr.Dataset:
    """All parts joined, with the dimensions and coordinates of the model."""
    model = generator.model
    U = np.concatenate([part.U for part in parts])
    arrays: dict[str, Any] = {
        name: _labelled(model, name, values) for name, values in generator.named(U).items()
    }
    arrays["unconstrained"] = (("simulation", "coordinate"), U)
    outputs = [part.outputs for part in parts if part.outputs is not None]
    if outputs:
        arrays["outputs"] = (("simulation", "output"), np.concatenate(outputs))
    for name in generator.observed:
        values = np.concatenate([part.data[name] for part in parts])
        arrays[name] = _labelled(model, name, values)
    failed = np.concatenate([part.failed for part in parts])
    arrays["failed"] = ("simulation", failed)
    used = {dim for dims, _ in arrays.values() if not isinstance(dims, str) for dim in dims}
    labels = {str(dim): list(known) for dim, known in model.coords.items() if known is not None}
    coords: Mapping[str, Any] = {dim: known for dim, known in labels.items() if dim in used}
    attrs = {"drawn_from": PRIOR, "version": __version__}
    return xr.Dataset(
        arrays,
        {**coords, "simulation": np.arange(len(U)), "coordinate": list(generator.names)},
        attrs,
    )


def _labelled(model: pm.Model, name: str, values: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    unnamed = [f"{name}_dim_{k}" for k in range(values.ndim - 1)]
    own = model.named_vars_to_dims.get(name) or unnamed
    return ("simulation", *map(str, own)), values


def checked(given: Any, generator: Generator) -> xr.Dataset:
    """Check that simulations belong to a model.

    Parameters
    ----------
    given : Dataset
    generator : Generator

    Returns
    -------
    Dataset

    Raises
    ------
    TypeError
        If `given` is no Dataset.
    ValueError
        If `given` is no sample of the prior, or belongs to another model.
    """
    remedy = "Make them with pymc_ensemble.simulations(model, n)."
    if not isinstance(given, xr.Dataset):
        raise TypeError(
            f"`simulations` must be a Dataset of simulations, not {type(given).__name__}. Draws "
            "and stores of a run are not a sample of the prior: an estimate that learned from "
            f"them would take their density for the prior. {remedy}"
        )
    if not given.sizes.get("simulation"):
        raise ValueError(
            f"`simulations` is empty: it has the dimensions {dict(given.sizes)}, and needs a "
            f"dimension `simulation`. {remedy}"
        )
    if given.attrs.get("drawn_from") != PRIOR:
        raise ValueError(
            "`simulations` does not say that its parameters are drawn from the prior. The store "
            "of a run is not a sample of the prior: an estimate that learned from it would take "
            f"its density for the prior. {remedy} If you made them yourself, set "
            'attrs["drawn_from"] = "prior".'
        )
    wanted = {"unconstrained": (len(generator.names),)} | generator.shapes
    if missing := [name for name in wanted if name not in given]:
        raise ValueError(
            f"`simulations` has no {quoted(missing)}: it belongs to another model. {remedy}"
        )
    for name, shape in wanted.items():
        if (found := given[name].transpose("simulation", ...).shape[1:]) != shape:
            raise ValueError(
                f"`{name}` has the shape {found} in each simulation, but {shape} in the model. "
                f"{remedy}"
            )
    if "coordinate" in given.coords and tuple(given["coordinate"].values) != generator.names:
        raise ValueError(
            f"`simulations` are in the coordinates {', '.join(given['coordinate'].values)}, but "
            f"the model has {', '.join(generator.names)}. {remedy}"
        )
    return given
