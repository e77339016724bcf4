"""Ordinary differential equations, solved with a limit to the work that they may take."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy  # parts of it are loaded when they are used first

from pymc_ensemble.gallery.model import Array

MAX_SLOPES = 5000
"""Most evaluations of the right-hand side for one solution. In the posteriors it takes 350."""


class _TooMuchWork(Exception):
    pass


def solution(
    slope: Callable[[Array], tuple[float, ...]], start: Sequence[float], times: Array
) -> Array:
    """Solve an autonomous equation by SciPy's LSODA.

    Parameters
    ----------
    slope : callable
        Derivatives at a state of shape (d,).
    start : sequence of float
        State at the first of the times.
    times : ndarray of shape (n,)

    Returns
    -------
    ndarray of shape (n, d)
        States. They are NaN if the solver gave up, or met a number that overflows.
    """
    n_slopes = 0

    def counted(state: Array, time: float) -> tuple[float, ...]:
        nonlocal n_slopes
        n_slopes += 1
        if n_slopes > MAX_SLOPES:
            raise _TooMuchWork
        return slope(state)

    options: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-8, "mxstep": MAX_SLOPES}
    try:
        return scipy.integrate.odeint(counted, start, times, **options)
    except (_TooMuchWork, ArithmeticError):
        return np.full((len(times), len(start)), np.nan)
