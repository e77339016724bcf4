"""Numbers that are options, refused where they make no sense."""

from numbers import Integral
from typing import Any

import numpy as np

MOST = 10_000_000  # particles whose positions alone take a gigabyte in 13 dimensions


def require_counts(least: int, **options: Any) -> None:
    """Refuse what is no integer of at least `least`, and not None either; and absurd numbers.

    Parameters
    ----------
    least : int
        The smallest number that makes sense.
    **options
        Values by the names of the options; None stands for a default.

    Raises
    ------
    ValueError
        If one of them is neither.
    """
    for name, value in options.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, not {value!r}.")
        if int(value) > MOST:
            raise ValueError(f"{name}={value} is more than fits into memory. The most is {MOST}.")


def require_given_counts(least: int, **options: Any) -> None:
    """Refuse what `require_counts` refuses, and None, of options whose default is a number.

    Raises
    ------
    ValueError
    """
    if missing := [name for name, value in options.items() if value is None]:
        raise ValueError(
            f"{missing[0]} must be an integer of at least {least}, not None. Leave it out for the "
            "default."
        )
    require_counts(least, **options)


def require_positive(**options: Any) -> None:
    """Refuse what is no positive, finite number, and not None either.

    Parameters
    ----------
    **options
        Values by the names of the options; None stands for a default.

    Raises
    ------
    ValueError
        If one of them is neither.
    """
    for name, value in options.items():
        if value is None:
            continue
        if not _is_number(value) or not 0 < value < np.inf:
            raise ValueError(f"{name} must be positive, not {value!r}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def require_not_negative(**options: Any) -> None:
    """Refuse what is no finite number of at least zero.

    Parameters
    ----------
    **options
        Values by the names of the options.

    Raises
    ------
    ValueError
        If one of them is neither.
    """
    for name, value in options.items():
        if not _is_number(value) or not 0 <= value < np.inf:
            raise ValueError(f"{name} must be a number of at least 0, not {value!r}.")


def require_flags(**options: Any) -> None:
    """Refuse what is neither True nor False: a string such as ``"no"`` would count as true.

    Parameters
    ----------
    **options
        Values by the names of the options.

    Raises
    ------
    TypeError
        If one of them is no boolean.
    """
    for name, value in options.items():
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name} must be True or False, not {value!r}.")


def require_one_target(adjust: bool | None, rough: bool | None) -> None:
    """Refuse a Metropolis test for a target that is not the density that is evaluated."""
    if adjust and rough:
        raise ValueError(
            "adjust=True and rough=True exclude each other: a Metropolis test targets the rough "
            "posterior, and keeps lucky evaluations. Use only rough=True for the smooth "
            "posterior, or only adjust=True for a deterministic forward map."
        )
