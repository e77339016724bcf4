"""Ensemble Kalman sampler: interacting particles that never differentiate the forward map.

The particles follow ``du = -C grad V(u) dt + sqrt(2 C) dW`` with the covariance C of the ensemble.
The ensemble itself estimates the slope of the forward map, in place of the gradient of the misfit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from pymc_ensemble.samplers.ensemble import (
    Array,
    Ensemble,
    EnsembleFailure,
    Evaluations,
    Info,
    Origin,
    Problem,
    Snapshot,
    has_forward_map,
)
from pymc_ensemble.samplers.examination import Examination
from pymc_ensemble.samplers.kernels import EnsembleKernel, KernelState
from pymc_ensemble.samplers.langevin_steps import EULER_STEP
from pymc_ensemble.samplers.moves import DEFAULT, Move, require_moves, try_out
from pymc_ensemble.samplers.options import PATIENCE, require_one_target, require_positive
from pymc_ensemble.samplers.phases import (
    EnsembleSampler,
    Phase,
    PhaseState,
    default_ensemble_size,
)
from pymc_ensemble.samplers.split_sweeps import SweepState
from pymc_ensemble.samplers.tempering import BurnInState, Finish, TemperedBurnIn
from pymc_ensemble.samplers.words import number

from .density import DENSITY_MOVES, DensityBurnIn, DensityBurnInState, DensityMetropolis
from .examined import ExaminedBurnIn, ExaminedDesign, ExaminedState
from .inflated_design import DesignState, InflatedDesign
from .metropolis import MixtureMetropolis
from .published import PublishedScheme
from .relaxation import DEFAULT_STEP, Relaxation, WholeRelaxation

# If the default has to choose, and its first choice is not good enough: rounds of a fit, and of a
# Metropolis test after it. On maps that suit them, both settle within 15 rounds.

NOISY = (
    "The log density fluctuates by {} on scales below the posterior's: it is noisy or rough, "
    "and a Metropolis test would sample the fluctuations."
)
REMEDY_OF_NOISE = (
    "Use EnsembleGaussianProcessSampler, which averages over them; or adjust=True, if the "
    "fluctuations are meant."
)


@dataclass(frozen=True)
class KalmanSampler(EnsembleSampler):
    """What the ensemble Kalman sampler and its published scheme have in common.

    Parameters
    ----------
    problem : InverseProblem
    ensemble_size : int, optional
        Number of particles J; by default ``max(100, 4 (d + 2))``.
    dt : float, optional
        Time step.
    allow_subspace : bool, default False
        Accept ensembles that do not span the parameter space.

    Raises
    ------
    ValueError
        If the time step is not positive or the ensemble is too small.
    """

    remedy_of_span: ClassVar[str] = ", or use allow_subspace=True to sample in the span only"

    problem: Problem
    ensemble_size: int | None = None
    dt: float | None = None
    allow_subspace: bool = False

    def __post_init__(self) -> None:
        """Refuse ensembles that could not move everywhere."""
        super().__post_init__()
        require_positive(dt=self.dt)
        J, d = self.size, self.problem.dimension
        if d + 1 >= J and not self.allow_subspace:
            raise ValueError(
                f"ensemble_size={J} is too small for {d} parameters: the particles would never "
                f"leave the span of their start. Use at least {2 * (d + 2)} (default "
                f"{default_ensemble_size(d)}), or allow_subspace=True to sample only in the span."
            )

    @property
    def has_to_span(self) -> bool:
        """Whether the ensemble has to span all dimensions."""
        return not self.allow_subspace

    @property
    def min_members(self) -> int:
        """Fewest members for statistics."""
        d = self.problem.dimension
        return 3 if self.size <= d + 1 else d + 2


@dataclass(frozen=True)
class EnsembleKalman(KalmanSampler):
    """Ensemble Kalman sampler for a Bayesian inverse problem.

    Parameters
    ----------
    problem : InverseProblem
        Dimension, loss and prior; its forward map is never called from here.
    ensemble_size : int, optional
        Number of particles J; by default ``max(100, 4 (d + 2))``.
    dt : float, optional
        Time step, default 2 (0.1 for ensembles too small to be split).
    allow_subspace : bool, default False
        Accept ensembles that do not span the parameter space.
    adjust : bool or None, default False
        Metropolis-adjusted moves: exact for deterministic forward maps. If there is only a density,
        and no forward map, moves are always adjusted.
    rough : bool or None, default False
        Average out noise or fluctuations of the forward map. If both are None, an examination of
        the map decides between them, at the end of the burn-in.
    moves : mapping of functions to float, optional
        Moves of the adjusted sampler, and their weights; see `pymc_ensemble.moves`. With moves the
        sampler is adjusted.
    evolutions : int, default 0
        Rounds of differential evolution in every stage of the burn-in. They keep the weights of
        separate modes right, but cost evaluations.

    Raises
    ------
    ValueError
        If the options contradict one another or the ensemble is too small.

    Examples
    --------
    >>> import numpy as np
    >>> import pymc_ensemble as pe
    >>> from pymc_ensemble.samplers.kalman.sampler import EnsembleKalman
    >>> A = np.array([[1.0, 0.5], [0.0, 2.0], [1.0, -1.0]])
    >>> problem = pe.InverseProblem(
    ...     lambda u: A @ u, prior=(np.zeros(2), np.eye(2)), data=np.ones(3), noise=0.5
    ... )
    >>> sampler, rng = EnsembleKalman(problem, ensemble_size=50), np.random.default_rng(1)
    >>> state = sampler.start(problem.sample_prior(50, rng), redraw=True)
    >>> while not state.burned_in:
    ...     points, pending = sampler.ask(state, rng)
    ...     state, info = sampler.tell(state, pending, problem.evaluate(points))
    >>> state.converged
    True
    """

    adjust: bool | None = False
    rough: bool | None = False
    moves: Mapping[Move, float] | None = None
    evolutions: int = 0

    def __post_init__(self) -> None:
        """Refuse contradicting options."""
        if not has_forward_map(self.problem):
            if self.rough:
                raise ValueError(
                    "rough=True fits the outputs of a forward map, but only the log density of "
                    "this model is known. Use EnsembleGaussianProcessSampler, which averages over "
                    "fluctuations of the log density."
                )
            if self.adjust is False or not self.finds_out:  # no map: moves need a test
                object.__setattr__(self, "adjust", True)
        if self.moves is not None:
            require_moves(self.moves)
            object.__setattr__(self, "adjust", True)
            try_out(self.moves, self.problem.dimension, self.problem.n_outputs)
        require_one_target(self.adjust, self.rough)
        super().__post_init__()
        if not (self.adjust or self.rough):
            return
        option, J, d = "adjust" if self.adjust else "rough", self.size, self.problem.dimension
        if self.dt is not None:
            raise ValueError(f"dt has no meaning with {option}=True. Leave it out.")
        if not self.splits:
            raise ValueError(
                f"{option}=True needs an ensemble_size of at least {2 * (d + 2)} for {d} "
                f"parameters, not {J}."
            )

    @property
    def splits(self) -> bool:
        """Whether the ensemble is large enough for split halves."""
        return self.size >= 2 * (self.problem.dimension + 2)

    @property
    def finds_out(self) -> bool:
        """Whether the forward map is examined."""
        alone = self.adjust is None and self.rough is None
        return alone and self.dt is None and self.splits

    @cached_property
    def _examined(self) -> ExaminedBurnIn:
        return ExaminedBurnIn(self.problem, self._tempered)

    @cached_property
    def _tempered(self) -> TemperedBurnIn:
        options: Any = {"evolutions": self.evolutions}
        if not has_forward_map(self.problem):  # the kernel itself comes to rest
            return DensityBurnIn(self.problem, self.min_members, True, "none", **options)
        tests = self.adjust or self.finds_out
        finish: Finish = "none" if self.rough else "metropolis" if tests else "relax"
        return TemperedBurnIn(self.problem, self.min_members, not self.rough, finish, **options)

    @cached_property
    def _test(self) -> MixtureMetropolis:
        test = self._test_of_density
        return test or MixtureMetropolis(self.problem, self.min_members, self.moves or DEFAULT)

    @cached_property
    def _test_of_density(self) -> DensityMetropolis | None:
        if has_forward_map(self.problem):
            return None
        return DensityMetropolis(self.problem, self.min_members, self.moves or DENSITY_MOVES)

    @cached_property
    def _test_or_fit(self) -> "TestOrFit":
        return TestOrFit(self._test, InflatedDesign(self.problem, PATIENCE))

    @cached_property
    def burn_in(self) -> TemperedBurnIn | ExaminedBurnIn | None:
        """Tempering, but not for a small ensemble: resampling would lose directions."""
        if not self.splits:
            return None
        return self._examined if self.finds_out else self._tempered

    def burns_in(self, state: PhaseState) -> bool:
        """Whether there is a burn-in after the start. It may be only an examination."""
        return self.finds_out or super().burns_in(state)

    def begin_burn_in(self, state: PhaseState) -> BurnInState | ExaminedState:
        """State of the tempering."""
        assert self.burn_in is not None
        if self.finds_out and state.skip_burn_in:
            return self._examined.start_at_rest(state.evaluated)
        return self.burn_in.start(state.evaluated)

    def begin(self, state: PhaseState) -> KernelState:
        """State of the kernel that suits the forward map, by its examination, if any."""
        inner = state.inner
        found = inner.found if isinstance(inner, ExaminedState) else None
        if (test := self._test_of_density) is not None:
            if found is not None and found.rough:
                noisy = NOISY.format(number(found.fluctuation, ".2g"))
                raise EnsembleFailure(noisy, REMEDY_OF_NOISE)
            inner = inner.inner if isinstance(inner, ExaminedState) else inner
            archive = inner.archive if isinstance(inner, DensityBurnInState) else None
            return test.start(state.evaluated, at_rest=state.skip_burn_in, archive=archive)
        if found is None or not found.rough:
            return super().begin(state)
        assert isinstance(inner, ExaminedState)
        if inner.failed is not None:
            return inner.failed
        design = self._test_or_fit.fit.start(state.evaluated, at_rest=state.skip_burn_in)
        return ExaminedDesign.of(design, inner)

    def examines(self, state: PhaseState) -> bool:
        """Whether the next round examines the forward map."""
        inner = state.inner
        return isinstance(inner, ExaminedState) and inner.arrived and inner.found is None

    def informed(self, state: PhaseState, found: Examination) -> PhaseState:
        """State after an examination that was made for another ensemble."""
        assert isinstance(state.inner, ExaminedState)
        state = replace(state, inner=replace(state.inner, found=found))
        return self._proceed(state) if state.inner.burned_in else state

    def _proceed(self, state: PhaseState) -> PhaseState:
        """Go to the next phase, or back to the burn-in if a fit to a rough map is not enough."""
        inner = state.inner
        if state.phase == "settling" and isinstance(inner, ExaminedDesign) and inner.curved:
            burn_in = inner.given_up(self._tempered.max_stages - PATIENCE)
            state = replace(state, phase="burn-in", inner=burn_in, found=burn_in.found)
            return super()._proceed(state) if burn_in.burned_in else state
        return super()._proceed(state)

    @cached_property
    def kernel(self) -> EnsembleKernel[Any, Any]:
        """Dynamics of the sampling phase, by the options."""
        if self.finds_out:
            return self._test_or_fit
        if self.rough:
            return InflatedDesign(self.problem)
        if self.adjust:
            return self._test
        if self.splits:
            return Relaxation(self.problem, self.min_members, self.dt or DEFAULT_STEP)
        return WholeRelaxation(self.problem, self.min_members, self.dt or EULER_STEP)

    def origin(self, state: PhaseState) -> Origin:
        """What the draws follow: the pointwise force leaves the Gaussian law of the linear one."""
        if self.finds_out:
            fitted = isinstance(state.inner, DesignState)
            return replace(self, adjust=not fitted, rough=fitted).origin(state)
        if self.rough:
            return Origin("fit")
        if self.adjust:
            return Origin("density", adjusted=True)
        pointwise = isinstance(state.inner, SweepState) and state.inner.pointwise
        return Origin("approximate" if pointwise else "gaussian")

    def _enter(self, phase: Phase, state: PhaseState, inner: KernelState) -> PhaseState:
        entered = super()._enter(phase, state, inner)
        if isinstance(state.inner, ExaminedState):
            entered = replace(entered, found=state.inner.found)
        return entered


@dataclass(frozen=True)
class TestOrFit:
    """One of two kernels, by the state: a Metropolis test, or a fit to a rough map.

    Parameters
    ----------
    test, fit : EnsembleKernel
        The two kernels. Their states have different types.
    """

    test: EnsembleKernel[Any, Any]
    fit: InflatedDesign

    def _of(self, state: Any) -> EnsembleKernel[Any, Any]:
        return self.fit if isinstance(state, DesignState) else self.test

    def start(self, ensemble: Ensemble, *, at_rest: bool = False) -> Any:
        """State for an evaluated ensemble, if nothing is known about the forward map."""
        return self.test.start(ensemble, at_rest=at_rest)

    def ask(self, state: Any, rng: np.random.Generator) -> tuple[Array, Any]:
        """Points of the next round, shape (n, d), and what `tell` needs."""
        return self._of(state).ask(state, rng)

    def tell(self, state: Any, pending: Any, evaluations: Evaluations) -> tuple[Any, Info]:
        """State after the round, and an account of it."""
        return self._of(state).tell(state, pending, evaluations)

    def freeze(self, state: Any) -> Any:
        """State whose adaptation has ended."""
        return self._of(state).freeze(state)

    def finish(
        self, state: Any, snapshots: Sequence[Snapshot], rng: np.random.Generator
    ) -> Sequence[Snapshot]:
        """Snapshots of a block of sweeps, as they become draws."""
        return self._of(state).finish(state, snapshots, rng)


@dataclass(frozen=True)
class PublishedKalman(KalmanSampler):
    """Published ensemble Kalman sampler, with an adaptive time step from the prior on.

    Parameters
    ----------
    problem : InverseProblem
    ensemble_size : int, optional
        Number of particles J; by default ``max(100, 4 (d + 2))``.
    dt : float, optional
        Bound of the time step, by default none.
    allow_subspace : bool, default False
        Accept ensembles that do not span the parameter space.
    corrected : bool, default True
        Finite-ensemble correction.

    Raises
    ------
    ValueError
        If the time step is not positive or the ensemble is too small.
    """

    corrected: bool = True

    @cached_property
    def kernel(self) -> PublishedScheme:
        """The published scheme."""
        largest = np.inf if self.dt is None else self.dt
        return PublishedScheme(self.problem, self.min_members, largest, self.corrected)

    def origin(self, state: PhaseState) -> Origin:
        """What the draws follow: steps of the dynamics without a correction."""
        return Origin("approximate")


def curved(state: PhaseState) -> bool:
    """Whether the linear fit to a rough map is not good enough, as the map is curved."""
    return isinstance(state.inner, DesignState) and state.inner.curved
