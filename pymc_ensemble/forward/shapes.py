"""Shapes of outputs from the user's description, and points at which they can be found."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pymc as pm
from pytensor.graph.basic import Variable

from .tasks import Outputs

SEED = 0x5EED  # for points of the prior


def described(output_shape: Any) -> Outputs:
    """Outputs from the user's description of their shapes."""

    def shape(value: Any) -> tuple[int, ...]:
        sizes = value if isinstance(value, tuple) else (value,)
        if all(isinstance(k, int | np.integer) for k in sizes):
            if min(sizes, default=0) < 0:
                raise ValueError(f"output_shape={output_shape!r} has a negative length.")
            if 0 in sizes:
                raise ValueError(f"output_shape={output_shape!r} has no entries.")
            return tuple(int(k) for k in sizes)
        raise TypeError(
            f"output_shape={output_shape!r} must be a tuple of integers, or a list or dict of such "
            "tuples if the function returns several arrays."
        )

    if isinstance(output_shape, Mapping | list) and not output_shape:
        raise ValueError(
            f"output_shape={output_shape!r} has no output. Use a tuple of integers, such as (10,) "
            "for ten numbers, or () for one; or a list or dict of such tuples."
        )
    if isinstance(output_shape, Mapping):
        return Outputs(
            "dict", tuple(map(str, output_shape)), tuple(map(shape, output_shape.values()))
        )
    if isinstance(output_shape, list) or (
        isinstance(output_shape, tuple) and any(isinstance(s, tuple) for s in output_shape)
    ):
        names = tuple(f"output_{i}" for i in range(len(output_shape)))
        return Outputs("tuple", names, tuple(map(shape, output_shape)))
    return Outputs("array", ("output",), (shape(output_shape),))


def at_prior(inputs: Sequence[Variable], seed: int) -> list[np.ndarray]:
    """Values of variables at a draw of the prior, or at the initial point without draws."""
    try:
        values = pm.draw(list(inputs), random_seed=SEED + seed, mode="FAST_COMPILE")
    except Exception as error:
        model = pm.modelcontext(None) if pm.Model.get_context(error_if_none=False) else None
        if model is None or seed:
            raise ValueError(
                "The inputs of the forward model cannot be drawn from the prior, so the shape of "
                "its outputs is not known. Give `output_shape`, and inputs of known shapes. "
                f"({error})"
            ) from error
        in_values = model.replace_rvs_by_values(list(inputs))
        at = model.compile_fn(
            in_values, inputs=model.value_vars, mode="FAST_COMPILE", on_unused_input="ignore"
        )
        values = at(model.initial_point())
    return [np.asarray(value) for value in values]
