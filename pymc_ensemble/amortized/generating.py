"""Simulation of a model from its prior: parameters, forward outputs, and data."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pymc as pm
from numpy.typing import NDArray
from pymc.distributions import transforms
from pytensor.graph.basic import Variable
from pytensor.graph.traversal import ancestors

from pymc_ensemble.forward.calls import short_traceback
from pymc_ensemble.forward.evaluation import Evaluations, ForwardModelError
from pymc_ensemble.forward.rounds import evaluating
from pymc_ensemble.problem._pymc import (
    CUSTOM_DISTRIBUTIONS,
    PartialObservedRV,
    default_transform,
)
from pymc_ensemble.problem.batching import BatchFunction
from pymc_ensemble.problem.checks import check_constants, check_model, quoted
from pymc_ensemble.problem.compiled import CompiledForward, CompiledPrior
from pymc_ensemble.problem.extraction import (
    Extraction,
    as_functions_of,
    extract,
    extract_prior,
    flat_variables,
    is_behind_forward_model,
    join_coordinates,
    log_densities,
    prior_draws,
)
from pymc_ensemble.problem.forward_models import require_own_data
from pymc_ensemble.problem.frontier import core_op, unlabelled
from pymc_ensemble.problem.graphs import substitute
from pymc_ensemble.problem.simulation import Seeded

from .noise import Noise, stacked
from .scaling import COUNTS, POSITIVE, REAL, UNIT

FloatArray = NDArray[np.float64]
logger = logging.getLogger("pymc_ensemble")

RESERVED = ("unconstrained", "outputs", "failed", "simulation", "coordinate", "output")


@dataclass(frozen=True)
class Simulated:
    """Simulations of a model.

    Attributes
    ----------
    U : ndarray of shape (n, d)
        Parameters in unconstrained coordinates.
    outputs : ndarray of shape (n, K) or None
        Forward outputs, if the likelihood is a function of them; NaN where an evaluation failed.
    data : dict of str to ndarray of shape (n, ...)
        One data set for each simulation; NaN where there is none.
    failed : ndarray of bool, shape (n,)
    reason : tuple of (int, str) or None
        Number of the first failed simulation, and the reason.
    """

    U: FloatArray
    outputs: FloatArray | None
    data: dict[str, np.ndarray]
    failed: NDArray[np.bool_]
    reason: tuple[int, str] | None = None


class ShapeError(ValueError):
    """Simulated data have another shape than the observed data."""


class Generator:
    """Draws parameters from the prior of a model, and data given these.

    Parameters
    ----------
    model : pymc.Model

    Attributes
    ----------
    model : pymc.Model
    names : tuple of str
        Names of the unconstrained coordinates.
    observed : tuple of str
        Names of the variables that are data.
    prior : CompiledPrior
    noise : Noise or None
        Makes data from forward outputs, if the likelihood is a function of them.

    Raises
    ------
    ValueError
        If parameters or data cannot be drawn from the model.
    """

    def __init__(self, model: pm.Model):
        check(model)
        self.model = model
        extraction, self.has_outputs = _taken_apart(model)
        self.coordinates = extraction.coordinates
        self.names = extraction.coordinates.names
        self.prior = CompiledPrior(extraction)
        self.noise: Noise | None = None
        if self.has_outputs:
            self._forward = CompiledForward(extraction, None)
            self.noise = Noise(extraction.terms)
            self.observed = tuple(self.noise.names)
        else:
            self.observed = tuple(str(rv.name) for rv in model.observed_RVs)
            self._rows = _data_of_rows(model, extraction)

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["model"])  # type: ignore[misc]  # compiled where it is used

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each data set, by name."""
        return {name: values.shape for name, values in self.own_data.items()}

    @cached_property
    def kinds(self) -> dict[str, str | None]:
        """Support of each observed variable, if its distribution determines it."""
        rvs = {str(rv.name): rv for rv in self.model.observed_RVs}
        return {name: _support(rvs[name]) for name in self.observed}

    @cached_property
    def own_data(self) -> dict[str, np.ndarray]:
        """Observed data of the model."""
        values = {str(rv.name): self.model.rvs_to_values[rv] for rv in self.model.observed_RVs}
        return {name: np.asarray(unlabelled([values[name]])[0].eval()) for name in self.observed}

    def _require_shapes(self, row: Sequence[np.ndarray]) -> None:
        """Refuse simulated data with another shape than the observed data."""
        for name, values in zip(self.observed, row, strict=True):
            if (found := np.shape(values)) != (shape := self.shapes[name]):
                raise ShapeError(
                    f"A simulation of `{name}` has the shape {found}, but its data have {shape}. "
                    "If the data have a dimension, PyMC passes scalars to the function of a "
                    "pm.Simulator as arrays of shape (1,). Use `x.item()`, and return an array of "
                    f"shape {shape}."
                )

    @cached_property
    def _named(self) -> BatchFunction:
        in_values = self.model.replace_rvs_by_values(self.model.free_RVs)
        return BatchFunction([self.coordinates.root], as_functions_of(self.coordinates, in_values))

    def named(self, U: FloatArray) -> dict[str, np.ndarray]:
        """Free variables at points in unconstrained coordinates, each of shape (n, ...)."""
        names = [str(rv.name) for rv in self.model.free_RVs]
        return dict(zip(names, self._named(np.ascontiguousarray(U)), strict=True))

    def simulate(self, n: int, seed: np.random.SeedSequence) -> Simulated:
        """Draw `n` parameters from the prior, and a data set given each of them."""
        of_prior, of_forward, of_data = seed.spawn(3)
        U = self.prior.sample(n, np.random.default_rng(of_prior))
        if self.noise is not None:
            evaluations = self._forward(U.copy(), of_forward)
            return self._with_noise(U, evaluations, self.noise, np.random.default_rng(of_data))
        return self._row_by_row(U, of_forward, np.random.default_rng(of_data))

    def _with_noise(
        self, U: FloatArray, evaluations: Evaluations, noise: Noise, rng: np.random.Generator
    ) -> Simulated:
        failed, Z = evaluations.failed.copy(), evaluations.outputs
        reasons = dict(evaluations.errors)
        working = np.flatnonzero(~failed)
        data = {}
        for name, values in noise(Z[working], rng).items():
            known = np.isfinite(values.reshape(len(working), -1)).all(1)
            for row in working[~known]:
                reasons.setdefault(int(row), f"no data can be drawn for `{name}` given its outputs")
            data[name] = _spread(values, working, len(U))
            failed[working[~known]] = True
        return Simulated(U, Z, data, failed, _first(failed, reasons))

    def _row_by_row(
        self, U: FloatArray, seed: np.random.SeedSequence, rng: np.random.Generator
    ) -> Simulated:
        """Data of one parameter after another, because simulators take no batches."""
        rows: list[list[np.ndarray] | None] = []
        reasons = {}
        for k, (u, child) in enumerate(zip(U, seed.spawn(len(U)), strict=True)):
            try:
                with evaluating(1, child) as this:
                    row = self._rows(rng, u)
                self._require_shapes(row)
                wrong = _not_finite(self.observed, row)
                if wrong or this.failures:
                    reasons[k] = this.failures.get(0, f"`{wrong}` is not finite")
                rows.append(None if k in reasons else row)
            except (ForwardModelError, ShapeError, KeyboardInterrupt):
                raise
            except Exception as error:
                reasons[k] = short_traceback(error)
                rows.append(None)
        failed = np.array([row is None for row in rows])
        shapes: Sequence[tuple[int | None, ...]] = [self.shapes[name] for name in self.observed]
        data = dict(zip(self.observed, stacked(rows, shapes), strict=True))
        return Simulated(U, None, data, failed, _first(failed, reasons))


def check(model: pm.Model) -> None:
    """Refuse models without draws of parameters and data; name the variable and a remedy.

    Parameters
    ----------
    model : pymc.Model

    Raises
    ------
    ValueError
        If there is no observed variable or no free one, if a free variable is discrete, improper or
        lies behind a forward model, if there are potentials, missing data or synthetic
        likelihoods, or if a name is taken.
    """
    require_own_data(model)
    check_model(model, None, needs_density=False)
    if flat := flat_variables(model):
        raise ValueError(
            f"{quoted(flat)}: nothing can be drawn from an improper prior (pm.Flat, pm.HalfFlat). "
            "Use a proper prior, such as a wide pm.Normal."
        )
    for rv in model.observed_RVs:
        if isinstance(rv.owner.op, PartialObservedRV):
            name = str(rv.name).removesuffix("_observed")
            raise ValueError(
                f"`{name}` has missing entries, but a simulation has none. Leave these entries "
                f"out: observe `data[known]`, and give `{name}` only the parameters of these "
                "entries."
            )
    for rv in model.free_RVs:
        if is_behind_forward_model(rv, model):
            raise ValueError(
                f"`{rv.name}` is unknown, and its distribution depends on a forward model. So "
                "each draw would cost an evaluation. Make its noise a part of the data, or of the "
                "forward model (stochastic=True)."
            )
    if taken := [rv.name for rv in model.basic_RVs if rv.name in RESERVED]:
        raise ValueError(
            f"`{taken[0]}` is a name that data sets of simulations use themselves. Give the "
            "variable another name."
        )


def _support(rv: Any) -> str | None:
    """Support of a variable, if its distribution determines it."""
    if isinstance(core_op(rv), (pm.Simulator.rv_type, *CUSTOM_DISTRIBUTIONS)):
        return None
    if rv.type.dtype.startswith(("bool", "int", "uint")):
        return COUNTS
    transform = default_transform(core_op(rv), unlabelled([rv])[0])
    return {transforms.log: POSITIVE, transforms.logodds: UNIT}.get(transform, REAL)


def _taken_apart(model: pm.Model) -> tuple[Extraction, bool]:
    """Parts of a model, and whether its data depend on forward outputs."""
    observed = set(model.observed_RVs)
    chained = any(observed & set(ancestors(rv.owner.inputs)) for rv in observed)
    simulators = [rv for rv in observed if isinstance(core_op(rv), pm.Simulator.rv_type)]
    if not chained and not simulators:
        try:
            return extract(model), True
        except (NotImplementedError, RuntimeError) as error:  # PyMC derives no density
            logger.debug("Data are drawn from the model as a whole: %r", error)
    coordinates = join_coordinates(model)
    densities = log_densities(model)
    check_constants(model, densities)
    prior, draws = extract_prior(model, coordinates, [], densities), prior_draws(model)
    return Extraction(coordinates, [], None, prior, draws), False


def _data_of_rows(model: pm.Model, extraction: Extraction) -> Seeded:
    """Random data as a function of one point in unconstrained coordinates."""
    free: list[Variable] = list(model.free_RVs)
    values = model.replace_rvs_by_values(free)
    given = dict(zip(free, substitute(values, extraction.coordinates.values), strict=True))
    data = unlabelled(substitute(model.observed_RVs, given))
    return Seeded(data, [extraction.coordinates.root])


def _not_finite(names: Sequence[str], row: Sequence[np.ndarray]) -> str:
    """Name of the first variable that is not finite; empty if all are."""
    finite = [bool(np.isfinite(values).all()) for values in row]
    return "" if all(finite) else names[finite.index(False)]


def _spread(values: np.ndarray, rows: NDArray[np.int64], n: int) -> np.ndarray:
    """Values of some of `n` rows, with NaN in the other rows."""
    if len(rows) == n:
        return values
    result = np.full((n, *values.shape[1:]), np.nan)
    result[rows] = values
    return result


def _first(failed: NDArray[np.bool_], reasons: dict[int, str]) -> tuple[int, str] | None:
    if not failed.any():
        return None
    row = int(np.flatnonzero(failed)[0])
    return row, reasons.get(row, "the outputs are not finite")
