"""The code and the links of the first pages work, and commands are where the CI looks for them."""

import functools
import re
from pathlib import Path

import arviz as az
import pymc as pm
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language, text=README):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def test_code(monkeypatch, capsys):
    """One session, block after block, with fewer draws than the default, on two cores."""
    short = {"draws": 300, "chains": 2, "cores": 2, "random_seed": 1, "progressbar": False}
    monkeypatch.setattr(pm, "sample", functools.partial(pm.sample, **short))
    session, results = {}, []
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), session)
        results.append(session["idata"])
    decay, diagnosed, bimodal = results
    assert diagnosed is decay
    assert session["better"].posterior["rate"].shape == (2, 300)
    # Moments by quadrature on a grid; of 600 adjusted draws 100 or more count as independent.
    for name, mean, sd in [("amplitude", 1.3189, 0.0446), ("rate", 0.7926, 0.0378)]:
        draws = decay.posterior[name]
        assert float(draws.mean()) == pytest.approx(mean, abs=0.5 * sd)
        assert float(draws.std()) == pytest.approx(sd, rel=0.4)
    assert bimodal.posterior["u"].shape == (2, 300, 2)
    n_evals = int(bimodal.sample_stats["n_evals"].max("draw").sum())
    printed = capsys.readouterr().out
    assert printed.startswith("trustworthy: ")
    assert f"\n{n_evals} evaluations\n" in printed
    assert n_evals > 2 * 300
    assert float(az.rhat(decay.posterior.dataset)["rate"]) < 1.1


def test_ci_finds_one_test_command():
    section = README.split("## Run the tests\n")[1].split("\n## ")[0]
    [command] = blocks("bash", section)
    assert command.count("\n") == 1
    assert command.startswith("python -m venv")
    assert ".venv/bin/pytest" in command


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert not missing
