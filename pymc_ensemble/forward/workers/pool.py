"""Executors from the user."""

import logging
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pymc_ensemble.forward import members
from pymc_ensemble.forward.folders import new_folder, remove_folder
from pymc_ensemble.forward.members import evaluate, read_diary
from pymc_ensemble.forward.tasks import Outcomes, Task

from .chunks import (
    Chunk,
    ExecutorError,
    _unpacked,
    available_cores,
    chunk_size,
    died,
    not_done,
    plan,
    refuse_in_daemon,
    still_occupied,
    unusable,
)
from .processes import Pickled

logger = logging.getLogger("pymc_ensemble")


class Pool:
    """Any executor with the interface of `concurrent.futures`.

    Parameters
    ----------
    executor : Executor
    task : Task
        Task with the time-out. Workers of foreign pools cannot be killed one by one, so they watch
        their own clock. Nothing else is called in a process while an abandoned call goes on there:
        the pool is built anew. If it cannot be rebuilt, the run ends with an error.
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
            self.folder = new_folder("pool")
        self._number = 0

    @property
    def workers(self) -> int:
        """Number of calls at the same time."""
        return size_of_pool(self.executor)

    def close(self) -> None:
        """Stop the executor, if it was made here."""
        if self.owned:
            self.executor.shutdown(wait=False, cancel_futures=True)
        if self.folder is not None:
            remove_folder(self.folder)

    def run(self, chunk: Chunk, seconds: float | None) -> Iterator[tuple[Chunk, Outcomes]]:
        """Evaluate members on the executor."""
        workers = self.workers
        first, rest = plan(chunk, workers, seconds, self.task.vectorized)
        waiting, alone = deque(first), deque[Chunk]()
        running: dict[Future, tuple[Chunk, Path | None]] = {}
        suspected = False  # whether a running member may have killed a worker
        occupied = False  # whether an abandoned call occupies a worker
        try:
            while waiting or running or alone or len(rest):
                if not waiting and not running and not alone:
                    waiting.extend(rest.pieces(chunk_size(len(rest), workers, seconds, False)))
                    rest = rest.part(0, 0)
                if occupied and not running:
                    occupied = False
                    self._leave_occupied()
                if not running:
                    suspected = bool(alone)
                    if suspected:  # suspects are tried alone, one at a time
                        self._submit(alone.popleft(), running)
                while waiting and not alone and not suspected and not occupied:
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
                    done = len(outcomes)
                    occupied |= self._is_occupied(sent, outcomes)
                    if done < len(sent):
                        waiting.extend(not_done(sent, done, self.task.vectorized))
                    if done:
                        seconds = float(np.mean(outcomes.seconds)) if seconds is None else seconds
                        yield sent.part(0, done), outcomes
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
            except BrokenExecutor:  # it broke while nothing was running here
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
        """Go on after a worker has died. A member is blamed only if it was running alone."""
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

    def _is_occupied(self, sent: Chunk, outcomes: Outcomes) -> bool:
        """Whether an abandoned call goes on in a worker."""
        if self.task.timeout is None:
            return False
        may_end = len(outcomes) > 0 or (self.task.vectorized and len(sent) > 1)
        if not may_end and not self._can_be_rebuilt:
            raise still_occupied(self.executor, self.task.timeout)
        return "timeout" in outcomes.statuses or len(outcomes) < len(sent)

    @property
    def _can_be_rebuilt(self) -> bool:
        return not self.threads and self.same_machine

    def _leave_occupied(self) -> None:
        """Go on in new processes, if possible. Otherwise workers wait for the call to end."""
        if self._can_be_rebuilt:
            self._rebuild("A call took too long and cannot be stopped")

    def _rebuild(self, why: str = "A worker process died") -> None:
        """Replace a pool by a new one of the same kind."""
        old: Any = self.executor
        if isinstance(self.executor, ProcessPoolExecutor):
            for process in list((old._processes or {}).values()):
                process.kill()
            old.shutdown(wait=False, cancel_futures=True)
            self.executor = ProcessPoolExecutor(
                old._max_workers,
                mp_context=old._mp_context,
                initializer=old._initializer,
                initargs=old._initargs,
            )
            self.owned = True
        elif type(old).__name__ == "_ReusablePoolExecutor":
            module = sys.modules[type(old).__module__]
            old.shutdown(wait=True, kill_workers=True)  # otherwise it may be given out again
            self.executor = module.get_reusable_executor(max_workers=old._max_workers)
        else:
            raise ExecutorError(
                f"The executor of type {type(old).__name__} is broken, as a worker died, and it "
                "cannot be rebuilt here. Use executor='processes'."
            )
        logger.warning(f"{why}. The pool of workers was built anew.")


def _is_process_pool(executor: Executor) -> bool:
    """Whether the workers are processes of this machine."""
    loky = type(executor).__name__ in ("_ReusablePoolExecutor", "ProcessPoolExecutor")
    return isinstance(executor, ProcessPoolExecutor) or (
        loky and "loky" in type(executor).__module__
    )


def size_of_pool(executor: Any) -> int:
    """Number of calls that an executor makes at the same time."""
    number = getattr(executor, "_max_workers", None)  # Python's, loky's
    if number is None:
        number = getattr(executor, "num_workers", None)  # mpi4py's
    return number or available_cores()
