import ast
from pathlib import Path

import pymc_ensemble


def test_samplers_know_arrays_alone():
    """The dynamics run without PyMC, without the labels of its results, and without the rest."""
    forbidden = {"pymc", "pytensor", "xarray", "arviz", "arviz_base", "arviz_stats"}
    package = Path(pymc_ensemble.__file__).parent
    sources = sorted((package / "samplers").glob("**/*.py"))
    assert len(sources) > 20
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level <= 1, f"{source} imports from a folder above"
                names = [node.module or ""] if node.level == 0 else []
            for name in names:
                assert name.split(".")[0] not in forbidden, f"{source} imports {name}"
                inside = name.split(".")[0] != "pymc_ensemble"
                assert inside or name.startswith("pymc_ensemble.samplers"), (
                    f"{source} imports {name}, which is no sampler"
                )
