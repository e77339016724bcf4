"""One batch of points of a forward model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pymc_ensemble.forward.workers.chunks import Chunk

from .store import Key
from .tasks import Outcomes, Seed, Signature

FloatArray = NDArray[np.float64]


@dataclass
class Batch:
    """Points of a batch, with their outputs as far as they are known.

    Attributes
    ----------
    signature : Signature
    points : ndarray of shape (n, d)
    keys : list of bytes
        The points, as keys of dictionaries.
    seeds : list of Seed or None
        Seeds of a stochastic function.
    replicates : list of str
        Names of the replicates in a store.
    outputs : ndarray of shape (n, K)
    reasons : dict of int to str
        Rows that failed, with the reasons.
    """

    signature: Signature
    points: FloatArray
    keys: list[bytes]
    seeds: list[Seed] | None
    replicates: list[str]
    outputs: FloatArray
    reasons: dict[int, str] = field(default_factory=dict)

    def finite_rows(self) -> Sequence[int]:
        """Rows with finite inputs. The others fail."""
        finite = np.isfinite(self.points)
        if finite.all():
            return range(len(self.points))
        good = finite.all(axis=1)
        ends = np.cumsum(self.signature.sizes)
        for i in np.flatnonzero(~good).tolist():
            first = np.flatnonzero(~finite[i])[0]
            at = self.signature.varying[int(np.searchsorted(ends, first, "right"))]
            name = self.signature.names[at]
            self.fill(i, np.nan, f"The input `{name}` is not finite: {self.points[i, first]}.")
        return np.flatnonzero(good).tolist()

    def unique_rows(self, rows: Sequence[int]) -> tuple[Sequence[int], dict[int, int]]:
        """Rows without repetitions, and the repetitions with their originals."""
        if len(set(self.keys)) == len(self.keys):
            return rows, {}
        first: dict[bytes, int] = {}
        repeated = {i: j for i in rows if (j := first.setdefault(self.keys[i], i)) != i}
        return list(first.values()), repeated

    def chunk(self, rows: Sequence[int], keys: list[Key] | None, attempt: int) -> Chunk:
        """Chunk of some rows, for the workers."""
        seeds = None
        if self.seeds is not None:
            again = (attempt,) if attempt else ()
            seeds = [(self.seeds[i][0], (*self.seeds[i][1], *again)) for i in rows]
        numbers = np.array(rows)
        if len(rows) == len(self.points):
            return Chunk(numbers, self.points, seeds, keys, self.outputs)
        return Chunk(numbers, self.points[numbers], seeds, keys)

    def take(self, rows: NDArray[np.int_], outcomes: Outcomes) -> None:
        """Fill in outcomes of some rows."""
        if outcomes.outputs is not self.outputs:
            self.outputs[rows] = outcomes.outputs
        if self.reasons or outcomes.reasons:
            for j, i in enumerate(rows.tolist()):
                self.reasons.pop(i, None)
                if j in outcomes.reasons:
                    self.reasons[i] = outcomes.reasons[j]

    def fill(self, row: int, outputs: Any, reason: str | None) -> None:
        """Fill in one row. It failed if there is a reason."""
        self.outputs[row] = outputs
        self.reasons.pop(row, None)
        if reason:
            self.reasons[row] = reason

    def recall(self, row: int, known: FloatArray | None) -> bool:
        """Fill in known outputs, if there are any. Return whether there are."""
        if known is not None:
            self.outputs[row] = known
        return known is not None


def as_bytes(points: FloatArray) -> list[bytes]:
    """Each point as bytes; minus zero is zero."""
    points = np.ascontiguousarray(points + 0.0)
    if not points.shape[1]:
        return [b""] * len(points)
    return points.view(f"V{8 * points.shape[1]}").ravel().tolist()
