"""The density of some variables given the others is that of the whole model."""

import cloudpickle
import numpy as np
import pymc as pm
import pytest

from pymc_ensemble.problem import InverseProblem
from pymc_ensemble.problem.conditional_model import ConditionalModel

X = np.linspace(-1, 1, 5)
Y = np.array([0.3, -0.2, 0.5, 0.9, -1.1])


def discrete():
    k = pm.Categorical("k", [0.2, 0.5, 0.3])
    a, s = pm.Normal("a", 0, 1 + k), pm.HalfNormal("s")
    pm.Normal("y", a * X ** (k + 1), s, observed=Y)


def other_with_transform():
    s, tau = pm.HalfNormal("s"), pm.Gamma("tau", 2, 1)
    a = pm.Normal("a", 0, tau, shape=2)
    pm.Normal("y", a[0] + a[1] * X, s, observed=Y)


def vectors_of_integers():
    k = pm.Poisson("k", 2.0, shape=3)
    a = pm.Normal("a", k, 1.0)
    pm.Normal("y", a.sum() * X, 0.5, observed=Y)


def downstream_of_others():
    """An other one depends on what is sampled, and is data to it."""
    a = pm.Normal("a")
    k = pm.Poisson("k", pm.math.exp(a))
    pm.Normal("y", k, 1.0, observed=Y)


def free_behind_observed():
    """What is sampled depends on an other one, which depends on what is sampled."""
    a = pm.Normal("a")
    k = pm.Poisson("k", pm.math.exp(a))
    b = pm.Normal("b", k * a)
    pm.Normal("y", b + a * X, 1.0, observed=Y)


MODELS = {
    discrete: (["a", "s"], [{"k": 0}, {"k": 2}, {"k": 1}]),
    other_with_transform: (["a"], [{"s_log__": 0.3, "tau_log__": -1.0}, {"s_log__": -0.5}]),
    vectors_of_integers: (["a"], [{"k": [0, 1, 2]}, {"k": [3, 0, 1]}]),
    downstream_of_others: (["a"], [{"k": 0}, {"k": 4}]),
    free_behind_observed: (["a", "b"], [{"k": 0}, {"k": 4}]),
}  # fmt: skip


def conditioned(define, names):
    with pm.Model() as model:
        define()
    return model, ConditionalModel(model, [model.rvs_to_values[model[n]] for n in names])


def at(values):
    return {name: np.asarray(value) for name, value in values.items()}


@pytest.mark.parametrize("how", ["from_model", "from_density"])
@pytest.mark.parametrize("define", MODELS, ids=lambda define: define.__name__)
def test_density_of_the_whole_model(define, how):
    """All of it but the terms that do not depend on what is sampled, which cancel."""
    names, points = MODELS[define]
    model, conditional = conditioned(define, names)
    options = {"given": conditional.given} if how == "from_model" else {}
    problem = getattr(InverseProblem, how)(conditional.model, **options)
    own = [v.name for v in conditional.model.value_vars]
    start, density = model.initial_point(), model.compile_logp()
    U = 0.5 * np.random.default_rng(1).standard_normal((4, problem.dimension))
    ends = np.cumsum([start[name].size for name in own])[:-1]
    for others in points:
        point = start | at(others)
        conditional.condition(point)
        expected = []
        for u in U:
            parts = zip(own, np.split(u, ends), strict=True)
            moved = {name: part.reshape(start[name].shape) for name, part in parts}
            expected.append(float(density(point | moved)))
        Z = problem.forward(U)
        found = -problem.loss(Z) - problem.prior_potential(U)
        np.testing.assert_allclose(np.diff(found), np.diff(expected), rtol=1e-8, atol=1e-8)


def test_condition_tells_whether_something_has_changed():
    model, conditional = conditioned(other_with_transform, ["a"])
    assert conditional.given == ("s", "tau")
    point = model.initial_point()
    assert not conditional.condition(point)
    point["a"] = np.array([3.0, 4.0])
    assert not conditional.condition(point)
    point["tau_log__"] = np.array(0.7)
    assert conditional.condition(point)
    assert not conditional.condition(point)


def test_model_is_left_alone():
    with pm.Model() as model:
        discrete()
    before = [rv.name for rv in model.free_RVs], model.point_logps()
    ConditionalModel(model, [model.rvs_to_values[model["a"]]])
    assert ([rv.name for rv in model.free_RVs], model.point_logps()) == before


def test_copies_do_not_share_values():
    model, conditional = conditioned(discrete, ["a", "s"])
    copy = cloudpickle.loads(cloudpickle.dumps(conditional))
    point = model.initial_point() | {"k": np.array(2)}
    assert copy.condition(point)
    assert conditional.condition(point)


def test_support_that_depends_on_what_is_sampled():
    with pm.Model() as model:
        a = pm.HalfNormal("a")
        pm.Uniform("b", 0, a)
        pm.Normal("y", a, 1.0, observed=Y)
    with pytest.raises(ValueError, match=r"support of `b` depends on `a`.*Add it to `vars`"):
        ConditionalModel(model, [model.rvs_to_values[a]])
