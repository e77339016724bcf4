"""Unknowns in containers, constants beside them, and how the function gets both."""

import dataclasses
from collections import OrderedDict, namedtuple
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from misbehaving import Log

import pymc_ensemble as pe

X = np.linspace(0.0, 1.0, 6)
Pair = namedtuple("Pair", ["a", "k"])


@dataclasses.dataclass
class Rates:
    a: Any
    k: Any
    method: str = "exact"

    def __post_init__(self):
        self.ratio = self.a / self.k

    def at(self, x):
        return self.a * np.exp(-self.k * x)


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    a: Any
    k: Any


class Record(SimpleNamespace):
    pass


def values(p):
    """The two numbers in any of the containers."""
    if isinstance(p, dict | OrderedDict | pd.Series):
        return p["a"], p["k"]
    if isinstance(p, list | tuple | np.ndarray):
        return p[0], p[1]
    return p.a, p.k


KINDS = {
    "dict": lambda a, k: {"a": a, "k": k},
    "dict with options": lambda a, k: {"a": a, "method": "rk4", "n": 3, "k": k, "x": X},
    "nested dict": lambda a, k: {"a": a, "k": k, "more": {"both": [a, {"k": k}], "none": None}},
    "ordered dict": lambda a, k: OrderedDict(a=a, k=k),
    "list": lambda a, k: [a, k],
    "tuple": lambda a, k: (a, k),
    "list of different shapes": lambda a, k: [a, k, [a, k, 3.0]],
    "named tuple": lambda a, k: Pair(a, k),
    "series": lambda a, k: pd.Series({"a": a, "k": k}, name="rates"),
    "array": lambda a, k: np.array([a, k], dtype=object),
    "dataclass": Rates,
    "frozen dataclass": Frozen,
    "namespace": lambda a, k: SimpleNamespace(a=a, k=k),
    "subclass of a namespace": lambda a, k: Record(a=a, k=k),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_unknowns_in_containers(kind, tmp_path):
    """Called with numbers in the same container; counted, stored, and found again."""
    seen = []

    def simulate(p, *, scale=1.0):
        seen.append(p)
        a, k = values(p)
        return scale * a * np.exp(-k * X)

    log = tmp_path / "runs.db"
    forward = pe.forward_model(simulate, output_shape=(6,), store=log, version="1")
    with pm.Model():
        a, k = pm.Normal("a"), pm.LogNormal("k")
        pm.Normal("y", forward(KINDS[kind](a, k), scale=2.0), 0.1, observed=np.ones(6))
        problem = pe.InverseProblem.from_model()
    U = np.random.default_rng(1).normal(size=(20, 2))
    evaluations = problem.evaluate(U)
    assert not evaluations.failed.any(), evaluations.errors[:1]
    np.testing.assert_allclose(
        evaluations.outputs, 2 * U[:, :1] * np.exp(-np.exp(U[:, 1:]) * X), rtol=1e-12
    )
    assert forward.n_evaluations == evaluations.n_calls == 20
    assert pe.open_store(log).sizes["evaluation"] == 20
    given = KINDS[kind](1.0, 2.0)
    is_vector = kind in ("list", "tuple", "array")
    assert type(seen[0]) is (np.ndarray if is_vector else type(given))
    if kind == "series":
        assert seen[0].dtype == np.float64
        assert seen[0].name == "rates"
    if kind == "dict with options":
        assert (seen[0]["method"], seen[0]["n"]) == ("rk4", 3)
        np.testing.assert_array_equal(seen[0]["x"], X)
    if kind == "dataclass":
        np.testing.assert_allclose(seen[0].at(X), values(seen[0])[0] * np.exp(-seen[0].k * X))
        np.testing.assert_allclose(seen[0].ratio, seen[0].a / seen[0].k)
    problem.evaluate(U)
    assert forward.n_evaluations == 20


@pytest.mark.parametrize("executor", [2, "threads"])
def test_containers_go_to_workers(executor, tmp_path):
    log = Log(tmp_path / "calls.log")

    def simulate(p):
        log.note(p["a"])
        if p["a"] > 1:
            raise ValueError("too large")
        return p["a"] * np.exp(-p["k"] * X)

    forward = pe.forward_model(simulate, output_shape=(6,), executor=executor)
    with pm.Model():
        p = {"a": pm.Normal("a"), "k": pm.LogNormal("k")}
        pm.Normal("y", forward(p), 0.1, observed=np.ones(6))
        problem = pe.InverseProblem.from_model()
    U = np.array([[0.5, 0.0], [2.0, 0.0], [-1.0, 1.0]])
    evaluations = problem.evaluate(U)
    np.testing.assert_array_equal(evaluations.failed, [False, True, False])
    np.testing.assert_allclose(evaluations.outputs[2], -np.exp(-np.e * X))
    assert sorted(log.read()) == [-1.0, 0.5, 2.0]
    forward.close()


def test_containers_of_vectorized_functions():
    forward = pe.forward_model(
        lambda p: p["a"][:, None] * np.exp(-p["k"][:, None] * X) + p["offset"][:, None],
        output_shape=(6,),
        vectorized=True,
    )
    a, k = pt.dscalars("a", "k")
    f = pytensor.function([a, k], forward({"a": a, "k": k, "offset": np.array(3.0)}))
    np.testing.assert_allclose(f(2.0, 1.0), 2 * np.exp(-X) + 3)


class Solver:
    def __init__(self, rate):
        self.rate = rate


REFUSED = {
    "set": lambda a: {a},
    "mapping": lambda a: MappingProxyType({"a": a}),
    "object": Solver,
    "object in a dict": lambda a: {"solver": Solver(a)},
    "table": lambda a: pd.DataFrame({"a": [a, a]}, dtype=object),
    "object in a list": lambda a: [Solver(a)],
}


@pytest.mark.parametrize("kind", list(REFUSED))
def test_what_cannot_be_taken_apart_is_refused_by_name(kind):
    calls = []
    forward = pe.forward_model(lambda p, q: calls.append(p), output_shape=())
    with pm.Model(), pytest.raises(TypeError, match=r"`q.*holds variables of the model.*dict"):
        forward(1.0, REFUSED[kind](pm.Normal("a")))
    assert not calls


def test_unknowns_from_the_surroundings_are_refused():
    with pm.Model():
        a = pm.Normal("a")
        forward = pe.forward_model(lambda x: a * x, output_shape=())
        with pytest.raises(TypeError, match="Pass them as arguments"):
            forward(2.0)


@pytest.mark.parametrize("option", ["euler", "rk4"])
def test_options_in_a_container_are_part_of_what_is_stored(option, tmp_path):
    def simulate(p):
        return p["a"] * (2.0 if p["method"] == "euler" else 3.0)

    forward = pe.forward_model(simulate, output_shape=(), store=tmp_path / "s.db")
    a = pt.dscalar("a")
    for method, factor in (("euler", 2.0), ("rk4", 3.0), (option, 2.0 + (option == "rk4"))):
        assert pytensor.function([a], forward({"a": a, "method": method}))(1.0) == factor
    assert forward.n_evaluations == 2


# -- inputs that are the same for all points ---------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, np.array([1.0, np.nan]), np.array([-np.inf, 0])])
@pytest.mark.parametrize("data", [False, True])
def test_constants_that_are_not_finite_are_data(value, data):
    seen = []

    def simulate(a, forcing):
        seen.append(forcing)
        return a + np.nan_to_num(forcing).sum()

    forward = pe.forward_model(simulate, output_shape=())
    if data and np.isnan(value).any():
        pytest.skip("PyMC refuses NaN in pm.Data")
    with pm.Model():
        forcing = pm.Data("forcing", value) if data else value
        pm.Normal("y", forward(pm.Normal("a"), forcing), 1.0, observed=0.0)
        problem = pe.InverseProblem.from_model()
    assert not problem.evaluate([[1.0], [2.0]]).failed.any()
    np.testing.assert_array_equal(seen[0], value)


def test_an_unknown_that_is_not_finite_is_named():
    forward = pe.forward_model(lambda a, b, c: a, output_shape=())
    a, b = pt.dvector("a"), pt.dscalar("b")
    op = forward(pt.specify_shape(a, (2,)), 1.0, b).owner.op
    _, reasons = forward.evaluate(
        op.signature, np.array([[1.0, 2.0, np.nan]]), None, (np.array(1.0),)
    )
    assert reasons == {0: "The input `c` is not finite: nan."}


def test_data_can_be_changed(tmp_path):
    """In place, too: outputs that were made with other data are not used."""
    calls = []

    def simulate(a, x):
        calls.append(x.sum())
        return a * x.sum()

    forward = pe.forward_model(simulate, output_shape=(), store=tmp_path / "s.db")
    with pm.Model() as model:
        x = pm.Data("x", np.ones(5))
        a = pm.Normal("a")
        mu = pm.Deterministic("mu", forward(a, x))
    f = model.compile_fn(model.replace_rvs_by_values([mu]), inputs=model.value_vars)
    for k in (1.0, 2.0, 1.0):
        with model:
            pm.set_data({"x": np.full(5, k)})
        assert f({"a": 2.0})[0] == 10 * k
    assert calls == [5.0, 10.0]
    x.get_value(borrow=True)[:] = 3.0
    assert f({"a": 2.0})[0] == 30.0
    assert pe.open_store(tmp_path / "s.db").sizes["evaluation"] == 3
    assert "x" not in pe.open_store(tmp_path / "s.db")


def test_a_function_may_write_into_its_constants():
    def careless(a, x):
        x *= a
        return x.sum()

    for executor in (None, 2):
        forward = pe.forward_model(careless, output_shape=(), executor=executor)
        with pm.Model():
            pm.Normal("y", forward(pm.Normal("a"), np.ones(3)), 1.0, observed=0.0)
            problem = pe.InverseProblem.from_model()
        U = np.arange(5.0)[:, None]
        np.testing.assert_array_equal(problem.evaluate(U).outputs, 3 * U)
        forward.close()


def test_several_data_sets_in_one_call():
    forward = pe.forward_model(lambda a, x: a * x, output_shape=())
    a, x, X_ = pt.dscalar("a"), pytensor.shared(2.0), pt.dvector("X")
    both = pytensor.graph.vectorize_graph(forward(a, x), {x: X_})
    np.testing.assert_array_equal(pytensor.function([a, X_], both)(3.0, [1.0, 5.0]), [3.0, 15.0])


def test_large_constants_are_not_remembered_with_each_point():
    data = np.random.default_rng(0).normal(size=200_000)
    forward = pe.forward_model(lambda a, x: a + x[0], output_shape=())
    with pm.Model() as model:
        pm.Normal("y", forward(pm.Normal("a"), pm.Data("x", data)), 1.0, observed=0.0)
        idata = pm.sample(
            200, step=pe.EnsembleKalmanSampler(), chains=1, cores=1, random_seed=1,
            progressbar=False, compute_convergence_checks=False,
        )  # fmt: skip
        before = forward.n_evaluations
        pm.compute_log_likelihood(idata, progressbar=False)
    assert forward.n_evaluations == before
    [site] = forward._runtime.sites.values()
    assert site.memory._bytes < 1000 * len(site.memory)
    assert model.name == ""
