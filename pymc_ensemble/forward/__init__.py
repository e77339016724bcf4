"""Forward models: Python functions, programs and services, evaluated in batches."""

from importlib import import_module
from typing import TYPE_CHECKING

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

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
