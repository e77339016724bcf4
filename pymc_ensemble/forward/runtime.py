"""What a forward model keeps alive in a process: workers, memory, and the connection to a store."""

import atexit
import multiprocessing
import os
import shutil
from typing import Any

from pymc_ensemble.forward.workers.chunks import Backend, ExecutorLike

from .members import Signature
from .memory import Memory
from .store import EvaluationStore


class Runtime:
    """What a process holds for a forward model: workers, memory, counts.

    Copies of a forward model (by pickling, for instance) share it within a process.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.memories: dict[Signature, Memory] = {}
        self.backends: dict[Signature, Backend] = {}
        self.found: dict[Signature, Signature] = {}  # those with unknown outputs, made complete
        self.store: EvaluationStore | None = None
        self.stored_rows = 0  # of the store, that the memory knows
        self.n_evaluations = 0
        self.seconds: float | None = None  # what an evaluation takes
        self.replicates: dict[bytes, int] = {}
        self.warned: set[str] = set()
        self.executor: ExecutorLike = None
        self.inherited: Runtime | None = None  # kept, as its workers must not be cleaned up here

    def count(self, n: int, seconds: float) -> None:
        """Take note of evaluations; what an evaluation takes follows the last fifty or so."""
        self.n_evaluations += n
        weight = 1.0 if self.seconds is None else min(1.0, n / 50)
        self.seconds = (1 - weight) * (self.seconds or 0.0) + weight * seconds / n

    def close(self) -> None:
        """Stop workers that were started here."""
        if self.pid == os.getpid():
            for workers in self.backends.values():
                workers.close()
        self.backends = {}


_runtimes: dict[str, Runtime] = {}


@atexit.register
def _close_all() -> None:
    for runtime in _runtimes.values():
        runtime.close()


def _forget(token: str, pid: int, folder: Any) -> None:
    runtime = _runtimes.pop(token, None)
    if os.getpid() == pid:
        if runtime is not None:
            runtime.close()
        shutil.rmtree(folder, ignore_errors=True)


def _in_chain_process() -> bool:
    return multiprocessing.parent_process() is not None
