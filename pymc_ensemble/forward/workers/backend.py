"""Choice of the workers for a batch: this process, threads, processes, or a cluster."""

import logging
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pymc_ensemble.forward.tasks import Task

from .chunks import (
    Backend,
    ExecutorError,
    ExecutorLike,
    Serial,
    available_cores,
    available_threads,
    refuse_in_daemon,
)
from .dask import DaskCluster, dask_client
from .pool import Pool, size_of_pool
from .processes import Processes

FloatArray = NDArray[np.float64]
logger = logging.getLogger("pymc_ensemble")


def backend(executor: ExecutorLike, task: Task, timeout: float | None) -> Backend:
    """Choose the backend for the user's `executor`.

    A thread cannot be stopped, and after its time-out it would disturb other calls. So with a
    time-out there are processes instead of threads, as many.
    """
    if executor is None:
        return Serial(task) if timeout is None else Processes(1, task, timeout)
    if executor == "threads":
        if timeout is None:
            pool = ThreadPoolExecutor(available_threads(), thread_name_prefix="forward")
            return Pool(pool, task, owned=True)
        return Processes(available_threads(), task, timeout)
    if isinstance(executor, ThreadPoolExecutor) and timeout is not None:
        return Processes(executor._max_workers, task, timeout)
    if executor == "processes" or (isinstance(executor, int) and not isinstance(executor, bool)):
        refuse_in_daemon("worker processes")
        workers = executor if isinstance(executor, int) else available_cores()
        return Processes(workers, task, timeout)
    if not isinstance(executor, Executor):
        raise TypeError(f"executor={executor!r} is no executor. {EXECUTORS}")
    if dask_client(executor) is not None:
        return DaskCluster(executor, replace(task, timeout=timeout))
    return Pool(executor, replace(task, timeout=timeout), owned=False)


def number_of_workers(executor: ExecutorLike) -> int:
    """Number of evaluations at the same time, as far as it is known."""
    if executor is None:
        return 1
    if isinstance(executor, int):
        return executor
    if isinstance(executor, str):
        return available_cores()
    client = dask_client(executor)
    if client is not None:
        return max(1, sum(client.nthreads().values()))
    return size_of_pool(executor)


EXECUTORS = (
    "Give 'threads', 'processes', a number of processes, or an object with the interface of "
    "`concurrent.futures.Executor`, such as `client.get_executor()` of Dask."
)


MOST_WORKERS = 10_000  # processes: the process table of one machine usually holds fewer


def check_executor(executor: Any) -> None:
    """Refuse objects that are not executors, and absurd numbers of processes."""
    named = isinstance(executor, str) and executor in ("threads", "processes")
    number = isinstance(executor, int) and not isinstance(executor, bool) and executor > 0
    if not (executor is None or named or number or isinstance(executor, Executor)):
        raise TypeError(f"executor={executor!r} is no executor. {EXECUTORS}")
    if number and executor > MOST_WORKERS:
        raise ValueError(
            f"executor={executor} is more processes than a machine can run; {MOST_WORKERS} are "
            "the most. Use executor='processes' for as many as there are cores."
        )


@dataclass(frozen=True)
class Recipe:
    """Recipe to get an executor in another process.

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
        """Recipe of an executor, for use in another process."""
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
                f"An executor of the type {self.value} works only in the process that made it. "
                "Use pm.sample(cores=1), or executor='processes'."
            )
        return self.value
