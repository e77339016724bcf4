"""What the package promises as a whole."""

import re
import subprocess
import sys
from pathlib import Path

import pymc_ensemble

ROOT = Path(__file__).parents[1]


def test_import_has_no_side_effects():
    """Importing opens no figure, configures no logging and prints nothing."""
    code = (
        "import logging, sys; before = logging.root.handlers[:]\n"
        "import pymc_ensemble\n"
        "assert logging.root.handlers == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_names_in_texts_exist():
    """What messages, examples and docs call ``pe.name`` is there."""
    folders = ("pymc_ensemble", "docs", "examples", "benchmarks")
    files = [ROOT / "README.md", ROOT / "CHANGELOG.md"]
    files += [f for folder in folders for f in (ROOT / folder).rglob("*")]
    mentioned = {
        (str(file.relative_to(ROOT)), name)
        for file in files
        if file.suffix in (".py", ".md")
        for name in re.findall(r"\bpe\.([a-zA-Z_]\w*)", file.read_text(encoding="utf-8"))
    }
    assert {name for _, name in mentioned} >= {"EnsembleKalmanSampler", "gallery", "to_ensemble"}
    assert not {(file, name) for file, name in mentioned if not hasattr(pymc_ensemble, name)}
