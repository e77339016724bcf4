"""Options that are true or false."""

from typing import Any

import numpy as np


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
