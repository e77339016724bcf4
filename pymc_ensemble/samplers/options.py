"""Numbers that are options, refused where they make no sense."""

from numbers import Integral
from typing import Any

import numpy as np


def require_counts(least: int, **options: Any) -> None:
    """Refuse what is no integer of at least `least`, and not None either.

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
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not number or not 0 < value < np.inf:
            raise ValueError(f"{name} must be positive, not {value!r}.")


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
