"""The batch that is being evaluated, for forward models deep inside a compiled graph.

PyTensor passes only arrays to an operation, and takes only arrays back. A sampler also needs to
know which members failed, and why. A stochastic forward model needs a seed. This module passes
both.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Round:
    """One batch of points.

    Attributes
    ----------
    size : int
        Number of points.
    seed : SeedSequence or None
        Seed of the batch. Members and forward models get children of it.
    failures : dict of int to str
        Points whose evaluation failed, with the reasons.
    n_calls : int
        Evaluations that were made, without known ones.
    seconds : float
        Time of these evaluations, added up over the workers.
    n_models : int
        Applications of forward models so far.
    """

    size: int
    seed: np.random.SeedSequence | None = None
    failures: dict[int, str] = field(default_factory=dict)
    n_calls: int = 0
    seconds: float = 0.0
    n_models: int = 0


_current: ContextVar[Round | None] = ContextVar("round", default=None)
_looking_up: ContextVar[bool] = ContextVar("looking_up", default=False)


def current_round() -> Round | None:
    """Batch that is being evaluated for a sampler, if any."""
    return _current.get()


@contextmanager
def evaluating(size: int, seed: np.random.SeedSequence | None = None) -> Iterator[Round]:
    """Context in which a batch is evaluated. Forward models report to the returned round."""
    this = Round(size, seed)
    token = _current.set(this)
    try:
        yield this
    finally:
        _current.reset(token)


def looks_up() -> bool:
    """Whether the points are earlier draws that came back from PyMC's transforms."""
    return _looking_up.get()


@contextmanager
def looking_up() -> Iterator[None]:
    """Context in which earlier outputs are used, up to the rounding of transforms."""
    token = _looking_up.set(True)
    try:
        yield
    finally:
        _looking_up.reset(token)
