"""Checks that data are possible under their distribution, for some values of the unknowns."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pytensor
import pytensor.tensor as pt
from pymc.logprob.utils import ParameterValueError
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.traversal import ancestors, toposort
from pytensor.scalar.basic import Switch
from pytensor.tensor.basic import get_underlying_scalar_constant_value

from pymc_ensemble.problem._pymc import PARAMETER_CHECKS_TO_INFINITY, CheckParameterValue
from pymc_ensemble.problem.batching import cheap_mode
from pymc_ensemble.problem.frontier import is_foreign
from pymc_ensemble.problem.graphs import inlined, named_rewrites, rewritten, substitute

ANY_VALUES = (0.3, 0.7, 1.6)  # arbitrary values of outputs, as conditions on them do not count


class NoDensityError(ValueError):
    """The density of the data is zero, whatever the unknowns are."""


def check_density(name: str, density: Variable, values: Mapping[Variable, Variable]) -> None:
    """Refuse data that have no density under a distribution with usual values of its unknowns.

    Parameters
    ----------
    name : str
        Name of the observed variable.
    density : Variable
        Log density of each entry, a function of data and outputs.
    values : mapping of Variable to Variable
        The data, first, and usual values of the outputs.

    Raises
    ------
    NoDensityError
        If the density of an entry is zero, or no number.
    """
    [at_values] = substitute([density], values)
    rewrites = named_rewrites("canonicalize", PARAMETER_CHECKS_TO_INFINITY)
    at_values, data = rewritten([at_values, next(iter(values.values()))], rewrites)
    try:
        found, data = pytensor.function([], [at_values, data], mode=cheap_mode(True))()
    except ParameterValueError as error:
        raise NoDensityError(
            f"`{name}` has a parameter for which its density is zero: PyMC asks for {error}. It "
            "does not depend on the unknowns; correct it in the model."
        ) from error
    _refuse_impossible(name, ~(found > -np.inf), data)


def check_support(
    name: str, density: Variable, data: tuple[Variable, Variable], outputs: Sequence[Variable]
) -> None:
    """Refuse data that no values of the outputs make possible, for any distribution.

    The density is computed as if all conditions that involve outputs were met. If it is zero even
    so, but not if the other conditions were met, too, then the data alone violate these.

    Parameters
    ----------
    name : str
        Name of the observed variable.
    density : Variable
        Log density of each entry, a function of data and outputs.
    data : tuple of Variable
        The variable in place of the data, and the data.
    outputs : sequence of Variable
        The variables in place of the outputs.

    Raises
    ------
    NoDensityError
        If the density of an entry is zero.
    """
    [density] = inlined([density])
    if any(is_foreign(node) for node in toposort([density])):
        return  # the check would need an evaluation
    graphs = [_if_met(density, outputs), _if_met(density, [*outputs, data[0]]), data[1]]
    evaluate = pytensor.function(
        list(outputs), substitute(graphs, dict([data])), mode=cheap_mode(), on_unused_input="ignore"
    )
    impossible, observed = np.array(True), np.array(0.0)
    for value in ANY_VALUES:
        with np.errstate(all="ignore"):
            found, hoped, observed = evaluate(
                *(np.full(hole.type.shape, value, hole.type.dtype) for hole in outputs)
            )
        impossible = impossible & (found == -np.inf) & (hoped != -np.inf)
    _refuse_impossible(name, impossible, observed)


def _if_met(density: Variable, variables: Sequence[Variable]) -> Variable:
    """A log density for which all conditions on some variables count as met."""
    met = partial(_met, variables=variables)
    while replacement := next(filter(None, map(met, toposort([density]))), None):
        [density] = substitute([density], dict([replacement]))
    return density


def _met(node: Apply, variables: Sequence[Variable]) -> tuple[Variable, Variable] | None:
    """Result of a condition, and its value if the condition is met. None for other nodes."""
    if isinstance(node.op, CheckParameterValue):
        return node.outputs[0], node.inputs[0]
    if not isinstance(getattr(node.op, "scalar_op", None), Switch):
        return None
    condition, *branches = node.inputs
    left = [branch for branch in branches if not _is_minus_infinity(branch)]
    if len(left) != 1 or not set(variables) & set(ancestors([condition])):
        return None
    [result] = node.outputs
    return result, pt.switch(condition, left[0], left[0]).astype(result.type.dtype)


def _is_minus_infinity(branch: Variable) -> bool:
    """Whether a variable is a constant, minus infinity."""
    value = get_underlying_scalar_constant_value(branch, raise_not_constant=False)
    return not isinstance(value, Variable) and bool(np.all(value == -np.inf))


def _refuse_impossible(name: str, impossible: np.ndarray, data: np.ndarray) -> None:
    """Refuse data if some are impossible, by a mask of their shape."""
    wrong, found = np.argwhere(impossible), np.asarray(impossible)
    if not len(wrong):
        return
    index = tuple(wrong[0])
    where = f" at index [{', '.join(map(str, index))}]" if index else ""
    raise NoDensityError(
        f"The density of `{name}` is zero for {len(wrong)} of its {found.size} data, such as "
        f"{data[index]}{where}, whatever the unknowns are. The data lie outside the support of "
        "the distribution, or a constant parameter makes them impossible, such as an infinite "
        "scale. Correct the data, or choose another distribution."
    )
