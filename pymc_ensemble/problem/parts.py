"""Types of the three parts of a target density: forward map, likelihood and prior."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pymc_ensemble.forward.evaluation import Evaluations

FloatArray = NDArray[np.float64]


class ForwardMap(Protocol):
    """Evaluates points (n, d)."""

    n_outputs: int

    def __call__(
        self, points: FloatArray, seed: np.random.SeedSequence | None = None, /
    ) -> Evaluations:
        """Evaluate the forward map."""

    def compile(self) -> None:
        """Compile the forward map."""


class Likelihood(Protocol):
    """Loss of rows of outputs (J, K)."""

    quadratic: bool

    def loss(self, Z: FloatArray, /) -> FloatArray:
        """Loss, shape (J,)."""

    def gradient(self, Z: FloatArray, /) -> FloatArray:
        """Gradient, shape (J, K)."""

    def curvature(self, Z: FloatArray, /) -> FloatArray:
        """Weights, shape (J, K)."""

    def misfit(self, Z: FloatArray, /) -> FloatArray:
        """Misfit per datum, shape (J,)."""


class Prior(Protocol):
    """Prior of rows of coordinates (J, d)."""

    @property
    def dimension(self) -> int:
        """Number d of coordinates."""

    @property
    def gaussian(self) -> bool:
        """Whether the potential is quadratic."""

    def sample(self, size: int, rng: np.random.Generator, /) -> FloatArray:
        """Draws, shape (size, d)."""

    def potential(self, U: FloatArray, /) -> FloatArray:
        """Potential, shape (J,)."""

    def gradient(self, U: FloatArray, /) -> FloatArray:
        """Gradient, shape (J, d)."""

    def hessian(self, u: FloatArray, /) -> FloatArray:
        """Hessian at one point, shape (d, d)."""

    def impossible(self, U: FloatArray, /) -> tuple[str, float]:
        """Part of the prior with no density at any of the points, in words, and its value."""
