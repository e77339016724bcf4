"""Sampling with a synthetic likelihood in stages: find the posterior, run replicates, sample."""

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pymc as pm
import xarray as xr

from pymc_ensemble.log import show_log
from pymc_ensemble.problem.checks import given_generator, given_model
from pymc_ensemble.samplers.options import require_counts, require_flags, require_given_counts

from .simulator import likelihoods_in
from .stages import Staged

__all__ = ["sample_synthetic"]

OF_STEP = (
    "step",
    "model",
    "initvals",
    "tune",
    "random_seed",
    "progressbar",
    "discard_tuned_samples",
    "return_inferencedata",
    "nuts_sampler",
)
KNOWN = set(inspect.signature(pm.sample).parameters) - {"kwargs"}  # those are of step methods


def sample_synthetic(
    draws: int = 1000,
    *,
    model: pm.Model | None = None,
    stages: int = 2,
    check: bool = True,
    chains: int = 1,
    cores: int = 1,
    ensemble_size: int | None = None,
    random_seed: Any = None,
    progressbar: bool = True,
    **sample_kwargs: Any,
) -> xr.DataTree:
    """Sample a model with synthetic likelihoods, and estimate their covariances.

    The first stage finds the posterior with the initial covariance. Then the simulator runs many
    times at the posterior mean in unconstrained coordinates. These replicates give the covariance.
    The second stage samples the model with this covariance, by `EnsembleKalmanSampler` with
    ``rough=True``. Finally the simulator runs at the ends of the posterior, to test whether the
    covariance is the same there.

    Parameters
    ----------
    draws : int, default 1000
        Draws of each chain. Each costs one simulation.
    model : pm.Model, optional
        By default the one on the context stack. It has at least one `synthetic_likelihood`, and may
        have other likelihoods.
    stages : int, default 2
        Number of times that the model is sampled. Each further stage estimates the covariance
        again, at the mean of the previous stage.
    check : bool, default True
        Whether to run the simulator 200 more times, at both ends of each principal axis of the
        posterior. With more than five parameters it runs 20 times at each end.
    chains, cores : int, default 1
        Chains of the last stage, and processes for them. Each chain has its own burn-in. Workers of
        a `forward_model` start in these processes.
    ensemble_size : int, optional
        Number of particles of the last stage; by default 50, or ``4 (d + 2)`` for d parameters, if
        that is more.
    random_seed : int, Generator or None
    progressbar : bool, default True
        Whether progress is shown.
    **sample_kwargs
        Other options of `pymc.sample` for the last stage.

    Returns
    -------
    DataTree
        The draws of the last stage, as `pymc.sample` returns them. The stat ``n_evals`` counts all
        simulations. In the first chain it includes the initial covariance, earlier stages,
        replicates and the check. ``constant_data`` has the covariances. The group ``synthetic`` has
        ``y_replicates`` for a variable ``y``. Its attributes count the simulations by purpose.

    Raises
    ------
    ValueError
        If the model has no synthetic likelihood, if an option makes no sense, or if too many
        replicates fail.
    SamplingError
        If too many simulations fail.

    Notes
    -----
    The draws follow the posterior given a Gaussian of the summaries, with the covariance at one
    point. With ``covariance="linear"`` the log variances are linear in the parameters. Then the
    simulator also runs at the ends of the posterior of the previous stage, as in the check.
    `diagnose` shows the results of the tests, and `report` describes the run. The model keeps the
    estimated covariance.

    Correlations are shrunk [1]_, and the covariance is enlarged to correct for the error of its
    inverse [2]_. Variances are raised to at least a twentieth of those over the prior: otherwise a
    summary that hardly varies in the replicates would have too much weight. Mardia's skewness and
    kurtosis [3]_ of the replicates are compared with those of Gaussian samples of the same size.

    References
    ----------
    .. [1] Chen, Y., Wiesel, A., Eldar, Y. C. and Hero, A. O. (2010). Shrinkage algorithms for MMSE
       covariance estimation. IEEE Transactions on Signal Processing, 58, 5016-5029.
       https://doi.org/10.1109/TSP.2010.2053029
    .. [2] Hartlap, J., Simon, P. and Schneider, P. (2007). Why your model parameter confidences
       might be too optimistic. Astronomy and Astrophysics, 464, 399-404.
       https://doi.org/10.1051/0004-6361:20066170
    .. [3] Mardia, K. V. (1970). Measures of multivariate skewness and kurtosis with applications.
       Biometrika, 57, 519-530. https://doi.org/10.1093/biomet/57.3.519

    Examples
    --------
    >>> import numpy as np, pymc as pm, pymc_ensemble as pe
    >>> def simulate(rate, rng):
    ...     return rng.poisson(rate, size=50)
    >>> of_means = pe.synthetic_likelihood(simulate, summaries=lambda x: [np.sqrt(x).mean()])
    >>> with pm.Model() as model:
    ...     rate = pm.LogNormal("rate", 1.0, 0.5)
    ...     _ = of_means("y", rate, observed=simulate(3.0, np.random.default_rng(1)))
    ...     idata = pe.sample_synthetic(200, random_seed=1, progressbar=False)
    >>> idata["posterior"]["rate"].shape, idata["synthetic"]["y_replicates"].shape
    ((1, 200), (200, 1))
    """
    require_given_counts(1, draws=draws, chains=chains, cores=cores)
    require_given_counts(2, stages=stages)
    require_counts(2, ensemble_size=ensemble_size)
    require_flags(check=check, progressbar=progressbar)
    if taken := [name for name in OF_STEP if name in sample_kwargs]:
        raise ValueError(f"{taken[0]} is set by sample_synthetic itself. Leave it out.")
    if unknown := sorted(set(sample_kwargs) - KNOWN):
        raise ValueError(
            f"{unknown[0]} is not an option of sample_synthetic or of pm.sample. Leave it out."
        )
    if (sample_kwargs.get("idata_kwargs") or {}).get("log_likelihood"):
        raise ValueError(
            'idata_kwargs={"log_likelihood": True} asks for log likelihoods of single '
            "simulations, but these are random. Leave it out."
        )
    model = given_model(model)
    rng = given_generator(random_seed, "random_seed")
    likelihoods = likelihoods_in(model)
    if not likelihoods:
        raise ValueError(
            "The model has no synthetic likelihood. Add one: `pe.synthetic_likelihood(simulate, "
            'summaries=...)("y", theta, observed=data)`. Or sample with '
            "pm.sample(step=pe.EnsembleKalmanSampler())."
        )
    if frozen := [simulator.observed for simulator, _ in likelihoods if simulator.is_frozen(model)]:
        raise ValueError(
            f"The covariance of `{frozen[0]}` is a constant of the model, so it cannot be "
            "estimated. Sample the model as it was before freeze_dims_and_data."
        )
    staged = Staged(model, likelihoods, rng)
    if progressbar:
        show_log()
    staged.begin()
    step = staged.step(ensemble_size)  # refuses bad options before any simulation
    with _quiet():
        found = staged.find()
    for stage in range(2, stages + 1):
        staged.estimate(found)
        if stage < stages:
            with _quiet():
                found = staged.find(found)
    step = staged.step(ensemble_size, found)
    with model:
        idata = pm.sample(
            draws,
            step=step,
            chains=chains,
            cores=cores,
            random_seed=int(rng.integers(2**31)),
            progressbar=progressbar,
            compute_convergence_checks=sample_kwargs.pop("compute_convergence_checks", False),
            **sample_kwargs,
        )
    return staged.result(idata, staged.check(idata) if check else {})


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence PyMC in a stage that has to be only roughly right."""
    log = logging.getLogger("pymc")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The burn-in had not passed", UserWarning)
            yield
    finally:
        log.setLevel(before)
