"""A stage that is computed once a run: among processes that may be killed at any moment."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings

import cloudpickle
import numpy as np
import pymc as pm
import pytest
from pymc.exceptions import SamplingError

import pymc_ensemble as pe
from pymc_ensemble.problem.driver import Account
from pymc_ensemble.step_methods.common_stage import PREFIX, CommonStage, Outcome

A = np.array([[1.0, 0.5], [0.0, 1.0], [1.0, -1.0]])
SLOW = 20.0  # seconds in which a chain process must have done what it is waited for


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Folder for temporary files, of this test alone; chain processes have it, too."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def folders(scratch):
    return sorted(scratch.glob(f"{PREFIX}*"))


def stage_of_a_run():
    stage = CommonStage()
    stage.name_run()
    return stage


def lines(path):
    return path.read_text().split() if path.exists() else []


def wait_for(condition):
    end = time.monotonic() + SLOW
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.01)


class Computing:
    """Takes down who computes, then waits until it may go on."""

    def __init__(self, folder, hold=(), failure=""):
        self.folder, self.hold, self.failure = folder, hold, failure

    def __call__(self):
        name = multiprocessing.current_process().name
        with (self.folder / "computed").open("a") as file:
            file.write(f"{name}\n")
        while name in self.hold and not (self.folder / "go").exists():
            time.sleep(0.01)
        if self.failure:
            raise SamplingError(self.failure)
        return Outcome(np.linspace(0.1, 0.9, 3), Account(10, 1, "at x=3"), 4)


def chain_process(stage, compute, results):
    stage.set_up_chain(3)
    try:
        outcome, own = stage.outcome(compute, "Chain: ")
        result = outcome.found.tolist(), own
    except SamplingError as error:
        result = str(error), None
    path = results / multiprocessing.current_process().name
    path.with_suffix(".part").write_bytes(pickle.dumps(result))
    path.with_suffix(".part").replace(path)


def start(context, number, *args):
    process = multiprocessing.get_context(context).Process(
        target=chain_process, args=args, name=f"worker_chain_{number}"
    )
    process.start()
    return process


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


def result(results, number):
    return pickle.loads((results / f"worker_chain_{number}").read_bytes())


EXPECTED = np.linspace(0.1, 0.9, 3).tolist()


def test_one_process_keeps_the_outcome_in_memory(scratch):
    stage, compute = stage_of_a_run(), Computing(scratch)
    stage.set_up_chain(0)
    assert [stage.outcome(compute, "")[1] for _ in range(2)] == [True, False]
    stage.set_up_chain(1)
    assert stage.outcome(compute, "")[0].found.tolist() == EXPECTED
    stage.set_up_chain(0)  # another run
    assert stage.outcome(compute, "")[1]
    assert len(lines(scratch / "computed")) == 2
    assert not folders(scratch)


@pytest.mark.parametrize("context", ["fork", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_chain_processes_compute_once(context, scratch, results):
    stage, compute = stage_of_a_run(), Computing(results, hold=("worker_chain_0",))
    stage._outcome = "of an earlier run"  # which must not reach the processes
    first = start(context, 0, stage, compute, results)
    wait_for(lambda: lines(results / "computed"))
    others = range(1, 3 if context == "fork" else 2)  # others have to import everything
    processes = [start(context, k, stage, compute, results) for k in others]
    (results / "go").touch()
    for process in (first, *processes):
        process.join(SLOW)
        assert process.exitcode == 0
    assert result(results, 0) == (EXPECTED, True)
    assert all(result(results, k) == (EXPECTED, False) for k in others)
    assert lines(results / "computed") == ["worker_chain_0"]
    if context == "fork":
        [folder] = folders(scratch)
        assert folder.stat().st_mode & 0o077 == 0  # nobody else reads it


@pytest.mark.skipif(os.name != "posix", reason="kills a process by a signal")
def test_another_process_takes_over_from_one_that_was_killed(scratch, results):
    """Three of four are killed, one after the other, each while it computes."""
    hold = [f"worker_chain_{k}" for k in range(4)]
    stage, compute = stage_of_a_run(), Computing(results, hold)
    processes = {f"worker_chain_{k}": start("fork", k, stage, compute, results) for k in range(4)}
    for killed in range(3):
        wait_for(lambda: len(lines(results / "computed")) == killed + 1)  # noqa: B023
        processes.pop(lines(results / "computed")[-1]).kill()
    wait_for(lambda: len(lines(results / "computed")) == 4)
    (results / "go").touch()
    [(name, process)] = processes.items()
    process.join(SLOW)
    assert process.exitcode == 0
    assert result(results, name[-1]) == (EXPECTED, True)
    assert sorted(lines(results / "computed")) == hold
    late = start("fork", 9, stage, compute, results)
    late.join(SLOW)
    assert result(results, 9) == (EXPECTED, False)


@pytest.mark.skipif(os.name != "posix", reason="kills a process by a signal")
def test_outcome_that_was_half_written_is_not_read(scratch, results):
    stage, compute = stage_of_a_run(), Computing(results)
    stage.folder.mkdir()
    (stage.folder / "outcome-123").write_bytes(pickle.dumps(Outcome(0, Account()))[:20])
    start("fork", 0, stage, compute, results).join(SLOW)
    assert result(results, 0) == (EXPECTED, True)


def test_runs_side_by_side_do_not_mix(scratch, results):
    stages = [stage_of_a_run() for _ in range(2)]
    processes = []
    for k, stage in enumerate(stages):
        compute = Computing(results, failure="" if k else "of the first run")
        processes += [start("fork", 2 * k + i, stage, compute, results) for i in range(2)]
    for process in processes:
        process.join(SLOW)
    assert result(results, 0) == result(results, 1) == ("of the first run", None)
    assert {result(results, k)[1] for k in (2, 3)} == {True, False}
    assert len(lines(results / "computed")) == 2  # a failure is known to the others, too
    assert len(folders(scratch)) == 2


def test_leftovers_of_runs_that_were_killed_are_removed(scratch, results):
    script = (
        "from pymc_ensemble.step_methods.common_stage import CommonStage; s = CommonStage();"
        "s.name_run(); s.folder.mkdir(); print(s.folder)"
    )
    made = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert str(folders(scratch)[0]) == made.stdout.strip(), made.stderr
    alive = stage_of_a_run()
    alive.folder.mkdir()
    (scratch / f"{PREFIX}notes").mkdir()  # of somebody else
    stage = stage_of_a_run()
    start("fork", 0, stage, Computing(results), results).join(SLOW)
    kept = {alive.folder, stage.folder, scratch / f"{PREFIX}notes"}
    assert set(folders(scratch)) == kept


def test_folder_that_cannot_be_made(scratch, results, monkeypatch):
    """Every chain computes for itself, then."""
    monkeypatch.setattr("tempfile.tempdir", str(scratch / "missing"))
    stage, compute = stage_of_a_run(), Computing(results)
    for k in range(2):
        start("fork", k, stage, compute, results).join(SLOW)
        assert result(results, k) == (EXPECTED, True)


@pytest.mark.skipif(os.name != "posix", reason="interrupts a process by a signal")
def test_waiting_can_be_interrupted(scratch, results):
    stage, compute = stage_of_a_run(), Computing(results, hold=("worker_chain_0",))
    first = start("fork", 0, stage, compute, results)
    wait_for(lambda: lines(results / "computed"))
    second = start("fork", 1, stage, compute, results)
    time.sleep(0.5)  # it waits for the first by now, or is interrupted on its way there
    os.kill(second.pid, signal.SIGINT)
    second.join(SLOW)
    assert second.exitcode not in (0, None)
    (results / "go").touch()
    first.join(SLOW)
    assert result(results, 0) == (EXPECTED, True)


# -- with a sampler -----------------------------------------------------------------------------


def logged_model(path, pause=0.0):
    """Every evaluation leaves a mark in a file that all processes append to."""

    def simulate(u, rng):
        with path.open("a") as file:
            file.write(".\n")
        time.sleep(pause)
        return A @ u + 1e-6 * rng.normal(size=3)

    with pm.Model() as model:
        u = pm.Normal("u", shape=2)
        forward = pe.forward_model(simulate, output_shape=(3,), stochastic=True)
        pm.Normal("y", forward(u), 0.5, observed=[0.5, -0.3, 1.2])
    return model


def sample(model, chains, cores, tune=60, step=None, **options):
    step = pe.MultiscaleSampler(adjust=False) if step is None else step
    with model:
        return pm.sample(
            draws=20, tune=tune, chains=chains, cores=cores, random_seed=3, progressbar=False,
            compute_convergence_checks=False, step=step, **options,
        )  # fmt: skip


def assert_same_run(one, two, path, n_before):
    np.testing.assert_array_equal(one.posterior["u"], two.posterior["u"])
    for name in ("lp", "log_q", "acceptance", "step_size", "converged"):
        np.testing.assert_array_equal(one.sample_stats[name], two.sample_stats[name])
    last = [run.sample_stats["n_evals"].to_numpy()[:, -1] for run in (one, two)]
    assert sorted(last[0]) == sorted(last[1])  # the pilot is counted once, in any of the chains
    assert last[1].max() > last[1].min() + 500
    assert last[1].sum() == len(lines(path)) - n_before


@pytest.mark.parametrize(
    ("context", "chains", "cores"),
    [
        ("fork", 3, 2),
        ("fork", 4, 4),
        pytest.param("spawn", 2, 2, marks=pytest.mark.slow),
        pytest.param("forkserver", 2, 2, marks=pytest.mark.slow),
    ],
)
def test_run_in_processes_is_that_in_one(context, chains, cores, scratch):
    """The second run does not use what the first one has left in the step method."""
    path, step = scratch / "log", pe.MultiscaleSampler(adjust=False)
    model = logged_model(path)
    one = sample(model, chains, 1, step=step)
    n_before = len(lines(path))
    assert one.sample_stats["n_evals"].to_numpy()[:, -1].sum() == n_before
    two = sample(model, chains, cores, step=step, mp_ctx=context)
    assert_same_run(one, two, path, n_before)
    assert not folders(scratch)


def test_tuning_that_is_too_short_does_not_depend_on_the_cores(scratch):
    """Every chain has all of its tuning for itself, whoever has run the pilot."""
    model = logged_model(scratch / "log")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the burn-in had not passed its test
        runs = [sample(model, 3, cores, tune=4, mp_ctx="fork") for cores in (1, 2)]
    np.testing.assert_array_equal(runs[0].posterior["u"], runs[1].posterior["u"])
    assert not runs[0].sample_stats["converged"].any()


def run_chain(step, number, results):
    if isinstance(step, bytes):
        step = cloudpickle.loads(step)
    root = np.random.SeedSequence(5)
    rng = np.random.default_rng(np.random.SeedSequence(root.entropy, spawn_key=(number,)))
    step.setup_chain(rng, 60, 10)
    point = step._bound.model.initial_point()
    for call in range(70):
        if call == 60:
            step.stop_tuning()
        point, [stats] = step.step(point)
    path = results / f"chain_{number}"
    path.with_suffix(".part").write_bytes(pickle.dumps((point["u"], int(stats["n_evals"]))))
    path.with_suffix(".part").replace(path)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills a process by a signal")
@pytest.mark.parametrize("evaluations", [1, 200, 700])
def test_pilot_is_taken_over_from_a_chain_that_was_killed(scratch, results, evaluations):
    """At its start, in the middle and close to its end; the draws are those of an untouched run."""
    path = scratch / "log"
    step = pe.MultiscaleSampler(adjust=False, model=logged_model(path, pause=0.001))
    step._common.name_run()
    pickled = cloudpickle.dumps(step)
    context, processes = multiprocessing.get_context("fork"), {}
    for number in (0, 1):
        processes[number] = context.Process(
            target=run_chain, args=(pickled, number, results), name=f"worker_chain_{number}"
        )
        processes[number].start()
        wait_for(lambda: len(lines(path)) >= 1)  # the first one has the lock
    wait_for(lambda: len(lines(path)) >= evaluations)
    processes[0].kill()
    processes[1].join(60)
    assert processes[1].exitcode == 0
    taken_over, n_evals = pickle.loads((results / "chain_1").read_bytes())
    for number in (0, 1):  # in one process, in which the first chain runs the pilot
        run_chain(step, number, results)
    (_, first), (expected, second) = (
        pickle.loads((results / f"chain_{number}").read_bytes()) for number in (0, 1)
    )
    np.testing.assert_array_equal(taken_over, expected)
    assert n_evals == first > second + 500  # it has paid for the pilot
