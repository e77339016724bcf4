"""What the package promises as a whole."""

import subprocess
import sys

import pymc_ensemble


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


def test_public_names_exist():
    missing = [name for name in pymc_ensemble.__all__ if not hasattr(pymc_ensemble, name)]
    assert not missing
