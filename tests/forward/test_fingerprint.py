"""What a function depends on: every change is seen, whatever holds the value; nothing else is."""

import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import importlib.util
import operator
import random
import re
import subprocess
import sys
import textwrap
import threading
import types
from pathlib import Path

import cloudpickle
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import scipy.special
import scipy.stats
import xarray as xr
from scipy.interpolate import CubicSpline, RegularGridInterpolator, interp1d

from pymc_ensemble.forward.contents import of_file
from pymc_ensemble.forward.versions import fingerprint


class Plain:
    def __init__(self, value):
        self.value = value


class Slots:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


@dataclasses.dataclass(frozen=True)
class Settings:
    value: float
    names: tuple = ("a", "b")


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


Named = collections.namedtuple("Named", ["value", "other"])


def scaled(x, factor):
    return factor * x


def cyclic(value):
    entries = [value]
    entries.append(entries)
    return entries


def with_attribute(value):
    def function(x):
        return x

    function.value = value
    return function


VALUES = {
    "number": lambda v: v,
    "numpy number": np.float32,
    "text": lambda v: f"{'x' * 200}{v}",
    "list": lambda v: [v, 0.0],
    "nested": lambda v: [{"a": ({"b": [v]},)}],
    "set": lambda v: {v, "x", "y", "z"},
    "not a number beside": lambda v: [float("nan"), v],
    "zero and minus zero": lambda v: 0.0 if v < 1.5 else -0.0,
    "one and true": lambda v: 1 if v < 1.5 else True,
    "dict in another order": lambda v: {"a": 1, "b": 2} if v < 1.5 else {"b": 2, "a": 1},
    "array": lambda v: np.full(3, v),
    "large array": lambda v: np.append(np.zeros(20_000), v),
    "view": lambda v: np.arange(6.0).reshape(2, 3).T * v,
    "shape": lambda v: np.zeros((2, 3) if v < 1.5 else (3, 2)),
    "object array": lambda v: np.array([Plain(v), None], dtype=object),
    "records": lambda v: np.array([(v, 1)], dtype=[("a", float), ("b", int)]),
    "masked array": lambda v: np.ma.masked_array([1.0, 2.0], [v > 1.5, False]),
    "dates": lambda v: np.array([f"2020-01-0{v:.0f}"], dtype="M8[D]"),
    "object": Plain,
    "object in an object": lambda v: [Plain({"inner": Plain(v)})],
    "slots": Slots,
    "dataclass": Settings,
    "enum": lambda v: Colour(int(v)),
    "named tuple": lambda v: Named(v, 1),
    "namespace": lambda v: types.SimpleNamespace(v=v),
    "class": lambda v: type("Class", (), {"value": v}),
    "ordered dict": lambda v: collections.OrderedDict(a=v),
    "default dict": lambda v: collections.defaultdict(list, a=v),
    "deque": lambda v: collections.deque([v]),
    "cycle": cyclic,
    "partial": lambda v: functools.partial(scaled, factor=v),
    "closure": lambda v: lambda x: v * x,
    "default": lambda v: eval("lambda x, v=v: v * x", {"v": v}),
    "attribute of a function": with_attribute,
    "bound method": lambda v: Plain(v).__init__,
    "cached function": lambda v: functools.lru_cache(lambda x: v * x),
    "vectorized function": lambda v: np.vectorize(lambda x: v * x),
    "ufunc": lambda v: np.exp if v < 1.5 else np.log,
    "ufunc of SciPy": lambda v: scipy.special.gamma if v < 1.5 else scipy.special.erf,
    "table": lambda v: pd.DataFrame({"dose": [v, 1.0], "name": ["a", "b"]}),
    "labels of a table": lambda v: pd.Series([1.0], index=["a" if v < 1.5 else "b"]),
    "categories": lambda v: pd.Categorical(["a", "b"], ["a", "b"] if v < 1.5 else ["b", "a"]),
    "labelled data": lambda v: xr.Dataset({"dose": ("time", [v])}),
    "interpolation": lambda v: interp1d([0.0, 9.0], [v, 1.0]),
    "spline": lambda v: CubicSpline([0.0, 1.0, 2.0], [v, 1.0, 0.0]),
    "grid": lambda v: RegularGridInterpolator(([0.0, 1.0], [0.0, 1.0]), np.full((2, 2), v)),
    "sparse matrix": lambda v: scipy.sparse.csr_matrix([[v, 0.0]]),
    "distribution": scipy.stats.norm,
    "polynomial": lambda v: np.polynomial.Polynomial([v, 1.0]),
    "decimal": decimal.Decimal,
    "date": lambda v: datetime.date(2020, 1, int(v)),
    "path": lambda v: Path(f"data-{v}.csv"),
    "pattern": lambda v: re.compile(str(v)),
    "getter": lambda v: operator.itemgetter(int(v)),
    "method of a list": lambda v: [v].index,
}


def closing_over(value):
    def simulate(x):
        return x, value

    return simulate


@pytest.mark.parametrize("name", list(VALUES))
def test_every_change_of_a_value_is_seen(name):
    """In a closure; the same value made anew, or sent to another process, is the same."""
    one, again, other = (closing_over(VALUES[name](v)) for v in (1.0, 1.0, 2.0))
    assert fingerprint(one) == fingerprint(again)
    assert fingerprint(one) != fingerprint(other)
    if name != "cached function":  # of a function without a name
        assert fingerprint(cloudpickle.loads(cloudpickle.dumps(one))) == fingerprint(one)


UNTOLD = {
    "lock": threading.Lock,
    "event": threading.Event,
    "file": lambda: open(__file__, "rb"),  # noqa: PTH123, SIM115
    "generator": lambda: (i for i in "abc"),
    "lock in an object": lambda: Plain({"deep": [threading.RLock()]}),
    "function of C": lambda: np.frompyfunc(lambda x: x, 1, 1),
}


@pytest.mark.parametrize("name", list(UNTOLD))
def test_what_cannot_be_told_is_named(name):
    value = UNTOLD[name]()
    with pytest.raises(ValueError, match=r"is not known, as `simulate\.value.*Give `version`"):
        fingerprint(closing_over(value))
    if name == "file":
        value.close()


@pytest.mark.parametrize(
    "make",
    [np.random.default_rng, np.random.RandomState, np.random.PCG64, random.Random],
)
def test_the_next_random_number_is_no_setting(make):
    one, other = make(1), make(2)
    assert fingerprint(closing_over(one)) == fingerprint(closing_over(other))


# -- modules -----------------------------------------------------------------------------------


def load(path, source, monkeypatch=None):
    path.write_text(textwrap.dedent(source))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    if monkeypatch is not None:
        monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)
    return module


USES = {
    "global": ("", "x * K"),
    "attribute of a module": ("import our_settings", "x * our_settings.K"),
    "module by another name": ("import our_settings as s", "x * s.K"),
    "name from a module": ("from our_settings import CONFIG", "x * CONFIG['k']"),
    "function of a module": ("import our_settings", "our_settings.scale(x)"),
    "function by name": ("from our_settings import scale", "scale(x)"),
    "object of a module": ("from our_settings import OBJECT", "OBJECT.scale(x)"),
    "class of a module": ("from our_settings import Scale", "Scale.scale(x)"),
    "whole module": ("import our_settings", "x * getattr(our_settings, 'K')"),
    "imported inside": ("", "IMPORT our_settings\n    return x * our_settings.K"),
    "name imported inside": ("", "from our_settings IMPORT CONFIG\n    return x * CONFIG['k']"),
    "inner function": ("import our_settings", "[our_settings.K * y for y in [x]][0]"),
    "property": ("from our_settings import OBJECT", "x * OBJECT.twice"),
}
OURS = """
    K = {k}
    CONFIG = {{"k": {k}, "other": [1, 2]}}
    UNRELATED = {other}
    LOCK = __import__("threading").Lock()
    def scale(x):
        return x * K
    class Base:
        k = {k}
        @classmethod
        def scale(cls, x):
            return x * cls.k
    class Scale(Base):
        @property
        def twice(self):
            return 2 * self.k
    OBJECT = Scale()
"""


@pytest.mark.parametrize("use", list(USES))
def test_names_of_modules_that_are_read(use, tmp_path, monkeypatch):
    """Their values count, and nothing else of the module does."""
    versions = []
    head, body = USES[use]
    body = body.replace("IMPORT", "import") if "IMPORT" in body else f"return {body}"
    for n, (k, other) in enumerate([(2.0, 1), (2.0, 5), (3.0, 1)]):
        load(tmp_path / "our_settings.py", OURS.format(k=k, other=other), monkeypatch)
        source = f"{head}\nK = {k}\ndef simulate(x):\n    {body}\n"
        simulate = load(tmp_path / f"script{n}.py", source).simulate
        assert simulate(1.0) in (k, 2 * k)
        if use == "whole module":  # it has a lock
            with pytest.raises(ValueError, match=r"our_settings\.LOCK"):
                fingerprint(simulate)
            return
        versions.append(fingerprint(simulate))
    same, _, changed = versions
    assert changed != same
    module = sys.modules["our_settings"]
    before = fingerprint(simulate)
    monkeypatch.setattr(module, "UNRELATED", 99)
    assert fingerprint(simulate) == before
    for name, value in (("K", 7.0), ("k", 7.0)):
        owner = module if name == "K" else module.Base
        monkeypatch.setattr(owner, name, value)
    monkeypatch.setitem(module.CONFIG, "k", 7.0)
    monkeypatch.setitem(simulate.__globals__, "K", 7.0)
    assert fingerprint(simulate) != before


def test_code_counts_and_comments_do_not(tmp_path):
    def version(source):
        return fingerprint(load(tmp_path / "script.py", source).simulate)

    plain = version("def simulate(x):\n    return 2 * x\n")
    assert plain == version("# a comment\n\ndef simulate(x):\n    # another\n    return 2 * x\n")
    assert plain != version("def simulate(x):\n    return 3 * x\n")
    assert plain != version("def simulate(x):\n    return 2 + x\n")
    helper = "def helper(x):\n    return {} * x\ndef simulate(x):\n    return helper(x)\n"
    assert version(helper.format(2)) != version(helper.format(3))
    recursive = "def simulate(x):\n    return x if x < {} else simulate(x - 1)\n"
    assert version(recursive.format(2)) != version(recursive.format(3))
    mutual = "def f(x):\n    return g(x) - {}\ndef g(x):\n    return f(x)\nsimulate = g\n"
    assert version(mutual.format(2)) != version(mutual.format(3))
    decorated = """
        import functools
        def twice(function):
            @functools.wraps(function)
            def wrapper(x):
                return {} * function(x)
            return wrapper
        @twice
        def simulate(x):
            return {} * x
    """
    versions = {version(decorated.format(*ks)) for ks in ((1, 1), (2, 1), (1, 2))}
    assert len(versions) == 3


def test_functions_without_source():
    namespace = {"__name__": "nowhere", "K": 1.0}
    exec("def simulate(x):\n    return K * x", namespace)
    before = fingerprint(namespace["simulate"])
    namespace["K"] = 2.0
    assert fingerprint(namespace["simulate"]) != before
    assert fingerprint(lambda x: x) == fingerprint(lambda x: x)
    assert fingerprint(np.exp) != fingerprint(np.log)
    with pytest.raises(ValueError, match="a call of `eval`, which may read anything"):
        fingerprint(lambda x: eval("x * K"))


def test_the_same_in_every_process(tmp_path):
    """Whatever the seed of hashes: sets, dicts, and addresses are no part of it."""
    (tmp_path / "script.py").write_text(
        "import re, functools, collections\n"
        "NAMES, TABLE = {'a', 'b', 'c', ('d', 1)}, {'x': [1, {'y': frozenset('pq')}]}\n"
        "class Solver:\n"
        "    def __init__(self): self.k = collections.Counter('abca'); self.me = self\n"
        "    def __call__(self, x): return 'a' in NAMES and len(TABLE) + x in {1, 'z', 2.5}\n"
        "simulate = functools.partial(Solver())\n"
    )
    code = (
        "import script, sys; from pymc_ensemble.forward.versions import fingerprint;"
        "sys.stdout.write(fingerprint(script.simulate))"
    )
    found = set()
    for seed in ("1", "2", "3"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**__import__("os").environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(done.stdout)
    assert len(found) == 1, found


def test_files_by_their_content(tmp_path):
    path = tmp_path / "mesh.dat"
    path.write_text("1 2 3")
    simulate = closing_over(1.0)
    before = fingerprint(simulate, [path])
    assert fingerprint(simulate) != before
    path.touch()
    assert fingerprint(simulate, [path]) == before
    path.write_text("1 2 4")  # of the same length, in the same moment
    assert fingerprint(simulate, [path]) != before
    with pytest.raises(ValueError, match="is not a file"):
        of_file(tmp_path)
