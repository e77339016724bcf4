"""What cannot be sampled is refused by name, with a remedy, before any forward evaluation."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op

import pymc_ensemble as pe
from pymc_ensemble.problem import InverseProblem

Y = np.array([0.3, -0.2, 0.5])


class BlackBox(Op):
    """Doubles a vector; counts its calls and has no gradient."""

    def __init__(self):
        self.calls = 0

    def make_node(self, u):
        u = pt.as_tensor_variable(u)
        return Apply(self, [u], [u.type()])

    def perform(self, node, inputs, outputs):
        self.calls += 1
        outputs[0][0] = 2 * inputs[0]


def refused(define, error, *words, vars=None):
    box = BlackBox()
    with pm.Model() as model:
        define(box)
    names = vars and [model[name] for name in vars]
    with pytest.raises(error) as caught:
        InverseProblem.from_model(model, names)
    for word in words:
        assert word in str(caught.value)
    assert box.calls == 0


def test_discrete_variable():
    def define(box):
        k = pm.Poisson("k", 3)
        pm.Normal("y", box(pm.Normal("a", shape=3)) + k, 1, observed=Y)

    refused(define, ValueError, "`k`", "discrete", "Marginalize")


COUNTS = np.ma.masked_values([2, 0, -1, 9], -1)


def zero_inflated(counts, rate, mu):
    return pm.ZeroInflatedPoisson("y", 0.7, mu, observed=counts)


def with_a_sum(counts, rate, mu):
    y = pm.Poisson("y", mu, observed=counts)
    return pm.Normal("total", y.sum(), 1.0, observed=12.0)


def with_a_row_in_part(counts, rate, mu):
    p = pm.math.stack([rate, 1.0, 1.0]) / (rate + 2.0)
    rows = np.ma.masked_values([[3, 3, 4], [2, -1, -1]], -1)
    return pm.Multinomial("y", 10, p, observed=rows)


def masked(define):
    with pm.Model() as model:
        rate = pm.HalfNormal("rate", 5.0)
        define(COUNTS, rate, rate * np.arange(1, 5))
    return model


@pytest.mark.filterwarnings("ignore:Data in y contains missing values")
@pytest.mark.parametrize("step", [pe.EnsembleKalmanSampler, pe.EnsembleGaussianProcessSampler])
def test_missing_entries_that_pymc_does_not_set_apart_are_to_be_left_out(step):
    for refuse in (InverseProblem.from_model, lambda model: step(model=model)):
        with pytest.raises(ValueError, match=r"`y_unobserved` is discrete.*") as error:
            refuse(masked(zero_inflated))
        told = str(error.value)
        assert "missing entries of the data of `y`. Leave these entries out" in told
        assert "arginalize" not in told


@pytest.mark.filterwarnings("ignore:Data in y contains missing values")
@pytest.mark.parametrize("define", [with_a_sum, with_a_row_in_part])
def test_missing_entries_that_count_are_not_to_be_left_out(define):
    with pytest.raises(ValueError, match="Marginalize it"):
        InverseProblem.from_model(masked(define))


@pytest.mark.filterwarnings("ignore:Data in y contains missing values")
def test_missing_entries_beside_another_discrete_variable():
    with pytest.raises(ValueError, match="Marginalize them"):
        InverseProblem.from_model(masked(with_another))


def with_another(counts, rate, mu):
    return pm.ZeroInflatedPoisson("y", 0.5 + 0.1 * pm.Bernoulli("w", 0.5), mu, observed=counts)


@pytest.mark.parametrize("build", [InverseProblem.from_model, InverseProblem.from_density])
@pytest.mark.parametrize("where", ["observed", "parameter", "potential"])
def test_minibatches(build, where):
    x, y = pm.Minibatch(np.arange(50.0), np.arange(50.0), batch_size=5)
    with pm.Model() as model:
        slope = pm.Normal("slope")
        if where == "observed":
            pm.Normal("y", slope, 1.0, observed=y, total_size=50)
        elif where == "parameter":
            pm.Normal("y", slope * x, 1.0, observed=np.zeros(5), total_size=50)
        else:
            pm.Normal("z", slope, 1.0, observed=0.0)
            pm.Potential("y", -((slope * x - y) ** 2).sum())
    with pytest.raises(ValueError, match=r"`y` depends on a pm\.Minibatch.*all data"):
        build(model)


def test_scaled_likelihood():
    """`total_size` alone multiplies the log likelihood, and nothing is random."""
    losses = []
    for copies, options in ((1, {"total_size": 12}), (3, {})):
        with pm.Model() as model:
            slope = pm.Normal("slope")
            pm.Normal("y", slope, 1.0, observed=np.tile([1.0, 2.0, 3.0, 4.0], copies), **options)
        losses.append(-model.compile_logp()({"slope": 0.7}))
        try:
            problem = InverseProblem.from_model(model)
        except NotImplementedError:
            problem = InverseProblem.from_density(model)
        u = np.array([[0.7]])
        losses.append((problem.loss(problem.forward(u)) + problem.prior_potential(u)).item())
    np.testing.assert_allclose(losses, losses[0])


def test_no_likelihood():
    refused(lambda box: pm.Normal("a"), ValueError, "no observed variable", "observed=")


def test_nothing_unknown():
    refused(lambda box: pm.Normal("y", observed=Y), ValueError, "no free variable")


def test_observations_without_unknowns():
    def define(box):
        pm.Normal("a")
        y = pm.Normal("y", 0, 1, observed=Y)
        pm.Normal("copy", y, 1, observed=Y)

    refused(define, ValueError, "`y`, `copy`", "does not depend")


def test_observation_without_unknowns_is_a_constant(caplog):
    with pm.Model() as model:
        a, s = pm.Normal("a"), pm.HalfNormal("s")
        y = pm.Normal("y", a, s, observed=Y)
        pm.Normal("copy", y, 2, observed=Y)
    model = pm.observe(model, {"s": 0.5})
    problem = InverseProblem.from_model(model)
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "`s`, `copy`" in record.getMessage()
    U = np.array([[0.3], [-1.0]])
    potential = problem.loss(problem.forward(U)) + problem.prior_potential(U)
    density = model.compile_logp()
    np.testing.assert_allclose(-potential, [density({"a": u[0]}) for u in U])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyMC's own
def test_simulator():
    def simulate(rng, a, size=None):
        return rng.normal(a, size=size)

    def define(box):
        pm.Simulator("sim", simulate, pm.Normal("a"), observed=Y)

    refused(define, NotImplementedError, "`sim`", "forward")


def test_variables_left_out():
    def define(box):
        a, b = pm.Normal("a", shape=3), pm.Normal("b", shape=2)
        pm.Normal("y", box(a) + b.sum(), 1, observed=Y)

    refused(define, ValueError, "`b`", "vars", "pm.do", vars=["a"])


def test_all_variables_named():
    with pm.Model() as model:
        a, s = pm.Normal("a"), pm.HalfNormal("s")
        pm.Normal("y", a, s, observed=Y)
    by_name = InverseProblem.from_model(model, [s, a])
    by_value = InverseProblem.from_model(model, model.value_vars)
    by_string = InverseProblem.from_model(model, ["a", "s"])
    assert by_name.coordinate_names == by_value.coordinate_names == ("a", "s_log__")
    assert by_string.coordinate_names == by_name.coordinate_names
    with pytest.raises(ValueError, match="no `b`"):
        InverseProblem.from_model(model, ["a", "s", "b"])


def test_prior_without_gradient():
    def define(box):
        def logp(value):
            return -(box(value) ** 2)

        pm.CustomDist("a", logp=logp, shape=3)
        pm.Normal("y", pm.Normal("b"), 1, observed=Y)

    refused(define, NotImplementedError, "`a`", "no gradient")


def test_likelihood_without_gradient():
    def define(box):
        def logp(value, mu):
            return -((value - box(mu)) ** 2)

        pm.CustomDist("y", pm.Normal("a", shape=3), logp=logp, observed=Y)

    refused(define, NotImplementedError, "`y`", "no gradient", "distribution")


def test_distribution_without_density():
    def random(mu, rng=None, size=None):
        return rng.normal(mu, size=size)

    def define(box):
        pm.CustomDist("y", box(pm.Normal("a", shape=3)), random=random, observed=Y)

    refused(define, NotImplementedError, "`y`", "logp")


def test_flat_prior_is_refused_when_drawn_from():
    with pm.Model():
        pm.Normal("y", pm.Flat("a") * Y, pm.HalfFlat("s"), observed=Y)
        problem = InverseProblem.from_model()
    U = np.array([[1.0, 0.0]])
    assert np.isfinite(problem.loss(problem.forward(U)) + problem.prior_potential(U)).all()
    assert not problem.gaussian_prior
    with pytest.raises(ValueError, match=r"`a`, `s`.*initial_ensemble="):
        problem.sample_prior(5, np.random.default_rng(1))


def test_prior_that_cannot_be_drawn_from():
    def logp(value):
        return -(value**2)

    with pm.Model():
        pm.Normal("y", pm.CustomDist("a", logp=logp), 1, observed=Y)
        problem = InverseProblem.from_model()
    with pytest.raises(ValueError, match=r"initial_ensemble="):
        problem.sample_prior(5, np.random.default_rng(1))


def test_shape_that_cannot_be_told():
    @pytensor.wrap_py(itypes=[pt.dvector], otypes=[pt.dvector])
    def hidden(u):
        raise AssertionError("evaluated at construction")

    with pm.Model() as model:
        u = pm.Normal("u", shape=2)
        pm.Mixture("y", pt.ones(2) / 2, pm.Normal.dist(hidden(u)[None, :], 1), observed=Y[:, None])
    with pytest.raises(ValueError, match="specify_shape"):
        InverseProblem.from_model(model)


def test_wrong_shapes():
    with pm.Model():
        pm.Normal("y", pm.Normal("a", shape=3), 1, observed=Y)
        problem = InverseProblem.from_model()
    for function in (problem.forward, problem.loss, problem.prior_gradient):
        with pytest.raises(ValueError, match=r"\(n, 3\), got \(2, 4\)"):
            function(np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"\(n, 3\)"):
        problem.loss(np.zeros(3))
