"""A PyMC model, or a few plain functions, as an inverse problem."""

from pymc_ensemble.problem.inverse_problem import InverseProblem, problem_of
from pymc_ensemble.problem.noise import CholeskyNoise, LowRankNoise

__all__ = ["CholeskyNoise", "InverseProblem", "LowRankNoise", "problem_of"]
