"""Names that a package loads on their first use."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def on_first_use(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Functions `__getattr__` and `__dir__` of a package whose names are loaded on their first use.

    Type checkers must not see them. Otherwise they take every name for one that exists.

    Parameters
    ----------
    package : str
        Full name of the package.
    homes : mapping of str to str
        Module of each name, within the package. A module has its own name as its home.
    """

    def load(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value: object = import_module(f"{package}.{homes[name]}")
        if homes[name] != name:
            value = getattr(value, name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return load, names
