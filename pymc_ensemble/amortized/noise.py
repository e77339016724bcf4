"""Random data from forward outputs, by the likelihood."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytensor.tensor as pt
from numpy.typing import NDArray
from pytensor.graph.replace import vectorize_graph
from pytensor.graph.traversal import ancestors
from pytensor.tensor.random.type import RandomType

from pymc_ensemble.problem.graphs import inlined
from pymc_ensemble.problem.simulation import Seeded
from pymc_ensemble.problem.terms import Term

FloatArray = NDArray[np.float64]
logger = logging.getLogger("pymc_ensemble")


class Noise:
    """Draws one data set for each row of forward outputs.

    Parameters
    ----------
    terms : sequence of Term
        Likelihood terms of observed variables.

    Attributes
    ----------
    names : list of str
        Names of the observed variables.
    together : bool
        Whether all rows are drawn in one call; else they are drawn one by one.
    """

    def __init__(self, terms: Sequence[Term]):
        self.names = [term.name for term in terms]
        self._holes = [hole for term in terms for hole in term.holes]
        sizes = [int(np.prod(hole.type.shape)) for hole in self._holes]
        self._ends = np.cumsum(sizes)[:-1]
        variables = [term.variable for term in terms]
        self._one = Seeded(variables, self._holes)
        self._all = _vectorized(variables, self._holes)
        self._tried = False

    @property
    def together(self) -> bool:
        """Whether rows are drawn in one call, as far as known before the first call."""
        return self._all is not None

    def __call__(self, Z: FloatArray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw data given outputs, shape (n, K).

        Parameters
        ----------
        Z : ndarray of shape (n, K)
            Outputs without NaN.
        rng : numpy.random.Generator

        Returns
        -------
        dict of str to ndarray of shape (n, ...)
            Data by the names of the variables; NaN where a row has no distribution.
        """
        pieces = [
            np.ascontiguousarray(part).reshape(len(Z), *hole.type.shape).astype(hole.type.dtype)
            for part, hole in zip(np.split(Z, self._ends, axis=1), self._holes, strict=True)
        ]
        before = rng.bit_generator.state
        if self._all is not None:
            try:
                drawn = self._all(rng, *pieces)
                if all(len(values) == len(Z) for values in drawn):
                    return dict(zip(self.names, drawn, strict=True))
                self._all = None
            except Exception as error:
                logger.debug("Data are drawn row by row, as together they fail: %r", error)
            rng.bit_generator.state = before
        return dict(zip(self.names, self._rows(pieces, len(Z), rng), strict=True))

    def _rows(
        self, pieces: Sequence[np.ndarray], n: int, rng: np.random.Generator
    ) -> list[np.ndarray]:
        rows: list[list[np.ndarray] | None] = []
        for k in range(n):
            try:
                rows.append(self._one(rng, *(np.asarray(piece[k]) for piece in pieces)))
            except Exception as error:
                logger.debug("Data cannot be drawn: %r", error)
                rows.append(None)
        return stacked(rows, [v.type.shape for v in self._one.outputs])


def stacked(
    rows: Sequence[Sequence[np.ndarray] | None], shapes: Sequence[tuple[int | None, ...]]
) -> list[np.ndarray]:
    """Stack rows of arrays. Rows that are None become NaN, in floating point."""
    good = next((row for row in rows if row is not None), None)
    if good is None:
        return [np.full((len(rows), *(m or 0 for m in shape)), np.nan) for shape in shapes]
    failed = [np.full(np.shape(draw), np.nan) for draw in good]
    return [np.stack(column) for column in zip(*(row or failed for row in rows), strict=True)]


def _vectorized(variables: Sequence[Any], holes: Sequence[Any]) -> Seeded | None:
    """Draws for many rows of outputs at once, if each random number depends on its row."""
    batch = [pt.tensor(v.name, dtype=v.type.dtype, shape=(None, *v.type.shape)) for v in holes]
    try:
        graphs: list[Any] = inlined(variables)
        for node in {v.owner for v in ancestors(graphs) if v.owner is not None}:
            random = any(isinstance(v.type, RandomType) for v in node.inputs)
            if random and not set(holes) & set(ancestors(node.inputs)):
                return None  # one number for all rows
        batched: list[Any] = vectorize_graph(graphs, dict(zip(holes, batch, strict=True)))
        return Seeded(batched, batch)
    except Exception as error:
        logger.debug("Data cannot be drawn for many outputs at once: %r", error)
        return None
