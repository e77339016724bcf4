"""The learned law of a noisy forward map, by a regression that averages over the noise.

Each round evaluates draws of the present law. Its likelihood is raised to a power, which grows to
one. A slope, a level and the noise are fitted to the later half of the rounds, by eq. (F2).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pymc_ensemble.samplers.ensemble import (
    Array,
    Ensemble,
    EnsembleFailure,
    Evaluations,
    Info,
    Origin,
    Problem,
)
from pymc_ensemble.samplers.kernels import NothingToFreeze
from pymc_ensemble.samplers.options import require_counts
from pymc_ensemble.samplers.phases import PhaseState
from pymc_ensemble.samplers.words import number

from .law import InformedLaw
from .linearized import LinearizedPosterior
from .mode import SMALLEST_ROUND, SlopeLearning
from .reference import GaussianReference
from .tracker import BLEND, SlopeTracker

UNRESOLVED = 0.5  # information along draws of the law that noise may leave unknown
SETTLED = 6  # fewest rounds with the whole likelihood; the fit uses the later half of all rounds


@dataclass(frozen=True)
class AveragedState:
    """State between two rounds.

    Attributes
    ----------
    ensemble : Ensemble
        Draws of the last round, evaluated.
    rounds : tuple of Ensemble
        Draws of the prior and of the rounds so far, without those that failed.
    target : LinearizedPosterior
        Present approximation of the posterior.
    exponent : float
        Power of the likelihood.
    tried, whole : int
        Rounds so far, and those with the whole likelihood.
    found, done : bool
        Whether the slope is known, and whether learning has ended.
    """

    ensemble: Ensemble
    rounds: tuple[Ensemble, ...]
    target: LinearizedPosterior
    exponent: float
    tried: int = 0
    whole: int = 0
    found: bool = False
    done: bool = False

    @property
    def burned_in(self) -> bool:
        """Whether learning has ended."""
        return self.done

    @property
    def converged(self) -> bool:
        """Whether learning has ended with a slope that is known well enough."""
        return self.found


@dataclass(frozen=True)
class Averaging(NothingToFreeze[AveragedState]):
    """Learns a law from draws of it.

    Parameters
    ----------
    problem : InverseProblem
    reference : GaussianReference
    round_size, max_rounds : int
    """

    problem: Problem
    reference: GaussianReference
    round_size: int
    max_rounds: int

    def start(self, ensemble: Ensemble) -> AveragedState:
        """State for evaluated draws of the prior."""
        first = (ensemble[ensemble.ok],)
        exponent = self._growth(first[0])
        target, _ = self._fitted(first, exponent)
        return AveragedState(ensemble, first, target, exponent)

    def ask(self, state: AveragedState, rng: np.random.Generator) -> tuple[Array, Array]:
        """Points of the next round, shape (n, d), twice."""
        points = self.reference.points(state.target.law.draw(self.round_size, rng))
        return points, points

    def tell(
        self, state: AveragedState, pending: Array, evaluations: Evaluations
    ) -> tuple[AveragedState, Info]:
        """State after the round, and an account of it."""
        ensemble = Ensemble.evaluated(self.problem, pending, evaluations)
        good = ensemble[ensemble.ok]
        rounds, whole = state.rounds, state.whole + (state.exponent >= 1)
        exponent = state.exponent
        if len(good) > 1:
            rounds = (*rounds, good)
            exponent = min(1.0, exponent + self._growth(good))
        target, unresolved = self._fitted(rounds[len(rounds) // 2 :], exponent)
        found = whole >= SETTLED and unresolved < UNRESOLVED
        tried = state.tried + 1
        done = found or tried >= self.max_rounds
        state = AveragedState(ensemble, rounds, target, exponent, tried, whole, found, done)
        message = (
            f"exponent {number(exponent, '.2g')} of the likelihood, {number(unresolved, '.2g')} of "
            "its information unknown"
        )
        return state, Info.of(evaluations, "burn-in", message)

    def _growth(self, ensemble: Ensemble) -> float:
        """Growth of the exponent at which log weights vary by one for each output."""
        loss, K = ensemble.loss, ensemble.Z.shape[1]
        return float(np.sqrt(K / (2 * loss.var() + np.finfo(float).tiny)))

    def _fitted(
        self, rounds: tuple[Ensemble, ...], exponent: float
    ) -> tuple[LinearizedPosterior, float]:
        """Posterior of the fitted line, and the information that is unknown."""
        x = self.reference.coordinates(np.concatenate([one.U for one in rounds]))
        Z = np.concatenate([one.Z for one in rounds])
        if len(x) < 2:
            raise EnsembleFailure("There are no evaluations to fit a slope to.")
        problem, level, center = self.problem, Z.mean(0), x.mean(0)
        curvature = exponent * problem.curvature(level[None])[0]
        units = np.sqrt(np.where(curvature > 0, curvature, 1.0))
        tracker = SlopeTracker.of_ensemble(x, Z * units)
        slope = tracker.slope / units[:, None]
        law = InformedLaw(center, np.sqrt(curvature)[:, None] * slope)
        U = self.reference.points(center[None])
        gradient = exponent * problem.loss_gradient(level[None])[0] @ slope
        gradient = gradient + self.reference.pull_back(problem.prior_gradient(U))[0]
        step = law.newton_step(gradient, 0.0)
        V, shrink = law.directions, law.information / (1 + law.information)
        along = np.einsum("rd,rd->r", tracker.covariance.times(V), V)
        # without the energy that the tracker spreads over all columns, unknown to the regression
        spread = BLEND * float(tracker.energies.mean()) * (len(center) - float(shrink.sum()))
        unknown = max(float(tracker.covariance.diagonal.sum() - shrink @ along) - spread, 0.0)
        target = LinearizedPosterior.of(problem, self.reference, law, level, slope, step)
        return target, len(level) * unknown  # eq. (F9)


@dataclass(frozen=True)
class AveragedLaw(SlopeLearning):
    """Learning of the law of a noisy map, as a sampler without draws.

    Parameters
    ----------
    problem, round_size, max_rounds
        See `SlopeLearning`.
    """

    def __post_init__(self) -> None:
        """Refuse wrong sizes."""
        require_counts(SMALLEST_ROUND, round_size=self.round_size)
        require_counts(1, max_rounds=self.max_rounds)

    @property
    def size(self) -> int:
        """Number of initial positions."""
        return self.round_size

    @cached_property
    def kernel(self) -> Averaging:
        """Kernel that learns the law."""
        return Averaging(self.problem, self.reference, self.round_size, self.max_rounds)

    def begin(self, state: PhaseState) -> AveragedState:
        """State of this kernel."""
        return self.kernel.start(state.evaluated)

    def origin(self, state: PhaseState) -> Origin:
        """What draws of the law follow."""
        return Origin("gaussian")
