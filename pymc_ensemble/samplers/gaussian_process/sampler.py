"""Ensemble Gaussian process sampler: Langevin dynamics on a surrogate learned on the way.

A Gaussian process learns the outputs, or the loss, from all forward evaluations. Particles move on
it without evaluations. A smooth process that is fitted to many evaluations does not follow their
fluctuations. So the sampler averages roughness, and it samples several modes.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np

from pymc_ensemble.samplers.ensemble import Array, Ensemble, Origin, Problem, has_forward_map
from pymc_ensemble.samplers.langevin_steps import EULER_STEP
from pymc_ensemble.samplers.options import require_counts, require_positive
from pymc_ensemble.samplers.phases import EnsembleSampler, PhaseState, default_ensemble_size
from pymc_ensemble.samplers.start import StartState

from .basis import basis_size
from .delayed_acceptance import AdjustedState, DelayedAcceptance
from .draws import DrawsState, SurrogateDraws
from .learning import Learning, LearningState
from .published import PublishedSurrogate

DEFAULT_EPOCHS = 7
EXTRA_EPOCHS = 5  # further epochs after a failed verification
MANY_OUTPUTS = 2000  # with more outputs the surrogate predicts the loss by default


@dataclass(frozen=True)
class EnsembleGaussianProcess(EnsembleSampler):
    """Ensemble Gaussian process sampler for a Bayesian inverse problem.

    Parameters
    ----------
    problem : InverseProblem
        Dimension, loss and prior; its forward map is never called from here.
    ensemble_size : int, optional
        Number of particles J, and of evaluations in an epoch; by default ``max(100, 4 (d + 2))``.
    target : {"forward", "potential"}, optional
        What the surrogate predicts: the forward outputs, or the loss alone. By default the outputs,
        unless there are none, or more than 2000 of them.
    adjust : bool, default False
        Delayed acceptance: each draw is tested with one evaluation. Exact for deterministic maps.
    epochs : int, default 7
        Epochs of J evaluations before the verification, which takes another J. A surrogate that is
        precise earlier is verified earlier; one that fails gets up to five more epochs.
    archive : (ndarray of shape (n, d), ndarray of shape (n, K) or (n,)), optional
        Points that were evaluated before, with their forward outputs or, for
        ``target="potential"``, their losses.

    Raises
    ------
    ValueError
        If the options contradict one another or the ensemble is too small.

    Examples
    --------
    >>> import numpy as np
    >>> import pymc_ensemble as pe
    >>> from pymc_ensemble.samplers.gaussian_process.sampler import EnsembleGaussianProcess
    >>> problem = pe.InverseProblem(
    ...     lambda u: [u[0] + 0.2 * u[1] ** 2, u[1]],
    ...     prior=(np.zeros(2), np.eye(2)),
    ...     data=[1.0, 0.5],
    ...     noise=0.3,
    ... )
    >>> sampler, rng = EnsembleGaussianProcess(problem, ensemble_size=40), np.random.default_rng(1)
    >>> state = sampler.start(problem.sample_prior(40, rng), redraw=True)
    >>> while not state.burned_in:
    ...     points, pending = sampler.ask(state, rng)
    ...     state, info = sampler.tell(state, pending, problem.evaluate(points))
    >>> state.converged
    True
    """

    seeds: ClassVar[bool] = True

    problem: Problem
    target: Literal["forward", "potential"] | None = None
    adjust: bool = False
    epochs: int = DEFAULT_EPOCHS
    archive: tuple[Array, Array] | None = None

    def __post_init__(self) -> None:
        """Refuse contradicting options."""
        super().__post_init__()
        if self.target not in (None, "forward", "potential"):
            raise ValueError(f'target must be "forward" or "potential", not {self.target!r}.')
        if self.target == "forward" and not has_forward_map(self.problem):
            raise ValueError(
                'target="forward" needs forward outputs, but only the log density of this model '
                'is known. Use target="potential", or leave it out.'
            )
        require_counts(2, epochs=self.epochs)
        require_teachable(self.size, self.problem.dimension)
        if self.archive is not None:
            self._check_archive(*self.archive)

    def _check_archive(self, points: Array, outputs: Array) -> None:
        d = self.problem.dimension
        points, outputs = np.asarray(points), np.asarray(outputs)
        if points.ndim != 2 or points.shape[1] != d:
            raise ValueError(
                f"The points of the archive have shape {points.shape}, expected (n, {d})."
            )
        if not np.isfinite(points).all():
            raise ValueError("Some points of the archive are not finite. Leave them out.")
        if outputs.ndim not in (1, 2) or len(outputs) != len(points):
            raise ValueError(
                f"The outputs of the archive have shape {outputs.shape}, expected "
                f"({len(points)}, K), or ({len(points)},) for losses."
            )
        if outputs.ndim == 2 and outputs.shape[1] != self.problem.n_outputs:
            raise ValueError(
                f"The archive has {outputs.shape[1]} outputs for each point, but the problem has "
                f"{self.problem.n_outputs}. Give outputs as `InverseProblem.evaluate` returns "
                "them."
            )
        if outputs.ndim == 1 and self.target != "potential" and has_forward_map(self.problem):
            raise ValueError(
                "The archive holds losses, but no forward outputs. Only a surrogate of the loss "
                'can learn from it: use target="potential".'
            )

    @property
    def evaluations_per_sweep(self) -> int:
        """Forward evaluations of a sweep of the sampling phase."""
        return self.size if self.adjust else 0

    # -- phases ---------------------------------------------------------------------------------

    @cached_property
    def burn_in(self) -> Learning:  # type: ignore[override]
        """Learning of the outputs or the loss."""
        forward = self.target == "forward"
        if self.target is None:
            forward = has_forward_map(self.problem) and self.problem.n_outputs <= MANY_OUTPUTS
        return Learning(self.problem, forward)

    def burns_in(self, state: PhaseState) -> bool:
        """True: a surrogate must be learned even if the positions follow the posterior."""
        return True

    def begin_burn_in(self, state: PhaseState) -> LearningState:
        """State of the learning for the first evaluations, and what was known before."""
        last = self.epochs if state.rounds is None else min(self.epochs, state.rounds)
        assert isinstance(state.inner, StartState)
        return self.burn_in.start(state.evaluated, state.inner.seed, max(last, 1), self._known())

    @cached_property
    def kernel(self) -> SurrogateDraws | DelayedAcceptance:  # type: ignore[override]
        """Draws from the surrogate, tested or not."""
        return (DelayedAcceptance if self.adjust else SurrogateDraws)(self.problem)

    def set_out(self, state: PhaseState, number: int) -> PhaseState:
        """State of one of several chains that share the surrogate. It has its own moves."""
        known = learned(state)
        if state.phase != "sampling" or known is None:
            return state
        own = np.random.SeedSequence([known.seed, number]).generate_state(1, np.uint64)
        return replace(state, inner=self.kernel.start(replace(known, seed=int(own[0]))))

    def begin(self, state: PhaseState) -> DrawsState | AdjustedState:
        """State of the draws from what was learned."""
        assert isinstance(state.inner, LearningState)
        return self.kernel.start(state.inner)

    def origin(self, state: PhaseState) -> Origin:
        """What the draws follow."""
        return Origin("density", adjusted=True) if self.adjust else Origin("surrogate", False, 0)

    def _known(self) -> Ensemble | None:
        """Evaluations that were made before."""
        if self.archive is None:
            return None
        points, outputs = (np.asarray(v, dtype=float) for v in self.archive)
        prior = self.problem.prior_potential(points)
        if outputs.ndim == 1:
            Z, loss = np.full((len(points), self.problem.n_outputs), np.nan), outputs
        else:
            Z, loss = outputs, self.problem.loss(outputs)
        loss, prior = (np.where(np.isfinite(v), v, np.inf) for v in (loss, prior))
        return Ensemble(points, Z, loss, prior)


@dataclass(frozen=True)
class PublishedGaussianProcess(EnsembleSampler):
    """Published scheme, whose surrogate of the loss knows only the present ensemble.

    Parameters
    ----------
    problem : InverseProblem
    ensemble_size : int, optional
        Number of particles J; by default ``max(100, 4 (d + 2))``.
    dt : float, default 0.1
        Largest time step.

    Raises
    ------
    ValueError
        If the time step is not positive or the ensemble is too small.
    """

    problem: Problem
    dt: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        super().__post_init__()
        require_positive(dt=self.dt)
        require_teachable(self.size, self.problem.dimension)

    @cached_property
    def kernel(self) -> PublishedSurrogate:
        """The published scheme."""
        return PublishedSurrogate(self.problem, EULER_STEP if self.dt is None else self.dt)

    def origin(self, state: PhaseState) -> Origin:
        """What the draws follow: steps of the dynamics without a correction."""
        return Origin("approximate")


def require_teachable(size: int, dimension: int) -> None:
    """Refuse ensembles from which a surrogate could not learn its mean."""
    d = dimension
    if d + 2 > size:
        raise ValueError(
            f"ensemble_size={size} is too small for {d} parameters: the mean function of the "
            f"surrogate has {basis_size('linear', d)} coefficients to learn from the first "
            f"evaluations. Use at least {d + 2}, better {default_ensemble_size(d)}."
        )


def learned(state: PhaseState) -> LearningState | None:
    """What was learned so far, or None before the first fit; its ``posterior`` is the surrogate."""
    if isinstance(state.inner, LearningState):
        return state.inner
    return state.inner.learned if isinstance(state.inner, DrawsState | AdjustedState) else None
