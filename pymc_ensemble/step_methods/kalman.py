"""Step method of the ensemble Kalman sampler."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pymc as pm
from numpy.typing import ArrayLike
from pytensor.graph.basic import Variable
from xarray import DataTree

from pymc_ensemble.log import logger
from pymc_ensemble.problem.inverse_problem import InverseProblem, problem_of
from pymc_ensemble.problem.points import Named, Point
from pymc_ensemble.samplers.examination import Examination
from pymc_ensemble.samplers.kalman.sampler import EnsembleKalman, PublishedKalman, curved
from pymc_ensemble.samplers.moves import Move

from .base import EnsembleStep
from .binding import decided, of_scheme
from .interrupts import in_chain_process

MANY = 100  # number of parameters above which another sampler takes far fewer evaluations
LOOK_SECONDS = 0.05  # time between two checks for the result of another chain
MANY_LOOKS = 100  # number of checks after which the log tells of the wait
PAPER_TUNE = 1000  # steps of the published scheme, which are short


class EnsembleKalmanSampler(EnsembleStep):
    """Ensemble Kalman sampler: needs no gradient of the forward map, and few evaluations of it.

    Parameters
    ----------
    vars : list of variables or names, optional
        Variables to sample. An ensemble moves all continuous variables of the model, so this can
        only repeat the default.
    ensemble_size : int, optional
        Number of particles J; by default ``max(100, 4 (d + 2))`` for d unconstrained parameters.
    adjust : bool, optional
        Whether moves meet a Metropolis test, which makes the sampler exact for every deterministic
        forward map. False makes no test: draws are exact for a linear forward map, and approximate
        for others.
    rough : bool, optional
        Whether to average out fluctuations of the forward map [3]_. The target is then the smooth
        posterior behind them. By default the sampler finds out whether it has to; see the notes.
    moves : mapping of functions to float, optional
        Moves of the sampler with a Metropolis test, and how often each is made, such as
        ``{pe.moves.independence: 0.8, pe.moves.differential_evolution: 0.2}``, which is the
        default with ``adjust=True``. With moves the sampler is adjusted. Any function can be a
        move; see `pymc_ensemble.moves`.
    scheme : {"exact", "paper"}, default "exact"
        Time stepping: exact transitions of the linearized dynamics, or the published
        algorithm [1]_.
    dt : float, optional
        Time step of the dynamics, by default 2, and 0.1 for ensembles too small to be split. The
        sampler takes less where it has to. With ``scheme="paper"`` this is a bound of the adaptive
        step, by default none.
    corrected : bool, default True
        Whether ``scheme="paper"`` has the correction for the finite size of the ensemble [2]_.
    allow_subspace : bool, default False
        Whether an ensemble that does not span all parameters may sample a subspace.
    initial_ensemble : array_like, mapping or DataTree, optional
        Where the particles start. An array of shape (J, d) in unconstrained coordinates; a mapping
        of variable names to values of shape (J, ...); or the result of an earlier run. The new run
        then goes on from its last sweep, chain by chain, with as many particles and without a
        burn-in. By default particles are drawn from the prior.
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
        does not fit the model, or if an option has a value that the sampler does not know. With a
        model on the context stack this happens at construction, otherwise when sampling starts.
    SamplingError
        If so many forward evaluations fail that the ensemble cannot go on.

    Notes
    -----
    One chain is one ensemble. A sweep moves all J particles once, and costs J evaluations:
    ``draws=1000`` with ``ensemble_size=100`` are ten sweeps. Draws come particle by particle, so
    `arviz.ess` sees their correlation. `to_ensemble` puts them back into ensembles.
    `tune` limits the iterations of the burn-in. It ends by itself, and the rest of them costs
    nothing.

    Unless `adjust`, `rough` or `dt` is given, the first chain spends 20 evaluations when it has
    reached the posterior. They are fourth differences of the log density along short lines through
    particles. If fluctuations of the forward map change the log density by less than 1.2 (one
    standard deviation), moves meet a Metropolis test. Otherwise the sampler samples the smooth
    posterior. The other chains wait for this decision, and follow it. If a chain finds that a
    smooth fit is not good enough, it returns to the test, unless the map fluctuates by more than 3,
    also in steps that suit the modes of the posterior. The log tells the decision. The draws carry
    it, and `diagnose` and `report` read it there. With ``adjust=None`` and ``rough=False`` there
    is always a test. An ensemble that is too small to be split, with less than ``2 (d + 2)``
    particles, makes no test.

    Some models have no forward map that can be used: potentials, a `pymc.CustomDist`, a black-box
    log likelihood. The sampler then uses values of the log density alone, always with a Metropolis
    test. This takes up to eight times as many evaluations. If the log density turns out to be
    noisy, the sampler stops, and says so.

    No draws come while sweeps are computed. The column *Ensemble* of the progress bar shows the
    progress; without a bar the log of ``pymc_ensemble`` does.
    Ctrl-C ends the computation and turns the complete sweeps into draws.

    References
    ----------
    .. [1] Garbuno-Inigo, A., Hoffmann, F., Li, W. and Stuart, A. M. (2020). Interacting Langevin
       diffusions: gradient structure and ensemble Kalman sampler. SIAM Journal on Applied Dynamical
       Systems, 19, 412-441. https://doi.org/10.1137/19M1251655
    .. [2] Garbuno-Inigo, A., Nüsken, N. and Reich, S. (2020). Affine invariant interacting Langevin
       dynamics for Bayesian inference. SIAM Journal on Applied Dynamical Systems, 19, 1633-1658.
       https://doi.org/10.1137/19M1304891
    .. [3] Dunbar, O. R. A., Duncan, A. B., Stuart, A. M. and Wolfram, M.-T. (2022). Ensemble
       inference methods for models with noisy and expensive likelihoods. SIAM Journal on Applied
       Dynamical Systems, 21. https://doi.org/10.1137/21M1410853

    Examples
    --------
    >>> import numpy as np, pymc as pm
    >>> from pymc_ensemble import EnsembleKalmanSampler
    >>> with pm.Model():
    ...     rate = pm.LogNormal("rate")
    ...     decay = pm.math.exp(-rate * np.arange(5))
    ...     y = pm.Normal("y", decay, 0.1, observed=[1.0, 0.4, 0.1, 0.1, 0.0])
    ...     idata = pm.sample(
    ...         draws=200,
    ...         chains=2,
    ...         cores=1,
    ...         step=EnsembleKalmanSampler(ensemble_size=20),
    ...         random_seed=1,
    ...         progressbar=False,
    ...     )
    >>> bool(idata["sample_stats"]["converged"].all())
    True
    """

    name = "ensemble_kalman"
    default_tune_steps = 80  # stages after which the burn-in gives up

    def __init__(
        self,
        vars: Named | Sequence[Named] | None = None,
        *,
        ensemble_size: int | None = None,
        adjust: bool | None = None,
        rough: bool | None = None,
        moves: Mapping[Move, float] | None = None,
        scheme: Literal["exact", "paper"] = "exact",
        dt: float | None = None,
        corrected: bool = True,
        allow_subspace: bool = False,
        initial_ensemble: ArrayLike | Mapping[str, ArrayLike] | DataTree | None = None,
        compile_kwargs: Mapping[str, Any] | None = None,
        model: pm.Model | None = None,
        rng: Any = None,
        initial_point: Point | None = None,
        blocked: bool = True,
    ):
        if scheme == "exact":
            adjust, rough = decided(True if moves is not None else adjust, rough)
        self.scheme = scheme
        self.sampler_class, options = of_scheme(
            scheme,
            {"exact": EnsembleKalman, "paper": PublishedKalman},
            {
                "adjust": adjust,
                "rough": rough,
                "moves": moves,
                "dt": dt,
                "corrected": corrected,
                "allow_subspace": allow_subspace,
            },
        )
        if scheme == "paper":
            self.default_tune_steps = PAPER_TUNE
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
    def _averages(self) -> bool:
        """Whether a fit averages: a Metropolis test would keep points with lucky simulations."""
        if self.scheme == "paper":
            return False
        plain = self._options["adjust"] is False or self._options["dt"] is not None
        return bool(self._options["rough"] or plain)

    def _make_problem(self, model: pm.Model, vars: list[Variable]) -> InverseProblem:
        """Inverse problem of the model; without a forward map, only its log density."""
        if self.scheme == "paper":
            return super()._make_problem(model, vars)
        problem, reason = problem_of(model, compile_kwargs=self._compile_kwargs)
        if not reason:
            if problem.dimension > MANY and not problem.stochastic:
                logger.info(
                    f"EnsembleKalmanSampler needs an ensemble of {2 * (problem.dimension + 2)} for "
                    f"{problem.dimension} parameters. If the forward map is smooth, "
                    "LikelihoodInformedSampler takes far fewer evaluations."
                )
            return problem
        if self._options["adjust"] is False or self._options["rough"]:
            option = "rough=True" if self._options["rough"] else "adjust=False"
            raise ValueError(
                f"{option} fits the outputs of a forward map, but only the log density of this "
                f"model is known: {reason}. Leave {option} out: then moves meet a Metropolis "
                "test. Or write the likelihood as that of a vector-valued forward map."
            )
        logger.info(
            f"{type(self).__name__}: moves use only values of the log density: {reason}. Write "
            "the likelihood as that of a vector-valued forward map: it takes up to eight times "
            "fewer evaluations."
        )
        return problem

    # -- the first chain examines the forward map for all ---------------------------------------

    @property
    def _exact(self) -> EnsembleKalman | None:
        """The sampler, if it may have to examine the forward map."""
        sampler = self._bound.sampler
        return sampler if isinstance(sampler, EnsembleKalman) and sampler.finds_out else None

    def _burn_in_once(self) -> None:
        chain, sampler = self._chain, self._exact
        if sampler is not None and chain.state is not None and sampler.examines(chain.state):
            found = self._found_by_another()
            if found is not None:
                with self._driver.failures_in_words(chain.state):
                    chain.state = sampler.informed(chain.state, found)
                self._note_convergence()
        if chain.state is None or not chain.state.burned_in:
            super()._burn_in_once()
        self._tell_others()

    def _end_burn_in(self) -> None:
        super()._end_burn_in()
        self._tell_others()
        self._warn_of_unknown_noise()

    def _warn_of_unknown_noise(self) -> None:
        """Warn if a Gaussian replaces the posterior of an unknown noise scale, which is skewed."""
        names = getattr(self._bound.problem, "unknown_noise", ())
        if not names or self._place.chain or self._origin.law not in ("approximate", "gaussian"):
            return
        logger.warning(
            f"The scale of the noise in `{names[0]}` is unknown, and with these options moves "
            "meet no Metropolis test. With few data, the draws of the scale and of other "
            "parameters are too narrow: by a quarter to a half with five to eight data, hardly "
            "with more than twenty. With few data, sample with "
            "EnsembleKalmanSampler(adjust=True). Or check the draws with pymc_ensemble.diagnose."
        )

    def _tell_others(self) -> None:
        """Tell the other chains the result of the examination, or that there will be none.

        A rough map can still turn out to be too curved for a fit. The result is told only when this
        is settled. So all chains follow the same verdict, whatever their timing.
        """
        chain, found = self._chain, self._found
        if self._place.chain or self._board.finding or self._exact is None:
            return
        if found is None:
            if chain.sampling:  # tuning was cut short
                self._board.note_finding(math.nan, 0)
        elif not found.rough or chain.state.burned_in:
            self._board.note_finding(found.fluctuation, found.evaluations, found.bent)

    def _found_by_another(self) -> Examination | None:
        """Wait for the result of the first chain; None if this chain has to examine the map."""
        if not self._place.follows_another:
            return None
        looks = 0
        while in_chain_process() and self._board.finding is None:
            time.sleep(LOOK_SECONDS)
            looks += 1
            if looks == MANY_LOOKS:
                logger.info(
                    f"{self._progress.label}waits for the first chain, which examines the forward "
                    "map."
                )
        finding = self._board.finding
        return None if finding is None else Examination(*finding)

    @property
    def _proposes(self) -> bool:
        """Whether moves meet a Metropolis test, now or possibly after the examination."""
        sampler = self._bound.sampler
        tests = isinstance(sampler, EnsembleKalman) and (sampler.adjust or sampler.finds_out)
        return bool(tests)

    @property
    def remedy_of_burn_in(self) -> str:  # type: ignore[override]
        """Remedy for a burn-in, or for a linear fit to a rough map, that has failed its test."""
        if curved(self._chain.state):
            return (
                "Its linear fit does not do, as the forward map is curved where the posterior is. "
                "Use EnsembleGaussianProcessSampler, or adjust=True if the map does not fluctuate"
            )
        return super().remedy_of_burn_in
