"""What the package promises as a whole."""

import ast
import graphlib
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pymc_ensemble

ROOT = Path(__file__).parents[1]


def test_import_has_no_side_effects():
    """Importing configures no logging, prints nothing, and loads nothing that takes long."""
    code = (
        "import logging, sys; before = logging.root.handlers[:]\n"
        "import pymc_ensemble\n"
        "assert logging.root.handlers == before\n"
        "late = {'matplotlib.pyplot', 'arviz_stats', 'scipy.stats', 'pymc_ensemble.gallery'}\n"
        "late |= {'jax', 'equinox', 'optax', 'flowjax'}\n"
        "assert not late & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


LATE = {
    "arviz_stats",  # with JAX where that is installed: several times as long as PyMC
    "jax",
    "matplotlib",
    "filelock",
    "scipy.cluster",  # each of the parts of SciPy takes .1 to 1 times as long as PyMC
    "scipy.integrate",
    "scipy.linalg",
    "scipy.optimize",
    "scipy.spatial",
    "scipy.special",
    "scipy.stats",
}
OTHERS = ("gaussian_process", "informed", "langevin", "multifidelity", "multiscale")


def test_what_takes_long_is_loaded_when_it_is_used():
    code = (
        "import sys, pymc; before = set(sys.modules)\n"
        "from pymc_ensemble import EnsembleKalmanSampler\n"
        "print(*set(sys.modules) - before)\n"
        "from pymc_ensemble import EnsembleGaussianProcessSampler, EnsembleLangevinSampler\n"
        "from pymc_ensemble import LikelihoodInformedSampler, MultiscaleSampler, diagnose\n"
        "from pymc_ensemble import MultifidelitySampler, find_MAP_ensemble, gallery, invert\n"
        "print(*set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, all_of_them = (set(line.split()) for line in done.stdout.splitlines())
    assert first & {f"pymc_ensemble.step_methods.{other}" for other in OTHERS} == set()
    assert all_of_them & LATE == set()


def test_workers_do_without_pymc():
    """What Dask, a pool or a process unpickles there, whose start would take a second more."""
    code = (
        "import sys\n"
        "import pymc_ensemble.forward.workers.dask, pymc_ensemble.forward.workers.pool\n"
        "import pymc_ensemble.forward.workers.processes\n"
        "assert not {'pymc', 'pytensor', 'xarray'} & set(sys.modules)\n"
        "from pymc_ensemble.forward import *\n"
        "assert forward_model and 'pymc' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_plain_functions_are_sampled_without_pymc():
    code = (
        "import sys, numpy as np, pymc_ensemble as pe\n"
        "from pymc_ensemble.samplers.kalman.sampler import EnsembleKalman\n"
        "prior = np.zeros(2), np.eye(2)\n"
        "problem = pe.InverseProblem(np.exp, prior=prior, data=[1.0, 2.0], noise=0.1)\n"
        "rng = np.random.default_rng(1)\n"
        "sampler = EnsembleKalman(problem)\n"
        "state = sampler.start(problem.sample_prior(20, rng), redraw=True)\n"
        "points, pending = sampler.ask(state, rng)\n"
        "sampler.tell(state, pending, problem.evaluate(points))\n"
        "assert not {'pymc', 'pytensor'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_are_loaded_on_first_use():
    """Each public name is what type checkers read, is listed, and comes with any kind of import."""
    source = Path(pymc_ensemble.__file__).read_text(encoding="utf-8")
    checking = next(node for node in ast.parse(source).body if isinstance(node, ast.If))
    homes = {alias.name: node.module for node in checking.body for alias in node.names}
    assert set(homes) == set(pymc_ensemble.__all__)
    assert set(homes) <= set(dir(pymc_ensemble))
    for name, home in homes.items():
        declared = getattr(importlib.import_module(home), name)
        assert getattr(pymc_ensemble, name) is declared
    code = (
        "import pymc_ensemble as pe; pe.plots.path; pe.gallery.decay\n"
        "from pymc_ensemble import gallery, plots, diagnose\n"
        "assert gallery is pe.gallery and plots is pe.plots and diagnose is pe.diagnose\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def rooms():
    """The folders and modules of the package, by the names of their files."""
    package = ROOT / "pymc_ensemble"
    return {
        file: (file.relative_to(package).with_suffix("").parts[0]) for file in package.rglob("*.py")
    }


def imported(file):
    """Dotted names that a file imports, for type checkers and within functions, too."""
    base = file.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(base[: len(base) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (start, node.module)))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def test_imports_go_one_way():
    """No room imports, through others, itself."""
    above, names_of_rooms = {}, set(rooms().values())
    for file, room in rooms().items():
        for name in imported(file):
            top, *inside = name.split(".")
            if top == "pymc_ensemble" and inside:
                inside = inside[0] if inside[0] in names_of_rooms else "__init__"
                above.setdefault(room, set()).add(inside)
    for room, others in above.items():
        others.discard(room)
    assert list(graphlib.TopologicalSorter(above).static_order())  # or a CycleError names them


def test_no_file_imports_itself_through_others():
    names = {file: ".".join(file.relative_to(ROOT).with_suffix("").parts) for file in rooms()}
    modules = {name.removesuffix(".__init__") for name in names.values()} - {"pymc_ensemble"}
    above = {}
    for file, module in names.items():
        for name in imported(file) if module != "pymc_ensemble.__init__" else ():
            found = name if name in modules else name.rpartition(".")[0]
            if found in modules and found != module:
                above.setdefault(module.removesuffix(".__init__"), set()).add(found)
    assert list(graphlib.TopologicalSorter(above).static_order())  # or a CycleError names them


def test_names_of_a_module_have_one_value():
    """A constant that is set again further down has that value above, too, and no linter tells."""
    twice = set()
    for file in rooms():
        names = []
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.append(node.name)
            targets = node.targets if isinstance(node, ast.Assign) else ()
            names += [target.id for target in targets if isinstance(target, ast.Name)]
        twice |= {(str(file.relative_to(ROOT)), name) for name in names if names.count(name) > 1}
    assert not twice


def test_the_layout_names_each_folder():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    folders = {room for file, room in rooms().items() if file.stem != room}
    assert {folder for folder in folders if f"`pymc_ensemble/{folder}`" not in text} == set()


def test_a_name_that_is_not_there():
    """A misspelt name is an AttributeError with a suggestion, as in any module."""
    code = "import pymc_ensemble as pe; pe.EnsembleKalmanSampelr"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "AttributeError: module 'pymc_ensemble' has no attribute" in done.stderr
    assert "Did you mean: 'EnsembleKalmanSampler'?" in done.stderr


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


def test_version_is_the_same_everywhere():
    """The changelog begins with this version; what is cited is the latest one that was released."""
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (\S+)(.*)$", changes, flags=re.MULTILINE)
    assert sections[0][0] == re.sub(r"\.dev\d+$", "", pymc_ensemble.__version__)
    assert (".dev" in pymc_ensemble.__version__) == (sections[0][1] == " (unreleased)")
    released = [version for version, state in sections if state != " (unreleased)"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.*)$", citation, flags=re.MULTILINE) == released[:1]
