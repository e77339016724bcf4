"""Forward models from outside PyTensor: how often they are called, and how they fail."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.raise_op import Assert

from pymc_ensemble.problem import InverseProblem
from pymc_ensemble.problem.batching import BatchFunction
from pymc_ensemble.problem.simulation import Draws

X = np.linspace(-1, 1, 4)


class Line(Op):
    """u[0] + u[1] x, with trouble built in; counts its calls."""

    def __init__(self, signature=None):
        self.calls = 0
        if signature is not None:
            self.gufunc_signature = signature

    def make_node(self, u):
        return Apply(self, [pt.as_tensor_variable(u)], [pt.vector(shape=(None,))])

    def perform(self, node, inputs, outputs):
        self.calls += 1
        (u,) = inputs
        if u[0] > 10:
            raise RuntimeError("the solver diverged")
        z = u[0] + u[1] * X
        if u[0] < -20:
            raise KeyboardInterrupt
        if u[0] < -10:
            z = z[:-1]
        if u[1] > 10:
            z[2] = np.nan
        if u[1] < -10:
            z[0] = np.inf
        outputs[0][0] = z


@pytest.fixture(params=[None, "(d)->(k)"])
def line(request):
    return Line(request.param)


@pytest.fixture
def problem(line):
    with pm.Model():
        prediction = line(pm.Normal("u", shape=2))
        pm.Normal("y", prediction, pm.HalfNormal("s"), observed=X)
        pm.Poisson("z", pm.math.exp(prediction), observed=np.ones(4))
        return InverseProblem.from_model()


def test_one_call_per_member(problem, line):
    U = problem.sample_prior(5, np.random.default_rng(1))
    assert line.calls == 0
    Z = problem.forward(U)
    assert line.calls == 5
    prediction = U[:, :1] + U[:, 1:2] * X
    np.testing.assert_allclose(Z, np.hstack([prediction, U[:, 2:], prediction]))
    problem.loss(Z), problem.loss_gradient(Z), problem.curvature(Z)
    problem.prior_potential(U), problem.prior_gradient(U), problem.prior_hessian(U[0])
    assert problem.gaussian_prior is False
    assert line.calls == 5


def test_compiling_calls_nothing_from_outside(problem, line, monkeypatch):
    problem.compile()
    assert line.calls == 0
    # nothing is left to compile
    monkeypatch.setattr("pytensor.function", None)
    assert not problem.evaluate(np.zeros((2, 3))).failed.any()
    assert line.calls == 2


def test_compiling_a_graph(monkeypatch):
    with pm.Model():
        pm.Normal("y", pm.Normal("a") * X, 1.0, observed=X)
        problem = InverseProblem.from_model()
    problem.compile()
    monkeypatch.setattr("pytensor.function", None)
    np.testing.assert_allclose(problem.forward([[2.0], [3.0]]), [2 * X, 3 * X])


def test_every_failure_is_one_failed_row(problem, line):
    U = np.array(
        [[0, 1, 0], [11, 0, 0], [0, 11, 0], [0, -11, 0], [-11, 0, 0], [np.nan, 0, 0], [1, 1, 1]]
    )
    evaluations = problem.evaluate(U)
    assert line.calls == len(U)
    np.testing.assert_array_equal(evaluations.failed, [0, 1, 1, 1, 1, 1, 0])
    assert np.isnan(evaluations.outputs[evaluations.failed]).all()
    assert np.isfinite(evaluations.outputs[~evaluations.failed]).all()
    reasons = dict(evaluations.errors)
    assert list(reasons) == [1, 2, 3, 4, 5]
    assert "RuntimeError: the solver diverged" in reasons[1]
    assert "perform" in reasons[1]
    assert "nan" in reasons[2]
    assert "inf" in reasons[3]
    assert "(3,)" in reasons[4]
    assert len(reasons[1]) < 1500
    np.testing.assert_array_equal(np.isinf(problem.loss(evaluations.outputs)), evaluations.failed)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(
    ("returned", "what"),
    [
        ([1.0, 2.0, 3.0], "3 values, [1.0, 2.0, 3.0], expected 1"),
        ((np.ones(3), "info"), "2 values"),
        (1.0, "1.0 of type float, expected an array"),
        (None, "None of type NoneType, expected an array"),
    ],
)
def test_simulator_that_returns_no_array(returned, what, scaled):
    @pytensor.wrap_py(itypes=[pt.dvector], otypes=[pt.dvector])
    def simulate(u):
        return returned

    with pm.Model():
        outputs = simulate(pm.Normal("u", shape=2))
        pm.Normal("y", 2 * outputs if scaled else outputs, 1, observed=np.zeros(3))
        problem = InverseProblem.from_model()
    [(_, reason)] = problem.evaluate(np.zeros((1, 2))).errors
    assert what in reason
    assert "return one array per otype" in reason


def test_interrupts_pass(problem):
    with pytest.raises(KeyboardInterrupt):
        problem.evaluate([[-21.0, 0.0, 0.0]])


def test_member_of_a_batch_may_raise():
    """A PyTensor graph may fail, too: here by an assertion."""
    with pm.Model():
        a = pm.Normal("a")
        checked = Assert("a is too large")(a, pt.lt(a, 1))
        pm.Normal("y", checked * np.ones(2), 1.0, observed=[0.0, 1.0])
        problem = InverseProblem.from_model()
    evaluations = problem.evaluate([[0.6], [2.0], [0.0]])
    np.testing.assert_array_equal(evaluations.failed, [False, True, False])
    np.testing.assert_allclose(evaluations.outputs[[0, 2]], [[0.6, 0.6], [0, 0]])
    assert "a is too large" in dict(evaluations.errors)[1]
    again = problem.evaluate([[0.6], [0.8]])
    assert not again.failed.any()


def test_failures_leave_later_results_as_they_are():
    """Chains in one process, and chains each in their own, must give the same draws."""
    x = np.linspace(-1, 1, 50)

    def build():
        with pm.Model():
            a = pm.Normal("a")
            w = pm.Dirichlet("w", np.ones(2))
            checked = Assert("a is too large")(a, pt.lt(a, 1))
            pm.NormalMixture("y", w, mu=pt.stack([checked, -checked]), sigma=1.0, observed=x)
            return InverseProblem.from_model()

    fresh, tried = build(), build()
    U = np.random.default_rng(3).uniform(-1, 0.9, (6, fresh.dimension))
    assert tried.evaluate(np.full((2, fresh.dimension), 2.0)).failed.all()
    Z = tried.forward(U)
    np.testing.assert_array_equal(Z, fresh.forward(U))
    # negative weights of the mixture cannot be simulated from
    assert np.isfinite(tried.curvature(np.full_like(Z, -1.0))).all()
    np.testing.assert_array_equal(tried.curvature(Z), fresh.curvature(Z))
    for method in ("loss", "loss_gradient"):
        np.testing.assert_array_equal(getattr(tried, method)(Z), getattr(fresh, method)(Z))


def test_a_failed_batch_is_tried_again():
    u = pt.vector("u", shape=(1,))
    function = BatchFunction([u], [Assert("u is too large")(u, pt.all(u < 1))])
    with pytest.raises(AssertionError):
        function(np.array([[0.5], [2.0]]))
    assert function._all is not None
    np.testing.assert_array_equal(function(np.array([[0.5]]))[0], [[0.5]])


def test_draws_one_by_one_as_if_never_tried_together():
    sigma = pt.vector("sigma", shape=(2,))
    draws = Draws([pm.Normal.dist(0, sigma)], [sigma])
    rng = np.random.default_rng(1)
    before = rng.bit_generator.state
    together = draws(4, rng, np.ones(2))
    rng.bit_generator.state = before
    with pytest.raises(ValueError, match="scale < 0"):
        draws(4, rng, -np.ones(2))
    rng.bit_generator.state = before
    np.testing.assert_array_equal(draws(4, rng, np.ones(2)), together)


def test_imputed_values_are_drawn_around_the_prediction(line):
    with pm.Model() as model:
        prediction = line(pm.Normal("u", shape=2))
        with pytest.warns(pm.exceptions.ImputationWarning):
            pm.Normal("y", prediction, 0.01, observed=np.ma.masked_array(X, [0, 1, 0, 1]))
    problem = InverseProblem.from_model(model)
    assert line.calls == 0
    U = problem.sample_prior(20, np.random.default_rng(1))
    prediction = U[:, :1] + U[:, 1:2] * X[[1, 3]]
    assert np.abs(U[:, 2:] - prediction).max() < 0.06
    line.calls = 0
    Z = problem.forward(U)
    assert line.calls == 20
    # what is imputed is an output by its distance from the prediction
    np.testing.assert_allclose(Z[:, -2:], prediction - U[:, 2:])
    assert problem.quadratic_loss


def test_compile_kwargs_reach_the_forward_map():
    modes = []
    with pm.Model() as model:
        pm.Normal("y", pm.Normal("a") * X, 1.0, observed=X)
    for options in (None, {"mode": "FAST_COMPILE", "profile": False}):
        problem = InverseProblem.from_model(model, compile_kwargs=options)
        modes.append(problem.forward(np.ones((2, 1))))
    np.testing.assert_array_equal(*modes)
    with pytest.raises(ValueError, match="no such mode"):
        InverseProblem.from_model(model, compile_kwargs={"mode": "no such mode"}).forward([[1.0]])
