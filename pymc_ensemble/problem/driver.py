"""One round of forward evaluations: ask, evaluate, tell. It counts, seeds and reports them.

All evaluations for samplers are made here: those of chains, of the search for the posterior mode,
and of a diagnosis.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from time import perf_counter
from typing import Any, Protocol, TypeVar

import numpy as np
import pymc as pm
from numpy.typing import NDArray
from pymc.exceptions import SamplingError
from threadpoolctl import ThreadpoolController

from pymc_ensemble.forward.evaluation import Evaluations
from pymc_ensemble.log import ProgressLog, logger
from pymc_ensemble.samplers.ensemble import Ensemble, EnsembleFailure, Info

from .points import describe

SEEDS_OF_EVALUATIONS = 0xE5  # keeps their seeds apart from other seeds of the run

FloatArray = NDArray[np.float64]
State = TypeVar("State")
Pending = TypeVar("Pending")


class ForwardProblem(Protocol):
    """What can be evaluated."""

    def evaluate(self, U: FloatArray, seed: np.random.SeedSequence | None = None) -> Evaluations:
        """Evaluate points, shape (n, d); any of them may fail."""


class AskTell(Protocol[State, Pending]):
    """Sampler or kernel: it asks for evaluations of points, and takes the results."""

    def ask(self, state: State, rng: np.random.Generator, /) -> tuple[FloatArray, Pending]:
        """Points of the next round, shape (n, d), and what `tell` needs."""

    def tell(
        self, state: State, pending: Pending, evaluations: Evaluations, /
    ) -> tuple[State, Info]:
        """State after the round, and an account of it."""


@dataclass
class Account:
    """Number of forward evaluations and failures, and the first failure.

    Attributes
    ----------
    n_evals, n_failed : int
        Forward evaluations so far, and how many of them failed.
    first_failure : str
        Parameters and traceback of the first failed evaluation.
    """

    n_evals: int = 0
    n_failed: int = 0
    first_failure: str = ""


@dataclass(frozen=True)
class Driver:
    """Evaluates the points that samplers ask for, round by round.

    Parameters
    ----------
    problem : object with ``evaluate``
    model : pm.Model
        Model with whose variables a failure is described.
    account : Account
        Counts of the evaluations.
    log : ProgressLog
        Log of the progress.
    where : str, default ""
        Scope of the counts, such as "in this chain".
    consequence : str
        Consequence of a failed evaluation, in words.
    remedy : str
        Remedy if too many evaluations fail, in words.
    """

    problem: ForwardProblem
    model: pm.Model
    account: Account
    log: ProgressLog
    where: str = ""
    consequence: str = "It is left out. Later failures are counted, but not reported."
    remedy: str = (
        "priors that stay where the forward map works, or a forward map that returns a value "
        "instead of failing."
    )

    def round(
        self,
        sampler: AskTell[State, Pending],
        state: State,
        rng: np.random.Generator,
        number: int | None = None,
    ) -> tuple[State, Info]:
        """Evaluate the points that a sampler asks for, and let it learn from them.

        Parameters
        ----------
        sampler : object with ``ask`` and ``tell``
        state : object
            State of the sampler.
        rng : numpy.random.Generator
        number : int, optional
            Evaluations before this round. The seed of a stochastic forward model follows from it.
            By default it is the number of all counted evaluations.

        Returns
        -------
        state : object
            State after the round.
        info : Info

        Raises
        ------
        SamplingError
            If the sampler cannot go on. It says what failed, where, and what to try.
        """
        with self.failures_in_words(state):
            with one_blas_thread():
                points, pending = sampler.ask(state, rng)
            number = self.account.n_evals if number is None else number
            evaluations = self.evaluate(points, seed_of_round(rng, number))
            with one_blas_thread():
                return sampler.tell(state, pending, evaluations)

    @contextmanager
    def failures_in_words(self, state: object) -> Iterator[None]:
        """Raise `SamplingError`, with reasons, if a sampler cannot go on from its `state`."""
        try:
            yield
        except EnsembleFailure as failure:
            raise SamplingError(self._explain(failure, state)) from failure

    def evaluate(self, points: FloatArray, seed: np.random.SeedSequence) -> Evaluations:
        """Evaluate points, shape (n, d), count them, and report the first failure."""
        self.log.begin()
        started, account = perf_counter(), self.account
        evaluations = self.problem.evaluate(points, seed)
        self.log.count(len(points), perf_counter() - started, evaluations)
        account.n_evals += len(points)
        account.n_failed += int(evaluations.failed.sum())
        if evaluations.failed.any() and not account.first_failure:
            row = int(np.flatnonzero(evaluations.failed)[0])
            reason = dict(evaluations.errors).get(row, "The outputs are not finite.")
            account.first_failure = f"{describe(self.model, points[row])}\n{reason}"
            logger.warning(
                f"{self.log.label}a forward evaluation failed, at {account.first_failure}\n"
                f"{self.consequence}"
            )
        return evaluations

    def tell(self, message: str, to_go: int | None = None, **facts: Any) -> None:
        """Report the progress, if it is time. For the other `facts` see `ProgressLog.tell`."""
        account = self.account
        self.log.tell(message, account.n_evals, account.n_failed, to_go, **facts)

    def _explain(self, failure: EnsembleFailure, state: object) -> str:
        """Say what failed, where, and what to try."""
        account, ensemble = self.account, getattr(state, "ensemble", None)
        counted = f"{account.n_failed} of {account.n_evals} forward evaluations failed"
        lines = [str(failure), f"{' '.join(filter(None, (counted, self.where)))}."]
        if account.first_failure:
            lines.append(f"The first failure was at {account.first_failure}")
        elif isinstance(ensemble, Ensemble) and not ensemble.ok.all():
            member = int(np.flatnonzero(~ensemble.ok)[0])
            lines.append(
                "No forward evaluation failed, but the posterior density is not finite, for "
                f"example at {describe(self.model, ensemble.U[member])}"
            )
        if not failure.remedy:
            lines.append(f"What to try: {self.remedy}")
        return "\n".join(lines)


def seed_of_round(rng: np.random.Generator, number: int) -> np.random.SeedSequence:
    """Seed for stochastic forward models, from a generator's seed and the evaluations so far."""
    sequence: Any = rng.bit_generator.seed_seq
    return np.random.SeedSequence(
        sequence.entropy, spawn_key=(*sequence.spawn_key, SEEDS_OF_EVALUATIONS, number)
    )


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


def one_blas_thread() -> AbstractContextManager:
    """Limit linear algebra to one thread, as matrices are small, and chains run in parallel."""
    return _blas().limit(limits=1)
