"""Learning of the law of a noisy map, on arrays."""

import numpy as np
from array_problems import GaussianProblem, step

from pymc_ensemble.samplers.informed.averaged import AveragedLaw


def test_rounds_with_hardly_a_success_count():
    """All evaluations but one fail, once learning has begun: it ends all the same, and says so."""
    rng = np.random.default_rng(1)
    problem = GaussianProblem(lambda U: 30 * U, np.zeros(2), np.zeros(2), np.eye(2))
    sampler = AveragedLaw(problem, round_size=20, max_rounds=4)
    state = sampler.start(problem.sample_prior(20, rng), redraw=True)
    state, _ = step(sampler, problem, state, rng)
    problem.fails = lambda U: np.arange(len(U)) > 0
    for _ in range(4):
        assert not state.burned_in
        state, _ = step(sampler, problem, state, rng)
    assert state.burned_in
    assert not state.converged
