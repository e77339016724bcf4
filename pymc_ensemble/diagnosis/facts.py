"""What a sampler declares about its draws, and how results carry it.

Nothing here is guessed from draws. The step method declares it when sampling begins. The stat
`made_by` carries it as a text (`fountain`), and readers of a result find it there.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pymc as pm
import xarray as xr
from numpy.typing import NDArray
from pytensor.graph.basic import Variable as Symbol

from pymc_ensemble.problem.extraction import flat_variables
from pymc_ensemble.problem.forward_models import estimated_likelihoods, is_stochastic
from pymc_ensemble.problem.leaves import without_leaves
from pymc_ensemble.problem.points import shapes_of
from pymc_ensemble.samplers.ensemble import Law, Origin
from pymc_ensemble.version import __version__

from .declared_transforms import ROOM, declared, inverse_of
from .fountain import BLOCK, PACKET, texts

FloatArray = NDArray[np.float64]

FORMAT = 1
STATS = ("unconstrained", "made_by")
# The draws of several runs together count as those of the first law here that one of them follows
LEAST_KNOWN: tuple[Law, ...] = (
    "inversion",
    "amortized",
    "surrogate",
    "fit",
    "smooth",
    "approximate",
    "gaussian",
    "density",
)


@dataclass(frozen=True)
class FreeVariable:
    """A free variable of a model, and its coordinates.

    Attributes
    ----------
    name, value : str
        Names of the variable and of its value variable.
    shape, coordinates : tuple of int
        Shapes of both.
    transform : dict or None
        The transform between them: ``name``, and what else defines it. ``known`` is false if this
        is not enough.
    moved : bool
        Whether the sampler moves the variable. Otherwise another step method does.
    """

    name: str
    value: str
    shape: tuple[int, ...]
    coordinates: tuple[int, ...]
    transform: dict[str, Any] | None = None
    moved: bool = True

    @classmethod
    def of(
        cls, model: pm.Model, value: Symbol, shapes: Mapping[str, tuple[int, ...]], moved: bool
    ) -> "FreeVariable":
        """Describe the variable with the value variable `value`, given the shapes of all."""
        rv = model.values_to_rvs[value]
        return cls(
            str(rv.name),
            str(value.name),
            shapes[str(rv.name)],
            shapes[str(value.name)],
            declared(model.rvs_to_transforms[rv], rv),
            moved,
        )

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return int(np.prod(self.coordinates))

    @property
    def labels(self) -> list[str]:
        """Labels of the parameters that are shown: entries, or coordinates if these are unknown."""
        if self.backward is None:
            return entries(self.value, self.coordinates)
        return entries(self.name, self.shape)

    @property
    def backward(self) -> Callable[[FloatArray], FloatArray] | None:
        """Function that gives values at coordinates, shape (n, ...), or None if not known."""
        if self.transform is None:
            return np.asarray
        return inverse_of(json.dumps(self.transform), self.coordinates)


@dataclass(frozen=True)
class Facts:
    """What a sampler has declared about its draws.

    Attributes
    ----------
    version, sampler : str
        Version of the package, and name of the step method.
    options : dict
        Its options.
    origin : Origin
        What the draws follow.
    particles : int
        Size of the ensemble.
    map : {"stochastic", "rough", None}
        What is known of the forward map, if anything.
    variables : tuple of FreeVariable
        All free variables, in the order of the coordinates in the stat `unconstrained`.
    proper : bool
        Whether the prior of each variable can be drawn from.
    likelihoods : dict
        What is known of likelihoods that are estimates, by the names of observed variables.
    """

    version: str
    sampler: str
    options: dict[str, Any]
    origin: Origin
    particles: int
    map: Literal["stochastic", "rough"] | None
    variables: tuple[FreeVariable, ...]
    proper: bool = True
    likelihoods: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: pm.Model,
        moved: Sequence[Symbol],
        sampler: str,
        options: Mapping[str, Any],
        origin: Origin,
        particles: int,
    ) -> "Facts":
        """Facts about a sampler that moves the value variables `moved`, in this order."""
        others = [value for value in model.value_vars if value not in moved]
        averages = options.get("rough") or origin.law in ("fit", "smooth")
        shapes = shapes_of(model)
        told = {name: value for name, value in options.items() if value is not None}
        return cls(
            __version__,
            sampler,
            {name: _told(value) for name, value in told.items()},
            origin,
            particles,
            "stochastic" if is_stochastic(model) else "rough" if averages else None,
            (
                *(FreeVariable.of(model, value, shapes, True) for value in moved),
                *(FreeVariable.of(model, value, shapes, False) for value in others),
            ),
            not flat_variables(model),
            estimated_likelihoods(model),
        )

    @property
    def moved(self) -> tuple[FreeVariable, ...]:
        """Variables that the sampler moves."""
        return tuple(variable for variable in self.variables if variable.moved)

    @property
    def others(self) -> tuple[FreeVariable, ...]:
        """Variables that other step methods move."""
        return tuple(variable for variable in self.variables if not variable.moved)

    def columns(self, variables: Iterable[FreeVariable]) -> list[int] | None:
        """Columns of the coordinates of variables, or None if a variable differs from that here."""
        known = [replace(variable, moved=True) for variable in self.variables]
        ends = np.cumsum([variable.size for variable in known]).tolist()
        columns: list[int] = []
        for variable in variables:
            if variable not in known:
                return None
            end = ends[known.index(variable)]
            columns += range(end - variable.size, end)
        return columns

    @property
    def dimension(self) -> int:
        """Number d of coordinates that the sampler moves: the first ones."""
        return sum(variable.size for variable in self.moved)

    def text(self) -> str:
        """All of this as a text."""
        content = {"format": FORMAT, **asdict(self)}
        if not self.likelihoods:  # earlier versions of the package do not know this entry
            del content["likelihoods"]
        return json.dumps(content, separators=(",", ":"), allow_nan=True)

    @classmethod
    def of_text(cls, text: str) -> "Facts":
        """Facts from their text."""
        content = json.loads(text)
        if (number := content.pop("format")) != FORMAT:
            raise ValueError(
                f"The draws were made by version {content.get('version')} of pymc_ensemble in "
                f"format {number}, but this version reads format {FORMAT}. Install the version "
                "that made them."
            )
        variables = [
            FreeVariable(**v | {key: tuple(v[key]) for key in ("shape", "coordinates")})
            for v in content.pop("variables")
        ]
        origin = Origin(**content.pop("origin"))
        return cls(origin=origin, variables=tuple(variables), **content)

    def values(self, U: FloatArray) -> FloatArray:
        """Values that are shown, shape (n, p), at coordinates of the first variables, (n, d)."""
        columns, start = [], 0
        for variable in self.variables:
            if start == U.shape[1]:
                break
            u = U[:, start : start + variable.size].reshape(-1, *variable.coordinates)
            values = u if variable.backward is None else variable.backward(u)
            columns.append(values.reshape(len(U), -1))
            start += variable.size
        return np.concatenate(columns, axis=1)

    @property
    def labels(self) -> list[str]:
        """Labels of the values of all variables."""
        return [label for variable in self.variables for label in variable.labels]

    @property
    def smallest_ensemble(self) -> int:
        """Number of particles that an ensemble needs to be split into halves."""
        return 2 * (self.dimension + 2)

    @property
    def small(self) -> bool:
        """Whether there are fewer particles than that. Walkers do not need others."""
        walkers = self.origin.evaluations > 1 or self.origin.learned
        return not walkers and 1 < self.particles < self.smallest_ensemble


def entries(name: str, shape: Sequence[int]) -> list[str]:
    """Labels of the entries of a variable."""
    if not shape:
        return [name]
    return [f"{name}[{','.join(map(str, index))}]" for index in np.ndindex(*shape)]


def variables_of(model: pm.Model) -> dict[str, FreeVariable]:
    """Free variables of a model by their names."""
    model = without_leaves(model)
    shapes = shapes_of(model)
    every = [FreeVariable.of(model, value, shapes, True) for value in model.value_vars]
    return {variable.name: variable for variable in every}


def _told(option: Any) -> Any:
    """A short account of an option."""
    if isinstance(option, bool | int | float | str) and len(str(option)) <= ROOM:
        return option
    if isinstance(option, Mapping) and not isinstance(option, xr.DataTree):  # moves, their weights
        told = ", ".join(f"{getattr(key, '__name__', key)} {option[key]:.3g}" for key in option)
        return told[:ROOM]
    shape = getattr(option, "shape", None)
    return type(option).__name__ + (f"{tuple(shape)}" if isinstance(shape, tuple) else "")


class TooFewDrawsError(ValueError):
    """Too few draws are left to tell how they were made."""


def facts_of(stats: xr.Dataset) -> Facts:
    """Facts that draws carry.

    Parameters
    ----------
    stats : Dataset
        Stats of the draws of an ensemble step method.

    Returns
    -------
    Facts
        For several runs together, what holds for all of them.

    Raises
    ------
    TooFewDrawsError
        If too few draws are left. It is also a ValueError.
    ValueError
        If the draws carry no facts, come from different models, or were made by a version with
        another format.
    """
    if missing := [name for name in STATS if name not in stats]:
        raise ValueError(
            f"The result has no stat `{missing[0]}`: version 0.1 of pymc_ensemble sampled it, "
            "which did not record how draws were made, or the stat was removed. Sample again, and "
            "keep the group `sample_stats` as it was returned."
        )
    packets = stats["made_by"].transpose("chain", "draw", ...).to_numpy()
    if packets.ndim != 3 or packets.shape[2] != PACKET:
        raise ValueError(
            f"The stat `made_by` has the shape {packets.shape}, not (chain, draw, {PACKET}): "
            "several ensemble step methods have made the run together, or another version of "
            "pymc_ensemble. Sample again, with one ensemble step method."
        )
    packets = packets.reshape(-1, PACKET)
    if packets.dtype != np.uint8:  # filled up with NaN when results were put together
        packets = packets[np.isfinite(packets).all(1)].astype(np.uint8)
    told, incomplete = texts(packets)
    if incomplete or not told:
        raise TooFewDrawsError(
            f"The result has {len(packets)} draws. They are too few to tell how they were made, "
            f"as each draw carries {BLOCK} bytes of that description. Keep a few dozen draws of "
            "each run."
        )
    return together(Facts.of_text(text) for text in told)


def together(facts: Iterable[Facts]) -> Facts:
    """What holds for the draws of all of several runs."""
    first, *others = facts
    for other in others:
        if other.variables != first.variables:
            different = {v.name for v in other.variables} ^ {v.name for v in first.variables}
            what = f": `{min(different)}` is in one of them only" if different else ""
            raise ValueError(
                f"The draws come from different models{what}. Diagnose each result by itself."
            )
    every = [first, *others]
    laws: set[Law] = {one.origin.law for one in every}
    law = min(laws, key=LEAST_KNOWN.index)
    if laws == {"density", "gaussian"}:
        law = "approximate"
    known = [one.origin.fluctuation for one in every]
    fluctuations = [fluctuation for fluctuation in known if fluctuation is not None]
    acceptances = [one.origin.law_acceptance for one in every]
    reached = [one.origin.reached for one in every]
    origin = Origin(
        law,
        all(one.origin.adjusted for one in every),
        max(one.origin.evaluations for one in every),
        all(one.origin.learned for one in every),
        max(fluctuations, default=None),
        min((a for a in acceptances if a is not None), default=None),
        min((a for a in reached if a is not None), default=None),
    )
    maps = [one.map for one in every if one.map is not None]
    return replace(
        first,
        origin=origin,
        particles=min(one.particles for one in every),
        map="stochastic" if "stochastic" in maps else maps[0] if maps else None,
        likelihoods={
            name: max((one.likelihoods.get(name, known) for one in every), key=_unsure)
            for name, known in first.likelihoods.items()
        },
    )


def _unsure(known: Mapping[str, Any]) -> tuple[bool, bool, float]:
    """Key to sort likelihoods by: not estimated, not checked, and how far it is off."""
    found = known.get("varying", [0.0])
    return known["covariance"] != "estimated", "varying" not in known, abs(found[0])
