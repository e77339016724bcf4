"""Every kind of model: the density that PyMC has, and gradients that differences confirm."""

import cloudpickle
import numpy as np
import pymc as pm
import pytest
from pymc.blocking import DictToArrayBijection, RaveledVars

from pymc_ensemble.problem import InverseProblem

STEP = 5e-6  # twice of it is as far from a sum of one as PyMC lets probabilities be


def differences(function, points):
    """Central differences of fourth order of a function of rows, by every column.

    Steps are smaller for small coordinates: a scale that is nearly zero makes a steep loss.
    """
    steps = STEP * np.clip(np.abs(points), 1e-3, 1)

    def central(j, factor):
        step = factor * steps[:, j]
        e = step[:, None] * np.eye(points.shape[1])[j]
        return ((function(points + e) - function(points - e)).T / (2 * step)).T

    columns = range(points.shape[1])
    return np.stack([(4 * central(j, 1) - central(j, 2)) / 3 for j in columns], axis=1)


def log_density(model, points):
    """The log density of the model, one point at a time."""
    density = model.compile_logp()
    start = {name: np.asarray(value) for name, value in model.initial_point().items()}
    info = DictToArrayBijection.map(start).point_map_info
    return np.array([density(DictToArrayBijection.rmap(RaveledVars(u, info))) for u in points])


# PyMC's own initial point may compile the inside of a loop in C
@pytest.mark.filterwarnings("ignore:PyTensor could not link to a BLAS")
def test_agrees_with_the_model(any_model, calls):
    model = any_model
    problem = InverseProblem.from_model(model)
    assert not calls
    U = problem.sample_prior(4, np.random.default_rng(1))
    assert U.shape == (4, problem.dimension) == (4, len(problem.coordinate_names))
    assert problem.coordinate_names == names(model)

    calls.clear()
    evaluations = problem.evaluate(U)
    assert len(calls) in (0, 4)
    Z = evaluations.outputs
    assert Z.shape == (4, problem.n_outputs)
    assert not evaluations.failed.any()
    potential = problem.loss(Z) + problem.prior_potential(U)
    np.testing.assert_allclose(-potential, log_density(model, U), rtol=1e-9, atol=1e-8)

    calls.clear()
    # finite differences of the potentials lose half the digits: errors of order STEP^4 and
    # eps * potential / STEP
    tolerance = {"rtol": 1e-5, "atol": 1e-7 * (1 + np.abs(problem.loss(Z)).max())}
    np.testing.assert_allclose(problem.loss_gradient(Z), differences(problem.loss, Z), **tolerance)
    np.testing.assert_allclose(
        problem.prior_gradient(U),
        differences(problem.prior_potential, U),
        rtol=1e-5,
        atol=1e-7 * (1 + np.abs(problem.prior_potential(U)).max()),
    )
    hessian = problem.prior_hessian(U[0])
    np.testing.assert_array_equal(hessian, hessian.T)
    scale = 1 + np.abs(problem.prior_gradient(U)).max()
    np.testing.assert_allclose(
        hessian,
        differences(problem.prior_gradient, U[:1])[0],
        rtol=1e-5,
        atol=1e-7 * scale,
    )
    curvature = problem.curvature(Z)
    assert curvature.shape == Z.shape
    assert np.all(curvature >= 0)
    for together, apart in (
        (problem.loss_and_gradient(Z), (problem.loss(Z), problem.loss_gradient(Z))),
        (problem.prior_and_gradient(U), (problem.prior_potential(U), problem.prior_gradient(U))),
    ):
        for one, other in zip(together, apart, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)
    assert not calls


def test_value_and_gradient_together_where_there_is_no_density():
    with pm.Model():
        rate = pm.math.exp(pm.Normal("a", shape=2)) - 1
        pm.Exponential("y", rate, observed=[1.0, 2.0])
        problem = InverseProblem.from_model()
    Z = problem.forward(np.array([[-1.0, 0.5], [0.5, 0.5], [np.nan, 0.5]]))
    for rows in (Z, Z[:2]):
        loss, gradient = problem.loss_and_gradient(rows)
        np.testing.assert_array_equal(loss, problem.loss(rows))
        np.testing.assert_array_equal(gradient, problem.loss_gradient(rows))
    assert np.isinf(loss[0])
    assert np.isfinite(gradient).all()


TRUNCATED = {
    "TruncatedNormal": lambda a, **data: pm.TruncatedNormal("y", a, 1, **data),
    "Truncated": lambda a, **data: pm.Truncated("y", pm.Normal.dist(a, 1), **data),
    "Censored": lambda a, **data: pm.Censored("y", pm.Normal.dist(a, 1), **data),
}


@pytest.mark.parametrize("sides", ["lower", "upper", "lower upper"])
@pytest.mark.parametrize("kind", TRUNCATED)
def test_bounds_on_one_side(kind, sides):
    bounds = {side: {"lower": 0.2, "upper": 3.0}[side] for side in sides.split()}
    with pm.Model() as model:
        TRUNCATED[kind](pm.Normal("a"), **bounds, observed=[0.2, 0.7, 1.6, 2.5, 3.0])
    problem = InverseProblem.from_model(model)
    U = np.array([[-1.0], [0.7], [1.6]])
    Z = problem.forward(U)
    potential = problem.loss(Z) + problem.prior_potential(U)
    np.testing.assert_allclose(-potential, log_density(model, U))
    np.testing.assert_allclose(
        problem.loss_gradient(Z), differences(problem.loss, Z), rtol=1e-5, atol=1e-6
    )
    assert np.all(problem.curvature(Z) > 0.1)


def names(model):
    point = model.initial_point()
    return tuple(
        name + (f"[{','.join(map(str, index))}]" if np.ndim(value) else "")
        for name, value in point.items()
        for index in np.ndindex(np.shape(value))
    )


@pytest.mark.parametrize("name", ["hierarchical", "foreign_missing", "dims_counts", "scan"])
def test_survives_pickling_after_use(make_model, name):
    problem = InverseProblem.from_model(make_model(name))
    U = problem.sample_prior(3, np.random.default_rng(1))
    Z = problem.forward(U)
    expected = problem.loss(Z), problem.prior_gradient(U), problem.curvature(Z)
    clone = cloudpickle.loads(cloudpickle.dumps(problem))
    np.testing.assert_array_equal(clone.forward(U), Z)
    for one, other in zip(
        (clone.loss(Z), clone.prior_gradient(U), clone.curvature(Z)), expected, strict=True
    ):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(
        clone.sample_prior(3, np.random.default_rng(1)),
        problem.sample_prior(3, np.random.default_rng(1)),
    )
