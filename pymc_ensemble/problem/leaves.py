"""Discrete variables on which nothing else depends, such as missing counts.

The posterior of all other unknowns is the same without them. Given the others, they follow their
own distribution, from which they can be drawn directly.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pymc as pm
from numpy.typing import ArrayLike
from pymc.pytensorf import compile as compile_random
from pymc.pytensorf import reseed_rngs
from pytensor.graph.basic import Variable
from pytensor.graph.traversal import ancestors


def discrete_leaves(model: pm.Model) -> list[Variable]:
    """Discrete free variables on which no density of another variable depends.

    Parameters
    ----------
    model : pymc.Model

    Returns
    -------
    list of Variable
        In the order of the model; empty if there are none.
    """
    leaves = [model.values_to_rvs[value] for value in model.discrete_value_vars]
    while leaves:
        others = [rv for rv in model.basic_RVs if rv not in leaves]
        graphs = [*others, *model.potentials, *(model.rvs_to_values[rv] for rv in others)]
        nodes = {v.owner for v in ancestors(graphs)}
        needed = [rv for rv in leaves if rv.owner in nodes]
        if not needed:
            break
        leaves = [rv for rv in leaves if rv not in needed]
    return leaves


def without_leaves(model: pm.Model) -> pm.Model:
    """The same model without discrete variables on which nothing else depends.

    Parameters
    ----------
    model : pymc.Model

    Returns
    -------
    pymc.Model
        Model that shares its variables and data with the given one, which does not change. It is
        the given model itself if there is nothing to leave out.
    """
    leaves = discrete_leaves(model)
    if not leaves:
        return model
    rest = object.__new__(type(model))
    vars(rest).update(vars(model))
    derived = [d for d in model.deterministics if set(leaves) & set(ancestors([d]))]
    names = {v.name for v in (*leaves, *derived)}
    values = {model.rvs_to_values[rv] for rv in leaves}
    rest.free_RVs = [rv for rv in model.free_RVs if rv not in leaves]
    rest.deterministics = [d for d in model.deterministics if d not in derived]
    rest.named_vars = {k: v for k, v in model.named_vars.items() if k not in names}
    rest.values_to_rvs = {k: v for k, v in model.values_to_rvs.items() if k not in values}
    for table in ("rvs_to_values", "rvs_to_transforms", "rvs_to_initial_values"):
        kept = {rv: v for rv, v in getattr(model, table).items() if rv not in leaves}
        setattr(rest, table, kept)
    return rest


class Leaves:
    """Draws of discrete variables on which nothing else depends, given all others.

    Parameters
    ----------
    model : pymc.Model
        Model with these variables.
    rest : pymc.Model
        The same model without these variables.

    Attributes
    ----------
    values : list of Variable
        Their value variables.
    """

    def __init__(self, model: pm.Model, rest: pm.Model):
        rvs = [rv for rv in model.free_RVs if rv not in rest.free_RVs]
        self.values: list[Variable] = [model.rvs_to_values[rv] for rv in rvs]
        self._graphs = rest.replace_rvs_by_values(rvs) if rvs else []
        self._inputs = rest.value_vars
        self._function: Any = None
        self._generators: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_function": None, "_generators": []}

    def seed(self, rng: np.random.Generator) -> None:
        """Begin a new sequence of draws."""
        if not self.values:
            return
        if self._function is None:
            self._function, updates = compile_random(
                self._inputs,
                self._graphs,
                random_seed=False,
                mode="FAST_COMPILE",
                return_updates=True,
                on_unused_input="ignore",
            )
            self._generators = list(updates)
        reseed_rngs(self._generators, int(rng.integers(2**63)))

    def draw(self, point: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
        """Values by the names of their value variables, given a point of all others."""
        if not self.values:
            return {}
        drawn = self._function(*(point[str(value.name)] for value in self._inputs))
        return {str(value.name): x for value, x in zip(self.values, drawn, strict=True)}
