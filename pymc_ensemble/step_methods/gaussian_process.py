"""Step method of the ensemble Gaussian process sampler."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pymc as pm
from numpy.typing import ArrayLike, NDArray
from pytensor.graph.basic import Variable
from xarray import DataTree

from pymc_ensemble.diagnosis.facts import Facts
from pymc_ensemble.log import logger, number
from pymc_ensemble.problem.inverse_problem import InverseProblem, problem_of
from pymc_ensemble.problem.points import Named, Point
from pymc_ensemble.samplers.gaussian_process.growing import GrowingGaussianProcess
from pymc_ensemble.samplers.gaussian_process.growth import GrowingState
from pymc_ensemble.samplers.gaussian_process.learning import LearningState
from pymc_ensemble.samplers.gaussian_process.sampler import (
    DEFAULT_EPOCHS,
    EXTRA_EPOCHS,
    EnsembleGaussianProcess,
    PublishedGaussianProcess,
    learned,
)
from pymc_ensemble.samplers.kernels import Sampler

from .archive import Archive, known_evaluations
from .base import EnsembleStep
from .binding import of_scheme
from .common_stage import Outcome
from .draws import Draw, Stats

FloatArray = NDArray[np.float64]

PAPER_TUNE = 1000  # steps of the published scheme, which are short
GROWING_TUNE = 100  # rounds: far more than the limit of evaluations allows
TOLD = 10  # most coordinates named in the log


class EnsembleGaussianProcessSampler(EnsembleStep):
    """Ensemble Gaussian process sampler: learns a surrogate, sees through roughness, finds modes.

    A Gaussian process learns the forward outputs, or the loss, from all forward evaluations.
    Particles move on it by Langevin dynamics, and show where to evaluate next. The sampler starts
    with a few evaluations, and goes on until new ones certify the surrogate. Then draws come from
    the surrogate, without evaluations.

    Parameters
    ----------
    vars : list of variables or names, optional
        Variables to sample. An ensemble moves all continuous variables of the model, so this can
        only repeat the default.
    ensemble_size : int, optional
        Number of particles J, by default ``max(100, 4 (d + 2))`` for d unconstrained parameters.
        They cost no evaluation as long as the surrogate grows. If you give this, and none of the
        options of the growth, the sampler learns in epochs of J evaluations. For maps that you
        know to be rough take 200.
    target : {"forward", "potential"}, optional
        What the surrogate predicts: the forward outputs, or the loss alone. The default is the
        outputs, which is more accurate. It is the loss if there are no outputs, or more than 2000.
    adjust : bool, default False
        Whether each draw is tested with one evaluation of the forward map (delayed acceptance): the
        surrogate explores, and the law of the draws is exact for deterministic forward maps.
    scheme : {"archive", "paper"}, default "archive"
        Learn from all evaluations, or the published algorithm [1]_.
    epochs : int, optional
        If given, the surrogate does not grow. The sampler learns it in so many epochs of J
        evaluations, the initial ensemble included, and then verifies it. The number is 7 if only
        `ensemble_size` or `initial_ensemble` is given. A surrogate that is precise earlier is
        verified earlier. Not together with the options of the growth.
    tolerance : float, default 0.1
        Of the growth: how far means may be off, in posterior standard deviations, if the surrogate
        is to be certified.
    batch : int, optional
        Of the growth: fewest forward evaluations of a round; by default ``max(10, d + 2)``,
        rounded up to a multiple of the forward model's workers. Later rounds are larger, up to J: a
        quarter of all earlier evaluations.
    max_evaluations : int, optional
        Of the growth: most forward evaluations of the learning, for all chains together; by
        default ``13 max(100, 4 (d + 2))``. If there is no certificate by then, the run says so.
    archive : (points, outputs), DataTree, Dataset or path, optional
        Evaluations that were made before: points of shape (n, d) in unconstrained coordinates, or a
        mapping of variable names to values of shape (n, ...), with the forward outputs, shape
        (n, K), as `InverseProblem.evaluate` gives them; or, for ``target="potential"``, the result
        of a run whose draws carry exact log densities; or an evaluation store, by its path or as
        `open_store` reads it, if the inputs of the forward model are the model's variables, and
        have their names. It has to be the store of this forward model, whose version counts;
        nothing is evaluated again.
    dt : float, optional
        Largest time step of ``scheme="paper"``, in units in which the ensemble has unit variance,
        by default 0.1.
    initial_ensemble : array_like, mapping or DataTree, optional
        Where the particles start. An array of shape (J, d) in unconstrained coordinates; a mapping
        of variable names to values of shape (J, ...); or the result of an earlier run. By default
        particles are drawn from the prior. All of them are evaluated. So the sampler learns in
        epochs, unless you give an option of the growth.
    compile_kwargs : dict, optional
        Options for the compilation of the forward map, for example ``{"mode": "NUMBA"}``.
    model : pm.Model, optional
        Model to sample. By default the one on the context stack when sampling starts.
    rng : Generator or seed, optional
        Only for use outside of `pymc.sample`, which gives each chain a generator.
    initial_point : dict, optional
        Not needed; PyMC passes it to all step methods.
    blocked : bool, default True
        An ensemble moves all its variables together, so True is the only choice.

    Raises
    ------
    ValueError
        If the model has discrete variables, if `vars` leaves out variables, if `initial_ensemble`
        or `archive` does not fit the model, if the ensemble is too small, or if an option has a
        value that the sampler does not know.
    SamplingError
        If so many forward evaluations fail that there is nothing to learn from.

    Notes
    -----
    The first chain that needs the surrogate learns it for all chains of a run, and counts its
    evaluations. Chains differ only in what they draw. Their agreement says nothing about the
    surrogate.

    Rounds of the growth have few evaluations. Once the surrogate may be good enough, the sampler
    evaluates new draws of its posterior. For every function of the parameters the error of
    its mean, in its standard deviations, is at most the standard deviation of their weights. The
    upper 95% limit of that, for the log weights, is the stat ``certificate``. Three earlier
    evaluations are repeated. There is no certificate if evaluations fail, or if the surrogate
    does not know whether there is another mode.

    Some models allow no certificate: the map is noisy or rough, failures cut the posterior off, or
    many evaluations were not enough. Then the learning goes on in epochs, with all earlier
    evaluations. The last epoch is the verification. It compares evaluations at the particles with
    the predictions of the surrogate, and with the noise that it has found. Then
    ``certificate`` is the upper 95% limit of the surrogate error alone. If the verification fails,
    more epochs follow. If it has not passed when evaluations or tuning end, the run warns, and
    the draws carry ``converged=False``. `tune` counts rounds. Calls after the learning evaluate
    nothing.

    Without `adjust` draws cost no evaluation, and `lp` is the log density of the surrogate. This is
    what rough and noisy forward maps need: the draws follow the smooth posterior.

    The stats ``surrogate_error`` and ``surrogate_error_sd``, one value for each unconstrained
    coordinate, are standard errors of its mean and standard deviation. They come from what the
    surrogate does not know. ``verification_mean``, ``verification_sd``, ``verification_noise`` and
    ``verification_outliers`` tell how observed losses differed from predicted ones. The log has the
    hyperparameters of every epoch. After sampling with ``cores=1``, `learned` holds the surrogate
    and its evaluations.

    References
    ----------
    .. [1] Dunbar, O. R. A., Duncan, A. B., Stuart, A. M. and Wolfram, M.-T. (2022). Ensemble
       inference methods for models with noisy and expensive likelihoods. SIAM Journal on Applied
       Dynamical Systems, 21. https://doi.org/10.1137/21M1410853

    Examples
    --------
    >>> import numpy as np, pymc as pm
    >>> from pymc_ensemble import EnsembleGaussianProcessSampler
    >>> with pm.Model():
    ...     rate = pm.LogNormal("rate")
    ...     decay = pm.math.exp(-rate * np.arange(5))
    ...     y = pm.Normal("y", decay, 0.1, observed=[1.0, 0.4, 0.1, 0.1, 0.0])
    ...     idata = pm.sample(
    ...         draws=200,
    ...         chains=2,
    ...         cores=1,
    ...         step=EnsembleGaussianProcessSampler(ensemble_size=20),
    ...         random_seed=1,
    ...         progressbar=False,
    ...     )
    >>> bool(idata["sample_stats"]["converged"].all())
    True
    """

    name = "ensemble_gaussian_process"
    default_tune_steps = DEFAULT_EPOCHS + 1 + EXTRA_EPOCHS

    def __init__(
        self,
        vars: Named | Sequence[Named] | None = None,
        *,
        ensemble_size: int | None = None,
        target: Literal["forward", "potential"] | None = None,
        adjust: bool = False,
        scheme: Literal["archive", "paper"] = "archive",
        epochs: int | None = None,
        tolerance: float | None = None,
        batch: int | None = None,
        max_evaluations: int | None = None,
        archive: Archive | None = None,
        dt: float | None = None,
        initial_ensemble: ArrayLike | Mapping[str, ArrayLike] | DataTree | None = None,
        compile_kwargs: Mapping[str, Any] | None = None,
        model: pm.Model | None = None,
        rng: Any = None,
        initial_point: Point | None = None,
        blocked: bool = True,
    ):
        self._archive = archive
        self.scheme = scheme
        growth = {"tolerance": tolerance, "batch": batch, "max_evaluations": max_evaluations}
        given = {name: value for name, value in growth.items() if value is not None}
        if given and epochs is not None:
            [name, value] = next(iter(given.items()))
            raise ValueError(
                f"epochs={epochs!r} and {name}={value!r} contradict each other: a surrogate "
                "learns in epochs, or it grows until it is certified. Leave out one of them."
            )
        told = (epochs, ensemble_size, initial_ensemble)
        grows = bool(given) or all(value is None for value in told)
        self.sampler_class, options = of_scheme(
            scheme,
            {
                "archive": GrowingGaussianProcess if grows else EnsembleGaussianProcess,
                "paper": PublishedGaussianProcess,
            },
            {
                "target": target,
                "adjust": adjust,
                "epochs": DEFAULT_EPOCHS if epochs is None else epochs,
                "archive": archive,
                "dt": dt,
                **given,
            },
        )
        options.pop("archive", None)  # read for each model
        if scheme == "paper":
            self.default_tune_steps = PAPER_TUNE
        elif grows:
            self.default_tune_steps = GROWING_TUNE
        elif isinstance(epochs, int):
            self.default_tune_steps = epochs + 1 + EXTRA_EPOCHS
        super().__init__(
            vars,
            options=options,
            ensemble_size=ensemble_size,
            initial_ensemble=initial_ensemble,
            compile_kwargs=compile_kwargs,
            model=model,
            rng=rng,
            initial_point=initial_point,
            blocked=blocked,
        )

    @property
    def learned(self) -> LearningState | None:
        """What the present chain has learned, or None before the first fit."""
        state = self._chain.state
        return None if state is None else learned(state)

    @property
    def remedy_of_burn_in(self) -> str:  # type: ignore[override]
        """What to do about a verification that was not passed."""
        learned = self.learned
        remedy = "Use a larger ensemble_size, more epochs, or a narrower initial_ensemble"
        if isinstance(learned, GrowingState):
            remedy = "Allow more max_evaluations, or give an initial_ensemble near the posterior"
            return f"The surrogate is {learned.verdict}. {remedy}"
        if learned is None or learned.verification is None:
            return remedy
        return f"The {learned.verification}. {remedy}"

    # -- binding to a model ---------------------------------------------------------------------

    @property
    def _averages(self) -> bool:
        """True: the process takes what is random for noise."""
        return True

    def _make_problem(self, model: pm.Model, vars: list[Variable]) -> InverseProblem:
        """Inverse problem with a forward map if there is one, else the log density."""
        problem, reason = problem_of(model, compile_kwargs=self._compile_kwargs)
        if reason:
            logger.info(f"{type(self).__name__}: the surrogate predicts the log density: {reason}.")
        return problem

    def _make_sampler(
        self, model: pm.Model, problem: InverseProblem, given: int | None
    ) -> Sampler[Any, Any]:
        sampler = super()._make_sampler(model, problem, given)
        options = dict(self._options)
        if isinstance(sampler, GrowingGaussianProcess) and 1 < problem.workers <= sampler.size:
            options["workers"] = problem.workers
        if self._archive is None and "workers" not in options:
            return sampler
        if self._archive is not None:
            options["archive"] = known_evaluations(self._archive, model, problem)
        learner: Any = self.sampler_class
        return learner(problem, ensemble_size=sampler.size, **options)

    def _vector_stats(self) -> Stats:
        d = self._bound.problem.dimension
        return super()._vector_stats() | surrogate_stats(None, d)

    # -- life of a chain ------------------------------------------------------------------------

    def _start(self) -> None:
        """Take over what was learned for all chains of the run."""
        chain, sampler = self._chain, self._bound.sampler
        if not isinstance(sampler, EnsembleGaussianProcess):
            super()._start()
            return
        outcome, own = self._common.outcome(self._learn, self._progress.label)
        self._take_over(outcome, own)
        chain.state = sampler.set_out(outcome.found, self._chain_number)
        chain.iterations = outcome.iterations

    def _learn(self) -> Outcome:
        """Learn the surrogate; where tuning ends it is taken as it is."""
        return self._start_for_all(
            lambda state: not state.burned_in,
            self._bound.sampler.freeze,
            rounds=self._chain.tune or self.default_tune_steps,
        )

    @property
    def _facts(self) -> Facts:
        """What this step method declares, with the certificate of the surrogate, if any."""
        known, chain = self.learned, self._chain
        if chain.facts is None and isinstance(known, GrowingState) and known.certificate:
            facts = super()._facts
            limit = float(f"{known.certificate.limit:.3g}")
            chain.facts = replace(facts, options=facts.options | {"certificate": limit})
        return super()._facts

    def _first_positions(self, rng: np.random.Generator) -> FloatArray:
        """Draws of the prior; where they are few they cover it."""
        sampler = self._bound.sampler
        if isinstance(sampler, GrowingGaussianProcess):
            return sampler.first_design(rng)
        return super()._first_positions(rng)

    def step(self, point: Point) -> Draw:
        """Next draw, with what is known about the surrogate that it comes from."""
        drawn, [stats] = super().step(point)
        return drawn, [stats | surrogate_stats(self.learned, self._bound.problem.dimension)]

    def _burn_in_once(self) -> None:
        chain = self._chain
        if chain.state is None:
            self._start()
        if not chain.state.burned_in:
            super()._burn_in_once()
        # positions of an earlier run follow the posterior, but the surrogate is new
        chain.converged = chain.state.converged

    def _end_burn_in(self) -> None:
        super()._end_burn_in()
        if self.learned is None or self.learned.surrogate_error is None:
            return
        names = self._bound.problem.coordinate_names
        means, sds = self.learned.surrogate_error
        errors = ", ".join(
            f"{name} {number(mean, '.2g')} and {number(sd, '.2g')}"
            for name, mean, sd in zip(names[:TOLD], means, sds, strict=False)
        )
        verdict = str(self.learned.verification or "not verified")
        if isinstance(self.learned, GrowingState):
            verdict = self.learned.verdict
        more = f" (the first {TOLD} of {len(names)} coordinates)" if len(names) > TOLD else ""
        logger.info(
            f"{self._progress.label}surrogate errors of mean and sd, in posterior sd: "
            f"{errors}{more}; {verdict}."
        )


def surrogate_stats(learned: LearningState | None, dimension: int) -> Stats:
    """Surrogate errors and verification as stats; NaN for what is not known.

    Parameters
    ----------
    learned : LearningState or None
    dimension : int
        Number d of coordinates, and length of the surrogate errors.
    """
    error = None if learned is None else learned.surrogate_error
    verification = None if learned is None else learned.verification
    means, sds = np.full((2, dimension), np.nan) if error is None else error
    certificate = learned.certificate if isinstance(learned, GrowingState) else None
    return {
        "surrogate_error": means,
        "surrogate_error_sd": sds,
        "certificate": np.nan if certificate is None else certificate.limit,
    } | {
        f"verification_{name}": np.nan if verification is None else getattr(verification, name)
        for name in ("mean", "sd", "noise", "outliers")
    }
