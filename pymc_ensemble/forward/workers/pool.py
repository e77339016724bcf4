"""Executors that a user hands over."""

import logging
import shutil
import sys
import tempfile
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
from pymc_ensemble.forward.members import Outcomes, Task, evaluate, read_diary

from .chunks import (
    Chunk,
    ExecutorError,
    _unpacked,
    available_cores,
    chunk_size,
    died,
    plan,
    refuse_in_daemon,
    unusable,
)
from .processes import Pickled

logger = logging.getLogger("pymc_ensemble")


def _thread_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(32, available_cores() + 4), thread_name_prefix="forward")


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


def _is_process_pool(executor: Executor) -> bool:
    """Whether the workers are processes of this machine."""
    loky = type(executor).__name__ in ("_ReusablePoolExecutor", "ProcessPoolExecutor")
    return isinstance(executor, ProcessPoolExecutor) or (
        loky and "loky" in type(executor).__module__
    )
