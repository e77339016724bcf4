"""The version of a function, from what it is written like."""

import ast
import functools
import inspect
import textwrap
import types
from collections.abc import Callable
from hashlib import blake2b
from os import PathLike
from typing import Any

import numpy as np


def fingerprint(function: Callable[..., Any]) -> str:
    """Version of a function, from its source and what that refers to.

    Parameters
    ----------
    function : callable

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If the function has no source, or refers to variables of its surroundings that are no
        numbers, strings, arrays or functions.
    """
    parts: list[str] = []
    _collect(function, parts, set())
    return blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()


def _collect(function: Any, parts: list[str], seen: set[int]) -> None:
    if id(function) in seen:
        return
    seen.add(id(function))
    described = getattr(function, "__fingerprint__", None)
    if described is not None:
        parts.append(str(described()))
        return
    if isinstance(function, functools.partial):
        _collect(function.func, parts, seen)
        given = (*function.args, *function.keywords.items())
        parts.extend([_constant(value, seen) for value in given])
        return
    if isinstance(function, types.MethodType) or not isinstance(function, types.FunctionType):
        raise ValueError(
            f"The version of {function!r:.100} cannot be told from its source. Give `version`: "
            "evaluations in a store are only used for the version that made them."
        )
    parts.append(_source(function))
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).items())
    parts.extend([_constant(value, seen) for value in defaults])
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        parts.append(name + "=" + _constant(cell.cell_contents, seen))
    for name in _global_names(function.__code__):
        value = function.__globals__.get(name)
        if isinstance(value, types.FunctionType):
            if value.__module__ == function.__module__:
                _collect(value, parts, seen)
        elif isinstance(value, int | float | np.ndarray | np.number):
            parts.append(name + "=" + _constant(value, seen))


def _global_names(code: types.CodeType) -> list[str]:
    names = list(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names += _global_names(constant)
    return names


def _source(function: types.FunctionType) -> str:
    """Source without comments and decorators, or the compiled code."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, IndentationError):
        code = function.__code__
        constants = [c for c in code.co_consts if not isinstance(c, types.CodeType)]
        return f"{code.co_code!r} {code.co_names} {constants}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.decorator_list = []
    return ast.dump(tree)


def _constant(value: Any, seen: set[int]) -> str:
    if value is None or isinstance(value, int | float | complex | str | bytes | np.number):
        return repr(value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return (
            f"{value.dtype} {value.shape} {blake2b(np.ascontiguousarray(value).data).hexdigest()}"
        )
    if isinstance(value, tuple | list):
        return "(" + ", ".join(_constant(entry, seen) for entry in value) + ")"
    if isinstance(value, dict):
        return _constant(list(value.items()), seen)
    if isinstance(value, PathLike):
        return str(value)
    if isinstance(value, types.ModuleType | type):
        return value.__name__
    if isinstance(value, types.BuiltinFunctionType | np.ufunc):
        return value.__name__
    parts: list[str] = []
    _collect(value, parts, seen)
    return "\0".join(parts)
