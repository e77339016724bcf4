"""Models that give only the value of their log density."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pymc.blocking import DictToArrayBijection, RaveledVars

from pymc_ensemble.problem import InverseProblem

Y = np.array([0.3, -0.2, 0.5])


def log_density(model, points):
    """The log density of the model, one point at a time."""
    density = model.compile_logp()
    start = {name: np.asarray(value) for name, value in model.initial_point().items()}
    info = DictToArrayBijection.map(start).point_map_info
    return np.array([density(DictToArrayBijection.rmap(RaveledVars(u, info))) for u in points])


@pytensor.wrap_py(itypes=[pt.dvector], otypes=[pt.dscalar])
def ring(x):
    return np.array(-8 * (np.hypot(x[0], x[1]) - 1) ** 2)


def potential():
    pm.Potential("ring", ring(pm.Normal("x", shape=2)))


def potential_with_gradient():
    x = pm.Normal("x", shape=2)
    pm.Potential("ring", -8 * (pm.math.sqrt((x**2).sum()) - 1) ** 2)


def potential_and_data():
    x = pm.Uniform("x", -2, 2, shape=2)
    pm.Potential("ring", ring(x))
    pm.Normal("y", x[0], 1, observed=Y)


def several_potentials():
    x, s = pm.Normal("x", shape=2), pm.HalfNormal("s")
    pm.Potential("ring", s * ring(x))
    pm.Potential("vector", -(x**4) / s)


def free_density():
    pm.CustomDist("x", logp=lambda value: ring(value), shape=2)


def free_density_with_gradient():
    pm.CustomDist("x", logp=lambda value: -((value - 1) ** 4), shape=2)


def likelihood():
    x = pm.Normal("x", shape=2)
    pm.CustomDist("y", x, logp=lambda value, x: ring(value + x), observed=Y[:2])


def prior_alone():
    pm.Normal("x", pm.HalfNormal("s"), shape=2)


def labelled_data():
    x = pm.Normal("x", shape=2)
    pm.Normal("y", x.sum(), pm.HalfNormal("s"), observed=Y)
    pm.Poisson("counts", pm.math.exp(x), observed=[1, 2])


MODELS = [
    potential, potential_with_gradient, potential_and_data, several_potentials, free_density,
    free_density_with_gradient, likelihood, prior_alone, labelled_data,
]  # fmt: skip
BLACK_BOXES = [potential, potential_and_data, several_potentials, free_density, likelihood]


def build(define):
    with pm.Model() as model:
        define()
    return model, InverseProblem.from_density(model)


@pytest.mark.parametrize("define", MODELS, ids=lambda define: define.__name__)
def test_agrees_with_the_model(define):
    model, problem = build(define)
    assert problem.density_only
    assert problem.n_outputs == 1
    assert not problem.quadratic_loss
    U = 0.5 * np.random.default_rng(1).standard_normal((4, problem.dimension))
    Z = problem.forward(U)
    assert Z.shape == (4, 1)
    np.testing.assert_array_equal(problem.loss(Z), Z[:, 0])
    found = -problem.loss(Z) - problem.prior_potential(U)
    np.testing.assert_allclose(found, log_density(model, U), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(problem.loss_gradient(Z), np.ones((4, 1)))
    np.testing.assert_array_equal(problem.curvature(Z), np.zeros((4, 1)))
    assert np.isfinite(problem.prior_gradient(U)).all()
    assert np.isfinite(problem.prior_hessian(U[0])).all()


@pytest.mark.parametrize("define", BLACK_BOXES, ids=lambda define: define.__name__)
def test_what_has_a_gradient_stays_in_the_prior(define):
    """The loss is the black box, and the prior is what is known of the density."""
    model, problem = build(define)
    U = 0.5 * np.random.default_rng(1).standard_normal((3, problem.dimension))
    known = [rv for rv in model.free_RVs if define is not free_density]
    prior = np.zeros(3)
    if known:
        density = model.compile_logp(vars=known)
        start = {name: np.asarray(value) for name, value in model.initial_point().items()}
        info = DictToArrayBijection.map(start).point_map_info
        prior = [density(DictToArrayBijection.rmap(RaveledVars(u, info))) for u in U]
    np.testing.assert_allclose(-problem.prior_potential(U), prior, atol=1e-12)


def test_density_of_zero_is_no_failure():
    """Beyond a constraint the loss is infinite; the model itself is all right there."""
    with pm.Model() as model:
        x = pm.Normal("x")
        pm.Potential("constraint", pt.switch(x > 0, 0.0, -np.inf))
    problem = InverseProblem.from_density(model)
    evaluations = problem.evaluate([[0.5], [-0.5]])
    assert evaluations.failed.tolist() == [False, False]
    assert problem.loss(evaluations.outputs).tolist() == [0.0, np.inf]


def test_black_box_that_fails():
    @pytensor.wrap_py(itypes=[pt.dscalar], otypes=[pt.dscalar])
    def fragile(x):
        if x < 0:
            raise RuntimeError("no convergence")
        return np.array(-x if x < 1 else np.nan)

    with pm.Model() as model:
        pm.Potential("fragile", fragile(pm.Normal("x")))
    evaluations = InverseProblem.from_density(model).evaluate([[0.5], [-0.5], [2.0]])
    assert evaluations.failed.tolist() == [False, True, True]
    assert "no convergence" in dict(evaluations.errors)[1]
    np.testing.assert_allclose(evaluations.outputs[0], 0.5)


def test_black_box_is_called_once_a_point():
    calls = []

    @pytensor.wrap_py(itypes=[pt.dvector], otypes=[pt.dscalar])
    def counted(x):
        calls.append(x.copy())
        return np.array(-(x**2).sum())

    with pm.Model() as model:
        x = pm.Normal("x", shape=2)
        value = counted(x)
        pm.Potential("one", value)
        pm.Normal("y", value, 1.0, observed=0.5)
    problem = InverseProblem.from_density(model)
    assert not calls
    problem.evaluate(np.zeros((5, 2)))
    assert len(calls) == 5


def test_prior_draws():
    _, problem = build(potential)
    assert problem.sample_prior(3, np.random.default_rng(0)).shape == (3, 2)
    _, problem = build(free_density)
    with pytest.raises(ValueError, match="initial_ensemble="):
        problem.sample_prior(3, np.random.default_rng(0))


def test_discrete_variables_are_refused():
    with pm.Model() as model:
        k = pm.Poisson("k", 2.0)
        pm.Potential("p", -(pm.Normal("x") ** 2) * k)
    with pytest.raises(ValueError, match="`k`"):
        InverseProblem.from_density(model)


def test_free_variable_behind_an_observed_one():
    """It depends on data that depend on unknowns, and is what it is in the model itself."""
    with pm.Model() as model:
        a = pm.Normal("a")
        first = pm.Normal("first", a, 1.0, observed=0.7)
        b = pm.Normal("b", first * a, 1.0)
        pm.Normal("y", b + a * Y, 1.0, observed=Y)
    problem = InverseProblem.from_model(model)
    assert problem.coordinate_names == ("a", "b")
    U = np.random.default_rng(0).standard_normal((3, 2))
    Z = problem.forward(U)
    found = -problem.loss(Z) - problem.prior_potential(U)
    np.testing.assert_allclose(found, log_density(model, U), rtol=1e-9)


def test_black_box_beside_a_forward_map_is_an_output_of_its_own():
    """The likelihood keeps its structure: three means and the loss of the black box."""
    with pm.Model() as model:
        potential_and_data()
    problem = InverseProblem.from_model(model)
    assert not problem.density_only
    with pm.Model() as alone:
        x = pm.Uniform("x", -2, 2, shape=2)
        pm.Normal("y", x[0], 1, observed=Y)
    assert problem.n_outputs == InverseProblem.from_model(alone).n_outputs + 1
    U = np.random.default_rng(1).standard_normal((20, 2))
    Z = problem.forward(U)
    potential = problem.loss(Z) + problem.prior_potential(U)
    np.testing.assert_allclose(-potential, log_density(model, U))
    # the loss is that of the means, and the output itself
    step = np.zeros(problem.n_outputs)
    step[-1] = 1.0
    np.testing.assert_allclose(problem.loss(Z + step) - problem.loss(Z), 1.0)
    assert (problem.curvature(Z)[:, -1] == 0).all()
