"""Rounding by PyMC's transforms and graphs, which moves the inputs of a forward model.

A draw that comes back from PyMC has been through the transform of its variable and back, for
example through exp(log(x)). So an input that is such a variable, or is computed from one, comes
back changed in its last digits. A variable without a transform is the identical number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pymc as pm
from numpy.typing import NDArray
from pymc.distributions.transforms import LogExpM1
from pymc.logprob.transforms import (
    CircularTransform,
    IntervalTransform,
    LogOddsTransform,
    LogTransform,
    SimplexTransform,
)
from pymc.pytensorf import constant_fold
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.traversal import ancestors
from pytensor.tensor.basic import Join, MakeVector
from pytensor.tensor.elemwise import DimShuffle
from pytensor.tensor.random.op import RandomVariable
from pytensor.tensor.shape import Reshape, SpecifyShape

FloatArray = NDArray[np.float64]

BY_TRANSFORM = 1e-13
"""Relative to an input, or to the bounds of its transform: x comes back from exp(log(x)) with an
error of |log x| units in the last place (2.2e-16), and x from an interval with a few units in the
last place of its bounds. So this serves |log x| up to 450."""
BY_GRAPH = 16 * np.finfo(float).eps
"""Relative to an input that is computed from variables without transforms: two compilers."""
ELEMENTWISE = (LogTransform, LogOddsTransform, LogExpM1, SimplexTransform)
"""Transforms that keep the relative precision of each entry."""


@dataclass(frozen=True)
class Rounding:
    """Largest difference of two points that were the same before rounding.

    Attributes
    ----------
    relative, absolute : ndarray of shape (d,)
        Differences relative to an input, and absolute ones.
    joint : sequence of slice
        Inputs whose transform mixes entries. Their differences are relative to the largest entry.
    """

    relative: FloatArray
    absolute: FloatArray
    joint: Sequence[slice] = ()

    def at(self, point: FloatArray) -> FloatArray:
        """Largest difference of each input, shape (d,), at a point of shape (d,)."""
        tolerance = self.relative * np.abs(point)
        for some in self.joint:
            tolerance[some] = self.relative[some] * np.abs(point[some]).max(initial=0.0)
        return tolerance + self.absolute


def rounding_of(inputs: Sequence[Variable], sizes: Sequence[int]) -> Rounding:
    """Rounding of inputs with these numbers of entries, which together make a flat point."""
    model = pm.modelcontext(None) if pm.Model.get_context(error_if_none=False) else None
    relative, absolute, joint, end = [], [], [], 0
    for variable, size in zip(inputs, sizes, strict=True):
        try:
            moved = np.reshape(_moved(variable, model), (3, -1))
        except (NotImplementedError, ValueError, TypeError):
            moved = _computed(variable, model)[:, None]
        moved = np.broadcast_to(moved, (3, size))
        relative.append(moved[0])
        absolute.append(moved[1])
        if moved[2].any():
            joint.append(slice(end, end + size))
        end += size
    return Rounding(np.concatenate([*relative, []]), np.concatenate([*absolute, []]), joint)


def _moved(variable: Variable, model: pm.Model | None) -> FloatArray:
    """Relative and absolute rounding of each entry, and whether it is joint: (3, *shape)."""
    node = variable.owner
    if model is not None and variable in model.rvs_to_transforms:
        moved = _by_transform(variable, model.rvs_to_transforms[variable])
        return np.broadcast_to(moved.reshape(3, *[1] * variable.type.ndim), (3, *_shape(variable)))
    if isinstance(variable, Constant | SharedVariable):
        return np.zeros((3, *_shape(variable)))
    if node is None:
        return _computed(variable, model)
    if isinstance(node.op, DimShuffle):
        order = node.op.new_order
        moved = _moved(node.inputs[0], model)
        moved = moved.squeeze(tuple(1 + i for i in node.op.drop))
        kept = sorted(i for i in order if i != "x")
        moved = moved.transpose(0, *[1 + kept.index(i) for i in order if i != "x"])
        return np.expand_dims(moved, tuple(1 + k for k, i in enumerate(order) if i == "x"))
    if isinstance(node.op, MakeVector):
        return np.stack([_moved(entry, model) for entry in node.inputs], axis=1)
    if isinstance(node.op, Join):
        axis = node.inputs[0].data if isinstance(node.inputs[0], Constant) else node.op.axis
        parts = node.inputs[1:] if isinstance(node.inputs[0], Constant) else node.inputs
        return np.concatenate([_moved(part, model) for part in parts], axis=1 + int(axis))
    if isinstance(node.op, Reshape | SpecifyShape):
        return _moved(node.inputs[0], model).reshape(3, *_shape(variable))
    return _computed(variable, model)


def _shape(variable: Variable) -> tuple[int, ...]:
    if None in variable.type.shape:
        raise NotImplementedError
    return variable.type.shape


def _by_transform(variable: Variable, transform: object) -> FloatArray:
    if transform is None:
        return np.zeros(3)
    if isinstance(transform, ELEMENTWISE):
        return np.array([BY_TRANSFORM, 0.0, False])
    if isinstance(transform, CircularTransform):
        return np.array([BY_TRANSFORM, np.pi * BY_TRANSFORM, False])
    if isinstance(transform, IntervalTransform):
        lower, upper = transform.args_fn(*variable.owner.inputs)
        bound = upper if lower is None else lower  # the relative part covers the other bound
        [known] = constant_fold([bound], raise_not_constant=False)
        size = np.abs(known).max() if isinstance(known, np.ndarray | np.generic) else 0.0
        return np.array([BY_TRANSFORM, BY_TRANSFORM * size, False])
    return np.array([BY_TRANSFORM, 0.0, True])


def _computed(variable: Variable, model: pm.Model | None) -> FloatArray:
    """Rounding of values that are computed from variables, relative to the result, shape (3,)."""
    transforms = {} if model is None else model.rvs_to_transforms
    for above in ancestors([variable]):
        transformed = transforms.get(above) is not None
        if transformed or _is_given(above):
            return np.array([BY_TRANSFORM, 0.0, False])
    return np.array([BY_GRAPH, 0.0, False])


def names_of_unknowns(inputs: Sequence[Variable]) -> frozenset[str | None]:
    """Names of the unknowns on which inputs depend."""
    return frozenset(
        above.name
        for above in ancestors(inputs)
        if isinstance(above.owner and above.owner.op, RandomVariable) or _is_given(above)
    )


def asks_one_by_one(node: Apply, unknowns: frozenset[str | None]) -> bool:
    """Whether a function takes these unknowns one by one, as PyMC does for draws that come back.

    Step methods join them into one vector, `pymc.pytensorf.join_nonshared_inputs`. Their points are
    proposals.
    """
    given = {above.name for above in ancestors(node.inputs) if _is_given(above)}
    return all(
        name in unknowns
        or (
            name is not None
            and name.endswith("__")  # the value of a variable with a transform
            and any(known and name.startswith(f"{known}_") for known in unknowns)
        )
        for name in given
    )


def _is_given(variable: Variable) -> bool:
    return variable.owner is None and not isinstance(variable, Constant | SharedVariable)
