"""External programs: files, failures, time-outs."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from misbehaving import points, problem

from pymc_ensemble.forward import ExternalProgram

# reads two numbers, and behaves as the first one says
PROGRAM = """
import os, signal, subprocess, sys, time
import numpy as np
x = np.loadtxt("input.txt")
if x[0] == 1:
    sys.exit("I cannot do one")
if x[0] == 2:
    print("no convergence")
    sys.exit(0)  # without any output
if x[0] == 3:
    print(*range(100), sep="\\n", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
if x[0] == 5:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with open(os.environ["PIDS"], "a") as file:
        file.write(f"{os.getpid()} {child.pid} ")
    time.sleep(60)
np.savetxt("output.txt", 2 * x)
"""


def write(folder, x):
    np.savetxt(folder / "input.txt", x)


def read(folder):
    return np.loadtxt(folder / "output.txt")


@pytest.fixture
def program(tmp_path, monkeypatch):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    monkeypatch.setenv("PIDS", str(tmp_path / "pids"))
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    def make(**options):
        return ExternalProgram([sys.executable, script], write, read, scratch=scratch, **options)

    make.scratch, make.pids = scratch, tmp_path / "pids"
    return make


def running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # a zombie has ended


def test_in_threads(program):
    with ThreadPoolExecutor(2) as executor:
        inverse, _ = problem(program(), executor=executor)
        evaluations = inverse.evaluate(points([10, 1, 11, 2]))
    np.testing.assert_array_equal(evaluations.failed, [False, True, False, True])
    np.testing.assert_array_equal(evaluations.outputs[::2], 2 * points([10, 11]))
    reasons = dict(evaluations.errors)
    assert "exit status 1" in reasons[1]
    assert "I cannot do one" in reasons[1]
    assert "output.txt" in reasons[3]
    assert reasons[3].endswith(
        "ended as if all was well, with the inputs [2. 1.]. It said at last:\nno convergence"
    )
    assert list(program.scratch.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_program_that_crashes(program):
    """The signal has a name; inputs and the last lines are shown, and nothing of our own code."""
    inverse, _ = problem(program())
    [(_, reason)] = inverse.evaluate(points([3])).errors
    last = "\n".join(map(str, range(90, 100)))
    said = f"was killed by SIGSEGV, with the inputs [3. 1.]. It said at last:\n{last}"
    assert reason == f"{Path(sys.executable).name} {said}"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("executor", [None, "threads", "processes"])
def test_a_program_that_hangs_is_killed_with_all_that_it_started(program, executor):
    inverse, forward = problem(program(), executor=executor, timeout=2.0)
    started = time.monotonic()
    evaluations = inverse.evaluate(points([10, 5, 11]))
    assert time.monotonic() - started < 30
    np.testing.assert_array_equal(evaluations.failed, [False, True, False])
    assert "was killed" in evaluations.errors[0][1]
    pids = program.pids.read_text().split()
    assert len(pids) == 2
    time.sleep(0.2)
    assert not any(running(pid) for pid in pids)
    assert list(program.scratch.iterdir()) == []
    forward.close()


def test_folders_of_failed_calls_can_be_kept(program):
    inverse, _ = problem(program(keep_failed=True))
    evaluations = inverse.evaluate(points([10, 1]))
    [folder] = program.scratch.iterdir()
    assert str(folder) in evaluations.errors[0][1]
    assert (folder / "input.txt").exists()


def test_store(program, tmp_path):
    for calls in (2, 0):
        inverse, forward = problem(program(), store=tmp_path / "runs.db")
        inverse.evaluate(points([10, 1]))
        assert forward.n_evaluations == calls


def test_command_as_a_string(tmp_path):
    program = ExternalProgram(
        f'{sys.executable} -c \'import os; print(os.getcwd(), file=open("where", "w"))\'',
        write=lambda folder: None,
        read=lambda folder: float((folder / "where").read_text().strip() == str(folder)),
        scratch=tmp_path,
    )
    assert program() == 1.0
