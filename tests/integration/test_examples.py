"""The examples run as they stand: notebooks cell by cell, scripts on the command line."""

import linecache
import logging
import os
import re
import runpy
import shutil
import subprocess
import sys
import textwrap
import time
from functools import partial, wraps
from importlib.util import find_spec
from pathlib import Path

import forks
import matplotlib.pyplot as plt
import numpy as np
import pymc as pm
import pytensor
import pytest

import pymc_ensemble as pe
from pymc_ensemble.forward import Evaluations

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.md"))


SMALLER = {
    "bayes_factors": {"            1000,\n": "            500,\n"},
    "counts": {"pm.sample(1000, ": "pm.sample(400, "},
    "c_program": {
        "        1000,\n": "        400,\n",
        "draws=500": "draws=60",
        "ensemble_size=50": "ensemble_size=30",
    },
    "darcy": {
        "        1000,\n": "        500,\n",
        "        300,\n        step=pe.MultiscaleSampler(walkers=10,": (
            "        400,\n        step=pe.MultiscaleSampler(walkers=4,"
        ),
        "preconditioner=idata),\n        chains=2": "preconditioner=idata),\n        chains=1",
    },
    "data_assimilation": {
        "TRUTHS, OTHERS = 8, 6": "TRUTHS, OTHERS = 3, 1",
        "10 : 10 + OTHERS": "11 : 11 + OTHERS",  # its burn-in takes a third of the time
        '"chains": 2': '"chains": 1',
        "draws=3000": "draws=1500",
        "pm.sample(3000": "pm.sample(1500",
        "steps=16000": "steps=1500",
        "steps=128,": "steps=64,",
        "size=64": "size=16",
        "size=20_000": "size=8000",
        "2048": "512",
    },
    "diffusion": {
        "model, 2000,": "model, 1500,",
        "5000, random": "2000, random",
        "draws=4000": "draws=1500",
        "4000": "1000",
    },
    "field": {"        500,\n": "        250,\n"},
    "four_modes": {"        5000,\n": "        1000,\n"},
    "lorenz63": {", 1000)": ", 400)", "500, tune=20": "100, tune=5"},
    "many_data_sets": {
        "simulations(model, 100,": "simulations(model, 60,",
        "known[::4]": "known[::8]",
        "        1000,\n": "        400,\n",
    },
    "networks": {"size=200": "size=100", "epochs=8": "epochs=6", "(1, 9)": "(1, 7)"},
    "outbreak": {"simulations(model, 4000,": "simulations(model, 1500,"},
    "quickstart": {"        1000,\n": "        500,\n"},
    "restart": {"        300,\n": "        100,\n", "        200,\n": "        100,\n"},
    "thrown_ball": {
        "model, 5000,": "model, 3000,",
        "coverage(200,": "coverage(20,",
        "slice(300)": "slice(100)",
    },
    "two_solvers": {"start, 4000)": "start, 400)"},
    "unknown_noise": {
        "        3000,\n": "        1000,\n",
        "        8000,\n": "        4000,\n",
        "        1000, chains=2": "        500, chains=2",
    },
}
"""Lines of notebooks that are others here, as these take longest."""

IN_DEFAULT_MODE = {"unknown_noise"}
"""Notebooks in the mode of users: there more is compiled, which pays where much is evaluated."""


def run_notebook(name, **modules):
    """Run the code of a notebook, and return what it has defined; some modules are others here."""
    text = (EXAMPLES / f"{name}.md").read_text(encoding="utf-8")
    for line, smaller in SMALLER.get(name, {}).items():
        assert line in text
        text = text.replace(line, smaller)
    for module in modules:
        assert f"import {module}\n" in text
        text = text.replace(f"import {module}\n", "")
    cells = re.findall(r"^```\{code-cell\}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    session = {**modules}
    for number, cell in enumerate(cells, start=1):
        cell = re.sub(r"^:.*\n", "", cell)  # tags of the cell
        file = f"{name}.md, cell {number}"
        linecache.cache[file] = (len(cell), None, cell.splitlines(keepends=True), file)
        exec(compile(cell, file, "exec"), session)
    plt.close("all")
    return session


def errors(idata, reference):
    """Errors of means in posterior standard deviations, and ratios of these, of all parameters."""
    draws = idata.posterior.dataset
    reference = reference[[name for name in reference if name in draws]]
    mean, sd = (reference.sel(statistic=name, drop=True) for name in ("mean", "sd"))
    draws = draws[list(reference)]
    error = (draws.mean(("chain", "draw")) - mean) / sd
    ratio = draws.std(("chain", "draw")) / sd
    return error.to_stacked_array("x", []).values, ratio.to_stacked_array("x", []).values


def quickstart(session):
    # the posterior is that of the gallery, with nearly the same priors
    reference = pe.gallery.lynx_hare().reference[["alpha", "gamma", "sigma"]]
    error, ratio = errors(session["idata"], reference)
    assert np.abs(error).max() < 0.5
    assert 0.7 < ratio.min() <= ratio.max() < 1.4


def simulator(session):
    posterior = session["idata"].posterior
    assert session["idata"].sample_stats.n_failed.max() > 0
    assert abs(posterior["drag"] / posterior["mass"] - 0.03).mean() < 0.005


def darcy(session):
    # 16 parameters of 1000 adjusted draws; a third are independent: standard errors .055 and .04
    assert session["mode"].converged
    assert np.sqrt((session["error"] ** 2).mean()) < 0.15
    assert 0.8 < session["ratio"].min() <= session["ratio"].max() < 1.25
    error, ratio = errors(session["walkers"], session["model"].reference)
    assert np.sqrt((error**2).mean()) < 0.3
    assert 0.7 < ratio.min() <= ratio.max() < 1.4


def lorenz63(session):
    for idata in session["runs"].values():
        error, ratio = errors(idata, session["reference"])
        assert np.abs(error).max() < 0.5
        assert 0.7 < ratio.min() <= ratio.max() < 1.4


def four_modes(session):
    assert session["idata"].sample_stats.converged.all()
    u = session["u"]
    shares = np.bincount(2 * (u[:, 0] > 0) + (u[:, 1] > 0)) / len(u)
    assert np.abs(shares - 0.25).max() < 0.1
    _, ratio = errors(session["idata"], session["smooth"].reference)
    assert 0.9 < ratio.min() <= ratio.max() < 1.1


def bimodal(session):
    right = {}
    for name, idata in session["runs"].items():
        u = idata.posterior["u"]
        right[name] = (u[..., 0] > u[..., 1]).mean("draw").values
    assert np.abs(right.pop("plain") - 0.5).min() > 0.2
    assert np.abs(list(right.values()) - np.array(0.5)).max() < 0.2
    assert (session["one_mode"].posterior["v"] > 0).all()


def unknown_noise(session):
    for name in ("mu", "tau", "sigma"):
        ours, nuts = (session[run].posterior[name] for run in ("idata", "nuts"))
        assert abs(ours.mean() - nuts.mean()) < 0.25 * nuts.std()


def counts(session):
    truth = {"spread": {"growth": 0.2, "initial": 3}, "doses": {"uptake": 2, "potency": 1.5}}
    for run, values in truth.items():
        for name, value in values.items():
            draws = session[run].posterior[name]
            assert abs(draws.mean() - value) < 4 * draws.std()
            assert draws.std() < 0.3 * value


def coverage(session):
    assert session["result"].finished == 5
    assert session["result"].calibrated


def restart(session):
    assert session["kept"] >= 200
    assert session["again"][1] == "0 evaluations in this run"
    cost = [session[run].sample_stats.n_evals.max("draw") for run in ("more", "first")]
    assert (cost[0] < 0.6 * cost[1]).all()
    assert abs(session["idata"].posterior["rate"].mean() - 0.8) < 0.1


def bayes_factors(session):
    # bridges with 4000 points of their own to other runs, standard errors of 0.014 and less
    known = {
        "SIR": -67.38,
        "SEIR": -64.79,
        "one compartment": -0.63,
        "two compartments": 18.95,
        "two compartments, vague": 17.69,
    }
    for name, value in known.items():
        found = session["found"][name]
        assert found.standard_error < 0.06
        assert abs(found.value - value) < 4 * np.hypot(found.standard_error, 0.015)


def networks(session):
    with_spread, without = (
        session[name].history["validation"].values[-1] for name in ("with_spread", "without")
    )
    assert with_spread > 0.8
    assert with_spread > without + 0.02


def thrown_ball(session):
    for x, idata in session["answers"].items():
        speed, (weights, speeds) = idata.posterior["v"], (session["exact"][x], session["speeds"])
        mean = (weights * speeds).sum()
        sd = np.sqrt((weights * (speeds - mean) ** 2).sum())
        assert abs(float(speed.mean()) - mean) < 0.2 * sd
        assert 0.8 < float(speed.std()) / sd < 1.25
    assert session["learned"].surprise({"x": 40.0}) > 0.99


def outbreak(session):
    assert session["calibration"].verdict != "overconfident"
    assert session["inside"].sum() >= 10
    assert 3 < session["found"]["R0"].mean() < 5


def many_data_sets(session):
    assert session["answers"][session["wrong"]] is None
    assert len(session["known"]) >= 55
    # 60 intervals of 90%: a standard deviation of .04
    assert 0.78 < session["inside"].mean() < 0.99
    assert len(session["efficiencies"]) >= 6
    learned, sampled = (
        one.posterior.dataset[["fastest", "half"]]
        for one in (session["answers"][session["k"]], session["sampled"])
    )
    error = abs(learned.mean() - sampled.mean()) / sampled.std()
    assert max(float(value) for value in error.values()) < 0.5


def diffusion(session):
    for y, ways in session["drawn"].items():
        values = {way: idata.posterior["theta"].values.ravel() for way, idata in ways.items()}
        sd = 0.05 / y**0.5  # of a mode, to first order in the noise
        for way in ("weights", "equation"):
            size = np.abs(values[way])
            assert abs(size.mean() - y**0.5) < 0.4 * sd
            assert 0.75 < size.std() / sd < 1.3
            assert abs((values[way] > 0).mean() - 0.5) < 0.15
        assert (np.abs(values["low-fidelity map"]) < 0.6 * y**0.5).mean() > 0.03
    assert np.abs(session["share"] - session["weights"]).max() < 0.01


def data_assimilation(session):
    rmse, crps, _, misfit, _ = np.array(
        [np.median(rows, 0) for rows in session["found"].values()]
    ).T  # of the particle smoother, the Kalman smoother, the sampler and the score
    assert rmse[2] < 1.2 * rmse[0]
    assert crps[0] < 1.1 * crps[2]
    assert crps[2] < crps[1] < crps[3]
    assert 0.95 < misfit[2] < 1.05 < misfit[1]
    assert np.abs(session["errors"]).max() < 4  # of the last way, the sampler


def c_program(session):
    idata, stats = session["idata"], session["stats"]
    assert stats.n_failed.max("draw").sum() > 0
    assert session["new_runs"] == 0
    assert (session["statuses"] == ["failed", "ok"]).all()
    for name, value in (session["TRUE"] | {"shock": 0.25, "rho": 0.8}).items():
        draws = idata.posterior[name]
        assert abs(draws.mean() - value) < 4 * draws.std()
    assert float(session["inside"]) > 0.7
    assert session["calibration"].finished == session["calibration"].simulations


def field(session):
    assert session["stats"].acceptance.mean() > 0.5
    assert (session["sd"] < 0.5).sum() >= 5
    assert (session["sd"] > 0.9).sum() > 200
    # smooth fields: neighbors are not independent
    truth, fields = session["truth"], session["fields"]
    low, high = np.quantile(fields, [0.05, 0.95], axis=0)
    assert ((low < truth) & (truth < high)).mean() > 0.6


def two_solvers(session):
    runs = session["runs"]
    cost = {name: idata.sample_stats.n_evals.max("draw").sum() for name, idata in runs.items()}
    assert cost["both"] < 0.1 * cost["fine"]
    assert runs["both"].sample_stats.certificate.max() < 0.3
    for name in session["TRUE"]:
        fine, both = (runs[run].posterior[name] for run in ("fine", "both"))
        assert abs(both.mean() - fine.mean()) < 0.3 * fine.std()


class Forks:
    """What `restart` has of `subprocess`, with forks, which need not import PyMC and all else.

    In another test a killed run goes on in a new interpreter.
    """

    DEVNULL = os.devnull

    def __init__(self, command, *, cwd, stdout, stderr):
        assert command[0] == sys.executable
        self.process = forks.start(*command[1:], output=stdout, errors=stderr, folder=cwd)

    @classmethod
    def run(cls, command, *, cwd, **_):
        output = cwd / "output"
        assert cls(command, cwd=cwd, stdout=output, stderr=cls.DEVNULL).wait() == 0
        return subprocess.CompletedProcess(command, 0, output.read_text())

    def poll(self):
        return self.process.exitcode

    def kill(self):
        self.process.kill()

    def wait(self):
        self.process.join()
        return self.poll()


Forks.Popen = Forks


def with_chains(sample, chains):
    """The same function, whatever number of chains it is asked for."""

    @wraps(sample)
    def sample_fewer(*args, **options):
        return sample(*args, **options | {"chains": chains})

    return sample_fewer


OF_SIMULATORS = [  # PyMC's own, of pm.Simulator
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
CHECKS = [
    quickstart,
    simulator,
    darcy,
    pytest.param(
        lorenz63, marks=pytest.mark.filterwarnings("ignore:The burn-in had not passed:UserWarning")
    ),
    four_modes,
    bimodal,
    unknown_noise,
    counts,
    coverage,
    bayes_factors,
    c_program,
    field,
    two_solvers,
    restart,
    *(
        pytest.param(check, marks=[pytest.mark.amortized, *OF_SIMULATORS])
        for check in (thrown_ball, outbreak, many_data_sets, diffusion)
    ),
    pytest.param(
        data_assimilation,
        marks=[
            pytest.mark.amortized,
            pytest.mark.filterwarnings("ignore:The burn-in had not passed:UserWarning"),
        ],
    ),
    pytest.param(
        networks,
        marks=pytest.mark.skipif(find_spec("sklearn") is None, reason="needs scikit-learn"),
    ),
]


def test_notebooks_are_checked():
    checks = [getattr(check, "values", (check,))[0] for check in CHECKS]
    assert {path.stem for path in NOTEBOOKS} == {check.__name__ for check in checks}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_notebook(check, monkeypatch, tmp_path, request):
    """Each runs from top to bottom, and finds what its text says.

    There are fewer simulations than on the page, two networks of four, fewer ends that a map
    learns, one chain where each evaluation is a process, and fewer draws where these take longest.
    """
    if check is c_program and shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    monkeypatch.chdir(tmp_path)
    logger = logging.getLogger("pymc_ensemble")
    request.addfinalizer(partial(logger.setLevel, logger.level))  # some notebooks silence it
    whole = pe.coverage

    def fewer(*args, simulations, **options):
        return whole(*args, simulations=max(simulations // 4, 2), **options)

    monkeypatch.setattr(pe, "coverage", fewer)
    if request.node.get_closest_marker("amortized"):
        monkeypatch.setattr(pe, "amortize", partial(pe.amortize, members=2))
    if check is diffusion:
        monkeypatch.setattr("pymc_ensemble.amortized.refining.LABELS", 300)
    if check is c_program:
        monkeypatch.setattr(pm, "sample", with_chains(pm.sample, 1))
    mode = "Mode" if check.__name__ in IN_DEFAULT_MODE else pytensor.config.mode
    modules = {"subprocess": Forks} if check is restart and os.name == "posix" else {}
    with pytensor.config.change_flags(mode=mode):
        session = run_notebook(check.__name__, **modules)
    check(session)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_notebooks(path):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8"))
    assert not [link for link in links if "://" not in link and not (EXAMPLES / link).exists()]


@pytest.mark.default_mode
@pytest.mark.slow
def test_lynx_hare(monkeypatch, tmp_path, capsys):
    """The main job from its first draw to its picture, with few draws of two chains."""
    picture = tmp_path / "new_folder" / "lynx_hare.png"
    arguments = ["lynx_hare.py", "--quick", "--output", str(picture)]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(pm, "sample", with_chains(pm.sample, 2))
    made, sampler = [], pe.EnsembleKalmanSampler
    monkeypatch.setattr(
        pe, "EnsembleKalmanSampler", lambda **options: made.append(options) or sampler(**options)
    )
    module = runpy.run_path(str(EXAMPLES / "lynx_hare.py"), run_name="__main__")

    assert picture.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    table = [line.split() for line in printed.splitlines()]
    rows = {
        row[0]: [float(x) for x in row[1:]]
        for row in table
        if len(row) == 9 and row[0] != "Progress"  # the head of PyMC's table
    }
    assert len(rows) == 8
    for _, _, error, ratio, rhat, plain_error, plain_ratio, _ in rows.values():
        # 2 x 500 draws, a quarter of them independent: standard errors .063 and .045.
        assert abs(error) < 0.25
        assert 0.85 < ratio < 1.18
        assert rhat < 1.1
        assert abs(plain_error) < 0.35
        assert 0.8 < plain_ratio < 1.25
    [calls] = [int(row[4]) for row in table if row[:3] == ["solutions", "of", "the"]]
    assert calls <= 12_000
    assert set(module["PARAMETERS"]) == {label.split("[")[0] for label in rows}
    assert [options["adjust"] for options in made] == [True, False]


@pytest.mark.slow
def test_batch_queue(tmp_path, capsys):
    """Started again and again, it comes to the draws of a loop that was never interrupted."""
    module = runpy.run_path(str(EXAMPLES / "batch_queue.py"))
    advance, work, folder = module["advance"], module["work"], tmp_path / "queue"
    starts = 0
    while not advance(folder):
        starts += 1
        work(folder)
    assert starts > 20
    assert advance(folder), "a start too many changes nothing"
    expected = reference_of_batch_queue(module)
    np.testing.assert_array_equal(np.load(folder / "draws.npy"), expected)


@pytest.mark.slow
def test_batch_queue_on_the_command_line(tmp_path):
    command = [sys.executable, EXAMPLES / "batch_queue.py", "--folder", tmp_path / "queue"]

    def run(*options):
        process = subprocess.run(
            [*command, *options], capture_output=True, text=True, check=True, timeout=100
        )
        return process.stdout

    assert run().startswith("Round 1: 40 jobs are waiting")
    assert run() == "Round 1: 40 of 40 results are missing.\n"
    run("--work")
    assert run().startswith("Round 2: ")


def reference_of_batch_queue(module):
    """Draws of a loop that is never interrupted."""
    sampler, problem = module["SAMPLER"], module["PROBLEM"]
    rng, draws = np.random.default_rng(module["SEED"]), []
    state = sampler.start(problem.sample_prior(module["ENSEMBLE_SIZE"], rng), redraw=True)
    while len(draws) < module["SWEEPS"]:
        points, pending = sampler.ask(state, rng)
        outputs = [module["simulate"](point) for point in points]
        state, info = sampler.tell(state, pending, Evaluations.from_outputs(outputs))
        if info.snapshot is not None:
            draws.append(info.snapshot.U)
        elif info.complete and state.burned_in:
            state = sampler.freeze(state)
    return draws


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_workers_and_two_masters_of_one_batch_queue(tmp_path):
    """All of them at once, and some are killed: the draws are those of one loop."""
    folder = tmp_path / "queue"
    code = f"""
        import runpy, sys, time
        from pathlib import Path
        module = runpy.run_path({str(EXAMPLES / "batch_queue.py")!r})
        folder = Path({str(folder)!r})
        while not (folder / "draws.npy").exists():
            module[sys.argv[1]](folder)
            time.sleep(0.05)
        """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code))

    def start(what):
        command = [sys.executable, script, what]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    processes = [start(what) for what in ("advance", "work") for _ in range(2)]
    deadline = time.monotonic() + 300
    while not list(folder.glob("round0003_*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for killed, what in ((0, "advance"), (2, "work")):
        processes[killed].kill()
        processes[killed].wait()
        processes[killed].stderr.close()
        processes[killed] = start(what)
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said.decode()
    module = runpy.run_path(str(EXAMPLES / "batch_queue.py"))
    expected = reference_of_batch_queue(module)
    np.testing.assert_array_equal(np.load(folder / "draws.npy"), expected)


@pytest.mark.slow
def test_external_program(tmp_path, capsys):
    module = runpy.run_path(str(EXAMPLES / "external_program.py"))
    first = module["main"](tmp_path, draws=40)
    again = module["main"](tmp_path, draws=40)
    np.testing.assert_array_equal(first.posterior.rate, again.posterior.rate)
    assert abs(first.posterior.rate.mean().item() - 0.8) < 0.3
    lines = capsys.readouterr().out.splitlines()
    assert "timeout" in lines[2]
    assert lines[-1] == "Called in this run: 0"
