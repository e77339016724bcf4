"""Members evaluated by a Dask cluster."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from operator import call
from typing import Any

import cloudpickle
import numpy as np

from pymc_ensemble.forward import members
from pymc_ensemble.forward.tasks import Outcomes, Task

from .chunks import (
    Chunk,
    ExecutorError,
    _unpacked,
    chunk_size,
    died,
    not_done,
    plan,
    still_occupied,
    unusable,
)
from .processes import Pickled

RESTART_SECONDS = 60  # seconds to wait for a new worker process; then the others go on


class DaskCluster:
    """Workers of a Dask cluster.

    The rounds of several chains, each with its own client, share one cluster.

    Parameters
    ----------
    executor : distributed.cfexecutor.ClientExecutor
        Executor from ``client.get_executor()``. Its options, such as ``resources``, are respected.
    task : Task
        Task with the time-out. Dask does not kill workers, so a worker watches its own clock.
        Nothing else is called while an abandoned call goes on: its worker is restarted. Without a
        nanny, the run ends with an error.
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
        from distributed import KilledWorker, as_completed

        if self._shared is None:  # sent once to each worker, and again if it is lost
            shared = Pickled(partial(members.evaluate_to_tuple, self.task))
            self._shared = self.client.submit(cloudpickle.loads, shared.payload, pure=False)
        workers = max(1, sum(self.client.nthreads().values()))
        first, rest = plan(chunk, workers, seconds, self.task.vectorized)
        sent = self._submit(first)
        suspects: list[Chunk] = []  # members whose workers have died: Dask blames all in a worker
        alone = False  # whether a suspect is being evaluated alone
        finished = as_completed(list(sent), loop=self.client.loop)
        try:
            while sent:
                batch = {future for future in finished.next_batch() if future in sent}
                good = [future for future in sent if future.status == "finished"]
                try:
                    results = self.client.gather(good)
                except KilledWorker:  # a result was lost with its worker, and again in later trials
                    for future in batch:
                        finished.add(future)
                    continue
                occupied = []
                again: list[Chunk] = []
                for future, result in zip(good, results, strict=True):
                    outcomes, part = _unpacked(result), sent.pop(future)
                    done = len(outcomes)
                    if done:
                        seconds = seconds or float(np.mean(outcomes.seconds))
                        yield part.part(0, done), outcomes
                    if self._is_occupied(part, outcomes):
                        may_end = done > 0 or (self.task.vectorized and len(part) > 1)
                        occupied.append((self._address(future), may_end))
                    if done < len(part):
                        again += not_done(part, done, self.task.vectorized)
                for future in good:  # otherwise Dask evaluates it again if its worker ends
                    future.release()
                for address, may_end in occupied:
                    self._restart_worker(address, may_end)
                for future in batch - set(good):
                    # it was lost with its worker, so that it is done again, or has ended since
                    if future.status in ("pending", "lost", "finished"):
                        finished.add(future)
                        continue
                    part, error = sent.pop(future), future.exception()
                    if type(error).__name__ != "KilledWorker":
                        raise unusable(self.executor, error) from error
                    if len(part) > 1:
                        again += part.pieces(1)
                    elif alone or len(chunk) == 1:
                        yield part, died(self.task, f"KilledWorker: {error}")
                    else:
                        suspects.append(part)
                if again:
                    alone = False
                    new = self._submit(again)
                    sent |= new
                    finished.update(new)
                if sent:
                    continue
                alone = len(suspects) > 0
                if alone:
                    sent = self._submit([suspects.pop()])
                    finished.update(sent)
                elif len(rest):
                    size = chunk_size(len(rest), workers, seconds, False)
                    sent, rest = self._submit(rest.pieces(size)), rest.part(0, 0)
                    finished.update(sent)
        finally:
            if sent:
                self.client.cancel(list(sent))

    def _is_occupied(self, part: Chunk, outcomes: Outcomes) -> bool:
        """Whether an abandoned call goes on in a worker."""
        if self.task.timeout is None:
            return False
        return "timeout" in outcomes.statuses or len(outcomes) < len(part)

    def _address(self, future: Any) -> str | None:
        """Address of the worker that has evaluated a chunk, if it still exists."""
        return next((a for found in self.client.who_has([future]).values() for a in found), None)

    def _restart_worker(self, address: str | None, may_end: bool) -> None:
        """Go on in a new process. Or wait for the call, if it may still end."""
        if address is None:
            return
        try:
            self.client.restart_workers([address], timeout=RESTART_SECONDS)
        except ValueError as error:  # the worker has no nanny
            if not may_end:
                assert self.task.timeout is not None
                raise still_occupied(self.executor, self.task.timeout) from error
        except KeyError:  # it is gone already
            pass
        except TimeoutError as error:
            # Dask waits 5 s for the end of a killed process. A busy machine may take longer. The
            # process is started again when it has ended. Other workers go on meanwhile.
            try:
                self.client.wait_for_workers(1, timeout=RESTART_SECONDS)
            except TimeoutError:
                raise ExecutorError(
                    "The Dask cluster has lost all its workers: the last one did not come back "
                    f"within {RESTART_SECONDS} s after a call that was given up. Start a new "
                    "cluster. With `store=`, finished evaluations are not made again."
                ) from error

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


def dask_client(executor: Any) -> Any:
    """Client behind an executor of Dask, or None."""
    if type(executor).__module__.startswith("distributed."):
        return getattr(executor, "_client", None)
    return None
