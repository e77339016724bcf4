"""Forward map, likelihood and prior from plain functions and arrays, without PyMC."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import scipy  # parts of it are loaded when they are used first
from numpy.typing import ArrayLike, NDArray

from pymc_ensemble.forward.evaluation import Evaluations, evaluate_batch, evaluate_rows
from pymc_ensemble.forward.rounds import evaluating
from pymc_ensemble.problem.differences import (
    DIFFERENCE_STEP,
    central_differences,
    floored,
    observed_curvature,
    second_differences,
)

if TYPE_CHECKING:
    from pymc_ensemble.forward.model import ForwardModel

FloatArray = NDArray[np.float64]


class FunctionForward:
    """A plain function as a forward map.

    Parameters
    ----------
    function : callable
        Maps one point (d,) to outputs (K,), or, if `vectorized`, points (n, d) to (n, K).
    n_outputs : int
        Number K of outputs.
    vectorized : bool
        Whether the function takes many points at once.
    transform : callable, optional
        Linear map applied to the rows of outputs (the whitening).
    """

    def __init__(
        self,
        function: Callable[[FloatArray], ArrayLike],
        n_outputs: int,
        vectorized: bool,
        transform: Callable[[FloatArray], FloatArray] | None = None,
    ):
        self.function, self.n_outputs = function, n_outputs
        self.vectorized, self.transform = vectorized, transform
        # told by its method, as its class would load PyMC
        self.model: ForwardModel | None = None
        if hasattr(function, "evaluate_flat"):
            self.model = cast("ForwardModel", function)
        self.stochastic = self.model is not None and self.model.random

    @property
    def workers(self) -> int:
        """Number of evaluations at the same time."""
        return 1 if self.model is None else self.model.workers

    def compile(self) -> None:
        """Do nothing: a plain function is not compiled."""

    def __call__(
        self, points: FloatArray, seed: np.random.SeedSequence | None = None
    ) -> Evaluations:
        """Evaluate points of shape (n, d), each once; `seed` is for stochastic forward models."""
        if self.model is not None:
            evaluations = self._by_model(self.model, points, seed)
        elif self.vectorized:
            evaluations = evaluate_batch(self.function, points, self.n_outputs)
        else:
            evaluations = evaluate_rows(self.function, points, self.n_outputs)
        if self.transform is None:
            return evaluations
        outputs = evaluations.outputs
        good = ~evaluations.failed
        outputs[good] = self.transform(outputs[good])
        return evaluations

    def _by_model(
        self, model: "ForwardModel", points: FloatArray, seed: np.random.SeedSequence | None
    ) -> Evaluations:
        with evaluating(len(points), seed) as this:
            outputs = model.evaluate_flat(points, self.n_outputs, this)
        failures = list(this.failures.items())
        return Evaluations.from_outputs(
            outputs, failures, copy=False, n_calls=this.n_calls, seconds=this.seconds
        )


class GaussianLikelihood:
    """Loss of independent Gaussian noise."""

    quadratic = True

    def __init__(self, data: FloatArray, scales: FloatArray, log_determinant: float):
        self.data, self.scales = data, scales
        self.constant = 0.5 * (len(data) * np.log(2 * np.pi) + log_determinant)

    def loss(self, Z: FloatArray) -> FloatArray:
        """Negative log density, shape (J,)."""
        return 0.5 * np.sum(((Z - self.data) / self.scales) ** 2, axis=1) + self.constant

    def gradient(self, Z: FloatArray) -> FloatArray:
        """Gradient, shape (J, K)."""
        return (Z - self.data) / self.scales**2

    def curvature(self, Z: FloatArray) -> FloatArray:
        """Inverse variances, shape (J, K)."""
        return np.tile(self.scales**-2.0, (len(Z), 1))

    def misfit(self, Z: FloatArray) -> FloatArray:
        """Mean squared standardized residual, shape (J,)."""
        return np.mean(((Z - self.data) / self.scales) ** 2, axis=1)


class FunctionLikelihood:
    """Any loss, from functions of rows of outputs."""

    quadratic = False

    def __init__(
        self,
        loss: Callable[[FloatArray], ArrayLike],
        gradient: Callable[[FloatArray], ArrayLike] | None,
        curvature: Callable[[FloatArray], ArrayLike] | None,
    ):
        self._loss, self._gradient, self._curvature = loss, gradient, curvature

    def loss(self, Z: FloatArray) -> FloatArray:
        """Loss, shape (J,)."""
        return _of_shape(self._loss(Z), (len(Z),), "loss")

    def gradient(self, Z: FloatArray) -> FloatArray:
        """Gradient, shape (J, K)."""
        if self._gradient is None:
            return central_differences(self.loss, Z)
        return _of_shape(self._gradient(Z), Z.shape, "loss_gradient")

    def curvature(self, Z: FloatArray) -> FloatArray:
        """Curvature weights, shape (J, K)."""
        if self._curvature is not None:
            return _of_shape(self._curvature(Z), Z.shape, "curvature")
        if self._gradient is not None:
            return observed_curvature(self.gradient, Z)
        return floored(second_differences(self.loss, Z))

    def misfit(self, Z: FloatArray) -> FloatArray:
        """NaN, shape (J,): a loss alone does not tell what data it expects."""
        return np.full(len(Z), np.nan)


def _of_shape(values: ArrayLike, shape: tuple[int, ...], name: str) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != shape:
        raise ValueError(f"`{name}` returned values of shape {array.shape}, expected {shape}.")
    return array


class GaussianPrior:
    """Prior with given mean and covariance."""

    gaussian = True

    def __init__(self, mean: ArrayLike, covariance: ArrayLike):
        self.mean = np.atleast_1d(np.asarray(mean, dtype=np.float64))
        covariance = np.asarray(covariance, dtype=np.float64)
        if self.mean.ndim != 1:
            raise ValueError(f"the prior mean has shape {self.mean.shape}, expected (d,).")
        d = self.dimension = len(self.mean)
        if not (np.isfinite(self.mean).all() and np.isfinite(covariance).all()):
            raise ValueError("the prior mean and covariance must be finite.")
        if covariance.ndim == 1:
            covariance = np.diag(covariance)
        if covariance.shape != (d, d):
            raise ValueError(
                f"the prior covariance has shape {covariance.shape}, the mean has {d} entries."
            )
        try:
            self.factor = scipy.linalg.cholesky(covariance, lower=True)
        except scipy.linalg.LinAlgError as error:
            raise ValueError("the prior covariance is not positive definite.") from error
        self.constant = 0.5 * d * np.log(2 * np.pi) + np.log(np.diag(self.factor)).sum()

    def sample(self, size: int, rng: np.random.Generator) -> FloatArray:
        """Draw members, shape (size, d)."""
        return self.mean + rng.standard_normal((size, self.dimension)) @ self.factor.T

    def potential(self, U: FloatArray) -> FloatArray:
        """Negative log density, shape (J,)."""
        whitened = scipy.linalg.solve_triangular(self.factor, (U - self.mean).T, lower=True)
        return 0.5 * np.sum(whitened**2, axis=0) + self.constant

    def gradient(self, U: FloatArray) -> FloatArray:
        """Gradient of the potential, shape (J, d)."""
        return scipy.linalg.cho_solve((self.factor, True), (U - self.mean).T).T

    def hessian(self, u: FloatArray) -> FloatArray:
        """Precision matrix, shape (d, d)."""
        return scipy.linalg.cho_solve((self.factor, True), np.eye(len(u)))

    def impossible(self, U: FloatArray) -> tuple[str, float]:
        """All of the prior, and its log density where there is none."""
        return "the prior", -np.inf


class DensityPrior:
    """Prior from an object that samples and evaluates its log density.

    Parameters
    ----------
    distribution : object
        With ``logpdf(points)`` and a sampler: ``rvs(size=, random_state=)`` as the frozen
        distributions of SciPy have it, or ``sample(size, rng)``. A method ``grad_logpdf(points)``
        is used if there is one, otherwise differences are taken.
    """

    gaussian = False

    def __init__(self, distribution: Any):
        for method in (("logpdf",), ("sample", "rvs")):
            if not any(callable(getattr(distribution, name, None)) for name in method):
                raise TypeError(
                    f"`prior` has no method {' or '.join(method)}. Give (mean, covariance), a "
                    "frozen SciPy distribution, or an object with sample(size, rng) and "
                    "logpdf(points)."
                )
        self.distribution = distribution
        self.dimension = self.sample(2, np.random.default_rng(0)).shape[1]

    def sample(self, size: int, rng: np.random.Generator) -> FloatArray:
        """Draw members, shape (size, d)."""
        if hasattr(self.distribution, "sample"):
            draws = self.distribution.sample(size, rng)
        else:
            shape: Any = size
            if hasattr(self.distribution, "support"):  # independent coordinates
                shape = (size, np.size(self.distribution.support()[0]))
            draws = self.distribution.rvs(size=shape, random_state=rng)
        draws = np.asarray(draws, dtype=np.float64)
        if size > 1 and (draws.ndim not in (1, 2) or len(draws) != size):  # SciPy squeezes one
            raise ValueError(
                f"`prior` gave draws of shape {draws.shape}, expected ({size}, d) or ({size},)."
            )
        return draws.reshape(size, -1)

    def potential(self, U: FloatArray) -> FloatArray:
        """Negative log density, shape (J,)."""
        density = np.asarray(self.distribution.logpdf(U), dtype=np.float64)
        if len(U) > 1 and (density.ndim not in (1, 2) or len(density) != len(U)):
            raise ValueError(
                f"`logpdf` of `prior` returned values of shape {density.shape}, expected "
                f"({len(U)},)."
            )
        potential = -density.reshape(len(U), -1).sum(axis=1)
        return np.where(np.isnan(potential), np.inf, potential)

    def gradient(self, U: FloatArray) -> FloatArray:
        """Gradient of the potential, shape (J, d)."""
        if hasattr(self.distribution, "grad_logpdf"):
            return -_of_shape(self.distribution.grad_logpdf(U), U.shape, "grad_logpdf")
        return central_differences(self.potential, U)

    def hessian(self, u: FloatArray) -> FloatArray:
        """Hessian of the potential at one point, shape (d, d), by differences."""
        steps = np.diag(DIFFERENCE_STEP ** (3 / 4) * np.maximum(1, np.abs(u)))
        upper, lower = self.gradient(u + steps), self.gradient(u - steps)
        hessian = (upper - lower) / (2 * np.diag(steps)[:, None])
        return (hessian + hessian.T) / 2

    def impossible(self, U: FloatArray) -> tuple[str, float]:
        """All of the prior, and its log density where there is none."""
        return "the prior", -np.inf


def as_prior(prior: Any) -> GaussianPrior | DensityPrior:
    """Interpret the prior argument: (mean, covariance), a distribution, or an object like one."""
    if isinstance(prior, tuple | list) and len(prior) == 2:
        return GaussianPrior(*prior)
    if isinstance(prior, type(scipy.stats.multivariate_normal([0.0]))):
        return GaussianPrior(prior.mean, prior.cov)
    return DensityPrior(prior)
