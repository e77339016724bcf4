"""Arguments that hold several inputs, and how they are rebuilt for a call.

Workers of foreign executors get this module by value, so it uses only NumPy and the standard
library.
"""

from collections.abc import Sequence
from typing import Any

Form = tuple
"""How an argument is made of inputs; nested, hashable, and the same in every process.

``("input", i)`` is input number i, ``("value", type, value)`` a value of its own; a container is
``(kind, what it takes to make one, (form, ...))``.
"""


def build(form: Form, inputs: Sequence[Any]) -> Any:
    """Make an argument of the inputs."""
    if form[0] == "input":
        return inputs[form[1]]
    if form[0] == "value":
        return form[2]
    kind, made_by, parts = form
    return BUILDERS[kind](made_by, [build(part, inputs) for part in parts])


def values_in(form: Form) -> list[Any]:
    """Values of a form that are not inputs, with their types, in order."""
    if form[0] == "value":
        return [form[1:]]
    if form[0] == "input":
        return []
    return [(form[0], form[1]), *(value for part in form[2] for value in values_in(part))]


def _instance(made_by: tuple[Any, tuple[str, ...]], parts: list[Any]) -> Any:
    """Object with these attributes, without a call of its constructor, which ran before."""
    cls, names = made_by
    instance = cls.__new__(cls)
    for name, part in zip(names, parts, strict=True):
        object.__setattr__(instance, name, part)
    return instance


def _series(made_by: tuple[tuple[Any, ...], Any], parts: list[Any]) -> Any:
    import pandas as pd  # type: ignore[import-untyped]

    index, name = made_by
    return pd.Series(parts, index=list(index), name=name, dtype=float)


BUILDERS: dict[str, Any] = {
    "dict": lambda made_by, parts: made_by[0](zip(made_by[1], parts, strict=True)),
    "list": lambda made_by, parts: parts,
    "tuple": lambda made_by, parts: tuple(parts),
    "namedtuple": lambda made_by, parts: made_by(*parts),
    "object": _instance,
    "series": _series,
}
