import ast
from pathlib import Path

import pymc_ensemble


def test_samplers_know_arrays_alone():
    """The dynamics run without PyMC, and without the labels of its results."""
    forbidden = {"pymc", "pytensor", "xarray", "arviz", "arviz_base", "arviz_stats"}
    sources = sorted((Path(pymc_ensemble.__file__).parent / "samplers").glob("**/*.py"))
    assert sources
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                # of the package itself: only other samplers
                assert node.level <= 1, f"{source.name} imports from outside of the samplers"
                names = [node.module or ""] if node.level == 0 else []
            assert not forbidden & {name.split(".")[0] for name in names}, source.name
