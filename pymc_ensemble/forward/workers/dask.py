"""Members evaluated by a Dask cluster."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from operator import call
from typing import Any

import cloudpickle
import numpy as np

from pymc_ensemble.forward import members
from pymc_ensemble.forward.members import Outcomes, Task

from .chunks import Chunk, _unpacked, chunk_size, died, plan, unusable
from .processes import Pickled


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


def dask_client(executor: Any) -> Any:
    """Client behind an executor of Dask, or None."""
    if type(executor).__module__.startswith("distributed."):
        return getattr(executor, "_client", None)
    return None
