"""Step method of the multiscale derivative-free sampler."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import pymc as pm
from numpy.typing import ArrayLike
from pytensor.graph.basic import Variable
from xarray import DataTree

from pymc_ensemble.log import logger
from pymc_ensemble.problem.conditional_model import ConditionalModel, continuous_variables
from pymc_ensemble.problem.inverse_problem import InverseProblem, problem_of
from pymc_ensemble.problem.points import Named, Point
from pymc_ensemble.samplers.multiscale.explorers import Preconditioner
from pymc_ensemble.samplers.multiscale.sampler import Multiscale, PublishedMultiscale
from pymc_ensemble.samplers.multiscale.walker_sampler import WalkerSampler

from .base import EnsembleStep, FloatArray
from .binding import decided, of_scheme
from .common_stage import Outcome
from .draws import Draw, Stats, vector_stats
from .initial_ensemble import InitialEnsembles, posterior_points


class MultiscaleSampler(EnsembleStep):
    """Multiscale derivative-free sampler: exact in the limit, without derivatives.

    A walker follows Langevin dynamics whose gradient is measured by explorers close to it. The law
    of the draws tends to the exact posterior as the step size and the distance of the explorers
    shrink; with ``adjust=True`` it is exact.

    Parameters
    ----------
    vars : list of variables or names, optional
        Variables to sample, by default all continuous ones. Other step methods may move the others:
        ``pm.sample(step=[MultiscaleSampler([x]), pm.Metropolis([k])])``.
    directions : int, optional
        Explorers J of each walker, by default one for each of d unconstrained parameters. With
        fewer the drift is noisy, and steps have to be far shorter.
    sigma : float, optional
        Distance of the explorers in units of the preconditioner (posterior standard deviations), by
        default 1e-3. For a rough forward map it should exceed the wavelength of the fluctuations.
        With `rough` it is 3 by default.
    delta : float, default 0.0
        Relaxation time of the explorers' directions, in the square root of units of time. By
        default they are drawn anew in every step. Larger values save nothing.
    step_size : float, optional
        Time step of the walkers, of order one for a well preconditioned posterior. By default it is
        found from the measured stiffness of the posterior, and tuned to an acceptance of 0.57 with
        ``adjust=True``.
    preconditioner : "ensemble", None, array_like of shape (d, d) or DataTree, default "ensemble"
        Matrix that makes the posterior isotropic: the covariance of a pilot ensemble, which runs
        first, none, a covariance in unconstrained coordinates, or that of an earlier run's draws.
    walkers : int, default 1
        Walkers M of each chain, which are evaluated together, in one batch.
    adjust : bool, optional
        Whether to add a Metropolis test, which makes the sampler exact for every deterministic
        forward map, whatever `sigma` and `directions` are. Beside other step methods it is always
        there: these change the posterior that the step size was tuned to.
    rough : bool, optional
        Whether to average out fluctuations of the forward map. The target is then the smooth
        posterior behind them. Unless `adjust`, `rough` or `delta` is given, the pilot finds out
        what the forward map needs, as `EnsembleKalmanSampler` does. Without a pilot, or without a
        forward map, there is a Metropolis test.
    central : bool, optional
        Whether there are explorers in opposite directions, twice as many, whose differences are
        more accurate. By default for rough forward maps only.
    scheme : {"averaged", "paper"}, default "averaged"
        Orthogonal directions and a time stepping that averages the noise of two steps [2]_, or the
        published algorithm [1]_ with independent directions.
    initial_ensemble : array_like, mapping or DataTree, optional
        Where the pilot ensemble starts: an array of shape (n, d) in unconstrained coordinates, or a
        mapping of variable names to values of shape (n, ...). If you give a preconditioner, there
        is no pilot, and the walkers start here. The result of an earlier run, of any
        sampler, replaces the pilot. By default the pilot starts from the prior.
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
        If `vars` names discrete or unknown variables, if `initial_ensemble` does not fit the model,
        or if an option has a value that the sampler does not know.
    SamplingError
        If the forward map fails wherever the pilot or the walkers are.

    Notes
    -----
    A step costs ``walkers * (directions + 1)`` forward evaluations, ``2 directions + 1`` for each
    walker with `central`. The pilot and the measurement of the stiffness come before, once for all
    chains of a run. `tune` limits their iterations, and those of the warm-up of each chain after
    them. Iterations that are left cost nothing.

    A chain is an ordinary Markov chain, and `arviz.ess` and R-hat have their usual meaning. With
    ``walkers=M`` the draws of a chain are the paths of its walkers, one after the other;
    `to_ensemble` separates them. Chains that start in different modes rarely change between
    them.

    The sampler also takes models without a forward map that it can tell apart from the likelihood:
    potentials, black-box densities. It then measures the gradient of the log density itself, at
    the same cost. The log says which it does.

    References
    ----------
    .. [1] Pavliotis, G. A., Stuart, A. M. and Vaes, U. (2022). Derivative-free Bayesian inversion
       using multiscale dynamics. SIAM Journal on Applied Dynamical Systems, 21.
       https://arxiv.org/abs/2102.00540
    .. [2] Leimkuhler, B. and Matthews, C. (2013). Rational construction of stochastic numerical
       methods for molecular sampling. Applied Mathematics Research eXpress, 2013, 34-56.
       https://doi.org/10.1093/amrx/abs010

    Examples
    --------
    >>> import numpy as np, pymc as pm
    >>> from pymc_ensemble import MultiscaleSampler
    >>> with pm.Model():
    ...     x = pm.Normal("x", shape=2)
    ...     y = pm.Normal("y", (x[0] - x[1]) ** 2, 1.0, observed=2.0)
    ...     idata = pm.sample(
    ...         draws=200,
    ...         chains=2,
    ...         cores=1,
    ...         step=MultiscaleSampler(walkers=5),
    ...         random_seed=1,
    ...         progressbar=False,
    ...     )
    >>> bool(idata["sample_stats"]["converged"].all())
    True
    """

    name = "multiscale"
    default_tune_steps = 250  # iterations after which pilot and walkers have long been tuned
    remedy_of_burn_in = "Use more informative priors, or a larger initial_ensemble"

    def __init__(
        self,
        vars: Named | Sequence[Named] | None = None,
        *,
        directions: int | None = None,
        sigma: float | None = None,
        delta: float = 0.0,
        step_size: float | None = None,
        preconditioner: str | ArrayLike | DataTree | None = "ensemble",
        walkers: int = 1,
        adjust: bool | None = None,
        rough: bool | None = None,
        central: bool | None = None,
        scheme: Literal["averaged", "paper"] = "averaged",
        initial_ensemble: ArrayLike | Mapping[str, ArrayLike] | DataTree | None = None,
        compile_kwargs: Mapping[str, Any] | None = None,
        model: pm.Model | None = None,
        rng: Any = None,
        initial_point: Point | None = None,
        blocked: bool = True,
    ):
        if scheme == "averaged":
            adjust, rough = decided(adjust, rough)
        self._conditional: ConditionalModel | None = None
        self._sampled: Any = None
        self._account = ""
        self.scheme = scheme
        self.sampler_class, options = of_scheme(
            scheme,
            {"averaged": Multiscale, "paper": PublishedMultiscale},
            {
                "directions": directions,
                "sigma": sigma,
                "delta": delta,
                "step_size": step_size,
                "preconditioner": preconditioner,
                "walkers": walkers,
                "adjust": adjust,
                "rough": rough,
                "central": central,
            },
        )
        super().__init__(
            vars,
            options=options,
            initial_ensemble=initial_ensemble,
            compile_kwargs=compile_kwargs,
            model=model,
            rng=rng,
            initial_point=initial_point,
            blocked=blocked,
        )

    # -- binding to a model ---------------------------------------------------------------------

    def _without_leaves(self, model: pm.Model) -> pm.Model:
        """The model without separately drawn variables; unchanged if the user chose `vars`."""
        return model if self._names is not None else super()._without_leaves(model)

    def _owned_variables(self, model: pm.Model) -> list[Variable]:
        """All continuous variables of the model, or those that the user chose."""
        return continuous_variables(model, self._names, type(self).__name__)

    def _make_problem(self, model: pm.Model, vars: list[Variable]) -> InverseProblem:
        """Inverse problem of the variables, given the others; with a forward map if possible."""
        self._conditional, given = None, ()
        if len(vars) < len(model.value_vars):
            if self._options["walkers"] != 1:
                raise ValueError(
                    f"walkers={self._options['walkers']} needs all variables of the model: "
                    "another step method would move its variables for all walkers at once. Use "
                    "walkers=1 and more chains."
                )
            self._conditional = ConditionalModel(model, vars)
            model, given = self._conditional.model, self._conditional.given
        self._sampled = model
        order = [value.name for value in model.value_vars]
        vars.sort(key=lambda value: order.index(value.name))
        problem, reason = problem_of(model, compile_kwargs=self._compile_kwargs, given=given)
        self._account = (
            f"the gradient is measured by differences of {problem.n_outputs} forward outputs"
        )
        if reason:
            self._account = (
                "the gradient is measured by differences of the log density itself, without the "
                f"help of a forward map: {reason}"
            )
        return problem

    def _make_sampler(
        self, model: pm.Model, problem: InverseProblem, given: int | None
    ) -> WalkerSampler:
        options = dict(self._options)
        if isinstance(options["preconditioner"], DataTree):
            points = self._points_of(options["preconditioner"], problem)
            root = Preconditioner.of_points(points).root
            options["preconditioner"] = root @ root.T
        sampler = cast(WalkerSampler, self.sampler_class(problem, **options))
        plain = not sampler.rough and sampler.delta == 0 and not sampler.adjust
        if self._conditional is not None and plain and isinstance(sampler, Multiscale):
            self._account += (
                ". Steps meet a Metropolis test, as those of other variables change the posterior "
                "that they were tuned to"
            )
            sampler = replace(sampler, adjust=True, rough=False)
        return sampler

    def _make_initial(
        self,
        given: ArrayLike | Mapping[str, ArrayLike] | DataTree,
        model: pm.Model,
        problem: InverseProblem,
    ) -> InitialEnsembles:
        if isinstance(given, DataTree):
            U = self._points_of(given, problem)
            return InitialEnsembles(U[None], burned_in=True, converged=True)
        return super()._make_initial(given, self._sampled_model, problem)

    def _points_of(self, idata: DataTree, problem: InverseProblem) -> FloatArray:
        return posterior_points(idata, self._sampled_model, problem.coordinate_names)

    @property
    def _sampled_model(self) -> pm.Model:
        return self._sampled

    # -- life of a chain ------------------------------------------------------------------------

    def step(self, point: Point) -> Draw:
        """Next draw: the walker after one more step, or one of several at one of their steps."""
        if not self.vars or self._conditional is None:
            return super().step(point)
        self._condition(self._conditional, point)
        moved, [stats] = super().step(point)
        others = [np.ravel(point[name]) for name in self._others]
        stats["unconstrained"] = np.concatenate([stats["unconstrained"], *others])
        if self._chain.state.ensemble is None:  # the walkers have not started yet
            return dict(point), [stats]
        return {**point, **moved}, [stats]

    @property
    def _others(self) -> list[str]:
        """Names of the value variables that other step methods move."""
        bound = self._bound
        return [str(v.name) for v in bound.model.value_vars if v not in bound.vars]

    def _vector_stats(self) -> Stats:
        """Vector stats with the coordinates of all variables, those of this step method first."""
        point = self._bound.model.initial_point()
        n_others = sum(np.size(point[name]) for name in self._others)
        return vector_stats(self._bound.problem.dimension + n_others)

    @property
    def _walking(self) -> WalkerSampler:
        return cast(WalkerSampler, self._bound.sampler)

    def _condition(self, conditional: ConditionalModel, point: Point) -> None:
        """Take over the values of the variables that other step methods move."""
        chain = self._chain
        if chain.state is None:
            conditional.condition(self._bound.model.initial_point())  # the same for all chains
        elif conditional.condition(point):
            chain.state = self._walking.forget(chain.state)

    def _start(self) -> None:
        """Put the walkers where the pilot, which serves all chains, has found the posterior."""
        chain, number = self._chain, self._chain_number
        if number == 0:
            logger.info(f"MultiscaleSampler: {self._account}.")
        pilot, own = self._common.outcome(self._run_pilot, self._progress.label)
        chain.state = self._walking.set_out(pilot.found, number)
        self._take_over(pilot, own)
        if self._conditional is not None and chain.tune:
            chain.waits = pilot.iterations  # other step methods tune meanwhile

    def _run_pilot(self) -> Outcome:
        """Run the pilot, and measure the stiffness. Both stop when tuning ends."""
        return self._start_for_all(lambda state: state.shared, self._walking.found)

    def _burn_in_once(self) -> None:
        chain = self._chain
        if chain.state is None:
            with self._driver.failures_in_words(None):
                self._start()
        if chain.waits:
            chain.waits, chain.iterations = chain.waits - 1, chain.iterations + 1
            return
        super()._burn_in_once()

    @property
    def _spawn_key(self) -> tuple[int, ...]:
        """Key without the last entry, the number of this step among several, from PyMC."""
        key = super()._spawn_key
        return key if self._conditional is None else key[:-1]
