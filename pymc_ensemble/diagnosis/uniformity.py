"""Tests whether posteriors hold the truth as often as they claim: ranks must be uniform."""

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import scipy  # parts of it are loaded when they are used first
import xarray as xr
from numpy.typing import NDArray

from .simulation import Simulation

FloatArray = NDArray[np.float64]
Verdict = Literal["calibrated", "overconfident", "conservative"]

HIGHEST_DENSITY = "highest density"
BAND_SIMULATIONS = 4000
TOLD_LEVELS = (0.5, 0.9)


@dataclass(frozen=True)
class Coverage:
    """How often posteriors hold the truth, over data sets that the model itself has made.

    Attributes
    ----------
    verdict : {"calibrated", "overconfident", "conservative"}
        Whether regions hold the truth as often as they claim to, less often, or more often.
    reasons : tuple of str
        Curves that leave the confidence bands, and how far.
    finished, simulations : int
        Number of simulations that have finished, and number of all simulations.
    failures : dict of int to str
        Reasons of the others, by the number of the simulation.
    data : xarray.DataTree
        Group ``prior_sbc``: rank of the truth among the draws, as a number between 0 and 1, for
        each variable, with the dimensions ``(chain, draw, ...)`` where a draw is a simulation:
        `arviz.plot_ecdf_pit` draws it. Group ``coverage``: share of the simulations whose region of
        nominal probability ``level`` holds the truth, for each ``region`` (that of highest density,
        and the central interval of each parameter), with the confidence band (``lower``, ``upper``)
        that it stays in if the sampler is calibrated. Group ``simulations``: the probability of the
        smallest region of highest density that holds the truth (``highest_density``), cost and
        number of draws of each simulation.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    finished: int
    simulations: int
    failures: dict[int, str]
    data: xr.DataTree

    @property
    def calibrated(self) -> bool:
        """Whether nothing lies outside of the bands."""
        return self.verdict == "calibrated"

    def __str__(self) -> str:
        group = self.data["coverage"].dataset
        band = float(group.attrs["probability"])
        lines = [f"{self.verdict}, by {self.finished} of {self.simulations} simulations"]
        lines += [f"  {reason}" for reason in self.reasons]
        regions = [str(name) for name in group["region"].values]
        width = max(map(len, regions))
        for region in regions:
            found = group["coverage"].sel(region=region)
            shares = [float(found.interp(level=level)) for level in TOLD_LEVELS]
            told = ", ".join(
                f"{share:.0%} in {level:.0%}"
                for share, level in zip(shares, TOLD_LEVELS, strict=True)
            )
            lines.append(f"{region.rjust(width)}  {told}")
        lines.append(f"bands hold all curves of a calibrated sampler with probability {band:.0%}")
        if self.failures:
            k, reason = next(iter(self.failures.items()))
            lines.append(f"note: {len(self.failures)} simulations failed; number {k}: {reason}")
        return "\n".join(lines)


def require_probability(probability: Any) -> None:
    """Refuse what is no probability of bands."""
    if not isinstance(probability, float) or not 0 < probability < 1:
        raise ValueError(f"probability={probability!r} must be between 0 and 1, such as 0.95.")


def judged(
    done: dict[int, Simulation], simulations: int, failures: dict[int, str], probability: float
) -> Coverage:
    """Compare ranks and levels with the uniform law."""
    numbers = list(done)
    ranks = xr.concat([done[k].ranks for k in numbers], dim="draw")
    ranks = ranks.assign_coords(draw=numbers).expand_dims(chain=[0])
    level = np.array([done[k].highest_density for k in numbers])
    labels, columns = [], []
    for name, ranked in ranks.data_vars.items():
        array = ranked.isel(chain=0).transpose("draw", ...).to_numpy()
        for index in np.ndindex(array.shape[1:]):
            labels.append(f"{name}[{','.join(map(str, index))}]" if index else str(name))
            columns.append(array[(slice(None), *index)])
    central = [2 * np.abs(column - 0.5) for column in columns]
    n_curves = 2 * len(columns) + 1
    x, lower, upper = _band(len(numbers), 1 - (1 - probability) / n_curves)
    curves = np.array([_curve(values, x) for values in (level, *central)])
    regions = [HIGHEST_DENSITY, *labels]
    reasons, direction = [], 0.0
    for region, values, curve in zip(regions, (level, *central), curves, strict=True):
        if (deviation := _outside(curve - x, lower - x, upper - x)) is None:
            continue
        where, size = deviation
        reasons.append(
            f"{region}: regions of {x[where]:.0%} hold the truth in {curve[where]:.0%} of the "
            f"simulations ({size:+.2f})."
        )
        direction += float(np.mean(values) - 0.5)
    for label, column in zip(labels, columns, strict=True):
        curve = _curve(column, x)
        if (deviation := _outside(curve - x, lower - x, upper - x)) is None:
            continue
        where, size = deviation
        reason = (
            f"`{label}`: {curve[where]:.0%} of the ranks are below {x[where]:.2f} ({size:+.2f})"
        )
        offset = (float(column.mean()) - 0.5) / scipy.stats.uniform.std() * np.sqrt(len(column))
        if abs(offset) > 2:
            reason += f", and its draws are too {'low' if offset > 0 else 'high'}"
        reasons.append(f"{reason}.")
    verdict: Verdict = "calibrated"
    if reasons:  # a shift to one side means overconfidence, too
        verdict = "conservative" if direction < 0 else "overconfident"
    names = ("n_draws", "n_evals", "by_lp")
    told = xr.Dataset(
        {name: ("simulation", [getattr(done[k], name) for k in numbers]) for name in names}
        | {"highest_density": ("simulation", level)},
        coords={"simulation": numbers},
    )
    group = xr.Dataset(
        {
            "coverage": (("region", "level"), curves),
            "lower": ("level", lower),
            "upper": ("level", upper),
        },
        coords={"region": regions, "level": x},
        attrs={"probability": probability, "verdict": verdict},
    )
    data = xr.DataTree.from_dict({"prior_sbc": ranks, "coverage": group, "simulations": told})
    return Coverage(verdict, tuple(reasons), len(numbers), simulations, failures, data)


@cache
def _band(n: int, probability: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Levels, and the simultaneous band of the ECDF of n uniform numbers at them."""
    from arviz_stats.ecdf_utils import ecdf_pit  # takes longer to load than PyMC

    rng = np.random.default_rng(0)
    x, _, lower, upper = ecdf_pit(np.zeros(n), probability, BAND_SIMULATIONS, rng=rng)
    return x, lower, upper


def _curve(values: FloatArray, x: FloatArray) -> FloatArray:
    """ECDF of values at x."""
    return np.searchsorted(np.sort(values), x, side="right") / len(values)


def _outside(
    deviation: FloatArray, lower: FloatArray, upper: FloatArray
) -> tuple[int, float] | None:
    """Where a curve is furthest from the diagonal, and how far, if it leaves its band."""
    if ((deviation >= lower) & (deviation <= upper)).all():
        return None
    where = int(np.argmax(np.abs(deviation)))
    return where, float(deviation[where])
