"""Chunks of members, and the common parts of all backends."""

import math
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pymc_ensemble.forward.evaluation import ForwardModelError
from pymc_ensemble.forward.members import evaluate
from pymc_ensemble.forward.tasks import Outcomes, Outputs, Seed, Task

FloatArray = NDArray[np.float64]

CHUNK_SECONDS = 0.02  # seconds of work that are sent to a worker at once
PATIENCE = 0.05  # seconds after which a worker returns the rest of its chunk

ExecutorLike = Executor | str | int | None


class ExecutorError(ForwardModelError):
    """An executor cannot be used here. It is not a failure of the forward model."""


@dataclass(frozen=True)
class Chunk:
    """Members that are evaluated together: their rows in the batch, and the data for the worker.

    Outputs may be written to `out`, if that is possible.
    """

    rows: NDArray[np.int_]
    points: FloatArray
    seeds: Sequence[Seed] | None
    keys: Sequence[Any] | None
    out: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, start: int, stop: int) -> "Chunk":
        """Some of the members."""
        some = slice(start, stop)
        return Chunk(
            self.rows[some],
            self.points[some],
            None if self.seeds is None else self.seeds[some],
            None if self.keys is None else self.keys[some],
        )

    def pieces(self, size: int) -> list["Chunk"]:
        """Chunks of at most `size` members."""
        return [self.part(i, i + size) for i in range(0, len(self), size)]


class Backend(Protocol):
    """Evaluates chunks for one task."""

    saves: bool
    """Whether outcomes are saved where they are computed."""

    def run(self, chunk: Chunk, seconds: float | None) -> Iterator[tuple[Chunk, Outcomes]]:
        """Evaluate members, and yield the outcomes as they come.

        Parameters
        ----------
        chunk : Chunk
            All members of the batch.
        seconds : float or None
            Usual duration of a member so far.
        """

    def close(self) -> None:
        """Stop workers that were started here."""


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_threads() -> int:
    """Threads of a pool of this package: as many as Python's own, as some wait."""
    return min(32, available_cores() + 4)


def refuse_in_daemon(what: str) -> None:
    """Explain why PyMC's chain processes cannot have workers."""
    if multiprocessing.current_process().daemon:
        raise ExecutorError(
            f"The forward model has {what}, but PyMC runs each chain in a process that may not "
            "have workers. Use `pm.sample(cores=1)`: then chains run one after the other, and the "
            "workers share the evaluations of each round. Or use a Dask cluster, which serves all "
            "chains at once: executor=distributed.Client(...).get_executor()."
        )


def check_timeout(timeout: Any) -> None:
    """Refuse a time-out that is not a time that one can wait."""
    if timeout is None:
        return
    number = isinstance(timeout, int | float | np.number) and not isinstance(timeout, bool)
    if not number or not 0 < timeout <= threading.TIMEOUT_MAX:
        raise ValueError(
            "timeout must be a positive number of seconds, no more than "
            f"{threading.TIMEOUT_MAX:.0f}, not {timeout!r}. Leave it out to wait as long as it "
            "takes."
        )


class Serial:
    """Evaluates in this process, one member after the other."""

    saves = True

    def __init__(self, task: Task):
        self.task = task

    def run(self, chunk: Chunk, seconds: float | None) -> Iterator[tuple[Chunk, Outcomes]]:
        """Evaluate all members."""
        yield chunk, evaluate(self.task, chunk.points, chunk.seeds, chunk.keys, out=chunk.out)

    def close(self) -> None:
        """Do nothing."""


def chunk_size(n: int, workers: int, seconds: float | None, vectorized: bool) -> int:
    """Number of members that are sent at once: many cheap ones, but every worker gets some."""
    if vectorized:
        return math.ceil(n / workers)
    if seconds is None or seconds >= CHUNK_SECONDS:
        return 1
    return max(1, min(int(CHUNK_SECONDS / max(seconds, 1e-7)), math.ceil(n / workers)))


def plan(
    chunk: Chunk, workers: int, seconds: float | None, vectorized: bool
) -> tuple[list[Chunk], Chunk]:
    """First chunks, and the rest, which waits until the duration of a member is known."""
    n = len(chunk)
    if seconds is None and not vectorized and n > 4 * workers:
        return chunk.part(0, workers).pieces(1), chunk.part(workers, n)
    return chunk.pieces(chunk_size(n, workers, seconds, vectorized)), chunk.part(n, n)


def died(task: Task, why: str) -> Outcomes:
    """Outcome of a member that killed its worker."""
    return Outcomes.failure(task.signature.n_outputs, "died", f"Its worker died. {why}", 0.0)


def not_done(sent: Chunk, done: int, vectorized: bool) -> list[Chunk]:
    """Chunks that a worker returned. A batch that took too long is called one by one."""
    rest = sent.part(done, len(sent))
    return rest.pieces(1) if vectorized else [rest]


def still_occupied(executor: Any, timeout: float) -> ExecutorError:
    """Error for calls that took too long, and go on because they cannot be stopped."""
    return ExecutorError(
        f"A call of the forward model took more than timeout={timeout:g} s and has not ended after "
        f"as long again. It cannot be stopped in an executor of type {type(executor).__name__}, "
        "and nothing else may be called beside it, as that would share its state. Use worker "
        "processes of this package, which are killed and replaced: executor='processes', or their "
        "number."
    )


def unusable(executor: Any, error: BaseException) -> ExecutorError:
    """Error for workers that could not call the function at all."""
    return ExecutorError(
        f"The executor of type {type(executor).__name__} could not evaluate the forward model. Its "
        f"workers need the function, and all that it imports. {error!r}"
    )


def _unpacked(result: Any) -> Outcomes:
    if isinstance(result, Outcomes):
        return result
    outputs, statuses, reasons, started, seconds, worker, found = result
    described = None if found is None else Outputs(*found)
    return Outcomes(outputs, statuses, reasons, started, seconds, worker, described)
