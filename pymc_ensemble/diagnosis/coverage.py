"""Test a sampler on a model: run it on data that the model itself has made."""

import inspect
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, runtime_checkable

import cloudpickle
import numpy as np
import pymc as pm
from pymc.step_methods.compound import BlockedStep, CompoundStep

from pymc_ensemble.log import logger
from pymc_ensemble.problem.checks import given_generator
from pymc_ensemble.problem.forward_models import require_own_data
from pymc_ensemble.samplers.options import require_counts
from pymc_ensemble.samplers.weights import LEVEL

from .simulation import Simulation, StepFactory, simulated
from .uniformity import Coverage, judged, require_probability

__all__ = ["Coverage", "coverage"]

type ModelSource = pm.Model | Callable[[], pm.Model]

OWN = {"step", "model", "return_inferencedata", "kwargs"}  # arguments of pm.sample set here


@runtime_checkable
class Testable(Protocol):
    """Object that tests itself, such as an amortized posterior."""

    def coverage(self, simulations: Any = ..., **options: Any) -> "Coverage":
        """Test on simulations of a model whether regions hold the truth."""


def coverage(
    model: ModelSource,
    step: StepFactory | Testable,
    *,
    simulations: int = 200,
    executor: Executor | None = None,
    draws: int = 1000,
    chains: int = 1,
    random_seed: int | None = None,
    probability: float = LEVEL,
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
        The model. Or a function without arguments that makes it, for models that cannot be sent to
        workers. Only the shape of its data matters.
    step : callable
        Makes a new step method for each simulation, such as
        ``lambda: pe.EnsembleKalmanSampler(adjust=True)``. Or the estimate that `amortize` has
        learned, which is tested in this process, on simulations of `model`.
    simulations : int, default 200
        Number of data sets.
    executor : concurrent.futures.Executor, optional
        Where simulations run, each as one task. By default they run one after the other in this
        process. Results do not depend on it.
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
        The verdict and the numbers behind it. `pymc_ensemble.plots.coverage` draws it, and
        ``arviz.plot_ecdf_pit(result.data)`` draws the ranks.

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
    Ranks need independent draws. So each path is thinned, as its effective sample size tells.
    Regions of highest density need densities. Draws carry these as stat ``lp``. If the model's own
    density does not agree with it, as for draws from a surrogate, a Gaussian fit takes its place.
    This takes two forward evaluations of each simulation.

    Bands are simultaneous [2]_: all curves together stay in them with the given probability if the
    sampler is calibrated. With fewer than ten simulations they are too narrow. A calibrated sampler
    is right on average over the prior, but may be wrong for particular data. `diagnose` judges
    a particular run.

    A simulation that fails is left out, and the result says so. If failures depend on parameters,
    the others are not a fair sample of the prior.

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
                f"`{unused[0]}` is for step methods. Leave it out: an estimate of `amortize` is "
                "tested in this process, with independent draws, which takes milliseconds."
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
            "`step` must be a function that makes a step method, as each simulation needs its "
            "own. Use, for example, `lambda: pymc_ensemble.EnsembleKalmanSampler(adjust=True)`."
        )
    require_counts(2, simulations=simulations)
    require_probability(probability)
    require_counts(1, draws=draws, chains=chains)
    known = set(inspect.signature(pm.sample).parameters) - OWN
    if unknown := [name for name in sample_kwargs if name not in known]:
        raise TypeError(
            f"`{unknown[0]}` is not an argument of `pymc.sample` that can be passed here. Options "
            "of the step method belong in the function that makes it."
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


def _made(model: ModelSource) -> pm.Model:
    return model if isinstance(model, pm.Model) else model()


def _check(source: ModelSource, step: StepFactory) -> None:
    """Refuse what would fail in every simulation."""
    model: Any = _made(source) if isinstance(source, pm.Model) or callable(source) else source
    if not isinstance(model, pm.Model):
        raise TypeError(
            f"`model` must be a pymc.Model, or a function that makes one, not {model!r}."
        )
    if not model.observed_RVs:
        raise ValueError(
            "The model has no observed variables, so it cannot make data. Give a variable its "
            "data with `observed=`."
        )
    require_own_data(model)
    with model:
        step()


@contextmanager
def _silence() -> Iterator[None]:
    """Context manager without the log lines of hundreds of runs."""
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
    simulate: Callable[[np.random.SeedSequence], Simulation | str],
    seeds: list[np.random.SeedSequence],
    executor: Executor,
) -> list[Simulation | str]:
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


def _unpickled_outcome(task: bytes, seed: np.random.SeedSequence, home: int) -> Simulation | str:
    simulate = cloudpickle.loads(task)
    if os.getpid() == home:  # a thread of the main process, which is silent already
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
        return simulated(_made(source), step, settings, seed)
    except Exception as error:
        return _reason(error)
