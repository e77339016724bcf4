"""Threads, processes, pools of others and clusters: same results, and failures on their own."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor

import cloudpickle
import numpy as np
import pymc as pm
import pytest
from misbehaving import Solver, misbehave, points, problem

import pymc_ensemble as pe
from pymc_ensemble.forward import ExecutorError
from pymc_ensemble.forward.members import note, read_diary
from pymc_ensemble.forward.tasks import Outcomes
from pymc_ensemble.forward.workers.backend import Recipe
from pymc_ensemble.forward.workers.chunks import Chunk, chunk_size, plan

U = points(np.arange(10, 40))


class FarAway(Executor):
    """Workers that share nothing with this process but what is pickled."""

    def submit(self, function, /, *args):
        future = Future()
        call = cloudpickle.dumps((function, args))

        def run():
            if not future.set_running_or_notify_cancel():
                return
            there, arguments = cloudpickle.loads(call)
            try:
                future.set_result(cloudpickle.loads(cloudpickle.dumps(there(*arguments))))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run).start()
        return future


def executors():
    yield pytest.param(lambda: None, id="none")
    yield pytest.param(lambda: "threads", id="threads")
    yield pytest.param(lambda: "processes", id="processes")
    yield pytest.param(lambda: 3, id="number")
    yield pytest.param(lambda: ThreadPoolExecutor(3), id="ThreadPoolExecutor")
    yield pytest.param(lambda: ProcessPoolExecutor(2, mp_context=fork()), id="ProcessPoolExecutor")
    yield pytest.param(FarAway, id="far away")
    yield pytest.param(loky, id="loky", marks=pytest.mark.slow)


def fork():
    import multiprocessing

    if os.name != "posix":
        pytest.skip("functions of this module are not importable by name")
    return multiprocessing.get_context("fork")


def loky():
    return pytest.importorskip("loky").get_reusable_executor(2)


@pytest.fixture
def run(request):
    """Build a problem, and clean up its workers."""
    opened = []

    def build(function, executor, **options):
        inverse, forward = problem(function, executor=executor, **options)
        opened.append((forward, executor))
        return inverse, forward

    yield build
    for forward, executor in opened:
        forward.close()
        if isinstance(executor, Executor):
            executor.shutdown()


@pytest.mark.parametrize("executor", list(executors()))
@pytest.mark.parametrize("vectorized", [False, True])
def test_same_results_everywhere(executor, vectorized, run, log):
    def function(x):
        for row in np.atleast_2d(x):
            log.note(row[0])
        return 2 * x

    inverse, forward = run(function, executor(), vectorized=vectorized)
    for shift in (0, 1000):
        evaluations = inverse.evaluate(U + shift)
        np.testing.assert_array_equal(evaluations.outputs, 2 * (U + shift))
        assert evaluations.n_calls == len(U)
        assert evaluations.seconds > 0
    assert sorted(log.read()) == sorted([*U[:, 0], *(U[:, 0] + 1000)])
    assert forward.n_evaluations == 2 * len(U)


@pytest.mark.parametrize("executor", list(executors()))
def test_failures_are_those_of_the_member(executor, run, log):
    inverse, _ = run(misbehave(log), executor())
    evaluations = inverse.evaluate(points([0, 1, 6, 2, 7, 3, 8]))
    np.testing.assert_array_equal(np.flatnonzero(evaluations.failed), [1, 3, 5])
    reasons = dict(evaluations.errors)
    assert reasons[1].endswith("ZeroDivisionError: one")
    assert "not finite" in reasons[3]
    assert "shape (3,), expected (2,)" in reasons[5]
    assert sorted(log.read()) == [0, 1, 2, 3, 6, 7, 8]


@pytest.mark.parametrize("executor", list(executors()))
def test_stochastic_results_do_not_depend_on_the_workers(executor, run):
    def noisy(x, rng):
        return x + rng.normal(size=2)

    expected, _ = problem(noisy, stochastic=True)
    inverse, _ = run(noisy, executor(), stochastic=True)
    seed = np.random.SeedSequence(3)
    np.testing.assert_array_equal(inverse.forward(U) * 0, expected.forward(U) * 0)
    np.testing.assert_array_equal(
        inverse.evaluate(U, seed).outputs, expected.evaluate(U, seed).outputs
    )


@pytest.mark.parametrize("executor", [None, "threads", "processes", ThreadPoolExecutor])
def test_a_hanging_member_counts_as_lost(executor, run, log, caplog):
    executor = executor(2) if executor is ThreadPoolExecutor else executor
    inverse, _ = run(misbehave(log, hang=600.0), executor, timeout=2.0)
    started = time.monotonic()
    evaluations = inverse.evaluate(points([10, 5, 11, 12, 13]))
    assert time.monotonic() - started < 300
    np.testing.assert_array_equal(evaluations.failed, [False, True, False, False, False])
    assert "more than timeout=2 s" in evaluations.errors[0][1]
    np.testing.assert_array_equal(evaluations.outputs[2:], 2 * points([11, 12, 13]))
    assert sorted(log.read()) == [5, 10, 11, 12, 13]
    [warning] = [r.getMessage() for r in caplog.records if "was lost" in r.getMessage()]
    assert "its process was killed" in warning


def solved(first):
    """Points, and the right outputs of the solver."""
    U = points(first)
    U[:, 1] = 1 + np.arange(len(U))
    return U, np.column_stack([U[:, 0], 20 * U[:, 1]])


SLOW = np.where(np.arange(40) % 7 == 3, -1.0, 1.0)  # every seventh member takes too long


@pytest.mark.parametrize(
    ("executor", "vectorized"),
    [
        (None, False),
        ("threads", False),
        (2, False),
        (ThreadPoolExecutor, False),
        ("stdlib", False),
        pytest.param("loky", False, marks=pytest.mark.slow),
        (None, True),
        ("stdlib", True),
    ],
)
def test_calls_that_were_given_up_spoil_no_others(executor, run, vectorized):
    """The solver is never called in a process where it is still busy."""
    if executor == "loky":
        executor = loky()
    elif executor == "stdlib":
        executor = ProcessPoolExecutor(2, mp_context=fork())
    elif executor is ThreadPoolExecutor:
        executor = ThreadPoolExecutor(1)
    one = Solver(slow=0.5)

    def batch(x):
        return np.array([one(row) for row in x])

    inverse, _ = run(batch if vectorized else one, executor, timeout=2.0, vectorized=vectorized)
    first = SLOW if executor is None and not vectorized else SLOW[:15]
    U, expected = solved(first)
    evaluations = inverse.evaluate(U)
    np.testing.assert_array_equal(evaluations.failed, first < 0)
    good = first > 0
    np.testing.assert_allclose(evaluations.outputs[good], expected[good], rtol=1e-12)


def test_calls_that_cannot_be_stopped_are_waited_for(run):
    """On executors of others whose workers nobody can replace."""
    inverse, _ = run(Solver(slow=0.15), FarAway(), timeout=2.0)
    U, expected = solved([1.0, -1.0, 1.0, 1.0])
    evaluations = inverse.evaluate(U)
    np.testing.assert_array_equal(evaluations.failed, [False, True, False, False])
    np.testing.assert_allclose(evaluations.outputs[[0, 2, 3]], expected[[0, 2, 3]], rtol=1e-12)


def test_calls_that_do_not_end_anywhere_end_the_run(run, log):
    inverse, _ = run(misbehave(log, hang=20.0), FarAway(), timeout=0.5)
    with pytest.raises(ExecutorError, match=r"FarAway.*executor='processes'"):
        inverse.evaluate(points([5, *range(10, 60)]))


class Stop(BaseException):
    """What a library may raise to end a thread of its own."""


class Speechless(Exception):
    def __str__(self):
        raise RuntimeError("no words")


RAISED = [
    asyncio.CancelledError("off"),
    SystemExit(0),
    GeneratorExit(),
    Stop("stop"),
    Speechless(),
    ValueError("a lone surrogate: \ud800"),
    StopIteration(),
    MemoryError(),
]


@pytest.mark.parametrize("executor", list(executors())[:-1])
@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("stored", [False, True])
def test_whatever_a_member_raises_is_its_own_failure(executor, vectorized, stored, run, tmp_path):
    def one(x):
        if x[0] < len(RAISED):
            raise RAISED[int(x[0])]
        return 2 * x

    def batch(x):
        return np.array([one(row) for row in x])

    options = {"store": tmp_path / "store", "version": "1"} if stored else {}
    function = batch if vectorized else one
    inverse, _ = run(function, executor(), vectorized=vectorized, **options)
    U = points(np.arange(20))
    evaluations = inverse.evaluate(U)
    np.testing.assert_array_equal(evaluations.failed, np.arange(20) < len(RAISED))
    good = ~evaluations.failed
    np.testing.assert_array_equal(evaluations.outputs[good], 2 * U[good])
    reasons = dict(evaluations.errors)
    assert reasons[0].endswith("CancelledError: off")
    assert r"\ud800" in reasons[5]


@pytest.mark.parametrize("executor", [None, "threads", 1])
def test_keyboard_interrupts_end_the_run(executor, run):
    def function(x):
        raise KeyboardInterrupt

    inverse, _ = run(function, executor)
    with pytest.raises(KeyboardInterrupt):
        inverse.evaluate(U)


@pytest.mark.parametrize(
    "timeout", [np.inf, 1e10, 1e300, "60", True, np.nan, 0, -1, 0.0, [5], None, 60, np.float32(0.5)]
)
def test_timeouts_are_judged_at_the_start(timeout):
    if timeout is None or (type(timeout) in (int, np.float32) and timeout > 0):
        assert pe.forward_model(lambda x: x, timeout=timeout).timeout == timeout
        return
    with pytest.raises(ValueError, match="timeout must be a positive number of seconds"):
        pe.forward_model(lambda x: x, timeout=timeout)


def test_every_worker_of_ours_hangs(run, log):
    """Slots are recovered: more members hang than there are workers."""
    inverse, _ = run(misbehave(log, hang=60.0), 2, timeout=0.3)
    first = np.array([5, 5, 5, 5, 5, 5, 20, 21])
    U = points(first) + np.arange(8)[:, None] * [0, 1]
    evaluations = inverse.evaluate(U)
    np.testing.assert_array_equal(evaluations.failed, first == 5)


@pytest.mark.parametrize("cheap", [False, True], ids=["alone", "in chunks"])
def test_a_worker_that_dies_takes_nobody_along(run, log, cheap, monkeypatch):
    """The culprit is found, all others are evaluated once, also those of the same chunk."""
    inverse, _ = run(misbehave(log), 2)
    if cheap:
        inverse.evaluate(points(np.arange(100, 200)))  # so that it is known to be cheap
        log.path.write_text("")
    first = np.r_[10:50, 4, 50:60]
    evaluations = inverse.evaluate(points(first))
    np.testing.assert_array_equal(evaluations.failed, first == 4)
    np.testing.assert_array_equal(evaluations.outputs[first != 4], 2 * points(first)[first != 4])
    assert sorted(log.read()) == sorted(first)
    assert "died with exit code 7" in evaluations.errors[0][1]
    assert not inverse.evaluate(U).failed.any(), "the pool is complete again"


@pytest.mark.slow
def test_workers_that_are_not_forked(run, log, monkeypatch):
    """As on macOS and Windows."""
    monkeypatch.setattr("pymc_ensemble.forward.workers.processes.start_method", lambda: "spawn")
    note, factor = log.path, 2.0

    def function(x):
        with open(note, "a") as file:  # noqa: PTH123
            file.write(f"{float(x[0])!r}\n")
        if x[0] == 4:
            os._exit(7)
        return factor * x

    inverse, _ = run(function, 2)
    first = np.array([10, 4, 11, 12])
    evaluations = inverse.evaluate(points(first))
    np.testing.assert_array_equal(evaluations.failed, first == 4)
    np.testing.assert_array_equal(evaluations.outputs[first != 4], 2 * points(first)[first != 4])
    assert sorted(log.read()) == sorted(first)


@pytest.mark.parametrize("pool", ["stdlib", "loky"])
@pytest.mark.slow
def test_pools_of_others_are_rebuilt(run, log, pool, caplog):
    executor = ProcessPoolExecutor(2, mp_context=fork()) if pool == "stdlib" else loky()
    inverse, _ = run(misbehave(log), executor)
    first = np.r_[10:20, 4, 20:30]
    evaluations = inverse.evaluate(points(first))
    np.testing.assert_array_equal(evaluations.failed, first == 4)
    assert "died" in evaluations.errors[0][1]
    calls = log.read()
    assert 1 <= calls.count(4) <= 3, "it may be tried again, alone, if others were running with it"
    assert len(calls) <= len(first) + 4
    assert any("built anew" in record.getMessage() for record in caplog.records)
    assert not inverse.evaluate(U).failed.any()


@pytest.mark.slow
def test_joblib(run):
    """It ships a loky of its own."""
    pytest.importorskip("joblib")
    from joblib.externals.loky import get_reusable_executor

    inverse, _ = run(lambda x: 2 * x, get_reusable_executor(2))
    np.testing.assert_array_equal(inverse.forward(U), 2 * U)


def test_workers_that_cannot_get_the_function_are_no_failure(run):
    class Unpicklable:
        def __reduce__(self):
            raise TypeError("not this one")

    secret = Unpicklable()
    inverse, _ = run(lambda x: (secret, x)[1], FarAway())
    with pytest.raises((ExecutorError, TypeError), match="not this one"):
        inverse.evaluate(U)


def test_interrupts_reach_the_caller(run):
    def impatient(x):
        signal.raise_signal(signal.SIGINT)
        return x

    inverse, _ = run(impatient, None)
    with pytest.raises(KeyboardInterrupt):
        inverse.evaluate(U)


def chains_in_processes(executor, step=None, **options):
    forward = pe.forward_model(lambda x: 2 * x, output_shape=(2,), executor=executor)
    with pm.Model():
        x = pm.Normal("x", shape=2)
        pm.Normal("y", forward(x), 1.0, observed=np.zeros(2))
        step = pe.EnsembleKalmanSampler(ensemble_size=20) if step is None else step
        settings = {"draws": 40, "chains": 2, "cores": 2, "random_seed": 1, "progressbar": False}
        settings |= {"compute_convergence_checks": False}
        return forward, pm.sample(step=step, **settings | options)


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["processes", 2, "pool"])
def test_chains_in_processes_can_have_no_processes(executor):
    if executor == "pool":
        executor = ProcessPoolExecutor(2)
    with pytest.raises(Exception, match=r"pm\.sample\(cores=1\).*Dask cluster") as caught:
        chains_in_processes(executor)
    assert "worker" in str(caught.value)
    forward, idata = chains_in_processes(2, cores=1)
    assert idata.posterior.sizes["chain"] == 2
    forward.close()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="no fork")
def test_chains_in_processes_can_have_threads():
    """Which a fork does not inherit."""
    results = []
    for executor, cores in ((None, 1), ("threads", 2), (ThreadPoolExecutor(3), 2)):
        if executor is not None:
            chains_in_processes(executor, cores=1)[0].close()
        results.append(chains_in_processes(executor, cores=cores, mp_ctx="fork")[1].posterior)
    np.testing.assert_array_equal(results[1].x, results[0].x)
    np.testing.assert_array_equal(results[2].x, results[0].x)


def test_what_is_needed_to_have_an_executor_elsewhere():
    assert Recipe.of(None).make() is None
    assert Recipe.of("processes").make() == "processes"
    with ThreadPoolExecutor(3) as mine, Recipe.of(mine).make() as theirs:
        assert theirs is not mine
        assert theirs._max_workers == 3
    recipe = Recipe.of(FarAway())
    assert cloudpickle.loads(cloudpickle.dumps(recipe)) == recipe
    with pytest.raises(ExecutorError, match="FarAway works only in the process"):
        recipe.make()


MPI_SCRIPT = """
    import os
    import numpy as np
    from mpi4py.futures import MPIPoolExecutor

    if __name__ == "__main__":
        import pymc_ensemble as pe

        def simulate(x):
            if x[0] == 3:
                raise ValueError("three")
            return np.array([os.getpid(), x[0]])

        with MPIPoolExecutor() as executor:
            forward = pe.forward_model(simulate, output_shape=(2,), executor=executor)
            problem = pe.InverseProblem(
                forward, prior=(np.zeros(1), np.eye(1)), data=np.zeros(2), noise=1.0
            )
            evaluations = problem.evaluate(np.arange(20.0)[:, None])
        outputs = evaluations.outputs[~evaluations.failed]
        assert np.flatnonzero(evaluations.failed).tolist() == [3], evaluations.errors
        assert "ValueError: three" in evaluations.errors[0][1]
        assert os.getpid() not in outputs[:, 0]
        assert len(set(outputs[:, 0])) == 2
        assert (outputs[:, 1] == np.delete(np.arange(20), 3)).all()
        print("all is well")
"""


@pytest.mark.slow
def test_mpi(tmp_path):
    pytest.importorskip("mpi4py")
    launcher = shutil.which("mpiexec")
    if launcher is None:
        pytest.skip("no MPI library")
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(MPI_SCRIPT))
    allowed = dict.fromkeys(("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"), "1")
    oversubscribed = {
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    run = subprocess.run(
        [launcher, "-n", "3", sys.executable, "-m", "mpi4py.futures", script],
        env=os.environ | allowed | oversubscribed,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "all is well" in run.stdout, run.stderr


# -- how much is sent at once ----------------------------------------------------------------


def test_chunks():
    assert chunk_size(1000, 2, 1e-5, False) == 500
    assert chunk_size(1000, 2, 1e-4, False) == 200
    assert chunk_size(64, 16, 1e-6, False) == 4
    assert chunk_size(64, 2, 0.05, False) == 1
    assert chunk_size(64, 2, None, False) == 1
    assert chunk_size(65, 2, None, True) == 33


def test_cheap_members_are_sent_together(run, log):
    def function(x):
        log.note(os.getpid())
        return x

    inverse, _ = run(function, 2)
    evaluations = inverse.evaluate(points(np.arange(1000)))
    assert not evaluations.failed.any()
    assert len(set(log.read())) == 2


def test_a_diary_that_ends_in_the_midst_of_a_word(tmp_path):
    assert read_diary(str(tmp_path / "never")) is None
    diary = tmp_path / "diary"
    good = Outcomes(np.array([[1.0, 2.0]]), ["ok"], {}, np.array([5.0]), np.array([0.5]))
    bad = Outcomes(np.full((1, 2), np.nan), ["failed"], {0: "why"}, np.ones(1), np.ones(1))
    with diary.open("wb") as file:
        note(file, good)
        note(file, bad)
    whole = diary.read_bytes()
    for length in range(len(whole) + 1):
        diary.write_bytes(whole[:length])
        assert len(read_diary(str(diary))) == (length == len(whole)) + (
            length >= len(whole) // 2 - 1
        )
    first, second = read_diary(str(diary))
    assert first.outputs.tolist() == [[1.0, 2.0]]
    assert (first.started, first.seconds) == (5.0, 0.5)
    assert second.reasons == {0: "why"}


def test_plan_begins_with_some_if_nothing_is_known():
    chunk = Chunk(np.arange(20), np.zeros((20, 1)), None, None)
    first, rest = plan(chunk, 2, None, False)
    assert [len(part) for part in first] == [1, 1]
    assert len(rest) == 18
    first, rest = plan(chunk, 2, 1.0, False)
    assert len(first) == 20
    assert len(rest) == 0
