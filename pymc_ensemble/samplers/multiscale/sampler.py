"""Multiscale derivative-free sampler: walkers, each with a cloud of explorers that guides it.

As step size and distance of the explorers shrink, the law of a walker tends to the exact posterior.
A pilot ensemble finds where the walkers start and how large their steps may be.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from pymc_ensemble.samplers.ensemble import (
    Array,
    Evaluations,
    Info,
    Origin,
    Snapshot,
    has_forward_map,
)
from pymc_ensemble.samplers.examination import Examination
from pymc_ensemble.samplers.options import require_one_target
from pymc_ensemble.samplers.phases import PhaseState

from .pilot import Pilot
from .pilot_run import PilotState
from .walker_sampler import MultiscaleState, WalkerSampler
from .warm_up import WarmUpState


@dataclass(frozen=True)
class Multiscale(WalkerSampler):
    """Multiscale derivative-free sampler with its pilot and the choice of its step size.

    Parameters
    ----------
    problem : Problem
        Problem. Its forward map is never called from here.
    directions : int, optional
        Explorers J of each walker, by default d.
    sigma : float, optional
        Distance of the explorers in units of the preconditioner: 1e-3 by default, 3 for rough maps.
    delta : float, default 0.0
        Relaxation time scale of the explorers' directions; 0 draws new ones in every step.
    step_size : float, optional
        Step size. By default it follows from the measured stiffness.
    preconditioner : "ensemble", None or array_like of shape (d, d), default "ensemble"
        Covariance of a pilot ensemble, none, or a matrix.
    walkers : int, default 1
        Walkers M that share the batches.
    rough : bool or None, default False
        Average out fluctuations of the forward map.
    central : bool, optional
        Whether explorers come in opposite pairs; by default for rough maps.
    adjust : bool or None, default False
        Metropolis-adjusted steps: exact for deterministic forward maps. If `adjust` and `rough` are
        None, the pilot examines the map and decides between them.

    Raises
    ------
    ValueError
        If options contradict one another.

    Examples
    --------
    >>> import numpy as np
    >>> import pymc_ensemble as pe
    >>> from pymc_ensemble.samplers.multiscale.sampler import Multiscale
    >>> problem = pe.InverseProblem(
    ...     lambda u: u**2, prior=(np.zeros(1), np.eye(1)), data=np.ones(1), noise=0.5
    ... )
    >>> sampler, rng = Multiscale(problem, walkers=10), np.random.default_rng(1)
    >>> state = sampler.start(problem.sample_prior(sampler.start_size, rng), redraw=True)
    >>> while not state.burned_in:
    ...     points, pending = sampler.ask(state, rng)
    ...     state, info = sampler.tell(state, pending, problem.evaluate(points))
    >>> state.converged
    True
    """

    rough: bool | None = False  # type: ignore[assignment]
    adjust: bool | None = False  # type: ignore[misc, assignment]
    examines: bool = False  # type: ignore[misc]
    """Whether the pilot examines the forward map."""

    def __post_init__(self) -> None:
        """Refuse contradicting options."""
        if self.adjust is None and self.rough is None and not self.finds_out:
            object.__setattr__(self, "adjust", not self.delta)
        require_one_target(self.adjust, self.rough)
        super().__post_init__()
        if self.adjust and self.delta > 0:
            raise ValueError("delta has no meaning with adjust=True. Leave it out.")

    # -- finding out ------------------------------------------------------------------------------

    @property
    def finds_out(self) -> bool:
        """Whether the pilot is to decide between a Metropolis test and an average."""
        free = self.adjust is None and self.rough is None and not self.delta
        return free and self._wants_ensemble and has_forward_map(self.problem)

    @cached_property
    def _smooth(self) -> "Multiscale":
        return replace(self, adjust=True, rough=False, examines=True)

    @cached_property
    def _averaging(self) -> "Multiscale":
        return replace(self, adjust=False, rough=True, examines=True)

    def _suited(self, found: Examination | None) -> "Multiscale":
        """Sampler that suits the forward map, as far as it is known."""
        return self._averaging if found is not None and found.rough else self._smooth

    def _chosen(self, state: PhaseState) -> "Multiscale":
        inner = state.inner
        if isinstance(inner, PilotState) and inner.ensemble_state is not None:
            return self._suited(inner.ensemble_state.found)
        return self._suited(inner.pilot.found if isinstance(inner, WarmUpState) else None)

    def start(self, U: Array, **options: Any) -> MultiscaleState:
        """State for initial positions that were not yet evaluated."""
        if self.finds_out:
            return self._smooth.start(U, **options)
        return super().start(U, **options)

    def ask(self, state: PhaseState, rng: np.random.Generator) -> tuple[Array, Any]:
        """Choose the points of the next round."""
        if self.finds_out:
            return self._chosen(state).ask(state, rng)
        return super().ask(state, rng)

    def tell(
        self, state: PhaseState, pending: Any, evaluations: Evaluations
    ) -> tuple[PhaseState, Info]:
        """Learn from the evaluations of a round."""
        if self.finds_out:
            return self._chosen(state).tell(state, pending, evaluations)
        return super().tell(state, pending, evaluations)

    def freeze(self, state: PhaseState) -> PhaseState:
        """End the tuning, and go to the sampling phase with the ensemble as it is."""
        if self.finds_out:
            return self._chosen(state).freeze(state)
        return super().freeze(state)

    def finish(
        self, state: PhaseState, snapshots: Sequence[Snapshot], rng: np.random.Generator
    ) -> Sequence[Snapshot]:
        """Snapshots of a block, as they become draws."""
        if self.finds_out:
            return self._chosen(state).finish(state, snapshots, rng)
        return super().finish(state, snapshots, rng)

    def found(self, state: MultiscaleState) -> Pilot:
        """Result of the stage that serves all chains, if it is known."""
        if self.finds_out:
            return self._chosen(state).found(state)
        return super().found(state)

    def set_out(self, pilot: Pilot, number: int = 0) -> MultiscaleState:
        """State of chain `number` after the pilot, which has run for all chains."""
        if self.finds_out:
            return self._suited(pilot.found).set_out(pilot, number)
        return super().set_out(pilot, number)

    def origin(self, state: PhaseState) -> Origin:
        """What the draws follow."""
        if self.finds_out:
            return self._chosen(state).origin(state)
        return super().origin(state)


@dataclass(frozen=True)
class PublishedMultiscale(WalkerSampler):
    """Published scheme: Euler-Maruyama steps, and independent directions."""

    published: ClassVar[bool] = True
