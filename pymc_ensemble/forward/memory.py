"""Evaluations that a process remembers: no point is evaluated twice.

After sampling, PyMC asks for the outputs at the draws again, for pointwise likelihoods, for
predictions, and for every `pm.Deterministic` of them. Transforms have changed these points in their
last digits. So points of this package's rounds are also found up to the rounding of each input.
"""

import os
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .folders import own_folder, remove_folder
from .rounding import Rounding

FloatArray = NDArray[np.float64]

LARGEST_TAIL = 256  # points that are searched one by one before all are sorted anew
MEMORY_BYTES = 2**28  # most bytes of remembered points and outputs

Numbered = tuple[NDArray[np.int_], FloatArray]
"""Numbers of points, and the points of shape (n, d)."""


class Memory:
    """Points with their outputs. If there are too many, the oldest are forgotten.

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
        self._drawn: deque[Numbered] = deque()  # points of our own rounds
        self._sorted: tuple[int, FloatArray, Numbered] | None = None  # by one of the inputs
        self._tail: list[Numbered] = []  # what came after that was sorted

    def __len__(self) -> int:
        return len(self._numbers)

    def add(
        self, keys: Sequence[bytes], points: FloatArray, outputs: FloatArray, drawn: bool = False
    ) -> None:
        """Remember points of shape (n, d), which are `keys` as bytes, with outputs (n, K).

        Points that samplers of this package have `drawn` are also found up to rounding.
        """
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
        if drawn:
            self._drawn.append((np.arange(start, self._next), self._batches[-1][0]))
            self._tail.append(self._drawn[-1])
        self._bytes += size * len(keys)
        if self._bytes > self.max_bytes:
            self._forget(size)

    def _forget(self, size: int) -> None:
        """Forget the oldest batches, and some more than necessary."""
        while self._bytes > 0.75 * self.max_bytes and len(self._batches) > 1:
            self._starts.popleft()
            self._bytes -= size * len(self._batches.popleft()[0])
        first = self._starts[0]
        self._numbers = {key: i for key, i in self._numbers.items() if i >= first}
        while self._drawn and self._drawn[0][0][0] < first:
            self._drawn.popleft()
        self._sorted, self._tail = None, list(self._drawn)

    def knows_any(self, keys: Sequence[bytes]) -> bool:
        """Whether there is one of these points."""
        return not self._numbers.keys().isdisjoint(keys)

    def exact(self, key: bytes) -> FloatArray | None:
        """Outputs, shape (K,), of the identical point."""
        number = self._numbers.get(key)
        return None if number is None else self._at(number)

    def _at(self, number: int) -> FloatArray:
        batch = bisect_right(self._starts, number) - 1
        return self._batches[batch][1][number - self._starts[batch]]

    def near(self, point: FloatArray, rounding: Rounding) -> FloatArray | None:
        """Outputs of the nearest drawn point that is the same up to rounding."""
        tolerance = rounding.at(point)
        best, number = np.inf, None
        for numbers, points in self._candidates(point, tolerance):
            with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
                apart = np.abs(points - point)
                same = (apart <= tolerance).all(axis=1)
                if not same.any():
                    continue
                apart = np.where(apart == 0, 0.0, apart / tolerance)
                apart = apart[same].max(axis=1, initial=0.0)
            i = len(apart) - 1 - int(np.argmin(apart[::-1]))  # the last of several
            if apart[i] <= best:
                best, number = apart[i], int(numbers[same][i])
        return None if number is None else self._at(number)

    def _candidates(self, point: FloatArray, tolerance: FloatArray) -> list[Numbered]:
        """Points that may be the nearest one."""
        n_sorted = 0 if self._sorted is None else len(self._sorted[1])
        if sum(len(points) for _, points in self._tail) > max(LARGEST_TAIL, n_sorted // 4):
            self._sort()
        if len(self._tail) > 1:
            self._tail = [_joined(self._tail)]
        if self._sorted is None:
            return self._tail
        column, values, (numbers, points) = self._sorted
        first = np.searchsorted(values, point[column] - tolerance[column], "left")
        last = np.searchsorted(values, point[column] + tolerance[column], "right")
        return [(numbers[first:last], points[first:last]), *self._tail]

    def _sort(self) -> None:
        """Sort all points by the input with the most different values."""
        numbers, points = _joined(self._drawn)
        distinct = [len(np.unique(values)) for values in points.T]
        if not distinct:
            return
        column = int(np.argmax(distinct))
        order = np.argsort(points[:, column], kind="stable")
        self._sorted = (column, points[order, column], (numbers[order], points[order]))
        self._tail = []


def _joined(batches: Sequence[Numbered]) -> Numbered:
    numbers, points = zip(*batches, strict=True)
    return np.concatenate(numbers), np.concatenate(points)


class Spill:
    """Evaluations that the processes of PyMC's chains leave to the main process.

    It is a temporary folder with one file for each process. If `cores` is greater than one, chains
    run in processes of their own, and their memory ends with them.

    Parameters
    ----------
    name : str
        Name of the folder.
    """

    def __init__(self, name: str):
        self.folder = own_folder() / name
        self._written: dict[int, int] = {}
        self._read: dict[str, int] = {}

    def write(self, site: str, points: FloatArray, outputs: FloatArray, drawn: bool) -> None:
        """Append a batch, unless this process has written its share."""
        size = points.nbytes + outputs.nbytes
        written = self._written.get(os.getpid(), 0)
        if written + size > MEMORY_BYTES:
            return
        self._written = {os.getpid(): written + size}
        self.folder.mkdir(mode=0o700, exist_ok=True)
        with (self.folder / str(os.getpid())).open("ab") as file:
            for array in (np.array([site, str(int(drawn))]), points, outputs):
                np.save(file, array, allow_pickle=False)

    def read(self) -> list[tuple[str, FloatArray, FloatArray, bool]]:
        """Batches that were not read before: their sites, and whether they were drawn."""
        batches = []
        if not self.folder.is_dir():
            return []
        for path in sorted(self.folder.iterdir()):
            with path.open("rb") as file:
                while True:
                    file.seek(self._read.get(path.name, 0))
                    try:
                        (site, drawn), points, outputs = (
                            np.load(file, allow_pickle=False) for _ in range(3)
                        )
                    except (EOFError, ValueError):
                        break
                    batches.append((str(site), points, outputs, drawn == "1"))
                    self._read[path.name] = file.tell()
        return batches

    def forget(self) -> None:
        """Remove all files."""
        remove_folder(self.folder)
        self._read, self._written = {}, {}
