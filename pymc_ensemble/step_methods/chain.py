"""Memory of a step method about its chain."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pymc_ensemble.diagnosis.facts import Facts
from pymc_ensemble.diagnosis.fountain import Fountain
from pymc_ensemble.problem.driver import Account

from .draws import Block

FloatArray = NDArray[np.float64]


@dataclass
class Chain(Account):
    """Memory of a chain between calls, with an account of its forward evaluations.

    Attributes
    ----------
    tune, draws : int
        Announced number of tuning calls, and of draws after them.
    state : object or None
        State of the sampler.
    converged : bool
        Whether the burn-in has passed its test.
    iterations, sweeps : int
        Completed iterations of the burn-in, completed sweeps after it.
    block : Block or None
        Finished draws that `step` returns one by one.
    position : int
        Number of draws already returned: of this block, or in the tuning phase.
    sampling : bool
        Whether adaptation has ended.
    interrupted : float or None
        Time of the interrupt after which the chain ends with this block.
    seen : list of tuple
        Particles of the burn-in, shape (n, d), and their log densities.
    n_shared : int
        Those of the forward evaluations that were made for all chains.
    waits : int
        Iterations of the burn-in that are left to other step methods.
    facts : Facts or None
        Facts declared about the draws.
    made_by : Fountain or None
        The same facts in packets.
    """

    tune: int = 0
    draws: int = 0
    state: Any = None
    converged: bool = False
    iterations: int = 0
    sweeps: int = 0
    block: Block | None = None
    position: int = 0
    sampling: bool = False
    interrupted: float | None = None
    seen: list[tuple[FloatArray, FloatArray]] = field(default_factory=list)
    n_shared: int = 0
    waits: int = 0
    facts: Facts | None = None
    made_by: Fountain | None = None

    def __eq__(self, other: object) -> bool:
        return equal(self, other)


def equal(one: Any, other: Any) -> bool:
    """Whether two states are equal. They may contain arrays and NaN."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other, equal_nan=one.dtype.kind in "fc"))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, np.random.Generator):
        return equal(one.bit_generator.state, other.bit_generator.state)
    if hasattr(one, "__dict__"):
        return equal(vars(one), vars(other))
    return bool(one == other or (one != one and other != other))
