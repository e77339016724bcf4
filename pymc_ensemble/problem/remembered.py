"""Problems of a model are kept as long as the model, so that nothing is compiled twice."""

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pymc as pm
import pytensor
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Constant, Variable
from pytensor.graph.op import HasInnerGraph
from pytensor.graph.traversal import ancestors
from pytensor.tensor.random.type import RandomType

from pymc_ensemble.problem._pymc import CUSTOM_DISTRIBUTIONS

_kept: WeakKeyDictionary[pm.Model, dict[Any, tuple[Any, Any]]] = WeakKeyDictionary()


def remembered[T](model: pm.Model, options: Collection[Any], make: Callable[[], T]) -> T:
    """Return what was made of a model before, if neither the model nor an option has changed.

    Parameters
    ----------
    model : pymc.Model
    options : collection of object
        What the result depends on besides the model. If one of them cannot be compared, the result
        is made anew.
    make : callable
        Function without arguments that makes the result, which must not refer to the model.

    Returns
    -------
    object
        One for each thread, as compiled functions cannot be called by several at once.
    """
    state = state_of(model)
    if state is None:
        return make()
    try:
        key = (*map(_hashable, options), threading.get_ident())
        known = _kept.setdefault(model, {}).get(key)
    except TypeError:  # also an option of a wrong type, which `make` refuses
        return make()
    if known is not None and known[0] == state:
        return known[1]
    result = make()
    _kept[model][key] = (state, result)
    return result


def _hashable(option: Any) -> Any:
    if isinstance(option, Mapping):
        return tuple(sorted(option.items()))
    return tuple(option) if isinstance(option, list | set) else option


def state_of(model: pm.Model) -> tuple[Any, ...] | None:
    """All that the density of a model depends on, and how it is compiled.

    Returns
    -------
    tuple or None
        Variables, transforms and settings; shared data and constants by shape and hash, as arrays
        may be changed in place. None if that is not all: a log density that is a function of the
        user's may use what has changed since, and shared values may be no arrays of numbers. None,
        too, if an observed variable depends on no other: a user is warned of it each time.
    """
    graphs = [*model.basic_RVs, *model.potentials, *model.rvs_to_values.values()]
    transforms = [model.rvs_to_transforms[rv] for rv in model.free_RVs]
    free = set(model.free_RVs)
    if any(free.isdisjoint(ancestors([rv])) for rv in model.observed_RVs):
        return None
    values = []
    for variable in _with_inner(graphs):
        node = variable.owner
        if node is not None and isinstance(node.op, CUSTOM_DISTRIBUTIONS):
            return None
        if isinstance(variable, SharedVariable):
            value = variable.get_value(borrow=True)
        elif isinstance(variable, Constant):
            value = variable.data
        else:
            continue
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            content = np.ascontiguousarray(value)
            values.append((value.shape, value.dtype, blake2b(content).digest()))
        elif not isinstance(variable, Constant) and not isinstance(variable.type, RandomType):
            return None
    return *graphs, *transforms, *values, pytensor.config.mode, pytensor.config.floatX


def _with_inner(graphs: Iterable[Variable]) -> Iterator[Variable]:
    """Variables of graphs, and of the graphs within their operations."""
    for variable in ancestors(graphs):
        yield variable
        if variable.owner is not None and isinstance(variable.owner.op, HasInnerGraph):
            yield from _with_inner(variable.owner.op.inner_outputs)
