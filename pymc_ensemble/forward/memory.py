"""Evaluations that a process remembers: no point is evaluated twice.

After sampling, PyMC asks for the outputs at the draws once more, for pointwise likelihoods, for
predictions, and for every `pm.Deterministic` of them. These points come back changed in their last
digits, as they have been through transforms; so they are also found by neighborhood.
"""

import os
import tempfile
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

FloatArray = NDArray[np.float64]

TOLERANCE = 1e-10  # relative to an input, or to its median if that is larger: rounding
LARGEST_TAIL = 256  # points that are searched one by one before the tree is built anew
MEMORY_BYTES = 2**28  # how much is remembered


class Memory:
    """Points with their outputs, the oldest of which are forgotten when they are too many.

    Parameters
    ----------
    max_bytes : int, default 2**28
        Memory for points and outputs.
    """

    def __init__(self, max_bytes: int = MEMORY_BYTES):
        self.max_bytes = max_bytes
        self._numbers: dict[bytes, int] = {}  # counted from the first that was ever added
        self._batches: deque[tuple[FloatArray, FloatArray]] = deque()
        self._starts: deque[int] = deque()  # numbers of the first points of the batches
        self._next = self._bytes = 0
        self._tree: KDTree | None = None
        self._indexed = 0  # numbers below are in the tree, or forgotten
        self._tail: list[FloatArray] = []  # points that are not
        self._scale = np.ones(1)

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, keys: Sequence[bytes], points: FloatArray, outputs: FloatArray) -> None:
        """Remember points of shape (n, d), which are `keys` as bytes, with outputs (n, K)."""
        size = points[:1].nbytes + outputs[:1].nbytes + 200
        fitting = self.max_bytes // size
        if len(keys) > fitting:
            first = len(keys) - fitting
            keys, points, outputs = keys[first:], points[first:], outputs[first:]
        if not keys:
            return
        start, self._next = self._next, self._next + len(keys)
        self._numbers.update(zip(keys, range(start, self._next), strict=True))
        self._starts.append(start)
        self._batches.append((points.copy(), outputs.copy()))
        self._tail.append(self._batches[-1][0])
        self._bytes += size * len(keys)
        if self._bytes > self.max_bytes:
            self._forget(size)

    def _forget(self, size: int) -> None:
        """Forget the oldest batches, some more than is needed."""
        while self._bytes > 0.75 * self.max_bytes and len(self._batches) > 1:
            self._starts.popleft()
            self._bytes -= size * len(self._batches.popleft()[0])
        first = self._starts[0]
        self._numbers = {key: i for key, i in self._numbers.items() if i >= first}
        self._tree, self._indexed = None, first
        self._tail = [points for points, _ in self._batches]

    def knows_any(self, keys: Sequence[bytes]) -> bool:
        """Whether there is one of these points."""
        return not self._numbers.keys().isdisjoint(keys)

    def exact(self, key: bytes) -> FloatArray | None:
        """Outputs, shape (K,), of the very same point."""
        number = self._numbers.get(key)
        return None if number is None else self._at(number)

    def _at(self, number: int) -> FloatArray:
        batch = bisect_right(self._starts, number) - 1
        return self._batches[batch][1][number - self._starts[batch]]

    def near(self, point: FloatArray) -> FloatArray | None:
        """Outputs of the nearest point that is the same up to rounding."""
        if not self._numbers or not np.isfinite(point).all():
            return None
        in_tail = self._next - self._indexed
        if self._tree is None or in_tail > max(LARGEST_TAIL, self._tree.n // 4):
            self._build()
        assert self._tree is not None
        position, best, number = self._position(point), TOLERANCE, None
        distance, i = self._tree.query(position, p=np.inf, distance_upper_bound=best)
        if np.isfinite(distance):
            best, number = float(distance), self._starts[0] + int(i)
        if self._tail:
            if len(self._tail) > 1:
                self._tail = [np.concatenate(self._tail)]
            distances = np.abs(self._position(self._tail[0]) - position).max(axis=1, initial=0.0)
            j = int(np.argmin(distances))
            if distances[j] <= best:
                number = self._indexed + j
        return None if number is None else self._at(number)

    def _position(self, points: FloatArray) -> FloatArray:
        """Coordinates in which rounding is everywhere of the same size."""
        return np.arcsinh(points / self._scale)

    def _build(self) -> None:
        """Index all points."""
        points = np.concatenate([points for points, _ in self._batches])
        scale = np.median(np.abs(points), axis=0)
        self._scale = np.where(scale > 0, scale, 1.0)
        self._tree = KDTree(self._position(points))
        self._indexed, self._tail = self._next, []


class Spill:
    """Evaluations that the processes of PyMC's chains leave to the main process.

    A temporary folder, with one file for each process. Chains live in processes of their own when
    `cores` is greater than one; what they remember ends with them.

    Parameters
    ----------
    name : str
        Name of the folder.
    """

    def __init__(self, name: str):
        self.folder = Path(tempfile.gettempdir()) / name
        self._written: dict[int, int] = {}
        self._read: dict[str, int] = {}

    def write(self, points: FloatArray, outputs: FloatArray) -> None:
        """Append a batch, unless this process has written its share."""
        size = points.nbytes + outputs.nbytes
        written = self._written.get(os.getpid(), 0)
        if written + size > MEMORY_BYTES:
            return
        self._written = {os.getpid(): written + size}
        self.folder.mkdir(mode=0o700, exist_ok=True)
        with (self.folder / str(os.getpid())).open("ab") as file:
            np.save(file, points, allow_pickle=False)
            np.save(file, outputs, allow_pickle=False)

    def read(self) -> list[tuple[FloatArray, FloatArray]]:
        """Batches that were not read before."""
        batches = []
        if not self.folder.is_dir():
            return []
        for path in sorted(self.folder.iterdir()):
            with path.open("rb") as file:
                while True:
                    file.seek(self._read.get(path.name, 0))
                    try:
                        batch = (
                            np.load(file, allow_pickle=False),
                            np.load(file, allow_pickle=False),
                        )
                    except (EOFError, ValueError):
                        break
                    batches.append(batch)
                    self._read[path.name] = file.tell()
        return batches
