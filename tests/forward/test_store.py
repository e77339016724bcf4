"""The evaluation store: what is on disk is used, what is not ours or damaged is refused."""

import multiprocessing
import os
import re
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import forks
import numpy as np
import pymc as pm
import pytest
import xarray as xr
from misbehaving import misbehave, points, problem

import pymc_ensemble as pe
from pymc_ensemble.forward import EvaluationStore, StoreError
from pymc_ensemble.forward.tasks import Outcomes

U = points(np.arange(10, 20))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs.db"


def new_problem(log, path, **options):
    """As after a restart: nothing is remembered."""
    return problem(misbehave(log), **{"store": path, "version": "1"} | options)


@pytest.mark.parametrize("executor", [None, "threads", "processes"])
def test_nothing_is_evaluated_twice(log, path, executor):
    first = [10, 1, 11, 2, 3, 12] + [4] * (executor == "processes")
    results = []
    for _ in range(2):
        inverse, forward = new_problem(log, path, executor=executor)
        results.append(inverse.evaluate(points(first)))
        forward.close()
    assert sorted(log.read()) == sorted(first), "failures and dead workers included"
    assert results[0].n_calls == len(first)
    assert results[1].n_calls == 0
    np.testing.assert_array_equal(results[0].outputs, results[1].outputs)
    assert results[0].errors == results[1].errors
    inverse, forward = new_problem(log, path, executor=executor, version="2")
    assert inverse.evaluate(points(first)).n_calls == len(first)
    forward.close()


@pytest.mark.parametrize("executor", [None, "processes"])
def test_time_outs_are_kept(log, path, executor):
    for _ in range(2):
        inverse, forward = new_problem(log, path, executor=executor, timeout=0.3)
        evaluations = inverse.evaluate(points([10, 5, 11]))
        np.testing.assert_array_equal(evaluations.failed, [False, True, False])
        forward.close()
    assert sorted(log.read()) == [5, 10, 11]


def test_retries_are_kept(log, path):
    for _ in range(2):
        inverse, _ = new_problem(log, path, retries=2)
        assert inverse.evaluate(points([1, 10])).failed.tolist() == [True, False]
    assert log.read() == [1, 10, 1, 1]
    assert pe.open_store(path)["attempt"].values.tolist() == [0, 0, 1, 2]


def test_more_retries_give_stored_failures_another_chance(log, path):
    for retries, calls in ((0, 2), (1, 1), (1, 0)):
        inverse, forward = new_problem(log, path, retries=retries)
        inverse.evaluate(points([1, 10]))
        assert forward.n_evaluations == calls
    assert log.read() == [1, 10, 1]


def test_replicates_are_kept_apart(path):
    def noisy(x, rng):
        return x + rng.normal(size=2)

    results = []
    for _ in range(2):
        inverse, forward = problem(noisy, stochastic=True, store=path)
        for k in range(3):
            seed = np.random.SeedSequence(1, spawn_key=(k % 2,))
            results.append(inverse.evaluate(np.zeros((2, 2)), seed).outputs)
        assert forward.n_evaluations == (4 if len(results) == 3 else 0)
    assert len({output.tobytes() for result in results for output in result}) == 4
    np.testing.assert_array_equal(results[:3], results[3:])


def test_as_a_dataset(path):
    def simulate(amplitude, rates):
        if amplitude < 0:
            raise ValueError("negative")
        return {"curve": amplitude * np.exp(-rates), "total": amplitude}

    import pymc as pm

    before = time.time()
    forward = pe.forward_model(simulate, store=path)
    with pm.Model():
        amplitude, rates = pm.Normal("a"), pm.Normal("r", shape=2)
        outputs = forward(amplitude, rates)
        pm.Normal("y", outputs["curve"], 1.0, observed=np.zeros(2))
        problem = pe.InverseProblem.from_model()
    evaluated = np.array([[1.0, 2.0, 3.0], [-1.0, 0.0, 0.0]])
    problem.evaluate(evaluated)
    data = forward.store.to_dataset()
    xr.testing.assert_identical(data, pe.open_store(path))
    data = data.isel(evaluation=slice(-2, None))
    np.testing.assert_array_equal(data["amplitude"], evaluated[:, 0])
    np.testing.assert_array_equal(data["rates"], evaluated[:, 1:])
    np.testing.assert_array_equal(data["curve"][0], np.exp([-2.0, -3.0]))
    assert np.isnan(data["curve"][1]).all()
    assert data["total"][0] == 1.0
    assert data["status"].values.tolist() == ["ok", "failed"]
    assert "ValueError: negative" in str(data["reason"].values[1])
    start = data["start"].values.astype(float) / 1e9
    assert (before - 1 <= start).all()
    assert (start <= time.time() + 1).all()
    assert (data["duration"] >= 0).all()
    assert data["worker"].values[0]
    data.to_netcdf(path.with_suffix(".nc"))


def test_shape_is_known_after_a_restart(path):
    import pymc as pm

    for calls in (1, 0):
        forward = pe.forward_model(lambda x: x * np.ones(3), store=path)
        with pm.Model():
            assert forward(pm.Normal("x")).type.shape == (3,)
        assert forward.n_evaluations == calls


def test_default_version_follows_the_source(path):
    def make(factor):
        return lambda x: factor * x

    for factor, calls in ((1.0, 10), (1.0, 0), (2.0, 10)):
        inverse, forward = problem(make(factor), store=path)
        np.testing.assert_array_equal(inverse.forward(U), factor * U)
        assert forward.n_evaluations == calls
    with pytest.raises(ValueError, match="version"):
        problem(make(threading.Lock()), store=path)


def test_other_versions_are_told(log, path, caplog):
    new_problem(log, path)[0].evaluate(U)
    assert not caplog.records
    new_problem(log, path, version="2")[0].evaluate(U)
    [record] = caplog.records
    assert "10 evaluations" in record.getMessage()
    assert "other versions" in record.getMessage()


def test_functions_that_are_defined_later_count(path):
    """The version is told when the model is first used."""
    versions = set()
    for factor in (2, 3):
        source = f"""
            @pe.forward_model(output_shape=(2,), store=path)
            def simulate(x):
                return later(x)

            def later(x):
                return {factor} * x
        """
        module = path.with_name(f"module{factor}.py")
        module.write_text(textwrap.dedent(source))
        namespace = {"__name__": module.stem, "pe": pe, "path": path}
        exec(compile(module.read_text(), str(module), "exec"), namespace)
        versions.add(namespace["simulate"].version)
    assert len(versions) == 2


def test_draws_are_recognized_after_a_restart(path, log):
    """What is asked for again has been through transforms, and the process is a new one."""
    inverse, _ = new_problem(log, path)
    inverse.evaluate(U)
    inverse, forward = new_problem(log, path)
    import pytensor
    import pytensor.tensor as pt

    x = pt.vector("x", shape=(2,))
    function = pytensor.function([x], forward(x))
    np.testing.assert_array_equal(function(np.nextafter(U[3], 0.0)), 2 * U[3])
    assert log.read() == U[:, 0].tolist()


# -- several writers ----------------------------------------------------------------


def _write(path, first, barrier):
    inverse, _ = problem(lambda x: 2 * x, store=path, version="1")
    barrier.wait()
    for k in range(20):
        inverse.evaluate(points([first + k, 1000 + k]))


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_several_processes_write_at_the_same_time(path, log):
    inverse, _ = problem(lambda x: 2 * x, store=path, version="1")
    inverse.evaluate(U)  # a connection is open while the others are forked
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    workers = [
        context.Process(target=_write, args=(path, 100 * (k + 1), barrier)) for k in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    data = pe.open_store(path)
    assert data.sizes["evaluation"] == 10 + 4 * 20 + 20, "those in common are there once"
    inverse, forward = problem(lambda x: 2 * x, store=path, version="1")
    inverse.evaluate(points(np.arange(1000, 1020)))
    assert forward.n_evaluations == 0


def test_the_first_to_save_is_right(path, log):
    inverse, forward = new_problem(log, path)
    inverse.evaluate(points([10]))
    key = (points([10]).tobytes(), "", 0)
    late = Outcomes(np.full((1, 2), 7.0), ["ok"], {}, np.zeros(1), np.zeros(1))
    assert forward.store.put([key], late).outputs.tolist() == [[20.0, 2.0]]


# -- refused ----------------------------------------------------------------


def test_other_files_are_refused(path, log, tmp_path):
    path.write_text("a diary of mine\n" * 100)
    inverse, _ = new_problem(log, path)
    with pytest.raises(StoreError, match="is no evaluation store"):
        inverse.evaluate(U)
    assert path.read_text().startswith("a diary of mine"), "it is left as it is"
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE evaluations (key, value)")
    connection.close()
    with pytest.raises(StoreError, match=r"not an evaluation store|There is no evaluation store"):
        pe.open_store(foreign)
    inverse, _ = new_problem(log, foreign)
    with pytest.raises(StoreError, match=r"not an evaluation store|There is no evaluation store"):
        inverse.evaluate(U)
    with pytest.raises(StoreError, match="There is no"):
        pe.open_store(tmp_path / "nothing.db")
    inverse, _ = new_problem(log, tmp_path / "no folder" / "runs.db")
    with pytest.raises(StoreError, match="no folder"):
        inverse.evaluate(U)
    assert log.read() == [], "nothing is evaluated before"


def test_the_store_of_another_model_is_refused(path, log):
    inverse, _ = new_problem(log, path)
    inverse.evaluate(U)
    other, _ = problem(lambda u: u, store=path, version="1")
    with pytest.raises(StoreError, match="another forward model"):
        other.evaluate(U)


def closed(path, log):
    inverse, forward = new_problem(log, path)
    inverse.evaluate(U)
    forward.store.close()
    assert not path.with_name(path.name + "-wal").exists()


@pytest.mark.parametrize("where", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_damage_is_found(path, log, where):
    closed(path, log)
    data = bytearray(path.read_bytes())
    at = int(where * len(data))
    data[at : at + 200] = b"\xff" * 200
    path.write_bytes(data)
    log.path.write_text("")
    inverse, _ = new_problem(log, path)
    try:
        evaluations = inverse.evaluate(U)
    except StoreError:
        assert log.read() == []
    else:  # the damage was in a part that is not used
        np.testing.assert_array_equal(evaluations.outputs, 2 * U)


def test_a_changed_number_is_found(path, log):
    closed(path, log)
    with sqlite3.connect(path) as connection:
        [[outputs]] = connection.execute("SELECT outputs FROM evaluations LIMIT 1").fetchall()
        changed = outputs[:-1] + bytes([outputs[-1] ^ 1])
        connection.execute("UPDATE evaluations SET outputs = ? WHERE rowid = 1", (changed,))
    connection.close()
    inverse, _ = new_problem(log, path)
    with pytest.raises(StoreError, match="checksum"):
        inverse.evaluate(U[5:])
    with pytest.raises(StoreError, match="checksum"):
        pe.open_store(path)


def test_half_a_file_is_refused(path, log):
    closed(path, log)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(StoreError, match="damaged"):
        pe.open_store(path)


@pytest.mark.parametrize("content", [b"", b"x", b"a note of mine, shorter than a header"])
def test_small_files_of_others_are_left_as_they_are(path, log, content):
    path.write_bytes(content)
    inverse, _ = new_problem(log, path)
    for use in (lambda: inverse.evaluate(U), lambda: pe.open_store(path)):
        with pytest.raises(StoreError, match=f"has {len(content)} bytes.*not touched"):
            use()
    assert path.read_bytes() == content
    assert log.read() == []


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_flipped_bit_is_found_or_harmless(path, log, seed):
    """Nothing that was evaluated is lost, or changed, without a word: 100 bits each."""
    many = points(np.arange(100, 300))
    inverse, forward = new_problem(log, path)
    inverse.evaluate(many)
    forward.store.close()
    expected = pe.open_store(path)
    keys = [(point.tobytes(), "", 0) for point in many]
    data = path.read_bytes()
    found = 0
    for bit in np.random.default_rng(seed).integers(0, 8 * len(data), size=100).tolist():
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        for end in ("-wal", "-shm", "-journal"):
            path.with_name(path.name + end).unlink(missing_ok=True)
        path.write_bytes(flipped)
        store = EvaluationStore(path, "1")
        try:
            known = dict(store.get(keys, 2))
            xr.testing.assert_identical(store.to_dataset(), expected)
        except StoreError:
            found += 1
            continue
        finally:
            store.close()
        outputs = np.concatenate([known[i].outputs for i in range(len(many))])
        np.testing.assert_array_equal(outputs, 2 * many)
    assert found > 30, "half of the file is in use"


LEAVE_A_LOG = """
import os, signal, sys
import numpy as np
import pymc_ensemble as pe

forward = pe.forward_model(lambda u: u**2, output_shape=(1,), store=sys.argv[1], version="1")
problem = pe.InverseProblem(forward, prior=(np.zeros(1), np.eye(1)), data=[0.0], noise=1.0)
for k in range(12):
    problem.evaluate([[float(k)]])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_every_flipped_bit_of_a_log_that_was_left_behind(path):
    """A run that was killed leaves evaluations in the log. Only the last may look unfinished."""
    subprocess.run([sys.executable, "-c", LEAVE_A_LOG, str(path)], check=False)
    files = {f: f.read_bytes() for f in path.parent.glob(f"{path.name}*")}
    log, index = (path.with_name(f"{path.name}-{end}") for end in ("wal", "shm"))
    assert {path, log, index} == files.keys()
    complete = len(EvaluationStore(path, "1"))
    assert complete == 12
    rng, refused = np.random.default_rng(1), []
    size = len(files[log])
    # each field of the header and of a frame, and bits anywhere, in the log and in its index
    bits = [(log, 8 * byte) for byte in range(56)]
    bits += [(log, int(bit)) for bit in rng.integers(8 * size, size=150)]
    bits += [(index, int(bit)) for bit in rng.integers(8 * len(files[index]), size=30)]
    for file, bit in bits:
        for other in path.parent.glob(f"{path.name}*"):
            other.unlink()
        for other, content in files.items():
            other.write_bytes(content)
        flipped = bytearray(files[file])
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        try:
            found = len(EvaluationStore(path, "1"))
        except StoreError as error:
            refused.append((file, str(error)))
        else:
            last = file == log and bit // 8 >= size - 4096 - 24
            assert found >= complete - last, (file.name, bit)
    assert all(file == log and f"{path.name}-wal" in told for file, told in refused)
    assert len(refused) > 150


@pytest.mark.parametrize("table", ["about", "evaluations"])
def test_a_changed_description_is_found(path, log, table):
    closed(path, log)
    with sqlite3.connect(path) as connection:
        if table == "about":
            query = "UPDATE about SET value = replace(value, 'output', 'outpux')"
        else:
            query = "UPDATE evaluations SET status = 'failed' WHERE rowid = 3"
        connection.execute(query)
    connection.close()
    for use in (lambda: pe.open_store(path), lambda: new_problem(log, path)[0].evaluate(U)):
        with pytest.raises(StoreError, match="checksum"):
            use()


@pytest.mark.parametrize(
    "schema",
    [
        "CREATE TRIGGER t AFTER INSERT ON evaluations BEGIN DELETE FROM evaluations; END",
        "CREATE TRIGGER t AFTER INSERT ON about BEGIN DELETE FROM evaluations; END",
        "CREATE VIEW v AS SELECT * FROM evaluations",
        "ALTER TABLE about RENAME TO a; CREATE VIEW about AS SELECT name, value FROM a",
        "CREATE INDEX i ON evaluations (abs(attempt))",
        "CREATE TABLE another (x)",
        "ALTER TABLE evaluations ADD COLUMN y AS (abs(attempt))",
    ],
)
def test_nothing_in_a_file_is_run(path, log, schema):
    closed(path, log)
    with sqlite3.connect(path) as connection:
        connection.executescript(schema)
    connection.close()
    data = path.read_bytes()
    for use in (lambda: pe.open_store(path), lambda: new_problem(log, path)[0].evaluate(U)):
        with pytest.raises(StoreError, match="is damaged, or is no evaluation store"):
            use()
    assert path.read_bytes() == data


def test_long_messages_are_cut(path):
    def simulate(x):
        raise ValueError("begin" + "x" * 10**6 + "end")

    for _ in range(2):
        inverse, forward = problem(simulate, store=path, version="1")
        [(_, reason)] = inverse.evaluate(U[:1]).errors
        assert len(reason) < 10_100
        assert "begin" in reason
        assert "characters left out" in reason
        assert reason.endswith("end")
    assert forward.n_evaluations == 0
    assert pe.open_store(path)["reason"].item() == reason


# -- killed runs ----------------------------------------------------------------

SCRIPT = """
    import sys, time
    import numpy as np
    import pymc as pm
    import pymc_ensemble as pe

    store, log, result, seconds = sys.argv[1:]

    def simulate(x):
        time.sleep(float(seconds))
        with open(log, "a") as file:
            file.write(x.tobytes().hex() + "\\n")
        return np.array([x[0] + x[1], x[0] * x[1]])

    forward = pe.forward_model(
        simulate,
        output_shape=(2,),
        executor=2,
        store=store,
        version="1",
    )
    with pm.Model():
        x = pm.Normal("x", shape=2)
        pm.Normal("y", forward(x), 0.5, observed=[1.0, 0.2])
        idata = pm.sample(
            80, tune=30, chains=1, cores=1, random_seed=1, progressbar=False,
            step=pe.EnsembleKalmanSampler(ensemble_size=20), compute_convergence_checks=False,
        )
    np.savez(result, x=idata.posterior.x, **{k: v for k, v in idata.sample_stats.items()})
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the first two runs are forks")
def test_a_run_that_is_killed_goes_on_where_it_stopped(tmp_path):
    """Killed with its workers: the same draws bit by bit, and no finished evaluation again.

    The run that goes on is a new interpreter.
    """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))

    def files(name):
        return [tmp_path / f"{name}{end}" for end in (".db", ".log", ".npz")]

    expected = files("undisturbed")[2]
    undisturbed = forks.start(script, *files("undisturbed"), 0.0)
    undisturbed.join()
    assert undisturbed.exitcode == 0
    store, log, result = files("killed")
    process = forks.start(script, store, log, result, 0.02)
    while process.exitcode is None and not log.exists():
        time.sleep(0.01)
    time.sleep(np.random.default_rng().uniform(0, 0.4))
    assert process.exitcode is None, "the run is too short for this test"
    process.kill()
    process.join()
    command = [sys.executable, script, store, log, result, "0.0"]
    subprocess.run(command, stderr=subprocess.DEVNULL, check=True)
    with np.load(expected) as first, np.load(result) as second:
        for name in first:
            np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    calls = log.read_text().split()
    # a kill between the note and the return, less than a millisecond, is possible but unlikely
    assert len(calls) - len(set(calls)) <= 1
    assert len(pe.open_store(store)["status"]) == len(set(calls))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forks of one process")
def test_runs_of_each_sampler_that_are_killed(tmp_path):
    """Two kills of one run each; with `--kills 30` the command is the whole study.

    The test above kills the Kalman sampler.
    """
    script = Path(__file__).parents[2] / "benchmarks" / "kills.py"
    names = ["multiscale", "gaussian_process"]
    output = tmp_path / "output"
    done = forks.start(script, "--samplers", *names, "--kills", 2, "--seeds", 0, output=output)
    done.join()
    assert done.exitcode == 0, output.read_text()
    assert all(re.search(rf"{name}: 2 kills in \d runs", output.read_text()) for name in names)


@pytest.mark.parametrize("output_shape", [None, (1,), {"status": (1,)}])
def test_names_that_the_store_needs_are_refused(path, output_shape):
    calls = []

    def simulate(duration):
        calls.append(duration)
        return np.array([duration])

    def renamed(length):
        return simulate(length)

    named = isinstance(output_shape, dict)
    forward = pe.forward_model(
        renamed if named else simulate, output_shape=output_shape, store=path
    )
    with pm.Model():
        x = pm.Normal("x")
        name = "status" if named else "duration"
        with pytest.raises(StoreError, match=f"`{name}` is the name of.*Rename it"):
            forward(x)
    assert not calls
