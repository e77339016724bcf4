"""Transforms of a model as text that results carry, and transforms from this text."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from numpy.typing import NDArray
from pymc.distributions import transforms
from pytensor.graph.basic import Variable as Symbol
from pytensor.graph.traversal import ancestors
from pytensor.tensor.random.op import RandomVariable

from pymc_ensemble.problem._pymc import ChainedTransform, Transform

FloatArray = NDArray[np.float64]

ROOM = 100  # most characters of an option, and most different bounds of one variable
# Transforms that are known by their name. Others are not known without the model.
NAMED: dict[str, Transform] = {
    "log": transforms.log,
    "logodds": transforms.logodds,
    "log_exp_m1": transforms.log_exp_m1,
    "circular": transforms.circular,
    "ordered": transforms.ordered,
    "simplex": transforms.simplex,
}


def declared(transform: Transform | None, rv: Symbol) -> dict[str, Any] | None:
    """Definition of a transform, as far as it is known without the model."""
    if transform is None:
        return None
    name = str(transform.name)
    if isinstance(transform, ChainedTransform):
        parts = [declared(part, rv) for part in transform.transform_list]
        known = all(part is not None and part.get("known", True) for part in parts)
        return {"name": name, "parts": parts} if known else {"name": name, "known": False}
    if isinstance(transform, transforms.Interval):
        lower, upper = (_constant(bound) for bound in transform.get_a_and_b(rv.owner.inputs)[:2])
        if lower is not None and upper is not None:
            return {"name": name, "lower": lower, "upper": upper}
    if isinstance(transform, transforms.ZeroSumTransform):
        return {"name": name, "axes": [int(axis) for axis in transform.zerosum_axes]}
    if name in NAMED and type(transform) is type(NAMED[name]):
        return {"name": name}
    return {"name": name, "known": False}


def _constant(bound: Any) -> float | list | None:
    """Value of a bound that does not depend on other variables, if it is short enough."""
    symbol = pt.as_tensor(bound)
    if any(
        v.owner is not None and isinstance(v.owner.op, RandomVariable) for v in ancestors([symbol])
    ):
        return None
    value = np.asarray(symbol.eval(mode="FAST_COMPILE"), dtype=float)
    if value.size and (value == value.flat[0]).all():
        return float(value.flat[0])
    return value.tolist() if value.size <= ROOM else None


def transform_of(declared: Mapping[str, Any]) -> Transform | None:
    """The transform that was declared, or None if it is not known here."""
    if not declared.get("known", True):
        return None
    match declared["name"]:
        case "interval":
            bounds = [np.asarray(declared[side]) for side in ("lower", "upper")]
            given = [None if np.isinf(bound).all() else pt.constant(bound) for bound in bounds]
            return transforms.Interval(bounds_fn=lambda *_: given)
        case "zerosum":
            return transforms.ZeroSumTransform(declared["axes"])
        case "chain":
            parts = [transform_of(part) for part in declared["parts"]]
            return None if None in parts else ChainedTransform(parts)
    return NAMED.get(declared["name"])


@cache
def inverse_of(transform: str, shape: tuple[int, ...]) -> Callable[[FloatArray], FloatArray] | None:
    """Compiled inverse of a declared transform of arrays (n, *shape), if it is known."""
    known = transform_of(json.loads(transform))
    if known is None:
        return None
    u = pt.tensor("u", dtype="float64", shape=(None, *shape))
    return pytensor.function([u], known.backward(u), mode="FAST_COMPILE")
