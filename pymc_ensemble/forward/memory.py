"""Evaluations that a process remembers: no point is evaluated twice.

After sampling, PyMC asks for the outputs at the draws once more, for pointwise likelihoods, for
predictions, and for every `pm.Deterministic` of them. These points come back changed in their last
digits, as they have been through transforms; so they are also found by neighborhood.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

FloatArray = NDArray[np.float64]

TOLERANCE = 1e-10  # relative to the largest known value of each input: some digits of rounding
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
        self._rows: dict[bytes, tuple[FloatArray, FloatArray, str]] = {}
        self._bytes = 0
        self._clear_index()

    def _clear_index(self) -> None:
        self._tree: KDTree | None = None
        self._tree_keys: list[bytes] = []
        self._tail: list[bytes] = []
        self._scale = np.ones(1)

    def __len__(self) -> int:
        return len(self._rows)

    def add(
        self,
        keys: Sequence[bytes],
        points: FloatArray,
        outputs: FloatArray,
        reasons: dict[int, str],
    ) -> None:
        """Remember points of shape (n, d) with outputs (n, K), and why some of them failed."""
        size = points[:1].nbytes + outputs[:1].nbytes + 200
        fitting = max(0, self.max_bytes // size)
        if len(keys) > fitting:
            keys = keys[len(keys) - fitting :]
            reasons = {i - len(points) + fitting: text for i, text in reasons.items()}
            points, outputs = points[len(points) - fitting :], outputs[len(outputs) - fitting :]
            if not fitting:
                return
        points, outputs = points.copy(), outputs.copy()
        rows, tail = self._rows, self._tail
        for i, key in enumerate(keys):
            if key not in rows:
                self._bytes += size
            rows[key] = (points[i], outputs[i], reasons.get(i, ""))
        tail.extend(keys)
        if self._bytes > self.max_bytes:
            # forgetting many at a time; arrays are freed when all of their batch is forgotten
            n = 0
            while self._bytes > 0.75 * self.max_bytes and n < len(rows):
                self._bytes -= size
                n += 1
            for key in list(rows)[:n]:
                del rows[key]
            self._clear_index()
            self._tail = list(rows)

    def exact(self, key: bytes) -> tuple[FloatArray, str] | None:
        """Outputs, shape (K,), and reason of the failure, of the very same point."""
        found = self._rows.get(key)
        return None if found is None else found[1:]

    def near(self, point: FloatArray) -> tuple[FloatArray, str] | None:
        """Outputs and reason of the nearest point that is the same up to rounding."""
        if not self._rows or not np.isfinite(point).all():
            return None
        if self._tree is None or len(self._tail) > max(LARGEST_TAIL, len(self._tree_keys) // 4):
            self._build()
        if self._tree is None:
            return None
        best, key = TOLERANCE, None
        distance, i = self._tree.query(point / self._scale, p=np.inf, distance_upper_bound=best)
        if np.isfinite(distance):
            best, key = float(distance), self._tree_keys[int(i)]
        if self._tail:
            tail = np.array([self._rows[k][0] for k in self._tail])
            distances = np.abs((tail - point) / self._scale).max(axis=1, initial=0.0)
            j = int(np.argmin(distances))
            if distances[j] <= best:
                key = self._tail[j]
        return None if key is None else self._rows[key][1:]

    def _build(self) -> None:
        """Index all points."""
        keys = list(self._rows)
        points = np.array([self._rows[key][0] for key in keys])
        finite = np.isfinite(points).all(axis=1)
        keys = [key for key, good in zip(keys, finite, strict=True) if good]
        self._clear_index()
        if not keys:
            return
        scale = np.abs(points[finite]).max(axis=0, initial=0.0)
        self._scale = np.where(scale > 0, scale, 1.0)
        self._tree = KDTree(points[finite] / self._scale)
        self._tree_keys = keys


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
