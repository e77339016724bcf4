"""Forward model of summaries, its runs, and facts about their covariance."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import pymc as pm
from numpy.typing import ArrayLike, NDArray
from pytensor.graph.basic import Apply, Constant
from pytensor.graph.traversal import ancestors

from pymc_ensemble.forward.model import ForwardModel
from pymc_ensemble.forward.op import ForwardOp
from pymc_ensemble.forward.rounds import evaluating
from pymc_ensemble.forward.versions import fingerprint
from pymc_ensemble.log import logger
from pymc_ensemble.problem.checks import quoted

from .gaussian import dependent

FloatArray = NDArray[np.float64]

MOST_MISSING = 0.5  # largest share of failed runs for an estimate


@dataclass(frozen=True)
class Initial:
    """Initial covariance.

    Attributes
    ----------
    matrix : ndarray of shape (K, K)
    variances : ndarray of shape (K,) or None
        Variances of the noise, averaged over the prior, if known.
    n_evals, n_failed : int
        Number of runs for it, and of failed ones.
    """

    matrix: FloatArray
    variances: FloatArray | None
    n_evals: int
    n_failed: int


@dataclass(frozen=True)
class Estimate:
    """Estimated covariance, with facts about it.

    Attributes
    ----------
    matrix : ndarray of shape (K, K)
    facts : dict
        Facts about the estimate: numbers, flags and texts.
    slopes : ndarray of shape (K, d) or None
        Slopes of the log variances.
    """

    matrix: FloatArray
    facts: Mapping[str, Any]
    slopes: FloatArray | None = None


@dataclass(frozen=True)
class Runs:
    """Summaries of some runs.

    Attributes
    ----------
    outputs : ndarray of shape (n, K)
        NaN in the rows of failed runs.
    reasons : dict of int to str
        Reason of each failure, by row.
    """

    outputs: FloatArray
    reasons: Mapping[int, str] = field(default_factory=dict)

    @property
    def n_failed(self) -> int:
        """Number of failed runs."""
        return int((~np.isfinite(self.outputs).all(1)).sum())

    @property
    def good(self) -> FloatArray:
        """Outputs of the runs that did not fail."""
        return self.outputs[np.isfinite(self.outputs).all(1)]


class SummaryModel(ForwardModel):
    """Forward model of summaries, with facts about their covariance.

    Parameters
    ----------
    simulate : callable
        A function with a random argument, or a stochastic forward model.
    summaries : callable or None
        Summaries of the result of `simulate`.
    observed : str
        Name of the observed variable.
    shape : tuple of int
        Shape of the summaries.
    replicates : int
        Number of runs for the estimate of a covariance.
    linear : bool
        Whether log variances are linear in the parameters.
    """

    initial: Initial
    estimate: Estimate | None = None

    def __init__(
        self,
        simulate: Callable[..., Any],
        summaries: Callable[[Any], ArrayLike] | None,
        observed: str,
        shape: tuple[int, ...],
        replicates: int,
        linear: bool,
    ):
        options: dict[str, Any] = {}
        if isinstance(simulate, ForwardModel):
            version = simulate._version
            if version is not None and summaries is not None:
                version = f"{version}, summaries {fingerprint(summaries)}"
            options = {
                "vectorized": simulate.vectorized,
                "executor": simulate.executor,
                "timeout": simulate.timeout,
                "retries": simulate.retries,
                "store": simulate.store_path,
                "version": version,
                "depends_on": simulate._depends_on,
            }
            simulate = simulate.function
        function = Summarized(simulate, summaries, options.get("vectorized"), shape)
        super().__init__(function, output_shape=(prod(shape),), stochastic=True, **options)
        self.observed, self.replicates, self.linear = observed, replicates, linear

    def run(self, node: Apply, inputs: Sequence[np.ndarray], seed: np.random.SeedSequence) -> Runs:
        """Run the simulator at points.

        Parameters
        ----------
        node : Apply
            Node of this model in a graph.
        inputs : sequence of ndarray of shape (n, ...)
            Values of the varying inputs.
        seed : SeedSequence
        """
        op: Any = node.op
        values = dict(zip(op.signature.varying, inputs, strict=True))
        fixed = [i for i in range(len(node.inputs)) if i not in values]
        values |= {i: node.inputs[i].eval() for i in fixed}
        storage: list[list[Any]] = [[None]]
        with evaluating(len(inputs[0]), seed) as this:
            op.perform(node, [values[i] for i in range(len(values))], storage)
        return Runs(np.asarray(storage[0][0]), dict(this.failures))

    def require(self, made: Runs, where: str, least: int = 2) -> None:
        """Refuse runs if most have failed, or if too few are left.

        Raises
        ------
        ValueError
        """
        n, failed = len(made.outputs), made.n_failed
        if failed <= MOST_MISSING * n and n - failed >= least:
            return
        reason = next(iter(made.reasons.values()), "The summaries are not finite.")
        remedy = (
            "Run it, and take its summaries, by hand"
            if failed == n
            else "Give priors that stay where it works, or let it return a value instead of failing"
        )
        raise ValueError(
            f"{failed} of {n} runs of {self.name} for `{self.observed}` failed at {where}, so the "
            f"covariance of its summaries is not known. {remedy}. The first failure:\n{reason}"
        )

    def require_independent(self, residuals: FloatArray) -> None:
        """Refuse summaries that others determine: shrinkage would count their information twice.

        Parameters
        ----------
        residuals : ndarray of shape (n, K)
            Noise of some runs.

        Raises
        ------
        ValueError
        """
        if which := dependent(residuals):
            raise ValueError(
                f"Summary {', '.join(map(str, which))} of `{self.observed}` follows from the "
                "others, for example as their sum, and would count twice. Leave it out."
            )

    def is_frozen(self, model: pm.Model) -> bool:
        """Whether the covariance in a model is constant, so that no data can change it."""
        return isinstance(model[f"{self.observed}_covariance"], Constant)

    def likelihood_facts(self, model: pm.Model) -> tuple[str, dict[str, Any]]:
        """Name of the observed variable, and facts about its likelihood."""
        own: dict[str, Any] = {"summaries": len(self.initial.matrix)}
        matrix: Any = model[f"{self.observed}_covariance"]
        used = matrix.data if self.is_frozen(model) else matrix.get_value()
        if self.estimate is not None and np.array_equal(used, self.estimate.matrix):
            own |= {"covariance": "estimated", **self.estimate.facts}
        elif np.array_equal(used, self.initial.matrix) and self.initial.n_evals:
            own |= {"covariance": "prior", "pilot": self.initial.n_evals}
        else:
            own |= {"covariance": "given"}
        return self.observed, own


@dataclass(frozen=True)
class Summarized:
    """A simulator, followed by the summaries of its result."""

    simulate: Callable[..., Any]
    summaries: Callable[[Any], ArrayLike] | None
    vectorized: bool | None
    shape: tuple[int, ...]

    @property
    def __name__(self) -> str:
        return getattr(self.simulate, "__name__", type(self.simulate).__name__)

    @cached_property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.simulate)

    def __fingerprint__(self) -> tuple[Any, ...]:
        return (self.simulate, self.summaries, self.vectorized)

    def __call__(self, *args: Any, **kwargs: Any) -> FloatArray:
        """Run the simulator once: summaries of shape (K,), or (n, K) if it is vectorized."""
        outcome = self.simulate(*args, **kwargs)
        if self.vectorized:
            return np.array([self._summaries(row) for row in _rows(outcome)])
        return self._summaries(outcome)

    def _summaries(self, outcome: Any) -> FloatArray:
        values = as_array(outcome if self.summaries is None else self.summaries(outcome))
        shapes = values.shape, self.shape
        if len({tuple(size for size in shape if size > 1) for shape in shapes}) > 1:
            raise ValueError(
                f"The summaries of a simulation have the shape {values.shape}, but those of the "
                f"observed data have {self.shape}. Both must be the same."
            )
        return values.ravel()


def _rows(outcome: Any) -> list[Any]:
    """Outcomes of the members of a batch."""
    if isinstance(outcome, Mapping):
        columns = zip(*outcome.values(), strict=True)
        return [dict(zip(outcome, column, strict=True)) for column in columns]
    return list(zip(*outcome, strict=True)) if isinstance(outcome, tuple) else list(outcome)


def as_array(values: Any) -> FloatArray:
    """Summaries as an array of numbers.

    Raises
    ------
    TypeError
        If they are no real numbers, or if some are masked.
    """
    if np.ma.is_masked(values):
        raise TypeError("summaries must be numbers, but some are masked. Leave these out.")
    if np.iscomplexobj(values):
        raise TypeError(
            "summaries must be real, but these are complex. Return their real and imaginary parts."
        )
    try:
        return np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise TypeError(
            "summaries must be one array of numbers, such as `np.array([x.mean(), x.std()])`; got "
            f"{type(values).__name__}. ({error})"
        ) from error


def likelihoods_in(model: pm.Model) -> list[tuple[SummaryModel, Apply]]:
    """Synthetic likelihoods of a model, each with its node in the graph."""
    found: dict[str, tuple[SummaryModel, Apply]] = {}
    for variable in ancestors(model.observed_RVs):
        node: Any = variable.owner
        if node is not None and isinstance(node.op, ForwardOp):
            simulator = node.op.forward
            if isinstance(simulator, SummaryModel):
                found[simulator.observed] = simulator, node
    return [found[str(rv.name)] for rv in model.observed_RVs if rv.name in found]


def tell_of_failures(simulator: SummaryModel, made: Runs, where: str) -> None:
    """Warn of runs that have failed."""
    if made.n_failed:
        logger.warning(
            f"{made.n_failed} of {len(made.outputs)} runs of {simulator.name} failed {where}. The "
            f"Gaussian of {quoted([simulator.observed])} comes from the runs that work."
        )
