"""Step method of the multi-fidelity sampler."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any, cast

import numpy as np
import pymc as pm
from numpy.typing import ArrayLike
from pytensor.graph.basic import Variable
from xarray import Dataset, DataTree

from pymc_ensemble.diagnosis.facts import Facts
from pymc_ensemble.diagnosis.stand_ins import HELPS
from pymc_ensemble.log import ProgressLog, logger
from pymc_ensemble.problem.cheap_model import Cheap, CheapModel, stand_ins
from pymc_ensemble.problem.driver import Account, Driver
from pymc_ensemble.problem.inverse_problem import InverseProblem, problem_of
from pymc_ensemble.problem.points import Named, Point
from pymc_ensemble.samplers.kernels import Sampler
from pymc_ensemble.samplers.multifidelity.learning import LearningState
from pymc_ensemble.samplers.multifidelity.sampler import TOLERANCE, Multifidelity, learned
from pymc_ensemble.samplers.phases import PhaseState

from .archive import known_evaluations
from .base import EnsembleStep
from .common_stage import Outcome
from .draws import Draw, Stats

DEFAULT_TUNE = 100  # rounds: far more than the limit of evaluations allows
CHEAP_REMEDY = (
    "a cheap model that works where the fine one does: a smaller time step, a finer grid; or one "
    "that returns a value instead of failing."
)


class MultifidelitySampler(EnsembleStep):
    """Multi-fidelity sampler: a cheap model finds the posterior of an expensive one.

    The model of PyMC is that of the expensive simulator, the fine one, and stays as it is. The
    sampler uses a cheap simulator of the same outputs in its place, on a coarser grid or with a
    longer time step. A Gaussian process adds what the cheap outputs lack. Rounds of a few
    evaluations of the fine simulator teach the process, and then certify it.

    Parameters
    ----------
    cheap : callable, ForwardModel or dict
        The cheap simulator. It has the arguments of the fine one, and its outputs in the same
        shapes and units. Give a `forward_model` for workers of its own, for a store, or if it is
        vectorized. If the model has several forward models, give a dict of simulators by their
        names.
    batch : int, optional
        Evaluations of the fine simulator in a round, all in parallel; by default
        ``max(10, 2 d + 2)`` for d unconstrained parameters.
    tolerance : float, default 0.1
        How far means may be off, in posterior standard deviations: largest upper 95% limit of the
        standard deviation of the log weights with which a correction is certified.
    max_evaluations : int, optional
        Most evaluations of the fine simulator, for all chains together; by default ten rounds.
        If there is no certificate by then, the run says so.
    adjust : bool, default False
        Whether each draw meets a Metropolis test with one evaluation of the fine simulator, with
        draws of the corrected model as independent proposals. The law of the draws is then exact.
    archive : (points, outputs), Dataset or path, optional
        Evaluations of the fine simulator that were made before, as of
        `EnsembleGaussianProcessSampler`. The cheap one is evaluated at these points.
    ensemble_size : int, optional
        Number of particles J, which cost cheap evaluations; by default ``max(100, 4 (d + 2))``.
    vars : list of variables or names, optional
        Variables to sample. An ensemble moves all continuous variables of the model, so this can
        only repeat the default.
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
        If the model has no forward model or no forward outputs; if a cheap simulator is missing,
        or returns other shapes; if one of them is stochastic; or if an option makes no sense.
    SamplingError
        If the cheap simulator fails at more than half of the draws of the prior, or the fine one at
        more than half of a round.

    Notes
    -----
    A run learns the correction once for all its chains, and `tune` limits the number of its
    rounds. Draws then cost cheap evaluations alone, and `lp` is the log density of the corrected
    model. With `adjust` each draw costs one fine evaluation, and `lp` is that of the model.

    A round samples the posterior of the corrected model by the exact ensemble Kalman sampler. It
    begins at the prior, and goes on until the path of each particle has mixed. Then the fine
    simulator is evaluated at draws that the correction does not know. For every function of the
    parameters, the error of its mean in its standard deviations is at most the standard deviation
    of the weights [1]_. The limit of that, for the log weights, is the stat ``certificate``;
    `diagnose` reads it. If it is within the tolerance, the correction learns from these
    evaluations, too, and its posterior is sampled again. It is certified only if it has moved no
    further than the tolerance. The certificate does not see a mode that the corrected model lacks.

    The stats ``n_evals`` and ``n_cheap_evals`` count evaluations of both simulators, and ``rounds``
    counts the rounds. Where the cheap simulator fails, the corrected model has no probability.

    References
    ----------
    .. [1] Peherstorfer, B., Willcox, K. and Gunzburger, M. (2018). Survey of multifidelity methods
       in uncertainty propagation, inference, and optimization. SIAM Review, 60, 550-591.
       https://doi.org/10.1137/16M1082469

    Examples
    --------
    >>> import numpy as np, pymc as pm, pymc_ensemble as pe
    >>> def decay(rate, steps):
    ...     return (1 - rate / steps) ** (steps * np.arange(1.0, 5.0))
    >>> fine = pe.forward_model(lambda rate: decay(rate, 1000))
    >>> with pm.Model():
    ...     rate = pm.Uniform("rate", 0, 1)
    ...     y = pm.Normal("y", fine(rate), 0.05, observed=[0.6, 0.4, 0.2, 0.15])
    ...     idata = pm.sample(
    ...         draws=200,
    ...         chains=2,
    ...         cores=1,
    ...         step=pe.MultifidelitySampler(cheap=lambda rate: decay(rate, 2)),
    ...         random_seed=1,
    ...         progressbar=False,
    ...     )
    >>> bool(idata["sample_stats"]["certificate"].max() < 0.1)
    True
    """

    name = "multifidelity"
    sampler_class = Multifidelity
    default_tune_steps = DEFAULT_TUNE

    def __init__(
        self,
        cheap: Cheap,
        *,
        batch: int | None = None,
        tolerance: float = TOLERANCE,
        max_evaluations: int | None = None,
        adjust: bool = False,
        archive: tuple[Any, ArrayLike] | Dataset | str | PathLike | None = None,
        ensemble_size: int | None = None,
        vars: Named | Sequence[Named] | None = None,
        compile_kwargs: Mapping[str, Any] | None = None,
        model: pm.Model | None = None,
        rng: Any = None,
        initial_point: Point | None = None,
        blocked: bool = True,
    ):
        if not callable(cheap) and not isinstance(cheap, Mapping):
            raise TypeError(
                f"cheap must be a function, a forward_model, or a dict of them, not {cheap!r}."
            )
        if isinstance(archive, DataTree):
            raise ValueError(
                "archive must hold outputs of the fine simulator, but the result of a run has no "
                "outputs. Give the path of its store, or a pair (points, outputs)."
            )
        self._cheap, self._archive = cheap, archive
        self._cheap_account = Account()
        super().__init__(
            vars,
            options={
                "batch": batch,
                "tolerance": tolerance,
                "max_evaluations": max_evaluations,
                "adjust": adjust,
            },
            ensemble_size=ensemble_size,
            compile_kwargs=compile_kwargs,
            model=model,
            rng=rng,
            initial_point=initial_point,
            blocked=blocked,
        )

    @property
    def learned(self) -> LearningState | None:
        """What this chain has learned, or got from another; None before the first round."""
        state = self._chain.state
        return None if state is None else learned(state)

    @property
    def remedy_of_burn_in(self) -> str:  # type: ignore[override]
        """Remedy for a correction without a certificate."""
        known = self.learned
        certificate = None if known is None else known.certificate
        if certificate is None:
            return "It came to no certificate. Allow more max_evaluations"
        return f"The correction is {certificate}. {remedy(certificate.limit, known)}"

    # -- binding to a model ---------------------------------------------------------------------

    def _make_problem(self, model: pm.Model, vars: list[Variable]) -> InverseProblem:
        """Inverse problem of a model with forward models whose outputs are known."""
        problem, reason = problem_of(model, compile_kwargs=self._compile_kwargs)
        if reason:
            raise ValueError(
                "MultifidelitySampler learns the difference of forward outputs, but only the log "
                f"density of this model is known: {reason}. Use EnsembleGaussianProcessSampler, "
                "or write the simulator as a forward model whose outputs are parameters of a "
                "likelihood."
            )
        self._cheap_model = CheapModel(model, stand_ins(model, self._cheap), self._compile_kwargs)
        return problem

    def _make_sampler(
        self, model: pm.Model, problem: InverseProblem, given: int | None
    ) -> Sampler[Any, Any]:
        sampler = super()._make_sampler(model, problem, given)
        if self._archive is None:
            return sampler
        points, outputs = known_evaluations(self._archive, model, problem)
        return replace(cast(Multifidelity, sampler), archive=(points, outputs))

    def _vector_stats(self) -> Stats:
        return super()._vector_stats() | self._own_stats()

    def _own_stats(self) -> Stats:
        """Certificate, number of rounds and number of cheap evaluations, as far as known."""
        known, certificate = self.learned, np.nan
        if known is not None and known.certificate is not None:
            certificate = known.certificate.limit
        return {
            "certificate": certificate,
            "rounds": np.int64(0 if known is None else known.rounds),
            "n_cheap_evals": np.int64(self._cheap_account.n_evals),
        }

    # -- life of a chain ------------------------------------------------------------------------

    def _evaluator(self, driver: Driver, state: PhaseState) -> Driver:
        """Driver of the simulator that is evaluated next."""
        if not cast(Multifidelity, self._bound.sampler).asks_cheap(state):
            return driver
        return Driver(
            self._cheap_model,
            self._sampled_model,
            self._cheap_account,
            ProgressLog(f"{self._progress.label}cheap model"),
            where="of the cheap model",
            consequence="The corrected model has no probability there.",
            remedy=CHEAP_REMEDY,
        )

    def step(self, point: Point) -> Draw:
        """Next draw, with stats about the correction."""
        drawn, [stats] = super().step(point)
        return drawn, [stats | self._own_stats()]

    @property
    def _facts(self) -> Facts:
        """Facts that this step method declares, with the cheap model and the certificate."""
        known, chain = self.learned, self._chain
        if chain.facts is None and known is not None:
            facts = super()._facts
            limit = np.inf if known.certificate is None else known.certificate.limit
            own = {"cheap": self._cheap_model.names, "certificate": float(f"{limit:.3g}")}
            chain.facts = replace(facts, options=facts.options | own)
        return super()._facts

    def _start(self) -> None:
        """Take over the correction that was learned for all chains of the run."""
        outcome, own = self._common.outcome(self._learn, self._progress.label)
        self._take_over(outcome, own)
        self._chain.state, self._chain.iterations = outcome.found, outcome.iterations
        if not own:
            self._cheap_account = Account()

    def _learn(self) -> Outcome:
        """Learn the correction; `tune` limits its rounds."""
        self._cheap_account = Account()
        outcome = self._start_for_all(
            lambda state: state.phase in ("start", "burn-in"),
            lambda state: state,
            rounds=self._chain.tune or self.default_tune_steps,
        )
        known = learned(outcome.found)
        if known is not None:
            logger.info(
                f"{type(self).__name__}: {known.rounds} rounds, {known.used} evaluations of the "
                f"fine model and {known.cheap} of the cheap one; {known.certificate}."
            )
        return outcome

    def _burn_in_once(self) -> None:
        super()._burn_in_once()
        self._chain.seen.clear()  # earlier particles have densities of an earlier correction


def remedy(limit: float, known: LearningState | None) -> str:
    """Remedy for a correction without a certificate.

    Parameters
    ----------
    limit : float
        Limit of the certificate.
    known : LearningState or None
    """
    if limit <= HELPS:
        used = 0 if known is None else known.used
        more = f"max_evaluations={2 * used}" if used else "more max_evaluations"
        return f"Give it more: {more}"
    return (
        "The cheap model does not help. Use a better one, or EnsembleGaussianProcessSampler with "
        "the store of the fine model as its archive"
    )
