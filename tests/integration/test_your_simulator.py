"""The four steps of the page on simulators run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import forks
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "your_simulator.md"
BLOCKS = re.findall(
    r"^(<!-- not run -->\n)?```python\n(.*?)^```$",
    PAGE.read_text(encoding="utf-8"),
    flags=re.MULTILINE | re.DOTALL,
)
STEPS = [code for left_out, code in BLOCKS if not left_out]

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="scripts are forks of one process")


def run(code, folder):
    """What a script prints, in a folder of its own."""
    script, output = folder / "script.py", folder / "output"
    script.write_text(code)
    process = forks.start(script, output=output, folder=folder)
    process.join()
    assert process.exitcode == 0, output.read_text()
    return output.read_text()


def test_there_are_four():
    assert len(STEPS) == 4
    assert len(BLOCKS) == 6


@posix
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_plain_function(tmp_path):
    rate, calls = run(STEPS[0], tmp_path).split()[-2:]
    assert abs(float(rate) - 0.8) < 0.1
    assert int(calls) > 1000


@posix
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_workers_and_failures(tmp_path):
    assert re.search(r"[1-9]\d*[ \d]*\] evaluations have failed", run(STEPS[1], tmp_path))


@posix
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_store(tmp_path):
    first, again = (run(STEPS[2], tmp_path).partition("<xarray")[2] for _ in range(2))
    assert "amplitude" in first
    assert first == again, "nothing was added"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_dask_cluster(tmp_path):
    """Two short chains that are clients of one cluster with one worker: there are more there.

    It is a new interpreter, as a fork of a process where Dask ran before may wait for ever.
    """
    pytest.importorskip("distributed")
    script = STEPS[3]
    for line, smaller in {
        "n_workers=2": "n_workers=1",
        "pm.sample(": "pm.sample(300, compute_convergence_checks=False, ",  # which load ArviZ
        "chains=4, cores=4": "chains=2, cores=2",
    }.items():
        assert line in script
        script = script.replace(line, smaller)
    path = tmp_path / "script.py"
    path.write_text(script)
    command = [sys.executable, path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert abs(float(done.stdout.split()[-1]) - 0.8) < 0.1
