"""The search for the mode as a sampler without draws: start, then the search itself."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pymc_ensemble.samplers.ensemble import Origin, Problem
from pymc_ensemble.samplers.options import require_counts
from pymc_ensemble.samplers.phases import PhasedSampler, PhaseState

from .reference import GaussianReference, reference_of
from .search import SearchState, TrackedSearch

SMALLEST_ROUND = 20  # trials, and some directions


@dataclass(frozen=True)
class SlopeLearning(PhasedSampler):
    """Base of samplers that learn the slope of the forward map from rounds of evaluations.

    Parameters
    ----------
    problem : InverseProblem
        Its forward map is deterministic.
    round_size : int, default 50
        Evaluations of a round.
    max_rounds : int, default 100
        Rounds after which learning ends in any case.
    """

    problem: Problem
    round_size: int = 50
    max_rounds: int = 100

    @property
    def start_size(self) -> int:
        """Number of initial positions."""
        return self.round_size

    @property
    def min_members(self) -> int:
        """Fewest members for a first slope: one has no difference."""
        return 2

    @property
    def has_to_span(self) -> bool:
        """False: an ensemble may be smaller than the dimension."""
        return False

    @cached_property
    def reference(self) -> GaussianReference:
        """Gaussian reference of the prior."""
        return reference_of(self.problem, np.random.default_rng(0))

    def search(self, tolerance: float, unresolved: float = np.inf) -> TrackedSearch:
        """Search for the mode that learns the slope."""
        return TrackedSearch(
            self.problem, self.reference, self.round_size, tolerance, unresolved, self.max_rounds
        )


@dataclass(frozen=True)
class ModeSearch(SlopeLearning):
    """Gauss-Newton search with a slope that is learned on the way.

    Parameters
    ----------
    problem, round_size, max_rounds
        See `SlopeLearning`.
    tolerance : float, default 1e-4
        Fall of the potential that may remain at the end.
    from_first : bool, default False
        Whether the search begins at the first of the positions, instead of the best.
    """

    tolerance: float = 1e-4
    from_first: bool = False

    def __post_init__(self) -> None:
        """Refuse wrong sizes."""
        require_counts(SMALLEST_ROUND, ensemble_size=self.round_size)
        require_counts(1, maxiter=self.max_rounds)

    @property
    def size(self) -> int:
        """Number of initial positions."""
        return self.round_size

    @cached_property
    def kernel(self) -> TrackedSearch:
        """The search."""
        return self.search(self.tolerance)

    def begin(self, state: PhaseState) -> SearchState:
        """State of the search."""
        return self.kernel.start(state.evaluated, 0 if self.from_first else None)

    def origin(self, state: PhaseState) -> Origin:
        """What draws would follow, if the mode was a draw."""
        return Origin("approximate")
