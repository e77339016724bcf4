"""Types of kernels and samplers.

A *kernel* moves an evaluated ensemble, round by round: `ask` returns points, and `tell` takes their
evaluations. A *sampler* is a kernel with the life cycle of `phases`. It has the same `ask` and
`tell`, but begins with positions that were not evaluated.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from .ensemble import Array, Ensemble, Evaluations, Info, Origin, Snapshot


class KernelState(Protocol):
    """What a kernel remembers from round to round. It is frozen, and can be pickled."""

    @property
    def ensemble(self) -> Ensemble | None:
        """Evaluated particles, or None before the first evaluation."""

    @property
    def burned_in(self) -> bool:
        """Whether the kernel has only to sample, or to pass its result on."""

    @property
    def converged(self) -> bool:
        """Whether the kernel has passed its own test."""


class Kernel[S: KernelState, P](Protocol):
    """Dynamics of an ensemble. The caller makes the forward evaluations."""

    def ask(self, state: S, rng: np.random.Generator) -> tuple[Array, P]:
        """Points of the next round, shape (n, d), and what `tell` needs.

        All randomness of a round comes from `rng` here, and none from `tell`.
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
        """Snapshots of a block of sweeps, as they become draws."""


class BurnIn[S: KernelState, P](Kernel[S, P], Protocol):
    """Kernel that brings an ensemble to the posterior."""

    def start(self, ensemble: Ensemble) -> S:
        """State for an evaluated ensemble."""


class EnsembleKernel[S: KernelState, P](SamplingKernel[S, P], Protocol):
    """Kernel that starts from an ensemble, and samples."""

    def start(self, ensemble: Ensemble, *, at_rest: bool = False) -> S:
        """State for an evaluated ensemble. If it is `at_rest`, it need not settle."""


class NothingToFreeze[S: KernelState]:
    """Kernel that adapts nothing, and whose snapshots become draws as they are."""

    def freeze(self, state: S) -> S:
        """The same state."""
        return state

    def finish(
        self, state: S, snapshots: Sequence[Snapshot], rng: np.random.Generator
    ) -> Sequence[Snapshot]:
        """The same snapshots."""
        return snapshots


class Sampler[S: KernelState, P](Kernel[S, P], Protocol):
    """What a step method needs of a sampler: a kernel that knows how to start, and when to end."""

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
        """State for positions `U` that were not yet evaluated."""

    def freeze(self, state: S) -> S:
        """State in the sampling phase, with the ensemble as it is."""

    def finish(
        self, state: S, snapshots: Sequence[Snapshot], rng: np.random.Generator
    ) -> Sequence[Snapshot]:
        """Snapshots of a block of sweeps, as they become draws."""

    def origin(self, state: S) -> Origin:
        """What the draws follow, as the sampler declares."""
