"""Burn-in that examines, at its end, whether the forward map is smooth."""

from dataclasses import dataclass, field, fields, replace

import numpy as np

from pymc_ensemble.samplers.ensemble import Array, Ensemble, Evaluations, Info, PriorAndLoss
from pymc_ensemble.samplers.examination import Examination, Probes
from pymc_ensemble.samplers.tempering import BurnInState, Move, TemperedBurnIn
from pymc_ensemble.samplers.words import number

from .inflated_design import DesignState


@dataclass(frozen=True)
class ExaminedState:
    """State of a burn-in with an examination.

    Attributes
    ----------
    inner : BurnInState
    found : Examination or None
        Result of the examination, once the posterior was reached.
    failed : DesignState or None
        Fit to a rough map that was not good enough.
    doubted : bool
        Whether the map must be examined once more, as a fit to it is not good enough.
    """

    inner: BurnInState
    found: Examination | None = None
    failed: DesignState | None = None
    doubted: bool = False

    @property
    def ensemble(self) -> Ensemble:
        """Evaluated particles."""
        return self.inner.ensemble

    @property
    def burned_in(self) -> bool:
        """Whether the burn-in is over. On a rough map its end needs no test."""
        if self.found is None or self.doubted:
            return False
        return self.found.rough or self.inner.burned_in

    @property
    def arrived(self) -> bool:
        """Whether the ensemble has reached the posterior, where the map can be examined."""
        return self.inner.burned_in or (self.inner.exponent == 1 and self.inner.stage is None)

    @property
    def converged(self) -> bool:
        """Whether the posterior was reached. A fit to a rough map must settle by itself."""
        if self.found is not None and self.found.rough:
            return self.inner.exponent == 1
        return self.burned_in and self.inner.converged


@dataclass(frozen=True)
class ExaminedDesign(DesignState):
    """State of a fit to a rough map that remembers the burn-in, in case the fit is not good enough.

    Attributes
    ----------
    arrived : ExaminedState
        State at the end of the burn-in.
    """

    arrived: ExaminedState = field(kw_only=True)

    @classmethod
    def of(cls, design: DesignState, arrived: ExaminedState) -> "ExaminedDesign":
        """Add the memory to the state of a fit."""
        return cls(**{f.name: getattr(design, f.name) for f in fields(design)}, arrived=arrived)

    def given_up(self, stages: int) -> ExaminedState:
        """State of a burn-in that goes on, after the fit was not good enough.

        At least so many `stages` count as done, as it may never rest on a map that fluctuates.
        """
        found, inner = self.arrived.found, self.arrived.inner
        assert found is not None
        found = replace(found, bent=True)
        inner = replace(inner, stages=max(inner.stages, stages))
        return ExaminedState(inner, found, failed=self, doubted=found.rough)


@dataclass(frozen=True)
class ExaminedBurnIn:
    """Burn-in that examines the forward map as soon as the exponent is one.

    If the map was found to be rough, but a linear fit to it is not good enough, it is examined once
    more, by steps that suit the modes of the ensemble.

    Parameters
    ----------
    problem : InverseProblem
    burn_in : TemperedBurnIn
        Burn-in for a smooth map. On a rough one its moves at exponent one are left out.
    """

    problem: PriorAndLoss
    burn_in: TemperedBurnIn

    def start(self, ensemble: Ensemble) -> ExaminedState:
        """State for an evaluated ensemble."""
        return ExaminedState(self.burn_in.start(ensemble))

    def start_at_rest(self, ensemble: Ensemble) -> ExaminedState:
        """State for an ensemble that follows the posterior: only the examination is left."""
        inner = self.burn_in.start(ensemble)
        return ExaminedState(replace(inner, exponent=1.0, burned_in=True, converged=True))

    def ask(self, state: ExaminedState, rng: np.random.Generator) -> tuple[Array, Move | Probes]:
        """Points of the next round, shape (n, d), and what `tell` needs."""
        if state.doubted or (state.found is None and state.arrived):
            probes = Probes.of(state.ensemble, rng, by_mode=state.doubted)
            return probes.points, probes
        return self.burn_in.ask(state.inner, rng)

    def tell(
        self, state: ExaminedState, pending: Move | Probes, evaluations: Evaluations
    ) -> tuple[ExaminedState, Info]:
        """State after the round, and an account of it."""
        if isinstance(pending, Probes):
            found = pending.judge(self.problem, evaluations)
            if state.found is not None:
                found = state.found.after(found)
            message = f"the log density fluctuates by {number(found.fluctuation, '.2g')}"
            info = Info.of(evaluations, "burn-in", message, complete=True)
            return replace(state, found=found, doubted=False), info
        inner, info = self.burn_in.tell(state.inner, pending, evaluations)
        return replace(state, inner=inner), info
