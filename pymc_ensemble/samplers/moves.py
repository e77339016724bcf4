"""Moves of Metropolis sweeps; `pymc_ensemble.moves` says what a move is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from . import proposals
from .ensemble import Array
from .linearization import Anomalies, GaussianLaw, LinearMap, moment_law

Move = Callable[[Array, Array, GaussianLaw, np.random.Generator], Sequence[Array]]
"""A function (group, partners, law, rng) that returns points and log ratios."""

INDEPENDENT_SHARE = 0.8  # share of independence moves, by default
LARGEST_STRETCH = 2.0  # as in emcee


class WrongMoveError(ValueError):
    """A move has returned what a Metropolis test cannot judge."""


def independence(
    group: Array, partners: Array, law: GaussianLaw, rng: np.random.Generator
) -> tuple[Array, ...]:
    """Independent draws from Student-t laws: about the fitted law, and with the partners' moments.

    These moves do most of the work where the posterior is nearly Gaussian. If the partners do not
    span the space, `differential_evolution` takes the place of this move, as independent draws
    would not leave the span.

    Parameters
    ----------
    group, partners, law, rng
        See `pymc_ensemble.moves`.

    Returns
    -------
    points : ndarray of shape (n, d)
        Proposed points.
    log_ratio : ndarray of shape (n,)
        Logarithms of the proposal ratios.
    log_q : ndarray of shape (n,)
        Log density from which each point was drawn.
    """
    if law.anomalies.rank < group.shape[1]:
        return differential_evolution(group, partners, law, rng)
    return proposals.independence((law, moment_law(law.anomalies)), group, rng)


def differential_evolution(
    group: Array, partners: Array, law: GaussianLaw, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Step along the difference of two partners [1]_: a tenth of the steps can reach other modes.

    Parameters
    ----------
    group, partners, law, rng
        See `pymc_ensemble.moves`.

    Returns
    -------
    points : ndarray of shape (n, d)
        Proposed points.
    log_ratio : ndarray of shape (n,)
        Zeros, as the move is symmetric.

    References
    ----------
    .. [1] ter Braak, C. J. F. (2006). A Markov chain Monte Carlo version of the genetic algorithm
       differential evolution. Statistics and Computing, 16, 239-249.
       https://doi.org/10.1007/s11222-006-8769-1
    """
    root = law.anomalies.L @ law.anomalies.frame.T
    points = proposals.differential_evolution(group, partners, root, rng)
    return points, np.zeros(len(group))


def stretch(
    group: Array, partners: Array, law: GaussianLaw, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Stretch the line to a partner by a random factor between 1/2 and 2: emcee's move [1]_.

    Parameters
    ----------
    group, partners, law, rng
        See `pymc_ensemble.moves`.

    Returns
    -------
    points : ndarray of shape (n, d)
        Proposed points.
    log_ratio : ndarray of shape (n,)
        Logarithms of the proposal ratios.

    References
    ----------
    .. [1] Goodman, J. and Weare, J. (2010). Ensemble samplers with affine invariance.
       Communications in Applied Mathematics and Computational Science, 5, 65-80.
       https://doi.org/10.2140/camcos.2010.5.65

    Examples
    --------
    >>> import numpy as np
    >>> from pymc_ensemble import moves
    >>> rng = np.random.default_rng(1)
    >>> group, partners = rng.normal(size=(2, 5, 3))
    >>> points, log_ratio = moves.stretch(group, partners, None, rng)
    >>> points.shape, log_ratio.shape
    ((5, 3), (5,))
    """
    n, d = group.shape
    root = np.sqrt(LARGEST_STRETCH)
    # eq. (K20)
    factor = (1 / root + (root - 1 / root) * rng.random(n)) ** 2  # density 1 / sqrt(factor)
    origin = partners[rng.integers(len(partners), size=n)]
    return origin + factor[:, None] * (group - origin), (d - 1) * np.log(factor)


def walk(
    group: Array, partners: Array, law: GaussianLaw, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Random walk with the covariance of all partners [1]_.

    Parameters
    ----------
    group, partners, law, rng
        See `pymc_ensemble.moves`.

    Returns
    -------
    points : ndarray of shape (n, d)
        Proposed points.
    log_ratio : ndarray of shape (n,)
        Zeros, as the move is symmetric.

    References
    ----------
    .. [1] Goodman, J. and Weare, J. (2010). Ensemble samplers with affine invariance.
       Communications in Applied Mathematics and Computational Science, 5, 65-80.
       https://doi.org/10.2140/camcos.2010.5.65
    """
    n, size = len(group), len(partners)
    anomalies = (partners - partners.mean(0)) / np.sqrt(size - 1)
    return group + rng.standard_normal((n, size)) @ anomalies, np.zeros(n)  # eq. (K21)


DEFAULT: Mapping[Move, float] = {
    independence: INDEPENDENT_SHARE,
    differential_evolution: 1 - INDEPENDENT_SHARE,
}


def name_of(move: Move) -> str:
    """Name of a move for messages."""
    return str(getattr(move, "__name__", None) or repr(move))


def require_moves(moves: Any) -> None:
    """Refuse `moves` unless they map functions to positive weights.

    Raises
    ------
    ValueError
        If `moves` is empty, or a weight is not positive and finite.
    TypeError
        If `moves` is not a mapping, or a move cannot be called.
    """
    if not isinstance(moves, Mapping):
        raise TypeError(
            "`moves` must map functions to weights, as {pe.moves.stretch: 1.0} does, not "
            f"{moves!r}."
        )
    if not moves:
        raise ValueError(
            "`moves` is empty. Name at least one move, as in {pe.moves.stretch: 1.0}, or leave "
            "`moves` out."
        )
    for move, weight in moves.items():
        if not callable(move):
            raise TypeError(
                f"`moves` has {move!r}, which cannot be called. A move is a function of (group, "
                "partners, law, rng)."
            )
        if (
            isinstance(weight, bool)
            or not isinstance(weight, int | float | np.number)
            or not 0 < weight < np.inf
        ):
            raise ValueError(
                f"The weight of the move `{name_of(move)}` must be positive and finite, not "
                f"{weight!r}."
            )


def proposed(
    move: Move, group: Array, partners: Array, law: GaussianLaw, rng: np.random.Generator
) -> tuple[Array, Array, Array]:
    """Points, log ratio and log density (NaN where it is not known) of a move.

    Raises
    ------
    WrongMoveError
        If the move raises an error, changes its arguments, or returns wrong shapes, points that are
        not finite, or log ratios that are NaN.
    """
    n, d = group.shape
    name = f"The move `{name_of(move)}`"
    for part in (group, partners, law):
        lock(part)
    try:
        points, log_ratio, *more = (
            np.asarray(value, dtype=float) for value in move(group, partners, law, rng)
        )
    except Exception as error:
        raise WrongMoveError(
            f"{name} has raised {type(error).__name__}: {error}. It must return points, shape "
            f"({n}, {d}), and log ratios, shape ({n},), and leave its arguments as they are."
        ) from error
    log_q = more[0] if len(more) == 1 else np.full(n, np.nan)
    if (points.shape, log_ratio.shape, log_q.shape) != ((n, d), (n,), (n,)) or len(more) > 1:
        shapes = ", ".join(str(value.shape) for value in (points, log_ratio, *more))
        raise WrongMoveError(
            f"{name} has returned arrays of the shapes {shapes}. For {n} particles with {d} "
            f"parameters it must return points, shape ({n}, {d}), log ratios, shape ({n},), and "
            f"perhaps log densities, shape ({n},)."
        )
    if not np.isfinite(points).all():
        raise WrongMoveError(
            f"{name} has proposed a point that is not finite: {_first(points)}. It must propose "
            "finite points; a log ratio of minus infinity rejects one."
        )
    if np.isnan(log_ratio).any() or (log_ratio == np.inf).any():
        raise WrongMoveError(
            f"{name} has returned a log ratio of {log_ratio[~(log_ratio < np.inf)][0]}. It must be "
            "a number, or minus infinity for a point that is never accepted."
        )
    return points, log_ratio, log_q


def try_out(moves: Mapping[Move, float], dimension: int, n_outputs: int) -> None:
    """Call each move once, on standard normal particles, before anything is evaluated.

    Raises
    ------
    WrongMoveError
        If a move returns what a Metropolis test cannot judge.
    """
    rng, n = np.random.default_rng(0), dimension + 2
    group, partners = rng.standard_normal((2, n, dimension))
    anomalies = Anomalies.of(partners)
    no_slope = LinearMap(anomalies, np.zeros(n_outputs), np.zeros((n_outputs, anomalies.rank)))
    for move in moves:
        proposed(move, group, partners, moment_law(anomalies, no_slope), rng)


def lock(record: Any) -> None:
    """Make the arrays in an array, or in nested dataclasses, read-only."""
    if isinstance(record, np.ndarray):
        record.flags.writeable = False
    elif is_dataclass(record):
        for part in fields(record):
            lock(getattr(record, part.name))


def _first(points: Array) -> Array:
    return points[~np.isfinite(points).all(1)][0]
