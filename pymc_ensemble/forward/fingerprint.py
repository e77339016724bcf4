"""All that the result of a function depends on, besides its arguments, as far as possible.

A function is taken apart into leaves, each with a path such as ``simulate.TABLE['dose']``. Leaves
are its code, the code of the user's own functions and classes that it uses, defaults, closures, and
the values of global names and attributes that the code reads, however nested. For installed
packages only the version counts. Only listed files count.
"""

import copyreg
import enum
import functools
import io
import logging
import random
import sys
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from .code import BY_NAME, code_of, installed, module_named
from .contents import of_array, of_file

Leaf = tuple[Any, ...] | str | bytes
SCALARS = (type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented))
CODE = (types.FunctionType, type, types.ModuleType)
CHANCE = (np.random.Generator, np.random.RandomState, np.random.BitGenerator, random.Random)
"""Random generators, whose state is not a setting."""
NO_VALUES = (
    io.IOBase,
    memoryview,
    threading.Thread,
    types.GeneratorType,
    types.CoroutineType,
    types.AsyncGeneratorType,
    types.FrameType,
    types.TracebackType,
    weakref.ref,
)
OPAQUE = ("ctypes", "_ctypes", "_cffi_backend", "_thread", "pytensor", "pymc", "multiprocessing")
"""Packages whose objects are handles, or graphs."""
OF_A_CLASS = frozenset(
    {
        *("__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__annotations__"),
        *("__annotate__", "__annotate_func__", "__annotations_cache__", "__slotnames__"),
        *("__abstractmethods__", "_abc_impl", "__static_attributes__", "__firstlineno__"),
        *("__dataclass_fields__", "__dataclass_params__", "__match_args__", "__parameters__"),
        *("__orig_bases__", "__attrs_attrs__", "__attrs_props__"),
    }
)
"""Attributes of classes that the user's code does not read."""
MANY = 200_000  # leaves, about 0.5 s: more take too long to compare at every prediction
SHORT = 64  # characters of a text that is kept as it is


class Fingerprint:
    """Leaves of a function.

    Parameters
    ----------
    function : callable
    depends_on : sequence of path
        Files whose content counts.
    left_out : mapping of str to collection of str
        Paths that do not count, with their entries that still count.

    Attributes
    ----------
    leaves : dict of str to Leaf
    untold : dict of str to str
        Paths of values that cannot be compared, and their description.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        depends_on: Sequence[Path] = (),
        left_out: Mapping[str, frozenset[str]] | None = None,
    ):
        self.leaves: dict[str, Leaf] = {}
        self.untold: dict[str, str] = {}
        self.left_out = left_out or {}
        self._seen: dict[int, str] = {}
        self._kept: list[Any] = []  # kept alive, so that no id is used twice
        self._namespaces: dict[str, list[int]] = {}
        self._visit(getattr(function, "__name__", type(function).__name__), function)
        for path in depends_on:
            self.leaves[f"depends_on {path}"] = of_file(path)

    # -- values ---------------------------------------------------------------------------------

    def _visit(self, path: str, value: Any) -> None:
        if path in self.left_out and not self.left_out[path]:
            return
        cls = type(value)
        if cls in SCALARS or (isinstance(value, np.generic) and cls.__name__ != "void"):
            self.leaves[path] = _scalar(value)
            return
        if id(value) in self._seen:  # a cycle, or code that was seen before
            self.leaves[path] = ("as", self._seen[id(value)])
            return
        if len(self.leaves) > MANY:
            self.untold[path] = f"part of more than {MANY} values"
            return
        self._seen[id(value)] = path
        self._kept.append(value)
        try:
            self._take_apart(path, value, cls)
        except RecursionError:
            self.untold[path] = "nested too deeply"
        if not isinstance(value, CODE):
            del self._seen[id(value)]

    def _take_apart(self, path: str, value: Any, cls: type) -> None:
        if isinstance(value, types.FunctionType):
            self._function(path, value)
        elif isinstance(value, type):
            self._class(path, value)
        elif isinstance(value, types.ModuleType):
            self._module(path, value)
        elif isinstance(value, np.ndarray):
            self._array(path, value)
        elif cls in (list, tuple, deque):
            self._sequence(path, value)
        elif cls in (dict, types.MappingProxyType):
            self._mapping(path, dict(value), lambda key: f"{path}[{key!r}]")
        elif cls in (set, frozenset):
            self.leaves[path] = (cls.__name__, *sorted(self._digest(path, e) for e in value))
        elif isinstance(value, CHANCE):
            self.leaves[path] = ("random numbers", cls.__qualname__)
        elif isinstance(value, NO_VALUES) or cls.__module__.partition(".")[0] in OPAQUE:
            self.untold[path] = f"of type {cls.__qualname__}"
        elif isinstance(value, PurePath | logging.Logger | slice | range):
            self.leaves[path] = (cls.__name__, str(value))
        else:
            self._object(path, value, cls)

    def _digest(self, path: str, value: Any) -> bytes:
        """Digest of a value whose place has no name."""
        part = Fingerprint.__new__(Fingerprint)
        part.leaves, part.untold, part.left_out = {}, {}, {}
        part._seen, part._kept = dict(self._seen), self._kept
        part._namespaces = self._namespaces
        part._visit("", value)
        self.untold |= {path + inside: what for inside, what in part.untold.items()}
        return digest(part.leaves)

    def _array(self, path: str, value: np.ndarray) -> None:
        kind = (type(value).__qualname__, str(value.dtype), value.shape)
        plain = np.asarray(value)
        if plain.dtype.hasobject:
            self.leaves[path] = kind
            self._sequence(f"{path}.values", plain.ravel().tolist())
        else:
            self.leaves[path] = (*kind, of_array(value, plain))
        if isinstance(value, np.ma.MaskedArray):
            self._visit(f"{path}.mask", np.asarray(value.mask))
            self._visit(f"{path}.fill_value", value.fill_value)
        elif type(value) is not np.ndarray:
            for name, entry in sorted(getattr(value, "__dict__", {}).items()):
                self._visit(f"{path}.{name}", entry)

    def _sequence(self, path: str, value: Sequence[Any]) -> None:
        if all(type(entry) in SCALARS for entry in value):
            text = repr(list(value))
            self.leaves[path] = (type(value).__name__, len(value), _short(text))
            return
        self.leaves[path] = (type(value).__name__, len(value))
        for i, entry in enumerate(value):
            self._visit(f"{path}[{i}]", entry)

    def _mapping(self, path: str, value: dict, name: Callable[[Any], str]) -> None:
        """Entries of a dict, or attributes of an object, without those that are left out."""
        plain = all(type(key) in SCALARS for key in value)
        grown = self.left_out.get(path)
        if grown is None:
            keys = tuple(map(repr, value)) if plain else len(value)
            self.leaves[path] = ("dict", _short(repr(keys)))
        for i, (key, entry) in enumerate(value.items()):
            if not plain:
                self._visit(f"{path}.key {i}", key)
                self._visit(f"{path}.value {i}", entry)
            elif grown is None or name(key) in grown:
                self._visit(name(key), entry)

    def _object(self, path: str, value: Any, cls: type) -> None:
        described = getattr(cls, "__fingerprint__", None)
        if described is not None:
            self._visit(f"{path}.", described(value))
            return
        inner = getattr(value, "__wrapped__", None) or getattr(value, "py_func", None)
        if isinstance(value, functools.partial):
            self._sequence(path, [value.func, value.args, value.keywords])
        elif isinstance(value, types.MethodType):
            self._visit(f"{path}.__self__", value.__self__)
            self._visit(f"{path}.{value.__name__}", value.__func__)
        elif isinstance(value, types.BuiltinFunctionType | types.MethodWrapperType):
            self._builtin(path, value)
        elif isinstance(value, np.ufunc):
            if getattr(np, value.__name__, None) is value or _is_of_scipy(value):
                self.leaves[path] = ("ufunc", value.__name__, np.__version__)
            else:
                self.untold[path] = f"the ufunc {value.__name__}"
        elif isinstance(value, property):
            self._sequence(path, [value.fget, value.fset])
        elif isinstance(value, staticmethod | classmethod):
            self._visit(f"{path}.", value.__func__)
        elif isinstance(value, functools.cached_property):
            self._visit(f"{path}.", value.func)
        elif isinstance(value, enum.Enum):
            self._class_of(path, cls)
            self._visit(f"{path}.value", value.value)
        elif callable(value) and callable(inner):
            self._visit(f"{path}.__wrapped__", inner)
        elif isinstance(
            value, types.GetSetDescriptorType | types.MemberDescriptorType
        ) or cls.__name__ in ("method_descriptor", "wrapper_descriptor", "classmethod_descriptor"):
            self.leaves[path] = ("descriptor", value.__name__)
        else:
            self._by_pickle(path, value, cls)

    def _builtin(self, path: str, value: Any) -> None:
        owner = value.__self__
        self.leaves[path] = ("builtin", value.__name__)
        if isinstance(owner, types.ModuleType):
            self._module(f"{path}.module", owner, of_function=True)
        elif owner is not None:
            self._visit(f"{path}.__self__", owner)

    def _by_pickle(self, path: str, value: Any, cls: type) -> None:
        """Describe an object by what pickle would send, one level deep."""
        try:
            reduce = copyreg.dispatch_table.get(cls)
            reduced = value.__reduce_ex__(4) if reduce is None else reduce(value)
        except Exception:  # in the object's own code: use its attributes, or name it as unknown
            attributes = getattr(value, "__dict__", None)
            if not attributes:
                self.untold[path] = f"of type {cls.__qualname__}"
                return
            reduced = (cls, (), attributes)
        if isinstance(reduced, str):
            module = getattr(value, "__module__", None) or cls.__module__
            self.leaves[path] = (cls.__qualname__, reduced, installed(module))
            return
        made_by, arguments, state, entries, items = (*reduced, None, None, None)[:5]
        self._class_of(path, cls)
        if getattr(made_by, "__module__", "") != "copyreg":
            self._visit(f"{path}.made by", made_by)
        rest = [entry for entry in arguments if entry is not cls]
        if rest:
            self._sequence(f"{path}.arguments", rest)
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        for part in parts:
            if type(part) is dict and all(isinstance(key, str) for key in part):
                part = dict(sorted(part.items()))
                self._mapping(path, part, lambda key: f"{path}.{key}")
            elif part is not None:
                self._visit(f"{path}.state", part)
        if entries is not None:
            self._sequence(f"{path}.entries", list(entries))
        if items is not None:
            items = dict(items)
            self._mapping(f"{path}.items", items, lambda key: f"{path}[{key!r}]")

    def _class_of(self, path: str, cls: type) -> None:
        self.leaves[f"{path}.type"] = f"{cls.__module__}.{cls.__qualname__}"
        self._visit(f"{path}.class", cls)

    # -- code -----------------------------------------------------------------------------------

    def _function(self, path: str, function: types.FunctionType) -> None:
        namespace = function.__globals__
        module = namespace.get("__name__") or ""
        package = _package_of(function, module)
        if package:
            self.leaves[path] = (function.__qualname__, package)
        else:
            self.leaves[path] = code_of(function.__code__).digest
            self._visit_all(path, "default", function.__defaults__ or ())
            for name, value in sorted((function.__kwdefaults__ or {}).items()):
                self._visit(f"{path}.{name}", value)
        cells = function.__closure__ or ()
        for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
            try:
                self._visit(f"{path}.{name}", cell.cell_contents)
            except ValueError:
                self.leaves[f"{path}.{name}"] = "empty"
        for name, value in sorted(function.__dict__.items()):
            if not name.startswith("__") or name == "__wrapped__":
                self._visit(f"{path}.{name}", value)
        if not package:
            self._names(path, function, namespace)

    def _visit_all(self, path: str, name: str, values: Iterable[Any]) -> None:
        for i, value in enumerate(values):
            self._visit(f"{path}.{name} {i}", value)

    def _names(self, path: str, function: types.FunctionType, namespace: dict[str, Any]) -> None:
        """Values of the global names that a function reads, and of its imports."""
        code = code_of(function.__code__)
        module = str(namespace.get("__name__", ""))
        of_that_name = self._namespaces.setdefault(module, [])
        if id(namespace) not in of_that_name:
            of_that_name.append(id(namespace))
        if number := of_that_name.index(id(namespace)):
            module += f" {number + 1}"
        for chain in code.reads:
            if chain[0] in namespace:
                self._chain(f"{module}.{chain[0]}", namespace[chain[0]], chain[1:])
            elif chain[0] in BY_NAME:
                self.untold[f"{path}.{chain[0]}"] = (
                    f"a call of `{chain[0]}`, which may read anything"
                )
            else:
                self.leaves[f"{module}.{chain[0]}"] = "built in, or not defined"
        for name, level, taken in code.imports:
            imported = module_named(name, level, namespace)
            if isinstance(imported, str):
                self.leaves[f"import {name}"] = imported
                continue
            for attribute in taken or sorted(code.names & vars(imported).keys()):
                if attribute in vars(imported):
                    self._chain(imported.__name__, imported, (attribute,))

    def _chain(self, path: str, value: Any, attributes: Sequence[str]) -> None:
        """Value of a name, or of the attribute that is read of one of the user's modules."""
        for name in attributes:
            if not isinstance(value, types.ModuleType) or _package_of_module(value):
                break
            if name not in vars(value):
                break
            path, value = f"{value.__name__}.{name}", vars(value)[name]
        if path not in self.leaves:
            self._visit(path, value)

    def _module(self, path: str, module: types.ModuleType, of_function: bool = False) -> None:
        package = _package_of_module(module)
        if package:
            self.leaves[path] = package
            return
        file = getattr(module, "__file__", None)
        if file is not None and not file.endswith(".py"):  # compiled
            self.leaves[path] = of_file(Path(file))
            return
        self.leaves[path] = module.__name__
        if not of_function:
            for name, value in sorted(vars(module).items()):
                if not name.startswith("__"):
                    self._visit(f"{module.__name__}.{name}", value)

    def _class(self, path: str, cls: type) -> None:
        name = f"{cls.__module__}.{cls.__qualname__}"
        package = installed(cls.__module__)
        self.leaves[path] = (name, package)
        if package:
            return
        self._visit_all(path, "base", cls.__bases__)
        entries = dict(sorted(vars(cls).items()))
        if issubclass(cls, enum.Enum):
            entries = {k: v for k, v in entries.items() if not k.startswith("_")}
        for attribute, value in entries.items():
            if attribute not in OF_A_CLASS:
                self._visit(f"{path}.{attribute}", value)


def _package_of(function: types.FunctionType, module: str) -> str:
    imported = sys.modules.get(module)
    if imported is not None and vars(imported) is function.__globals__:
        return installed(module)
    return installed(module, function.__code__.co_filename)


def _package_of_module(module: types.ModuleType) -> str:
    return installed(module.__name__, getattr(module, "__file__", None))


def _is_of_scipy(value: np.ufunc) -> bool:
    special = sys.modules.get("scipy.special")
    return getattr(special, value.__name__, None) is value


def _scalar(value: Any) -> Leaf:
    return (type(value).__name__, _short(repr(value)))


def _short(text: str) -> str | bytes:
    return text if len(text) <= SHORT else blake2b(text.encode(errors="surrogatepass")).digest()


def digest(leaves: Mapping[str, Leaf]) -> bytes:
    """One digest of all leaves."""
    text = "\0".join(f"{path}\1{leaf!r}" for path, leaf in sorted(leaves.items()))
    return blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
