"""`forward_model` inside models: shapes, batches, failures, memory and randomness."""

import cloudpickle
import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.link.numba.linker import NumbaLinker

import pymc_ensemble as pe

TIMES = np.arange(5.0)


class Recorder:
    """A function that notes how it is called."""

    def __init__(self, function):
        self.function, self.calls = function, []

    def __call__(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        return self.function(*args, **kwargs)


def sample(step=None, **options):
    settings = {"draws": 80, "chains": 1, "cores": 1, "random_seed": 1, "progressbar": False}
    settings |= {"compute_convergence_checks": False}
    step = pe.EnsembleKalmanSampler(ensemble_size=20) if step is None else step
    return pm.sample(step=step, **settings | options)


def decay(amplitude, rate):
    return amplitude * np.exp(-rate * TIMES)


def decay_model(forward):
    with pm.Model() as model:
        amplitude, rate = pm.LogNormal("amplitude"), pm.LogNormal("rate")
        mu = forward(amplitude, rate)
        pm.Normal("y", mu, 0.1, observed=[1.0, 0.4, 0.1, 0.1, 0.0])
    return model


@pytest.mark.default_mode
def test_no_warning_of_object_mode():
    """Numba has no kernel for a black box, and that is no news to whoever wrote one."""
    model = decay_model(pe.forward_model(decay))
    copy = cloudpickle.loads(cloudpickle.dumps(model))
    for one in (model, copy):
        density = one.compile_logp()
        assert isinstance(density.f.maker.linker, NumbaLinker)
        assert np.isfinite(density(one.initial_point()))


# -- inputs and outputs ----------------------------------------------------------------


@pytest.mark.parametrize("given", [True, False])
def test_several_inputs_and_outputs(given):
    """Positional and named, scalars and arrays, as tuple and as dict."""

    def as_tuple(a, b, *, matrix):
        assert np.ndim(a) == 0
        assert b.shape == (2,)
        return a + b, matrix.T, a

    def as_dict(a, b, *, matrix):
        return {"sum": a + b, "turned": matrix.T, "number": a}

    shapes = [(2,), (3, 2), ()]
    values = {"a": 2.0, "b": np.array([1.0, 5.0]), "matrix": np.arange(6.0).reshape(2, 3)}
    for function in (as_tuple, as_dict):
        shape = dict(zip(["sum", "turned", "number"], shapes, strict=True))
        shape = None if not given else shapes if function is as_tuple else shape
        forward = pe.forward_model(function, output_shape=shape)
        with pm.Model():
            a, b = pm.Normal("a"), pm.Normal("b", shape=2)
            matrix = pm.Normal("matrix", shape=(2, 3))
            outputs = forward(a, b, matrix=matrix)
        outputs = list(outputs.values()) if function is as_dict else outputs
        assert [output.type.shape for output in outputs] == shapes
        results = pytensor.function([a, b, matrix], outputs)(*values.values())
        for result, expected in zip(results, as_tuple(**values), strict=True):
            np.testing.assert_array_equal(result, expected)
        assert forward.n_evaluations == 1 + (not given)


def test_numbers_in_numbers_out():
    forward = pe.forward_model(decay, output_shape=(5,))
    np.testing.assert_array_equal(forward(1.0, rate=2.0), decay(1.0, 2.0))
    assert forward.n_evaluations == 1
    assert forward.__name__ == "decay"


def test_as_decorator_with_and_without_options():
    @pe.forward_model
    def plain(x):
        return 2 * x

    @pe.forward_model(output_shape=())
    def with_options(x):
        return 2 * x

    for forward in (plain, with_options):
        with pm.Model():
            assert forward(pm.Normal("x")).type.shape == ()


def test_a_list_of_variables_is_a_vector():
    forward = pe.forward_model(lambda theta: 2 * theta, output_shape=(2,))
    with pm.Model():
        a, b = pm.Normal("a"), pm.Normal("b")
        y = forward([a, b])
    np.testing.assert_array_equal(pytensor.function([a, b], y)(1.0, 3.0), [2.0, 6.0])


def test_integers_and_constants_keep_their_type():
    seen = []

    def function(x, n, table):
        seen.append((n.dtype, table.dtype))
        return x * n + table.sum()

    forward = pe.forward_model(function, output_shape=())
    x = pt.scalar("x", dtype="float64")
    assert pytensor.function([x], forward(x, 3, np.array([1, 2])))(2.0) == 9.0
    assert seen == [("int64", "int64")]


def test_options_that_are_no_numbers_are_refused():
    forward = pe.forward_model(lambda x, method: x, output_shape=())
    with pytest.raises(TypeError, match=r"`method` .* is 'rk4', .*functools\.partial"):
        forward(pt.scalar("x"), "rk4")


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((1.0,), {"c": 2.0}, r"simulate\(a, b.*\).*'b'"),
        ((1.0,), {}, "missing a required argument: 'b'"),
        ((1.0, 2.0), {"c": 2.0}, "unexpected keyword argument 'c'"),
        ((1.0, 2.0, 3.0), {}, "too many positional|multiple values"),
        ((1.0, 2.0), {"a": 3.0}, "multiple values for argument 'a'"),
    ],
)
@pytest.mark.parametrize("stochastic", [False, True])
def test_wrong_arguments_are_refused_at_once(args, kwargs, message, stochastic):
    def simulate(a, b):
        return a + b

    def noisy(a, b, rng):
        return simulate(a, b)

    noisy.__name__ = "simulate"
    forward = pe.forward_model(
        noisy if stochastic else simulate, output_shape=(), stochastic=stochastic
    )
    args = [pt.as_tensor(value) for value in args]
    with pytest.raises(TypeError, match=message):
        forward(*args, **kwargs)
    forward(pt.scalar("a"), b=2.0)


def test_functions_without_a_signature_are_called():
    forward = pe.forward_model(max, output_shape=())
    x = pt.scalar("x", dtype="float64")
    assert pytensor.function([x], forward(x, 3.0))(2.0) == 3.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"executor": "process"}, "executor='process' is no executor"),
        ({"executor": 0}, "executor=0"),
        ({"executor": True}, "executor=True"),
        ({"timeout": 0}, "timeout"),
        ({"retries": -1}, "retries"),
        ({"retries": 0.5}, "retries"),
        ({"output_shape": "5"}, "output_shape"),
        ({"stochastic": True}, "`rng`"),
        ({"stochastic": "no"}, "stochastic must be True or False, not 'no'"),
        ({"vectorized": "a"}, "vectorized must be True or False"),
        ({"store": 3}, "store must be the path of a file, not 3"),
    ],
)
def test_wrong_options_are_refused_at_once(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        pe.forward_model(decay, **options)


def test_shape_is_looked_for_at_several_points():
    """Until the function works at one of them."""

    def picky(x):
        if len(function.calls) < 3:
            raise ValueError("not here")
        return x * np.ones(4)

    function = Recorder(picky)
    with pm.Model():
        assert pe.forward_model(function)(pm.Normal("x")).type.shape == (4,)
    points = {args[0].item() for args, _ in function.calls}
    assert len(points) == len(function.calls) == 3

    def broken(x):
        raise ZeroDivisionError("never")

    with pm.Model():
        x = pm.Normal("x")
        with pytest.raises(ValueError, match=r"(?s)output_shape.*x=.*ZeroDivisionError: never"):
            pe.forward_model(broken)(x)


def test_shape_is_found_without_a_proper_prior():
    forward = pe.forward_model(lambda x: np.ones(3) * x)
    with pm.Model():
        assert forward(pm.Flat("x")).type.shape == (3,)


def test_shape_of_inputs_that_is_not_known_before():
    forward = pe.forward_model(lambda x: x.sum(), output_shape=())
    with pm.Model():
        x = pm.Normal("x", shape=pm.Data("data", np.zeros(4)).shape[0])
        assert x.type.shape == (None,)
        assert forward(x).owner.op.signature.shapes == ((4,),)


# -- batches ----------------------------------------------------------------


@pytest.mark.parametrize("mode", ["FAST_COMPILE", "CVM", "NUMBA"])
def test_a_batch_is_one_call(mode):
    if mode == "NUMBA":
        pytest.importorskip("numba")
    function = Recorder(lambda x, y: x.sum(axis=-1) + y)
    forward = pe.forward_model(function, output_shape=(), vectorized=True)
    X, y = pt.matrix("X", shape=(None, 3)), pt.scalar("y")
    points = np.arange(12.0).reshape(4, 3)
    with pytensor.config.change_flags(mode=mode):
        vectorized = pytensor.graph.vectorize_graph(
            forward(x := pt.vector("x", shape=(3,)), y) * 1.0, {x: X}
        )
        result = pytensor.function([X, y], vectorized)(points, 2.0)
    np.testing.assert_array_equal(result, points.sum(axis=1) + 2.0)
    [((batch, numbers), _)] = function.calls
    assert batch.shape == (4, 3)
    assert numbers.shape == (4,)


def test_one_batch_a_round():
    """A sweep of a split ensemble is two rounds, of half the members each."""
    function = Recorder(lambda a, r: a[:, None] * np.exp(-r[:, None] * TIMES))
    forward = pe.forward_model(function, output_shape=(5,), vectorized=True)
    with decay_model(forward):
        idata = sample()
    sizes = [len(args[0]) for args, _ in function.calls]
    assert set(sizes) == {20, 10}
    assert sum(sizes) == idata.sample_stats.n_evals[0, -1] == forward.n_evaluations


def test_same_draws_with_and_without_batches():
    def vectorized(a, r):
        return np.stack([decay(*row) for row in zip(a, r, strict=True)])

    results = []
    for forward in (
        pe.forward_model(decay),
        pe.forward_model(vectorized, vectorized=True),
        pe.forward_model(decay, executor="threads"),
        pytensor.wrap_py(itypes=[pt.dscalar] * 2, otypes=[pt.dvector])(decay),
    ):
        with decay_model(forward):
            results.append(sample().posterior)
    for result in results[1:]:
        np.testing.assert_array_equal(result["rate"], results[0]["rate"])


def test_several_forward_models_in_one_model():
    first = pe.forward_model(lambda a: np.array([a, a**2]))
    second = pe.forward_model(lambda z, b: z.sum() + b)
    with pm.Model():
        a, b = pm.Normal("a"), pm.Normal("b")
        z = first(a)
        pm.Normal("y", z, 0.5, observed=[0.2, 0.1])
        pm.Normal("w", second(z, b), 0.5, observed=0.3)
        problem = pe.InverseProblem.from_model()
    U = np.random.default_rng(0).normal(size=(6, 2))
    expected = np.column_stack([U[:, 0], U[:, 0] ** 2, U[:, 0] + U[:, 0] ** 2 + U[:, 1]])
    np.testing.assert_allclose(problem.forward(U), expected, rtol=1e-14)
    # one for the shape, and one more to find that of the second
    assert (first.n_evaluations, second.n_evaluations) == (8, 7)


def test_batches_inside_a_member():
    """One simulation for each of three groups; a failure is that of the member."""

    def function(x):
        if x > 1.5:
            raise ValueError("too large")
        return 2 * x

    forward = pe.forward_model(function, output_shape=())
    x, X = pt.scalar("x"), pt.vector("X", shape=(3,))
    groups = pytensor.graph.vectorize_graph(forward(x), {x: X})
    with pm.Model():
        u = pm.Normal("u", shape=3)
        mu = pytensor.graph.replace.graph_replace([groups], {X: u})[0]
        pm.Normal("y", mu, 0.5, observed=np.zeros(3))
        problem = pe.InverseProblem.from_model()
    U = np.array([[0.0, 1.0, 0.5], [0.0, 0.0, 2.0], [1.0, 0.2, 0.3]])
    evaluations = problem.evaluate(U)
    np.testing.assert_array_equal(evaluations.failed, [False, True, False])
    np.testing.assert_array_equal(evaluations.outputs[[0, 2]], 2 * U[[0, 2]])
    assert "too large" in evaluations.errors[0][1]


# -- failures ----------------------------------------------------------------


def failing(x):
    if x[0] == 1:
        raise ZeroDivisionError("one")
    if x[0] == 2:
        return x * np.nan
    if x[0] == 3:
        return np.ones(3)
    if x[0] == 4:
        return x * np.inf
    if x[0] == 5:
        return "nothing"
    if x[0] == 6:
        raise SystemExit(1)
    if x[0] == 7:
        return x * 1j
    if x[0] == 8:
        return None
    return x


REASONS = {
    1: "ZeroDivisionError: one",
    2: "2 of 2 forward outputs are not finite, the first is output 0: nan",
    3: "shape (3,), expected (2,)",
    4: "not finite, the first is output 0: inf",
    5: "returned 'nothing' of type str",
    6: "SystemExit: 1",
    7: "expected an array of real numbers",
    8: "returned None",
}


@pytest.mark.parametrize("vectorized", [False, True])
def test_every_way_to_fail(vectorized):
    def batch(x):
        if len(x) == 1:
            row = np.asarray(failing(x[0]))
            return row[None] if row.ndim else row
        raise ValueError("one by one")

    forward = pe.forward_model(
        batch if vectorized else failing, output_shape=(2,), vectorized=vectorized
    )
    problem = pe.InverseProblem(
        forward, prior=(np.zeros(2), np.eye(2)), data=np.zeros(2), noise=1.0
    )
    U = np.column_stack([np.arange(10.0), np.ones(10)])
    evaluations = problem.evaluate(U)
    np.testing.assert_array_equal(np.flatnonzero(evaluations.failed), list(REASONS))
    np.testing.assert_array_equal(evaluations.outputs[[0, 9]], U[[0, 9]])
    reasons = dict(evaluations.errors)
    for row in (1, 2, 4, 6):
        assert REASONS[row] in reasons[row]
    if not vectorized:
        for row, reason in REASONS.items():
            assert reason in reasons[row]


def test_a_function_may_write_into_its_arguments():
    def careless(x):
        x *= 2
        return x

    forward = pe.forward_model(careless, output_shape=(2,))
    x = pt.matrix("x", shape=(3, 2))
    core = pt.vector("c", shape=(2,))
    both = pytensor.graph.vectorize_graph([forward(core), core + 0], {core: x})
    points = np.ones((3, 2))
    doubled, same = pytensor.function([x], both)(points)
    assert (doubled == 2).all()
    assert (same == 1).all()
    assert (points == 1).all()


def test_an_input_that_is_not_finite_is_not_evaluated():
    function = Recorder(lambda x: x)
    forward = pe.forward_model(function, output_shape=())
    x = pt.scalar("x")
    f = pytensor.function([x], forward(x))
    assert np.isnan(f(np.inf))
    assert np.isnan(f(np.nan))
    assert not function.calls


def test_failures_are_told_with_their_parameters(caplog):
    def fails_somewhere(amplitude, rate):
        if amplitude > 1.5:
            raise ValueError("too much")
        return decay(amplitude, rate)

    with decay_model(pe.forward_model(fails_somewhere, output_shape=(5,))):
        idata = sample()
    assert idata.sample_stats.n_failed[0, -1] > 0
    told = "\n".join(record.getMessage() for record in caplog.records)
    assert "a forward evaluation failed, at amplitude=" in told
    assert "ValueError: too much" in told


def test_all_fail():
    def broken(amplitude, rate):
        raise ValueError("no licence")

    forward = pe.forward_model(broken, output_shape=(5,))
    with (
        decay_model(forward),
        pytest.raises(pm.exceptions.SamplingError, match=r"(?s)first failure.*no licence"),
    ):
        sample()
    assert forward.n_evaluations == 20, "the run ends with the first ensemble"


def test_retries():
    attempts = {}

    def unlucky(x):
        n = attempts[x.item()] = attempts.get(x.item(), 0) + 1
        if n <= x:
            raise ValueError(f"attempt {n}")
        return x

    problem = pe.InverseProblem(
        pe.forward_model(lambda u: unlucky(u[0]) * np.ones(1), output_shape=(1,), retries=2),
        prior=(np.zeros(1), np.eye(1)),
        data=[0.0],
        noise=1.0,
    )
    evaluations = problem.evaluate(np.arange(5.0)[:, None])
    np.testing.assert_array_equal(evaluations.failed, [False] * 3 + [True] * 2)
    assert attempts == {0.0: 1, 1.0: 2, 2.0: 3, 3.0: 3, 4.0: 3}
    assert evaluations.n_calls == 12
    assert "attempt 3" in evaluations.errors[0][1]


# -- nothing is evaluated twice ----------------------------------------------------------------


@pytest.mark.parametrize("cores", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_nothing_is_evaluated_after_sampling(cores):
    """Draws come back through exp(log(.)), and from other processes."""
    forward = pe.forward_model(decay)
    with decay_model(forward) as model:
        pm.Deterministic("mu", forward(model["amplitude"], model["rate"]))
        idata = sample(chains=2, cores=cores)
        n_evals = int(idata.sample_stats.n_evals[:, -1].sum())
        before = forward.n_evaluations
        if cores == 1:  # one for the shape, one for the start that PyMC shows to the trace
            assert before <= n_evals + 2
        pm.compute_log_likelihood(idata, progressbar=False)
        pm.sample_posterior_predictive(idata, progressbar=False, random_seed=1)
        assert forward.n_evaluations == before
    rates = idata.posterior.rate.to_numpy()[..., None]
    mu = idata.posterior.amplitude.to_numpy()[..., None] * np.exp(-rates * TIMES)
    np.testing.assert_allclose(idata.posterior.mu, mu, rtol=1e-9)


@pytest.mark.parametrize("step", [pm.Metropolis, pm.Slice, pm.DEMetropolisZ])
def test_with_other_step_methods(step):
    function = Recorder(decay)
    forward = pe.forward_model(function)
    with decay_model(forward):
        idata = sample(step(), draws=50, tune=50)
    assert idata.posterior.sizes["draw"] == 50
    points = [tuple(map(float, args)) for args, _ in function.calls]
    assert len(points) == len(set(points)) > 50


def test_default_step_methods_need_no_gradient():
    with decay_model(pe.forward_model(decay)) as model:
        with pytest.raises(NotImplementedError):
            pytensor.grad(model.logp(), model.value_vars)
        idata = pm.sample(
            20, tune=20, chains=1, cores=1, progressbar=False, compute_convergence_checks=False
        )
    assert idata.posterior.rate.size == 20


def test_repeated_points_in_a_batch():
    function = Recorder(lambda u: u)
    problem = pe.InverseProblem(
        pe.forward_model(function, output_shape=(1,)),
        prior=(np.zeros(1), np.eye(1)),
        data=[0.0],
        noise=1.0,
    )
    U = np.array([[1.0], [2.0], [1.0], [-0.0], [0.0]])
    evaluations = problem.evaluate(U)
    np.testing.assert_array_equal(evaluations.outputs, U)
    assert len(function.calls) == evaluations.n_calls == 3
    assert problem.evaluate(U).n_calls == 0


def test_failures_are_tried_again():
    """Their cause may be gone: the licence is back."""
    broken = True

    def function(u):
        if broken:
            raise OSError("no licence")
        return u

    problem = pe.InverseProblem(
        pe.forward_model(function, output_shape=(1,)),
        prior=(np.zeros(1), np.eye(1)),
        data=[0.0],
        noise=1.0,
    )
    assert problem.evaluate([[1.0]]).failed.all()
    broken = False
    assert not problem.evaluate([[1.0]]).failed.any()


def test_copies_share_what_is_known():
    forward = pe.forward_model(decay)
    model = decay_model(forward)
    copy = cloudpickle.loads(cloudpickle.dumps(model))
    before = forward.n_evaluations
    point = model.initial_point()
    assert model.compile_logp()(point) == copy.compile_logp()(point)
    assert forward.n_evaluations == before + 1


# -- randomness ----------------------------------------------------------------


def noisy_problem(argument, vectorized):
    seen = []

    def function(u, **randomness):
        [chance] = randomness.values()
        many = chance if vectorized else [chance]
        draws = []
        for one in many:
            rng = one if argument == "rng" else np.random.default_rng(one)
            draws.append(rng.random())
            seen.append(draws[-1])
        return u + np.reshape(draws, (-1, 1)) if vectorized else u + draws[0]

    if argument == "rng":

        def stochastic(u, rng):
            return function(u, rng=rng)
    else:

        def stochastic(u, seed):
            return function(u, seed=seed)

    forward = pe.forward_model(
        stochastic, output_shape=(1,), stochastic=True, vectorized=vectorized
    )
    prior = (np.zeros(1), np.eye(1))
    return pe.InverseProblem(forward, prior=prior, data=[0.0], noise=1.0), seen


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("argument", ["rng", "seed"])
def test_repeated_points_are_new_replicates(argument, vectorized):
    U = np.zeros((4, 1))
    outputs = []
    for _ in range(2):  # and a repeated run gives the same
        problem, seen = noisy_problem(argument, vectorized)
        seeds = [np.random.SeedSequence(5, spawn_key=(k,)) for k in range(2)]
        outputs.append([problem.evaluate(U, seed).outputs for seed in seeds])
        outputs[-1] += [problem.evaluate(U).outputs for _ in range(2)]
        assert len(set(seen)) == 16
    np.testing.assert_array_equal(outputs[0], outputs[1])


@pytest.mark.parametrize("executor", [None, "threads"])
def test_stochastic_runs_can_be_repeated(executor):
    def run(seed):
        def noisy(amplitude, rate, rng):
            return decay(amplitude, rate) + 0.01 * rng.normal(size=5)

        forward = pe.forward_model(noisy, stochastic=True, executor=executor)
        with decay_model(forward):
            idata = sample(random_seed=seed)
            calls = forward.n_evaluations
            pm.compute_log_likelihood(idata, progressbar=False)
            assert forward.n_evaluations == calls
        # of the draw: the very replicate that its density was computed from
        squares = np.log(idata.posterior.amplitude) ** 2 + np.log(idata.posterior.rate) ** 2
        prior = -squares / 2 - np.log(2 * np.pi)
        density = idata.log_likelihood.y.sum("y_dim_0") + prior
        np.testing.assert_allclose(idata.sample_stats.lp, density)
        return idata.posterior.rate.to_numpy()

    first = run(1)
    np.testing.assert_array_equal(first, run(1))
    assert (first != run(2)).any()


def test_stochastic_without_a_run():
    """Other step methods see one replicate for each point: a fixed, if rough, density."""

    def noisy(amplitude, rate, rng):
        return decay(amplitude, rate) + rng.normal(size=5)

    densities = []
    for _ in range(2):
        model = decay_model(pe.forward_model(noisy, output_shape=(5,), stochastic=True))
        logp, point = model.compile_logp(), model.initial_point()
        assert logp(point) == logp(point)
        densities.append(float(logp(point)))
    assert densities[0] == densities[1]


def test_negative_output_shape():
    with pytest.raises(ValueError, match="negative length"):
        pe.forward_model(output_shape=(2, -1))(lambda u: u)
