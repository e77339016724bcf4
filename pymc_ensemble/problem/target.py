"""A forward map, a loss and a prior as one target density, for whole ensembles."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pymc_ensemble.forward.evaluation import Evaluations
from pymc_ensemble.forward.rounds import looking_up
from pymc_ensemble.problem.parts import ForwardMap, Likelihood, Prior
from pymc_ensemble.samplers.options import require_counts

FloatArray = NDArray[np.float64]


class Target:
    """The density proportional to exp(-loss(G(u)) - prior_potential(u)), from its three parts."""

    density_only = False
    """Whether the only output is the loss itself, without the structure of a forward map."""

    def __init__(
        self,
        forward: ForwardMap,
        likelihood: Likelihood,
        prior: Prior,
        names: Sequence[str] | None,
    ) -> None:
        self._forward, self._likelihood, self._prior = forward, likelihood, prior
        if names is None:
            names = [f"u[{i}]" for i in range(prior.dimension)]
        if len(names) != prior.dimension:
            raise ValueError(f"{len(names)} coordinate names for {prior.dimension} unknowns.")
        self.coordinate_names = tuple(names)

    @property
    def dimension(self) -> int:
        """Number d of unknowns."""
        return self._prior.dimension

    @property
    def n_outputs(self) -> int:
        """Number K of forward outputs."""
        return self._forward.n_outputs

    @property
    def quadratic_loss(self) -> bool:
        """Whether the loss is quadratic in the outputs, with constant curvature."""
        return self._likelihood.quadratic

    @property
    def unknown_noise(self) -> tuple[str, ...]:
        """Names of the likelihoods whose scale depends on the unknowns."""
        terms = getattr(self._likelihood, "terms", ())
        return tuple(term.name for term in terms if term.unknown_noise)

    @property
    def stochastic(self) -> bool:
        """Whether a forward model is declared as stochastic."""
        return bool(getattr(self._forward, "stochastic", False))

    @property
    def workers(self) -> int:
        """Number of evaluations at the same time."""
        return int(getattr(self._forward, "workers", 1))

    @cached_property
    def gaussian_prior(self) -> bool:
        """Whether the prior potential is quadratic in the unknowns."""
        return self._prior.gaussian

    def evaluate(self, U: ArrayLike, seed: np.random.SeedSequence | None = None) -> Evaluations:
        """Evaluate the forward map, once for each member. Members may fail.

        Parameters
        ----------
        U : array_like of shape (J, d)
            Points.
        seed : numpy.random.SeedSequence, optional
            Seed of this batch, for a stochastic `forward_model`. Each evaluation gets a child of
            it. By default seeds follow from the points, and from how often each was evaluated in
            this process.

        Returns
        -------
        Evaluations
            Outputs of shape (J, K), and which members failed and why.
        """
        # a copy, so that the function cannot change the caller's array
        return self._forward(_rows(U, self.dimension).copy(), seed)

    def known_outputs(self, U: ArrayLike) -> FloatArray:
        """Forward outputs of points that the store of a forward model knows, up to rounding.

        Parameters
        ----------
        U : array_like of shape (n, d)
            Points.

        Returns
        -------
        ndarray of shape (n, K)
            Forward outputs. For a stochastic forward model, those of one replicate.
        """
        # outside of a round forward models use known outputs, and make no replicates
        with looking_up():
            return self._forward.all(_rows(U, self.dimension))  # type: ignore[attr-defined]

    def compile(self) -> None:
        """Compile the forward map, if it can be compiled.

        Otherwise it is compiled at the first evaluation, and after a fork in every process anew.

        Notes
        -----
        A graph of PyTensor alone is evaluated at the origin, as some modes (Numba) compile at the
        first call. Operations from outside PyTensor are not called.
        """
        self._forward.compile()

    def forward(self, U: ArrayLike) -> FloatArray:
        """Evaluate the forward map, once for each member, and return only its outputs.

        Parameters
        ----------
        U : array_like of shape (J, d)
            Points.

        Returns
        -------
        ndarray of shape (J, K)
            Forward outputs; NaN rows where the forward map failed.

        Raises
        ------
        ValueError
            If the points do not have d columns.
        """
        return self.evaluate(U).outputs

    def loss(self, Z: ArrayLike) -> FloatArray:
        """Negative log likelihood of the outputs, with all constants.

        Parameters
        ----------
        Z : array_like of shape (J, K)
            Forward outputs.

        Returns
        -------
        ndarray of shape (J,)
            Losses. +inf for rows that are not finite, or have a density of zero.
        """
        return _finite_rows(self._likelihood.loss, _rows(Z, self.n_outputs), np.inf)

    def loss_gradient(self, Z: ArrayLike) -> FloatArray:
        """Gradient of the loss by the outputs.

        Parameters
        ----------
        Z : array_like of shape (J, K)
            Forward outputs. They are clipped to the domain of the likelihood first.

        Returns
        -------
        ndarray of shape (J, K)
            NaN for rows that are not finite.
        """
        return _finite_rows(self._likelihood.gradient, _rows(Z, self.n_outputs), np.nan)

    def loss_and_gradient(self, Z: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Loss and its gradient. For compiled functions this costs less than two calls.

        Parameters
        ----------
        Z : array_like of shape (J, K)
            Forward outputs.

        Returns
        -------
        loss : ndarray of shape (J,)
        gradient : ndarray of shape (J, K)
            The same as from `loss` and `loss_gradient`.
        """
        Z = _rows(Z, self.n_outputs)
        both = _for_finite_rows(self._likelihood, "loss_and_gradient", Z)
        return both(Z) if both else (self.loss(Z), self.loss_gradient(Z))

    def curvature(self, Z: ArrayLike) -> FloatArray:
        """Fisher weights: the expected second derivative of the loss by each output.

        Parameters
        ----------
        Z : array_like of shape (J, K)
            Forward outputs. They are clipped to the domain of the likelihood first.

        Returns
        -------
        ndarray of shape (J, K)
            Not negative; NaN for rows that are not finite.
        """
        return _finite_rows(self._likelihood.curvature, _rows(Z, self.n_outputs), np.nan)

    def misfit(self, Z: ArrayLike) -> FloatArray:
        """Misfit per datum: excess of the loss over its mean for data that follow the outputs.

        Parameters
        ----------
        Z : array_like of shape (J, K)
            Forward outputs. They are clipped to the domain of the likelihood first.

        Returns
        -------
        ndarray of shape (J,)
            One if the loss has its mean over data drawn from the likelihood with these outputs. For
            Gaussian noise it is the mean squared residual, in units of its variance. NaN for rows
            that are not finite, and if data cannot be drawn.

        Notes
        -----
        It is ``1 + 2 (loss - E loss) / n`` with n data. The expectation is over data that follow
        the likelihood with these outputs. If it is not known, 64 simulated data sets estimate it.

        Examples
        --------
        >>> import pymc as pm
        >>> from pymc_ensemble import InverseProblem
        >>> with pm.Model():
        ...     x = pm.Normal("x")
        ...     _ = pm.Normal("y", x * [1.0, 2.0], 0.5, observed=[0.0, 1.0])
        ...     problem = InverseProblem.from_model()
        >>> problem.misfit([[0.5, 0.5]])
        array([1.])
        """
        return _finite_rows(self._likelihood.misfit, _rows(Z, self.n_outputs), np.nan)

    def sample_prior(self, size: int, rng: np.random.Generator) -> FloatArray:
        """Draw an ensemble from the prior.

        Parameters
        ----------
        size : int
            Number of members J.
        rng : numpy.random.Generator
            Source of randomness.

        Returns
        -------
        ndarray of shape (J, d)
            Members in unconstrained coordinates.

        Raises
        ------
        ValueError
            If the prior is improper, or gives members that are not finite.
        """
        require_counts(1, size=size)
        if size is None or not isinstance(rng, np.random.Generator):
            raise TypeError(
                f"`size` must be an integer and `rng` a numpy.random.Generator, not size={size!r} "
                f"and rng={rng!r}."
            )
        return self._prior.sample(size, rng)

    def check_prior(self, U: ArrayLike) -> None:
        """Refuse a prior without a density at any of the points, before they are evaluated.

        Parameters
        ----------
        U : array_like of shape (n, d)
            Points, in unconstrained coordinates.

        Raises
        ------
        ValueError
            If the density is zero or NaN at all points. The error names the part of the model.
        """
        U = _rows(U, self.dimension)
        if len(U) and not np.isfinite(self._prior.potential(U)).any():
            part, value = self._prior.impossible(U)
            raise ValueError(
                f"The log density of {part} is {value} at all {len(U)} points of the initial "
                "ensemble, so there is nothing to sample. Correct it in the model, or pass an "
                "`initial_ensemble=` where its density is finite."
            )

    def prior_potential(self, U: ArrayLike) -> FloatArray:
        """Negative log prior density in unconstrained coordinates.

        Parameters
        ----------
        U : array_like of shape (J, d)
            Points.

        Returns
        -------
        ndarray of shape (J,)
            Potentials, with the Jacobians of the transforms and the potentials of the model. +inf
            if the density is zero or the point is not finite.
        """
        return _finite_rows(self._prior.potential, _rows(U, self.dimension), np.inf)

    def prior_gradient(self, U: ArrayLike) -> FloatArray:
        """Gradient of the prior potential.

        Parameters
        ----------
        U : array_like of shape (J, d)
            Points.

        Returns
        -------
        ndarray of shape (J, d)
            NaN for rows that are not finite.

        Raises
        ------
        ValueError
            If the points do not have d columns.
        """
        return _finite_rows(self._prior.gradient, _rows(U, self.dimension), np.nan)

    def prior_and_gradient(self, U: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Prior potential and its gradient, which costs less than two calls.

        Parameters
        ----------
        U : array_like of shape (J, d)
            Points.

        Returns
        -------
        potential : ndarray of shape (J,)
        gradient : ndarray of shape (J, d)
            The same as from `prior_potential` and `prior_gradient`.
        """
        U = _rows(U, self.dimension)
        both = _for_finite_rows(self._prior, "potential_and_gradient", U)
        return both(U) if both else (self.prior_potential(U), self.prior_gradient(U))

    def prior_hessian(self, u: ArrayLike) -> FloatArray:
        """Hessian of the prior potential at one point.

        Parameters
        ----------
        u : array_like of shape (d,)
            The point.

        Returns
        -------
        ndarray of shape (d, d)
            Symmetric.

        Raises
        ------
        ValueError
            If the point does not have d entries.
        """
        [point] = _rows(np.atleast_2d(np.asarray(u, dtype=np.float64)), self.dimension)
        return self._prior.hessian(point)


def _rows(values: ArrayLike, columns: int) -> FloatArray:
    array = np.ascontiguousarray(values, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != columns:
        raise ValueError(f"Expected an array of shape (n, {columns}), got {array.shape}.")
    return array


def _for_finite_rows(part: Any, method: str, rows: FloatArray) -> Callable[..., Any] | None:
    """Method of a part for value and gradient at once, if it exists and rows are finite."""
    return getattr(part, method, None) if np.isfinite(rows).all() else None


def _finite_rows(
    function: Callable[[FloatArray], FloatArray], rows: FloatArray, otherwise: float
) -> FloatArray:
    """Apply a function to the finite rows. Other rows get a constant."""
    finite = np.isfinite(rows).all(axis=1)
    if finite.all():
        return function(rows)
    inside = function(rows[finite])
    values = np.full((len(rows), *inside.shape[1:]), otherwise)
    values[finite] = inside
    return values
