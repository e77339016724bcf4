"""Worker processes of our own: any may die at any moment, and none outlives its use."""

import ctypes
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path

import forks
import numpy as np
import pymc as pm
import pytest
from misbehaving import points, problem

import pymc_ensemble as pe
from pymc_ensemble.forward import ExecutorError, ExternalProgram
from pymc_ensemble.forward.workers import processes

U = points(np.arange(10, 40))
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
posix = pytest.mark.skipif(os.name != "posix", reason="signals")


def wait_until(condition, seconds=60.0):
    """Wait for a condition; tell whether it came true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def runs(pid):
    """Whether a process runs, or a thread of it; one that has ended and was not fetched does not.

    A first thread that has ended leaves files open, and locked, as long as there are others.
    """
    process = Path(f"/proc/{pid}")
    try:
        ended = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        return not ended or len(list((process / "task").iterdir())) > 1
    except OSError:
        return False


# -- members that end their worker ---------------------------------------------------------------

ENDINGS = {
    "python exit 0": lambda: os._exit(0),
    "C exit 0": lambda: ctypes.CDLL(None).exit(0),
    "exit 1": lambda: os._exit(1),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "pipe closed": lambda: os.closerange(3, 100) or time.sleep(60),
}


@posix
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("known", [False, True], ids=["alone", "in chunks"])
def test_a_worker_that_ends_is_a_failed_member(ending, known):
    def function(x):
        if x[0] in (13, 27):
            ENDINGS[ending]()
        return 2 * x

    inverse, forward = problem(function, executor=2)
    if known:  # that it is cheap: members are sent in chunks
        inverse.evaluate(points(np.arange(100, 200)))
    evaluations = inverse.evaluate(U)
    np.testing.assert_array_equal(np.flatnonzero(evaluations.failed), [3, 17])
    assert "Its worker process died with exit code" in evaluations.errors[0][1]
    assert not inverse.evaluate(U + 100).failed.any()
    forward.close()


@posix
def test_idle_workers_that_are_killed_are_replaced():
    def function(x):
        return np.array([os.getpid(), x[0]])

    inverse, forward = problem(function, executor=2)
    killed = set()
    for number in range(5):
        evaluations = inverse.evaluate(points(np.arange(10) + 100 * number))
        assert not evaluations.failed.any()
        pids = set(evaluations.outputs[:, 0].astype(int))
        assert not pids & killed
        for pid in pids if number % 2 else list(pids)[:1]:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
    forward.close()


@posix
@pytest.mark.slow
def test_a_run_survives_workers_that_are_killed_at_random(log, request):
    """The draws are those of a run without, but for members that were on their way.

    They are killed at work or while they wait. If each were killed at its start, which takes long
    on a busy machine, the run would end: so the next test says.
    """

    def function(x):
        log.note(os.getpid())
        time.sleep(0.002)
        return 2 * x

    forward = pe.forward_model(function, output_shape=(2,), executor=2)
    over, killed = threading.Event(), []

    def kill():
        rng = np.random.default_rng(0)
        while not over.wait(rng.uniform(0.02, 0.2)):
            noted = set(log.read())
            began = [p.pid for p in multiprocessing.active_children() if p.pid in noted]
            if began:
                killed.append(rng.choice(began))
                with suppress(ProcessLookupError):
                    os.kill(killed[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    request.addfinalizer(over.set)  # or it kills those of other tests, if this one fails
    for seed in (1, 2):  # the second run uses the same workers, or new ones
        with pm.Model():
            x = pm.Normal("x", shape=2)
            pm.Normal("y", forward(x), 1.0, observed=np.zeros(2))
            if seed == 1:
                killer.start()
            idata = pm.sample(
                600,
                step=pe.EnsembleKalmanSampler(ensemble_size=20),
                chains=1,
                cores=1,
                random_seed=seed,
                progressbar=False,
                compute_convergence_checks=False,
            )
        assert np.isfinite(idata.posterior.x).all()
        if seed == 1:
            over.set()
            killer.join()
            n_failed = idata.sample_stats.n_failed.values.max()
            assert len(killed) >= 3
            assert n_failed <= len(killed), "a kill costs one member at most"
        else:
            assert idata.sample_stats.n_failed.values.max() == 0
    forward.close()


@posix
def test_workers_that_cannot_begin_end_the_run(tmp_path):
    """A script without a guard, where workers are not forked."""
    script, output = tmp_path / "script.py", tmp_path / "output"
    script.write_text(
        textwrap.dedent("""
        import numpy as np
        import pymc_ensemble as pe
        from pymc_ensemble.forward.workers import processes

        processes.start_method = lambda: "spawn"
        processes.DEAD_STARTS = 2
        forward = pe.forward_model(lambda x: x, output_shape=(1,), executor=1)
        prior = (np.zeros(1), np.eye(1))
        problem = pe.InverseProblem(forward, prior=prior, data=np.zeros(1), noise=1.0)
        problem.evaluate(np.ones((3, 1)))
        """)
    )
    done = forks.start(script, output=output)
    done.join()
    assert done.exitcode == 1
    assert "Worker processes end, with exit code 1" in output.read_text()
    assert '`if __name__ == "__main__":`' in output.read_text().splitlines()[-1]


@linux
def test_workers_that_are_killed_at_their_start_end_the_run(monkeypatch):
    """Not at once, as whoever kills them may stop."""
    starts, Worker = [], processes.Worker

    def killed(*arguments):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(processes, "_work", killed)
    monkeypatch.setattr(processes, "Worker", lambda *a: starts.append(a) or Worker(*a))
    inverse, forward = problem(lambda x: x, executor=2)
    with pytest.raises(ExecutorError, match="Perhaps the system kills them"):
        inverse.evaluate(U)
    assert len(starts) >= processes.KILLED_STARTS
    forward.close()


def test_scripts_need_no_guard_where_jax_is_imported_but_idle(tmp_path):
    """ArviZ imports it where it is installed; workers are spawned only after a computation."""
    pytest.importorskip("jax")
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import sys
        import jax.numpy as jnp
        import pymc_ensemble as pe
        from pymc_ensemble.forward.workers.processes import start_method

        print(start_method())
        jnp.zeros(2) + 1
        print(start_method())
        """)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    first = "fork" if sys.platform == "linux" else "spawn"
    assert done.stdout.split() == [first, "spawn"]


def test_what_is_no_failure_of_a_member_reaches_the_caller():
    """Also if it cannot be pickled."""

    class Unpicklable(Exception):
        def __init__(self, one, two):
            super().__init__(one)

    def function(x):
        raise KeyboardInterrupt(Unpicklable("one", "two"))

    inverse, forward = problem(function, executor=2)
    with pytest.raises(ExecutorError, match="KeyboardInterrupt: one"):
        inverse.evaluate(U)
    forward.close()


# -- calls that take too long --------------------------------------------------------------------


@linux
@pytest.mark.parametrize("executor", [None, 2, "threads"])
@pytest.mark.parametrize("how", ["subprocess", "ExternalProgram"])
def test_programs_of_a_worker_that_timed_out_are_ended(how, executor, tmp_path):
    program = ExternalProgram(
        [sys.executable, "-c", "import os, time; open('pid', 'w').write('x'); time.sleep(600)"],
        write=lambda folder: (tmp_path / "folder").write_text(str(folder)),
        read=lambda folder: 0.0,
    )
    command = [sys.executable, "-c", "import time; time.sleep(600)"]

    def function(x):
        if x[0] == 11:
            if how == "subprocess":
                with subprocess.Popen(command) as process:
                    (tmp_path / "pids").write_text(f"{process.pid}")
                    process.wait()
            program()
        return 2 * x

    inverse, forward = problem(function, executor=executor, timeout=5.0)
    evaluations = inverse.evaluate(points([10, 11, 12]))
    np.testing.assert_array_equal(evaluations.failed, [False, True, False])
    if how == "subprocess":
        assert wait_until(lambda: not runs((tmp_path / "pids").read_text()))
    else:
        folder = (tmp_path / "folder").read_text()
        assert wait_until(lambda: not working_in(folder))
        forward.close()
        assert not Path(folder).exists()
    forward.close()


def working_in(folder):
    """Processes whose working directory is a folder."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if str(link.readlink()).startswith(folder):
                found.append(link.parent.name)
        except OSError:
            continue
    return found


# -- what is left behind -------------------------------------------------------------------------


def held():
    """Descriptors, threads and processes of this process."""
    return (
        len(list(Path("/proc/self/fd").iterdir())),
        threading.active_count(),
        len(multiprocessing.active_children()),
    )


@linux
@pytest.mark.parametrize("executor", [None, 2])
def test_models_that_go_out_of_use_leave_nothing_behind(executor):
    def sample():
        forward = pe.forward_model(
            lambda x: 2 * x, output_shape=(2,), executor=executor, timeout=60.0
        )
        with pm.Model():
            x = pm.Normal("x", shape=2)
            pm.Normal("y", forward(x), 1.0, observed=np.zeros(2))
            inverse = pe.InverseProblem.from_model()
        assert not inverse.evaluate(U).failed.any()
        return weakref.ref(forward)

    sample()
    for _ in range(2):
        gc.collect()
    before = held()
    folders = set(Path(pe.forward.folders.own_folder()).iterdir())
    models = [sample() for _ in range(5)]
    for _ in range(2):  # what is remembered of a model is free only once the model has gone
        gc.collect()
    assert [model() for model in models] == [None] * 5
    assert held() == before
    assert set(Path(pe.forward.folders.own_folder()).iterdir()) == folders


SCRIPT = """
    import os, subprocess, sys, time
    import numpy as np, pymc as pm, pymc_ensemble as pe

    log, what = sys.argv[1:]

    def function(x):
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\\n")
        if what == "program":
            program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            with open(log, "a") as file:
                file.write(f"{program.pid}\\n")
            program.wait()
        time.sleep(0.02)
        return 2 * x

    options = {
        "chains": {},
        "chains with a time-out": {"timeout": 60},
        "workers": {"executor": 2},
        "program": {"executor": 2},
    }[what]
    forward = pe.forward_model(function, output_shape=(2,), **options)
    if __name__ == "__main__":
        with pm.Model():
            x = pm.Normal("x", shape=2)
            pm.Normal("y", forward(x), 1.0, observed=np.zeros(2))
            pm.sample(
                20000,
                step=pe.EnsembleKalmanSampler(ensemble_size=20),
                chains=2,
                cores=2 if what.startswith("chains") else 1,
                progressbar=False,
            )
"""


@linux
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("what", ["chains", "chains with a time-out", "workers", "program"])
def test_nothing_goes_on_when_the_main_process_is_killed(what, tmp_path):
    script, log = tmp_path / "script.py", tmp_path / "log"
    script.write_text(textwrap.dedent(SCRIPT))
    temporary, output = tmp_path / "temporary", tmp_path / "output"
    temporary.mkdir()
    log.touch()
    main = forks.start(script, log, what, output=output, temporary=temporary)
    enough = 4 if what == "program" else 100
    assert wait_until(lambda: len(log.read_text().split()) >= enough, 300), "it never began"
    main.kill()
    main.join()
    killed = time.monotonic()
    gone = wait_until(lambda: not any(map(runs, set(log.read_text().split()))), 60)
    assert gone, output.read_text()
    assert time.monotonic() - killed < 10
    # what it left in the temporary folder is removed by the next process that needs a folder there
    left = set(temporary.iterdir())
    assert left or not what.startswith("workers")
    script.write_text("from pymc_ensemble.forward.folders import own_folder; print(own_folder())")
    new = forks.start(script, output=output, temporary=temporary)
    new.join()
    assert output.read_text().startswith(str(temporary))
    assert not [path for path in temporary.iterdir() if path.name.startswith("pymc_ensemble-")]
