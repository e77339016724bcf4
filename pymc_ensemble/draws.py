"""Sweeps of an ensemble as draws: one particle after the other, each with its whole path."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymc.blocking import DictToArrayBijection

from .samplers.ensemble import Snapshot

FloatArray = NDArray[np.float64]
Point = dict[str, np.ndarray]
Stats = dict[str, Any]

DRAWS_AT_ONCE = 512  # that become Python objects at a time


@dataclass(frozen=True)
class LayoutVariable:
    """Where one variable lies in the vector of unconstrained coordinates."""

    name: str
    where: slice
    shape: tuple[int, ...]
    dtype: np.dtype

    def values(self, U: FloatArray) -> list[np.ndarray]:
        """List of the values in the rows of `U`, shape (n, d); each an array, scalars too."""
        values = U[:, self.where].reshape(len(U), *self.shape).astype(self.dtype, copy=False)
        return list(values) if self.shape else [values[i, ...] for i in range(len(U))]


def variable_layout(point: Point, names: Sequence[str]) -> list[LayoutVariable]:
    """Variables in the order of `point`; `names` tells the order of the coordinates."""
    info = DictToArrayBijection.map({name: point[name] for name in names}).point_map_info
    ends = np.cumsum([size for _, _, size, _ in info]).tolist()
    variables = {
        name: LayoutVariable(name, slice(end - size, end), shape, dtype)
        for (name, shape, size, dtype), end in zip(info, ends, strict=True)
    }
    return [variables[name] for name in point if name in variables]


def points_of(variables: Sequence[LayoutVariable], U: FloatArray) -> list[Point]:
    """List of dicts of values by variable name, one for each row of `U`."""
    names = [variable.name for variable in variables]
    columns = zip(*(variable.values(U) for variable in variables), strict=True)
    return [dict(zip(names, values)) for values in columns]  # noqa: B905, called for each draw


@dataclass(frozen=True)
class Block:
    """Complete sweeps that wait to be handed out as draws, particle by particle.

    Attributes
    ----------
    U : ndarray of shape (J, S, d)
        Paths of the particles over S sweeps.
    lp, log_q, acceptance : ndarray of shape (J, S)
        As in `Snapshot`.
    step_size : list of float, length S
    sweep, n_evals, n_failed : list of int, length S
        Number of the sweep, and the chain's forward evaluations and failures up to it.
    converged : bool
        Whether the burn-in had passed its test.
    """

    U: FloatArray
    lp: FloatArray
    log_q: FloatArray
    acceptance: FloatArray
    step_size: list[float]
    sweep: list[int]
    n_evals: list[int]
    n_failed: list[int]
    converged: bool

    @classmethod
    def of(cls, snapshots: Sequence[Snapshot], **shared: Any) -> "Block":
        """Join the snapshots of successive sweeps; `shared` holds the other attributes."""
        paths: dict[str, Any] = {
            name: np.stack([getattr(snapshot, name) for snapshot in snapshots], axis=1)
            for name in ("U", "lp", "log_q", "acceptance")
        }
        return cls(**paths, step_size=[float(s.step_size) for s in snapshots], **shared)

    @property
    def n_draws(self) -> int:
        """Number of draws."""
        return self.lp.size

    def draws(
        self, variables: Sequence[LayoutVariable], start: int
    ) -> list[tuple[Point, list[Stats]]]:
        """Draws from number `start` on, as `step` returns them; at most those of a few particles.

        Python objects are made for some hundred draws at once: this is what a draw costs.
        """
        S = len(self.sweep)
        first = start // S
        particles = slice(first, first + max(1, DRAWS_AT_ONCE // S))
        lp, log_q, acceptance = (
            paths[particles].ravel().tolist() for paths in (self.lp, self.log_q, self.acceptance)
        )
        n = len(lp) // S
        stats = [
            {
                "lp": lp,
                "log_q": log_q,
                "particle": particle,
                "sweep": sweep,
                "n_evals": n_evals,
                "acceptance": acceptance,
                "step_size": step_size,
                "n_failed": n_failed,
                "converged": self.converged,
                "tune": False,
            }
            for lp, log_q, particle, sweep, n_evals, acceptance, step_size, n_failed in zip(
                lp,
                log_q,
                [particle for particle in range(first, first + n) for _ in range(S)],
                self.sweep * n,
                self.n_evals * n,
                acceptance,
                self.step_size * n,
                self.n_failed * n,
                strict=True,
            )
        ]
        points = points_of(variables, self.U[particles].reshape(n * S, -1))
        return [(point, [stat]) for point, stat in zip(points, stats, strict=True)][start % S :]
