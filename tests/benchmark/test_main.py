import pytest
import xarray as xr

from pymc_ensemble.benchmark.__main__ import main


def test_a_comparison_leaves_tables_pictures_and_data(tmp_path, capsys):
    arguments = ["comparison", "--problems", "decay", "Poisson", "--samplers", "EKS"]
    arguments += ["EKS adjusted", "--budget", "600", "--seeds", "1", "--workers", "1"]
    arguments += ["--output", str(tmp_path)]
    main(arguments)
    folder = tmp_path / "full"
    table = (folder / "comparison.md").read_text()
    assert "| EKS adjusted |" in table
    assert "| | decay | Poisson |" in table
    assert (folder / "comparison.png").stat().st_size > 10_000
    result = xr.load_dataset(folder / "comparison.nc", engine="h5netcdf")
    assert result.sizes["run"] == 4
    assert set(result["problem"].values) == {"decay", "Poisson"}
    assert "Evaluations until precision" in capsys.readouterr().out

    runs = sorted((folder / "runs").iterdir())
    assert len(runs) == 4
    runs[0].unlink()
    times = {path: path.stat().st_mtime_ns for path in runs[1:]}
    main(arguments)  # resumes
    assert runs[0].exists()
    assert times == {path: path.stat().st_mtime_ns for path in runs[1:]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["comparisons"], "comparison and scaling"),
        (["--budget", "0"], "--budget must be at least 1"),
        (["--samplers", "emcees"], "invalid choice"),
    ],
)
def test_wrong_options_are_refused(arguments, message, capsys, tmp_path):
    with pytest.raises(SystemExit):
        main([*arguments, "--output", str(tmp_path)])
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["comparison", "scaling"])
def test_there_may_be_nothing_to_report(what, tmp_path, capsys):
    main([what, "--report", "--output", str(tmp_path / "nowhere")])
    assert "There are no results" in capsys.readouterr().out
