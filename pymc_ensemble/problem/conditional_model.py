"""A model given the variables that other step methods move."""

from collections.abc import Mapping, Sequence

import numpy as np
import pymc as pm
import pytensor
from numpy.typing import ArrayLike
from pytensor.graph.basic import Variable
from pytensor.graph.traversal import explicit_graph_inputs

from .points import compiled


class ConditionalModel:
    """Posterior of some variables of a model given the others.

    Parameters
    ----------
    model : pymc.Model
    vars : sequence of Variable
        Value variables of the model that stay unknown. There must be others.

    Attributes
    ----------
    model : pymc.Model
        Copy of the model in which the others are observed, with data that `condition` replaces.
    given : tuple of str
        Names of the others.

    Raises
    ------
    ValueError
        If the transform of another variable depends on one of `vars`.
    """

    def __init__(self, model: pm.Model, vars: Sequence[Variable]):
        others = [rv for rv in model.free_RVs if model.rvs_to_values[rv] not in vars]
        in_values = model.replace_rvs_by_values(others)
        for rv, value in zip(others, in_values, strict=True):
            if moving := set(vars) & set(explicit_graph_inputs([value])):
                owned = model.values_to_rvs[moving.pop()].name
                raise ValueError(
                    f"The support of `{rv.name}` depends on `{owned}`, so no other step method can "
                    f"move `{rv.name}` beside this one. Add it to `vars`."
                )
        self.given = tuple(rv.name for rv in others)
        start = model.initial_point()
        self._values = compiled(model, in_values)
        self._shared = [pytensor.shared(value, name=n) for n, value in self._named(start).items()]
        self.model = pm.observe(model, dict(zip(self.given, self._shared, strict=True)))

    def _named(self, point: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
        return dict(zip(self.given, map(np.asarray, self._values(point)), strict=True))

    def condition(self, point: Mapping[str, ArrayLike]) -> bool:
        """Set the other values from a `point` of the whole model. Returns whether they changed."""
        changed = False
        for shared, value in zip(self._shared, self._named(point).values(), strict=True):
            if not np.array_equal(shared.get_value(borrow=True), value):
                shared.set_value(value.astype(shared.type.dtype))
                changed = True
        return changed


def continuous_variables(model: pm.Model, names: Sequence[str] | None, who: str) -> list[Variable]:
    """Value variables of continuous variables, chosen by name.

    Parameters
    ----------
    model : pymc.Model
    names : sequence of str or None
        Names of variables or value variables; None stands for all continuous ones.
    who : str
        Name of the step method, for the message.

    Raises
    ------
    ValueError
        If a name is unknown, or that of a discrete variable.
    """
    owned = list(model.continuous_value_vars)
    if names is None:
        return owned
    known = {v: {v.name, model.values_to_rvs[v].name} for v in model.value_vars}
    chosen = set(names)
    for v in model.discrete_value_vars:
        if known[v] & chosen:
            raise ValueError(
                f"`{model.values_to_rvs[v].name}` is discrete, but {who} moves continuous "
                "variables only. Leave it out of `vars`."
            )
    if unknown := chosen.difference(*known.values()):
        raise ValueError(
            f"`{min(unknown)}` is not a free variable of the model. Free variables are "
            f"{', '.join(f'`{rv.name}`' for rv in model.free_RVs)}."
        )
    return [v for v in owned if known[v] & chosen]
