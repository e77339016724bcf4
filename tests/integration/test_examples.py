"""The examples run as they stand, on the command line."""

import runpy
import sys
from pathlib import Path

import pytest

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
    rows = {row[0]: [float(x) for x in row[1:]] for row in table if len(row) == 9}
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
