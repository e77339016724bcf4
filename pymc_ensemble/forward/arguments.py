"""Arguments of a forward model in a graph: the inputs that they hold, and their forms."""

import dataclasses
import inspect
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, FunctionType, ModuleType, NoneType, SimpleNamespace
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Variable

from .containers import Form
from .numbers import dropped

OPTIONS = (str, bytes, bool, int, float, complex, NoneType, Enum)
"""Types of other values in a container, which stay as they are."""
ATOMS = (*OPTIONS, np.generic, type, FunctionType, BuiltinFunctionType, ModuleType)
DEPTH = 8  # largest depth of nested containers in which variables are searched


def is_symbolic(value: Any) -> bool:
    """Whether a value is a variable of PyTensor, or holds one at any depth."""
    return _holds(value, DEPTH, set())


def _holds(value: Any, depth: int, seen: set[int]) -> bool:
    if isinstance(value, Variable):
        return True
    if isinstance(value, ATOMS) or depth <= 0 or id(value) in seen:
        return False
    seen.add(id(value))
    entries = _entries(value)
    if entries is None:
        entries, depth = _attributes(value), depth - 3
    return any(_holds(entry, depth - 1, seen) for entry in entries)


def _entries(value: Any) -> Iterable[Any] | None:
    """Entries of a container. None if it is an object with attributes."""
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset | deque):
        return value
    if isinstance(value, np.ndarray):
        return value.ravel().tolist() if value.dtype == object else ()
    if isinstance(value, partial):
        return [*value.args, *value.keywords.values()]
    package = type(value).__module__.partition(".")[0]
    if package in ("pandas", "xarray", "polars"):
        values = getattr(value, "values", None)
        return _entries(values) if isinstance(values, np.ndarray) else ()
    return () if package in ("numpy", "scipy", "pymc", "pytensor", "builtins") else None


def _attributes(value: Any) -> list[Any]:
    slots = [
        name
        for cls in type(value).__mro__
        for name in np.atleast_1d(getattr(cls, "__slots__", ())).tolist()
    ]
    at_slots = [getattr(value, name) for name in slots if hasattr(value, name)]
    return [*getattr(value, "__dict__", {}).values(), *at_slots]


@dataclass
class Arguments:
    """Inputs that were found in the arguments of a call.

    Attributes
    ----------
    names : list of str
        ``rate``, or ``parameters.rate`` if it is an entry of ``parameters``.
    inputs : list of TensorVariable
    forms : list of Form
        One for each argument.
    """

    function: str
    vectorized: bool
    names: list[str] = field(default_factory=list)
    inputs: list[Any] = field(default_factory=list)
    forms: list[Form] = field(default_factory=list)

    @classmethod
    def of(
        cls, function: str, names: Sequence[str], values: Sequence[Any], vectorized: bool
    ) -> "Arguments":
        """Find the inputs in arguments, by name."""
        found = cls(function, vectorized)
        for name, value in zip(names, values, strict=True):
            found.forms.append(found._form(name, value, top=True))
        return found

    @property
    def plain(self) -> bool:
        """Whether each argument is an input."""
        return all(form[0] == "input" for form in self.forms)

    def _form(self, name: str, value: Any, top: bool = False) -> Form:
        if isinstance(value, Variable) or not is_symbolic(value):
            if not top and isinstance(value, OPTIONS):
                return ("value", type(value), value)
            return self._input(name, value)
        if isinstance(value, np.ndarray):
            stacked = pt.stack([pt.as_tensor(entry) for entry in value.ravel().tolist()])
            return self._input(name, stacked.reshape(value.shape))
        if type(value) in (list, tuple):
            if (array := _as_array(value)) is not None:
                return self._input(name, array)
            return self._container(type(value).__name__, None, name, range(len(value)), value)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return self._container("namedtuple", type(value), name, value._fields, value)
        if type(value) in (dict, OrderedDict):
            made_by = (type(value), tuple(value))
            return self._container("dict", made_by, name, value.keys(), value.values())
        if _is_series(value) and not self.vectorized:
            about = (tuple(value.index), value.name)
            return self._container("series", about, name, value.index, value.tolist())
        attributes = _record(value)
        if attributes is not None:
            made_by = (type(value), tuple(attributes))
            return self._container("object", made_by, name, attributes, attributes.values())
        raise TypeError(
            f"The argument `{name}` of {self.function} is a {type(value).__name__} that holds "
            f"variables of the model{' and the function is vectorized' * self.vectorized}, which "
            "cannot be taken apart. Pass the variables one by one, or in a dict, list, tuple or "
            "dataclass."
        )

    def _container(self, kind: str, made_by: Any, name: str, keys: Any, values: Any) -> Form:
        parts = [
            self._form(f"{name}.{key}", value) for key, value in zip(keys, values, strict=True)
        ]
        return (kind, made_by, tuple(parts))

    def _input(self, name: str, value: Any) -> Form:
        if lost := dropped(value):
            raise TypeError(
                f"The argument `{name}` of {self.function} has a {lost}, which an array does not "
                "keep. Fix it with functools.partial, and wrap the result."
            )
        try:
            variable = pt.as_tensor(value if isinstance(value, Variable) else np.asarray(value))
        except (TypeError, ValueError, NotImplementedError) as error:
            raise TypeError(
                f"The argument `{name}` of {self.function} is {value!r:.100}, which is not a "
                "number, an array or a PyTensor variable. Fix it with functools.partial, and wrap "
                "the result."
            ) from error
        if variable.type.dtype.startswith("complex"):
            raise TypeError(
                f"The argument `{name}` of {self.function} is complex. Pass its real and "
                "imaginary part as two arguments."
            )
        if variable.type.dtype == "float32":
            variable = variable.astype("float64")
        while name in self.names:
            name += "_"
        self.names.append(name)
        self.inputs.append(variable)
        return ("input", len(self.inputs) - 1)


def _as_array(value: Sequence[Any]) -> Any:
    """Variables and numbers in lists as one tensor, or None if they do not fit together."""
    if not _is_numeric(value):
        return None
    try:
        return pt.as_tensor(value)
    except (TypeError, ValueError, NotImplementedError):
        return None


def _is_numeric(value: Any) -> bool:
    if type(value) in (list, tuple):
        return all(map(_is_numeric, value))
    if isinstance(value, np.ndarray):
        return type(value) is np.ndarray and value.dtype != object
    return isinstance(value, Variable | int | float | np.number)


def _is_series(value: Any) -> bool:
    if type(value).__module__.partition(".")[0] != "pandas" or type(value).__name__ != "Series":
        return False
    return all(isinstance(key, OPTIONS) for key in value.index)


def _record(value: Any) -> dict[str, Any] | None:
    """Attributes of an object that has only attributes."""
    is_attrs = hasattr(type(value), "__attrs_attrs__")
    if not (dataclasses.is_dataclass(value) or isinstance(value, SimpleNamespace) or is_attrs):
        return None
    names = [f.name for f in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    names += [f.name for f in type(value).__attrs_attrs__] if is_attrs else []
    names += [name for name in getattr(value, "__dict__", {}) if name not in names]
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def parameter_names(
    function: Callable[..., Any], n_positional: int, keywords: Sequence[str], random: str
) -> list[str]:
    """Names of arguments, as the function calls them."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in parameters if p.kind in by_position and p.name != random]
    names += [f"input_{i}" for i in range(len(names), n_positional)]
    return [*names[:n_positional], *keywords]


def check_arguments(
    function: Callable[..., Any], name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Refuse arguments that the function does not take, because every evaluation would fail."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(
            f"{name}{signature} cannot be called with these arguments: {error}."
        ) from None
