"""Step method of the ensemble Langevin sampler."""

from collections.abc import Mapping, Sequence
from typing import Any

import pymc as pm
from numpy.typing import ArrayLike
from xarray import DataTree

from pymc_ensemble.problem.differentiable import DifferentiableProblem
from pymc_ensemble.problem.points import Named, Point
from pymc_ensemble.samplers.langevin import EnsembleLangevin

from .base import EnsembleStep


class EnsembleLangevinSampler(EnsembleStep):
    """Ensemble Langevin sampler: the baseline with gradients, for comparison.

    Particles follow Langevin dynamics. The covariance of the ensemble is the preconditioner, and
    PyTensor supplies the exact gradient of the log density. The sampler shows the use of gradients,
    and their limit: in a rough posterior, particles are caught in the nearest fluctuation.

    Parameters
    ----------
    vars : list of variables or names, optional
        Variables to sample. An ensemble moves all continuous variables of the model, so this can
        only repeat the default.
    ensemble_size : int, optional
        Number of particles J; by default ``max(100, 4 (d + 2))`` for d unconstrained parameters.
    adjust : bool, default False
        Whether to add a Metropolis test, which removes the error of the time steps.
    dt : float, optional
        Largest time step, by default 0.1, in units of the relaxation time of the ensemble. The step
        is shorter where the forces are strong. With ``adjust=True`` it is tuned.
    initial_ensemble : array_like, mapping or DataTree, optional
        Where the particles start. An array of shape (J, d) in unconstrained coordinates; a mapping
        of variable names to values of shape (J, ...); or the result of an earlier run. The new run
        then continues it without a burn-in. By default particles are drawn from the prior.
    compile_kwargs : dict, optional
        Options for the compilation of the log density and its gradient.
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
    NotImplementedError
        If the log density of the model has no gradient.
    ValueError
        If the model has discrete variables, if `vars` leaves out variables, if `initial_ensemble`
        does not fit the model, or if an option has a value that the sampler does not know.

    Notes
    -----
    A sweep costs J evaluations of the log density with its gradient. `tune` limits the sweeps of
    the burn-in. It ends earlier when mean and covariance of the ensemble no longer change.

    References
    ----------
    .. [1] Garbuno-Inigo, A., Nüsken, N. and Reich, S. (2020). Affine invariant interacting Langevin
       dynamics for Bayesian inference. SIAM Journal on Applied Dynamical Systems, 19, 1633-1658.
       https://doi.org/10.1137/19M1304891

    Examples
    --------
    >>> import pymc as pm
    >>> from pymc_ensemble import EnsembleLangevinSampler
    >>> with pm.Model():
    ...     x = pm.Normal("x", shape=2)
    ...     y = pm.Normal("y", x[0] + x[1], 0.5, observed=1.0)
    ...     idata = pm.sample(
    ...         draws=500,
    ...         chains=2,
    ...         cores=1,
    ...         step=EnsembleLangevinSampler(adjust=True),
    ...         random_seed=1,
    ...         progressbar=False,
    ...     )
    >>> bool(idata["sample_stats"]["converged"].all())
    True
    """

    name = "ensemble_langevin"
    problem_class = DifferentiableProblem
    sampler_class = EnsembleLangevin
    default_tune_steps = 1000  # sweeps after which the burn-in gives up

    def __init__(
        self,
        vars: Named | Sequence[Named] | None = None,
        *,
        ensemble_size: int | None = None,
        adjust: bool = False,
        dt: float | None = None,
        initial_ensemble: ArrayLike | Mapping[str, ArrayLike] | DataTree | None = None,
        compile_kwargs: Mapping[str, Any] | None = None,
        model: pm.Model | None = None,
        rng: Any = None,
        initial_point: Point | None = None,
        blocked: bool = True,
    ):
        super().__init__(
            vars,
            options={"adjust": adjust, "dt": dt},
            ensemble_size=ensemble_size,
            initial_ensemble=initial_ensemble,
            compile_kwargs=compile_kwargs,
            model=model,
            rng=rng,
            initial_point=initial_point,
            blocked=blocked,
        )
