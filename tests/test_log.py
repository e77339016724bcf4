"""What a chain tells of its progress."""

import logging
import re

import numpy as np
import pytest

from pymc_ensemble import log
from pymc_ensemble.benchmark.report import _cell, _number
from pymc_ensemble.forward import Evaluations
from pymc_ensemble.log import ProgressLog, clock, duration, minutes, number, percent


@pytest.fixture
def told(caplog, monkeypatch):
    """Progress at a clock that is set by hand."""
    now = [0.0]
    monkeypatch.setattr(log, "perf_counter", lambda: now[0])
    caplog.set_level(logging.INFO, "pymc_ensemble")
    progress = ProgressLog("Chain 3")

    def tell(seconds, *args, **kwargs):
        now[0] += seconds
        caplog.clear()
        progress.tell(*args, **kwargs)
        return caplog.records[0].getMessage() if caplog.records else None

    return progress, tell


def evaluations(n_calls, seconds):
    return Evaluations(np.zeros((4, 1)), np.zeros(4, dtype=bool), (), n_calls, seconds)


def test_cost_of_evaluations_and_expected_end(told):
    progress, tell = told
    progress.count(4, 10.0)
    line = tell(10.0, "sweep 1, all well", 4, 1, to_go=8)
    assert line.startswith(
        "Chain 3: sweep 1, all well; 4 evaluations (1 failed), 2.5 s each; about 0:00:20 to go, "
    )
    assert re.search(r"until (\w+ \d+ \w+ )?\d\d:\d\d$", line)
    line = tell(10.0, "burn-in", 4, 0, to_go=8, sampling=False)
    assert line.endswith(
        "4 evaluations, 2.5 s each; the draws after the burn-in take about 0:00:20"
    )


def test_workers_and_what_was_known(told):
    """Replays from a store cost nothing, and tell nothing of what is to come."""
    progress, tell = told
    progress.count(4, 0.01, evaluations(0, 0.0))
    progress.count(4, 10.0, evaluations(4, 30.0))
    line = tell(10.0, "sweep 2", 8, 0, to_go=4)
    assert "8 evaluations (4 were known), 7.5 s each, 3.0 at a time; about 0:00:10 to go" in line


def test_lines_are_not_too_many(told):
    progress, tell = told
    progress.count(4, 1.0)
    assert tell(1.0, "soon", 4, 0) is None
    assert tell(1.1, "later", 4, 0) is not None
    assert tell(1.1, "soon", 4, 0) is None
    assert tell(10_000.0, "much later", 4, 0) is not None
    assert tell(59.0, "soon", 4, 0) is None, "at least once a minute"
    assert tell(2.0, "later", 4, 0) is not None


def test_duration():
    assert duration(59.6) == "0:01:00"
    assert duration(90_061) == "25:01:01"


@pytest.mark.parametrize(
    "value", [1e300, -1e300, 1e-300, 1e16, np.inf, -np.inf, np.nan, 0.0, 999.96, 0.00999]
)
def test_no_number_of_a_message_is_longer_than_a_word(value):
    """Whatever went wrong: no row of digits, no ``inf%``, no ``nan``, and no crash."""
    texts = [number(value, spec) for spec in (".0f", ".1f", "+.2f", ".3f", ".2g")]
    texts += [percent(value), duration(value), clock(value), _number(value)]
    texts += [minutes(max(0.0, value)), _cell("error", value), _cell("runs", value)]
    for text in texts:
        assert len(text) <= 30
        assert not re.search(r"\d{7}|inf%|nan|inf\b", text)


def test_speed_and_time_left_are_told_whatever_they_are(told):
    progress, tell = told
    progress.evaluations, progress.worked, progress.waited = 1, 1e300, 1e-300
    progress.busy = 1e300
    message = tell(100.0, "burn-in", 10, 0, 1000, sampling=True, iteration=1)
    assert "infinite at a time" in message
    assert "until no day that a calendar has" in message
    assert len(message) < 200
