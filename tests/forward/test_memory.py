"""Remembered evaluations: found again by bytes, or up to rounding."""

import numpy as np
import pytest

from pymc_ensemble.forward.batch import _bytes as as_bytes
from pymc_ensemble.forward.memory import MEMORY_BYTES, Memory, Spill


def filled(points, **options):
    memory = Memory(**options)
    memory.add(as_bytes(points), points, 2 * points)
    return memory


def test_exact_and_near():
    points = np.random.default_rng(0).normal(size=(1000, 3)) * [1.0, 1e-8, 1e6]
    memory = filled(points)
    for i in (0, 17, 999):
        np.testing.assert_array_equal(memory.exact(points[i].tobytes()), 2 * points[i])
        rounded = np.nextafter(points[i], np.inf)
        assert memory.exact(rounded.tobytes()) is None
        np.testing.assert_array_equal(memory.near(rounded), 2 * points[i])
        assert memory.near(points[i] * (1 + 1e-7)) is None


def test_the_nearest_of_two_is_taken_wherever_it_is_kept():
    """Points of the tree and points that came after it was built."""
    points = np.array([[1.0], [2.0]])
    memory = filled(points)
    assert memory.near(np.array([1.0])) == 2.0  # builds the tree
    later = np.array([[1.0 + 4e-11], [3.0]])
    memory.add(as_bytes(later), later, np.array([[7.0], [8.0]]))
    assert memory.near(np.array([1.0 + 3e-11])) == 7.0
    assert memory.near(np.array([1.0 + 1e-11])) == 2.0
    assert memory.near(np.array([np.nan])) is None


def test_a_finite_difference_is_another_point():
    points = np.array([[1.0, 2.0]])
    assert filled(points).near(points[0] * (1 + 1.5e-8)) is None


def test_outliers_do_not_blur_the_others():
    """As draws from a heavy tailed prior are."""
    points = np.array([[1.0, 1e12], [1.0 + 1e-8, -3.0], [2.0, 1e-3], [1e15, 5.0]])
    memory = filled(points)
    for point in points:
        np.testing.assert_array_equal(memory.near(point * (1 + 1e-14)), 2 * point)
    assert memory.near(np.array([1.0 + 4e-9, -3.0])) is None
    assert memory.near(np.array([1.0, 1e12 + 1e5])) is None


def test_zero_that_is_not_quite_zero():
    """A difference of equal numbers, after rounding."""
    memory = filled(np.array([[0.0], [1.0], [3.0]]))
    assert memory.near(np.array([1e-16])) == 0.0
    assert memory.near(np.array([1e-6])) is None


def test_the_oldest_are_forgotten():
    memory = Memory(max_bytes=100_000)
    for k in range(30):
        points = np.arange(10.0)[:, None] + 10 * k
        memory.add(as_bytes(points), points, np.zeros((10, 100)))
    assert 50 < len(memory) <= 100
    assert memory.exact(np.array([299.0]).tobytes()) is not None
    assert memory.exact(np.array([0.0]).tobytes()) is None
    assert memory.near(np.array([299.0])) is not None
    assert memory.near(np.array([0.0])) is None
    points = np.arange(3.0)[:, None]
    memory.add(as_bytes(points), points, np.zeros((3, 100_000)))  # larger than all there is


@pytest.mark.usefixtures("monkeypatch")
def test_spilled_batches_are_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    spill = Spill("x")
    assert spill.read() == []
    spill.write(np.ones((2, 3)), np.zeros((2, 4)))
    spill.write(np.full((1, 3), 2.0), np.zeros((1, 4)))
    [(first, outputs), (second, _)] = spill.read()
    assert (first == 1).all()
    assert outputs.shape == (2, 4)
    assert (second == 2).all()
    assert spill.read() == []
    spill.write(np.zeros((1, MEMORY_BYTES // 8)), np.zeros((1, 1)))
    assert spill.read() == [], "there is a limit"
    [file] = spill.folder.iterdir()
    with file.open("ab") as stream:  # a process that was killed while it wrote
        stream.write(b"\x93NUMPY\x01")
    assert spill.read() == []
