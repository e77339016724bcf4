"""The examples run as they stand, on the command line."""

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pymc_ensemble.forward import Evaluations

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.default_mode
@pytest.mark.slow
def test_lynx_hare(monkeypatch, tmp_path, capsys):
    """The main job from its first draw to its picture, with few draws."""
    picture = tmp_path / "new_folder" / "lynx_hare.png"
    arguments = ["lynx_hare.py", "--quick", "--output", str(picture)]
    monkeypatch.setattr(sys, "argv", arguments)
    module = runpy.run_path(str(EXAMPLES / "lynx_hare.py"), run_name="__main__")

    assert picture.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    table = [line.split() for line in printed.splitlines()]
    rows = {
        row[0]: [float(x) for x in row[1:]]
        for row in table
        if len(row) == 9 and row[0] != "Progress"  # the head of PyMC's table
    }
    assert len(rows) == 8
    for _, _, error, ratio, rhat, plain_error, plain_ratio, _ in rows.values():
        # 4 x 500 draws, of which a quarter are independent: standard errors .045 and .03.
        assert abs(error) < 0.25
        assert 0.85 < ratio < 1.18
        assert rhat < 1.1
        assert abs(plain_error) < 0.35
        assert 0.8 < plain_ratio < 1.25
    [calls] = [int(row[4]) for row in table if row[:3] == ["solutions", "of", "the"]]
    assert calls <= 24_000
    assert set(module["PARAMETERS"]) == {label.split("[")[0] for label in rows}


@pytest.mark.default_mode
@pytest.mark.slow
def test_darcy(monkeypatch, tmp_path, capsys):
    """Mode and posterior of the conductivity, with few draws."""
    picture = tmp_path / "darcy.png"
    monkeypatch.setattr(sys, "argv", ["darcy.py", "--quick", "--output", str(picture)])
    runpy.run_path(str(EXAMPLES / "darcy.py"), run_name="__main__")

    assert picture.read_bytes().startswith(b"\x89PNG")
    lines = [line for line in capsys.readouterr().out.splitlines() if ":" in line or "sd" in line]
    [mode, posterior, mean, ratio, _] = [line for line in lines if not line.startswith(" ")]
    assert mode.endswith("converged: True")
    assert int(mode.split()[2]) < 1500
    assert int(posterior.split()[1]) < 11_000
    # 2 x 100 draws of walkers that began at the posterior: a standard error of .1
    assert float(mean.split()[2]) < 0.25
    low, high = ratio.split()[2::2]
    assert 0.7 < float(low) <= float(high) < 1.4


@pytest.mark.slow
def test_batch_queue(tmp_path, capsys):
    """Started again and again, it comes to the draws of a loop that was never interrupted."""
    module = runpy.run_path(str(EXAMPLES / "batch_queue.py"))
    advance, work, folder = module["advance"], module["work"], tmp_path / "queue"
    starts = 0
    while not advance(folder):
        starts += 1
        work(folder)
    assert starts > 20
    assert advance(folder), "a start too many changes nothing"
    sampler, problem = module["SAMPLER"], module["PROBLEM"]
    rng, draws = np.random.default_rng(module["SEED"]), []
    state = sampler.start(problem.sample_prior(module["ENSEMBLE_SIZE"], rng), redraw=True)
    while len(draws) < module["SWEEPS"]:
        points, pending = sampler.ask(state, rng)
        outputs = [module["simulate"](point) for point in points]
        state, info = sampler.tell(state, pending, Evaluations.from_outputs(outputs))
        if info.snapshot is not None:
            draws.append(info.snapshot.U)
        elif info.complete and state.burned_in:
            state = sampler.freeze(state)
    np.testing.assert_array_equal(np.load(folder / "draws.npy"), draws)


@pytest.mark.slow
def test_batch_queue_on_the_command_line(tmp_path):
    command = [sys.executable, EXAMPLES / "batch_queue.py", "--folder", tmp_path / "queue"]

    def run(*options):
        process = subprocess.run(
            [*command, *options], capture_output=True, text=True, check=True, timeout=100
        )
        return process.stdout

    assert run().startswith("Round 1: 40 jobs are waiting")
    assert run() == "Round 1: 40 of 40 results are missing.\n"
    run("--work")
    assert run().startswith("Round 2: ")


@pytest.mark.slow
def test_external_program(tmp_path, capsys):
    module = runpy.run_path(str(EXAMPLES / "external_program.py"))
    first = module["main"](tmp_path, draws=40)
    again = module["main"](tmp_path, draws=40)
    np.testing.assert_array_equal(first.posterior.rate, again.posterior.rate)
    assert abs(first.posterior.rate.mean().item() - 0.8) < 0.3
    lines = capsys.readouterr().out.splitlines()
    assert "timeout" in lines[2]
    assert lines[-1] == "Called in this run: 0"
