"""Gaussian likelihood of the summaries of a stochastic simulator, in a `pm.Model`."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from numpy.typing import ArrayLike, NDArray
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.traversal import ancestors
from pytensor.tensor.variable import TensorVariable

from pymc_ensemble.forward.arguments import is_symbolic
from pymc_ensemble.forward.model import ForwardModel
from pymc_ensemble.forward.tasks import random_argument
from pymc_ensemble.problem.points import forward
from pymc_ensemble.samplers.options import require_given_counts

from .density import Summaries
from .gaussian import of_pairs
from .simulator import Initial, SummaryModel, as_array

__all__ = ["SyntheticLikelihood", "synthetic_likelihood"]

FloatArray = NDArray[np.float64]
CovarianceOption = Literal["constant", "linear"]

REPLICATES = 200
FEWEST_FOR_EACH = 5  # replicates for each summary: with fewer, variances are 25% too large
PAIRS = 50  # points with two runs each: they give a variance to 20%
SEED = 0x5EED  # seed of the runs while a model is built
LARGEST_LOG = 20.0  # largest log ratio of a variance to that at the center: keeps densities finite


def synthetic_likelihood(
    simulate: Callable[..., Any],
    /,
    *,
    summaries: Callable[[Any], ArrayLike] | None = None,
    replicates: int = REPLICATES,
    covariance: CovarianceOption = "constant",
    initial_covariance: ArrayLike | None = None,
) -> "SyntheticLikelihood":
    """Turn a stochastic simulator into a Gaussian likelihood of summaries of its data.

    Call the result inside a `pm.Model` with a name, the arguments of the simulator and the data. It
    makes an observed `pymc.MvNormal`. The data go through the same summaries as the simulations.
    The mean is one simulation; samplers for rough forward maps average over simulations. The
    covariance is data of the model, and `sample_synthetic` estimates it.

    Parameters
    ----------
    simulate : callable or ForwardModel
        Takes numbers or arrays, and a source of randomness: ``rng``, a NumPy generator, or
        ``seed``, an integer. For workers, time-outs or a store, give a `forward_model` with
        ``stochastic=True``.
    summaries : callable, optional
        Makes an array of K numbers from the result of `simulate`. They should be nearly Gaussian:
        roots of counts, means, quantiles, fitted coefficients. By default the data themselves.
    replicates : int, default 200
        Number of runs at one point for the estimate of the covariance; at least five for each
        summary.
    covariance : {"constant", "linear"}, default "constant"
        Whether variances are the same for all parameters, or their logarithms are linear in the
        unconstrained parameters. Correlations are constant.
    initial_covariance : array_like of shape (K, K), optional
        Covariance before it is estimated. By default it is the covariance of the noise, averaged
        over the prior: 50 points are simulated twice when the model is built.

    Returns
    -------
    SyntheticLikelihood
        Call it as ``likelihood(name, *arguments, observed=data, dims=None)``.

    Raises
    ------
    TypeError, ValueError
        If an option has a wrong type or value, or if the simulator is not stochastic.

    Notes
    -----
    The covariance of a variable ``y`` is ``y_covariance`` in the model, a `pymc.Data`. It is the
    initial covariance before `sample_synthetic`, and the estimated one afterwards. With
    ``covariance="linear"`` the model also has ``y_slopes`` and ``y_center``.

    There are two approximations. The summaries are assumed to be Gaussian [1]_ [2]_, and they lose
    a part of the data. `sample_synthetic` tests the first.

    References
    ----------
    .. [1] Wood, S. N. (2010). Statistical inference for noisy nonlinear ecological dynamic systems.
       Nature, 466, 1102-1104. https://doi.org/10.1038/nature09319
    .. [2] Price, L. F., Drovandi, C. C., Lee, A. and Nott, D. J. (2018). Bayesian synthetic
       likelihood. Journal of Computational and Graphical Statistics, 27, 1-11.
       https://doi.org/10.1080/10618600.2017.1302882

    Examples
    --------
    >>> import numpy as np, pymc as pm, pymc_ensemble as pe
    >>> def simulate(rate, rng):
    ...     return rng.poisson(rate, size=50)
    >>> of_means = pe.synthetic_likelihood(simulate, summaries=lambda x: [np.sqrt(x).mean()])
    >>> with pm.Model() as model:
    ...     rate = pm.LogNormal("rate", 1.0, 0.5)
    ...     _ = of_means("y", rate, observed=simulate(3.0, np.random.default_rng(1)))
    >>> model["y_covariance"].get_value().shape
    (1, 1)
    """
    return SyntheticLikelihood(simulate, summaries, replicates, covariance, initial_covariance)


class SyntheticLikelihood:
    """A Gaussian likelihood of summaries; see `synthetic_likelihood`."""

    def __init__(
        self,
        simulate: Callable[..., Any],
        summaries: Callable[[Any], ArrayLike] | None,
        replicates: int,
        covariance: CovarianceOption,
        initial_covariance: ArrayLike | None,
    ):
        if not callable(simulate):
            raise TypeError(f"simulate must be a function, or a forward_model, not {simulate!r}.")
        if summaries is not None and not callable(summaries):
            raise TypeError(
                f"summaries must be a function of what `simulate` returns, not {summaries!r}."
            )
        require_given_counts(2, replicates=replicates)
        if covariance not in get_args(CovarianceOption):
            raise ValueError(f'covariance must be "constant" or "linear", not {covariance!r}.')
        model = simulate if isinstance(simulate, ForwardModel) else None
        if model is not None and not model.random:
            raise ValueError(
                f"simulate is the forward model {model.name}, which is not declared as "
                "stochastic. Declare it: pe.forward_model(..., stochastic=True). If it is "
                "deterministic, give its outputs to an ordinary likelihood."
            )
        self.function = simulate if model is None else model.function
        random_argument(self.function)
        self.simulate, self.summaries, self.replicates = simulate, summaries, int(replicates)
        self.covariance = covariance
        self.initial_covariance = initial_covariance

    def __repr__(self) -> str:
        return f"<synthetic likelihood of {getattr(self.function, '__name__', self.function)}>"

    def __call__(
        self,
        name: str,
        *args: Any,
        observed: Any,
        dims: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> TensorVariable:
        """Register the Gaussian of the summaries in the model on the context stack.

        Parameters
        ----------
        name : str
            Name of the observed variable.
        *args, **kwargs
            Arguments of the simulator, without its randomness.
        observed : object
            Data in the form that `simulate` returns: the same number, in the same order.
        dims : str, optional
            Name of the dimension of the summaries, from the ``coords`` of the model.

        Returns
        -------
        TensorVariable
            The observed `pymc.MvNormal` of shape (K,).
        """
        model = pm.modelcontext(None)
        if not isinstance(name, str):
            raise TypeError(f"The name of a synthetic likelihood must be text, not {name!r}.")
        name = model.name_for(name)  # adds the prefix of a named model
        summaries = self._summaries_of(name, observed)
        data = summaries.ravel()
        _require_place(model, name, dims, len(data))
        linear = self.covariance == "linear"
        simulator = SummaryModel(
            self.simulate, self.summaries, name, summaries.shape, self.replicates, linear
        )
        symbolic = any(map(is_symbolic, [*args, *kwargs.values()]))
        mean = simulator(*args, **kwargs) if symbolic else None
        node: Any = None if mean is None else mean.owner
        if node is None or not node.op.unknowns:
            raise ValueError(
                f"`{name}` does not depend on the unknowns: no argument of {simulator.name} is a "
                "random variable of the model. Pass the parameters as arguments."
            )
        simulator.initial = self._initial(simulator, node, len(data))
        matrix: Any = pm.Data(f"{name}_covariance", simulator.initial.matrix)
        if linear:
            matrix = matrix * _scales(model, name, node, len(data))
        return Summaries(name, mean, cov=matrix, observed=data, dims=dims)

    def _summaries_of(self, name: str, observed: Any) -> FloatArray:
        """The K summaries of the data, in an array of any shape."""
        if isinstance(observed, Variable):
            raise TypeError(
                f"observed of `{name}` is symbolic, but its summaries are computed when the model "
                "is built. Pass the data themselves."
            )
        try:
            summaries = as_array(observed if self.summaries is None else self.summaries(observed))
        except Exception as error:
            raise ValueError(f"The summaries of observed, the data of `{name}`: {error}") from error
        data = summaries.ravel()
        if not data.size:
            raise ValueError(
                f"observed of `{name}` has no summaries: the array is empty. Pass data that are "
                "not empty."
            )
        if wrong := np.flatnonzero(~np.isfinite(data)).tolist():
            raise ValueError(
                f"Summary {wrong[0]} of observed, the data of `{name}`, is {data[wrong[0]]}. "
                "Choose summaries that are finite."
            )
        if self.replicates < FEWEST_FOR_EACH * len(data):
            raise ValueError(
                f"replicates={self.replicates} are too few for the {len(data)} summaries of "
                f"`{name}`: the error of their covariance would widen the posterior. Use "
                f"replicates={FEWEST_FOR_EACH * len(data)} or more, or fewer summaries."
            )
        return summaries

    def _initial(self, simulator: SummaryModel, node: Apply, K: int) -> Initial:
        """First covariance: the given one, or that of the noise, averaged over the prior."""
        if self.initial_covariance is not None:
            return Initial(_as_covariance(self.initial_covariance, K), None, 0, 0)
        try:
            draws = pm.draw(
                [node.inputs[i] for i in node.op.signature.varying],
                draws=PAIRS,
                random_seed=SEED,
                mode="FAST_COMPILE",
            )
        except Exception as error:
            raise ValueError(
                "The first covariance needs draws of the prior, but the arguments of "
                f"{simulator.name} cannot be drawn. Give `initial_covariance`, rather too wide "
                f"than too narrow, or proper priors. ({error})"
            ) from error
        twice = [np.concatenate([values, values]) for values in draws]
        made = simulator.run(node, twice, np.random.SeedSequence(SEED))
        simulator.require(made, "draws of the prior")
        first, second = np.split(made.outputs, 2)
        both = np.isfinite(first).all(1) & np.isfinite(second).all(1)
        pairs = of_pairs(first[both], second[both])
        if pairs.raised.any():
            constant = np.flatnonzero(pairs.raised).tolist()
            which = ", ".join(map(str, constant))
            raise ValueError(
                f"Summary {which} of `{simulator.observed}` is always the same when the simulator "
                "runs twice, so it has no noise. Leave it out, or observe it by an ordinary "
                "likelihood with its own error."
            )
        simulator.require_independent(first[both] - second[both])
        return Initial(pairs.matrix, np.diag(pairs.matrix), len(made.outputs), made.n_failed)


def _require_place(
    model: pm.Model, name: str, dims: str | Sequence[str] | None, n_summaries: int
) -> None:
    """Refuse a name that is taken, and dimensions that do not fit the summaries.

    PyMC would notice only after all simulations.
    """
    if name in model.named_vars:
        raise ValueError(
            f"The name `{name}` is taken by another variable of the model. Choose another name."
        )
    if dims is None:
        return
    named = (dims,) if isinstance(dims, str) else tuple(dims)
    if len(named) != 1:
        raise ValueError(
            f"dims={dims!r} of `{name}` must name one dimension: that of its summaries."
        )
    if named[0] not in model.dim_lengths:
        raise ValueError(
            f"dims={dims!r} of `{name}` is not a dimension of the model. Declare it: "
            f"pm.Model(coords={{{named[0]!r}: [...]}})."
        )
    if (length := int(model.dim_lengths[named[0]].eval())) != n_summaries:
        raise ValueError(
            f"dims={dims!r} of `{name}` has the length {length}, but the data have {n_summaries} "
            f"{'summaries' if n_summaries > 1 else 'summary'}."
        )


def _as_covariance(given: ArrayLike, K: int) -> FloatArray:
    """Check a covariance that the user has given."""
    try:
        matrix = np.array(given, dtype=float)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"initial_covariance must be an array of shape ({K}, {K}), not {given!r}."
        ) from error
    if matrix.shape != (K, K):
        raise ValueError(
            f"initial_covariance has the shape {matrix.shape}. It must be ({K}, {K}), for {K} "
            "summaries."
        )
    symmetric = np.isfinite(matrix).all() and np.allclose(matrix, matrix.T)
    if not symmetric or np.linalg.eigvalsh(matrix)[0] <= 0:
        raise ValueError("initial_covariance must be symmetric and positive definite.")
    return matrix


def _scales(model: pm.Model, name: str, node: Apply, K: int) -> TensorVariable:
    """Products of the parameter-dependent scales of the summaries, shape (K, K)."""
    free = free_behind(model, node)
    columns = []
    for rv in free:
        transform, value = model.rvs_to_transforms[rv], rv
        if transform is not None:
            value = forward(rv, transform, rv, rv.owner.inputs)
        columns.append(pt.as_tensor(value).ravel())
    u = pt.concatenate(columns)
    d = sum(coordinate_sizes(model, free))
    slopes: Any = pm.Data(f"{name}_slopes", np.zeros((K, d)))
    center: Any = pm.Data(f"{name}_center", np.zeros(d))
    log = pt.clip(slopes @ (u - center), -LARGEST_LOG, LARGEST_LOG)
    scale = pt.specify_shape(pt.exp(0.5 * log), (K,))
    return scale[:, None] * scale[None, :]


def free_behind(model: pm.Model, node: Apply) -> list[Any]:
    """Free variables on which the arguments of a simulator depend, in the order of the model."""
    above = set(ancestors(node.inputs))
    return [rv for rv in model.free_RVs if rv in above]


def coordinate_sizes(model: pm.Model, free: Sequence[Any]) -> list[int]:
    """Numbers of unconstrained coordinates of free variables."""
    point = model.initial_point()
    return [int(np.size(point[str(model.rvs_to_values[rv].name)])) for rv in free]
