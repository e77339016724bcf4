"""Multi-fidelity sampler: a cheap model finds the posterior of a fine one, and is corrected."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from pymc_ensemble.samplers.certificate import TOLERANCE
from pymc_ensemble.samplers.ensemble import (
    Array,
    Ensemble,
    EnsembleFailure,
    Origin,
    Problem,
    has_forward_map,
)
from pymc_ensemble.samplers.gaussian_process.growing import smallest_batch
from pymc_ensemble.samplers.options import require_counts, require_positive
from pymc_ensemble.samplers.phases import EnsembleSampler, PhaseState, default_ensemble_size
from pymc_ensemble.samplers.start import StartState

from .draws import CorrectedDraws, DrawsState, TestedDraws
from .exploration import Explorer
from .learning import Learning, LearningState

MOST_BATCHES = 10  # default of the most batches of the fine model


@dataclass(frozen=True)
class Multifidelity(EnsembleSampler):
    """Sampler of the posterior of a fine model, by draws of a corrected cheap model.

    If `asks_cheap` is true, the cheap model must evaluate the points that it asks for. Otherwise
    the fine model must. Both have the same parameters and outputs.

    Parameters
    ----------
    problem : InverseProblem
        Dimension, loss and prior; its forward map is never called from here.
    ensemble_size : int, optional
        Number of particles J, which cost cheap evaluations; by default ``max(100, 4 (d + 2))``.
    batch : int, optional
        Fine evaluations of a round, by default ``max(10, 2 d + 2)``.
    tolerance : float, default 0.1
        Largest upper limit of the sd of log weights with which a correction is certified.
    max_evaluations : int, optional
        Most fine evaluations of the learning, by default ten batches.
    adjust : bool, default False
        Whether each draw meets a Metropolis test with the fine model.
    archive : (ndarray of shape (n, d), ndarray of shape (n, K)), optional
        Points at which the fine model was evaluated before, and its outputs.

    Raises
    ------
    ValueError
        If an option makes no sense, or if the problem has no forward outputs.

    Examples
    --------
    >>> import numpy as np
    >>> import pymc_ensemble as pe
    >>> from pymc_ensemble.samplers.multifidelity.sampler import Multifidelity
    >>> fine, cheap = (
    ...     pe.InverseProblem(
    ...         forward, prior=(np.zeros(2), np.eye(2)), data=[1.0, 0.5], noise=0.1
    ...     )
    ...     for forward in (lambda u: [u[0] + 0.2 * u[1] ** 2, u[1]], lambda u: [u[0], u[1]])
    ... )
    >>> sampler, rng = Multifidelity(fine), np.random.default_rng(1)
    >>> state = sampler.start(fine.sample_prior(sampler.start_size, rng), redraw=True)
    >>> while not state.burned_in:
    ...     problem = cheap if sampler.asks_cheap(state) else fine
    ...     points, pending = sampler.ask(state, rng)
    ...     state, info = sampler.tell(state, pending, problem.evaluate(points))
    >>> state.converged
    True
    """

    seeds: ClassVar[bool] = True

    problem: Problem
    batch: int | None = None
    tolerance: float = TOLERANCE
    max_evaluations: int | None = None
    adjust: bool = False
    archive: tuple[Array, Array] | None = None

    def __post_init__(self) -> None:
        """Refuse wrong options."""
        d = self.problem.dimension
        if not has_forward_map(self.problem):
            raise ValueError(
                "Only the log density of this model is known, so there are no outputs whose "
                "difference could be learned. Use EnsembleGaussianProcessSampler, or write the "
                "simulator as a forward model whose outputs are parameters of a likelihood."
            )
        require_positive(tolerance=self.tolerance)
        require_counts(1, batch=self.batch, max_evaluations=self.max_evaluations)
        super().__post_init__()
        least = smallest_batch(d)
        if self.batch_size < least:
            raise ValueError(
                f"batch={self.batch} is too small for {d} parameters: a round has to certify a "
                f"correction. Use at least {least}, or leave it out."
            )
        if self.size < max(self.batch_size, 2 * (d + 2)):
            raise ValueError(
                f"ensemble_size={self.size} is too small for {d} parameters and rounds of "
                f"{self.batch_size} fine evaluations. Use at least "
                f"{max(self.batch_size, 2 * (d + 2))}, or leave it out. Particles cost only cheap "
                "evaluations."
            )
        if self.most_evaluations < 2 * self.batch_size:
            raise ValueError(
                f"max_evaluations={self.max_evaluations} leaves no room for a certificate: the "
                f"first round has {self.batch_size} fine evaluations, and a second round has to "
                f"certify what was learned. Use at least {2 * self.batch_size}."
            )

    @property
    def size(self) -> int:
        """Number of particles J."""
        if self.ensemble_size is None:
            return max(default_ensemble_size(self.problem.dimension), self.batch_size)
        return self.ensemble_size

    @property
    def batch_size(self) -> int:
        """Fine evaluations of a round."""
        least = smallest_batch(self.problem.dimension)
        return max(least, 2 * self.problem.dimension + 2) if self.batch is None else self.batch

    @property
    def most_evaluations(self) -> int:
        """Most fine evaluations of the learning."""
        if self.max_evaluations is None:
            return MOST_BATCHES * self.batch_size
        return self.max_evaluations

    @property
    def evaluations_per_sweep(self) -> int:
        """Fine evaluations of a sweep of the sampling phase."""
        return self.size if self.adjust else 0

    def asks_cheap(self, state: PhaseState) -> bool:
        """Whether the next points are for the cheap model."""
        if isinstance(state.inner, LearningState):
            return state.inner.stage != "fine"
        return state.inner.asks_cheap if isinstance(state.inner, DrawsState) else True

    # -- phases ---------------------------------------------------------------------------------

    @cached_property
    def _explorer(self) -> Explorer:
        return Explorer.of(self.problem, self.size)

    @cached_property
    def burn_in(self) -> Learning:
        """Learning of the correction."""
        return Learning(
            self.problem,
            self._explorer,
            self.batch_size,
            self.tolerance,
            self.most_evaluations,
        )

    def burns_in(self, state: PhaseState) -> bool:
        """True: a correction must be learned, wherever the positions come from."""
        return True

    def begin_burn_in(self, state: PhaseState) -> LearningState:
        """State of the learning for the cheap model at draws of the prior."""
        start = state.inner
        assert isinstance(start, StartState)
        tried, good = start.n_evaluations, int(state.evaluated.ok.sum())
        if good < tried / 2:
            raise EnsembleFailure(
                f"The cheap model has failed, or gives the data no probability, at {tried - good} "
                f"of {tried} draws of the prior. It must work wherever the fine model does."
            )
        rounds = None if state.rounds is None else max(1, state.rounds + start.rounds - 1)
        return self.burn_in.start(state.evaluated, self._known(), tried, rounds)

    @cached_property
    def kernel(self) -> CorrectedDraws:  # type: ignore[override]
        """Draws of the corrected model, tested or not."""
        return (TestedDraws if self.adjust else CorrectedDraws)(self.problem, self._explorer)

    def begin(self, state: PhaseState) -> DrawsState:
        """State of the draws after the learning."""
        assert isinstance(state.inner, LearningState)
        return self.kernel.start(state.inner)

    def origin(self, state: PhaseState) -> Origin:
        """What the draws follow."""
        if self.adjust:
            return Origin("density", adjusted=True, learned=True)
        return Origin("surrogate", False, 0)

    def _known(self) -> Ensemble | None:
        """Evaluations of the fine model that were made before."""
        if self.archive is None:
            return None
        points, outputs = (np.asarray(v, dtype=float) for v in self.archive)
        failed = ~np.isfinite(outputs).all(1)
        loss = np.where(failed, np.inf, self.problem.loss(outputs))
        return Ensemble(points, outputs, loss, self.problem.prior_potential(points))


def learned(state: PhaseState) -> LearningState | None:
    """What was learned so far, or None before the first round."""
    if isinstance(state.inner, LearningState):
        return state.inner
    return state.inner.learned if isinstance(state.inner, DrawsState) else None
