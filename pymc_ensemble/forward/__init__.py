"""Forward models: Python functions, programs and services, evaluated in batches."""

from pymc_ensemble.forward.evaluation import Evaluations, ForwardModelError
from pymc_ensemble.forward.executors import ExecutorError
from pymc_ensemble.forward.model import ForwardModel, forward_model
from pymc_ensemble.forward.programs import ExternalProgram
from pymc_ensemble.forward.store import EvaluationStore, StoreError, open_store

__all__ = [
    "EvaluationStore",
    "Evaluations",
    "ExecutorError",
    "ExternalProgram",
    "ForwardModel",
    "ForwardModelError",
    "StoreError",
    "forward_model",
    "open_store",
]
