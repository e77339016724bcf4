"""Cheap simulators in the place of those of a model."""

import numpy as np
import pymc as pm
import pytest

import pymc_ensemble as pe
from pymc_ensemble.problem.cheap_model import CheapModel, stand_ins


def one_model(function=np.sin, **options):
    """A model with an unknown scale, and something made of the outputs."""
    simulate = pe.forward_model(function, **options)
    with pm.Model() as model:
        u = pm.LogNormal("u", shape=3)
        sigma = pm.HalfNormal("sigma")
        pm.Normal("y", 2 * simulate(u)[:2] + u[0], sigma, observed=[0.5, 1.0])
    return model


def test_what_a_model_makes_of_outputs_is_the_same():
    model = one_model()
    cheap = CheapModel(model, stand_ins(model, lambda u: u))
    fine = pe.InverseProblem.from_model(model)
    U = np.random.default_rng(1).standard_normal((4, 4))
    u = np.exp(U[:, :3])
    for problem, outputs in ((cheap, u), (fine, np.sin(u))):
        found = problem.evaluate(U)
        assert not found.failed.any()
        expected = np.column_stack([2 * outputs[:, :2] + u[:, [0]], U[:, 3]])
        np.testing.assert_allclose(found.outputs, expected)


def test_two_forward_models_one_behind_the_other():
    @pe.forward_model
    def first(u):
        return np.sin(u)

    @pe.forward_model
    def second(v):
        return {"sum": v.sum(), "all": v**2}

    with pm.Model() as model:
        u = pm.Normal("u", shape=2)
        both = second(first(u))
        pm.Normal("y", both["all"] + both["sum"], 0.1, observed=[0.5, 1.0])
    with pytest.raises(ValueError, match=r"2 forward models.*cheap={'first': ..., 'second': ...}"):
        stand_ins(model, np.sin)
    with pytest.raises(ValueError, match="no function for the forward model 'second'"):
        stand_ins(model, {"first": np.sin})
    with pytest.raises(ValueError, match="`cheap` has 'third'"):
        stand_ins(model, {"first": np.sin, "second": second, "third": np.sin})
    given = {"first": lambda u: u, "second": lambda v: {"sum": v[0], "all": v}}
    cheap = CheapModel(model, stand_ins(model, given))
    U = np.array([[0.5, 0.25], [1.0, -1.0]])
    np.testing.assert_allclose(cheap.evaluate(U).outputs, U + U[:, [0]])


def test_workers_and_batches_of_their_own():
    calls = []

    def batch(u):
        calls.append(len(u))
        return u

    model = one_model()
    vectorized = pe.forward_model(batch, vectorized=True, executor="threads")
    cheap = CheapModel(model, stand_ins(model, vectorized))
    calls.clear()
    assert cheap.evaluate(np.random.default_rng(1).standard_normal((6, 4))).outputs.shape == (6, 3)
    assert sum(calls) == 6
    assert cheap.names == "batch"


def test_members_may_fail():
    def fails(u):
        if u[0] > 1:
            raise RuntimeError("unstable")
        return u

    model = one_model()
    cheap = CheapModel(model, stand_ins(model, fails))
    found = cheap.evaluate(np.array([[-0.5, 0, 0, 0], [0.5, 0, 0, 0]]))
    np.testing.assert_array_equal(found.failed, [False, True])
    assert "unstable" in dict(found.errors)[1]


def test_other_shapes_are_refused():
    model = one_model()
    with pytest.raises(ValueError, match=r"shape \(2,\), but sin of shape \(3,\)"):
        CheapModel(model, stand_ins(model, lambda u: u[:2]))


def noisy(u, rng):
    return u + rng.standard_normal(3)


def test_noise_is_refused():
    with pytest.raises(ValueError, match="cheap model noisy is stochastic"):
        stand_ins(one_model(), pe.forward_model(noisy, stochastic=True))
    with pytest.raises(ValueError, match="forward model noisy is stochastic"):
        stand_ins(one_model(noisy, stochastic=True), np.sin)


def test_what_is_no_function_and_a_model_without_simulator():
    with pytest.raises(TypeError, match="must be a function, not 3"):
        stand_ins(one_model(), {"sin": 3})
    with pm.Model() as model:
        pm.Normal("y", pm.Normal("u"), observed=1.0)
    with pytest.raises(ValueError, match=r"no forward model.*pe\.forward_model"):
        stand_ins(model, np.sin)


def test_two_of_one_name_cannot_be_told_apart():
    first, second = pe.forward_model(lambda u: u), pe.forward_model(lambda u: -u)
    with pm.Model() as model:
        u = pm.Normal("u", shape=2)
        pm.Normal("y", first(u) * second(u), observed=[0.5, 1.0])
    with pytest.raises(ValueError, match="Two forward models of the model have the name"):
        stand_ins(model, np.sin)
