"""What a forward model keeps alive in a process: workers, memory, and connections to a store."""

import atexit
import multiprocessing
import os
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import numpy as np

from pymc_ensemble.forward.workers.chunks import Backend, ExecutorLike

from .batch import as_bytes
from .containers import values_in
from .folders import remove_folder
from .memory import Memory
from .store import EvaluationStore
from .tasks import Signature
from .versions import Watch

MANY_SITES = 16  # most sites that are remembered: a loop over data sets makes one for each
MANY_BACKENDS = 4  # most backends that have workers at the same time


@dataclass
class Site:
    """Site of a call: the inputs of a function, and those that are the same for all points.

    Attributes
    ----------
    signature : Signature
    fixed : tuple of ndarray
        Values of the inputs that are the same for all points.
    mark : str
        Digest of these values.
    memory : Memory
    backend : Backend or None
        Backend that evaluates, once it is needed.
    store : EvaluationStore or None
    stored_rows : int
        Rows of the store that the memory knows.
    """

    signature: Signature
    fixed: tuple[np.ndarray, ...] = ()
    mark: str = ""
    memory: Memory = field(default_factory=Memory)
    backend: Backend | None = None
    store: EvaluationStore | None = None
    stored_rows: int = 0

    @property
    def name(self) -> str:
        """Name in all processes."""
        return blake2b(f"{self.signature} {self.mark}".encode(), digest_size=16).hexdigest()

    def close(self) -> None:
        """Stop the workers."""
        if self.backend is not None:
            self.backend.close()
        self.backend = None


def mark(signature: Signature, fixed: tuple[np.ndarray, ...]) -> str:
    """Digest of the inputs that are the same for all points. "" if there are none."""
    values = [value for form in signature.forms or () for value in values_in(form)]
    if not fixed and not values:
        return ""
    state = blake2b(repr(values).encode(errors="surrogatepass"), digest_size=8)
    for i, value in zip(signature.fixed, fixed, strict=True):
        state.update(f"{i} {value.dtype} {value.shape}".encode())
        state.update(_bits(value))
    return state.hexdigest()


class Runtime:
    """Resources of a forward model in a process: workers, memory, counts.

    Copies of a forward model (by pickling, for instance) share it within a process.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.sites: dict[tuple[Signature, str], Site] = {}
        self.marks: dict[Signature, tuple[tuple[np.ndarray, ...], str]] = {}
        self.found: dict[Signature, Signature] = {}  # those with unknown outputs, made complete
        self.stores: dict[str, EvaluationStore] = {}  # by version
        self.watch: Watch | None = None
        self.version = ""  # of the function
        self.looked = 0.0  # time of the last comparison of the function
        self.look_seconds = 0.0  # duration of a comparison
        self.spilled: dict[str, list[Any]] = {}  # evaluations of sites that are not known yet
        self.n_evaluations = 0
        self.seconds: float | None = None  # duration of an evaluation
        self.replicates: dict[bytes, int] = {}
        self.warned: set[str] = set()
        self.executor: ExecutorLike = None
        self.inherited: Runtime | None = None  # kept, as its workers must not be cleaned up here

    def inherit(self, other: "Runtime") -> None:
        """Take over the knowledge of the process that was forked, but not its workers."""
        self.inherited = other
        self.sites = {key: replace(site, backend=None) for key, site in other.sites.items()}
        self.watch, self.version, self.found = other.watch, other.version, dict(other.found)
        self.n_evaluations, self.seconds = other.n_evaluations, other.seconds

    def mark(self, signature: Signature, fixed: tuple[np.ndarray, ...]) -> str:
        """Digest of the inputs that are the same for all points, computed anew if they change."""
        known, digest = self.marks.get(signature, (None, ""))
        if known is None or not all(map(_identical, fixed, known)):
            digest = mark(signature, fixed)
            self.marks[signature] = (tuple(value.copy() for value in fixed), digest)
        return digest

    def count(self, n: int, seconds: float) -> None:
        """Count evaluations. Their duration is an average over about the last fifty."""
        self.n_evaluations += n
        weight = 1.0 if self.seconds is None else min(1.0, n / 50)
        self.seconds = (1 - weight) * (self.seconds or 0.0) + weight * seconds / n

    def site(self, signature: Signature, fixed: tuple[np.ndarray, ...]) -> Site:
        """Site of a call. If there are too many sites, the least recently used are dropped."""
        key = (signature, self.mark(signature, fixed))
        site = self.sites.pop(key, None)
        if site is None:
            site = Site(signature, fixed, key[1])
            for points, outputs, drawn in self.spilled.pop(site.name, []):
                site.memory.add(as_bytes(points), points, outputs, drawn)
        self.sites[key] = site
        others = [other for other in self.sites.values() if other.backend is not None]
        for other in others[:-MANY_BACKENDS]:
            other.close()
        while len(self.sites) > MANY_SITES:
            self.sites.pop(next(iter(self.sites))).close()
        return site

    def close(self) -> None:
        """Stop workers that were started here."""
        for site in self.sites.values():
            if self.pid == os.getpid():
                site.close()
            site.backend = None

    def forget(self) -> None:
        """Stop workers, and forget all evaluations."""
        self.close()
        self.sites = {}


def _identical(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether arrays are the same bit by bit."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return np.array_equal(_bits(one), _bits(other))


def _bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


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
        remove_folder(folder)


def _in_chain_process() -> bool:
    return multiprocessing.parent_process() is not None
