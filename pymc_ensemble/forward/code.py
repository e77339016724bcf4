"""Code of a function, and the names outside of it that it reads."""

import dis
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from importlib import import_module, metadata
from importlib.util import find_spec, resolve_name
from pathlib import PurePath
from typing import Any
from weakref import WeakKeyDictionary

LIBRARIES = ("site-packages", "dist-packages")
BY_NAME = frozenset({"eval", "exec", "globals", "__import__"})
"""Built-in functions that read names that do not appear in the code."""


@dataclass(frozen=True)
class Code:
    """Facts about a code object.

    Attributes
    ----------
    digest : bytes
        Digest of the instructions and constants, without comments, line numbers and file names.
    reads : tuple of tuple of str
        Global names, each followed by those of its attributes that are read.
    imports : tuple of (str, int, tuple of str)
        Modules that are imported inside, the level, and the names that are imported from them.
    names : frozenset of str
        All names and attributes.
    """

    digest: bytes
    reads: tuple[tuple[str, ...], ...]
    imports: tuple[tuple[str, int, tuple[str, ...]], ...]
    names: frozenset[str]


_known: "WeakKeyDictionary[types.CodeType, Code]" = WeakKeyDictionary()


def code_of(code: types.CodeType) -> Code:
    """Facts about a code object, which never change."""
    if code not in _known:
        reads, imports, names = set(), set(), set()
        for part in _parts(code):
            found = _read(part)
            reads |= found[0]
            imports |= found[1]
            names |= set(part.co_names)
        _known[code] = Code(
            blake2b(_described(code).encode(), digest_size=16).digest(),
            tuple(sorted(reads)),
            tuple(sorted(imports)),
            frozenset(names),
        )
    return _known[code]


def _parts(code: types.CodeType) -> Iterator[types.CodeType]:
    """Code, and that of functions inside."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _parts(constant)


def _described(value: Any) -> str:
    if isinstance(value, types.CodeType):
        shape = (value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount)
        names = (value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars)
        constants = [_described(constant) for constant in value.co_consts]
        return f"{value.co_code!r} {shape} {value.co_flags} {names} {constants}"
    if isinstance(value, frozenset):
        return f"frozenset {sorted(map(_described, value))}"
    if isinstance(value, tuple):
        return f"tuple {[_described(entry) for entry in value]}"
    return f"{type(value).__name__} {value!r}"


def _read(code: types.CodeType) -> tuple[set, set]:
    reads: set[tuple[str, ...]] = set()
    imports: set[tuple[str, int, tuple[str, ...]]] = set()
    instructions = [i for i in dis.get_instructions(code) if i.opname != "CACHE"]
    for at, instruction in enumerate(instructions):
        following = instructions[at + 1 :]
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            chain = [instruction.argval]
            for after in following:
                if after.opname == "PUSH_NULL":
                    continue
                if after.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
                    break
                chain.append(after.argval)
            reads.add(tuple(chain))
        elif instruction.opname == "IMPORT_NAME":
            taken = []
            for after in following:
                if after.opname == "IMPORT_FROM":
                    taken.append(after.argval)
                elif not after.opname.startswith(("STORE_", "POP_TOP", "SWAP")):
                    break
            level = _level(instructions, at)
            imports.add((instruction.argval, level, tuple(taken)))
    return reads, imports


def _level(instructions: list[dis.Instruction], at: int) -> int:
    """Number of dots before the name of an imported module."""
    constants = [i.argval for i in instructions[max(0, at - 2) : at]]
    return next((value for value in constants if type(value) is int), 0)


# -- whose code it is --------------------------------------------------------------------------


@cache
def _version_of(package: str) -> str:
    module = sys.modules.get(package)
    version = getattr(module, "__version__", None)
    if isinstance(version, str):
        return version
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


@cache
def _in_library(file: str) -> bool:
    return not set(LIBRARIES).isdisjoint(PurePath(file).parts)


def installed(name: str, file: str | None = None) -> str:
    """Name and version of the package of a module. "" if it is the user's own.

    Parameters
    ----------
    name : str
        Name of the module.
    file : str, optional
        Its file, if the module is not the one that was imported under this name.
    """
    package = name.partition(".")[0]
    if package in sys.stdlib_module_names and package != "__main__":
        return f"{package} {sys.version_info[0]}.{sys.version_info[1]}"
    if package != "pymc_ensemble":
        if file is None:
            module = sys.modules.get(name)
            file = getattr(module, "__file__", None)
            if file is None and module is not None:
                file = next(iter(getattr(module, "__path__", ())), None)
        if file is None or not _in_library(file):
            return ""
    return f"{package} {_version_of(package)}"


def module_named(name: str, level: int, namespace: dict[str, Any]) -> types.ModuleType | str:
    """Module that a function imports, or a description if it is not yet imported."""
    if level:
        try:
            name = resolve_name("." * level + name, namespace.get("__package__"))
        except (ImportError, TypeError):
            return "unknown"
    if name in sys.modules:
        return sys.modules[name]
    package = name.partition(".")[0]
    if package in sys.stdlib_module_names:
        return installed(package)
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return "missing"
    if spec is None:
        return "missing"
    if spec.origin is not None and _in_library(spec.origin):
        return installed(package, spec.origin)
    try:
        return import_module(name)
    except Exception:  # any error of the module's own code: there is nothing to compare
        return "missing"
