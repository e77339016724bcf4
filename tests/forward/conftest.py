"""A file for the calls of a forward model."""

import pytest
from misbehaving import Log


@pytest.fixture
def log(tmp_path):
    return Log(tmp_path / "calls.log")
