import numpy as np
import pytest
import xarray as xr

from pymc_ensemble.benchmark import report, samplers, study
from pymc_ensemble.benchmark.problems import find
from pymc_ensemble.benchmark.samplers import SAMPLERS, Sampler
from pymc_ensemble.benchmark.study import Case, Summary
from pymc_ensemble.benchmark.traces import CURVES, Run, Trace


def run_with(evaluations, mean_worst, sd_worst=0.0, **attrs):
    columns = dict.fromkeys(CURVES, np.zeros(len(evaluations)))
    columns |= {"mean_worst": mean_worst, "sd_worst": np.full(len(evaluations), sd_worst)}
    columns |= {"mean_rms": np.array(mean_worst) / 2}
    columns |= {"evaluations": evaluations, "rounds": np.array(evaluations) / 10}
    return xr.Dataset(
        {name: ("checkpoint", np.array(values, dtype=float)) for name, values in columns.items()}
        | {"draws": (("draw", "coordinate"), np.zeros((1, 2)))},
        attrs={"seconds": 3.0, "forward_seconds": 1.0} | attrs,
    )


def test_what_was_run_is_not_run_again_but_what_failed_is(tmp_path, monkeypatch):
    calls = []

    def run(problem, budget, seed):
        calls.append((problem.name, seed))
        if seed == 2:
            raise RuntimeError("no result")
        draws = problem.reference_draws
        steps = np.arange(1, len(draws) + 1)
        return Run([Trace(draws, steps, steps)])

    monkeypatch.setitem(SAMPLERS, "fragile", Sampler("fragile", run))
    todo = study.cases(["decay", "bimodal"], ["fragile"], 10, 2)
    told = []
    study.run_all(todo[:2], tmp_path, told=told.append)
    study.run_all(todo, tmp_path, told=told.append)
    study.run_all(todo, tmp_path, told=told.append)
    assert calls.count(("decay", 1)) == calls.count(("bimodal", 1)) == 1
    assert calls.count(("decay", 2)) == calls.count(("bimodal", 2)) == 2
    assert len(told) == 10
    summary = study.load(tmp_path)["decay", "fragile"]
    assert summary.failures == ["RuntimeError: no result"]
    assert len(summary.finished) == 1
    assert np.isinf(summary.reached()).tolist() == [False, True]
    text = report.tables(study.load(tmp_path))
    assert "fragile on decay: RuntimeError: no result" in text


def test_pairs_that_do_not_fit_are_left_out(monkeypatch):
    monkeypatch.setitem(SAMPLERS, "absent", Sampler("absent", None, requires="no_such_package"))
    monkeypatch.setitem(SAMPLERS, "steep", Sampler("steep", None, gradients=True))
    found = study.cases(["Lorenz 63", "decay"], ["absent", "steep", "EKS"], 10, 1)
    assert [(c.problem, c.sampler) for c in found] == [
        ("Lorenz 63", "EKS"),
        ("decay", "steep"),
        ("decay", "EKS"),
    ]


def test_summaries_take_medians_over_seeds():
    summary = Summary(
        [
            run_with([100, 1000], [0.5, 0.05]),
            run_with([100, 1000], [0.05, 0.05]),
            run_with([100, 1000], [0.5, 0.5]),
        ]
    )
    assert summary.reached(over="worst").tolist() == [1000, 100, np.inf]
    assert summary.reached("rounds", "worst").tolist() == [100, 10, np.inf]
    assert summary.reached().tolist() == [1000, 100, np.inf]  # half as large
    assert summary.at_end("mean_worst").tolist() == [0.05, 0.05, 0.5]
    assert list(summary.curve("mean_worst")) == [(100, 0.5, 0.05, 0.5), (1000, 0.05, 0.05, 0.5)]
    assert summary.own_seconds == 2.0


def test_modes_have_to_be_found_where_there_are_several():
    run = run_with([100, 1000], [0.05, 0.05])
    assert Summary([run]).reached() == 100
    run["mode_mass"] = ("checkpoint", [0.5, 0.05])
    assert Summary([run]).reached() == 1000


def test_savings_are_bounds_where_the_peer_did_not_arrive():
    results = {
        ("decay", "EKS adjusted"): Summary([run_with([100, 1000], [0.5, 0.05])]),
        ("decay", "emcee"): Summary([run_with([100, 20_000], [0.5, 0.05])]),
        ("Poisson", "EKS adjusted"): Summary([run_with([100, 1000], [0.05, 0.05])]),
        ("Poisson", "emcee"): Summary([run_with([100, 20_000], [0.5, 0.5])]),
    }
    text = report.savings(results)
    assert "| decay | 20x | 20x | 20x | 20x |" in text
    assert "| Poisson | > 200x | > 200x | > 200x | > 200x |" in text


@pytest.mark.parametrize(
    "name", ["EKS", "EKS adjusted", "EKS density", "multiscale", "emcee", "DEMetropolisZ"]
)
def test_samplers_find_the_posterior_and_count_what_it_costs(name, tmp_path):
    pytest.importorskip(SAMPLERS[name].requires)
    budget = 1000
    case = Case("linear 2-d", name, budget, 1)
    result = xr.load_dataset(case.run(tmp_path), engine="h5netcdf")
    assert "failed" not in result.attrs, result.attrs["failed"]
    end = result.isel(checkpoint=-1)
    # not the precision of the sampler: the right posterior instead of the prior or a shifted one
    assert float(end["mean_worst"]) < 0.35
    assert float(end["sd_worst"]) < 0.35
    spent = float(end["evaluations"])
    assert budget / 2 < spent < 32 * budget
    assert 0 < float(end["rounds"]) <= spent


def test_an_exact_sampler_cannot_find_what_is_behind_a_rough_map(tmp_path):
    problem = find("rough linear")
    errors = {}
    for name in ("EKS", "EKS adjusted"):
        run = samplers.sample(problem, SAMPLERS[name], 3000, 1)
        mean, sd = problem.moments
        errors[name] = (np.abs(run.traces[0].draws.mean(0) - mean) / sd).max()
    assert errors["EKS"] < 0.5
    assert errors["EKS adjusted"] > 1.0
