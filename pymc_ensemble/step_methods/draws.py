"""Sweeps of an ensemble as draws: the whole path of one particle, then of the next."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pymc_ensemble.diagnosis.fountain import EMPTY, Fountain
from pymc_ensemble.problem.points import LayoutVariable, Point, points_of
from pymc_ensemble.samplers.ensemble import Snapshot

FloatArray = NDArray[np.float64]
Stats = dict[str, Any]
Draw = tuple[Point, list[Stats]]

# Names and types of the scalar stats, in the order of recording
STATS: dict[str, type] = {
    "lp": np.float64,
    "log_q": np.float64,
    "particle": np.int64,
    "sweep": np.int64,
    "n_evals": np.int64,
    "acceptance": np.float64,
    "proposal_lp": np.float64,
    "proposal_log_q": np.float64,
    "step_size": np.float64,
    "n_failed": np.int64,
    "converged": bool,
    "lost": bool,
    "tune": bool,
}

UNKNOWN: dict[type, Any] = {np.float64: math.nan, np.int64: -1, bool: False}
NO_STATS: Stats = {name: UNKNOWN[dtype] for name, dtype in STATS.items()}
DRAWS_AT_ONCE = 256  # draws converted to Python objects together: fast, and within a cache


def vector_stats(n_coordinates: int, proposes: bool = False) -> Stats:
    """Vector stats, with placeholders for unknown values."""
    unknown = np.full(n_coordinates, np.nan)
    stats = {"unconstrained": unknown, "made_by": EMPTY}
    return stats | {"proposal": unknown} if proposes else stats


@dataclass(frozen=True)
class Block:
    """Complete sweeps that become draws, particle by particle.

    Attributes
    ----------
    U : ndarray of shape (n, d)
        The draws: the paths of all J particles over S sweeps, one after the other; n = J S.
    stats : dict of str to ndarray of shape (n,)
        Scalar stats of the draws.
    made_by : ndarray of uint8, shape (n, PACKET)
        Facts about how the draws were made, in packets.
    proposals : ndarray of shape (n, d) or None
        Points of independent proposals, if the draws carry them.
    """

    U: FloatArray
    stats: dict[str, np.ndarray]
    made_by: NDArray[np.uint8]
    proposals: FloatArray | None = None

    @classmethod
    def of(
        cls,
        snapshots: Sequence[Snapshot],
        shared: Mapping[str, Sequence[int | float | bool]],
        facts: Fountain,
        chain: int,
        proposes: bool = False,
    ) -> "Block":
        """Join the snapshots of S sweeps.

        Parameters
        ----------
        snapshots : sequence of Snapshot
        shared : dict of str to sequence of length S
            Stats that are the same for all particles of a sweep; ``sweep`` is its number.
        facts : Fountain
            Packets of the facts that the sampler declares.
        chain : int
            Number of the chain.
        proposes : bool, default False
            Whether draws carry the points of independent proposals.
        """
        S, J = len(snapshots), len(snapshots[0].U)
        U = np.stack([snapshot.U for snapshot in snapshots], axis=1)
        unknown = np.full(J, np.nan)
        stats: dict[str, np.ndarray] = {
            name: np.stack([_told(snapshot, name, unknown) for snapshot in snapshots], 1).ravel()
            for name in ("lp", "log_q", "acceptance", "proposal_lp", "proposal_log_q")
        }
        stats |= {name: np.tile(values, J) for name, values in shared.items()}
        stats |= {"particle": np.repeat(np.arange(J), S), "tune": np.zeros(J * S, dtype=bool)}
        made_by = facts.packets(chain, stats["sweep"], stats["particle"])
        U = U.reshape(J * S, -1)
        if not proposes:
            return cls(U, stats, made_by)
        unknown = np.full(snapshots[0].U.shape, np.nan)
        points = np.stack([_told(snapshot, "proposal", unknown) for snapshot in snapshots], axis=1)
        return cls(U, stats, made_by, points.reshape(U.shape))

    @property
    def n_draws(self) -> int:
        """Number of draws."""
        return len(self.U)

    def draws(self, variables: Sequence[LayoutVariable], start: int) -> list[Draw]:
        """At most `DRAWS_AT_ONCE` draws, from number `start`, in the form that `step` returns."""
        some = slice(start, start + DRAWS_AT_ONCE)
        columns: list[list] = [self.stats[name][some].tolist() for name in STATS]
        columns += [list(self.U[some]), list(self.made_by[some])]
        stats = [  # written out, because dict(zip(STATS, row)) would take twice the time
            [
                {
                    "lp": lp,
                    "log_q": log_q,
                    "particle": particle,
                    "sweep": sweep,
                    "n_evals": n_evals,
                    "acceptance": acceptance,
                    "proposal_lp": proposal_lp,
                    "proposal_log_q": proposal_log_q,
                    "step_size": step_size,
                    "n_failed": n_failed,
                    "converged": converged,
                    "lost": lost,
                    "tune": tune,
                    "unconstrained": unconstrained,
                    "made_by": made_by,
                }
            ]
            for (
                lp,
                log_q,
                particle,
                sweep,
                n_evals,
                acceptance,
                proposal_lp,
                proposal_log_q,
                step_size,
                n_failed,
                converged,
                lost,
                tune,
                unconstrained,
                made_by,
            ) in zip(*columns, strict=True)
        ]
        if self.proposals is not None:
            for [of_draw], proposal in zip(stats, self.proposals[some], strict=True):
                of_draw["proposal"] = proposal
        return list(zip(points_of(variables, self.U[some]), stats, strict=True))


def _told(snapshot: Snapshot, name: str, unknown: FloatArray) -> FloatArray:
    """Stat of the particles of a snapshot; `unknown` if the snapshot lacks it."""
    value: FloatArray | None = getattr(snapshot, name)
    return unknown if value is None else value
