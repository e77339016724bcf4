"""Checks of options: values that make no sense are refused."""

from numbers import Integral
from typing import Any

import numpy as np

MOST = 10_000_000  # positions of as many particles take a gigabyte in 13 dimensions

# Rounds, or steps of a search, after which what has not come is given up: what works takes fewer.
PATIENCE = 20


def require_counts(least: int, **options: Any) -> None:
    """Refuse options that are no integers between `least` and ten million. None is allowed.

    Parameters
    ----------
    least : int
        Smallest value that is allowed.
    **options
        Values by the names of the options; None stands for a default.

    Raises
    ------
    ValueError
        If a value is not allowed.
    """
    for name, value in options.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, not {value!r}.")
        if int(value) > MOST:
            raise ValueError(f"{name}={value} does not fit into memory. The most is {MOST}.")


def require_given_counts(least: int, **options: Any) -> None:
    """Refuse what `require_counts` refuses, and None, which is no default of these options.

    Raises
    ------
    ValueError
        If a value is not allowed.
    """
    if missing := [name for name, value in options.items() if value is None]:
        raise ValueError(
            f"{missing[0]} must be an integer of at least {least}, not None. Leave it out for the "
            "default."
        )
    require_counts(least, **options)


def require_positive(**options: Any) -> None:
    """Refuse options that are no positive, finite numbers. None is allowed.

    Parameters
    ----------
    **options
        Values by the names of the options; None stands for a default.

    Raises
    ------
    ValueError
        If a value is not allowed.
    """
    for name, value in options.items():
        if value is None:
            continue
        if not _is_number(value) or not 0 < value < np.inf:
            raise ValueError(f"{name} must be positive, not {value!r}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def require_not_negative(**options: Any) -> None:
    """Refuse options that are no finite numbers of at least zero.

    Parameters
    ----------
    **options
        Values by the names of the options.

    Raises
    ------
    ValueError
        If a value is not allowed.
    """
    for name, value in options.items():
        if not _is_number(value) or not 0 <= value < np.inf:
            raise ValueError(f"{name} must be a number of at least 0, not {value!r}.")


def require_flags(**options: Any) -> None:
    """Refuse options that are neither True nor False: the string ``"no"`` would count as true.

    Parameters
    ----------
    **options
        Values by the names of the options.

    Raises
    ------
    TypeError
        If a value is no boolean.
    """
    for name, value in options.items():
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name} must be True or False, not {value!r}.")


def require_one_target(adjust: bool | None, rough: bool | None) -> None:
    """Refuse ``adjust=True`` with ``rough=True``, as their targets differ."""
    if adjust and rough:
        raise ValueError(
            "adjust=True and rough=True exclude each other: a Metropolis test targets the rough "
            "posterior, and keeps lucky evaluations. Use only rough=True for the smooth "
            "posterior, or only adjust=True for a deterministic forward map."
        )
