"""Operations from outside that PyTensor can vectorize: one call a round."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.graph.replace import _vectorize_node

import pymc_ensemble as pe

TIMES = np.arange(4.0)


def decay(theta):
    if np.any(theta[..., 0] > 2.5):
        raise ValueError("too large")
    return theta[..., :1] * np.exp(-theta[..., 1:2] * TIMES)


class Decay(Op):
    """Takes a vector, or any number of them."""

    __props__ = ()

    def __init__(self):
        self.sizes = []

    def make_node(self, theta):
        theta = pt.as_tensor(theta)
        lead = theta.type.shape[:-1]
        return Apply(self, [theta], [pt.tensor(dtype="float64", shape=(*lead, 4))])

    def perform(self, node, inputs, storage):
        self.sizes.append(inputs[0].shape[:-1])
        storage[0][0] = decay(inputs[0])


class OneVector(Decay):
    """Takes a vector only."""

    def make_node(self, theta):
        theta = pt.as_tensor(theta)
        if theta.type.ndim != 1:
            raise TypeError("one vector, please")
        return super().make_node(theta)


class Registered(Decay):
    pass


@_vectorize_node.register(Registered)
def _vectorize_registered(op, node, theta):
    return op.make_node(theta)


class Signed(Decay):
    gufunc_signature = "(d)->(k)"


class SignedForOneVector(OneVector):
    gufunc_signature = "(d)->(k)"


class OneVectorRegistered(OneVector):
    """Vectorized by another operation."""


@_vectorize_node.register(OneVectorRegistered)
def _vectorize_by_another(op, node, theta):
    other = Decay()
    other.sizes = op.sizes
    return other.make_node(theta)


def problem_of(op, extra=None):
    with pm.Model():
        theta = pm.Normal("theta", shape=2)
        mu = op(theta) if extra is None else op(theta) + extra(theta)
        pm.Normal("y", mu, 0.1, observed=np.zeros(4))
        return pe.InverseProblem.from_model()


U = np.random.default_rng(1).normal(size=(7, 2))


@pytest.mark.parametrize("cls", [Registered, Signed, OneVectorRegistered])
def test_one_call_a_round(cls):
    op = cls()
    problem = problem_of(op)
    for _ in range(3):
        evaluations = problem.evaluate(U)
        np.testing.assert_allclose(evaluations.outputs, decay(U), rtol=1e-14)
    assert op.sizes == [(7,)] * 3


@pytest.mark.parametrize("cls", [Registered, Signed])
def test_one_call_a_round_beside_a_forward_model(cls):
    op, calls = cls(), []

    def simulate(theta):
        calls.append(theta)
        return theta.sum() * np.ones(4)

    problem = problem_of(op, pe.forward_model(simulate, output_shape=(4,)))
    evaluations = problem.evaluate(U)
    np.testing.assert_allclose(evaluations.outputs, decay(U) + U.sum(1)[:, None], rtol=1e-14)
    assert op.sizes == [(7,)]
    assert len(calls) == 7


@pytest.mark.parametrize("cls", [Decay, OneVector, SignedForOneVector])
def test_others_are_called_point_by_point(cls):
    op = cls()
    np.testing.assert_allclose(problem_of(op).evaluate(U).outputs, decay(U), rtol=1e-14)
    assert op.sizes == [()] * 7


@pytest.mark.parametrize("cls", [Registered, Signed, SignedForOneVector])
def test_a_member_that_raises_fails_alone(cls):
    points = np.vstack([U, [[3.0, 1.0]]])
    evaluations = problem_of(cls()).evaluate(points)
    np.testing.assert_array_equal(evaluations.failed, [False] * 7 + [True])
    assert "too large" in dict(evaluations.errors)[7]
    np.testing.assert_allclose(evaluations.outputs[:7], decay(U), rtol=1e-14)
