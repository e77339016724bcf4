"""A function that is evaluated in batches, with workers, seeds, a memory and a store."""

import logging
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from os import PathLike
from pathlib import Path
from time import perf_counter
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from pymc_ensemble.forward.workers.backend import Recipe, backend, number_of_workers
from pymc_ensemble.forward.workers.chunks import Backend, ExecutorLike, Serial

from . import messages
from .batch import Batch, as_bytes
from .evaluation import ForwardModelError
from .memory import Spill
from .programs import ExternalProgram
from .rounding import Rounding
from .rounds import Round
from .runtime import Runtime, Site, _forget, _in_chain_process, _runtimes
from .store import EvaluationStore, Key
from .tasks import Seed, Signature, Task
from .umbridge import UMBridgeModel
from .versions import Watch

FloatArray = NDArray[np.float64]
logger = logging.getLogger("pymc_ensemble")

UNSEEDED = 0x5EED  # entropy of stochastic evaluations outside of a run
SHARE_OF_LOOKING = 0.1  # share of another step method's time for comparisons; see `_begin`


def watches_its_clock(function: Any) -> bool:
    """Whether a call ends by itself after the time-out, as for programs and services."""
    return isinstance(function, ExternalProgram | UMBridgeModel)


class Evaluator:
    """A function that is evaluated in batches.

    Parameters
    ----------
    function : callable
    vectorized : bool
    random : {"", "seed", "rng"}
        Name of the argument by which a stochastic function gets its randomness.
    executor, timeout, retries, store, version, depends_on
        See `forward_model`.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        vectorized: bool,
        random: str,
        executor: ExecutorLike,
        timeout: float | None,
        retries: int,
        store: str | PathLike | None,
        version: str | None,
        depends_on: Sequence[Path],
    ):
        self.function = function
        self.vectorized, self.random = vectorized, random
        self.executor = executor
        self.timeout, self.retries = timeout, retries
        self.store_path = store
        self._version, self._depends_on = version, depends_on
        self._told: tuple[Watch, str] | None = None  # the function where it was pickled
        self._token, self._pid = uuid4().hex, os.getpid()
        self._spill = Spill(f"pymc_ensemble-{self._token}")
        weakref.finalize(self, _forget, self._token, os.getpid(), self._spill.folder)

    @property
    def name(self) -> str:
        """Name of the function."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    def __getstate__(self) -> dict[str, Any]:
        self._begin()
        runtime = self._runtime
        told = (runtime.watch, runtime.version)
        return self.__dict__ | {"executor": Recipe.of(self.executor), "_told": told}

    @property
    def version(self) -> str:
        """Version of the function at its last use. "" without a store."""
        if self._version is not None or self.store_path is None:
            return str(self._version or "")
        if not self._runtime.version:
            self._begin()
        return self._runtime.version

    @property
    def _runtime(self) -> Runtime:
        """Runtime of the model in this process."""
        runtime = _runtimes.get(self._token)
        if runtime is not None and runtime.pid == os.getpid():
            return runtime
        inherited, runtime = runtime, Runtime()
        executor: Any = self.executor
        if self._pid != os.getpid() and not isinstance(executor, Recipe):
            executor = Recipe.of(executor)  # workers belong to one process
        runtime.executor = executor.make() if isinstance(executor, Recipe) else executor
        if inherited is not None:  # by a fork
            runtime.inherit(inherited)
        _runtimes[self._token] = runtime
        return runtime

    @property
    def n_evaluations(self) -> int:
        """Number of evaluations of this process, without those that were already known."""
        return self._runtime.n_evaluations

    @property
    def workers(self) -> int:
        """Number of evaluations at the same time."""
        return number_of_workers(self._runtime.executor)

    @property
    def store(self) -> EvaluationStore | None:
        """Evaluations on disk, if there is a store."""
        return self._store("")

    def _store(self, mark: str) -> EvaluationStore | None:
        """Evaluations for these values of the inputs that are the same for all points."""
        if self.store_path is None:
            return None
        version = f"{self.version}+{mark}" if mark else self.version
        stores = self._runtime.stores
        if version not in stores:
            stores[version] = EvaluationStore(self.store_path, version)
        return stores[version]

    def close(self) -> None:
        """Stop the workers that were started for this model. They start again when needed."""
        self._runtime.close()

    def forget(self) -> None:
        """Forget all evaluations, and stop the workers.

        Call it after changes that cannot be detected, such as those of a library outside of Python.
        Evaluations in a store stay there.
        """
        self._runtime.forget()
        if self._pid == os.getpid():
            self._spill.forget()

    # -- whether the function is the same ---------------------------------------------------------

    def _begin(self, proposal: bool = False) -> bool:
        """Compare the function with the one before. If it has changed, forget its outputs.

        Proposals of another step method come one by one. For these, at most a tenth of the time is
        spent on comparisons.
        """
        runtime, began = self._runtime, perf_counter()
        waited = began - runtime.looked
        if proposal and runtime.watch and waited * SHARE_OF_LOOKING < runtime.look_seconds:
            return False
        if runtime.watch is None:
            runtime.watch = Watch(self.function, self._depends_on)
            changed = self._compare(runtime, runtime.watch)
        elif runtime.watch.function is not self.function:  # a copy
            before, runtime.watch = runtime.watch, runtime.watch.of(self.function)
            runtime.watch.begin()
            changed = runtime.watch.differs_from(before)
        else:
            changed = runtime.watch.begin()
        runtime.looked = perf_counter()
        runtime.look_seconds = runtime.looked - began
        if runtime.watch.untold and self._version is None:
            messages.warn_of_untold(self.name, runtime.watch.untold, runtime.warned)
        if changed:
            messages.tell_of_change(self.name, changed, runtime.executor)
            self.forget()
        if self._version is None and self.store_path and (changed or not runtime.version):
            runtime.version = runtime.watch.version
        return True

    def _compare(self, runtime: Runtime, watch: Watch) -> list[str]:
        """Compare the function in this process with the one in the process it came from."""
        watch.begin()
        if self._told is None:
            return []
        theirs, version = self._told
        changed = watch.differs_from(theirs)
        if not changed:
            watch.left_out, watch.at_first = theirs.left_out, theirs.at_first
            watch.begin()
            runtime.version = version
            return []
        text = messages.of_difference(self.name, changed[0])
        if self.store_path is not None and self._version is None:
            raise ForwardModelError(text)
        logger.warning(text)
        return []

    @contextmanager
    def _calling(self, looked: bool, here: bool) -> Iterator[None]:
        """Note what the function changes itself, if it is called in this process."""
        try:
            yield
        finally:
            watch = self._runtime.watch
            if looked and here and watch is not None:
                watch.end()

    # -- evaluating -----------------------------------------------------------------------------

    @property
    def _timeout(self) -> float | None:
        """Seconds to wait for a function that does not watch its own clock."""
        return None if watches_its_clock(self.function) else self.timeout

    def _backend(self, site: Site) -> Backend:
        if site.backend is None:
            site.store = self._store(site.mark)
            record = None if site.store is None else site.store.put
            task = Task(
                self.function,
                site.signature,
                self.vectorized,
                self.random,
                record=record,
                fixed=site.fixed,
            )
            if site.store is not None:
                # check it here, not in every worker
                messages.tell_of_store(self.name, site.store)
            site.backend = backend(self._runtime.executor, task, self._timeout)
        return site.backend

    def evaluate(
        self,
        signature: Signature,
        points: FloatArray,
        this: Round | None = None,
        fixed: tuple[np.ndarray, ...] = (),
        rounding: Rounding | None = None,
        proposal: bool = False,
    ) -> tuple[FloatArray, dict[int, str]]:
        """Evaluate points, in one batch.

        Parameters
        ----------
        signature : Signature
        points : ndarray of shape (n, d)
            Inputs, one flat vector for each point.
        this : Round, optional
            The round of the batch. Without a round, a stochastic function is called once for each
            point.
        fixed : tuple of ndarray
            Inputs that are the same for all points.
        rounding : Rounding, optional
            Rounding by which earlier draws may have moved. None if points must be identical.
        proposal : bool, default False
            Whether the points are those of another step method.

        Returns
        -------
        outputs : ndarray of shape (n, K)
            Outputs, with NaN in the rows that failed.
        failures : dict of int to str
            Reasons of these failures.
        """
        looked = self._begin(proposal)
        site = self._runtime.site(signature, fixed)
        self._backend(site)  # refuse an unusable executor before anything is evaluated
        keys = as_bytes(points)
        seeds, replicates = self._randomness(keys, this)
        outputs = np.empty((len(points), signature.n_outputs))
        batch = Batch(signature, points, keys, seeds, replicates, outputs)
        new = bool(self.random) and this is not None  # a new replicate, even if the point is known
        rows = batch.finite_rows()
        repeated: dict[int, int] = {}
        if not new:
            rows, repeated = batch.unique_rows(rows)
            rows = self._recall(site, batch, rows, rounding)
        todo = rows
        for attempt in range(self.retries + 1):
            if len(todo):
                self._evaluate(site, batch, todo, attempt, this, looked)
                todo = [i for i in todo if i in batch.reasons] if batch.reasons else []
        self._remember(site, batch, rows, drawn=this is not None)
        for i, original in repeated.items():
            batch.fill(i, outputs[original], batch.reasons.get(original))
        if batch.reasons and this is None:
            messages.warn_of_failure(self.name, batch, self._runtime.warned)
        return outputs, batch.reasons

    def _remember(self, site: Site, batch: Batch, rows: Sequence[int], drawn: bool) -> None:
        """Keep evaluations for later, and for other processes."""
        keys, points, outputs = batch.keys, batch.points, batch.outputs
        rows = [i for i in rows if i not in batch.reasons] if batch.reasons else rows
        if len(rows) < len(keys):
            keys, points, outputs = [keys[i] for i in rows], points[rows], outputs[rows]
        site.memory.add(keys, points, outputs, drawn)
        if keys and _in_chain_process():
            self._spill.write(site.name, points, outputs, drawn)

    def _randomness(
        self, keys: Sequence[bytes], this: Round | None
    ) -> tuple[list[Seed] | None, list[str]]:
        """Seeds of the members, and the names of their replicates."""
        if not self.random:
            return None, [""] * len(keys)
        seeds: list[Seed] = []
        if this is not None and this.seed is not None:
            entropy, lead = this.seed.entropy, tuple(this.seed.spawn_key)
            seeds = [(entropy, (*lead, this.n_models, i)) for i in range(len(keys))]  # type: ignore[misc]
        else:
            counts = self._runtime.replicates
            for key in keys:
                replicate = counts.get(key, 0)
                counts[key] = replicate + (this is not None)
                entropy = int.from_bytes(blake2b(key, digest_size=16).digest(), "little")
                seeds.append((entropy, (UNSEEDED, replicate)))
        names = [f"{entropy}/{'.'.join(map(str, spawn))}" for entropy, spawn in seeds]
        return seeds, names

    def _recall(
        self, site: Site, batch: Batch, rows: Sequence[int], rounding: Rounding | None
    ) -> Sequence[int]:
        """Fill in remembered outputs, and return the other rows."""
        memory = site.memory
        if memory.knows_any(batch.keys):
            rows = [i for i in rows if not batch.recall(i, memory.exact(batch.keys[i]))]
        if rounding is None or not rows:
            return rows
        self._learn_from_others(site)
        return [i for i in rows if not batch.recall(i, memory.near(batch.points[i], rounding))]

    def _learn_from_others(self, site: Site) -> None:
        """Remember evaluations of other processes: chains of PyMC, and earlier runs."""
        runtime, memory = self._runtime, site.memory
        for name, points, outputs, drawn in self._spill.read():
            runtime.spilled.setdefault(name, []).append((points, outputs, drawn))
        for points, outputs, drawn in runtime.spilled.pop(site.name, []):
            memory.add(as_bytes(points), points, outputs, drawn)
        if site.store is None:
            return
        n_outputs, size = site.signature.n_outputs, sum(site.signature.sizes)
        site.stored_rows, names = site.store.keys_after(site.stored_rows)
        names = [name for name in names if memory.exact(name[0]) is None]
        names = names[-(memory.max_bytes // (8 * (n_outputs + size) + 200)) :]
        for i, outcome in site.store.get(names, n_outputs):
            key = names[i][0]
            if outcome.statuses[0] == "ok":
                memory.add([key], np.frombuffer(key)[None], outcome.outputs, drawn=True)

    def _evaluate(
        self,
        site: Site,
        batch: Batch,
        rows: Sequence[int],
        attempt: int,
        this: Round | None,
        looked: bool,
    ) -> None:
        """Fill in outputs and reasons, from the store or by calls of the function."""
        runtime, workers = self._runtime, self._backend(site)
        keys: list[Key] | None = None
        if site.store is not None:
            keys = [(batch.keys[i], batch.replicates[i], attempt) for i in rows]
            found = dict(site.store.get(keys, batch.signature.n_outputs))
            for j, outcome in found.items():
                batch.fill(rows[j], outcome.outputs[0], outcome.reasons.get(0))
            keys = [key for j, key in enumerate(keys) if j not in found]
            rows = [i for j, i in enumerate(rows) if j not in found]
        if not rows:
            return
        here = isinstance(workers, Serial) or getattr(workers, "threads", False)
        with self._calling(looked, here):
            for part, outcomes in workers.run(batch.chunk(rows, keys, attempt), runtime.seconds):
                if site.store is not None and not (workers.saves and outcomes.complete):
                    assert part.keys is not None
                    outcomes = site.store.put(part.keys, outcomes)
                batch.take(part.rows, outcomes)
                messages.warn_of_lost(self.name, outcomes, runtime.warned)
                seconds, n = float(outcomes.seconds.sum()), len(part)
                runtime.count(n, seconds)
                if this is not None:
                    this.n_calls += n
                    this.seconds += seconds
