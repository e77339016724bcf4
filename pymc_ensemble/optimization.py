"""Maximum a posteriori points without derivatives."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pymc as pm
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from pymc.initial_point import make_initial_point_fn
from pytensor.graph.basic import Variable

from pymc_ensemble.problem.checks import given_generator, given_model
from pymc_ensemble.problem.conditional_model import ConditionalModel, continuous_variables
from pymc_ensemble.problem.forward_models import estimated_likelihoods
from pymc_ensemble.problem.leaves import without_leaves
from pymc_ensemble.problem.points import compiled, names_of, points_of, variable_layout, vector_of
from pymc_ensemble.samplers.informed.laplace import Laplace
from pymc_ensemble.samplers.multiscale.descent import Descent, DescentState
from pymc_ensemble.samplers.multiscale.explorers import (
    SMOOTH_DISTANCE,
    Explorers,
    Preconditioner,
)

from .log import logger
from .problem import InverseProblem, problem_of
from .problem.mode_search import Search
from .samplers.options import require_counts, require_positive

__all__ = ["MAPEstimate", "find_MAP_ensemble"]

FloatArray = NDArray[np.float64]

ROUND = 50  # evaluations in a round of the tracked search
SLOPE_TOLERANCE = 1e-3  # tolerance of the explorers, in posterior standard deviations


class MAPEstimate(dict[str, np.ndarray]):
    """Point of a model, by the names of its variables, with the history of the search.

    Attributes
    ----------
    history : xarray.Dataset
        By ``iteration``: ``misfit``, the negative log likelihood; ``potential``, the negative log
        density that is minimized; and ``n_evals``, forward evaluations so far. With
        ``method="tracked"`` also ``gap``, the fall of the potential that is expected to remain, and
        ``unknown``, the share of the slope that is not known; with ``"explorers"`` ``gradient``,
        the root mean square slope in units of the preconditioner, and ``step_size``.
    converged : bool
        Whether the search has converged: no further fall of the potential is expected.
    """

    history: xr.Dataset
    converged: bool
    _laplace: Laplace | None = None

    @property
    def covariance(self) -> FloatArray:
        """Covariance of the Gaussian law at the point, in unconstrained coordinates, (d, d).

        It costs no forward evaluation.

        Raises
        ------
        ValueError
            If ``method="explorers"`` has found the point.
        """
        return self._known_law.covariance

    @property
    def log_evidence(self) -> float:
        """Log evidence by Laplace's approximation in unconstrained coordinates.

        It costs no forward evaluation.

        Raises
        ------
        ValueError
            If ``method="explorers"`` has found the point.
        """
        return self._known_law.log_evidence

    @property
    def _known_law(self) -> Laplace:
        if self._laplace is None:
            raise ValueError(
                'method="explorers" does not know the slope of the forward outputs, so there is '
                'no covariance. Use method="tracked".'
            )
        return self._laplace


def find_MAP_ensemble(
    *,
    vars: Sequence[Variable | str] | None = None,
    initvals: Mapping[str, ArrayLike] | None = None,
    method: Literal["tracked", "explorers"] | None = None,
    ensemble_size: int | None = None,
    preconditioner: str | ArrayLike | None = "ensemble",
    directions: int | None = None,
    sigma: float | None = None,
    tol: float | None = None,
    maxiter: int = 100,
    random_seed: Any = None,
    progressbar: bool = True,
    model: pm.Model | None = None,
    compile_kwargs: Mapping[str, Any] | None = None,
) -> MAPEstimate:
    """Find the maximum a posteriori point of a model without derivatives of its forward map.

    A Gauss-Newton search learns the slope of the forward outputs from all evaluations, and takes
    the scales of the parameters from the prior. Hundreds of parameters take a few hundred
    evaluations. If this is impossible, an ensemble moves to the posterior, and gives the scales and
    a start. One walker then descends along gradients that explorers around it measure.

    Parameters
    ----------
    vars : list of variables or names, optional
        Variables to optimize, by default all continuous ones. Others keep their initial values.
    initvals : dict, optional
        Start of the search: values by variable name, as in `pymc.sample`. By default the best
        member of the ensemble.
    method : {"tracked", "explorers"}, optional
        The Gauss-Newton search, for deterministic forward maps with a proper prior, or the descent
        with explorers, for noisy maps, improper priors and log densities without a forward map. By
        default it is "tracked", if this fits the model; the log tells if it is "explorers".
    ensemble_size : int, optional
        Forward evaluations in a round of the Gauss-Newton search, by default 50, at least 20. With
        ``method="explorers"`` it is the number of particles of the ensemble that runs first, by
        default ``max(100, 4 (d + 2))`` for d unconstrained parameters.
    preconditioner : "ensemble", None or array_like of shape (d, d), default "ensemble"
        Covariance in unconstrained coordinates that makes the posterior isotropic: that of the
        ensemble, none, or a matrix. The last two need no ensemble.
    directions : int, optional
        Number of explorers in each step, by default d. With fewer explorers a step sees only a part
        of the gradient, and the search may end far from the mode.
    sigma : float, optional
        Distance of the explorers in units of the preconditioner, by default 1e-3.
    tol : float, optional
        Root mean square gradient in units of the preconditioner at which the mode is found, roughly
        its remaining distance in posterior standard deviations, by default 1e-3.
    maxiter : int, default 100
        Largest number of steps. Each costs a round, or ``directions + 1`` evaluations.
    random_seed : int, Generator or None
        Seed of the ensemble and the directions.
    progressbar : bool, default True
        Whether the log ``pymc_ensemble`` shows the progress.
    model : pm.Model, optional
        By default the one on the context stack.
    compile_kwargs : dict, optional
        Options for the compilation of the forward map.

    Returns
    -------
    MAPEstimate
        A dict of values by variable name, as `pymc.find_MAP` returns it: free variables, their
        transformed values, and deterministics. Its ``history`` has misfit and evaluations by
        iteration, and ``converged`` tells whether the search has reached the mode.

    Raises
    ------
    ValueError
        If an option does not fit the model.
    SamplingError
        If the forward map fails at the start, or for most of the ensemble.

    Notes
    -----
    The search maximizes the posterior density of the model's own variables, without the Jacobians
    of transforms, as in `pymc.find_MAP`. The Gauss-Newton search ends when it can gain no more than
    0.0001, including the unknown part of the slope. The dynamics of the explorers are those of the
    multiscale sampler without noise [1]_. `preconditioner`, `directions`, `sigma` and `tol` belong
    to them. A mode is not a posterior: if there are several modes, the search finds one of them.

    References
    ----------
    .. [1] Pavliotis, G. A., Stuart, A. M. and Vaes, U. (2022). Derivative-free Bayesian inversion
       using multiscale dynamics. SIAM Journal on Applied Dynamical Systems, 21.
       https://arxiv.org/abs/2102.00540

    Examples
    --------
    >>> import numpy as np, pymc as pm
    >>> from pymc_ensemble import find_MAP_ensemble
    >>> with pm.Model():
    ...     rate = pm.LogNormal("rate")
    ...     decay = pm.math.exp(-rate * np.arange(5))
    ...     _ = pm.Normal("y", decay, 0.1, observed=[1.0, 0.4, 0.1, 0.1, 0.0])
    ...     point = find_MAP_ensemble(random_seed=1, progressbar=False)
    >>> point.converged
    True
    >>> round(float(point["rate"]), 2)
    0.93
    """
    if method not in (None, "tracked", "explorers"):
        raise ValueError(f'method must be "tracked" or "explorers", not {method!r}.')
    of_explorers = {"directions": directions, "sigma": sigma, "tol": tol}
    given_options = [name for name, value in of_explorers.items() if value is not None]
    if not (isinstance(preconditioner, str) and preconditioner == "ensemble"):
        given_options.insert(0, "preconditioner")
    if given_options and method != "explorers":
        raise ValueError(
            f'`{given_options[0]}` is an option of method="explorers". Leave it out, or choose '
            "that method."
        )
    require_counts(1, directions=directions, maxiter=maxiter)
    require_positive(sigma=sigma, tol=tol)
    model = without_leaves(given_model(model))
    if synthetic := list(estimated_likelihoods(model)):
        raise ValueError(
            f"`{synthetic[0]}` is a synthetic likelihood: the mode would be that of the luckiest "
            "simulation. Sample instead, with pymc_ensemble.sample_synthetic()."
        )
    rng = given_generator(random_seed, "random_seed")
    known = {*model.named_vars, *(value.name for value in model.value_vars)}
    if initvals is not None and not isinstance(initvals, Mapping):
        raise TypeError(f"`initvals` must map names to values, but is {initvals!r}.")
    if unknown := {getattr(key, "name", key) for key in initvals or ()} - known:
        raise ValueError(
            f"`initvals` names `{min(unknown)}`, which is not a variable of the model."
        )
    point = make_initial_point_fn(model=model, overrides=initvals)(int(rng.integers(2**30)))
    sampled, given = model, ()
    names = None if vars is None else names_of(vars)
    if names is not None and not names:
        raise ValueError("`vars` is empty: leave it out to optimize all continuous variables.")
    owned = continuous_variables(model, names, "find_MAP_ensemble")
    if not owned:
        raise ValueError(
            "The model has no continuous free variable, so there is nothing to optimize."
        )
    if len(owned) < len(model.value_vars):
        conditional = ConditionalModel(model, owned)
        conditional.condition(point)
        sampled, given = conditional.model, conditional.given
    options: dict[str, Any] = {"compile_kwargs": compile_kwargs, "given": given}
    problem, reason = problem_of(sampled, **options)
    target, _ = problem_of(sampled, jacobian=False, **options)
    search = Search(problem, target, sampled, rng, progressbar)

    layout = variable_layout(point, [value.name for value in sampled.value_vars])
    start = vector_of(layout, point)[None]
    for variable in layout:
        if not np.isfinite(start[0, variable.where]).all():
            raise ValueError(
                f"The start is not within the support of the prior: `{variable.name}`, in "
                f"unconstrained coordinates, is {point[variable.name]}. Give other `initvals`."
            )
    if method != "explorers":
        obstacle = _obstacle(problem, reason)
        if obstacle and method == "tracked":
            raise ValueError(f'{obstacle} Use method="explorers".')
        if obstacle:
            logger.info(f'find_MAP_ensemble: {obstacle} The search uses method="explorers".')
        method = "explorers" if obstacle else "tracked"
    if method == "tracked":
        begin = None if initvals is None else start
        found = search.track(begin, ROUND if ensemble_size is None else ensemble_size, maxiter)
    else:
        scale, start = _scale(search, start, preconditioner, ensemble_size, initvals is None)
        explorers = Explorers(target, directions or problem.dimension, sigma or SMOOTH_DISTANCE)
        descent = Descent(explorers, tol or SLOPE_TOLERANCE)
        found = search.descend(descent, DescentState(start, scale), maxiter)
    if not found.converged:
        warnings.warn(found.doubt, stacklevel=2)
    variables = model.unobserved_value_vars
    values = compiled(model, variables)({**point, **points_of(layout, found.u)[0]})
    estimate = MAPEstimate((v.name, value) for v, value in zip(variables, values, strict=True))
    estimate.converged, estimate.history = found.converged, found.history
    estimate._laplace = found.laplace
    return estimate


def _obstacle(problem: InverseProblem, reason: str) -> str:
    """Reason why the slope of the outputs cannot be tracked; empty if it can."""
    if reason:
        return f"There is no forward map whose slope could be learned: {reason}."
    if problem.stochastic:
        return "The forward model is stochastic: differences along short steps would be noise."
    try:
        problem.sample_prior(1, np.random.default_rng(0))
    except ValueError as error:
        return f"There is no prior to begin with. {error}"
    return ""


def _scale(
    search: Search,
    start: FloatArray,
    preconditioner: str | ArrayLike | None,
    ensemble_size: int | None,
    choose: bool,
) -> tuple[Preconditioner, FloatArray]:
    """Units of the explorers, and their start: the best particle of an ensemble, if `choose`.

    Raises
    ------
    ValueError
        If the ensemble cannot be drawn, because the prior is improper.
    """
    if not (isinstance(preconditioner, str) and preconditioner == "ensemble"):
        return Preconditioner.given(preconditioner, start[0]), start
    try:
        search.problem.sample_prior(1, np.random.default_rng(0))
    except ValueError as error:  # an improper prior
        raise ValueError(
            "There is no prior to draw an ensemble from, so scales and a start are not known. "
            "Give both: `initvals`, and `preconditioner=None` or a covariance, with "
            'method="explorers".'
        ) from error
    ensemble = search.ensemble(ensemble_size)
    if choose:
        target = search.target
        potential = target.loss(ensemble.Z) + target.prior_potential(ensemble.U)
        start = ensemble.U[[potential.argmin()]]
    return Preconditioner.of_points(ensemble.U), start
