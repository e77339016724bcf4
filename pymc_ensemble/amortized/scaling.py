"""Data for networks: transformed, standardized, without constant entries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pymc_ensemble.log import logger
from pymc_ensemble.problem.checks import quoted

FloatArray = NDArray[np.float64]

COUNTS, POSITIVE, UNIT, REAL = "counts", "positive", "unit", "real"
SMALLEST = 1e-12  # smallest spread, relative to the size, of an entry that is not constant


def told_by_numbers(values: np.ndarray) -> str:
    """Support of simulated values, if no distribution determines it."""
    if not (values >= 0).all():
        return REAL
    if (values == np.round(values)).all():
        return COUNTS
    return POSITIVE if (values > 0).all() else REAL


@dataclass(frozen=True)
class Scaling:
    """Scaling of data to the inputs of networks.

    Attributes
    ----------
    names : tuple of str
        Observed variables, in their order.
    shapes : tuple of tuple of int
    kinds : tuple of str
        Support of each variable: counts get a square root, positive values a logarithm, and shares
        a logit.
    constant : ndarray of shape (K + c,)
        Values of entries that are the same in all simulations; NaN for the other K entries.
    center, scale : ndarray of shape (K,)
    lowest : ndarray of shape (K + c,)
        Smallest simulated values.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    kinds: tuple[str, ...]
    constant: FloatArray
    center: FloatArray
    scale: FloatArray
    lowest: FloatArray

    @classmethod
    def of(cls, data: Mapping[str, np.ndarray], kinds: Mapping[str, str | None]) -> "Scaling":
        """Scaling from simulations, each of shape (n, ...). For a kind of None the numbers decide.

        Raises
        ------
        ValueError
            If all data are the same in all simulations.
        """
        names = tuple(data)
        shapes = tuple(values.shape[1:] for values in data.values())
        told = tuple(kinds[name] or told_by_numbers(data[name]) for name in names)
        flat = _flat(data, names)
        spread = np.ptp(flat, axis=0)
        same = spread <= SMALLEST * np.maximum(np.abs(flat).max(0), 1.0)
        if same.all():
            raise ValueError(
                f"{quoted(names)}: the values are the same in all simulations, so they say "
                "nothing about the parameters. Check that the data depend on the parameters."
            )
        first = cls(
            names,
            shapes,
            told,
            np.where(same, flat[0], np.nan),
            np.zeros(int((~same).sum())),
            np.ones(int((~same).sum())),
            flat.min(0),
        )
        if same.any():
            logger.info(
                f"{int(same.sum())} of {same.size} data are the same in all simulations, such as "
                f"{first.labels()[int(np.flatnonzero(same)[0])]}. They are left out."
            )
        stable = first(data)
        sd = stable.std(0)
        return cls(
            names,
            shapes,
            told,
            first.constant,
            stable.mean(0),
            np.where(sd > 0, sd, 1.0),
            first.lowest,
        )

    @property
    def size(self) -> int:
        """Number K of entries that vary."""
        return len(self.center)

    def labels(self) -> list[str]:
        """Labels of all data."""
        return [
            f"{name}[{','.join(map(str, index))}]" if shape else name
            for name, shape in zip(self.names, self.shapes, strict=True)
            for index in np.ndindex(*shape)
        ]

    def __call__(self, data: Mapping[str, np.ndarray]) -> FloatArray:
        """Standardized data, shape (n, K)."""
        flat = np.maximum(_flat(data, self.names), self._floor())
        columns, start = [], 0
        for shape, kind in zip(self.shapes, self.kinds, strict=True):
            size = int(np.prod(shape))
            values = flat[:, start : start + size]
            if kind == COUNTS:
                values = np.sqrt(values + 3 / 8)  # Anscombe's: a variance of 1/4 for Poisson counts
            elif kind == POSITIVE:
                values = np.log(values)
            elif kind == UNIT:
                values = np.clip(values, 1e-9, 1 - 1e-9)
                values = np.log(values) - np.log1p(-values)
            columns.append(values)
            start += size
        kept = np.concatenate(columns, axis=1)[:, np.isnan(self.constant)]
        return (kept - self.center) / self.scale

    def impossible(self, data: Mapping[str, np.ndarray]) -> NDArray[np.bool_]:
        """Whether data, each of shape (n, ...), have values that are impossible in simulations."""
        flat = _flat(data, self.names)
        other = ~np.isnan(self.constant) & ~np.isclose(flat, self.constant)
        kinds = np.repeat(self.kinds, [int(np.prod(shape)) for shape in self.shapes])
        below = (flat < 0) & (kinds == COUNTS) | (flat <= 0) & (kinds == POSITIVE)
        outside = ((flat < 0) | (flat > 1)) & (kinds == UNIT)
        return (other | below | outside).any(1)

    def _floor(self) -> FloatArray:
        """Lower bounds that keep roots and logarithms of other data finite."""
        kinds = np.repeat(self.kinds, [int(np.prod(shape)) for shape in self.shapes])
        floor = np.full(len(kinds), -np.inf)
        floor[kinds == COUNTS] = 0.0
        # a tenth of the least: logarithms of other data stay near those of the simulations
        floor[kinds == POSITIVE] = 0.1 * self.lowest[kinds == POSITIVE]
        return floor

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays to be saved."""
        return {name: getattr(self, name) for name in ("constant", "center", "scale", "lowest")}

    def words(self) -> dict[str, Any]:
        """All other values, to be saved as text."""
        return {"names": self.names, "shapes": self.shapes, "kinds": self.kinds}

    @classmethod
    def restored(cls, arrays: Mapping[str, np.ndarray], words: Mapping[str, Any]) -> "Scaling":
        """Restore saved values."""
        shapes = tuple(tuple(shape) for shape in words["shapes"])
        return cls(tuple(words["names"]), shapes, tuple(words["kinds"]), **arrays)


def _flat(data: Mapping[str, np.ndarray], names: Sequence[str]) -> FloatArray:
    columns = [np.asarray(data[name], dtype=float) for name in names]
    return np.concatenate([values.reshape(len(values), -1) for values in columns], axis=1)
