"""Step method of the likelihood-informed sampler."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import pymc as pm
from numpy.typing import ArrayLike
from pytensor.graph.basic import Variable
from xarray import DataTree

from pymc_ensemble.log import logger
from pymc_ensemble.problem.inverse_problem import InverseProblem
from pymc_ensemble.problem.points import Named, Point
from pymc_ensemble.samplers.informed.sampler import LikelihoodInformed
from pymc_ensemble.samplers.phases import PhaseState

from .base import EnsembleStep
from .common_stage import Outcome
from .initial_ensemble import InitialEnsembles, posterior_points

LEARNING_KEY = 0x1EA4  # sets the seed that all chains share apart from those of the chains
LEARNING = ("start", "burn-in")  # phases that all chains have in common


class LikelihoodInformedSampler(EnsembleStep):
    """Likelihood-informed sampler: hundreds of parameters and more, exact, and without gradients.

    It learns the slope of the forward outputs from all evaluations, and takes the covariance of the
    prior from the model. Both make a Gaussian law at the mode of the posterior, and a posterior of
    linearized outputs, with the likelihood and the prior as they are. Its draws are proposals,
    which meet a Metropolis test.

    Parameters
    ----------
    vars : list of variables or names, optional
        Variables to sample. The sampler owns all continuous variables of the model, so this can
        only repeat what is the default.
    walkers : int, default 50
        Walkers M of each chain, at least four, which are evaluated together, in one batch. Given
        what was learned, each of them is a chain of its own.
    round_size : int, default 50
        Forward evaluations in each batch while the slope is learned; at least 20.
    initial_ensemble : array_like, mapping or DataTree, optional
        Where learning begins: an array of shape (n, d) in unconstrained coordinates, a mapping of
        variable names to values of shape (n, ...), or the result of an earlier run. At the best of
        `round_size` draws of the prior by default.
    compile_kwargs : dict, optional
        Options for the compilation of the forward map, for example ``{"mode": "NUMBA"}``.
    model : pm.Model, optional
        Model to sample. By default the one on the context stack when sampling starts.
    rng : Generator or seed, optional
        Only for use outside of `pymc.sample`, which gives each chain a generator.
    initial_point : dict, optional
        Not needed; PyMC passes it to all step methods.
    blocked : bool, default True
        All variables are moved together, so True is the only choice.

    Raises
    ------
    ValueError
        If the model has discrete variables, if `vars` leaves out variables, if the forward model is
        stochastic, or if an option has a value that the sampler does not know.
    NotImplementedError
        If the model has no forward map that could be told apart from the likelihood.
    SamplingError
        If the forward map gives other outputs when a point is evaluated again, or if it fails at
        most draws of the prior.

    Notes
    -----
    A run learns the law once for all its chains, in rounds of `round_size` evaluations. `tune`
    limits their number. For d parameters it takes between d / 2 evaluations, if the prior knows
    which directions matter, and a few times d. A sweep then costs `walkers` evaluations a chain.

    The price of a draw depends on how far the forward map is linear over the posterior. The
    acceptance of independent proposals tells this: that of the sweeps whose stat `step_size` is
    infinite. If it would be below 0.7, the sampler learns curvature of the outputs, too, in rounds
    that go on while the acceptance rises. An acceptance above 0.5 is good, and one between 0.25 and
    0.5 is usable. If it is lower, sweeps of smaller moves come between the others. If it is below
    0.25, with curvature or without, `diagnose` says that the posterior is far from the law. The
    draws are always exact, once there are enough.

    A prior that is Gaussian in unconstrained coordinates, correlated or not, is kept as it is.
    It is best to write fields in coordinates that are independent in the prior, as `pymc.gp.Latent`
    and `pymc.gp.HSGP` have them: length scales and amplitudes may be unknown then. Moves are of the
    preconditioned Crank-Nicolson type [1]_ [2]_, so that their acceptance does not depend on the
    resolution of a field.

    References
    ----------
    .. [1] Cui, T., Law, K. J. H. and Marzouk, Y. M. (2016). Dimension-independent
       likelihood-informed MCMC. Journal of Computational Physics, 304, 109-137.
       https://doi.org/10.1016/j.jcp.2015.10.008
    .. [2] Rudolf, D. and Sprungk, B. (2018). On a generalization of the preconditioned
       Crank-Nicolson Metropolis algorithm. Foundations of Computational Mathematics, 18, 309-343.
       https://doi.org/10.1007/s10208-016-9340-x

    Examples
    --------
    >>> import numpy as np, pymc as pm
    >>> from pymc_ensemble import LikelihoodInformedSampler
    >>> with pm.Model():
    ...     field = pm.Normal("field", shape=60)
    ...     level = pm.math.cumsum(field)[4::5] / np.sqrt(60)
    ...     y = pm.Normal("y", pm.math.exp(level), 0.1, observed=np.linspace(1, 2, 12))
    ...     idata = pm.sample(
    ...         draws=200,
    ...         chains=2,
    ...         cores=1,
    ...         step=LikelihoodInformedSampler(),
    ...         random_seed=1,
    ...         progressbar=False,
    ...     )
    >>> bool(idata["sample_stats"]["converged"].all())
    True
    """

    name = "likelihood_informed"
    sampler_class = LikelihoodInformed
    default_tune_steps = 200  # rounds of learning, and sweeps, after which the burn-in gives up
    needs_spread: ClassVar[bool] = False
    common_key: ClassVar[int] = LEARNING_KEY
    common_round: ClassVar[str] = "learning, round"
    remedy_of_burn_in = (
        "Use a larger round_size, so that more of the slope is learned in each round, or "
        "EnsembleKalmanSampler if there are less than fifty parameters"
    )

    def __init__(
        self,
        vars: Named | Sequence[Named] | None = None,
        *,
        walkers: int = 50,
        round_size: int = 50,
        initial_ensemble: ArrayLike | Mapping[str, ArrayLike] | DataTree | None = None,
        compile_kwargs: Mapping[str, Any] | None = None,
        model: pm.Model | None = None,
        rng: Any = None,
        initial_point: Point | None = None,
        blocked: bool = True,
    ):
        super().__init__(
            vars,
            options={"walkers": walkers, "round_size": round_size},
            initial_ensemble=initial_ensemble,
            compile_kwargs=compile_kwargs,
            model=model,
            rng=rng,
            initial_point=initial_point,
            blocked=blocked,
        )

    def _make_problem(self, model: pm.Model, vars: list[Variable]) -> InverseProblem:
        """Inverse problem of a model whose forward map is there, and deterministic."""
        try:
            problem: InverseProblem = super()._make_problem(model, vars)
        except NotImplementedError as error:
            raise NotImplementedError(
                f"{error} This sampler learns the slope of forward outputs. MultiscaleSampler "
                "needs only values of the log density."
            ) from error
        if problem.stochastic:
            raise ValueError(
                "The forward model is stochastic: differences along short steps would be noise, "
                "and a Metropolis test would keep lucky evaluations. Use EnsembleKalmanSampler() "
                "or EnsembleGaussianProcessSampler(), which average over the noise."
            )
        return problem

    def _make_initial(
        self,
        given: ArrayLike | Mapping[str, ArrayLike] | DataTree,
        model: pm.Model,
        problem: InverseProblem,
    ) -> InitialEnsembles:
        """Where learning begins; earlier draws are no walkers, as the law has to be learned."""
        if isinstance(given, DataTree):
            most = self._options["round_size"]
            U = posterior_points(given, model, problem.coordinate_names, most)
            return InitialEnsembles(U[None])
        return super()._make_initial(given, model, problem)

    def _make_sampler(
        self, model: pm.Model, problem: InverseProblem, given: int | None
    ) -> LikelihoodInformed:
        return LikelihoodInformed(problem, **self._options)

    @property
    def _learner(self) -> LikelihoodInformed:
        return cast(LikelihoodInformed, self._bound.sampler)

    def _start(self) -> None:
        """Set out from the law, which is learned once for all chains."""
        chain = self._chain
        learned, own = self._common.outcome(self._learn, self._progress.label)
        self._take_over(learned, own)
        chain.state, chain.iterations = learned.found, learned.iterations

    def _learn(self) -> Outcome:
        """Learn the law; what is left of `tune` is for the walkers to settle."""
        outcome = self._start_for_all(lambda state: state.phase in LEARNING, self._set_out)
        logger.info(f"{type(self).__name__}: {self._learner.told(outcome.found)}")
        return outcome

    def _set_out(self, state: PhaseState) -> PhaseState:
        """Walkers, even if learning was cut short."""
        return self._learner.set_out(state) if state.phase in LEARNING else state
