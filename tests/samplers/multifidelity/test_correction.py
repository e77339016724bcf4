"""What is learned of a difference of outputs."""

import numpy as np
import pytest

import pymc_ensemble as pe
from pymc_ensemble.samplers.ensemble import Ensemble
from pymc_ensemble.samplers.multifidelity.correction import Correction, Outputs, corrected


def learned(forward, cheap, noise, n=12, d=3, seed=1):
    """Correction from n draws of a standard normal law, and 200 more of them."""
    rng = np.random.default_rng(seed)
    k = forward(np.zeros((1, d))).shape[1]
    problem = pe.InverseProblem(
        forward, prior=(np.zeros(d), np.eye(d)), data=np.zeros(k), noise=noise, vectorized=True
    )
    U, particles = rng.standard_normal((n, d)), rng.standard_normal((200, d))
    known = Ensemble.evaluated(problem, U, problem.evaluate(U))
    return Correction.of(problem, known, cheap(U), particles, rng), particles


def test_no_difference_is_none():
    def forward(U):
        return np.sin(U)

    correction, U = learned(forward, forward, 0.1)
    assert correction.processes == ()
    np.testing.assert_array_equal(correction(U), 0.0)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_linear_difference_is_known_from_a_few_points(seed):
    """Also where it is a hundred times the noise: its error stays well below that."""
    A = np.random.default_rng(7).standard_normal((5, 3))

    def forward(U):
        return np.sin(U @ A.T)

    def cheap(U):
        return forward(U) - 10 * U @ A.T - 3

    correction, U = learned(forward, cheap, 0.1, seed=seed)
    error = correction(U) - (forward(U) - cheap(U))
    assert np.abs(error).max() < 0.1 * 0.1


def test_units_are_those_of_the_noise():
    """Of two differences the one that the noise hides is left out."""

    def forward(U):
        return np.column_stack([U[:, 0], 0.01 * U[:, 1] ** 2])

    correction, U = learned(forward, np.zeros_like, np.array([0.1, 1000.0]), d=2)
    assert len(correction.processes) == 1
    np.testing.assert_allclose(correction(U)[:, 0], U[:, 0], atol=0.01)


def test_what_fails_stays_failed():
    correction, U = learned(np.sin, np.cos, 0.1)
    cheap = Outputs(np.full((200, 3), np.nan), np.ones(200, dtype=bool))
    assert corrected(correction, U, cheap).failed.all()
    assert np.isnan(corrected(correction, U, cheap).outputs).all()
    assert corrected(None, U, cheap) is cheap
