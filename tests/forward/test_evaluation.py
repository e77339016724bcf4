"""Batches of evaluations in which one member may fail."""

import numpy as np
import pytest

from pymc_ensemble.forward.evaluation import Evaluations, evaluate_batch, evaluate_rows

POINTS = np.arange(6.0).reshape(3, 2)


def test_rows_that_are_not_finite_have_failed():
    outputs = np.array([[1.0, 2.0], [np.nan, 1.0], [0.0, -np.inf]])
    evaluations = Evaluations.from_outputs(outputs)
    np.testing.assert_array_equal(evaluations.failed, [False, True, True])
    assert np.isnan(evaluations.outputs[1:]).all()
    assert [row for row, _ in evaluations.errors] == [1, 2]
    assert "output 1: -inf" in evaluations.errors[1][1]
    assert np.isinf(outputs[2, 1]), "the array handed over is not changed"


def test_member_by_member():
    calls = []

    def function(point):
        calls.append(point)
        if point[0] == 2:
            raise ZeroDivisionError("no luck")
        return point if point[0] else np.ones(3)

    evaluations = evaluate_rows(function, POINTS, 2)
    assert len(calls) == 3
    np.testing.assert_array_equal(evaluations.failed, [True, True, False])
    np.testing.assert_array_equal(evaluations.outputs[2], POINTS[2])
    reasons = dict(evaluations.errors)
    assert "shape (3,), expected (2,)" in reasons[0]
    assert reasons[1].endswith("ZeroDivisionError: no luck")


def test_batch_finds_the_culprit():
    def function(points):
        if np.any(points == 2):
            raise ValueError("two")
        return points

    evaluations = evaluate_batch(function, POINTS, 2)
    np.testing.assert_array_equal(evaluations.failed, [False, True, False])
    evaluations = evaluate_batch(lambda points: points[:, :1], POINTS, 2)
    assert evaluations.failed.all()


def test_batch_that_spoils_its_points_before_it_fails():
    def function(points):
        points += 1
        if len(points) > 1:
            raise ValueError("one by one, please")
        return points

    evaluations = evaluate_batch(function, POINTS.copy(), 2)
    np.testing.assert_array_equal(evaluations.outputs, POINTS + 1)


@pytest.mark.parametrize("evaluate", [evaluate_rows, evaluate_batch])
def test_interrupts_pass(evaluate):
    def function(points):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(function, POINTS, 2)


def test_no_points():
    assert evaluate_rows(lambda u: u, np.empty((0, 2)), 2).outputs.shape == (0, 2)
