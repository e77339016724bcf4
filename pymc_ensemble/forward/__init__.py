"""Forward models: Python functions, programs and services, evaluated in batches."""

from pymc_ensemble.forward.evaluation import Evaluations, ForwardModelError
from pymc_ensemble.forward.model import ForwardModel, forward_model
from pymc_ensemble.forward.programs import ExternalProgram
from pymc_ensemble.forward.store import EvaluationStore, StoreError, open_store
from pymc_ensemble.forward.umbridge import UMBridgeModel
from pymc_ensemble.forward.workers.chunks import ExecutorError

__all__ = [
    "EvaluationStore",
    "Evaluations",
    "ExecutorError",
    "ExternalProgram",
    "ForwardModel",
    "ForwardModelError",
    "StoreError",
    "UMBridgeModel",
    "forward_model",
    "open_store",
]
