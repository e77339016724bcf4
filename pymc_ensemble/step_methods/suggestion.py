"""Choose a sampler for a model."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pymc as pm

from pymc_ensemble.log import duration, number
from pymc_ensemble.problem.checks import given_model, quoted
from pymc_ensemble.problem.forward_models import estimated_likelihoods
from pymc_ensemble.problem.frontier import core_op
from pymc_ensemble.problem.graphs import is_differentiable
from pymc_ensemble.problem.inverse_problem import InverseProblem, problem_of
from pymc_ensemble.problem.leaves import without_leaves
from pymc_ensemble.samplers.options import require_positive

from .gaussian_process import EnsembleGaussianProcessSampler
from .informed import LikelihoodInformedSampler
from .kalman import MANY, EnsembleKalmanSampler
from .multiscale import MultiscaleSampler

# Evaluations until means are known to 0.1 posterior sd and standard deviations to 10%: smallest and
# largest median over the problems of the benchmark (docs/which_sampler.md, docs/emcee.md).
KALMAN, VALUES, SURROGATE = (300, 4200), (1150, 3400), (150, 1800)
MULTISCALE, INFORMED = (3200, 18_000), (1150, 3800)
MOST_OF_SURROGATE = 30  # largest number of parameters for which the Gaussian process is measured
SYNTHETIC = 2500, 2800  # all simulations for two to four parameters (docs/summaries.md)
OWN_SECONDS = 60.0  # computing time of a Gaussian process: four chains, some hundred evaluations


@dataclass(frozen=True)
class Suggestion:
    """A sampler for a model, why, and what it is expected to cost.

    Attributes
    ----------
    code : str
        The call that samples the model, to be written inside ``with model:``.
    reason : str
        Why this sampler, in a sentence.
    runs : (int, int) or None
        Fewest and most runs of the forward model that it took on the problems of the benchmark
        until means were known to 0.1 posterior standard deviations, and standard deviations to 10%.
        None if no ensemble sampler is suggested.
    hours : (float, float) or None
        What these runs take one after another; None without `seconds_per_run`.
    """

    code: str
    reason: str
    runs: tuple[int, int] | None = None
    hours: tuple[float, float] | None = None
    _make: Callable[[], Any] = field(default=lambda: None, repr=False, compare=False)

    @property
    def step(self) -> Any:
        """The step method, new at each use: ``pm.sample(step=suggestion.step)`` inside the model.

        None where PyMC's own choice is the right one, or where `code` takes none.
        """
        return self._make()

    def __str__(self) -> str:
        lines = [self.code, self.reason]
        if self.runs is not None:
            lines.append(f"Expected: {self.runs[0]} to {self.runs[1]} runs.")
        if self.hours is not None:
            low, high = self.hours
            lines.append(
                f"One after another they take {duration(3600 * low)} to {duration(3600 * high)} "
                "(hours, minutes, seconds). Workers make this shorter: "
                "`forward_model(executor=8)` has eight of them."
            )
        return "\n".join(lines)


def suggest(model: pm.Model | None = None, seconds_per_run: float | None = None) -> Suggestion:
    """Suggest a sampler for a model, from what is known before its first evaluation.

    Parameters
    ----------
    model : pm.Model, optional
        By default the one on the context stack.
    seconds_per_run : float, optional
        Seconds that one evaluation of the forward model takes. Where evaluations are dear, a
        sampler that needs fewer of them is worth its own computing time.

    Returns
    -------
    Suggestion
        The call, the reason, and the number of runs to be expected. It prints.

    Raises
    ------
    TypeError
        If there is no model.
    ValueError
        If `seconds_per_run` is not positive, or if the model cannot be sampled: the message names
        the variable and the remedy.

    Notes
    -----
    Nothing is evaluated and nothing is drawn. So it cannot be known whether a forward map is noisy
    or smooth, or whether a posterior has several modes, unless the forward model says that it is
    stochastic. `EnsembleKalmanSampler` finds out by itself whether the map is smooth.

    Nor does a model tell whether its simulator has a cheap sibling, on a coarser grid for example.
    If that is a thousand times faster, `MultifidelitySampler` saves half of the runs, or so.

    Examples
    --------
    >>> import numpy as np, pymc as pm
    >>> import pymc_ensemble as pe
    >>> @pe.forward_model
    ... def simulate(rate):
    ...     return np.exp(-rate * np.arange(5.0))
    >>> with pm.Model() as model:
    ...     rate = pm.LogNormal("rate")
    ...     y = pm.Normal("y", simulate(rate), 0.1, observed=[1.0, 0.4, 0.1, 0.1, 0.0])
    >>> print(pe.suggest(model).code)
    pm.sample(step=pe.EnsembleKalmanSampler())
    >>> print(pe.suggest(model, seconds_per_run=60).code)
    pm.sample(step=pe.EnsembleGaussianProcessSampler())
    """
    model = without_leaves(given_model(model))
    if seconds_per_run is not None:
        require_positive(seconds_per_run=seconds_per_run)
    found = _of_another_kind(model) or _of_ensembles(*problem_of(model), seconds_per_run, model)
    if seconds_per_run is None or found.runs is None:
        return found
    few, many = (runs * seconds_per_run / 3600 for runs in found.runs)
    return replace(found, hours=(few, many))


def _of_another_kind(model: pm.Model) -> Suggestion | None:
    """Suggestion for a model that no ensemble can sample as a whole, or need not sample."""
    for rv in model.basic_RVs:
        if isinstance(core_op(rv), pm.Simulator.rv_type):
            return Suggestion(
                "pe.amortize(model, pe.simulations(model, 5000)).sample()",
                f"`{rv.name}` is a pm.Simulator: there is no likelihood, and networks learn the "
                "posterior from simulations. pm.sample_smc() compares simulations with the data "
                "instead.",
            )
    if names := list(estimated_likelihoods(model)):
        return Suggestion(
            "pe.sample_synthetic()",
            f"`{names[0]}` is a synthetic likelihood: one simulation tells little, and the "
            "covariance of the summaries is to be estimated. This samples in stages, and averages.",
            SYNTHETIC,
        )
    if not model.free_RVs:
        raise ValueError("The model has no free variable, so there is nothing to sample.")
    density = model.logp()
    differentiable = all(is_differentiable(density, v) for v in model.continuous_value_vars)
    if not differentiable and model.discrete_value_vars:
        names = [model.values_to_rvs[v].name for v in model.continuous_value_vars]
        discrete = quoted([model.values_to_rvs[v].name for v in model.discrete_value_vars])
        return Suggestion(
            f"pm.sample(step=[pe.MultiscaleSampler({names!r}, adjust=True)])",
            f"{discrete} cannot be moved by an ensemble. MultiscaleSampler is the one sampler that "
            "leaves variables to other step methods, which PyMC chooses.",
            MULTISCALE,
            _make=lambda: MultiscaleSampler(names, adjust=True, model=model),
        )
    if differentiable:
        return Suggestion(
            "pm.sample()",
            "All of the model has gradients, and these tell more than any ensemble can: PyMC takes "
            "NUTS for the continuous variables.",
        )
    return None


def _of_ensembles(
    problem: InverseProblem, reason: str, seconds: float | None, model: pm.Model
) -> Suggestion:
    """Suggestion for a model of continuous variables without gradients."""
    d = problem.dimension
    if reason:
        return Suggestion(
            "pm.sample(step=pe.EnsembleKalmanSampler())",
            f"Only values of the log density can be used: {reason}. A likelihood that is written "
            "as that of a vector-valued forward map takes up to eight times fewer runs.",
            VALUES,
            _make=lambda: EnsembleKalmanSampler(model=model),
        )
    if d > MANY and not problem.stochastic:
        return Suggestion(
            "pm.sample(step=pe.LikelihoodInformedSampler())",
            f"With {d} parameters an ensemble would need {2 * (d + 2)} particles. This sampler "
            "learns the slope of the outputs, and takes the rest from the prior.",
            INFORMED,
            _make=lambda: LikelihoodInformedSampler(model=model),
        )
    if d <= MOST_OF_SURROGATE and (
        seconds is not None and seconds * (KALMAN[0] - SURROGATE[0]) > OWN_SECONDS
    ):
        return Suggestion(
            "pm.sample(step=pe.EnsembleGaussianProcessSampler())",
            f"A run of {number(seconds)} s is worth the computing of this sampler: it learns the "
            "forward map from all runs, and needs fewest of them.",
            SURROGATE,
            _make=lambda: EnsembleGaussianProcessSampler(model=model),
        )
    stochastic = "noisy, as its forward model says" if problem.stochastic else "smooth or noisy"
    return Suggestion(
        "pm.sample(step=pe.EnsembleKalmanSampler())",
        f"The model has a forward map and {d} parameter{'s' if d > 1 else ''}. This sampler is "
        f"for maps that are {stochastic}. It finds out by itself which they are.",
        KALMAN,
        _make=lambda: EnsembleKalmanSampler(model=model),
    )
