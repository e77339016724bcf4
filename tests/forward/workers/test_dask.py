"""A Dask cluster of separate worker processes."""

import os
import signal
import threading
import time
from contextlib import ExitStack, contextmanager

import numpy as np
import pymc as pm
import pytest
from misbehaving import Solver, misbehave, points, problem

import pymc_ensemble as pe
from pymc_ensemble.forward import ExecutorError
from pymc_ensemble.forward.workers import dask

distributed = pytest.importorskip("distributed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PATIENCE = 300  # seconds that a worker may take to start on a busy machine


@contextmanager
def cluster():
    """Client of a cluster with two workers, which gives up a call that has killed two.

    With more than that, Dask may give up a worker that was killed while it started, and both in the
    end: a call then waits for ever.
    """
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",  # None is port 8787, and a warning where that is taken
            silence_logs=50,
            scheduler_kwargs={"allowed_failures": 1},
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def clients():
    with ExitStack() as stack:
        yield lambda: stack.enter_context(cluster()), []


@pytest.fixture
def client(clients):
    """With two workers: Dask may have given up one that another test has killed."""
    new, used = clients
    try:
        used[-1].wait_for_workers(2, timeout=30)
    except (IndexError, TimeoutError):
        used.append(new())
        used[-1].wait_for_workers(2, timeout=PATIENCE)
    return used[-1]


def pids(client):
    return set(client.run(os.getpid).values())


def test_members_are_spread_over_the_workers(client):
    def where(x):
        time.sleep(0.02)
        return np.array([os.getpid(), x[0]])

    inverse, forward = problem(where, executor=client.get_executor())
    U = points(np.arange(20))
    workers = pids(client)
    evaluations = inverse.evaluate(U)
    assert set(evaluations.outputs[:, 0]) == workers
    np.testing.assert_array_equal(evaluations.outputs[:, 1], U[:, 0])
    assert os.getpid() not in pids(client)
    assert forward.n_evaluations == 20


@pytest.mark.parametrize("vectorized", [False, True])
def test_failures(client, log, vectorized):
    one = misbehave(log, hang=600.0)  # its worker is restarted

    def batch(x):
        if len(x) > 1:
            raise ValueError("one by one")
        return one(x[0])[None]

    inverse, _ = problem(
        batch if vectorized else one,
        executor=client.get_executor(),
        timeout=0.5,
        vectorized=vectorized,
    )
    first = np.array([10, 1, 2, 11, 5, 12, 3])
    evaluations = inverse.evaluate(points(first))
    np.testing.assert_array_equal(evaluations.failed, first < 10)
    assert "timeout=0.5" in dict(evaluations.errors)[4]
    assert sorted(log.read()) == sorted(first)


def test_retries_are_calls(client, log):
    """Dask takes equal calls for one, unless it is told otherwise."""
    inverse, _ = problem(misbehave(log), executor=client.get_executor(), retries=2)
    inverse.evaluate(points([1, 10]))
    assert sorted(log.read()) == [1, 1, 1, 10]


def test_a_member_that_kills_its_workers(client, log):
    inverse, _ = problem(misbehave(log), executor=client.get_executor())
    first = np.array([10, 11, 4, 12, 13])
    evaluations = inverse.evaluate(points(first))
    np.testing.assert_array_equal(evaluations.failed, first == 4)
    assert "KilledWorker" in evaluations.errors[0][1]


def test_a_result_that_is_lost_while_it_is_fetched(client, log, monkeypatch):
    """It is waited for again, and neither lost nor counted twice."""
    gather, trials = client.gather, []

    def first_in_vain(futures):
        trials.append(len(futures))
        if len(trials) == 1:
            raise distributed.KilledWorker("chunk", None, 4)
        return gather(futures)

    monkeypatch.setattr(client, "gather", first_in_vain)
    inverse, _ = problem(misbehave(log), executor=client.get_executor())
    first = np.array([10, 11, 12, 13])
    np.testing.assert_array_equal(inverse.forward(points(first)), 2 * points(first))
    assert len(trials) > 1
    assert sorted(log.read()) == sorted(first)


def test_a_worker_that_is_killed(client, tmp_path):
    """Its member is evaluated by another; nothing is lost."""
    started = tmp_path / "started"

    def slow(x):
        started.touch()
        time.sleep(0.1)
        return 2 * x

    def kill():
        while not started.exists():
            time.sleep(0.01)
        os.kill(next(iter(processes)), getattr(signal, "SIGKILL", signal.SIGTERM))

    processes = set(client.run(os.getpid).values())
    inverse, _ = problem(slow, executor=client.get_executor())
    killer = threading.Thread(target=kill)
    killer.start()
    U = points(np.arange(30))
    np.testing.assert_array_equal(inverse.forward(U), 2 * U)
    killer.join()


def test_calls_that_were_given_up_spoil_no_others():
    """Each worker is restarted before it is given another member.

    On a busy machine a worker may not come back in time. If none is left, the run ends with an
    error, and never with outputs that are wrong.
    """
    U = points(np.where(np.arange(12) % 6 == 3, -1.0, 1.0))
    U[:, 1] = np.arange(12)
    for _ in range(3):
        with cluster() as client:
            inverse, _ = problem(Solver(), executor=client.get_executor(), timeout=1.0)
            try:
                evaluations = inverse.evaluate(U)
            except ExecutorError as error:
                assert "lost all its workers" in str(error)  # noqa: PT017, which may not happen
                continue
        break
    np.testing.assert_array_equal(evaluations.failed, U[:, 0] < 0)
    good = ~evaluations.failed
    np.testing.assert_allclose(evaluations.outputs[good, 1], 20 * U[good, 1], rtol=1e-12)


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_worker_that_takes_long_to_end(comes_back, monkeypatch):
    """Dask gives up after 5 s, without waiting for workers to come back, and says it was 60 s."""
    if not comes_back:
        monkeypatch.setattr(dask, "RESTART_SECONDS", 1.0)
    with cluster() as client:

        def restart_workers(addresses, timeout):
            client.cluster.scale(0)
            while client.nthreads():
                time.sleep(0.01)
            if comes_back:
                threading.Timer(1.0, client.cluster.scale, [1]).start()
            raise TimeoutError(f"1/1 nanny worker(s) did not shut down within {timeout}s")

        monkeypatch.setattr(client, "restart_workers", restart_workers)
        inverse, _ = problem(Solver(), executor=client.get_executor(), timeout=1.0)
        U = points([1.0, -1.0, 2.0, 3.0])
        if not comes_back:
            with pytest.raises(ExecutorError, match="lost all its workers"):
                inverse.evaluate(U)
            return
        evaluations = inverse.evaluate(U)
    np.testing.assert_array_equal(evaluations.failed, U[:, 0] < 0)
    np.testing.assert_array_equal(evaluations.outputs[U[:, 0] > 0, 0], [1.0, 2.0, 3.0])


def test_a_cluster_of_threads(log):
    """Nobody can restart its workers: a call that was given up is waited for, or ends the run."""
    with (
        distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        solver = Solver()
        inverse, _ = problem(solver, executor=client.get_executor(), timeout=1.5)
        evaluations = inverse.evaluate(points([1, -1]))
        np.testing.assert_array_equal(evaluations.failed, [False, True])
        hanging, _ = problem(misbehave(log, 20.0), executor=client.get_executor(), timeout=0.5)
        with pytest.raises(ExecutorError, match="executor='processes'"):
            hanging.evaluate(points([5, *range(10, 60)]))


def test_store(client, log, tmp_path):
    for _ in range(2):
        inverse, _ = problem(
            misbehave(log), executor=client.get_executor(), store=tmp_path / "s", version="1"
        )
        inverse.evaluate(points([10, 1, 11, 2]))
    assert sorted(log.read()) == [1, 2, 10, 11]
    assert len(pe.open_store(tmp_path / "s")["worker"]) == 4


def test_what_the_workers_do_not_have(client):
    class Unpicklable:
        def __reduce__(self):
            return (__import__, ("a_module_that_only_the_user_has",))

    secret = Unpicklable()
    inverse, _ = problem(lambda x: (secret, x)[1], executor=client.get_executor())
    with pytest.raises(ExecutorError, match="Its workers need the function"):
        inverse.evaluate(points([1, 2]))


@pytest.mark.parametrize(("mp_ctx", "chains"), [("fork", 3), ("forkserver", 2)])
def test_chains_in_processes_of_their_own(client, mp_ctx, chains):
    if os.name != "posix":
        pytest.skip("no fork")

    def simulate(x):
        return np.array([x.sum(), x.prod()])

    def run(executor, **options):
        forward = pe.forward_model(simulate, output_shape=(2,), executor=executor)
        with pm.Model():
            x = pm.Normal("x", shape=2)
            pm.Normal("y", forward(x), 0.5, observed=[1.0, 0.2])
            idata = pm.sample(
                40,
                tune=20,
                chains=chains,
                random_seed=1,
                progressbar=False,
                compute_convergence_checks=False,
                step=pe.EnsembleKalmanSampler(ensemble_size=20),
                **options,
            )
            calls = forward.n_evaluations
            pm.compute_log_likelihood(idata, progressbar=False)
            assert forward.n_evaluations == calls
        return idata.posterior.x

    expected = run(None, cores=1)
    executor = client.get_executor()
    np.testing.assert_array_equal(run(executor, cores=chains, mp_ctx=mp_ctx), expected)
