"""What is sampled: forward map, loss and prior of an inverse problem."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pymc_ensemble.problem.noise import Whitening, whitening
from pymc_ensemble.problem.parts import Likelihood
from pymc_ensemble.problem.plain import (
    FunctionForward,
    FunctionLikelihood,
    GaussianLikelihood,
    as_prior,
)
from pymc_ensemble.problem.target import Target

if TYPE_CHECKING:  # a problem of plain functions does without PyMC, which takes long to load
    import pymc as pm
    from pytensor.graph.basic import Variable

    from pymc_ensemble.problem.extraction import Extraction


FloatArray = NDArray[np.float64]


class InverseProblem(Target):
    """A forward map, a loss of its outputs and a prior, each for a whole ensemble at once.

    The target is the density proportional to exp(-loss(G(u)) - prior_potential(u)) of the
    unknowns u. Build it from a PyMC model with `from_model`, or from plain functions.

    Parameters
    ----------
    forward : callable
        The forward map G: one point of shape (d,) to outputs of shape (K,). If `vectorized`, points
        of shape (n, d) to outputs of shape (n, K). A `forward_model` adds workers, time-outs and a
        store, and knows itself whether it is vectorized.
    prior : (mean, covariance) or object
        A Gaussian prior by its mean (d,) and its covariance (d, d) or variances (d,). Or a frozen
        SciPy distribution. Or any object with ``sample(size, rng)``, ``logpdf(points)`` and perhaps
        ``grad_logpdf(points)``.
    data : array_like of shape (K,), optional
        Observed values. They need `noise`.
    noise : float, array_like or CholeskyNoise or LowRankNoise, optional
        Gaussian noise of the data: a standard deviation, or one for each datum; a covariance matrix
        (K, K); `CholeskyNoise` or `LowRankNoise`. Correlated noise is whitened: the outputs of the
        problem are then transformed outputs of `forward`, whose noise is white.
    loss : callable, optional
        Instead of `data` and `noise`: negative log likelihood of outputs, (n, K) to (n,).
    loss_gradient : callable, optional
        Gradient of `loss` by the outputs, (n, K) to (n, K). The default is central differences,
        from 2 K calls of `loss` for all rows together.
    curvature : callable, optional
        Expected second derivative of `loss` by each output, (n, K) to (n, K), not negative. The
        default is the second derivative itself, if it is positive, by differences: 2 K calls of
        `loss_gradient` for all rows together or, without it, 2 K + 1 calls of `loss`.
    n_outputs : int, optional
        Number K of outputs, which `loss` needs.
    vectorized : bool, default False
        Whether `forward` takes many points at once. If it raises an error, its points are evaluated
        again, one by one, to find those that fail. To avoid this, return rows of NaN for points
        that fail.
    coordinate_names : sequence of str, optional
        Names of the d unknowns, by default ``u[0]``, ``u[1]``, ...

    Raises
    ------
    TypeError
        If neither `data` with `noise` nor `loss` with `n_outputs` is given, or both, or if `prior`
        has no way to sample or no log density.
    ValueError
        If the shapes do not fit, the data are not finite, a standard deviation is not positive, a
        covariance is not positive definite, or the number of names is not that of the unknowns.

    Examples
    --------
    >>> import numpy as np
    >>> from pymc_ensemble import InverseProblem
    >>> problem = InverseProblem(
    ...     lambda u: np.array([u[0] + u[1], u[0] * u[1]]),
    ...     prior=(np.zeros(2), np.eye(2)),
    ...     data=[1.0, 0.2],
    ...     noise=0.1,
    ... )
    >>> ensemble = problem.sample_prior(20, np.random.default_rng(1))
    >>> problem.forward(ensemble).shape
    (20, 2)
    """

    def __init__(
        self,
        forward: Callable[[FloatArray], ArrayLike],
        *,
        prior: Any,
        data: ArrayLike | None = None,
        noise: Any = None,
        loss: Callable[[FloatArray], ArrayLike] | None = None,
        loss_gradient: Callable[[FloatArray], ArrayLike] | None = None,
        curvature: Callable[[FloatArray], ArrayLike] | None = None,
        n_outputs: int | None = None,
        vectorized: bool = False,
        coordinate_names: Sequence[str] | None = None,
    ):
        if (loss is None) == (data is None or noise is None):
            raise TypeError("Give either `data` and `noise`, or `loss` and `n_outputs`.")
        whiten: Whitening | None = None
        likelihood: Likelihood
        if loss is not None:
            if n_outputs is None:
                raise TypeError("`loss` needs `n_outputs`, the number of forward outputs.")
            likelihood = FunctionLikelihood(loss, loss_gradient, curvature)
        else:
            values = np.array(data, dtype=np.float64, ndmin=1)
            if values.ndim != 1:
                raise ValueError(f"`data` has shape {values.shape}, expected (K,). Flatten it.")
            if not np.isfinite(values).all():
                raise ValueError("`data` must be finite. Leave out missing entries.")
            n_outputs = len(values)
            whiten, scales = whitening(noise, n_outputs)
            log_determinant = 2 * float(np.log(scales).sum())
            if whiten is not None:
                values, log_determinant = whiten(values[None])[0], whiten.log_determinant
            likelihood = GaussianLikelihood(values, scales, log_determinant)
        forward_map = FunctionForward(forward, n_outputs, vectorized, whiten)
        super().__init__(forward_map, likelihood, as_prior(prior), coordinate_names)

    @classmethod
    def from_model(
        cls,
        model: "pm.Model | None" = None,
        vars: "Sequence[Variable | str] | None" = None,
        *,
        compile_kwargs: Mapping[str, Any] | None = None,
        given: Collection[str] = (),
        jacobian: bool = True,
    ) -> "InverseProblem":
        """Take a PyMC model apart into forward map, loss and prior.

        Parameters
        ----------
        model : pymc.Model, optional
            The model, by default the one on the context stack.
        vars : sequence of Variable or str, optional
            The variables to sample, or their names, by default all. They must be all continuous
            variables.
        compile_kwargs : dict, optional
            Options of `pytensor.function` for the forward map, such as ``{"mode": "NUMBA"}``.
        given : collection of str, default ()
            Names of observed variables that are not data, but held fixed. There is no warning if
            they do not depend on the unknowns.
        jacobian : bool, default True
            Whether the prior is that of the unconstrained coordinates, with the Jacobians of the
            transforms. Without them its mode is that of the model's own variables.

        Returns
        -------
        InverseProblem

        Raises
        ------
        ValueError
            If the model has discrete free variables or no likelihood, if no observed variable
            depends on the unknowns, or if `vars` leaves out variables.
        NotImplementedError
            If the likelihood cannot be evaluated as a function of forward outputs, or if the prior
            has no gradient.

        Notes
        -----
        The forward outputs are the parameters of the likelihood that depend on the unknowns, in
        their natural form. For rates and probabilities behind a log or logit link this is the
        linear predictor, for unknown scales the logarithm. The mean of a Gaussian vector of known
        covariance is whitened. The density of an observed variable that does not depend on the
        unknowns is a constant of the loss. Nothing is evaluated at construction.

        The density of an angle (`pymc.VonMises`, PyMC's circular transform) is periodic in its
        unconstrained coordinate. It is kept to one period, and is zero outside. The period is cut
        half a turn from the mean of a von Mises prior, otherwise at half a turn. If the prior is
        flat, choose a mean such that the posterior is far from this cut. Step methods warn if the
        posterior is at the cut.

        Examples
        --------
        >>> import numpy as np, pymc as pm
        >>> from pymc_ensemble import InverseProblem
        >>> with pm.Model():
        ...     slope = pm.Normal("slope")
        ...     sigma = pm.HalfNormal("sigma")
        ...     y = pm.Normal("y", slope * np.arange(3.0), sigma, observed=[0.1, 0.9, 2.2])
        ...     problem = InverseProblem.from_model()
        >>> problem.coordinate_names
        ('slope', 'sigma_log__')
        >>> problem.n_outputs
        4
        """
        from pymc_ensemble.problem.checks import given_model
        from pymc_ensemble.problem.extraction import extract
        from pymc_ensemble.problem.leaves import without_leaves
        from pymc_ensemble.problem.remembered import remembered

        whole = given_model(model)

        def make() -> "InverseProblem":
            extraction = extract(without_leaves(whole), vars, given, jacobian)
            return cls._of_extraction(extraction, compile_kwargs)

        return remembered(whole, ("map", cls, vars, compile_kwargs, given, jacobian), make)

    @classmethod
    def from_density(
        cls,
        model: "pm.Model | None" = None,
        vars: "Sequence[Variable | str] | None" = None,
        *,
        compile_kwargs: Mapping[str, Any] | None = None,
        jacobian: bool = True,
    ) -> "InverseProblem":
        """Take a PyMC model as a prior and a log density that is known by its values only.

        The model needs neither observed variables nor a gradient. It may have a `pymc.Potential`, a
        `pymc.CustomDist` or any other log density, also black boxes.

        Parameters
        ----------
        model, vars, compile_kwargs, jacobian
            See `from_model`.

        Returns
        -------
        InverseProblem
            Its only output is its loss: the negative log density of observed variables, potentials,
            and free variables whose own density has no gradient. Its `density_only` is true.

        Raises
        ------
        ValueError
            If the model has discrete free variables, or if `vars` leaves out variables.

        Examples
        --------
        >>> import pymc as pm
        >>> from pymc_ensemble import InverseProblem
        >>> with pm.Model():
        ...     x = pm.Normal("x", shape=2)
        ...     _ = pm.Potential("ring", -8 * (pm.math.sqrt((x**2).sum()) - 1) ** 2)
        ...     problem = InverseProblem.from_density()
        >>> problem.n_outputs
        1
        """
        from pymc_ensemble.problem.checks import given_model
        from pymc_ensemble.problem.extraction import extract_density
        from pymc_ensemble.problem.leaves import without_leaves
        from pymc_ensemble.problem.remembered import remembered

        whole = given_model(model)

        def make() -> "InverseProblem":
            extraction = extract_density(without_leaves(whole), vars, jacobian)
            problem = cls._of_extraction(extraction, compile_kwargs)
            problem.density_only = True
            return problem

        return remembered(whole, ("density", cls, vars, compile_kwargs, jacobian), make)

    @classmethod
    def _of_extraction(
        cls, extraction: "Extraction", compile_kwargs: Mapping[str, Any] | None
    ) -> "InverseProblem":
        from pymc_ensemble.problem.checks import check_compile_kwargs
        from pymc_ensemble.problem.compiled import CompiledForward, CompiledPrior
        from pymc_ensemble.problem.likelihood import CompiledLikelihood

        check_compile_kwargs(compile_kwargs)
        problem = cls.__new__(cls)
        Target.__init__(
            problem,
            CompiledForward(extraction, compile_kwargs),
            CompiledLikelihood(extraction.terms, extraction.constant),
            CompiledPrior(extraction),
            extraction.coordinates.names,
        )
        return problem


def problem_of(
    model: "pm.Model",
    *,
    compile_kwargs: Mapping[str, Any] | None = None,
    given: Collection[str] = (),
    jacobian: bool = True,
) -> tuple[InverseProblem, str]:
    """Inverse problem of a model with a forward map, if it has one, otherwise of its density.

    Parameters
    ----------
    model, compile_kwargs, given, jacobian
        See `InverseProblem.from_model`.

    Returns
    -------
    problem : InverseProblem
    reason : str
        Why there is no forward map, without a full stop. Empty if there is one.
    """
    options: dict[str, Any] = {"compile_kwargs": compile_kwargs, "jacobian": jacobian}
    reason = "there is no observed variable"
    if model.observed_RVs:
        try:
            return InverseProblem.from_model(model, given=given, **options), ""
        except NotImplementedError as error:
            reason = str(error).rstrip(".")
    return InverseProblem.from_density(model, **options), reason
