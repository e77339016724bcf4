"""Where ensembles start: positions from arrays, from named values, or from an earlier run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pymc as pm
from numpy.typing import ArrayLike, NDArray
from xarray import DataArray, Dataset, DataTree

from pymc_ensemble.diagnosis.ensembles import ensemble_stats, segments_of, sweeps_and_particles
from pymc_ensemble.diagnosis.facts import TooFewDrawsError, facts_of, variables_of
from pymc_ensemble.problem.points import _enumerate, unconstrained

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class InitialEnsembles:
    """Positions from which chains start.

    Attributes
    ----------
    U : ndarray of shape (n_ensembles, J, d)
        Positions in unconstrained coordinates.
    burned_in : bool
        Whether they already follow the posterior, so that no burn-in is needed.
    converged : bool
        Whether the burn-in of the earlier run has passed its test.
    """

    U: FloatArray
    burned_in: bool = False
    converged: bool = False

    def for_chain(self, chain: int) -> FloatArray:
        """Positions of chain number `chain`, shape (J, d); chains take the ensembles in turn."""
        return self.U[chain % len(self.U)]


def initial_ensembles(
    given: ArrayLike | Mapping[str, ArrayLike] | DataTree,
    model: pm.Model,
    coordinate_names: Sequence[str],
) -> InitialEnsembles:
    """Positions in unconstrained coordinates from the `initial_ensemble` of a user.

    Parameters
    ----------
    given : array_like of shape (J, d), mapping of str to array_like, or DataTree
        Positions in unconstrained coordinates; or values of shape (J, ...) by the name of a
        variable (``"sigma"``, values as in the model) or of a value variable (``"sigma_log__"``,
        unconstrained values); or the result of an earlier run. The ensemble keeps the size of that
        run. If its last sweep is incomplete, draws of earlier sweeps fill the ensemble up.
    model : pm.Model
    coordinate_names : sequence of str
        Names of the d unconstrained coordinates.

    Returns
    -------
    InitialEnsembles

    Raises
    ------
    ValueError
        If names, shapes or values do not fit the model, or an earlier run has too few draws.
    """
    if isinstance(given, DataTree):
        return _of_earlier_run(given, model, coordinate_names)
    if isinstance(given, Mapping):
        given = unconstrained(model, given)
    try:
        U = np.array(given, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"initial_ensemble must be an array of numbers, a dict of values by variable name, or "
            f"the result of an earlier run, not {given!r:.100}."
        ) from error
    d = len(coordinate_names)
    if U.ndim != 2 or U.shape[1] != d:
        raise ValueError(
            f"initial_ensemble has shape {U.shape}, but the model has {d} unconstrained "
            f"coordinates ({_enumerate(coordinate_names)}). Give an array of shape "
            f"(ensemble_size, {d}), or a dict of values by variable name."
        )
    _require_finite(U, coordinate_names)
    return InitialEnsembles(U[None])


def _of_earlier_run(
    idata: DataTree, model: pm.Model, coordinate_names: Sequence[str]
) -> InitialEnsembles:
    stats = ensemble_stats(idata)
    size, (sweep, particle) = facts_of(stats).particles, sweeps_and_particles(stats)
    numbers = last_draws(sweep, particle, size)
    everywhere = _coordinates(idata, model)
    if everywhere is None:
        values = _draws(idata, model)
        everywhere = unconstrained(model, {name: _flat(v) for name, v in values.items()})
    U = everywhere.reshape(*sweep.shape, -1)[np.arange(len(sweep))[:, None], numbers]
    _require_finite(U.reshape(-1, U.shape[-1]), coordinate_names)
    if facts_of(stats).origin.law in ("inversion", "amortized"):  # not tested
        return InitialEnsembles(U)
    return InitialEnsembles(U, burned_in=True, converged=bool(stats["converged"].all()))


def _coordinates(idata: DataTree, model: pm.Model) -> FloatArray | None:
    """Unconstrained coordinates of the draws, shape (n, d), if recorded for this model."""
    stats = idata["sample_stats"].dataset if "sample_stats" in idata.children else Dataset()
    if not {"made_by", "unconstrained"} <= set(stats):
        return None
    columns = facts_of(stats).columns(variables_of(model).values())
    return None if columns is None else _flat(stats["unconstrained"])[:, columns]


def _draws(idata: DataTree, model: pm.Model) -> dict[str, DataArray]:
    """Posterior draws of the free variables."""
    if "posterior" not in idata:
        raise ValueError("The result has no group `posterior`. Pass what `pymc.sample` returned.")
    posterior, names = idata["posterior"].dataset, {rv.name for rv in model.free_RVs}
    return {str(name): values for name, values in posterior.items() if name in names}


def _flat(values: DataArray) -> np.ndarray:
    """Values of all draws, chain by chain, shape (n, ...)."""
    array = values.transpose("chain", "draw", ...).to_numpy()
    return array.reshape(-1, *array.shape[2:])


def posterior_points(
    idata: DataTree, model: pm.Model, coordinate_names: Sequence[str], most: int = 1000
) -> FloatArray:
    """Points of the posterior from the draws of any sampler.

    Parameters
    ----------
    idata : DataTree
        Result of `pymc.sample`.
    model : pm.Model
    coordinate_names : sequence of str
        Names of the d unconstrained coordinates.
    most : int, default 1000
        Largest number of points. If there are more draws, evenly spaced ones are used.

    Returns
    -------
    ndarray of shape (n, d)
        In unconstrained coordinates.
    """
    try:
        U = _coordinates(idata, model)
    except TooFewDrawsError:  # few draws can be enough for a covariance
        U = None
    if U is not None:
        U = U[:: max(1, -(-len(U) // most))]
    else:
        draws = {name: _flat(values) for name, values in _draws(idata, model).items()}
        n = len(next(iter(draws.values()), ()))
        U = unconstrained(model, {name: v[:: max(1, -(-n // most))] for name, v in draws.items()})
    _require_finite(U, coordinate_names)
    return U


def last_draws(sweep: IntArray, particle: IntArray, size: int) -> IntArray:
    """Draws that make up an ensemble of full size at the end of each chain.

    Parameters
    ----------
    sweep, particle : ndarray of int, shape (n_chains, n_draws)
        Stats of the draws.
    size : int
        Size J of the ensemble.

    Returns
    -------
    ndarray of int, shape (n_chains, J)
        Numbers of the draws of the last sweep of the last run. If this sweep is incomplete, earlier
        sweeps supply the rest.

    Raises
    ------
    ValueError
        If there are fewer than J draws in a chain.
    """
    n_draws = int((sweep >= 0).sum(1).min(initial=sweep.shape[1]))
    if n_draws < size:
        raise ValueError(
            f"The earlier run has {n_draws} draws in a chain, but its ensembles have {size} "
            "particles, so there is no complete ensemble to continue from. Continue a run with at "
            f"least {size} draws in each chain."
        )
    segment = segments_of(sweep, particle)
    return np.lexsort((particle, -sweep, -segment), axis=-1)[:, :size]


def require_spread(U: FloatArray, coordinate_names: Sequence[str]) -> None:
    """Refuse ensembles whose particles cannot reach the whole parameter space.

    Parameters
    ----------
    U : ndarray of shape (n_ensembles, J, d)
        Positions in unconstrained coordinates.
    coordinate_names : sequence of str
        Names of the d coordinates.

    Raises
    ------
    ValueError
        If all members have the same value of a coordinate, or differ only within a subspace.
    """
    remedy = (
        "Particles move only where members differ: spread them out, for example by adding noise, "
        "or sample in their span only, with allow_subspace=True."
    )
    for members in U:
        anomalies = members - members.mean(axis=0)
        size, spread = np.abs(members).max(axis=0), anomalies.std(axis=0)
        rounding = 4 * len(members) * np.finfo(float).eps
        if (constant := spread <= rounding * size).any():
            name = coordinate_names[int(np.argmax(constant))]
            raise ValueError(
                f"initial_ensemble does not vary in the unconstrained coordinate `{name}`. {remedy}"
            )
        tolerance = rounding * (size / spread).max()
        rank = np.linalg.matrix_rank(anomalies / spread, tol=tolerance)
        if rank < len(coordinate_names):
            raise ValueError(
                f"The members of initial_ensemble lie in a subspace of dimension {rank}, but the "
                f"model has {len(coordinate_names)} unconstrained coordinates. {remedy}"
            )


def _require_finite(U: FloatArray, coordinate_names: Sequence[str]) -> None:
    bad = np.argwhere(~np.isfinite(U))
    if len(bad):
        member, coordinate = bad[0]
        raise ValueError(
            f"initial_ensemble is not finite in the unconstrained coordinate "
            f"`{coordinate_names[coordinate]}` of member {member} ({len(bad)} such entries in "
            "all). Give values inside the support of the variable."
        )
