"""Maximum a posteriori points without derivatives."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pymc as pm
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from pymc.initial_point import make_initial_point_fn
from pytensor.graph.basic import Variable

from pymc_ensemble.problem.checks import given_generator, given_model
from pymc_ensemble.problem.conditional_model import ConditionalModel, continuous_variables
from pymc_ensemble.problem.driver import Account, AskTell, Driver, Pending, State
from pymc_ensemble.problem.points import compiled, names_of, points_of, variable_layout, vector_of
from pymc_ensemble.samplers.kalman.sampler import EnsembleKalman
from pymc_ensemble.samplers.multiscale.descent import Descent, DescentState
from pymc_ensemble.samplers.multiscale.explorers import Explorers, Preconditioner
from pymc_ensemble.samplers.multiscale.sampler import SMOOTH_DISTANCE

from .log import ProgressLog, show_log
from .problem import InverseProblem, problem_of
from .samplers.ensemble import Ensemble, Info
from .samplers.options import require_counts, require_positive

__all__ = ["MAPEstimate", "find_MAP_ensemble"]

FloatArray = NDArray[np.float64]


class MAPEstimate(dict[str, np.ndarray]):
    """Point of a model, by the names of its variables, with the way that led there.

    Attributes
    ----------
    history : xarray.Dataset
        By ``iteration``: ``misfit``, the negative log likelihood; ``potential``, the negative log
        density that is minimized; ``gradient``, its root mean square slope in units of the
        preconditioner; ``step_size``; and ``n_evals``, forward evaluations so far.
    converged : bool
        Whether the gradient fell below its tolerance.
    """

    history: xr.Dataset
    converged: bool


def find_MAP_ensemble(
    *,
    vars: Sequence[Variable | str] | None = None,
    initvals: Mapping[str, ArrayLike] | None = None,
    ensemble_size: int | None = None,
    preconditioner: str | ArrayLike | None = "ensemble",
    directions: int | None = None,
    sigma: float = SMOOTH_DISTANCE,
    tol: float = 1e-3,
    maxiter: int = 100,
    random_seed: Any = None,
    progressbar: bool = True,
    model: pm.Model | None = None,
    compile_kwargs: Mapping[str, Any] | None = None,
) -> MAPEstimate:
    """Find the maximum a posteriori point of a model without derivatives of its forward map.

    An ensemble that is moved to the posterior tells scales and a start. Then one walker descends
    along gradients that explorers around it measure.

    Parameters
    ----------
    vars : list of variables or names, optional
        Variables to optimize, by default all continuous ones. Others keep their initial values.
    initvals : dict, optional
        Where to start, values by variable name, as in `pymc.sample`. By default at the best member
        of the ensemble.
    ensemble_size : int, optional
        Particles of the ensemble that runs first; by default ``max(100, 4 (d + 2))`` for d
        unconstrained parameters.
    preconditioner : "ensemble", None or array_like of shape (d, d), default "ensemble"
        Covariance in unconstrained coordinates that makes the posterior isotropic: that of the
        ensemble, none, or a matrix. Without "ensemble" no ensemble is needed.
    directions : int, optional
        Explorers in each step, by default d. With fewer of them a step sees a part of the gradient
        only, and the search may end far from the mode.
    sigma : float, default 1e-3
        Distance of the explorers in units of the preconditioner.
    tol : float, default 1e-3
        Root mean square gradient in units of the preconditioner at which the mode is found, roughly
        its remaining distance in posterior standard deviations.
    maxiter : int, default 100
        Steps after which the search ends; each costs ``directions + 1`` forward evaluations.
    random_seed : int, Generator or None
        Seed of the ensemble and the directions.
    progressbar : bool, default True
        Whether the log ``pymc_ensemble`` tells of the progress.
    model : pm.Model, optional
        By default the one on the context stack.
    compile_kwargs : dict, optional
        Options for the compilation of the forward map.

    Returns
    -------
    MAPEstimate
        A dict of values by variable name, as `pymc.find_MAP` returns it: free variables, their
        transformed values, and deterministics. Its ``history`` tells misfit and evaluations by
        iteration, and ``converged`` whether the gradient vanishes.

    Raises
    ------
    ValueError
        If an option does not fit the model.
    SamplingError
        If the forward map fails at the start, or for most of the ensemble.

    Notes
    -----
    Maximized is the posterior density of the model's own variables, without the Jacobians of
    transforms, as in `pymc.find_MAP`. The dynamics are those of the multiscale sampler with its
    noise turned off [1]_. A mode is not a posterior: of several modes one is found.

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
    require_counts(1, directions=directions, maxiter=maxiter)
    require_positive(sigma=sigma, tol=tol)
    model = given_model(model)
    rng = given_generator(random_seed, "random_seed")
    known = {*model.named_vars, *(value.name for value in model.value_vars)}
    if initvals is not None and not isinstance(initvals, Mapping):
        raise TypeError(f"`initvals` has to map names to values, and is {initvals!r}.")
    if unknown := {getattr(key, "name", key) for key in initvals or ()} - known:
        raise ValueError(f"`initvals` names `{min(unknown)}`, which the model does not have.")
    point = make_initial_point_fn(model=model, overrides=initvals)(int(rng.integers(2**30)))
    sampled, given = model, ()
    names = None if vars is None else names_of(vars)
    if names is not None and not names:
        raise ValueError("`vars` is empty: leave it out to optimize all continuous variables.")
    owned = continuous_variables(model, names, "find_MAP_ensemble")
    if not owned:
        raise ValueError("The model has no continuous free variable, hence nothing to optimize.")
    if len(owned) < len(model.value_vars):
        conditional = ConditionalModel(model, owned)
        conditional.condition(point)
        sampled, given = conditional.model, conditional.given
    options: dict[str, Any] = {"compile_kwargs": compile_kwargs, "given": given}
    problem, _ = problem_of(sampled, **options)
    target, _ = problem_of(sampled, jacobian=False, **options)
    search = Search(problem, sampled, rng, progressbar)

    layout = variable_layout(point, [value.name for value in sampled.value_vars])
    start = vector_of(layout, point)[None]
    for variable in layout:
        if not np.isfinite(start[0, variable.where]).all():
            raise ValueError(
                f"The start is not within the support of the prior: `{variable.name}`, in "
                f"unconstrained coordinates, is {point[variable.name]}. Give other `initvals`."
            )
    if isinstance(preconditioner, str) and preconditioner == "ensemble":
        try:
            problem.sample_prior(1, np.random.default_rng(0))
        except ValueError as error:  # an improper prior
            raise ValueError(
                "There is no prior from which an ensemble could be drawn, to tell scales and a "
                "start. Give both: `initvals`, and `preconditioner=None` or a covariance."
            ) from error
        ensemble = search.ensemble(ensemble_size)
        scale = Preconditioner.of_points(ensemble.U)
        if initvals is None:
            potential = target.loss(ensemble.Z) + target.prior_potential(ensemble.U)
            start = ensemble.U[[potential.argmin()]]
    else:
        scale = Preconditioner.given(preconditioner, start[0])
    d = problem.dimension
    descent = Descent(Explorers(target, directions or d, sigma), tol)
    state, history = search.descend(descent, DescentState(start, scale), maxiter)
    if not state.converged:
        warnings.warn(
            f"The search ended after {state.steps} steps with a gradient of {state.slope:.2g}, in "
            f"posterior standard deviations, instead of {tol:.2g}. Allow more of them (maxiter), "
            "or directions, or use another sigma if the forward map is not smooth.",
            stacklevel=2,
        )
    return _in_model(model, {**point, **points_of(layout, state.U)[0]}, state.converged, history)


class Search:
    """Forward evaluations on the way to the mode.

    Parameters
    ----------
    problem : InverseProblem
    model : pm.Model
        The model of the problem.
    rng : numpy.random.Generator
    progressbar : bool
        Whether to tell of the progress.
    """

    def __init__(
        self, problem: InverseProblem, model: pm.Model, rng: np.random.Generator, progressbar: bool
    ):
        self.problem, self.rng, self.progressbar = problem, rng, progressbar
        self.account = Account()
        self._driver = Driver(problem, model, self.account, ProgressLog("find_MAP_ensemble"))
        if progressbar:
            show_log()

    def _round(
        self, driver: Driver, sampler: AskTell[State, Pending], state: State, what: str
    ) -> tuple[State, Info]:
        """Evaluate one batch of points."""
        state, info = driver.round(sampler, state, self.rng)
        if self.progressbar:
            driver.tell(what)
        return state, info

    def ensemble(self, size: int | None) -> Ensemble:
        """Members of an ensemble that was moved to the posterior."""
        sampler = EnsembleKalman(self.problem, size, adjust=self.problem.density_only)
        U = self.problem.sample_prior(sampler.size, self.rng)
        state, iteration = sampler.start(U, redraw=True), 0
        remedy = (
            "`initvals` where the forward map works, with `preconditioner=None` or a covariance, "
            f"so that no ensemble is needed; {self._driver.remedy}"
        )
        driver = replace(self._driver, remedy=remedy)
        while not state.burned_in:
            what = f"ensemble, iteration {iteration + 1}"
            state, info = self._round(driver, sampler, state, what)
            iteration += info.complete
        return state.evaluated[state.evaluated.ok]

    def descend(
        self, descent: Descent, state: DescentState, maxiter: int
    ) -> tuple[DescentState, xr.Dataset]:
        """Descend until the mode is found; the state there, and the history."""
        rows = []
        driver = replace(self._driver, remedy="`initvals` where the forward map works.")
        while not state.done and state.steps < maxiter:
            state, _ = self._round(driver, descent, state, f"descent, step {state.steps + 1}")
            told = (state.loss, state.potential, state.slope, state.step_size)
            rows.append((*told, self.account.n_evals))
        names = ("misfit", "potential", "gradient", "step_size", "n_evals")
        columns = dict(zip(names, zip(*rows, strict=True), strict=True))
        return state, xr.Dataset({n: ("iteration", np.array(c)) for n, c in columns.items()})


def _in_model(
    model: pm.Model, point: Mapping[str, np.ndarray], converged: bool, history: xr.Dataset
) -> MAPEstimate:
    """All unobserved variables of the model at a point of its value variables."""
    variables = model.unobserved_value_vars
    values = compiled(model, variables)(point)
    estimate = MAPEstimate((v.name, value) for v, value in zip(variables, values, strict=True))
    estimate.converged, estimate.history = converged, history
    return estimate
