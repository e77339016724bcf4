"""The four steps of the page on simulators run as they stand."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "your_simulator.md"
BLOCKS = re.findall(
    r"^(<!-- not run -->\n)?```python\n(.*?)^```$",
    PAGE.read_text(encoding="utf-8"),
    flags=re.MULTILINE | re.DOTALL,
)
STEPS = [code for left_out, code in BLOCKS if not left_out]


def run(code, folder):
    script = folder / "script.py"
    script.write_text(code)
    process = subprocess.run(
        [sys.executable, script],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_there_are_four():
    assert len(STEPS) == 4
    assert len(BLOCKS) == 6


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_plain_function(tmp_path):
    rate, calls = run(STEPS[0], tmp_path).split()[-2:]
    assert abs(float(rate) - 0.8) < 0.1
    assert int(calls) > 1000


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_workers_and_failures(tmp_path):
    assert re.search(r"[1-9]\d*[ \d]*\] evaluations have failed", run(STEPS[1], tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_store(tmp_path):
    first, again = (run(STEPS[2], tmp_path).partition("<xarray")[2] for _ in range(2))
    assert "amplitude" in first
    assert first == again, "nothing was added"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_dask_cluster(tmp_path):
    """Two chains that are clients of one cluster, where there are four on the page."""
    pytest.importorskip("distributed")
    script = STEPS[3].replace("chains=4, cores=4", "chains=2, cores=2")
    assert script != STEPS[3]
    assert abs(float(run(script, tmp_path).split()[-1]) - 0.8) < 0.1
