"""Worker processes of our own."""

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
from pebble import ProcessExpired, ProcessPool

from pymc_ensemble.forward import containers, members, numbers
from pymc_ensemble.forward.members import Outcomes, Task, evaluate, read_diary

from .chunks import PATIENCE, Chunk, ExecutorError, chunk_size, plan, refuse_in_daemon

WATCH_SECONDS = 0.1

# forked workers need nothing pickled, and scripts no `if __name__ == "__main__"`
START_METHOD = "fork" if sys.platform == "linux" else "spawn"

BY_VALUE = (members, containers, numbers)  # what workers need of this package

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
            for module in BY_VALUE:
                cloudpickle.register_pickle_by_value(module)
        try:
            self.payload = cloudpickle.dumps(value)
        except Exception as error:
            raise ExecutorError(
                f"The forward model cannot be sent to the workers: {error!r}. It, or something "
                "that it refers to, cannot be pickled. Create that inside the function."
            ) from error
        finally:
            if everything:
                for module in BY_VALUE:
                    cloudpickle.unregister_pickle_by_value(module)

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
