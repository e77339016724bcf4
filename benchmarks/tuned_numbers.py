"""What half and twice of every number do that somebody chose in the samplers and the diagnosis.

    python benchmarks/tuned_numbers.py --quick               measure what is not measured yet
    python benchmarks/tuned_numbers.py --quick --only REACH  only numbers with this in their name
    python benchmarks/tuned_numbers.py --table               write the effects into the table

The numbers are those of `count_numbers.py`. Each is halved and doubled in the source, and the
modules are loaded anew; of a share between a half and one, twice is half the distance to one. Fixed
problems with known posteriors are then sampled (for the diagnosis, fixed runs are diagnosed) with
fixed seeds, as far as they reach the number. Measured are the error, the root mean square over
coordinates of errors of means, in posterior standard deviations, and of logarithms of standard
deviations; the forward evaluations, burn-in included; and whether the burn-in passed its test.

Measurements are kept in a file, one a line, so that an interrupted command goes on, and a number is
measured anew once its value has changed. After a change of the algorithm delete the file.

The table is ``docs/tuned_numbers.csv``: what a number decides, and why it is what it is, is written
by hand; its last two columns are written by ``--table``, of numbers that were measured with their
present value: other rows stay as they are. They say by which factor errors and evaluations change,
on geometric average over the problems that feel the number, with the standard error over seeds, and
where it is worst. What is called a convention or a guard there is not measured.
"""

import argparse
import ast
import csv
import hashlib
import importlib
import json
import logging
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pymc_ensemble"
sys.path[:0] = [str(ROOT / "tests")]

import array_problems as problems  # noqa: E402
import count_numbers  # noqa: E402
from count_numbers import GUARD, TUNED, chosen_numbers, class_of, table_rows, value  # noqa: E402

TABLE = ROOT / count_numbers.TABLE
MEASURED = ("samplers", "diagnosis")
ROOMS = (*MEASURED, "synthetic")  # those of the last one are told by formulas
COLUMNS = ("number", "value", "decides", "why", "half", "twice")
SEEDS, QUICK_SEEDS = 24, 3  # of a problem that takes a tenth of a second
NOT_MEASURED = "not measured"
NOWHERE = ""  # stands for a case, where no case reaches a number
QUICK_RUNS = 6  # that are diagnosed
REFERENCE_SEEDS = 8  # of every problem, with the numbers as they are: they tell the noise
SURE = 3.0  # standard errors beyond which a change counts
NOTICED = 1.1  # factor below which a change of the evaluations is not told


# -- numbers, and how they are changed ------------------------------------------------------------


@dataclass(frozen=True)
class Changed:
    """A number with another value."""

    module: str
    line: int
    column: int
    text: str
    to: str


def module_of(file):
    """Name of the module in a file."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def key_of(number):
    """What identifies a number in the table: its module, without the package, and its name."""
    return count_numbers.key_of(number, PACKAGE)


def variants(text):
    """Half and twice of a number, as source."""
    known = value(ast.parse(text, mode="eval").body)
    if known is None:
        return f"0.5 * ({text})", f"2 * ({text})"
    if isinstance(known, int):
        return str(int(np.sign(known)) * max(1, round(abs(known) / 2))), str(2 * known)
    twice = 1 - (1 - known) / 2 if 0.5 < known < 1 else 2 * known
    return repr(known / 2), repr(round(twice, 12))


class Loader(SourceFileLoader):
    """Loads a module with a number changed."""

    changed = None

    def get_code(self, fullname):
        """Compiled source, with the change."""
        tree = ast.parse(Path(self.path).read_text(encoding="utf-8"))
        found = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.expr)
            and (node.lineno, node.col_offset) == (self.changed.line, self.changed.column)
            and ast.unparse(node) == self.changed.text
        ]
        new = ast.parse(self.changed.to, mode="eval").body
        for parent in ast.walk(tree):
            for name, part in ast.iter_fields(parent):
                if part is found[0]:
                    setattr(parent, name, new)
                elif isinstance(part, list):
                    part[:] = [new if item is found[0] else item for item in part]
        return compile(ast.fix_missing_locations(tree), self.path, "exec")


class Finder(MetaPathFinder):
    """Finds the module whose number is changed."""

    def __init__(self, changed):
        self.changed = changed

    def find_spec(self, fullname, path, target=None):
        """Spec of that module, and of no other one."""
        if fullname != self.changed.module:
            return None
        file = ROOT.joinpath(*fullname.split("."))
        file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        loader = Loader(fullname, str(file))
        loader.changed = self.changed
        return spec_from_file_location(fullname, file, loader=loader)


@contextmanager
def package_with(changed):
    """Samplers and diagnosis as they are with a number changed (or with none)."""
    finder = Finder(changed) if changed else None
    usual = forget()
    if finder:
        sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        if finder:
            sys.meta_path.remove(finder)
        forget()
        sys.modules.update(usual)  # with the classes that others know
        for name, module in usual.items():
            package, _, child = name.rpartition(".")
            setattr(sys.modules[package], child, module)


def forget():
    """Have samplers and diagnosis loaded anew at their next import; return them as they were."""
    rooms = tuple(f"pymc_ensemble.{room}" for room in MEASURED)
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith(rooms)}


# -- cases ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A problem with a known posterior, and a sampler of it.

    Parameters
    ----------
    name : str
    make : callable
        Makes the problem.
    sampler : str
        Module and class.
    options : dict
        Of the sampler.
    sweeps : int
        That are drawn after the burn-in.
    cost : int, default 1
        How many times less seeds it gets.
    """

    name: str
    make: Callable
    sampler: str
    options: dict
    sweeps: int
    cost: int = 1

    room = "samplers"

    def measure(self, seed):
        """Error, evaluations, whether it converged, and a digest of the draws."""
        problem = self.make()
        module, name = self.sampler.rsplit(".", 1)
        sampler = getattr(importlib.import_module(f"pymc_ensemble.samplers.{module}"), name)
        rng = np.random.default_rng([seed, len(self.name)])
        state, draws = problems.run(
            sampler(problem, **self.options), problem, rng, n_sweeps=self.sweeps
        )
        exact = getattr(problem, "problem", problem)  # behind a density
        U = draws.reshape(-1, exact.dimension)
        shift, ratio = (U.mean(0) - exact.mean) / exact.sd, np.log(U.std(0) / exact.sd)
        return {
            "error": float(np.sqrt((shift**2 + ratio**2).mean())),
            "evaluations": int(problem.n_evaluations),
            "converged": bool(state.converged),
            "digest": hashlib.sha256(draws.tobytes()).hexdigest()[:12],
        }


def failing(problem, share):
    """A problem whose evaluations fail here and there."""
    return problem.failing(lambda U: np.modf(np.abs(1e4 * U.sum(1)))[0] < share)


def noisy(problem, size):
    """A problem whose outputs have noise of their own, in units of that of the data."""
    rng, before = np.random.default_rng(5), problem.forward_map

    def outputs(U):
        Z = before(U)
        return Z + size * rng.standard_normal(Z.shape)

    problem.forward_map = outputs
    return problem


def changing(problem, after):
    """A problem whose outputs are twice as large after some evaluations, for good."""
    before = problem.forward_map
    problem.forward_map = lambda U: before(U) * (2.0 if problem.n_evaluations > after else 1.0)
    return problem


KALMAN, LANGEVIN = "kalman.sampler.EnsembleKalman", "langevin.EnsembleLangevin"
CHOICE = {"adjust": None, "rough": None}  # an examination of the map chooses
MULTISCALE = "multiscale.sampler.Multiscale"
PROCESS = "gaussian_process.sampler.EnsembleGaussianProcess"
GROWING = "gaussian_process.growing.GrowingGaussianProcess"
INFORMED = "informed.sampler.LikelihoodInformed"
SAMPLED = [
    Case("linear", lambda: problems.stiff_linear(10), KALMAN, {}, 10),
    Case("small", lambda: problems.stiff_linear(10), KALMAN, {"ensemble_size": 16}, 40, 2),
    Case("failing", lambda: failing(problems.random_linear(5), 0.3), KALMAN, {"adjust": True}, 20),
    Case("decay", lambda: problems.decay(0.3), KALMAN, {"adjust": True}, 20),
    Case("wide prior", lambda: problems.decay(0.05, 5.0), KALMAN, {"adjust": True}, 20),
    Case("wide prior, plain", lambda: problems.decay(0.05, 5.0), KALMAN, {}, 20),
    Case("counts", problems.PoissonRegression, KALMAN, {}, 20),
    Case("bimodal", problems.bimodal, KALMAN, {"adjust": True, "evolutions": 4}, 20),
    Case("rough", lambda: problems.oscillating(True), KALMAN, {"rough": True}, 10),
    Case("rough decay", lambda: problems.decay(roughness=4.0), KALMAN, {"rough": True}, 10),
    Case("curved rough", lambda: problems.decay(0.3, roughness=1.0), KALMAN, {"rough": True}, 10),
    Case("choice", lambda: problems.decay(0.3), KALMAN, CHOICE, 20),
    Case("choice, rough", lambda: problems.oscillating(True), KALMAN, CHOICE, 10),
    Case("choice, noisy", lambda: problems.decay(0.05, 5.0, 1.0), KALMAN, CHOICE, 10),
    Case("choice, bent", lambda: problems.decay(0.3, roughness=1.5), KALMAN, CHOICE, 10),
    Case("paper", lambda: problems.stiff_linear(10), "kalman.sampler.PublishedKalman", {}, 20),
    Case("walkers", lambda: problems.stiff_linear(10), MULTISCALE, {"walkers": 5}, 100, 3),
    Case("two modes", problems.bimodal, MULTISCALE, {"walkers": 10}, 200, 3),
    Case("tested walkers", lambda: problems.decay(0.3), MULTISCALE, {"adjust": True}, 400, 3),
    Case("rough walkers", lambda: problems.oscillating(True), MULTISCALE, {"rough": True}, 300, 3),
    Case("density", lambda: problems.Density(problems.decay(0.3)), MULTISCALE, {}, 400, 3),
    Case("40-d", lambda: problems.stiff_linear(40), MULTISCALE, {"walkers": 2}, 100, 3),
    Case(
        "paper walkers",
        problems.bimodal,
        "multiscale.sampler.PublishedMultiscale",
        {"walkers": 5},
        200,
        3,
    ),
    Case("process", lambda: problems.decay(0.3), PROCESS, {"ensemble_size": 50, "epochs": 4}, 8, 6),
    Case(
        "rough process",
        lambda: problems.oscillating(True),
        PROCESS,
        {"ensemble_size": 60, "epochs": 5},
        8,
        6,
    ),
    Case(
        "losses",
        lambda: problems.decay(0.3),
        PROCESS,
        {"ensemble_size": 50, "epochs": 4, "target": "potential"},
        8,
        6,
    ),
    Case(
        "tested process",
        problems.bimodal,
        PROCESS,
        {"ensemble_size": 50, "epochs": 4, "adjust": True},
        8,
        3,
    ),
    Case(
        "paper process",
        lambda: problems.decay(0.3),
        "gaussian_process.sampler.PublishedGaussianProcess",
        {"ensemble_size": 50},
        20,
        3,
    ),
    Case(
        "outputs",
        lambda: problems.stiff_linear(8),
        PROCESS,
        {"ensemble_size": 40, "epochs": 3},
        8,
        6,
    ),
    Case("growing", problems.decay, GROWING, {}, 8, 3),
    Case("growing modes", problems.bimodal, GROWING, {}, 8, 3),
    Case("growing outputs", lambda: problems.stiff_linear(8), GROWING, {}, 8, 3),
    Case("growing losses", problems.decay, GROWING, {"target": "potential"}, 8, 3),
    Case(
        "growing bend", lambda: problems.parabola(2.0, 3), GROWING, {"max_evaluations": 150}, 8, 3
    ),
    Case("growing rough", lambda: problems.decay(roughness=1.0), GROWING, {}, 8, 3),
    Case(
        "growing rough losses",
        lambda: problems.Density(problems.oscillating(True)),
        GROWING,
        {"max_evaluations": 400},
        8,
        3,
    ),
    Case("growing noisy", lambda: noisy(problems.random_linear(2), 0.5), GROWING, {}, 8, 3),
    Case("growing change", lambda: changing(problems.decay(), 15), GROWING, {}, 8, 3),
    Case(
        "growing failures",
        lambda: failing(problems.random_linear(2), 0.1),
        GROWING,
        {},
        8,
        3,
    ),
    Case("informed", lambda: problems.stiff_linear(40), INFORMED, {"round_size": 20}, 20),
    Case("informed counts", problems.PoissonRegression, INFORMED, {}, 20),
    Case("bent", lambda: problems.parabola(4.0, 20), INFORMED, {}, 20, 3),
    Case("scaled", problems.scaled, INFORMED, {}, 20, 3),
    Case(
        "far",
        lambda: problems.parabola(20.0, 3, 1.0, 2.0, (0.0, 0.0)),
        INFORMED,
        {},
        40,
        3,
    ),
]


class SmoothGradients:
    """A linear problem whose outputs are its loss and the gradient of that."""

    def __init__(self, problem):
        self.problem, self.n_evaluations = problem, 0
        self.n_outputs = 1 + problem.dimension

    def __getattr__(self, name):
        return getattr(self.__dict__["problem"], name)

    def evaluate(self, U):
        """Loss and gradient."""
        self.n_evaluations += len(U)
        Z, slope = self.problem.forward_map(U), self.problem.forward_map(np.eye(self.dimension))
        values = np.column_stack([self.problem.loss(Z), self.problem.loss_gradient(Z) @ slope.T])
        return type(self.problem.evaluate(U[:1])).from_outputs(values)

    def loss(self, Z):
        """Loss, the first output."""
        return Z[:, 0]


SAMPLED += [
    Case("gradients", lambda: SmoothGradients(problems.random_linear(5)), LANGEVIN, {}, 100, 3),
    Case(
        "tested gradients",
        lambda: SmoothGradients(problems.random_linear(5)),
        LANGEVIN,
        {"adjust": True},
        50,
        3,
    ),
]


@dataclass(frozen=True)
class Descended:
    """The mode of a linear problem, which is its mean."""

    name: str
    cost: int = 1

    room = "samplers"

    def measure(self, seed):
        """Distance from the mode, evaluations, whether it was found, and a digest."""
        module = importlib.import_module("pymc_ensemble.samplers.multiscale.descent")
        problem, rng = problems.stiff_linear(10), np.random.default_rng(seed)
        descent = module.Descent(module.Explorers(problem, problem.dimension, 1e-3))
        unit = module.Preconditioner.given(None, np.zeros(problem.dimension))
        state = module.DescentState(problem.sample_prior(1, rng), unit)
        while not state.done and state.steps < 1000:
            state, _ = problems.step(descent, problem, state, rng)
        return {
            "error": float(np.sqrt((((state.U[0] - problem.mean) / problem.sd) ** 2).mean())),
            "evaluations": int(problem.n_evaluations),
            "converged": bool(state.converged),
            "digest": hashlib.sha256(state.U.tobytes()).hexdigest()[:12],
        }


SAMPLED += [Descended("mode")]


@dataclass(frozen=True)
class Averaged:
    """The law of a noisy linear map, which is its posterior."""

    name: str
    noise: float
    cost: int = 3

    room = "samplers"

    def measure(self, seed):
        """Error of the law, evaluations, whether it is known, and a digest."""
        module = importlib.import_module("pymc_ensemble.samplers.informed.averaged")
        problem, rng = noisy(problems.stiff_linear(10), self.noise), np.random.default_rng(seed)
        sampler = module.AveragedLaw(problem)
        state = sampler.start(problem.sample_prior(sampler.size, rng), redraw=True)
        while not state.burned_in:
            state, _ = problems.step(sampler, problem, state, rng)
        U = sampler.reference.points(state.inner.target.law.draw(1000, rng))
        shift, ratio = (U.mean(0) - problem.mean) / problem.sd, np.log(U.std(0) / problem.sd)
        return {
            "error": float(np.sqrt((shift**2 + ratio**2).mean())),
            "evaluations": int(problem.n_evaluations),
            "converged": bool(state.converged),
            "digest": hashlib.sha256(U.tobytes()).hexdigest()[:12],
        }


SAMPLED += [Averaged("noisy law", 0.5), Averaged("very noisy law", 1.0)]


@dataclass(frozen=True)
class Trained:
    """The mean of a training with batches of the outputs, of which there are more than members."""

    name: str
    cost: int = 1

    room = "samplers"

    def measure(self, seed):
        """Distance from the map that the outputs come from, evaluations, and a digest."""
        module = importlib.import_module("pymc_ensemble.samplers.kalman.training")
        rng, d, J = np.random.default_rng(seed), 60, 40
        A, true = rng.standard_normal((20 * d, d)), rng.standard_normal(d)
        state = module.TrainingState(rng.standard_normal((J, d)))
        for rows in np.array_split(rng.permutation(np.tile(np.arange(len(A)), 15)), 600):
            batch = problems.LinearProblem(A[rows], A[rows] @ true, np.zeros(d), np.eye(d))
            kernel = module.Training(batch, np.ones(d))
            points, pending = kernel.ask(state, rng)
            state, _ = kernel.tell(state, pending, batch.evaluate(points))
        return {
            "error": float(np.sqrt(((state.mean - true) ** 2).mean())),
            "evaluations": 600 * J,
            "converged": True,
            "digest": hashlib.sha256(state.particles.tobytes()).hexdigest()[:12],
        }


SAMPLED += [Trained("training")]


@dataclass(frozen=True)
class Learned:
    """A problem of the benchmark that a surrogate learns: it is rough, has several modes, or both.

    With the other cases alone, numbers looked useless that rough problems need.
    """

    name: str
    cost: int = 6

    room = "samplers"

    def measure(self, seed):
        """Error of the draws in unconstrained coordinates, evaluations, and a digest."""
        case = Case(self.name, lambda: behind_model(self.name), GROWING, {}, 20)
        return case.measure(seed)


class Counted:
    """An inverse problem with the moments of its posterior, which counts evaluations."""

    def __init__(self, problem, mean, sd):
        self.inner, self.mean, self.sd, self.n_evaluations = problem, mean, sd, 0

    def __getattr__(self, name):
        return getattr(self.__dict__["inner"], name)

    def evaluate(self, U):
        """Outputs at the points."""
        self.n_evaluations += len(U)
        return self.inner.evaluate(U)


@cache
def behind_model(name):
    """Problem of the benchmark, as samplers see it."""
    import pytensor

    from pymc_ensemble import InverseProblem
    from pymc_ensemble.benchmark.problems import find

    with pytensor.config.change_flags(mode="FAST_COMPILE"):
        return Counted(InverseProblem.from_model(find(name).model()), *find(name).moments)


SAMPLED += [Learned("rough linear"), Learned("four modes"), Learned("lynx and hare")]


@dataclass(frozen=True)
class Diagnosed:
    """A finished run, and what `diagnose` says of it."""

    name: str
    cost: int = SEEDS

    room = "diagnosis"

    def measure(self, seed):
        """Verdict, whether it is right, and the estimates."""
        idata, wrong = finished_run(self.name, seed)
        module = importlib.import_module("pymc_ensemble.diagnosis.diagnose")
        diagnosis = module.diagnose(idata)
        table = diagnosis.parameters.to_dataframe().fillna(0.0)
        estimates = [np.asarray(table[c]) for c in ("shift", "sd_ratio") if c in table]
        return {
            "right": bool(wrong != diagnosis.trustworthy),
            "verdict": diagnosis.verdict,
            "estimates": [round(float(x), 6) for part in estimates for x in part],
            "digest": hashlib.sha256(str(diagnosis).encode()).hexdigest()[:12],
        }


DIAGNOSED = [
    Diagnosed(name)
    for name in (
        "noisy decay, plain",
        "bimodal, plain",
        "ring, adjusted",
        "rough, plain",
        "decay, plain, far off",
        "rosenbrock, surrogate",
        # without --quick
        "noisy decay, adjusted",
        "bimodal, multiscale",
        "rough, plain, rough=True",
        "shares, plain",
        "linear 20-d, adjusted, too short",
        "four modes, adjusted, too short",
    )
]


@cache
def finished_run(name, seed):
    """Result of a case of `diagnosis.py`, and whether it is wrong."""
    import diagnosis as cases
    import pytensor

    pytensor.config.mode = "FAST_COMPILE"
    (case,) = [case for case in cases.CASES if case.name == name]
    idata = cases.sample(case, seed)
    mean, sd = cases.errors(idata, cases.PROBLEMS[case.problem].reference())
    return idata, mean > cases.MEAN or sd > cases.SD


# -- what a case reaches --------------------------------------------------------------------------


def functions_of(case):
    """Functions that a case runs, by module and name."""
    monitoring, started = sys.monitoring, set()

    def start(code, offset):
        if str(PACKAGE) in code.co_filename:
            module = module_of(Path(code.co_filename))
            started.add((module, code.co_qualname.replace(".<locals>", "")))
        return monitoring.DISABLE

    tool = monitoring.PROFILER_ID
    monitoring.use_tool_id(tool, "tuned numbers")
    try:
        with package_with(None):
            monitoring.register_callback(tool, monitoring.events.PY_START, start)
            monitoring.set_events(tool, monitoring.events.PY_START)
            monitoring.restart_events()
            case.measure(0)
    finally:
        monitoring.set_events(tool, 0)
        monitoring.free_tool_id(tool)
    return started


@cache
def trees():
    """Syntax trees of samplers and diagnosis, by file."""
    files = [file for room in MEASURED for file in sorted((PACKAGE / room).rglob("*.py"))]
    return {file: ast.parse(file.read_text(encoding="utf-8")) for file in files}


class Users(ast.NodeVisitor):
    """Functions that use a name; an empty name stands for the module itself."""

    def __init__(self, name):
        self.name, self.owner, self.found = name, (), set()

    def visit_FunctionDef(self, node):
        """Look into a function or class, under its name."""
        outer, self.owner = self.owner, (*self.owner, node.name)
        self.generic_visit(node)
        self.owner = outer

    visit_ClassDef = visit_FunctionDef

    def visit_Name(self, node):
        """Note where the name is read."""
        if node.id == self.name and isinstance(node.ctx, ast.Load):
            self.found.add(".".join(self.owner))


@cache
def users_of(number):
    """Functions in which a number stands or, of a named one, in which the name is used."""
    own = module_of(number.file)
    if number.kind == "inline":
        return {(own, number.name)}
    if number.kind != "named" or "." in number.name:
        return None  # a default can be used anywhere
    users = set()
    for file, tree in trees().items():
        imported = any(
            isinstance(node, ast.ImportFrom)
            and (node.module or "").split(".")[-1] == own.split(".")[-1]
            and any(alias.name == number.name for alias in node.names)
            for node in ast.walk(tree)
        )
        if module_of(file) == own or imported:
            visitor = Users(number.name)
            visitor.visit(tree)
            users |= {(module_of(file), name) for name in visitor.found}
    return users


def reaches(number, functions):
    """Whether a case that runs some functions can feel a number."""
    users = users_of(number)
    modules = {module for module, _ in functions}
    if users is None:
        return module_of(number.file) in modules
    for module, name in users:
        if (module, name) in functions:
            return True
        inside_class = any(m == module and f.startswith(f"{name}.") for m, f in functions)
        if module in modules and (name == "" or inside_class):  # a default, or a field
            return True
    return False


# -- measuring ------------------------------------------------------------------------------------


def seeds_of(case, quick):
    """Seeds of a case."""
    return range(max(1, (QUICK_SEEDS if quick else SEEDS) // case.cost))


def outcome(case, seed):
    """What a case measures, or why it fails."""
    try:
        return case.measure(seed)
    except Exception as error:  # whatever a number may break
        return {"failure": f"{type(error).__name__}: {error}".splitlines()[0][:120]}


def measure(options):
    """Measure what is missing in the file of measurements."""
    done = recorded(options.measured)
    numbers = [n for room in MEASURED for n in chosen_numbers(PACKAGE / room) if n.kind != GUARD]
    known = {key: class_of(row) for key, row in table_rows(ROOT).items()}
    numbers = [n for n in numbers if known.get(key_of(n), TUNED) == TUNED]
    numbers = [n for n in numbers if re.search(options.only, key_of(n))]
    rooms = {module_of(number.file).split(".")[1] for number in numbers}
    diagnosed = DIAGNOSED[:QUICK_RUNS] if options.quick else DIAGNOSED
    cases = [case for case in (*SAMPLED, *diagnosed) if case.room in rooms]
    reached = {case.name: functions_of(case) for case in cases}
    runs, asked = [], []
    for number in numbers:
        module = module_of(number.file)
        felt = [case for case in cases if reaches(number, reached[case.name])]
        if ".samplers." in module:  # the diagnosis uses some of them: no need to ask it, too
            felt = [case for case in felt if case.room == "samplers"]
        asked += [case for case in felt if case not in asked]
        for to in variants(number.text):
            changed = Changed(module, number.line, number.column, number.text, to)
            runs += [] if felt else [(key_of(number), changed, None, 0)]
            for case in felt:
                runs += [
                    (key_of(number), changed, case, seed) for seed in seeds_of(case, options.quick)
                ]
    references = []
    for case in asked:
        fewest = REFERENCE_SEEDS if case.room == "samplers" else 1
        seeds = range(max(fewest, len(seeds_of(case, options.quick))))
        references += [("", None, case, seed) for seed in seeds]
    runs = [*references, *runs]
    before = object()
    loaded = None
    with options.measured.open("a", encoding="utf-8") as file:
        for key, changed, case, seed in runs:
            name = case.name if case else NOWHERE
            identity = (key, changed and changed.text, changed and changed.to, name, seed)
            if identity in done:
                continue
            if changed != before:
                if loaded:
                    loaded.__exit__(None, None, None)
                loaded, before = package_with(changed), changed
                loaded.__enter__()
            line = dict(zip(("number", "value", "to", "case", "seed"), identity, strict=True))
            file.write(json.dumps(line | (outcome(case, seed) if case else {})) + "\n")
            file.flush()
    if loaded:
        loaded.__exit__(None, None, None)


def recorded(path):
    """Measurements of a file, by what they are of."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {
        tuple(line[k] for k in ("number", "value", "to", "case", "seed")): line for line in lines
    }


# -- the table ------------------------------------------------------------------------------------


def effect(measured, reference):
    """Effect of a value in words, from its measurements and those of the number as it is."""
    if not measured:
        return NOT_MEASURED
    if measured[0]["case"] == NOWHERE:
        return "not reached"
    pairs = defaultdict(list)
    for line in measured:
        pairs[line["case"]].append((line, reference[line["case"], line["seed"]]))
    failures = [
        (case, new["failure"]) for case in pairs for new, _ in pairs[case] if "failure" in new
    ]
    if failures:
        return f"fails ({failures[0][0]}: {failures[0][1]})"
    if all(new["digest"] == old["digest"] for both in pairs.values() for new, old in both):
        return "the same, bit for bit"
    if "verdict" in measured[0]:
        return effect_on_verdicts([both for case in pairs.values() for both in case])
    felt = {  # problems that do not feel it would only dilute what others feel
        case: both
        for case, both in pairs.items()
        if any(new["digest"] != old["digest"] for new, old in both)
    }
    return effect_on_errors(felt, reference)


def effect_on_verdicts(both):
    """Changes of verdicts and estimates."""
    worse = sum(old["right"] and not new["right"] for new, old in both)
    better = sum(new["right"] and not old["right"] for new, old in both)
    told = [
        f"{n} of {len(both)} verdicts {what}"
        for n, what in ((worse, "worse"), (better, "better"))
        if n
    ]
    moved = max(
        (
            float(np.abs(np.subtract(new["estimates"], old["estimates"])).max(initial=0.0))
            for new, old in both
            if len(new["estimates"]) == len(old["estimates"])
        ),
        default=0.0,
    )
    if moved > 0:
        told.append(f"estimates move by {moved:.2g} sd at most")
    return ", ".join(told) or f"other words, but the same {len(both)} verdicts"


def effect_on_errors(pairs, reference):
    """Factors of errors and evaluations."""
    errors, evaluations, variances, stuck = {}, [], {}, []
    for case, both in pairs.items():
        errors[case] = float(np.mean([np.log(new["error"] / old["error"]) for new, old in both]))
        usual = [np.log(line["error"]) for (name, _), line in reference.items() if name == case]
        variances[case] = 2 * float(np.var(usual, ddof=1)) / len(both)
        evaluations.append(
            np.mean([np.log(new["evaluations"] / old["evaluations"]) for new, old in both])
        )
        lost = sum(old["converged"] and not new["converged"] for new, old in both)
        won = sum(new["converged"] and not old["converged"] for new, old in both)
        stuck += [f"{lost} of {len(both)} do not converge ({case})"] if lost else []
        stuck += [f"{won} of {len(both)} converge that did not ({case})"] if won else []
    mean = float(np.mean([*errors.values()]))
    error = float(np.sqrt(sum(variances.values()))) / len(errors)
    told = [f"error ×{np.exp(mean):.2f} ± {error:.2f}"]
    worst = max(errors, key=lambda case: errors[case] / np.sqrt(variances[case]))
    if len(errors) > 1 and errors[worst] > max(np.log(1.2), SURE * np.sqrt(variances[worst])):
        told.append(f"worst ×{np.exp(errors[worst]):.1f} ({worst})")
    factor = float(np.exp(np.mean(evaluations)))
    if not 1 / NOTICED < factor < NOTICED:
        told.append(f"evaluations ×{factor:.2f}")
    return ", ".join([*told, *stuck])


def effects(key, texts, column, measured, reference):
    """Effects of half (column 0) or twice (column 1) of the numbers behind one name, in words."""
    values = [variants(text)[column] for text in texts]
    told = [
        effect(measured[key, text, to], reference) for text, to in zip(texts, values, strict=True)
    ]
    if len(set(told)) == 1:
        return told[0]
    return "; ".join(f"{to}: {what}" for to, what in zip(values, told, strict=True))


def write_table(path):
    """Write the effects of numbers that were measured into the table, and the values of all.

    Numbers that are new get a row at the end, to be filled in by hand, and those that are gone lose
    theirs.
    """
    lines = recorded(path).values()
    reference = {(line["case"], line["seed"]): line for line in lines if line["number"] == ""}
    measured = defaultdict(list)
    for line in lines:
        measured[line["number"], line["value"], line["to"]].append(line)
    numbers = defaultdict(list)
    for n in [n for room in ROOMS for n in chosen_numbers(PACKAGE / room) if n.kind != GUARD]:
        numbers[key_of(n)].append(n.text)
    before = {key: row for key, row in table_rows(ROOT).items() if key in numbers}
    new = {"value": "", "decides": "", "why": "", "half": NOT_MEASURED, "twice": NOT_MEASURED}
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for key in [*before, *(key for key in numbers if key not in before)]:
            row, texts = before.get(key, new), numbers[key]
            told = [effects(key, texts, column, measured, reference) for column in (0, 1)]
            same = row["value"] == ", ".join(texts)
            for column, name in enumerate(("half", "twice")):
                if class_of(row) != TUNED or (same and NOT_MEASURED in told[column]):
                    told[column] = row[name]
            writer.writerow([f"`{key}`", ", ".join(texts), row["decides"], row["why"], *told])


def main():
    """Measure, or write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SEEDS} seeds, not {SEEDS}")
    parser.add_argument(
        "--only", default="", metavar="NAME", help="numbers with this in their name"
    )
    parser.add_argument("--measured", type=Path, default=Path("outputs/tuned_numbers.jsonl"))
    parser.add_argument("--table", action="store_true", help="write the table instead")
    options = parser.parse_args()
    logging.getLogger("pymc").setLevel(logging.ERROR)
    logging.getLogger("pymc_ensemble").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    options.measured.parent.mkdir(parents=True, exist_ok=True)
    if options.table:
        write_table(options.measured)
    else:
        measure(options)


if __name__ == "__main__":
    main()
