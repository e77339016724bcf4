"""What kernels and samplers have in common, as types.

A *kernel* moves an ensemble that has been evaluated, round by round: it asks for points, and is
told their evaluations. A *sampler* is a kernel with a life around it, which is that of `phases`. It
has the same `ask` and `tell`, but begins with positions that nothing is known of.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from .ensemble import Array, Ensemble, Evaluations, Info, Origin, Snapshot


class KernelState(Protocol):
    """What a kernel remembers from round to round; frozen, and it can be pickled."""

    @property
    def ensemble(self) -> Ensemble | None:
        """Evaluated particles, or None before the first evaluation."""

    @property
    def burned_in(self) -> bool:
        """Whether the kernel has nothing left to do but to sample, or to hand on."""

    @property
    def converged(self) -> bool:
        """Whether it has passed its own test on the way."""


class Kernel[S: KernelState, P](Protocol):
    """Dynamics of an ensemble whose forward evaluations somebody else makes."""

    def ask(self, state: S, rng: np.random.Generator) -> tuple[Array, P]:
        """Points of the next round, shape (n, d), and what `tell` needs to judge them.

        All randomness of a round comes from `rng`, here: `tell` has none.
        """

    def tell(self, state: S, pending: P, evaluations: Evaluations) -> tuple[S, Info]:
        """State after the round, and an account of it."""


class SamplingKernel[S: KernelState, P](Kernel[S, P], Protocol):
    """Kernel whose sweeps become draws."""

    def freeze(self, state: S) -> S:
        """State whose adaptation has ended."""

    def finish(
        self, state: S, snapshots: Sequence[Snapshot], rng: np.random.Generator
    ) -> Sequence[Snapshot]:
        """Snapshots of a block of sweeps as they are to be handed out."""


class BurnIn[S: KernelState, P](Kernel[S, P], Protocol):
    """Kernel that brings an ensemble to the posterior."""

    def start(self, ensemble: Ensemble) -> S:
        """State for an evaluated ensemble."""


class EnsembleKernel[S: KernelState, P](SamplingKernel[S, P], Protocol):
    """Kernel that samples from an ensemble on."""

    def start(self, ensemble: Ensemble, *, at_rest: bool = False) -> S:
        """State for an evaluated ensemble; if it is `at_rest`, nothing has to settle any more."""


class NothingToFreeze[S: KernelState]:
    """Kernel that adapts nothing, and whose snapshots are handed out as they are."""

    def freeze(self, state: S) -> S:
        """The same state."""
        return state

    def finish(
        self, state: S, snapshots: Sequence[Snapshot], rng: np.random.Generator
    ) -> Sequence[Snapshot]:
        """The same snapshots."""
        return snapshots


class Sampler[S: KernelState, P](Kernel[S, P], Protocol):
    """What a step method asks of a sampler: a kernel that knows how to begin, and when to end."""

    @property
    def size(self) -> int:
        """Number of particles J that become draws."""

    @property
    def start_size(self) -> int:
        """Number of initial positions."""

    @property
    def evaluations_per_sweep(self) -> int:
        """Forward evaluations of a sweep of the sampling phase."""

    def start(self, U: Array, *, redraw: bool = False, skip_burn_in: bool = False) -> S:
        """State for positions `U` that were not evaluated yet."""

    def freeze(self, state: S) -> S:
        """State in the sampling phase, with the ensemble as it is."""

    def finish(
        self, state: S, snapshots: Sequence[Snapshot], rng: np.random.Generator
    ) -> Sequence[Snapshot]:
        """Snapshots of a block of sweeps as they are to be handed out."""

    def origin(self, state: S) -> Origin:
        """What the draws follow, as the sampler declares."""
