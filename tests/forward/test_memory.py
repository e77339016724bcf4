"""Remembered evaluations: found again by bytes, or up to the rounding of each input."""

import numpy as np
import pytest

from pymc_ensemble.forward.batch import as_bytes
from pymc_ensemble.forward.memory import MEMORY_BYTES, Memory, Spill
from pymc_ensemble.forward.rounding import Rounding


def filled(points, drawn=True, **options):
    memory = Memory(**options)
    memory.add(as_bytes(points), points, 2 * points, drawn)
    return memory


def relative(d, tolerance=1e-13):
    return Rounding(np.full(d, tolerance), np.zeros(d))


def test_exact_and_near():
    points = np.random.default_rng(0).normal(size=(1000, 3)) * [1.0, 1e-8, 1e6]
    memory = filled(points)
    for i in (0, 17, 999):
        np.testing.assert_array_equal(memory.exact(points[i].tobytes()), 2 * points[i])
        rounded = np.nextafter(points[i], np.inf)
        assert memory.exact(rounded.tobytes()) is None
        np.testing.assert_array_equal(memory.near(rounded, relative(3)), 2 * points[i])
        assert memory.near(points[i] * (1 + 1e-12), relative(3)) is None


@pytest.mark.parametrize("n", [1, 3000])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([2459000.512345], [2459000.512345 + 1e-6]),
        ([1e-14], [5e-14]),
        ([1e-300, 1.0], [3e-300, 1.0]),
        ([1.0, 2459000.5], [1.0, 2459000.500001]),
        ([0.0], [1e-16]),
        ([-1e-9, 1e9], [1e-9, 1e9]),
    ],
)
def test_another_point_is_another_point(one, other, n):
    """Whatever the other inputs, and the other points, are: beside a few, or thousands."""
    one, other = np.array(one), np.array(other)
    crowd = 10.0 ** np.random.default_rng(1).uniform(-14, 12, size=(n, len(one)))
    memory = filled(np.vstack([crowd, one]))
    np.testing.assert_array_equal(memory.near(one, relative(len(one))), 2 * one)
    assert memory.near(other, relative(len(one))) is None


def test_only_what_was_drawn_is_found_near():
    points = np.array([[1.0], [2.0]])
    memory = filled(points, drawn=False)
    assert memory.near(points[0], relative(1)) is None
    assert memory.exact(points[:1].tobytes()) == 2.0


def test_an_input_that_cannot_move_has_to_be_the_very_number():
    memory = filled(np.array([[1.0, 5.0]]))
    rounding = Rounding(np.array([1e-13, 0.0]), np.zeros(2))
    assert memory.near(np.array([np.nextafter(1.0, 2.0), 5.0]), rounding) is not None
    assert memory.near(np.array([1.0, np.nextafter(5.0, 6.0)]), rounding) is None


def test_absolute_and_joint_tolerances():
    """An interval loses digits relative to its bounds; a sum relative to its largest term."""
    point = np.array([1e-9, 1e-9, 1e3])
    memory = filled(point[None])
    moved = point + np.array([1e-13, 1e-11, 0.0])
    assert memory.near(moved, relative(3)) is None
    joint = Rounding(np.full(3, 1e-13), np.array([1e-12, 0.0, 0.0]), [slice(1, 3)])
    np.testing.assert_array_equal(joint.at(point), [1e-12 + 1e-22, 1e-10, 1e-10])
    np.testing.assert_array_equal(memory.near(moved, joint), 2 * point)


def test_the_nearest_of_two_is_taken_wherever_it_is_kept():
    """Points that are sorted, and points that came after."""
    memory = filled(np.arange(1.0, 400.0)[:, None])
    assert memory.near(np.array([1.0]), relative(1)) == 2.0  # sorts them
    later = np.array([[1.0 + 4e-14], [3.5]])
    memory.add(as_bytes(later), later, np.array([[7.0], [8.0]]), True)
    assert memory.near(np.array([1.0 + 3e-14]), relative(1)) == 7.0
    assert memory.near(np.array([1.0 + 1e-14]), relative(1)) == 2.0
    assert memory.near(np.array([np.nan]), relative(1)) is None


def test_the_oldest_are_forgotten():
    memory = Memory(max_bytes=100_000)
    for k in range(30):
        points = np.arange(10.0)[:, None] + 10 * k
        memory.add(as_bytes(points), points, np.zeros((10, 100)), True)
    assert 50 < len(memory) <= 100
    assert memory.exact(np.array([299.0]).tobytes()) is not None
    assert memory.exact(np.array([0.0]).tobytes()) is None
    assert memory.near(np.array([299.0]), relative(1)) is not None
    assert memory.near(np.array([0.0]), relative(1)) is None
    points = np.arange(3.0)[:, None]
    memory.add(as_bytes(points), points, np.zeros((3, 100_000)))  # larger than all there is


def test_points_without_inputs():
    points = np.empty((1, 0))
    memory = Memory()
    memory.add(as_bytes(points), points, np.ones((1, 2)), True)
    np.testing.assert_array_equal(memory.near(points[0], relative(0)), [1.0, 1.0])


def test_spilled_batches_are_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    spill = Spill("x")
    assert spill.read() == []
    spill.write("a", np.ones((2, 3)), np.zeros((2, 4)), True)
    spill.write("b", np.full((1, 3), 2.0), np.zeros((1, 4)), False)
    [(site, first, outputs, drawn), (other, second, _, foreign)] = spill.read()
    assert (site, other, drawn, foreign) == ("a", "b", True, False)
    assert (first == 1).all()
    assert outputs.shape == (2, 4)
    assert (second == 2).all()
    assert spill.read() == []
    spill.write("a", np.zeros((1, MEMORY_BYTES // 8)), np.zeros((1, 1)), True)
    assert spill.read() == [], "there is a limit"
    [file] = spill.folder.iterdir()
    with file.open("ab") as stream:  # a process that was killed while it wrote
        stream.write(b"\x93NUMPY\x01")
    assert spill.read() == []
    spill.forget()
    assert not spill.folder.exists()
