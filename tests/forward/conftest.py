"""A file for the calls of a forward model."""

import pytest
from misbehaving import Log


@pytest.fixture
def log(tmp_path):
    return Log(tmp_path / "calls.log")


@pytest.fixture(autouse=True)
def _no_bytecode(monkeypatch):
    """Tests rewrite modules at once and to the same length: Python would load stale bytecode."""
    monkeypatch.setattr("sys.dont_write_bytecode", True)
