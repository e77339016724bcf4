"""Worker processes of this package."""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np

from pymc_ensemble.forward import calls, containers, members, numbers, programs, tasks
from pymc_ensemble.forward.calls import short_traceback
from pymc_ensemble.forward.folders import new_folder, remove_folder, use_folder
from pymc_ensemble.forward.members import evaluate, read_diary
from pymc_ensemble.forward.tasks import Outcomes, Task

from .chunks import PATIENCE, Chunk, ExecutorError, chunk_size, plan

WATCH_SECONDS = 0.5  # interval at which a worker checks that its parent process is alive
LONGEST_WAIT = 3600.0  # seconds; poll(2) takes at most 24 days
NAME = "pymc_ensemble worker"
DEAD_STARTS = 3  # workers in a row that end before they can begin: more starts do not help
KILLED_STARTS = 30  # the same if they are killed: three happened by chance if starts are slow
KILLED = (-9, -15)  # exit codes of processes that are killed from outside


def start_method() -> str:
    """Start method of workers. Forked ones need no pickling and no `if __name__ == "__main__"`.

    A fork may copy locks that JAX's threads hold. These threads start with JAX's first computation.
    Importing JAX does no harm, as ArviZ does if it is installed.
    """
    jax = sys.modules.get("jax._src.xla_bridge")
    computes = getattr(jax, "backends_are_initialized", lambda: jax is not None)()
    return "fork" if sys.platform == "linux" and not computes else "spawn"


BY_VALUE = (members, tasks, calls, containers, numbers)  # modules that workers need


class Pickled:
    """An object that any pickler can send, also with functions without a name.

    Parameters
    ----------
    value : object
    everything : bool, default True
        Whether to include the modules that workers need, for workers without the package.
    """

    def __init__(self, value: Any, everything: bool = True):
        if everything:
            for module in BY_VALUE:
                cloudpickle.register_pickle_by_value(module)
        try:
            self.payload = cloudpickle.dumps(value)
        except Exception as error:
            raise ExecutorError(
                f"The forward model cannot be sent to the workers: {error!r}. The function, or "
                "something that it refers to, cannot be pickled. Create that inside the function."
            ) from error
        finally:
            if everything:
                for module in BY_VALUE:
                    cloudpickle.unregister_pickle_by_value(module)

    def __reduce__(self) -> tuple[Callable, tuple[bytes]]:
        return cloudpickle.loads, (self.payload,)

    def __call__(self) -> None:
        """Do nothing. Some executors check that they got a callable."""


# -- in the worker -------------------------------------------------------------------------------


def _work(connection: Connection, task: Task, parent: int, groups: Path) -> None:
    """Evaluate one chunk after the other, until this process is killed."""
    programs.note_groups_in(groups)
    use_folder(groups.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # interrupts are for the parent
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if os.name == "posix":
        os.setsid()  # processes that are started here are killed with this one, as a group
    threading.Thread(target=_end_with, args=(parent, groups), daemon=True, name="watch").start()
    while True:
        try:
            arguments = connection.recv()
        except EOFError:
            return
        connection.send("begun")
        try:
            result: Outcomes | BaseException = evaluate(task, *arguments)
        except BaseException as error:  # members do not raise errors: this comes from the store
            result = error
        for stream in (sys.stdout, sys.stderr):  # a killed process does not flush
            with suppress(Exception):
                stream.flush()
        connection.send(_sendable(result) if isinstance(result, BaseException) else result)


def _sendable(error: BaseException) -> BaseException:
    """An exception that survives pickling: itself, or its message."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return ExecutorError(short_traceback(error))
    return error


def _end_with(parent: int, groups: Path) -> None:
    """End this process, and all that it has started, when its parent is gone."""
    if os.name == "posix":
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        programs.kill_groups(groups)
        os.killpg(os.getpgrp(), signal.SIGKILL)
    process = multiprocessing.parent_process()
    if process is not None:
        process.join()
    os._exit(1)


# -- in the parent -------------------------------------------------------------------------------


class Worker:
    """A process that evaluates chunks, one at a time.

    Attributes
    ----------
    ready : bool
        Whether it has ever begun a chunk.
    """

    def __init__(self, context: Any, task: Any, groups: Path):
        self.connection, theirs = context.Pipe()
        arguments = (theirs, task, os.getpid(), groups)
        self.process = context.Process(target=_work, args=arguments, name=NAME, daemon=False)
        self.groups = groups
        self.ready = False
        with _children_are_allowed():
            self.process.start()
        theirs.close()

    def kill(self) -> int | None:
        """End the process with all that it has started. Returns its exit code."""
        pid = self.process.pid
        assert pid is not None
        if os.name == "posix":  # before the process is reaped, as its number may be used again then
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        programs.kill_groups(self.groups)
        self.process.kill()
        self.process.join()
        code = self.process.exitcode
        self.process.close()
        self.connection.close()
        return code


@contextmanager
def _children_are_allowed() -> Iterator[None]:
    """Let a chain process of PyMC start a worker, which ends with it."""
    this = multiprocessing.current_process()
    was = this.daemon
    if was:
        this.daemon = False
    try:
        yield
    finally:
        if was:
            this.daemon = True


@dataclass
class Sent:
    """A chunk that was sent to a worker.

    Attributes
    ----------
    chunk : Chunk
    diary : Path or None
        File in which the worker notes finished members.
    begun : float or None
        Time (`time.monotonic`) when the worker began.
    limit : float or None
        Seconds after which it is killed.
    """

    chunk: Chunk
    diary: Path | None
    limit: float | None
    begun: float | None = None

    @property
    def left(self) -> float:
        """Seconds until the worker is killed."""
        if self.limit is None or self.begun is None:
            return np.inf
        return self.begun + self.limit - time.monotonic()


class Processes:
    """Worker processes of this package, which are killed when a member takes too long.

    Each has its own pipe and shares nothing with the others. If something happens to a worker, it
    is known at once, and does not touch the others.

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
        self.workers, self.timeout, self.task = workers, timeout, task
        method = start_method()
        self.context: Any = multiprocessing.get_context(method)
        self._sent_task = task if method == "fork" else Pickled(task, everything=False)
        self._folder = new_folder("workers")
        self._idle: list[Worker] = []
        self._started: set[Worker] = set()
        self._dead_starts = 0
        self._number = 0
        self._lock = threading.Lock()  # one batch after the other
        self._end = Finalize(self, _end, args=(self._started, self._folder), exitpriority=100)

    def close(self) -> None:
        """End the workers."""
        self._end()

    def run(self, chunk: Chunk, seconds: float | None) -> Iterator[tuple[Chunk, Outcomes]]:
        """Evaluate members in the worker processes."""
        vectorized = self.task.vectorized
        first, rest = plan(chunk, self.workers, seconds, vectorized)
        waiting = deque(first)
        busy: dict[Worker, Sent] = {}
        with self._lock:
            try:
                while waiting or busy or len(rest):
                    if not waiting and not busy:
                        size = chunk_size(len(rest), self.workers, seconds, False)
                        waiting.extend(rest.pieces(size))
                        rest = rest.part(0, 0)
                    while waiting and len(busy) < self.workers:
                        worker, sent = self._send(waiting.popleft())
                        busy[worker] = sent
                    for worker in _heard_of(busy):
                        for part, outcomes in self._take(worker, busy, waiting):
                            seconds = (
                                float(np.mean(outcomes.seconds)) if seconds is None else seconds
                            )
                            yield part, outcomes
            finally:
                for worker in busy:
                    self._kill(worker)

    def _send(self, chunk: Chunk) -> tuple[Worker, Sent]:
        """Send a chunk to a living worker."""
        self._number += 1
        single, vectorized = len(chunk) == 1, self.task.vectorized
        diary = None if single else self._folder / str(self._number)
        patience = None if vectorized else PATIENCE
        arguments = (chunk.points, chunk.seeds, chunk.keys, diary and str(diary), patience)
        limit = self.timeout
        if limit is not None and not single and not vectorized:
            limit += PATIENCE
        while True:
            if self._idle:
                worker = self._idle.pop()
            else:
                groups = self._folder / f"groups-{self._number}"
                worker = Worker(self.context, self._sent_task, groups)
                self._started.add(worker)
            try:
                worker.connection.send(arguments)
            except OSError:  # the worker was killed while it was idle
                self._lose(worker)
                continue
            return worker, Sent(chunk, diary, limit)

    def _take(
        self, worker: Worker, busy: dict[Worker, Sent], waiting: deque[Chunk]
    ) -> Iterator[tuple[Chunk, Outcomes]]:
        """Read from a worker, or give it up. Members that it has not reached wait again."""
        sent = busy[worker]
        chunk = sent.chunk
        ended = bool(wait([worker.process.sentinel], 0))  # then all its messages are here
        try:
            message = worker.connection.recv() if worker.connection.poll() else None
        except (EOFError, OSError):
            message = None
        if isinstance(message, str):
            sent.begun, worker.ready, self._dead_starts = time.monotonic(), True, 0
            return
        timed_out = message is None and not ended and sent.left <= 0
        if message is None and not ended and not timed_out and not worker.connection.poll():
            return
        del busy[worker]
        if isinstance(message, Outcomes):
            self._idle.append(worker)
            done = len(message)
            if done < len(chunk):
                waiting.append(chunk.part(done, len(chunk)))
            yield chunk.part(0, done), message
        elif isinstance(message, BaseException):
            self._idle.append(worker)
            raise message
        elif timed_out:
            self._kill(worker)
            reason = f"It took more than timeout={self.timeout:g} s, and its process was killed."
            yield from self._lost(sent, waiting, "timeout", reason, float(self.timeout or 0))
        elif sent.begun is None:  # it has never seen the chunk
            waiting.appendleft(chunk)
            self._lose(worker)
        else:
            reason = f"Its worker process died with exit code {self._kill(worker)}."
            yield from self._lost(sent, waiting, "died", reason, 0.0)
        if sent.diary is not None:
            sent.diary.unlink(missing_ok=True)

    def _lost(
        self, sent: Sent, waiting: deque[Chunk], status: str, reason: str, seconds: float
    ) -> Iterator[tuple[Chunk, Outcomes]]:
        """Members of a chunk whose worker is gone. The first one not in the diary is blamed."""
        chunk = sent.chunk
        finished = [] if sent.diary is None else read_diary(str(sent.diary)) or []
        for i, outcomes in enumerate(finished):
            yield chunk.part(i, i + 1), outcomes
        rest = chunk.part(len(finished), len(chunk))
        if self.task.vectorized and len(rest) > 1:
            waiting.extend(rest.pieces(1))
            return
        if len(rest):
            n_outputs = self.task.signature.n_outputs
            yield rest.part(0, 1), Outcomes.failure(n_outputs, status, reason, seconds)
        if len(rest) > 1:
            waiting.append(rest.part(1, len(rest)))

    def _kill(self, worker: Worker) -> int | None:
        self._started.discard(worker)
        return worker.kill()

    def _lose(self, worker: Worker) -> None:
        """Drop a worker that ended while idle, and check whether workers can begin at all."""
        ready, code = worker.ready, self._kill(worker)
        self._dead_starts += not ready
        killed = code in KILLED
        if self._dead_starts >= (KILLED_STARTS if killed else DEAD_STARTS):
            self._dead_starts = 0
            what = f"Worker processes end, with exit code {code}, before they can begin. "
            if killed:
                raise ExecutorError(
                    f"{what}Perhaps the system kills them because memory is short. Use fewer "
                    "workers."
                )
            raise ExecutorError(
                f'{what}If workers are not forked, a script needs `if __name__ == "__main__":` '
                "around its code, and workers must be able to import the function and all that it "
                "refers to."
            )


def _end(started: set[Worker], folder: Path) -> None:
    while started:
        started.pop().kill()
    remove_folder(folder)


def _heard_of(busy: dict[Worker, Sent]) -> list[Worker]:
    """Wait for workers that have sent something, have ended, or have used up their time."""
    left = min(sent.left for sent in busy.values())
    sources = {worker.connection: worker for worker in busy}
    sources |= {worker.process.sentinel: worker for worker in busy}
    found = {sources[ready] for ready in wait(list(sources), min(max(left, 0.0), LONGEST_WAIT))}
    return [worker for worker, sent in busy.items() if worker in found or sent.left <= 0]
