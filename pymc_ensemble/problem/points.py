"""Points of a model as vectors of unconstrained coordinates, and back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from numpy.typing import ArrayLike, NDArray
from pymc.blocking import DictToArrayBijection
from pytensor.graph.basic import Variable
from pytensor.graph.replace import graph_replace

from ._pymc import CircularTransform, Transform, VonMisesRV, make_initial_point_expression
from .batching import as_it_stands, needs_rewrites

FloatArray = NDArray[np.float64]
Point = dict[str, np.ndarray]
Named = Variable | str


@dataclass(frozen=True)
class LayoutVariable:
    """Position of one variable in the vector of unconstrained coordinates."""

    name: str
    where: slice
    shape: tuple[int, ...]
    dtype: np.dtype

    def values(self, U: FloatArray) -> list[np.ndarray]:
        """List of the values in the rows of `U`, shape (n, d). Each is an array, also scalars."""
        values = U[:, self.where].reshape(len(U), *self.shape).astype(self.dtype, copy=False)
        return list(values) if self.shape else [values[i, ...] for i in range(len(U))]


def variable_layout(point: Point, names: Sequence[str]) -> list[LayoutVariable]:
    """Variables in the order of `point`. `names` is the order of the coordinates."""
    info = DictToArrayBijection.map({name: point[name] for name in names}).point_map_info
    ends = np.cumsum([size for _, _, size, _ in info]).tolist()
    variables = {
        name: LayoutVariable(name, slice(end - size, end), shape, dtype)
        for (name, shape, size, dtype), end in zip(info, ends, strict=True)
    }
    return [variables[name] for name in point if name in variables]


def shapes_of(model: pm.Model) -> dict[str, tuple[int, ...]]:
    """Shapes of the free variables and of their value variables, by name.

    They are evaluated, which takes a compilation, only if the types do not tell them.
    """
    variables = [v for rv in model.free_RVs for v in (rv, model.rvs_to_values[rv])]
    if all(None not in v.type.shape for v in variables):
        return {str(v.name): tuple(v.type.shape) for v in variables}
    return {name: tuple(map(int, shape)) for name, shape in model.eval_rv_shapes().items()}


def usual_point(model: pm.Model) -> Point:
    """Initial point of a model, which PyMC would compile with rewrites to evaluate it once."""
    values = make_initial_point_expression(
        free_rvs=model.free_RVs,
        rvs_to_transforms=model.rvs_to_transforms,
        initval_strategies=model.rvs_to_initial_values,
        return_transformed=True,
    )
    if needs_rewrites(values):
        return model.initial_point()
    names = [model.rvs_to_values[rv].name for rv in model.free_RVs]
    evaluated = pytensor.function([], values, mode=as_it_stands())()
    return dict(zip(names, evaluated, strict=True))


def layout_of(model: pm.Model) -> list[LayoutVariable]:
    """All free variables of a model, in the order of ``model.value_vars``."""
    shapes = shapes_of(model)
    point = {
        value.name: np.empty(shapes[value.name], value.type.dtype) for value in model.value_vars
    }
    return variable_layout(point, list(point))


def vector_of(variables: Sequence[LayoutVariable], point: Mapping[str, ArrayLike]) -> FloatArray:
    """Coordinates of a point, shape (d,)."""
    u = np.empty(sum(int(np.prod(variable.shape)) for variable in variables))
    for variable in variables:
        u[variable.where] = np.ravel(point[variable.name])
    return u


def compiled(
    model: pm.Model, graphs: Sequence[Variable]
) -> Callable[[Mapping[str, ArrayLike]], list[np.ndarray]]:
    """Function from a point, with values of all value variables, to those of graphs of them."""
    return model.compile_fn(
        graphs, inputs=model.value_vars, mode="FAST_COMPILE", on_unused_input="ignore"
    )


def points_of(variables: Sequence[LayoutVariable], U: FloatArray) -> list[Point]:
    """List of dicts of values by variable name, one for each row of `U`."""
    names = [variable.name for variable in variables]
    columns = zip(*(variable.values(U) for variable in variables), strict=True)
    return [dict(zip(names, values)) for values in columns]  # noqa: B905, called for each draw


def middle_of_period(rv: Variable, parameters: Sequence[Variable]) -> Variable:
    """Middle of the period to which the coordinate of an angle is kept.

    The density of an angle is periodic in its coordinate, so ensembles would drift over several
    periods. The period is cut opposite to the mean, where the prior is least.

    Parameters
    ----------
    rv : Variable
        A transformed free variable.
    parameters : sequence of Variable
        Inputs of its node, or their replacements.
    """
    owner: Any = rv.owner
    if isinstance(owner.op, VonMisesRV):
        return parameters[owner.inputs.index(owner.op.dist_params(owner)[0])]
    return pt.zeros(())


def split_angles(model: pm.Model, U: FloatArray, names: Sequence[str]) -> dict[str, float]:
    """Angles that lie on both sides of the cut of their period, and their mean directions.

    The coordinate of such an angle scatters more than the angle itself. The angle has the standard
    deviation ``sqrt(-2 log R)``, with the length R of the mean direction. If the posterior is in
    the middle of a period, wide or narrow, the coordinate does not scatter more. A margin of a half
    allows for the error of few particles.

    Parameters
    ----------
    model : pymc.Model
    U : ndarray of shape (n, d)
        Particles in unconstrained coordinates.
    names : sequence of str
        Names of the coordinates.

    Returns
    -------
    dict of str to float
        Mean direction of each one, by the name of its coordinate, in radians.
    """
    values = {
        str(value.name): str(rv.name)
        for rv, value in model.rvs_to_values.items()
        if isinstance(model.rvs_to_transforms.get(rv), CircularTransform)
    }
    split = {}
    for name, u in zip(names, U.T, strict=True):
        value, bracket, index = name.partition("[")
        if value not in values:
            continue
        direction = np.exp(1j * u).mean()
        own = np.sqrt(-2 * np.log(np.clip(abs(direction), 1e-12, 1.0)))
        if u.std() > 1.5 * own:
            split[values[value] + bracket + index] = float(np.angle(direction))
    return split


def forward(
    rv: Variable, transform: Transform, value: Variable, parameters: Sequence[Variable]
) -> Variable:
    """Unconstrained coordinates of a value. For an angle they lie in one period."""
    if not isinstance(transform, CircularTransform):
        return transform.forward(value, *parameters)
    middle: Any = middle_of_period(rv, parameters)
    turn: Any = value - middle
    return middle + pt.arctan2(pt.sin(turn), pt.cos(turn))


def unconstrained(
    model: pm.Model, given: Mapping[str, ArrayLike], what: str = "initial_ensemble"
) -> FloatArray:
    """Unconstrained coordinates of named values.

    Parameters
    ----------
    model : pm.Model
    given : mapping of str to array_like of shape (J, ...)
        One entry for each free variable, under its own name (values as in the model) or the name
        of its value variable (unconstrained values).
    what : str, default "initial_ensemble"
        Name of the values in errors.

    Returns
    -------
    ndarray of shape (J, d)
        In the order of ``model.value_vars``.
    """
    arrays = {name: np.asarray(values) for name, values in given.items()}
    free = {rv: model.rvs_to_values[rv] for rv in model.free_RVs}
    known = {rv.name for rv in free} | {value.name for value in free.values()}
    if unknown := sorted(set(arrays) - known):
        raise ValueError(
            f"{what} names {_enumerate(unknown)}, but the free variables of the model are "
            f"{_enumerate([rv.name for rv in free])}."
        )
    shapes = shapes_of(model)
    names, inputs, in_model, coordinates = [], [], {}, {}
    for rv, value in free.items():
        name = value.name if value.name in arrays else rv.name
        _require_shape(name, shapes[name], arrays, what)
        x = value.type() if name == value.name else rv.type()
        transform = model.rvs_to_transforms[rv]
        in_model[rv] = coordinates[value] = x
        if transform is not None:
            parameters = graph_replace(rv.owner.inputs, in_model, strict=False)
            if name == value.name:
                in_model[rv] = transform.backward(x, *parameters)
            else:
                coordinates[value] = forward(rv, transform, x, parameters)
        names.append(name)
        inputs.append(x)

    sizes = {name: len(arrays[name]) for name in names}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"{what} has entries of different length: {sizes}. "
            "The first axis counts the members of the ensemble."
        )
    to_coordinates = pytensor.function(
        inputs,
        pt.concatenate([coordinates[value].ravel() for value in model.value_vars]),
        mode="FAST_COMPILE",
        on_unused_input="ignore",
    )
    columns = [arrays[name].astype(x.type.dtype) for name, x in zip(names, inputs, strict=True)]
    return np.array([to_coordinates(*row) for row in zip(*columns, strict=True)], dtype=float)


def _require_shape(
    name: str, shape: Sequence[int], given: Mapping[str, np.ndarray], what: str
) -> None:
    expected = (
        "(ensemble_size" + "".join(f", {n}" for n in shape) + ("," if not shape else "") + ")"
    )
    if name not in given:
        raise ValueError(
            f"{what} has no values for `{name}`. Give an entry of shape {expected} for "
            "each free variable."
        )
    if given[name].ndim == 0 or given[name].shape[1:] != tuple(shape):
        raise ValueError(f"{what} has shape {given[name].shape} for `{name}`; expected {expected}.")


def _enumerate(names: Sequence[str], limit: int = 10) -> str:
    quoted = [f"`{name}`" for name in names[:limit]]
    return ", ".join(quoted) + (", ..." if len(names) > limit else "")


def free_values(model: pm.Model, U: FloatArray) -> dict[str, np.ndarray]:
    """Values of the free variables at points in unconstrained coordinates.

    Parameters
    ----------
    model : pm.Model
    U : ndarray of shape (n, d)
        In the order of ``model.value_vars``.

    Returns
    -------
    dict of str to ndarray of shape (n, ...)
        By the name of the variable, as in the model.
    """
    to_model = compiled(model, model.replace_rvs_by_values(model.free_RVs))
    columns = zip(*(to_model(point) for point in points_of(layout_of(model), U)), strict=True)
    return {rv.name: np.array(v) for rv, v in zip(model.free_RVs, columns, strict=True)}


def in_model(model: pm.Model, U: FloatArray) -> FloatArray:
    """Values of the free variables, shape (n, p), at points in unconstrained coordinates."""
    columns = [v.reshape(len(U), -1) for v in free_values(model, U).values()]
    return np.concatenate(columns, axis=1, dtype=float)


def describe(model: pm.Model, u: FloatArray) -> str:
    """Parameters at the point `u`, shape (d,), by name and as in the model."""
    values = {name: value for name, [value] in free_values(model, u[None]).items()}
    with np.printoptions(precision=4, threshold=20):
        told = {k: v if np.ndim(v) else float(f"{v:.6g}") for k, v in values.items()}
        return ", ".join(f"{name}={value}" for name, value in told.items())


def names_of(vars: Named | Sequence[Named]) -> list[str]:
    """Names of variables that are given as one or several variables or names."""
    several = [vars] if isinstance(vars, Named) else vars
    if not isinstance(several, Sequence) or not all(isinstance(v, Named) for v in several):
        raise TypeError(f"`vars` must be a list of variables or their names, not {vars!r}.")
    return [v if isinstance(v, str) else str(v.name) for v in several]
