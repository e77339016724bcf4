"""The samplers of this package and of other packages, by name."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import numpy as np

import pymc_ensemble as pe
from pymc_ensemble.benchmark.ours import (
    DensitySampler,
    Runner,
    ensemble,
    gaussian_process,
    growing,
    multiscale,
)
from pymc_ensemble.benchmark.peers import (
    STRETCH_FACTOR,
    demetropolis_z,
    emcee,
    numpyro_aies,
    nuts,
    smc,
)
from pymc_ensemble.benchmark.problems import Problem
from pymc_ensemble.benchmark.traces import Run


@dataclass(frozen=True)
class Sampler:
    """A sampler with its settings.

    Parameters
    ----------
    name : str
        Name in tables and on the command line.
    run : callable
        Samples a problem.
    ours : bool, default True
        Whether it belongs to this package.
    gradients : bool, default False
        Whether it needs a model with gradients.
    requires : str, optional
        Package that has to be installed.
    """

    name: str
    run: Runner
    ours: bool = True
    gradients: bool = False
    requires: str = "pymc"

    @property
    def installed(self) -> bool:
        """Whether the package that it requires is installed."""
        return find_spec(self.requires) is not None

    def suits(self, problem: Problem) -> bool:
        """Whether the problem has what the sampler needs, and is to be run with it."""
        if problem.only and self.name not in problem.only:
            return False
        return problem.native is not None or not self.gradients


_kalman = partial(ensemble, pe.EnsembleKalmanSampler)

SAMPLERS = {
    sampler.name: sampler
    for sampler in (
        Sampler("EKS", _kalman()),
        Sampler("EKS unadjusted", _kalman(adjust=False, roughness=True)),
        Sampler("EKS adjusted", _kalman(adjust=True)),
        Sampler("EKS density", ensemble(DensitySampler)),
        Sampler("EKS paper", _kalman(scheme="paper")),
        Sampler("multiscale", multiscale()),
        Sampler("multiscale adjusted", multiscale(adjust=True)),
        Sampler("multiscale, 40 walkers", multiscale(walkers=40)),
        Sampler("multiscale paper", multiscale(scheme="paper")),
        Sampler("EGPS", growing),
        Sampler("EGPS epochs", gaussian_process()),
        Sampler("EGPS potential", gaussian_process(target="potential")),
        Sampler("EGPS adjusted", ensemble(pe.EnsembleGaussianProcessSampler, adjust=True)),
        Sampler("EGPS paper", ensemble(pe.EnsembleGaussianProcessSampler, scheme="paper")),
        Sampler(
            "ELS",
            ensemble(pe.EnsembleLangevinSampler, native=True, adjust=True),
            gradients=True,
        ),
        Sampler("emcee", emcee(factor=STRETCH_FACTOR), ours=False, requires="emcee"),
        Sampler("emcee DE", emcee("differential evolution"), ours=False, requires="emcee"),
        Sampler("emcee from EKS", emcee(start="ensemble Kalman"), ours=False, requires="emcee"),
        Sampler("DEMetropolisZ", demetropolis_z, ours=False),
        Sampler("SMC", smc, ours=False),
        Sampler("NUTS nutpie", nuts("nutpie"), ours=False, gradients=True, requires="nutpie"),
        Sampler("NUTS PyMC", nuts("pymc"), ours=False, gradients=True),
        Sampler(
            "NumPyro AIES",
            numpyro_aies,
            ours=False,
            gradients=True,
            requires="numpyro",
        ),
    )
}
"""The samplers by their names."""


def sample(problem: Problem, sampler: Sampler, budget: int, seed: int) -> Run:
    """Run a sampler in silence.

    Parameters
    ----------
    problem : Problem
    sampler : Sampler
    budget : int
        Evaluations that a sampler of this package spends. Others may spend more.
    seed : int
        Seed of the random numbers.

    Returns
    -------
    Run
        Traces and costs.
    """
    with silence():
        return sampler.run(problem, round(problem.share * budget), seed)


@contextmanager
def silence() -> Iterator[None]:
    """Context manager that suppresses warnings, and log messages below errors."""
    loggers = [logging.getLogger(name) for name in ("pymc", "pymc_ensemble", "emcee")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
