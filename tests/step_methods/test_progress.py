"""What the progress bar shows of ensembles, and how it comes there from other processes."""

import logging
import math
import multiprocessing
import os
import re
import sys
import textwrap
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import cloudpickle
import pymc as pm
import pytest
from toys import ToyStep, gaussian_model

from pymc_ensemble import log
from pymc_ensemble.log import Progress, ProgressLog
from pymc_ensemble.samplers.examination import Examination
from pymc_ensemble.step_methods import progress
from pymc_ensemble.step_methods.progress import ROOM, Board, Place, together

NAN = math.nan


def sampling(n_evals, to_go, *, failed=0, acceptance=0.5, left=60.0):
    return Progress(True, 5, n_evals, to_go, failed, acceptance, left, 100, 0, 0)


def test_text_of_several_chains_in_one_row():
    """Sums of the evaluations, the mean acceptance, and the time of the slowest."""
    told = [
        (sampling(300, 700, acceptance=0.5, left=60.0), 10.0),
        (sampling(400, 600, failed=3, acceptance=0.7, left=100.0), 20.0),
    ]
    assert together(told) == "700/2000 runs, 3 failed, acc .60, 1:20 left"
    assert together([*told, None]) == "700/2000+ runs, 3 failed, acc .60, 1:20+ left"
    assert together([None, told[1]]) == "400/1000 runs, 3 failed, acc .70, 1:20 left"
    assert together([None, None]) == ""


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (Progress(False, 0, 0, 0, 0, NAN, NAN), "0 runs, 0:07 so far"),
        (Progress(False, 2, 100, 900, 0, NAN, 97.0), "100/1000+ runs, burn-in 2, 1:30+ left"),
        (Progress(False, 2, 100, 0, 0, NAN, 0.0), "100 runs, burn-in 2, 0:00+ left"),
        (sampling(300, 700, left=3.0), "300/1000 runs, acc .50, 0:00 left"),
        (sampling(1000, 0, acceptance=1.0, left=0.0), "1000 runs, acc 1.00"),
    ],
)
def test_text_from_start_to_end(told, text):
    assert told.text(since=7.0) == text


def test_chains_of_one_process_have_their_places_in_order():
    board = Board()
    for _ in range(2):
        board.start(2)
        assert Place(board, 0).read() is None, "the run before is forgotten"
        for chain in range(2):
            board.begin().write(sampling(chain, 0))
        assert [Place(board, chain).read()[0].n_evals for chain in range(2)] == [0, 1]


def test_more_chains_than_places():
    board = Board()
    board.start(progress.CHAINS + 1)
    place = Place(board, progress.CHAINS)
    place.write(sampling(1, 0))
    assert place.read() is None
    assert not place.watched
    assert place.printed() == ""


def test_lines_go_round_in_a_circle(capfd):
    board = Board()
    board.start(1)
    place = Place(board, 0)
    place.print("past the bar\n")
    assert capfd.readouterr().err == "past the bar\n", "where there is no bar"
    board.note_column()
    lines = [f"{i}: ä{'x' * 700}\n" for i in range(20)]
    for line in lines:
        place.print(line)
        assert place.printed() == line
    assert place.printed() == ""
    place.print("y" * ROOM)
    place.print("no room\n")
    assert capfd.readouterr().err == "no room\n"
    assert place.printed() == "y" * ROOM


def _tell(pickled, sender):
    board = cloudpickle.loads(pickled)
    place = board.begin()
    place.write(sampling(42, 8))
    logging.getLogger("pymc_ensemble").warning("from afar")
    sender.send(logging.getLogger("pymc").level)


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_other_processes_write_on_the_same_board(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip("no such processes here")
    context = multiprocessing.get_context(method)
    board, (receiver, sender) = Board(), context.Pipe(duplex=False)
    quiet = logging.getLogger("pymc").level
    pickled = cloudpickle.dumps(board)
    name = cloudpickle.loads(pickled)._found.name
    board.start(1)
    board.note_column()
    worker = context.Process(target=_tell, args=(pickled, sender), name=f"{progress.WORKER}0")
    worker.start()
    assert receiver.poll(60)
    assert receiver.recv() == quiet, "the level of PyMC's logger comes along"
    worker.join()
    place = Place(board, 0)
    assert place.read()[0] == sampling(42, 8)
    if method == "spawn":  # in a fork, the handlers of pytest are the ones that exist
        assert place.printed() == "from afar\n"
    assert place.found
    board.remove_name()
    with pytest.raises(FileNotFoundError):
        SharedMemory(name)
    assert place.read()[0] == sampling(42, 8), "the memory stays"
    again = cloudpickle.loads(cloudpickle.dumps(board))
    Place(again, 0).write(sampling(1, 2))
    assert Place(board, 0).read()[0] == sampling(1, 2), "a second run gets a name of its own"


def test_chains_speak_with_one_voice(caplog):
    """Of the doubts of several chains the first is told, and then how many there are."""
    caplog.set_level(logging.INFO, "pymc_ensemble")

    def told(*doubts):
        board = Board()
        board.start(len(doubts))
        chains = [ProgressLog(f"Chain {k}", board.begin()) for k in range(len(doubts))]
        for chain in chains:
            chain.begin()
        caplog.clear()
        for chain, doubt in zip(chains, doubts, strict=True):
            chain.conclude(doubt)
        return [record.getMessage() for record in caplog.records]

    closer = "pymc_ensemble.diagnose(idata) looks closer."
    assert told("", "", "") == [f"The draws passed the quick checks. {closer}"]
    assert told("", "doubtful: a.", "") == [f"Chain 1: doubtful: a. {closer}"]
    assert told("doubtful: a.", "", "wrong: b.") == [
        f"Chain 0: doubtful: a. {closer}",
        "2 of 3 chains did not pass the quick checks.",
    ]


def test_burn_ins_of_all_chains_are_told_together(caplog):
    caplog.set_level(logging.INFO, "pymc_ensemble")
    smooth, rough = Examination(0.01, 20), Examination(5.0, 20)

    def told(*found):
        board = Board()
        board.start(len(found))
        chains = [ProgressLog(f"Chain {k}", board.begin()) for k in range(len(found))]
        for chain in chains:
            chain.begin()
        caplog.clear()
        for k, (chain, one) in enumerate(zip(chains, found, strict=True)):
            chain.end_burn_in(8 + k, 800, one)
        return [record.getMessage() for record in caplog.records]

    over = "The burn-in of 2 chains is over: 8 to 9 iterations, 1600 evaluations."
    assert told(smooth, smooth) == [over, str(smooth)]
    assert told(None, None) == [over]
    line, warning = told(smooth, rough)
    assert line == over
    assert warning.startswith("1 of 2 chains have found the forward map to be rough")


def test_quiet_runs_are_quiet_and_mute_nothing(monkeypatch, capfd):
    ours = logging.getLogger("pymc_ensemble")
    monkeypatch.setattr(ours, "propagate", False)
    monkeypatch.setattr(ours, "handlers", [])
    monkeypatch.setattr(ours, "level", logging.NOTSET)
    ours.manager._clear_cache()
    options = {"draws": 120, "chains": 1, "cores": 1, "random_seed": 1, "progressbar": False}
    try:
        with gaussian_model():
            pm.sample(step=ToyStep(), quiet=True, compute_convergence_checks=False, **options)
            assert capfd.readouterr() == ("", "")
            pm.sample(step=ToyStep(), compute_convergence_checks=False, **options)
        shown = capfd.readouterr().err
        assert "The burn-in is over: 3 iterations, 30 evaluations.\n" in shown
    finally:
        monkeypatch.undo()
        ours.manager._clear_cache()
    assert all(not isinstance(handler, log.BesidePyMC) for handler in ours.handlers)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_a_terminal_of_eighty_columns(tmp_path):
    """The text is whole, and moves while no draws come, with chains in processes of their own."""
    import pty

    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(
            """
            import time
            import pymc as pm
            from toys import ToyStep, gaussian_model

            def wait(outputs):
                time.sleep(0.25)
                return outputs

            with gaussian_model():
                pm.sample(
                    draws=80, chains=2, cores=2, random_seed=1, step=ToyStep(hook=wait)
                )
            """
        )
    )
    pid, terminal = pty.fork()
    if not pid:
        environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
        path = os.pathsep.join([*sys.path, str(Path(__file__).parents[1])])
        environment |= {"PYTHONPATH": path}
        os.execve(sys.executable, [sys.executable, str(script)], environment)
    shown = b""
    try:
        while piece := os.read(terminal, 65536):
            shown += piece
    except OSError:  # the end, on Linux
        pass
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, shown.decode()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    counts = [int(n) for n in re.findall(r"(\d+)/110 runs, acc \.50, 0:0\d left", text)]
    assert set(counts) >= {50, 60, 70, 80, 90}, text
    assert "The burn-in of 2 chains is over: 3 iterations, 60 evaluations." in text
    assert text.count("110 runs, acc .50") >= 2
    assert not re.search(r"Chain \d: sweep", text), "no lines of the log beside the bar"
