"""Loops that advance all points of a batch together, against the loop of one point."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.traversal import ancestors
from pytensor.scan.op import Scan
from pytensor.scan.utils import until
from pytensor.tensor.blockwise import Blockwise

from pymc_ensemble.problem.batching import BatchFunction, vectorized


def scan(*arguments, **options):
    return pytensor.scan(*arguments, return_updates=False, **options)


def one_state(u):
    return scan(lambda x, a: a * x + 1, outputs_info=[u[0]], non_sequences=[u[1]], n_steps=4)


def start_that_is_data(u):
    start = pt.constant([1.0, 2.0])
    return scan(lambda x, a: a * x, outputs_info=[start], non_sequences=[u[1]], n_steps=3)[1:]


def two_taps(u):
    start = pt.stack([u[0], u[1]])
    return scan(
        lambda x2, x1, b: b * x1 - 0.5 * x2,
        outputs_info=[{"initial": start, "taps": [-2, -1]}],
        non_sequences=[u[2]],
        n_steps=5,
    )


def data_as_sequence(u):
    return scan(lambda t, a, b: a * t + b, sequences=[pt.arange(5.0)], non_sequences=[u[0], u[1]])


def unknowns_as_sequence(u):
    return scan(lambda v, s: s + v**2, sequences=[u], outputs_info=[pt.zeros(())])[-1]


def state_and_output(u):
    states, squares = scan(
        lambda x, a: [a * x, x**2 + a], outputs_info=[u[0], None], non_sequences=[u[1]], n_steps=4
    )
    return pt.concatenate([states, squares])


def output_without_unknowns(u):
    states, times = scan(
        lambda t, x: [x + t, 2 * t], sequences=[pt.arange(3.0)], outputs_info=[u[0], None]
    )
    return states * times


def loop_in_a_loop(u):
    def outer(x, a):
        inner = scan(lambda y, b: b * y + 0.1, outputs_info=[x], non_sequences=[a], n_steps=2)
        return inner[-1]

    return scan(outer, outputs_info=[u[0]], non_sequences=[u[1]], n_steps=3)


def one_loop_after_the_other(u):
    return one_state(pt.stack([one_state(u)[-1], u[2]]))


LOOPS = [
    one_state,
    start_that_is_data,
    two_taps,
    data_as_sequence,
    unknowns_as_sequence,
    state_and_output,
    output_without_unknowns,
    loop_in_a_loop,
    one_loop_after_the_other,
]


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_all_points_at_once_or_one_by_one(loop):
    u = pt.vector("u", shape=(3,))
    output = loop(u)
    _, results = vectorized([u], [output])
    operations = [v.owner.op for v in ancestors(results) if v.owner]
    assert any(isinstance(op, Scan) for op in operations)
    assert not any(isinstance(op, Blockwise) and isinstance(op.core_op, Scan) for op in operations)
    points = np.random.default_rng(1).uniform(0.2, 0.9, (6, 3))
    function = BatchFunction([u], [output])
    [batch] = function(points)
    assert function._all is not None
    np.testing.assert_allclose(batch, [function.one(p)[0] for p in points], rtol=1e-13)


def test_a_loop_that_ends_at_a_condition_runs_point_by_point():
    u = pt.vector("u", shape=(3,))

    def step(x, a):
        return a * x, until(x < 0.1)

    output = scan(step, outputs_info=[u[0]], non_sequences=[u[1]], n_steps=50)[-1]
    with pytest.raises(NotImplementedError, match="fixed length"):
        vectorized([u], [output])
    points = np.random.default_rng(2).uniform(0.2, 0.9, (6, 3))
    function = BatchFunction([u], [output])
    [batch] = function(points)
    np.testing.assert_allclose(batch, [function.one(p)[0] for p in points])
