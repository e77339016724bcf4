"""A problem is made again only if the model, an option or the thread is another one."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pymc as pm
import pytensor
import pytest

from pymc_ensemble import InverseProblem
from pymc_ensemble.problem.differentiable import DifferentiableProblem


def line():
    with pm.Model() as model:
        slope = pm.Normal("slope")
        times = pm.Data("times", np.arange(3.0))
        pm.Normal("y", slope * times, 0.5, observed=[0.1, 0.9, 2.2])
    return model


@pytest.mark.parametrize(
    "make",
    [InverseProblem.from_model, InverseProblem.from_density, DifferentiableProblem.from_model],
)
def test_the_same_model_has_the_same_problem(make):
    model = line()
    assert make(model) is make(model)
    assert make(model, compile_kwargs={"mode": "FAST_RUN"}) is not make(model)
    assert make(model) is not make(line())


def potential(model):
    with model:
        pm.Potential("more", -(model["slope"] ** 4))


def transform(model):
    [rv] = model.free_RVs
    model.rvs_to_transforms[rv] = pm.distributions.transforms.log


def data(model):
    pm.set_data({"times": np.array([0.0, 1.0, 3.0])}, model)


def observed(model):
    with model:
        pm.Normal("z", model["slope"], observed=1.0)


@pytest.mark.parametrize("change", [potential, transform, data, observed])
def test_a_changed_model_has_another_problem(change):
    model = line()
    before = InverseProblem.from_model(model)
    change(model)
    after = InverseProblem.from_model(model)
    assert after is not before


def test_new_data_count():
    model = line()
    for times in ([0.0, 1.0, 2.0], [0.0, 1.0, 3.0], [0.0, 1.0, 2.0]):
        pm.set_data({"times": np.array(times)}, model)
        problem = InverseProblem.from_model(model)
        np.testing.assert_allclose(problem.forward([[2.0]])[0], np.multiply(2, times))


def test_arrays_that_are_changed_in_place_count():
    times = np.arange(3.0)
    with pm.Model() as model:
        slope = pm.Normal("slope")
        pm.Normal("y", slope * np.exp(pm.math.constant(times)), 0.5, observed=[0.1, 0.9, 2.2])
    for times[1] in (1.0, 2.0):
        outputs = InverseProblem.from_model(model).forward([[2.0]])[0]
        np.testing.assert_allclose(outputs, 2 * np.exp(times))


@pytest.mark.parametrize("within", [False, True])
def test_functions_of_the_user_may_have_changed(within):
    rate = 1.0
    with pm.Model() as model:
        x = pm.Normal("x")
        own = pm.CustomDist.dist(x, logp=lambda value, mu: -rate * (value - mu) ** 2)
        if within:
            pm.Mixture("y", [1.0, 0.0], [own, pm.Normal.dist(x, 1.0)], observed=[1.0, 2.0])
        else:
            model.register_rv(own, "y", observed=np.ones(()))
    for rate in (1.0, 3.0):
        problem = InverseProblem.from_density(model)
        losses = problem.loss(problem.forward([[0.0], [1.0]]))
        assert losses[0] - losses[1] == pytest.approx(4 * rate if within else rate)


def test_a_user_is_warned_each_time(caplog):
    model = line()
    with model:
        pm.Normal("alone", 0.0, observed=1.0)
    for times in (1, 2):
        InverseProblem.from_model(model)
        assert caplog.text.count("does not depend on the unknowns") == times


def test_other_options_have_another_problem():
    model = line()
    problem = InverseProblem.from_model(model)
    assert InverseProblem.from_model(model, jacobian=False) is not problem
    assert InverseProblem.from_density(model) is not problem
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(InverseProblem.from_model, model).result() is not problem
    assert InverseProblem.from_model(model) is problem
    with pytensor.config.change_flags(mode="NUMBA"):
        assert InverseProblem.from_model(model) is not problem


def test_a_problem_goes_with_its_model():
    def evaluated():
        model = line()
        problem = InverseProblem.from_model(model)
        problem.loss(problem.forward([[2.0]]))
        return weakref.ref(model), weakref.ref(problem)

    model, problem = evaluated()
    gc.collect()
    assert model() is None
    assert problem() is None
