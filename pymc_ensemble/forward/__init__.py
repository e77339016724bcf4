"""Forward models: Python functions, programs and services, evaluated in batches."""

from typing import TYPE_CHECKING

from pymc_ensemble.first_use import on_first_use

if TYPE_CHECKING:
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

# A name is loaded on its first use: a worker process needs modules of this folder, but not PyMC.
_HOMES = {
    "EvaluationStore": "store",
    "Evaluations": "evaluation",
    "ExecutorError": "workers.chunks",
    "ExternalProgram": "programs",
    "ForwardModel": "model",
    "ForwardModelError": "evaluation",
    "StoreError": "store",
    "UMBridgeModel": "umbridge",
    "forward_model": "model",
    "open_store": "store",
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = on_first_use(__name__, _HOMES)
