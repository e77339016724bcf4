"""Ensemble Gaussian process sampler: Langevin dynamics on a surrogate learned on the way.

All forward evaluations teach a Gaussian process what the outputs, or the loss, look like; particles
move on that and cost nothing. A smooth process fitted to many evaluations does not follow their
fluctuations, so the sampler sees through roughness, and it samples several modes. This module
chains the parts: first evaluation, learning in epochs, sampling kernel.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

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
from pymc_ensemble.samplers.linearization import Anomalies
from pymc_ensemble.samplers.options import require_counts, require_positive
from pymc_ensemble.samplers.phases import Start

from .basis import basis_size
from .delayed_acceptance import DelayedAcceptance
from .draws import SurrogateDraws
from .learning import Learning, LearningState
from .published import PublishedSurrogate

DEFAULT_EPOCHS = 7
EXTRA_EPOCHS = 5  # for surrogates that were not verified at once
MANY_OUTPUTS = 2000  # beyond which the surrogate predicts the loss by default


@dataclass(frozen=True)
class GaussianProcessState:
    """State of the ensemble Gaussian process sampler.

    Attributes
    ----------
    phase : {"start", "burn-in", "sampling"}
    inner : object
        State of the part that is at work in this phase.
    learned : LearningState or None
        What was learned; its ``posterior`` is the surrogate.
    converged : bool
        Whether the surrogate was verified.
    rounds : int or None
        Rounds of evaluations that there will be at most.
    skip_burn_in : bool
        Whether the positions continue an earlier run.
    failed_in_a_row : int
        Forward evaluations since the last one that did not fail.
    """

    phase: Literal["start", "burn-in", "sampling"]
    inner: Any
    learned: LearningState | None = None
    converged: bool = False
    rounds: int | None = None
    skip_burn_in: bool = False
    failed_in_a_row: int = 0

    @property
    def ensemble(self) -> Any:
        """Particles (an `Ensemble`), or None before the first evaluation."""
        return self.inner.ensemble

    @property
    def burned_in(self) -> bool:
        """Whether the learning is over."""
        return self.phase == "sampling"


@dataclass(frozen=True)
class EnsembleGaussianProcess:
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
    scheme : {"archive", "paper"}, default "archive"
        Learn from all evaluations, or the published scheme, which knows those of the present
        ensemble alone.
    epochs : int, default 7
        Epochs of J evaluations before the verification, which takes another J. A surrogate that is
        precise earlier is verified earlier; one that fails gets up to five more epochs.
    archive : (ndarray of shape (n, d), ndarray of shape (n, K) or (n,)), optional
        Points that were evaluated before, with their forward outputs or, for
        ``target="potential"``, their losses.
    dt : float, optional
        Largest time step of ``scheme="paper"``, by default 0.1.

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

    problem: Problem
    ensemble_size: int | None = None
    target: Literal["forward", "potential"] | None = None
    adjust: bool = False
    scheme: Literal["archive", "paper"] = "archive"
    epochs: int = DEFAULT_EPOCHS
    archive: tuple[Array, Array] | None = None
    dt: float | None = None

    def __post_init__(self) -> None:
        """Refuse contradicting options."""
        if self.target not in (None, "forward", "potential"):
            raise ValueError(f'target must be "forward" or "potential", not {self.target!r}.')
        if self.scheme not in ("archive", "paper"):
            raise ValueError(f'scheme must be "archive" or "paper", not {self.scheme!r}.')
        if self.target == "forward" and not has_forward_map(self.problem):
            raise ValueError(
                'target="forward" needs forward outputs, but of this model only the log density is '
                'known. Use target="potential", or leave it out.'
            )
        if self.scheme == "paper":
            for name, given in (
                ("adjust=True", self.adjust),
                ('target="forward"', self.target == "forward"),
                ("archive", self.archive is not None),
            ):
                if given:
                    raise ValueError(
                        f'scheme="paper" is the published algorithm, a surrogate of the loss at '
                        f'the present ensemble; {name} needs scheme="archive", the default.'
                    )
        elif self.dt is not None:
            raise ValueError('dt is an option of scheme="paper" only; leave it out.')
        require_positive(dt=self.dt)
        require_counts(2, epochs=self.epochs, ensemble_size=self.size)
        J, d = self.size, self.problem.dimension
        if d + 2 > J:
            raise ValueError(
                f"ensemble_size={J} is too small for {d} parameters: the mean function of the "
                f"surrogate has {basis_size('linear', d)} coefficients to learn from the first "
                f"evaluations. Use at least {d + 2}, better {max(50, 4 * (d + 2))}."
            )
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
                f"The archive has {outputs.shape[1]} outputs a point, but the problem has "
                f"{self.problem.n_outputs}: give them as `InverseProblem.evaluate` does."
            )
        if outputs.ndim == 1 and self.target != "potential" and has_forward_map(self.problem):
            raise ValueError(
                "The archive holds losses and no forward outputs, from which only a surrogate of "
                'the loss can learn: use target="potential".'
            )

    @property
    def size(self) -> int:
        """Number of particles J."""
        if self.ensemble_size is None:
            return max(100, 4 * (self.problem.dimension + 2))
        return self.ensemble_size

    @property
    def evaluations_per_sweep(self) -> int:
        """Forward evaluations of a sweep of the sampling phase."""
        return self.size if self.adjust or self.scheme == "paper" else 0

    @cached_property
    def _start(self) -> Start:
        return Start(self.problem, self.problem.dimension + 2)

    def _learning(self, n_outputs: int) -> Learning:
        forward = self.target == "forward"
        if self.target is None:
            forward = has_forward_map(self.problem) and n_outputs <= MANY_OUTPUTS
        return Learning(self.problem, forward)

    @cached_property
    def _published(self) -> PublishedSurrogate:
        return PublishedSurrogate(self.problem, 0.1 if self.dt is None else self.dt)

    # -- ask and tell ---------------------------------------------------------------------------

    def start(
        self,
        U: Array,
        *,
        redraw: bool = False,
        skip_burn_in: bool = False,
        rounds: int | None = None,
    ) -> GaussianProcessState:
        """State for positions that were not evaluated yet.

        Parameters
        ----------
        U : ndarray of shape (J, d)
            Initial positions in unconstrained coordinates.
        redraw : bool, default False
            Draw members that fail anew from the prior.
        skip_burn_in : bool, default False
            The positions already follow the posterior. A surrogate has to be learned all the same.
        rounds : int, optional
            Rounds of evaluations that there will be at most, the verification included.
        """
        inner = self._start.start(U, redraw)
        return GaussianProcessState("start", inner, rounds=rounds, skip_burn_in=skip_burn_in)

    def ask(self, state: GaussianProcessState, rng: np.random.Generator) -> tuple[Array, Any]:
        """Choose the points of the next round.

        Parameters
        ----------
        state : GaussianProcessState
        rng : numpy.random.Generator

        Returns
        -------
        points : ndarray of shape (n, d)
            Where the forward map is to be evaluated, all in one batch; none while draws come from
            the surrogate alone.
        pending : object
            What `tell` needs to judge the evaluations; it can be pickled.
        """
        points, pending = self._part(state).ask(state.inner, rng)
        return points, (pending, int(rng.integers(2**63)))

    def tell(
        self, state: GaussianProcessState, pending: Any, evaluations: Evaluations
    ) -> tuple[GaussianProcessState, Info]:
        """Learn from the evaluations of a round.

        Parameters
        ----------
        state : GaussianProcessState
            The state that was asked.
        pending : object
            What `ask` returned beside the points.
        evaluations : Evaluations
            ``outputs`` of shape (n, K) and the mask ``failed`` of shape (n,).

        Returns
        -------
        state : GaussianProcessState
        info : Info
            What the round did; its ``snapshot`` is set when a sweep is complete.

        Raises
        ------
        EnsembleFailure
            If as many evaluations as there are particles have failed in a row, or if too few
            members of the initial ensemble could be evaluated.
        """
        pending, seed = pending
        inner, info = self._part(state).tell(state.inner, pending, evaluations)
        if state.phase != "sampling":
            info = replace(info, phase=state.phase, snapshot=None)
        in_a_row = state.failed_in_a_row
        if info.n_evaluations:
            failed = bool(evaluations.failed.all())
            in_a_row = in_a_row + info.n_evaluations if failed else 0
        if in_a_row >= self.size:
            raise EnsembleFailure(f"All of the last {in_a_row} forward evaluations have failed.")
        state = replace(state, inner=inner, failed_in_a_row=in_a_row)
        if state.rounds is not None and state.phase == "start":
            state = replace(state, rounds=state.rounds - 1)
        if info.complete:
            state = self._proceed(state, seed)
        return state, info

    def freeze(self, state: GaussianProcessState) -> GaussianProcessState:
        """End the learning: go on to the sampling phase with the surrogate as it is."""
        if state.phase == "sampling":
            return state
        if state.phase == "start":
            state = self._learn(state, 0)
        if self.scheme == "paper":
            return replace(state, phase="sampling")
        learned: LearningState = state.inner
        kernel = self._kernel(learned)
        inner = kernel.start(learned, learned.archive)
        return replace(state, phase="sampling", inner=inner, learned=learned)

    def finish(
        self, state: GaussianProcessState, snapshots: Sequence[Snapshot], rng: np.random.Generator
    ) -> Sequence[Snapshot]:
        """Snapshots of a block as they are to be handed out."""
        return snapshots

    def origin(self, state: GaussianProcessState) -> Origin:
        """What the draws follow."""
        if self.scheme == "paper":
            return Origin("approximate")
        return Origin("density", adjusted=True) if self.adjust else Origin("surrogate", False, 0)

    # -- phases ---------------------------------------------------------------------------------

    def _part(self, state: GaussianProcessState) -> Any:
        if state.phase == "start":
            return self._start
        if self.scheme == "paper":
            return self._published
        if state.phase == "burn-in":
            return self._learning(state.inner.archive.Z.shape[1])
        return self._kernel(state.learned)

    def _kernel(self, learned: LearningState | None) -> Any:
        kernel = DelayedAcceptance if self.adjust else SurrogateDraws
        return kernel(self.problem)

    def _proceed(self, state: GaussianProcessState, seed: int) -> GaussianProcessState:
        """Go on to the next phase where the present one has done its work."""
        if state.phase == "start" and state.inner.complete:
            return self._learn(state, seed)
        if state.phase == "burn-in":
            state = replace(state, converged=state.inner.converged)
            if state.inner.burned_in or (state.skip_burn_in and self.scheme == "paper"):
                return self.freeze(state)
        return state

    def _learn(self, state: GaussianProcessState, seed: int) -> GaussianProcessState:
        """Hand the evaluated ensemble to the part that learns from it."""
        ensemble = state.inner.ensemble
        if ensemble is None:
            raise EnsembleFailure("There are no evaluations to learn from.")
        self._require_span(ensemble)
        if self.scheme == "paper":
            inner: Any = self._published.start(ensemble)
        else:
            learning, archive = self._learning(ensemble.Z.shape[1]), None
            if self.archive is not None:
                archive = self._known(ensemble.Z.shape[1])
            last = self.epochs if state.rounds is None else min(self.epochs, state.rounds)
            inner = learning.start(ensemble, seed, max(last, 1), archive)
        return replace(state, phase="burn-in", inner=inner)

    def _known(self, n_outputs: int) -> Ensemble:
        """Evaluations that were made before."""
        assert self.archive is not None
        points, outputs = (np.asarray(v, dtype=float) for v in self.archive)
        prior = self.problem.prior_potential(points)
        if outputs.ndim == 1:
            Z, loss = np.full((len(points), n_outputs), np.nan), outputs
        else:
            Z, loss = outputs, self.problem.loss(outputs)
        loss, prior = (np.where(np.isfinite(v), v, np.inf) for v in (loss, prior))
        return Ensemble(points, Z, loss, prior)

    def _require_span(self, ensemble: Ensemble) -> None:
        """Refuse an ensemble without spread in some direction: nothing could be learned there."""
        d = self.problem.dimension
        rank = Anomalies.of(ensemble.U[ensemble.ok]).rank
        if rank < d:
            raise EnsembleFailure(
                f"The initial ensemble spans {rank} of {d} dimensions, and the surrogate could "
                "not learn anything in the others. Spread it out in all of them, for example by "
                "adding noise."
            )
