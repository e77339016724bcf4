"""Log messages about a forward model: its changes, its store, and failed evaluations."""

import logging
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .batch import Batch
from .store import EvaluationStore
from .tasks import Outcomes, Signature

logger = logging.getLogger("pymc_ensemble")


def _first(warned: set[str], what: str) -> bool:
    """Whether `what` is told for the first time. From now on it counts as told."""
    new = what not in warned
    warned.add(what)
    return new


def of_difference(name: str, path: str) -> str:
    """Say what differs between this process and the one that samples."""
    return (
        f"`{path}` is not the same in this process as in the one that samples: modules "
        "were imported anew, and are as their files say. Change such settings before the model "
        f"is built where all processes see it, hand them to {name} as arguments, or use "
        "`pm.sample(cores=1)`."
    )


def warn_of_untold(name: str, untold: Mapping[str, str], warned: set[str]) -> None:
    """Tell, once, of a value whose changes cannot be detected."""
    if _first(warned, "untold"):
        path, what = next(iter(untold.items()))
        logger.warning(
            f"Changes of {name} cannot be detected: it uses `{path}`, which is {what}. If you "
            f"change that, call `{name}.forget()`, so that no earlier outputs are used. Give "
            "`version` to silence this."
        )


def tell_of_change(name: str, changed: Sequence[str], executor: Any) -> None:
    """Tell that a function has changed, and that workers may not know it."""
    first = min(changed)
    logger.info(
        f"{name} has changed (`{first}`): earlier evaluations are not used, and workers start anew."
    )
    if not isinstance(executor, Executor) or isinstance(executor, ThreadPoolExecutor):
        return
    modules = [module for module in sys.modules if module != "__main__" and module in first]
    if any(first.startswith(f"{module}.") for module in modules):
        logger.warning(
            f"`{first}` has changed since {name} was last used. The workers of your "
            f"{type(executor).__name__} import modules themselves, and may have the earlier "
            "version. Start the workers anew, or pass this to the function as an argument."
        )


def tell_of_store(name: str, store: EvaluationStore) -> None:
    """Tell how many evaluations a store has, of this version and of others."""
    ours, others = store.count()
    if ours:
        known = "1 evaluation of" if ours == 1 else f"{ours} evaluations of"
        logger.info(f"{store.path} holds {known} {name}, which are not made again.")
    elif others:
        logger.warning(
            f"The {others} evaluations of {name} in {store.path} come from other versions of the "
            f"model, and are not used. This version is {store.version!r}."
        )


def warn_of_lost(name: str, outcomes: Outcomes, warned: set[str]) -> None:
    """Tell, once, of members that took too long or killed their worker."""
    for row, reason in outcomes.reasons.items():
        status = outcomes.statuses[row]
        if status in ("timeout", "died") and _first(warned, status):
            logger.warning(f"An evaluation of {name} was lost. {reason}")


def warn_of_failure(name: str, batch: Batch, warned: set[str]) -> None:
    """Tell of the first failure that no sampler reports."""
    if not _first(warned, "failure"):
        return
    row = min(batch.reasons)
    where = inputs(batch.signature, batch.points[row])
    logger.warning(
        f"The forward model {name} failed, and gives NaN, at {where}\n{batch.reasons[row]}\nLater "
        "failures are not reported one by one."
    )


def inputs(signature: Signature, point: NDArray[np.float64]) -> str:
    """Inputs of a call, by name."""
    with np.printoptions(precision=4, threshold=20):
        values = zip(signature.varying, signature.split(point[None]), strict=True)
        return ", ".join(f"{signature.names[i]}={value[0]}" for i, value in values)
