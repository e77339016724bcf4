"""The scripts of the folder benchmarks name nothing that is gone."""

import ast
import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(FOLDER))

import changed_numbers  # noqa: E402
import diagnosis_numbers  # noqa: E402
import two_models_numbers  # noqa: E402


def resolve(name):
    """What a dotted name stands for: a module, or what a module or a class has."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        owner, _, last = name.rpartition(".")
        if not owner:
            raise
        return getattr(resolve(owner), last)


def dotted(node, names):
    """Name of an attribute, if it belongs to a module that a script imports, else None."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        return getattr(node.args[0], "value", None)
    inner = dotted(node.value, names) if isinstance(node, ast.Attribute) else None
    return inner and f"{inner}.{node.attr}"


def names_of_package(script):
    """Names of the package that a script imports, or asks one of its modules for."""
    tree, modules, found = ast.parse(script.read_text("utf-8")), {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "pymc_ensemble":
                    found.add(alias.name)
                    local = alias.asname or "pymc_ensemble"
                    modules[local] = alias.name if alias.asname else local
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pymc_ensemble"):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name)
                if type(resolve(name)) is type(ast):
                    modules[alias.asname or alias.name] = name
    for node in ast.walk(tree):
        name = dotted(node, modules) if isinstance(node, ast.Attribute | ast.Call) else None
        if name:
            found.add(name)
    return {name for name in found if not name.rpartition(".")[2].startswith("__")}


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.py")), ids=lambda script: script.stem)
def test_names_of_the_package_exist(script):
    for name in sorted(names_of_package(script)):
        resolve(name)


def test_names_that_are_gone_are_found(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import pymc_ensemble as pe\npe.EnsembleKalmanSampler\npe.gallery.gone()")
    assert names_of_package(script) == {
        "pymc_ensemble",
        "pymc_ensemble.EnsembleKalmanSampler",
        "pymc_ensemble.gallery",
        "pymc_ensemble.gallery.gone",
    }
    with pytest.raises(AttributeError):
        resolve("pymc_ensemble.gallery.gone")


@pytest.mark.parametrize(
    "number",
    [
        *diagnosis_numbers.OF_VERDICTS,
        *diagnosis_numbers.OF_REGRESSION,
        *(number for number in two_models_numbers.NUMBERS if "." in number),
    ],
)
def test_numbers_that_studies_change_exist(number):
    module, name = changed_numbers.home_of(number)
    assert hasattr(module, name)


def test_a_number_is_changed_wherever_it_is_imported_and_nowhere_else():
    exploration = importlib.import_module("pymc_ensemble.samplers.multifidelity.exploration")
    draws = importlib.import_module("pymc_ensemble.samplers.multifidelity.draws")
    tempering = importlib.import_module("pymc_ensemble.samplers.tempering")
    modules = exploration, draws, tempering
    before = [module.MIXED for module in modules]
    with changed_numbers.changed("samplers.multifidelity.exploration.MIXED", 17):
        assert [module.MIXED for module in modules] == [17, 17, before[2]]
    assert [module.MIXED for module in modules] == before
