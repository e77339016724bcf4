"""A simulator whose settings change: what was evaluated before is not used, wherever it is kept."""

import contextlib
import logging
import multiprocessing
import sys
import threading
import time
import types

import numpy as np
import pymc as pm
import pytest

import pymc_ensemble as pe
from pymc_ensemble.forward.versions import Watch

TIMES = np.arange(1.0, 5.0)


def module(source, name="settings_of_a_test"):
    """A module of the user's own."""
    new = types.ModuleType(name)
    exec(source, vars(new))
    return new


def set_all(values):
    values[:] = [10.0] * len(values)


KINDS = {
    "array": ("D = np.ones(4)", "D", lambda m: setattr(m, "D", np.full(4, 10.0))),
    "array in place": ("D = np.ones(4)", "D", lambda m: set_all(m.D)),
    "large array in place": ("D = np.ones(40_000)", "D[-4:]", lambda m: set_all(m.D)),
    "list in place": ("D = [1.0] * 4", "np.array(D)", lambda m: set_all(m.D)),
    "dict in place": ("D = {'dose': [1.0]}", "D['dose'][0]", lambda m: set_all(m.D["dose"])),
    "text": ("D = '1'", "float(D)", lambda m: setattr(m, "D", "10")),
    "object": ("class C: dose = 1.0\nD = C()", "D.dose", lambda m: setattr(m.D, "dose", 10.0)),
    "class": ("class D: dose = 1.0", "D.dose", lambda m: setattr(m.D, "dose", 10.0)),
    "function": ("def D(): return 1.0", "D()", lambda m: exec("def D(): return 10.0", vars(m))),
}


def simulator(kind):
    head, body, change = KINDS[kind]
    ours = module(f"import numpy as np\n{head}\ndef simulate(k, t): return k * t * ({body})")
    return ours.simulate, lambda: change(ours)


def model_of(forward, observed):
    with pm.Model() as model:
        k = pm.Normal("k", 0.0, 50.0)
        pm.Normal("y", pm.Deterministic("mu", forward(k, TIMES)), 0.1, observed=observed)
    return model


OPTIONS = {"cores": 1, "progressbar": False, "compute_convergence_checks": False}


@pytest.mark.parametrize("executor", [None, 2])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_changed_setting_is_seen(kind, executor, tmp_path):
    """By a function that was compiled before, by a problem, in workers, and by a store."""
    simulate, change = simulator(kind)
    forward = pe.forward_model(
        simulate, output_shape=(4,), executor=executor, store=tmp_path / "s.db"
    )
    model = model_of(forward, TIMES)
    with model:
        problem = pe.InverseProblem.from_model()
    U = np.array([[1.0], [2.0]])
    mu = model.compile_fn(
        model.replace_rvs_by_values([model["mu"]]), inputs=model.value_vars, mode="FAST_COMPILE"
    )
    for factor in (1.0, 10.0):
        np.testing.assert_array_equal(problem.evaluate(U).outputs, factor * U * TIMES)
        np.testing.assert_array_equal(mu({"k": 2.0})[0], factor * 2 * TIMES)
        assert problem.evaluate(U).n_calls == 0
        change()
    assert forward.n_evaluations == 4
    assert len(set(pe.open_store(tmp_path / "s.db")["version"].values)) == 2
    forward.close()


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # of PyMC
@pytest.mark.parametrize("step", ["built before", "another", "of PyMC, built before"])
def test_a_loop_over_data_sets(step):
    simulate, change = simulator("array in place")
    forward = pe.forward_model(simulate, output_shape=(4,))
    model = model_of(forward, 2 * TIMES)
    kind = pm.DEMetropolisZ if "PyMC" in step else pe.EnsembleKalmanSampler
    with model:
        before = kind()
        pm.sample(200, tune=200, step=before, chains=1, random_seed=1, **OPTIONS)
        change()  # now k is .2
        again = before if "before" in step else kind()
        idata = pm.sample(200, tune=600, step=again, chains=1, random_seed=2, **OPTIONS)
        # sd .1 / (10 sqrt(30)) = .0018; 200 draws that are far from independent
        assert abs(idata.posterior["k"].mean() - 0.2) < 0.01
    np.testing.assert_allclose(
        idata.posterior["mu"], idata.posterior["k"].to_numpy()[..., None] * 10 * TIMES
    )


def test_predictions_after_a_change():
    """As of another scenario, with draws that were made before."""
    simulate, change = simulator("dict in place")
    forward = pe.forward_model(simulate, output_shape=(4,))
    with pm.Model():
        k = pm.Normal("k", 0.0, 50.0)
        pm.Normal("y", forward(k, TIMES), 0.1, observed=2 * TIMES)
        idata = pm.sample(100, step=pe.EnsembleKalmanSampler(), chains=1, random_seed=1, **OPTIONS)
        change()
        options = {"progressbar": False, "extend_inferencedata": False}
        predicted = pm.sample_posterior_predictive(idata, random_seed=1, **options)
        log_likelihood = pm.compute_log_likelihood(idata, **options)
    k = idata.posterior["k"].to_numpy()[..., None]
    y = predicted["posterior_predictive"]["y"]
    assert (abs(y - 10 * k * TIMES) < 0.6).all(), "6 sd"
    exact = -0.5 * ((2 - 10 * k) * TIMES / 0.1) ** 2 - np.log(0.1 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(log_likelihood["y"], exact)


def test_a_copy_of_the_model_is_compared_too():
    import cloudpickle

    simulate, change = simulator("text")
    forward = pe.forward_model(simulate, output_shape=(4,))
    copy = cloudpickle.loads(cloudpickle.dumps(forward))
    change()
    for one, factor in ((forward, 10.0), (copy, 1.0), (forward, 10.0)):
        problem = pe.InverseProblem(
            lambda u, one=one: one(u, TIMES), prior=(np.zeros(1), np.eye(1)), data=TIMES, noise=1.0
        )
        np.testing.assert_array_equal(problem.evaluate([[1.0]]).outputs, factor * TIMES[None])


@pytest.mark.skipif(sys.platform == "win32", reason="needs spawned processes with one main module")
def test_another_process_with_other_settings_says_so(tmp_path, monkeypatch, caplog):
    """Processes that are not forked import modules anew, as their files say."""
    (tmp_path / "our_simulator.py").write_text("K = 1.0\ndef simulate(u):\n    return K * u\n")
    monkeypatch.syspath_prepend(tmp_path)
    import our_simulator

    forward = pe.forward_model(our_simulator.simulate, output_shape=(1,))
    stored = pe.forward_model(our_simulator.simulate, output_shape=(1,), store=tmp_path / "s.db")
    our_simulator.K = 2.0
    with contextlib.closing(multiprocessing.get_context("spawn").Pool(1)) as pool:
        assert "K" in pool.apply(_complaint, (forward,))
        assert "our_simulator.K" in pool.apply(_complaint, (stored,))
        our_simulator.K = 1.0
        assert pool.apply(_complaint, (stored,)) == ""


def _complaint(forward):
    """What is told, or raised, at an evaluation."""
    told = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logging.getLogger("pymc_ensemble").addHandler(handler)
    try:
        prior = (np.zeros(1), np.eye(1))
        pe.InverseProblem(forward, prior=prior, data=[0.0], noise=1.0).evaluate([[1.0]])
    except pe.forward.ForwardModelError as error:
        told.append(str(error))
    return " ".join(told)


# -- what a simulator changes itself --------------------------------------------------------------


class Counting:
    """With the habits of a solver: a counter, a log, a cache, and a state."""

    def __init__(self):
        self.rate, self.calls, self.log, self.cache = 1.0, 0, [], {"version": 1}
        self.state = np.zeros(3)

    def __call__(self, u):
        self.calls += 1
        self.log.append(float(u[0]))
        self.cache[float(u[0])] = u
        self.state[:] = u[0]
        self.last = u
        return self.rate * u * self.cache["version"]


def of_function():
    ours = module(
        "rate, calls, log, cache = 1.0, 0, [], {'version': 1}\n"
        "def simulate(u):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    log.append(u); cache[u[0]] = u\n"
        "    return rate * u * cache['version']\n"
    )
    return ours.simulate, ours


def of_object():
    counting = Counting()
    return counting, counting


@pytest.mark.parametrize("make", [of_function, of_object])
@pytest.mark.parametrize("executor", [None, "threads", 2])
def test_what_the_simulator_changes_itself_is_no_setting(make, executor, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="pymc_ensemble")
    results = []
    for _ in range(2):  # the second is another session
        simulate, owner = make()
        forward = pe.forward_model(
            simulate, output_shape=(1,), executor=executor, store=tmp_path / "s.db"
        )
        problem = pe.InverseProblem(forward, prior=(np.zeros(1), np.eye(1)), data=[0.0], noise=1.0)
        for k in range(5):
            assert problem.evaluate(np.arange(3.0)[:, None] + 10 * k).n_calls == 3 * (not results)
        assert problem.evaluate(np.arange(3.0)[:, None]).n_calls == 0
        results.append(forward.version)
        assert "has changed" not in caplog.text
        if executor != 2:
            assert len(owner.log) == 15 * (len(results) == 1)
        forward.close()
    assert results[0] == results[1]
    for change in (lambda: setattr(owner, "rate", 3.0), lambda: owner.cache.update(version=2)):
        before = forward.version
        change()
        outputs = problem.evaluate([[1.0]]).outputs
        assert outputs == owner.rate * owner.cache["version"]
        assert forward.version != before, "a setting beside what changes itself is seen"
    forward.close()


def test_looking_is_cheap():
    """Milliseconds for a megabyte; a log that grows is not read again and again."""
    large = np.zeros(125_000)
    watch = Watch(lambda x: large * x)
    watch.begin()
    seconds = [_time(watch.begin) for _ in range(20)]
    assert min(seconds) < 2e-3, "50 us where nothing else runs"
    counting = Counting()
    watch = Watch(counting)
    for k in range(2000):
        watch.begin()
        counting(np.array([float(k)]))
        watch.end()
    assert min(_time(watch.begin) for _ in range(20)) < 5e-3, "150 us where nothing else runs"


def _time(function):
    began = time.perf_counter()
    assert function() == []
    return time.perf_counter() - began


# -- what cannot be told -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "held", [threading.Lock, lambda: iter(range(3)).__iter__ and (i for i in "a")]
)
def test_what_cannot_be_told_is_told_once(held, caplog):
    value = held()
    factor = [1.0]

    def simulate(u):
        assert value is not None
        return factor[0] * u

    prior = (np.zeros(1), np.eye(1))
    for version in (None, "1"):
        forward = pe.forward_model(simulate, output_shape=(1,), version=version)
        problem = pe.InverseProblem(forward, prior=prior, data=[0.0], noise=1.0)
        for k in range(3):
            problem.evaluate([[1.0 + k]])
        told = [r.getMessage() for r in caplog.records if "cannot be detected" in r.getMessage()]
        assert len(told) == 1
    assert "`simulate.value`" in told[0]
    assert "simulate.forget()" in told[0]
    forward.forget()
    assert problem.evaluate([[1.0]]).n_calls == 1


def test_files_that_are_listed(tmp_path):
    path = tmp_path / "dose.txt"
    path.write_text("1.0")
    options = {"output_shape": (1,), "depends_on": [path]}
    forward = pe.forward_model(lambda u: float(path.read_text()) * u, **options)
    problem = pe.InverseProblem(forward, prior=(np.zeros(1), np.eye(1)), data=[0.0], noise=1.0)
    for dose in ("1.0", "2.0", "3.0"):
        path.write_text(dose)
        assert problem.evaluate([[1.0]]).outputs == float(dose)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ("mesh.dat", r"must be a list of paths.*depends_on=\['mesh.dat'\]"),
        (3, "must be a list of paths"),
        ([3], "it has 3"),
        (["no such file"], "which is not a file"),
        (["."], "which is not a file. List the files of a folder"),
    ],
)
def test_wrong_files_are_refused(files, message):
    with pytest.raises((TypeError, ValueError), match=message):
        pe.forward_model(lambda u: u, depends_on=files)
