"""Who evaluates the members of a batch: this process, threads, processes, or a cluster."""

import logging
import math
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from dataclasses import dataclass, replace
from functools import partial
from operator import call
from pathlib import Path
from typing import Any, Protocol

import cloudpickle
import numpy as np
from numpy.typing import NDArray
from pebble import ProcessExpired, ProcessPool

from . import members
from .evaluation import ForwardModelError
from .members import Outcomes, Outputs, Seed, Task, evaluate, read_diary

FloatArray = NDArray[np.float64]
logger = logging.getLogger("pymc_ensemble")

CHUNK_SECONDS = 0.02  # of work that is sent to a worker at once
PATIENCE = 0.05  # seconds after which a worker hands back the rest of its chunk
WATCH_SECONDS = 0.1
# forked workers need nothing pickled, and scripts no `if __name__ == "__main__"`
START_METHOD = "fork" if sys.platform == "linux" else "spawn"

ExecutorLike = Executor | str | int | None


class ExecutorError(ForwardModelError):
    """An executor that cannot be used here; no failure of the forward model."""


@dataclass(frozen=True)
class Chunk:
    """Members that are evaluated together: their rows in the batch, and what is sent.

    Outputs may be written to `out`, where that is possible.
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
        """Chunks of no more than `size` members."""
        return [self.part(i, i + size) for i in range(0, len(self), size)]


class Backend(Protocol):
    """Evaluates chunks for one task."""

    saves: bool
    """Whether outcomes are saved where they are computed."""

    def run(self, chunk: Chunk, seconds: float | None) -> Iterator[tuple[Chunk, Outcomes]]:
        """Evaluate members, and give the outcomes as they come.

        Parameters
        ----------
        chunk : Chunk
            All members of the batch.
        seconds : float or None
            What a member took so far.
        """

    def close(self) -> None:
        """Let go of workers that were started here."""


def backend(executor: ExecutorLike, task: Task, timeout: float | None) -> Backend:
    """Choose the backend for what the user gave as `executor`."""
    if executor is None:
        return Serial(replace(task, timeout=timeout))
    if isinstance(executor, str) and executor == "threads":
        return Pool(_thread_pool(), replace(task, timeout=timeout), owned=True)
    if executor == "processes" or (isinstance(executor, int) and not isinstance(executor, bool)):
        workers = executor if isinstance(executor, int) else available_cores()
        return Processes(workers, task, timeout)
    if not isinstance(executor, Executor):
        raise TypeError(f"executor={executor!r} is no executor. {EXECUTORS}")
    if dask_client(executor) is not None:
        return DaskCluster(executor, replace(task, timeout=timeout))
    return Pool(executor, replace(task, timeout=timeout), owned=False)


EXECUTORS = (
    "Give 'threads', 'processes', a number of processes, or an object with the interface of "
    "`concurrent.futures.Executor`, such as `client.get_executor()` of Dask."
)


def check_executor(executor: Any) -> None:
    """Refuse what is no executor."""
    named = isinstance(executor, str) and executor in ("threads", "processes")
    number = isinstance(executor, int) and not isinstance(executor, bool) and executor > 0
    if not (executor is None or named or number or isinstance(executor, Executor)):
        raise TypeError(f"executor={executor!r} is no executor. {EXECUTORS}")


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _thread_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(32, available_cores() + 4), thread_name_prefix="forward")


def refuse_in_daemon(what: str) -> None:
    """Explain why PyMC's chain processes can have no workers of their own."""
    if multiprocessing.current_process().daemon:
        raise ExecutorError(
            f"The forward model has {what}, but PyMC runs each chain in a process that may have no "
            "workers of its own. Use `pm.sample(cores=1)`: chains then run one after the other, "
            "and the workers share the evaluations of each round. Or use a Dask cluster, which "
            "serves all chains at once: executor=distributed.Client(...).get_executor()."
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
    """Members that are sent at once: cheap ones together, but every worker gets some."""
    if vectorized:
        return math.ceil(n / workers)
    if seconds is None or seconds >= CHUNK_SECONDS:
        return 1
    return max(1, min(int(CHUNK_SECONDS / max(seconds, 1e-7)), math.ceil(n / workers)))


def plan(
    chunk: Chunk, workers: int, seconds: float | None, vectorized: bool
) -> tuple[list[Chunk], Chunk]:
    """Chunks to begin with, and what waits until it is known how long a member takes."""
    n = len(chunk)
    if seconds is None and not vectorized and n > 4 * workers:
        return chunk.part(0, workers).pieces(1), chunk.part(workers, n)
    return chunk.pieces(chunk_size(n, workers, seconds, vectorized)), chunk.part(n, n)


# -- our own processes -----------------------------------------------------------------------------

_task: Task | None = None  # of this worker


def _begin_worker(task: Task, parent: int, folder: Path) -> None:
    """Keep the task; leave interrupts to the parent, and end with it."""
    global _task
    _task = task
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="watch").start()


def _evaluate_here(*arguments: Any) -> Outcomes:
    assert _task is not None
    return evaluate(_task, *arguments)


class Pickled:
    """An object that any pickler can send, with functions that have no name.

    Parameters
    ----------
    value : object
    everything : bool, default True
        Whether to include the module that defines what workers do, for those without the package.
    """

    def __init__(self, value: Any, everything: bool = True):
        if everything:
            cloudpickle.register_pickle_by_value(members)
        try:
            self.payload = cloudpickle.dumps(value)
        except Exception as error:
            raise ExecutorError(
                f"The forward model cannot be sent to the workers: {error!r}. It, or something "
                "that it refers to, cannot be pickled. Create that inside the function."
            ) from error
        finally:
            if everything:
                cloudpickle.unregister_pickle_by_value(members)

    def __reduce__(self) -> tuple[Callable, tuple[bytes]]:
        return cloudpickle.loads, (self.payload,)

    def __call__(self) -> None:
        """Do nothing: some executors ask whether they got something to call."""


class Processes:
    """Worker processes of our own, which are killed when a member takes too long.

    Parameters
    ----------
    workers : int
        Number of processes.
    task : Task
    timeout : float or None
        Seconds that a member may take.
    """

    saves = True

    def __init__(self, workers: int, task: Task, timeout: float | None):
        refuse_in_daemon("worker processes")
        self.workers, self.timeout, self.task = workers, timeout, task
        forks = START_METHOD == "fork"
        context: Any = multiprocessing.get_context(START_METHOD)
        self.folder = Path(tempfile.mkdtemp(prefix="pymc_ensemble-"))
        self.pool = ProcessPool(
            max_workers=workers,
            initializer=_begin_worker,
            initargs=(task if forks else Pickled(task, everything=False), os.getpid(), self.folder),
            context=context,
        )
        self._number = 0

    def close(self) -> None:
        """Stop the workers."""
        self.pool.stop()
        self.pool.join()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, chunk: Chunk, seconds: float | None) -> Iterator[tuple[Chunk, Outcomes]]:
        """Evaluate members in the worker processes."""
        vectorized = self.task.vectorized
        first, rest = plan(chunk, self.workers, seconds, vectorized)
        waiting = deque(first)
        running: dict[Future, tuple[Chunk, Path]] = {}
        try:
            while waiting or running or len(rest):
                if not waiting and not running:
                    waiting.extend(rest.pieces(chunk_size(len(rest), self.workers, seconds, False)))
                    rest = rest.part(0, 0)
                while waiting:
                    future, sent, diary = self._submit(waiting.popleft())
                    running[future] = (sent, diary)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    sent, diary = running.pop(future)
                    for part, outcomes in self._finished(future, sent, diary, waiting):
                        seconds = float(np.mean(outcomes.seconds)) if seconds is None else seconds
                        yield part, outcomes
        finally:
            for future in running:
                future.cancel()

    def _submit(self, chunk: Chunk) -> tuple[Future, Chunk, Path]:
        self._number += 1
        diary = self.folder / str(self._number)
        single = len(chunk) == 1
        patience = None if self.task.vectorized else PATIENCE
        arguments = [chunk.points, chunk.seeds, chunk.keys, None if single else str(diary)]
        limit = None
        if self.timeout is not None:
            limit = self.timeout + (0.0 if single or self.task.vectorized else PATIENCE)
        return (
            self.pool.schedule(_evaluate_here, [*arguments, patience], timeout=limit),
            chunk,
            diary,
        )

    def _finished(
        self, future: Future, chunk: Chunk, diary: Path, waiting: deque[Chunk]
    ) -> Iterator[tuple[Chunk, Outcomes]]:
        """Outcomes of a chunk; members that it did not get to wait again."""
        try:
            outcomes = future.result()
        except ProcessExpired as error:
            what = f"Its worker process died with exit code {error.exitcode}."
            yield from self._lost(chunk, diary, waiting, "died", what, error.exitcode)
        except TimeoutError:
            what = f"It took more than timeout={self.timeout:g} s, and its process was killed."
            yield from self._lost(chunk, diary, waiting, "timeout", what, self.timeout)
        else:
            done = len(outcomes)
            if done < len(chunk):
                waiting.append(chunk.part(done, len(chunk)))
            yield chunk.part(0, done), outcomes
        if len(chunk) > 1:
            diary.unlink(missing_ok=True)

    def _lost(
        self,
        chunk: Chunk,
        diary: Path,
        waiting: deque[Chunk],
        status: str,
        reason: str,
        seconds: Any,
    ) -> Iterator[tuple[Chunk, Outcomes]]:
        """Members of a chunk whose worker is gone: the first that is not in the diary did it."""
        finished = (read_diary(str(diary)) or []) if len(chunk) > 1 else []
        for i, outcomes in enumerate(finished):
            yield chunk.part(i, i + 1), outcomes
        rest = chunk.part(len(finished), len(chunk))
        if self.task.vectorized and len(rest) > 1:
            waiting.extend(rest.pieces(1))
            return
        if len(rest):
            took = seconds if status == "timeout" else 0.0
            n_outputs = self.task.signature.n_outputs
            yield rest.part(0, 1), Outcomes.failure(n_outputs, status, reason, took)
        if len(rest) > 1:
            waiting.append(rest.part(1, len(rest)))


# -- executors of others ---------------------------------------------------------------------------


class Pool:
    """Any executor with the interface of `concurrent.futures`.

    Parameters
    ----------
    executor : Executor
    task : Task
        With the time-out: workers of others cannot be killed, so they watch their own clock.
    owned : bool
        Whether the executor was made here.
    """

    def __init__(self, executor: Executor, task: Task, owned: bool):
        self.owned = owned
        self.executor = executor
        self.threads = isinstance(executor, ThreadPoolExecutor)
        self.same_machine = self.threads or _is_process_pool(executor)
        if not self.threads:
            refuse_in_daemon(f"an executor of the type {type(executor).__name__}")
        self.saves = self.same_machine
        if not self.saves:
            task = replace(task, record=None)
        self.task = task
        self._call: tuple[Any, ...] = (evaluate, task)
        self.folder = None
        if not self.threads:
            self._call = (Pickled(partial(members.evaluate_to_tuple, task)),)
            self.folder = Path(tempfile.mkdtemp(prefix="pymc_ensemble-"))
        self._number = 0

    @property
    def workers(self) -> int:
        """Calls that are made at the same time."""
        number = getattr(self.executor, "_max_workers", None)  # Python's, loky's
        if number is None:
            number = getattr(self.executor, "num_workers", None)  # mpi4py's
        return number or available_cores()

    def close(self) -> None:
        """Stop the executor, if it is ours."""
        if self.owned:
            self.executor.shutdown(wait=False, cancel_futures=True)
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, chunk: Chunk, seconds: float | None) -> Iterator[tuple[Chunk, Outcomes]]:
        """Evaluate members on the executor."""
        workers = self.workers
        first, rest = plan(chunk, workers, seconds, self.task.vectorized)
        waiting, alone = deque(first), deque[Chunk]()
        running: dict[Future, tuple[Chunk, Path | None]] = {}
        suspected = False  # of having killed a worker, is what is running
        try:
            while waiting or running or alone or len(rest):
                if not waiting and not running and not alone:
                    waiting.extend(rest.pieces(chunk_size(len(rest), workers, seconds, False)))
                    rest = rest.part(0, 0)
                if not running:
                    suspected = bool(alone)
                    if suspected:  # tried one at a time, with nothing beside it
                        self._submit(alone.popleft(), running)
                while waiting and not alone and not suspected:
                    self._submit(waiting.popleft(), running)
                broken = {}
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    sent, diary = running.pop(future)
                    try:
                        outcomes = _unpacked(future.result())
                    except BrokenExecutor:
                        broken[future] = (sent, diary)
                        continue
                    except Exception as error:
                        raise unusable(self.executor, error) from error
                    seconds = float(np.mean(outcomes.seconds)) if seconds is None else seconds
                    yield sent, outcomes
                if broken:
                    wait(running)
                    broken |= running
                    running = {}
                    yield from self._after_break(broken, waiting, alone)
        finally:
            for future in running:
                future.cancel()

    def _submit(self, chunk: Chunk, running: dict[Future, tuple[Chunk, Path | None]]) -> None:
        diary = None
        if self.same_machine and self.folder is not None:
            self._number += 1
            diary = self.folder / str(self._number)
        arguments: Any = (chunk.points, chunk.seeds, chunk.keys, diary and str(diary))
        for attempt in range(2):
            try:
                future = self.executor.submit(*self._call, *arguments)
            except BrokenExecutor:  # it broke while nothing of ours was running
                if attempt:
                    raise
                self._rebuild()
            else:
                break
        running[future] = (chunk, diary)

    def _after_break(
        self,
        broken: dict[Future, tuple[Chunk, Path | None]],
        waiting: deque[Chunk],
        alone: deque[Chunk],
    ) -> Iterator[tuple[Chunk, Outcomes]]:
        """Go on after a worker has died: blame a member only if it was running alone."""
        self._rebuild()
        for future, (sent, diary) in broken.items():
            if not future.cancelled() and future.exception() is None:
                yield sent, _unpacked(future.result())
                continue
            noted = None if diary is None else read_diary(str(diary))
            if noted is None and diary is not None:  # never begun
                waiting.append(sent)
                continue
            for i, outcomes in enumerate(noted or []):
                yield sent.part(i, i + 1), outcomes
            rest = sent.part(len(noted or []), len(sent))
            if len(broken) == 1 and (len(rest) == 1 or diary is not None) and len(rest):
                yield rest.part(0, 1), died(self.task, "A worker process died.")
                rest = rest.part(1, len(rest))
            if len(rest):
                alone.append(rest.part(0, 1))
            if len(rest) > 1:
                waiting.append(rest.part(1, len(rest)))

    def _rebuild(self) -> None:
        """Replace a broken pool by a new one of the same kind."""
        old: Any = self.executor
        if isinstance(self.executor, ProcessPoolExecutor):
            self.executor = ProcessPoolExecutor(
                old._max_workers,
                mp_context=old._mp_context,
                initializer=old._initializer,
                initargs=old._initargs,
            )
            self.owned = True
        elif type(old).__name__ == "_ReusablePoolExecutor":
            module = sys.modules[type(old).__module__]
            old.shutdown(wait=True, kill_workers=True)  # else it may be handed out again
            self.executor = module.get_reusable_executor(max_workers=old._max_workers)
        else:
            raise ExecutorError(
                f"The executor of type {type(old).__name__} is broken, and cannot be rebuilt here: "
                "a worker died. Use executor='processes'."
            )
        logger.warning("A worker process died; the pool of workers was built anew.")


class DaskCluster:
    """Workers of a Dask cluster.

    The rounds of several chains, each a client of its own, fill one cluster together.

    Parameters
    ----------
    executor : distributed.cfexecutor.ClientExecutor
        Made by ``client.get_executor()``; its options, such as ``resources``, are respected.
    task : Task
        With the time-out: Dask does not kill a worker, so that watches its own clock.
    """

    saves = False

    def __init__(self, executor: Any, task: Task):
        self.client = dask_client(executor)
        self.executor = executor
        self.task = replace(task, record=None)
        self._options = getattr(executor, "_kwargs", {}) | {"pure": False}
        self._shared: Any = None

    def close(self) -> None:
        """Let the cluster forget the function."""
        self._shared = None

    def run(self, chunk: Chunk, seconds: float | None) -> Iterator[tuple[Chunk, Outcomes]]:
        """Evaluate members on the cluster."""
        from distributed import as_completed

        if self._shared is None:  # sent to each worker once, and made anew if that is lost
            shared = Pickled(partial(members.evaluate_to_tuple, self.task))
            self._shared = self.client.submit(cloudpickle.loads, shared.payload, pure=False)
        workers = max(1, sum(self.client.nthreads().values()))
        first, rest = plan(chunk, workers, seconds, self.task.vectorized)
        sent = self._submit(first)
        finished = as_completed(list(sent), loop=self.client.loop)
        try:
            while sent:
                batch = finished.next_batch()
                good = [future for future in batch if future.status == "finished"]
                for future, result in zip(good, self.client.gather(good), strict=True):
                    outcomes = _unpacked(result)
                    seconds = seconds or float(np.mean(outcomes.seconds))
                    yield sent.pop(future), outcomes
                for future in set(batch) - set(good):
                    if future.status in ("pending", "lost"):  # with its worker, so it is done again
                        finished.add(future)
                        continue
                    part, error = sent.pop(future), future.exception()
                    if type(error).__name__ != "KilledWorker":
                        raise unusable(self.executor, error) from error
                    if len(part) == 1:
                        yield part, died(self.task, f"KilledWorker: {error}")
                        continue
                    again = self._submit(part.pieces(1))
                    sent |= again
                    finished.update(again)
                if len(rest) and not sent:
                    size = chunk_size(len(rest), workers, seconds, False)
                    sent, rest = self._submit(rest.pieces(size)), rest.part(0, 0)
                    finished.update(sent)
        finally:
            if sent:
                self.client.cancel(list(sent))

    def _submit(self, chunks: Sequence[Chunk]) -> dict[Any, Chunk]:
        """Send chunks, all in one message."""
        futures = self.client.map(
            call,
            [self._shared] * len(chunks),
            [part.points for part in chunks],
            [part.seeds for part in chunks],
            **self._options,
        )
        return dict(zip(futures, chunks, strict=True))


def died(task: Task, why: str) -> Outcomes:
    """Outcome of a member that took its worker down."""
    return Outcomes.failure(task.signature.n_outputs, "died", f"Its worker died. {why}", 0.0)


def unusable(executor: Any, error: BaseException) -> ExecutorError:
    """Error for workers that could not even call the function."""
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


def _is_process_pool(executor: Executor) -> bool:
    """Whether the workers are processes of this machine."""
    loky = type(executor).__name__ in ("_ReusablePoolExecutor", "ProcessPoolExecutor")
    return isinstance(executor, ProcessPoolExecutor) or (
        loky and "loky" in type(executor).__module__
    )


def dask_client(executor: Any) -> Any:
    """Client behind an executor of Dask, or None."""
    if type(executor).__module__.startswith("distributed."):
        return getattr(executor, "_client", None)
    return None


# -- travelling to other processes -----------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """How to get at an executor in another process.

    Attributes
    ----------
    kind : {"same", "threads", "dask", "foreign"}
    value : object
        What is needed to make it.
    """

    kind: str
    value: Any

    @classmethod
    def of(cls, executor: ExecutorLike) -> "Recipe":
        """Note what is needed to use an executor elsewhere."""
        if executor is None or isinstance(executor, str | int):
            return cls("same", executor)
        if isinstance(executor, ThreadPoolExecutor):
            return cls("threads", executor._max_workers)
        client = dask_client(executor)
        if client is not None:
            return cls("dask", (client.scheduler.address, client.security))
        return cls("foreign", type(executor).__name__)

    def make(self) -> ExecutorLike:
        """Executor for this process."""
        if self.kind == "threads":
            return ThreadPoolExecutor(self.value, thread_name_prefix="forward")
        if self.kind == "dask":
            from distributed import Client

            address, security = self.value
            client = Client(address, security=security, set_as_default=False)
            return client.get_executor()
        if self.kind == "foreign":
            refuse_in_daemon(f"an executor of the type {self.value}")
            raise ExecutorError(
                f"An executor of the type {self.value} cannot be used in another process than the "
                "one that made it."
            )
        return self.value
