"""Pictures of ensembles that ArviZ does not have: Axes in, Axes out.

Each function draws into the Axes that you pass, or into those of a new figure. It returns the Axes.
"""

from pymc_ensemble.plots.judging import coverage, outputs, weights
from pymc_ensemble.plots.sweeps import misfit, path, spread

__all__ = ["coverage", "misfit", "outputs", "path", "spread", "weights"]
