"""Ensemble Gaussian process sampler that begins with few evaluations and grows until certified."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pymc_ensemble.samplers.certificate import TOLERANCE
from pymc_ensemble.samplers.ensemble import Array
from pymc_ensemble.samplers.linear_guess import CANDIDATES
from pymc_ensemble.samplers.options import require_counts, require_positive
from pymc_ensemble.samplers.phases import PhaseState, default_ensemble_size
from pymc_ensemble.samplers.start import Start, StartState

from .basis import squared_distances
from .growing_state import Budget, GrowingState, whole
from .growth import Growth
from .posterior import Whitening
from .proof import REPEATED
from .sampler import DEFAULT_EPOCHS, EXTRA_EPOCHS, EnsembleGaussianProcess

SMALLEST_BATCH = 10  # with fewer log weights the upper limit of their sd is far too large
# Most evaluations of the learning, in ensembles of the default size: as many as epochs alone take.
ENSEMBLES = DEFAULT_EPOCHS + 1 + EXTRA_EPOCHS


@dataclass(frozen=True)
class GrowingGaussianProcess(EnsembleGaussianProcess):
    """Ensemble Gaussian process sampler for a Bayesian inverse problem, from few evaluations.

    Parameters
    ----------
    problem : InverseProblem
        Dimension, loss and prior; its forward map is never called from here.
    ensemble_size : int, optional
        Number of particles J that move on the surrogate, and become draws; by default
        ``max(100, 4 (d + 2))``. They cost no evaluation.
    target, archive
        As in `EnsembleGaussianProcess`.
    tolerance : float, default 0.1
        Largest upper limit of the sd of log weights with which a surrogate is certified.
    batch : int, optional
        Evaluations of a round, by default and at least ``max(10, d + 2)``. Later rounds are larger:
        a quarter of all earlier evaluations, up to J. A proof has three more.
    max_evaluations : int, optional
        Most evaluations of the learning, by default ``13 max(100, 4 (d + 2))``.
    workers : int, default 1
        Evaluations that can run at the same time. A round occupies all workers.

    Raises
    ------
    ValueError
        If the options contradict one another or the ensemble is too small.

    Examples
    --------
    >>> import numpy as np
    >>> import pymc_ensemble as pe
    >>> from pymc_ensemble.samplers.gaussian_process.growing import GrowingGaussianProcess
    >>> problem = pe.InverseProblem(
    ...     lambda u: [u[0] + 0.2 * u[1] ** 2, u[1]],
    ...     prior=(np.zeros(2), np.eye(2)),
    ...     data=[1.0, 0.5],
    ...     noise=0.3,
    ... )
    >>> sampler, rng = GrowingGaussianProcess(problem), np.random.default_rng(1)
    >>> state = sampler.start(sampler.first_design(rng), redraw=True)
    >>> while not state.burned_in:
    ...     points, pending = sampler.ask(state, rng)
    ...     state, info = sampler.tell(state, pending, problem.evaluate(points))
    >>> state.converged
    True
    """

    tolerance: float = TOLERANCE
    batch: int | None = None
    max_evaluations: int | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        """Refuse contradicting options."""
        super().__post_init__()
        require_positive(tolerance=self.tolerance)
        require_counts(1, batch=self.batch, max_evaluations=self.max_evaluations)
        if self.epochs != DEFAULT_EPOCHS:
            raise ValueError(
                f"epochs={self.epochs} has no meaning with a tolerance: a surrogate grows until "
                "it is certified. Use max_evaluations instead."
            )
        least = smallest_batch(self.problem.dimension)
        if self.batch is not None and self.batch < least:
            raise ValueError(
                f"batch={self.batch} is too small for {self.problem.dimension} parameters: a "
                f"round has to test a surrogate. Use at least {least}, or leave it out."
            )
        fewest = 2 * self.start_size + REPEATED
        if self.max_evaluations is not None and self.max_evaluations < fewest:
            raise ValueError(
                f"max_evaluations={self.max_evaluations} leaves no room for a certificate: the "
                f"first round has {self.start_size} evaluations, and the last {REPEATED} more. "
                f"Use at least {fewest}, better five times as many."
            )

    # -- phases ---------------------------------------------------------------------------------

    @cached_property
    def burn_in(self) -> Growth:  # type: ignore[override]
        """Learning of the outputs or the loss."""
        return Growth(self.problem, super().burn_in.forward)

    def begin_burn_in(self, state: PhaseState) -> GrowingState:
        """State of the learning for the first evaluations, and what was known before."""
        start = state.inner
        assert isinstance(start, StartState)
        rng = np.random.default_rng([start.seed, 1])
        if start.redraw:
            particles = self.problem.sample_prior(self.size, rng)
        else:  # particles that have failed start from others
            ok = state.evaluated.ok
            particles = start.U[rng.choice(np.flatnonzero(ok), self.size)]
            n = min(len(start.U), self.size)
            particles[:n] = np.where(ok[:n, None], start.U[:n], particles[:n])
        most = self._most_evaluations
        # after so many ensembles a surrogate without a certificate goes on in epochs: half are left
        share = (DEFAULT_EPOCHS + 1) // 2
        budget = Budget(
            self.start_size,
            self.tolerance,
            most,
            growth=most * share // ENSEMBLES if most > share * self.size else most,
            epochs=DEFAULT_EPOCHS,
            rounds=None if state.rounds is None else state.rounds + 1,
            workers=self.workers,
        )
        return self.burn_in.begin(
            state.evaluated, particles, start.seed, budget, start.n_evaluations, self._known()
        )

    @property
    def _most_evaluations(self) -> int:
        if self.max_evaluations is not None:
            return self.max_evaluations
        return ENSEMBLES * default_ensemble_size(self.problem.dimension)

    @property
    def start_size(self) -> int:
        """Number of initial positions, and evaluations of a round."""
        batch = smallest_batch(self.problem.dimension) if self.batch is None else self.batch
        return whole(batch, self.workers)

    @property
    def most_failures(self) -> int:
        """Forward evaluations that may fail in a row. A small round may fail by chance."""
        return self.size

    @cached_property
    def _start(self) -> Start:
        return Start(self.problem, self.min_members, self.seeds, self._most_evaluations)

    def first_design(self, rng: np.random.Generator) -> Array:
        """Points that cover the prior, shape (batch, d): draws that keep their distance."""
        n = self.start_size
        return spread(self.problem.sample_prior(CANDIDATES * n, rng), n)


def smallest_batch(dimension: int) -> int:
    """Fewest evaluations of a round: enough for an sd and for a linear trend."""
    return max(SMALLEST_BATCH, dimension + 2)


def spread(candidates: Array, size: int) -> Array:
    """Points that represent many draws of a law, by greedy choice.

    Each point minimizes the energy distance between points and draws [1]_. So it lies where many
    draws are far from the points before it.

    Parameters
    ----------
    candidates : ndarray of shape (m, d)
        Draws.
    size : int

    Returns
    -------
    ndarray of shape (size, d)

    References
    ----------
    .. [1] Mak, S. and Joseph, V. R. (2018). Support points. Annals of Statistics, 46, 2562-2592.
       https://doi.org/10.1214/17-AOS1629
    """
    z = Whitening.of(candidates).coordinates(candidates)
    distances = np.sqrt(squared_distances(z, z))
    attraction, repulsion = distances.mean(1), np.zeros(len(z))
    chosen: list[int] = []
    for n in range(size):
        score = attraction - repulsion / (n + 1)
        score[chosen] = np.inf
        chosen.append(int(score.argmin()))
        repulsion += distances[chosen[-1]]
    return candidates[chosen]
