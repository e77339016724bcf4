"""Likelihood-informed sampler: learn the law of the posterior, then correct it by exact moves."""

from dataclasses import dataclass, replace
from functools import cached_property

from pymc_ensemble.samplers.ensemble import (
    EnsembleFailure,
    Origin,
    has_forward_map,
)
from pymc_ensemble.samplers.options import require_counts
from pymc_ensemble.samplers.phases import PhaseState
from pymc_ensemble.samplers.words import number

from .learning import LawLearning, TrialState
from .linearized import LinearizedPosterior
from .mode import SMALLEST_ROUND, SlopeLearning
from .search import SearchState
from .walk import InformedWalk, WalkState


@dataclass(frozen=True)
class LikelihoodInformed(SlopeLearning):
    """Sampler for problems with many parameters, a nearly Gaussian prior, and any loss.

    Parameters
    ----------
    problem, round_size, max_rounds
        See `SlopeLearning`.
    walkers : int, default 50
        Walkers M, which are moved together.
    tolerance : float, default 0.05
        Fall of the potential that may remain when the walkers start.
    unresolved : float, default 0.1
        Information along draws of the law that may be unknown at that time.
    """

    walkers: int = 50
    tolerance: float = 0.05
    unresolved: float = 0.1

    def __post_init__(self) -> None:
        """Refuse wrong sizes, and a problem without outputs."""
        require_counts(4, walkers=self.walkers)  # one half needs two partners in the other
        require_counts(SMALLEST_ROUND, round_size=self.round_size)
        require_counts(1, max_rounds=self.max_rounds)
        if not has_forward_map(self.problem):
            raise EnsembleFailure("The model has no forward map, so there is no slope to learn.")

    @property
    def size(self) -> int:
        """Number of walkers."""
        return self.walkers

    @cached_property
    def burn_in(self) -> LawLearning:
        """Search for the mode, during which the law is learned, and trials of the law."""
        search = self.search(self.tolerance, self.unresolved)
        return LawLearning(self.problem, search, self.learned, self.round_size)

    @cached_property
    def kernel(self) -> InformedWalk:
        """Exact walk with the learned law."""
        return InformedWalk(self.problem)

    def burns_in(self, state: PhaseState) -> bool:
        """True: the law must be learned, wherever the positions come from."""
        return True

    def begin_burn_in(self, state: PhaseState) -> SearchState:
        """State of the search."""
        return self.burn_in.start(state.evaluated)

    def begin(self, state: PhaseState) -> WalkState:
        """Walkers that start from the law."""
        learned = state.inner
        if isinstance(learned, SearchState):
            target = self.learned(learned)
            return self.kernel.start(target, self.walkers, learned.found, learned.drawn)
        assert isinstance(learned, TrialState)
        search = learned.search
        walk = self.kernel.start(learned.target, self.walkers, search.found, search.drawn)
        return replace(walk, law_weights=learned.law_weights)

    def set_out(self, state: PhaseState) -> PhaseState:
        """Walkers that start with what is known, even if learning was cut short."""
        if state.phase == "start":
            state = self._enter("burn-in", state, self.begin_burn_in(state))
        return self._enter("settling", state, self.begin(state))

    def told(self, state: PhaseState) -> str:
        """What was learned, in words."""
        walk = state.inner
        assert isinstance(walk, WalkState)
        law, d = walk.target.law, self.problem.dimension
        told = (
            f"the data inform {len(law.informed)} of {d} directions more than the prior does, and "
            f"determine {number(law.degrees, '.3g')} degrees of freedom."
        )
        if (curvature := walk.target.curvature) is not None:
            told += (
                f" Of draws of the law alone {curvature.law_acceptance:.0%} would be accepted: "
                "curvature of the outputs was learned, too, from "
                f"{len(curvature.sites)} evaluations."
            )
        return told

    def learned(self, search: SearchState) -> LinearizedPosterior:
        """Posterior of the outputs, linearized at the end of the search."""
        law = self.burn_in.search.law(search)
        step = law.newton_step(self.burn_in.search.gradient(search), 0.0)
        outputs, slope = search.ensemble.Z[0], search.tracker.slope
        line = LinearizedPosterior.of(self.problem, self.reference, law, outputs, slope, step)
        return line.having_seen(search.drawn).having_seen(search.ensemble)

    def origin(self, state: PhaseState) -> Origin:
        """What the draws follow: the density of the model."""
        walk, told = state.inner, list[float | None]([None, None])
        if isinstance(walk, WalkState):
            told = [walk.law_acceptance(self.problem), walk.reached]
        acceptance, reached = (None if a is None else float(f"{a:.2g}") for a in told)
        return Origin(
            "density", adjusted=True, learned=True, law_acceptance=acceptance, reached=reached
        )
