"""The code of the docs runs as it stands, and their links and pictures are there."""

import functools
import re
import sys
import types
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pymc as pm
import pytest

import pymc_ensemble as pe

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def blocks(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def test_code_of_multiscale(monkeypatch):
    """One session, block after block, with fewer draws than the default."""
    short = {"draws": 300, "chains": 2, "cores": 1, "random_seed": 1, "progressbar": False}
    monkeypatch.setattr(pm, "sample", functools.partial(pm.sample, **short))
    session = {}
    for block in blocks("multiscale.md"):
        exec(compile(block, "multiscale.md", "exec"), session)
    for name in ("idata", "ring", "mixed"):
        assert session[name].sample_stats["converged"].all()
    # nearly Gaussian: the mode is at the mean
    mean, sd = session["model"].reference["u"].values[:2]
    assert session["point"].converged
    assert np.abs((session["point"]["u"] - mean) / sd).max() < 0.1
    radius = np.hypot(*np.moveaxis(session["ring"].posterior["x"].values, -1, 0))
    assert radius.mean() == pytest.approx(1.0, abs=0.1)


def test_code_of_emcee(monkeypatch):
    """A black box and its simulator have the same posterior."""
    short = {"draws": 500, "chains": 2, "cores": 1, "random_seed": 1, "progressbar": False}
    monkeypatch.setattr(pm, "sample", functools.partial(pm.sample, **short))
    session = {}
    for block in blocks("emcee.md"):
        exec(compile(block, "emcee.md", "exec"), session)
    first, second = (session[name].posterior for name in ("values", "outputs"))
    for name in ("position", "width", "height"):
        # 1000 draws are worth some 500
        sd = float(second[name].std())
        assert abs(float(first[name].mean() - second[name].mean())) < 4 * sd * np.sqrt(2 / 500)
        assert float(first[name].std()) == pytest.approx(sd, rel=0.15)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The burn-in had not passed its test:UserWarning")
def test_code_of_trust(monkeypatch, capsys):
    """The failures of the page fail, and are found for what they are.

    Simulations are fewer than the default, and so are draws once those are made whose moments or
    whose roughness are asserted. Two of the other failures need most of the draws.
    """
    monkeypatch.setattr(pe, "coverage", functools.partial(pe.coverage, simulations=3))
    session, whole = {}, None

    def sample(model, step, draws=None, **options):
        most = any(model is session.get(name) for name in ("decay", "uneven"))
        return whole(model, step, draws or (800 if most else 400), **options)

    for block in blocks("trust.md"):
        exec(compile(block, "trust.md", "exec"), session)
        if whole is None and "smooth" in session:
            whole, session["sample"] = session["sample"], sample
    plt.close("all")
    found = {
        "diagnosis": "the mean of `log_amplitude` is off",
        "one_mode_probed": "there is a mode that the draws do not have",
        "rough": "the forward map is rough",
        "short": "posterior standard deviations, according to the log densities",
        "small": "",
        "far_off": "according to the log densities of the draws",
        "heavy": "the mean of `u` is off",
        "lost_mode": "a mode was lost on the way",
        "broken": "of the stored evaluations failed",
        "lucky": "evaluated again at the same points, the log density scatters",
        "unlearned": "the surrogate did not pass its verification",
    }
    for name, reason in found.items():
        assert not session[name].trustworthy, name
        assert reason in "\n".join(session[name].reasons), name
    # moments by quadrature on a grid
    a, r = np.meshgrid(np.linspace(-5, 5, 501), np.linspace(-6, 5, 551), indexing="ij")
    y = np.exp(a - np.exp(r) * np.array([1.0, 3.0])[:, None, None])
    potential = ((y - np.array([0.6, 0.3])[:, None, None]) ** 2).sum(0) / 0.08 + (a**2 + r**2) / 2
    weights = np.exp(potential.min() - potential)
    weights /= weights.sum()
    mean = (weights * a).sum()
    sd = np.sqrt((weights * (a - mean) ** 2).sum())
    error = {
        name: (float(session[name].posterior["log_amplitude"].mean()) - mean) / sd
        for name in ("plain", "adjusted", "corrected")
    }
    assert error["plain"] == pytest.approx(0.33, abs=0.05)
    assert float(session["diagnosis"].parameters["shift"][0]) == pytest.approx(0.33, abs=0.1)
    assert abs(error["adjusted"]) < 0.15
    assert abs(error["corrected"]) < 0.11
    assert session["calibration"].finished == 3
    printed = capsys.readouterr().out
    assert "there is a mode that the draws do not have" in printed
    assert "calibrated, by 3 of 3 simulations" in printed


def test_code_of_step_method(monkeypatch):
    """The move and the sampler that are written on the page find known posteriors."""
    short = {"chains": 2, "cores": 1, "progressbar": False}
    monkeypatch.setattr(pm, "sample", functools.partial(pm.sample, **short))
    session = {"__name__": "step_method"}  # dataclasses look their module up
    monkeypatch.setitem(sys.modules, "step_method", types.ModuleType("step_method"))
    for block in blocks("step_method.md"):
        exec(compile(block, "step_method.md", "exec"), session)
    mean, sd = session["model"].reference["u"].values[:2]
    for name, tolerance in (
        ("idata", 0.15),
        ("walked", 0.25),
    ):  # effectively some 1500 and 400 draws
        idata = session[name]
        assert idata.sample_stats["converged"].all()
        draws = idata.posterior["u"].stack(sample=("chain", "draw"))
        assert np.abs((draws.mean("sample") - mean) / sd).max() < tolerance
        np.testing.assert_allclose(draws.std("sample"), sd, rtol=tolerance)
        before = idata.sample_stats["n_evals"].min("draw") - 100  # but for the first sweep
        assert before.max() <= (1500 if name == "idata" else 3500)
    assert session["diagnosis"].verdict == "trustworthy"
    # 2000 draws, ten in a row are correlated: a Monte Carlo error of .03, and of 4% of a variance
    mean, covariance = session["mean"], session["covariance"]
    sd = np.sqrt(np.diag(covariance))
    assert np.abs((session["draws"].mean(0) - mean) / sd).max() < 0.12
    np.testing.assert_allclose(session["draws"].std(0), sd, rtol=0.08)


@pytest.mark.filterwarnings("ignore:The data inform about:UserWarning")
@pytest.mark.filterwarnings("ignore:The mean of the ensemble is about:UserWarning")
def test_code_of_inversion(capsys):
    session = {}
    for block in blocks("inversion.md"):
        exec(compile(block, "inversion.md", "exec"), session)
    plt.close("all")
    assert session["result"]["inversion"]["misfit"][-1] < 1.3
    assert session["right"].mean() > 0.85
    assert "doubtful" in capsys.readouterr().out


def test_code_of_summaries(capsys):
    session = {}
    for block in blocks("summaries.md"):
        exec(compile(block, "summaries.md", "exec"), session)
    idata = session["idata"]
    assert idata["synthetic"].attrs["n_evals"] <= 3200
    for name, truth in (("beta", 0.45), ("gamma", 0.11)):
        draws = idata.posterior[name]
        assert abs(float(draws.mean()) - truth) < 3 * float(draws.std())
        assert 0.003 < float(draws.std()) < 0.007
    assert "trustworthy" in capsys.readouterr().out


@pytest.mark.amortized
def test_code_of_amortized(capsys, monkeypatch):
    """With two networks of four, and 30 simulations of 100 for the calibration."""
    monkeypatch.setattr(pe, "amortize", functools.partial(pe.amortize, members=2))
    session = {}
    for block in blocks("amortized.md"):
        block = block.replace("coverage(simulations=100,", "coverage(simulations=30,")
        exec(compile(block, "amortized.md", "exec"), session)
    assert session["calibration"].finished == 30
    assert session["better"].posterior.attrs["khat"] <= 0.7
    error = np.log([session["better"].posterior[k].mean() for k in ("amplitude", "rate")])
    assert np.abs(error - np.log([1.3, 0.8])).max() < 0.15
    assert session["u"].shape == (1000, 2)
    assert "trustworthy" in capsys.readouterr().out


def test_reference_has_everything_public():
    reference = re.findall(r"^   ([a-z_]+\.)*(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    listed = {prefix + name for prefix, name in reference}
    modules = {"gallery": pe.gallery, "moves": pe.moves, "plots": pe.plots}
    public = {name for name in pe.__all__ if name not in modules}
    public |= {f"{short}.{name}" for short, module in modules.items() for name in module.__all__}
    assert not public - listed


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if "://" not in link and not (DOCS / link).exists()]


@pytest.mark.filterwarnings("ignore:The burn-in had not passed its test:UserWarning")
def test_code_of_gaussian_process(monkeypatch):
    """The example on the page, with fewer draws and epochs than the default."""
    short = {"draws": 200, "tune": 3, "chains": 1, "cores": 1, "progressbar": False}
    monkeypatch.setattr(pm, "sample", functools.partial(pm.sample, **short))
    session = {}
    [block] = blocks("gaussian_process.md")
    exec(compile(block, "gaussian_process.md", "exec"), session)
    assert session["idata"].posterior["u"].shape == (1, 200, 2)


def test_code_of_how_it_works(monkeypatch, capsys):
    """The model of the page, rounded data included, has the posterior that the pictures show."""
    short = {"draws": 500, "chains": 2, "cores": 1, "random_seed": 1, "progressbar": False}
    monkeypatch.setattr(pm, "sample", functools.partial(pm.sample, **short))
    session = {}
    [block] = blocks("how_it_works.md")
    exec(compile(block, "how_it_works.md", "exec"), session)
    # moments by quadrature on a grid
    u, k = np.meshgrid(np.linspace(-3, 4, 401), np.linspace(-6, 5, 401), indexing="ij")
    x, y = (session[name][:, None, None] for name in ("substrate", "measured"))
    loss = ((np.exp(u) * x / (np.exp(k) + x) - y) ** 2).sum(0) / 0.02 + (u**2 + k**2) / 4.5
    weights = np.exp(loss.min() - loss)
    weights /= weights.sum()
    for name, grid in (("v_max", u), ("K", k)):
        mean = (weights * grid).sum()
        sd = np.sqrt((weights * (grid - mean) ** 2).sum())
        draws = np.log(session["idata"].posterior[name])
        # 1000 draws are worth 400 or more: a Monte Carlo error of .05
        assert float(draws.mean()) == pytest.approx(mean, abs=0.2 * sd)
        assert float(draws.std()) == pytest.approx(sd, rel=0.15)
    assert capsys.readouterr().out.startswith("trustworthy: ")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The burn-in had not passed its test:UserWarning")
def test_code_of_recipes(monkeypatch):
    """Every recipe finds what its data were made with."""
    results = []

    def short(*args, **kwargs):
        options = {"draws": 300, "chains": 1, "cores": 1, "random_seed": 1, "progressbar": False}
        results.append(sample(*args, **options, **kwargs))
        return results[-1]

    sample = pm.sample
    monkeypatch.setattr(pm, "sample", short)
    session = {}
    for block in blocks("recipes.md"):
        exec(compile(block, "recipes.md", "exec"), session)
    decay = {"amplitude": 1.3, "rate": 0.8}
    truths = {
        "correlated": decay | {"rho": 0.7, "shock": 0.05},
        "series": {"growth": 0.5, "capacity": 2.0, "sigma": 0.1},
        "spatial": {"x": 0.4, "width": 0.2, "sigma": 0.1, "length": 0.3},
        "censored": decay | {"sigma": 0.05},
        "several": decay,
        "hierarchy": {"rates": session["true_rates"]},
        "discrepancy": decay,
        "constrained": {"share": [0.6, 0.4], "slow": 0.3, "step": 1.7},
        "large": {"place": 0.45, "width": 0.12},
        "on_cluster": decay,
    }
    assert len(truths) == len(results)
    for truth, idata in zip(truths.values(), results, strict=True):
        for name, value in truth.items():
            draws = idata.posterior[name].stack(sample=("chain", "draw"))
            # one data set each, some 30 numbers: 4 standard deviations are never seen by chance
            assert (np.abs(draws.mean("sample") - value) < 4 * draws.std("sample")).all(), name
