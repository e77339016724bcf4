"""What a report says agrees with the draws and with what the sampler has declared."""

import html
import re
from typing import get_args

import numpy as np
import pymc as pm
import pytest

import pymc_ensemble as pe
from pymc_ensemble.diagnosis.report import (
    ADJUSTED,
    BIBLIOGRAPHY,
    CITED,
    LAWS,
    ROUGH,
    SAMPLERS,
    SOFTWARE,
)
from pymc_ensemble.samplers.ensemble import Law


@pytest.fixture(scope="module")
def idata():
    with pm.Model():
        a, b = pm.Normal("a<b>"), pm.HalfNormal("s", shape=2)
        pm.Deterministic("sum", a + b.sum())
        pm.Normal("y", a + b, 0.5, observed=[0.3, 1.0])
        return pm.sample(
            500,
            step=pe.EnsembleKalmanSampler(adjust=True, ensemble_size=20),
            chains=2,
            cores=1,
            random_seed=1,
            progressbar=False,
        )


@pytest.fixture(scope="module")
def report(idata):
    return pe.report(idata)


def test_numbers_are_those_of_the_run(idata, report):
    stats = idata.sample_stats
    assert (report.chains, report.draws, report.failures) == (2, 500, 0)
    assert report.evaluations == stats.n_evals.max("draw").sum()
    assert report.pymc == pm.__version__
    assert report.seconds == idata.posterior.attrs["sampling_time"]
    assert report.posterior["parameter"].values.tolist() == ["a<b>", "s[0]", "s[1]"]
    draws = idata.posterior["s"].to_numpy()[..., 1]
    row = report.posterior.sel(parameter="s[1]")
    np.testing.assert_allclose(row["mean"], draws.mean())
    np.testing.assert_allclose(row["sd"], draws.std())
    np.testing.assert_allclose([row["q5"], row["q95"]], np.quantile(draws, [0.05, 0.95]))
    known = report.diagnosis.parameters.sel(parameter="s[1]")
    np.testing.assert_allclose(row["mcse"], known["mcse"] * draws.std())


def test_text_markdown_and_html_say_the_same(report):
    text, markdown, page = str(report), report.to_markdown(), html.unescape(report._repr_html_())
    for said in (
        "EnsembleKalmanSampler(adjust=True, ",
        f"pymc_ensemble {pe.__version__}",
        f"{report.evaluations:,}",
        report.diagnosis.headline,
        report.methods,
        report.bibtex,
        "a<b>",
        f"{report.posterior['mean'].sel(parameter='s[0]').item():.2f}",
    ):
        assert said in text
        assert said in markdown
        assert said in page
    assert "a&lt;b&gt;" in report._repr_html_()
    assert ADJUSTED in report.methods
    assert "2 independent ensembles of 20 particles gave 1,000 draws" in report.methods
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {9}


def test_all_that_is_cited_has_an_entry(report):
    entries = re.findall(r"^@\w+\{(\w+),$", BIBLIOGRAPHY.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(set(entries)) == len(entries)
    cited = {key for keys in CITED.values() for key in keys} | {ROUGH, *SOFTWARE}
    assert cited < set(entries)
    assert re.findall(r"^@\w+\{(\w+),$", report.bibtex, re.MULTILINE) == list(report.citations)
    assert f"{{{pe.__version__}}}" in report.bibtex


def test_every_sampler_and_every_law_has_its_words():
    samplers = {name for name in pe.__all__ if name.endswith("Sampler")} | {"invert"}
    assert samplers == set(SAMPLERS) == set(CITED)
    assert set(LAWS) == set(get_args(Law))


def test_results_of_others_are_refused():
    with pm.Model():
        pm.Normal("x")
        idata = pm.sample(
            10, step=pm.Metropolis(), chains=1, progressbar=False, compute_convergence_checks=False
        )
    with pytest.raises(ValueError, match="ensemble"):
        pe.report(idata)
