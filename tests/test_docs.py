"""The code of the docs runs as it stands, and their links and pictures are there."""

import functools
import re
from pathlib import Path

import numpy as np
import pymc as pm
import pytest

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


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if "://" not in link and not (DOCS / link).exists()]
