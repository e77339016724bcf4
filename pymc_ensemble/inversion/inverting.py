"""Ensemble Kalman inversion of a model."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Literal

import numpy as np
import pymc as pm
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from pytensor.graph.traversal import ancestors
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pymc_ensemble.log import ProgressLog, logger, number, percent, show_log
from pymc_ensemble.problem.checks import given_generator, given_model
from pymc_ensemble.problem.driver import Account, Driver
from pymc_ensemble.problem.inverse_problem import InverseProblem
from pymc_ensemble.problem.leaves import without_leaves
from pymc_ensemble.samplers.ensemble import Ensemble, Info
from pymc_ensemble.samplers.kalman.inversion import (
    NOTHING_TO_GAIN,
    Inversion,
    InversionState,
    Localization,
    Target,
    Update,
)
from pymc_ensemble.samplers.options import require_counts, require_flags
from pymc_ensemble.samplers.start import Start, StartState
from pymc_ensemble.step_methods.initial_ensemble import initial_ensembles

from .results import result_of

__all__ = ["invert"]

FloatArray = NDArray[np.float64]

SIZE = 100  # default number of particles
LARGEST_DEFICIT = 0.1  # largest relative deficit of the variance without a warning
FAR = 0.5  # distance from the mode, in posterior sd per dimension (0.2 if linear, with J = 100)


def invert(
    model: pm.Model | None = None,
    *,
    target: Target = "posterior",
    update: Update = "transform",
    step: Literal["misfit"] | float = "misfit",
    momentum: bool = False,
    inflation: float = 1.0,
    localization: Localization | None = None,
    ensemble_size: int | None = None,
    initial_ensemble: ArrayLike | Mapping[str, ArrayLike] | xr.DataTree | None = None,
    maxiter: int = 50,
    random_seed: Any = None,
    progressbar: bool = True,
    compile_kwargs: Mapping[str, Any] | None = None,
) -> xr.DataTree:
    """Fit a model by ensemble Kalman inversion, in a few hundred evaluations.

    An ensemble of J particles moves from the prior to the data in some rounds of J evaluations. It
    needs no derivative of the forward map. It may have fewer particles than the model has
    parameters. But particles never leave the affine span of their start.

    Parameters
    ----------
    model : pm.Model, optional
        By default the one on the context stack. It needs a forward map: likelihoods that depend on
        the unknowns through parameters of a distribution.
    target : {"posterior", "map", "fit"}, default "posterior"
        What the ensemble moves to: the posterior, roughly, as in ES-MDA; the maximum of the
        posterior density in the span, as in Tikhonov's regularization; or a fit as good as the
        noise of the data allows.
    update : {"transform", "perturbed"}, default "transform"
        Whether one deterministic map moves all particles, or each particle gets data with its own
        noise.
    step : "misfit" or float, default "misfit"
        Time of each update. The posterior is at time one. The data misfit controller takes a
        few steps to it; a number fixes their length.
    momentum : bool, default False
        Whether particles have momentum, as in Nesterov's method. It helps with small fixed steps.
        It is not available with ``target="posterior"``.
    inflation : float, default 1.0
        Factor of the spread of the particles after each update.
    localization : callable or array_like of shape (d, K), optional
        Weights of the covariances between d unconstrained parameters and K forward outputs, or a
        function that computes them from the correlations, both of shape (d, K). Only for
        ``update="perturbed"``.
    ensemble_size : int, optional
        Number of particles J, by default that of `initial_ensemble`, or 100.
    initial_ensemble : array_like of shape (J, d), dict or DataTree, optional
        Where the particles start, as for the step methods. By default they are draws of the prior.
    maxiter : int, default 50
        Largest number of updates.
    random_seed : int, Generator or None
        Seed of the first ensemble and of all noise.
    progressbar : bool, default True
        Whether to show the progress: as a bar in a terminal or notebook, else by the log.
    compile_kwargs : dict, optional
        Options for the compilation of the forward map.

    Returns
    -------
    DataTree
        ``posterior``: the J particles of the last ensemble, as draws of one chain, free variables
        only. ``sample_stats``: their log densities ``lp``, and what else makes it a result that
        `plots`, `diagnose` and ``initial_ensemble=`` know. ``estimate``: free variables at the mean
        of the ensemble in unconstrained coordinates. ``inversion``: by ``iteration`` the mean
        ``loss``, the ``misfit`` per datum at the mean outputs (1 is what noise explains), the mean
        ``spread`` in units of the first one, ``time``, ``step``, evaluations ``n_evals`` and
        failures ``n_failed`` so far, seconds ``elapsed``, and ``gain``, what the potential can
        still fall by within the span; and by ``particle`` the log density ``lp`` and the
        coordinates ``unconstrained``. Its attributes tell ``target``, whether it has ``converged``,
        the dimensions that the data inform (``d_eff``) and the ``deficit`` d_eff / J.

    Warns
    -----
    UserWarning
        If the target is not reached; or, for the posterior, if variances are expected to be too
        small by more than 10%, or the mean is far from the mode that the ensemble points to.

    Raises
    ------
    ValueError
        If an option does not fit the model, or if the model has potentials of the unknowns and
        `target` is the posterior.
    NotImplementedError
        If the model has no forward map.
    SamplingError
        If fewer than a quarter of the members can be evaluated.

    Notes
    -----
    For a linear forward map with Gaussian noise, updates are those of the Kalman filter. Any other
    loss is replaced in each update by the Gaussian one of the same gradient and curvature at the
    mean output, and a step is cut where that would not lower the loss [1]_ [2]_ [3]_.

    A posterior of an inversion is an approximation that no evaluation has tested. Its variances are
    too small by up to d_eff / J, where d_eff is the number of dimensions that the data inform. With
    ``update="transform"`` this is about a third of it in linear problems. If it matters, use a
    sampler: the result can be the ``initial_ensemble=`` of a step method, which begins with its
    burn-in.

    Members that fail, and those whose outputs are a thousand million times the median, are drawn
    anew from the others.

    References
    ----------
    .. [1] Iglesias, M. A., Law, K. J. H. and Stuart, A. M. (2013). Ensemble Kalman methods for
       inverse problems. Inverse Problems, 29. https://doi.org/10.1088/0266-5611/29/4/045001
    .. [2] Iglesias, M. and Yang, Y. (2021). Adaptive regularisation for ensemble Kalman inversion.
       Inverse Problems, 37. https://doi.org/10.1088/1361-6420/abd29b
    .. [3] Kovachki, N. B. and Stuart, A. M. (2019). Ensemble Kalman inversion: a derivative-free
       technique for machine learning tasks. Inverse Problems, 35.
       https://doi.org/10.1088/1361-6420/ab1c3a

    Examples
    --------
    >>> import pymc_ensemble as pe
    >>> with pe.gallery.decay():
    ...     result = pe.invert(random_seed=1, progressbar=False)
    >>> result["posterior"].sizes["draw"], int(result["inversion"]["n_evals"][-1])
    (100, 600)
    >>> bool(result["inversion"]["misfit"][-1] < 2)
    True
    """
    require_flags(progressbar=progressbar)
    require_counts(2, ensemble_size=ensemble_size)
    require_counts(1, maxiter=maxiter)
    if localization is not None and not callable(localization):
        localization = np.asarray(localization, dtype=float)
    model = without_leaves(given_model(model))
    rng = given_generator(random_seed, "random_seed")
    if target == "posterior":
        _require_prior_and_data(model)
    problem = InverseProblem.from_model(model, compile_kwargs=compile_kwargs)
    if target == "posterior" and problem.unknown_noise:
        logger.warning(
            f"invert: the scale of the noise in `{problem.unknown_noise[0]}` is unknown. An "
            "inversion hardly learns it: the scale may be many standard deviations off, and with "
            "it the spread of the other parameters. Continue with "
            "EnsembleKalmanSampler(initial_ensemble=result)."
        )
    moved = problem
    if target == "map":  # the mode of the density of the model, as for `pymc.find_MAP`
        moved = InverseProblem.from_model(model, compile_kwargs=compile_kwargs, jacobian=False)
    kernel = Inversion(
        moved, target, update, step, momentum, float(inflation), localization, maxiter
    )
    redraw = initial_ensemble is None
    if initial_ensemble is None:
        U = problem.sample_prior(ensemble_size or SIZE, rng)
    else:
        U = initial_ensembles(initial_ensemble, model, problem.coordinate_names).for_chain(0)
        if ensemble_size not in (None, len(U)):
            raise ValueError(
                f"ensemble_size={ensemble_size}, but initial_ensemble has {len(U)} members. Leave "
                "out one of them."
            )
    problem.check_prior(U)
    search = Search(problem, model, kernel, rng, progressbar)
    end = search.run(U, redraw)
    options: dict[str, Any] = {"target": target, "update": update, "step": step}
    options |= {"momentum": momentum, "inflation": inflation, "localization": localization}
    _tell(end, target)
    return result_of(model, problem, end, search.rows, search.ensembles, options)


def _require_prior_and_data(model: pm.Model) -> None:
    """Refuse potentials of the unknowns: draws of the prior ignore them.

    Raises
    ------
    ValueError
    """
    free = set(model.free_RVs)
    for potential in model.potentials if model.observed_RVs else ():
        if free & set(ancestors([potential])):
            raise ValueError(
                f"An inversion would ignore the potential `{potential.name}`: it moves draws of "
                "the prior by observed variables alone. Write the potential as a prior or as a "
                'likelihood. Or use target="map" or EnsembleKalmanSampler, which include it.'
            )


@dataclass
class Search:
    """Rounds of an inversion, and their results.

    Parameters
    ----------
    problem : InverseProblem
    model : pm.Model
    kernel : Inversion
    rng : numpy.random.Generator
    progressbar : bool
        Whether to show the progress.
    """

    problem: InverseProblem
    model: pm.Model
    kernel: Inversion
    rng: np.random.Generator
    progressbar: bool
    account: Account = field(default_factory=Account)
    rows: list[dict[str, float]] = field(default_factory=list)
    ensembles: list[Ensemble] = field(default_factory=list)
    n_failed: int = 0  # outliers included
    started: float = field(default_factory=perf_counter)

    def run(self, U: FloatArray, redraw: bool) -> InversionState:
        """Evaluate an ensemble, and invert; return the last state."""
        driver = Driver(
            self.problem,
            self.model,
            self.account,
            ProgressLog("invert"),
            consequence="Another draw replaces it. Later failures are counted, but not reported.",
        )
        if self.progressbar:
            show_log()
        with self._bar() as show:
            state = self._begin(driver, U, redraw)
            self._note(state)
            while not state.done:
                show(state)
                state, info = driver.round(self.kernel, state, self.rng)
                self._count(info)
                if info.complete:
                    self._note(state)
                if self.progressbar:
                    driver.tell(f"inversion, {info.message}")
            show(state)
        return state

    def _begin(self, driver: Driver, U: FloatArray, redraw: bool) -> InversionState:
        """State of the kernel for the positions `U`; failed draws of the prior are replaced."""
        start = Start(self.problem, 2)
        first: StartState = start.start(U, redraw)
        while not first.complete:
            first, info = driver.round(start, first, self.rng)
            self._count(info)
        assert first.ensemble is not None
        with driver.failures_in_words(first):
            return self.kernel.start(first.ensemble)

    def _count(self, info: Info) -> None:
        self.n_failed += info.n_failed

    def _note(self, state: InversionState) -> None:
        """Record a complete iteration."""
        members = state.ensemble[state.ensemble.ok]
        sd = members.U.std(0)
        if not self.rows:
            self._first_sd = np.where(sd > 0, sd, 1.0)
        self.ensembles.append(state.ensemble)
        self.rows.append(
            {
                "loss": float(members.loss.mean()),
                "misfit": state.misfit,
                "spread": float((sd / self._first_sd).mean()),
                "time": float(state.time),
                "step": float(state.step_size),
                "gain": state.gain,
                "n_evals": self.account.n_evals,
                "n_failed": self.n_failed,
                "elapsed": perf_counter() - self.started,
            }
        )

    @contextmanager
    def _bar(self) -> Iterator[Any]:
        """Function that shows a state in a progress bar, where one can be shown."""
        columns = (TextColumn("inversion"), BarColumn(), TextColumn("{task.fields[told]}"))
        with Progress(*columns, TimeElapsedColumn(), disable=not self.progressbar) as bar:
            if not (bar.console.is_terminal or bar.console.is_jupyter):
                bar.disable = True
            ends = self.kernel.target == "posterior"
            task = bar.add_task("", total=1.0 if ends else None, told="")

            def show(state: InversionState) -> None:
                told = f"iteration {state.steps}, {self.account.n_evals} evaluations"
                told += f", {self.n_failed} failed" * bool(self.n_failed)
                told += f", misfit {number(state.misfit, '.3g')} per datum"
                done = float(state.time) if ends else float(state.done)
                bar.update(task, completed=done, told=told, total=1.0 if state.done else None)
                if ends:
                    bar.update(task, total=1.0)

            yield show


def _tell(end: InversionState, target: Target) -> None:
    """Log or warn about the quality of the result."""
    J, d = end.ensemble.U.shape
    if not end.converged:
        stuck = end.gain < NOTHING_TO_GAIN
        why = f"after {end.steps} iterations" if not stuck else "where its span fits no better"
        more = "more particles (ensemble_size)" if stuck else "more iterations (maxiter)"
        warnings.warn(
            f"The inversion ended {why}, with a misfit of {number(end.misfit, '.3g')} per datum, "
            f"before it had reached its target. Noise alone explains a misfit of 1. Allow {more}, "
            "or check the model: there may be no better fit, if the forward map or the noise does "
            "not suit the data.",
            stacklevel=3,
        )
    if target != "posterior":
        logger.info(
            f'The inversion has ended at time {end.time:.3g}. With target="{target}" the spread '
            "of the ensemble is not a posterior uncertainty."
        )
        return
    deficit = end.information / J
    text = (
        f"The data inform about {number(end.information)} dimensions: with {J} particles, "
        f"variances are too small by up to {percent(deficit)}, about a third of that in linear "
        'problems with update="transform".'
    )
    distance = np.sqrt(2 * end.gain / max(end.information, 1.0))
    if distance > FAR:
        warnings.warn(
            f"The mean of the ensemble is about {number(distance)} posterior standard deviations, "
            "per dimension that the data inform, from the mode that its slope points to, so it "
            "does not represent the posterior. Use more particles, or sample with the result as "
            "`initial_ensemble`.",
            stacklevel=3,
        )
    if d >= J and 2 * end.information > J - 1:
        # eq. (V11) counts within the span of the particles, so that d_eff cannot exceed J - 1
        warnings.warn(
            f"The data inform most of the {J - 1} dimensions that {J} particles span, so that they "
            "may inform more than these. The uncertainty of the result is far too small. Use more "
            f"particles: {round(1 / LARGEST_DEFICIT)} for each parameter are enough.",
            stacklevel=3,
        )
    elif deficit > LARGEST_DEFICIT:
        enough = int(np.ceil(end.information / LARGEST_DEFICIT))
        warnings.warn(f"{text} Use ensemble_size={enough}, or more.", stacklevel=3)
    else:
        logger.info(text)
