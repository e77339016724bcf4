"""Forward models: batches of evaluations in which one member may fail."""

from pymc_ensemble.forward.evaluation import Evaluations

__all__ = ["Evaluations"]
