"""A batch of forward evaluations in which any member may fail."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .calls import short_traceback
from .members import finite_rows
from .numbers import unwrapped

FloatArray = NDArray[np.float64]
logger = logging.getLogger("pymc_ensemble")


class ForwardModelError(RuntimeError):
    """A forward model cannot be evaluated here at all. It is not the failure of a member."""


@dataclass(frozen=True)
class Evaluations:
    """Forward outputs of a batch of points, with the members that failed.

    Parameters
    ----------
    outputs : ndarray of shape (n, K)
        One row of forward outputs for each point. Rows that failed are NaN.
    failed : ndarray of bool, shape (n,)
        Whether the evaluation of the point failed.
    errors : tuple of (int, str), default ()
        Row and reason of each failure whose cause is known. The reason is a short traceback, or
        says what was wrong with the outputs.
    n_calls : int, optional
        Number of evaluations that were made: less than n if some were known before. None if it is
        not known.
    seconds : float, optional
        Time of these evaluations, added up over all workers.
    """

    outputs: FloatArray
    failed: NDArray[np.bool_]
    errors: tuple[tuple[int, str], ...] = ()
    n_calls: int | None = None
    seconds: float | None = None

    @classmethod
    def from_outputs(
        cls,
        outputs: ArrayLike,
        errors: Sequence[tuple[int, str]] = (),
        *,
        copy: bool = True,
        n_calls: int | None = None,
        seconds: float | None = None,
    ) -> "Evaluations":
        """Take outputs as the forward map returned them: a row that is not finite has failed.

        Parameters
        ----------
        outputs : array_like of shape (n, K)
            Outputs of the forward map.
        errors : sequence of (int, str), default ()
            Rows that are already known to have failed, with the reason.
        copy : bool, default True
            Whether to leave the array as it is, and keep a copy.
        n_calls, seconds : optional
            As in `Evaluations`.

        Returns
        -------
        Evaluations
            The outputs, with NaN in the rows that failed, and the reasons.

        Examples
        --------
        >>> from pymc_ensemble.forward import Evaluations
        >>> made = Evaluations.from_outputs([[1.0, 2.0], [float("inf"), 0.0]])
        >>> made.failed
        array([False,  True])
        >>> made.errors
        ((1, '1 of 2 forward outputs are not finite, the first is output 0: inf'),)
        """
        outputs = np.array(outputs, dtype=np.float64, copy=True if copy else None)
        reasons = dict(errors)
        failed = ~finite_rows(outputs)
        failed[list(reasons)] = True
        for row in np.flatnonzero(failed):
            if row not in reasons:
                bad = np.flatnonzero(~np.isfinite(outputs[row]))
                reasons[int(row)] = (
                    f"{bad.size} of {outputs.shape[1]} forward outputs are not finite, "
                    f"the first is output {bad[0]}: {outputs[row, bad[0]]}"
                )
        outputs[failed] = np.nan
        return cls(outputs, failed, tuple(sorted(reasons.items())), n_calls, seconds)


def evaluate_rows(
    function: Callable[[FloatArray], ArrayLike], points: FloatArray, n_outputs: int
) -> Evaluations:
    """Call a function of one point for each row. If it raises an error, the row has failed.

    Parameters
    ----------
    function : callable
        Maps one point of shape (d,) to its outputs of shape (K,).
    points : ndarray of shape (n, d)
        The points.
    n_outputs : int
        Number K of outputs.

    Returns
    -------
    Evaluations
        Outputs and failures. `KeyboardInterrupt` passes through. Any other exception is the reason
        of the failed row.
    """
    outputs = np.full((len(points), n_outputs), np.nan)
    errors = []
    for row, point in enumerate(points):
        try:
            result = np.asarray(unwrapped(function(point)), dtype=np.float64)
            if result.shape != (n_outputs,):
                raise ValueError(
                    f"the forward map returned outputs of shape {result.shape}, "
                    f"expected ({n_outputs},)"
                )
            outputs[row] = result
        except (ForwardModelError, KeyboardInterrupt):
            raise
        except BaseException as error:
            errors.append((row, short_traceback(error)))
    return Evaluations.from_outputs(outputs, errors)


def evaluate_batch(
    function: Callable[[FloatArray], ArrayLike], points: FloatArray, n_outputs: int
) -> Evaluations:
    """Call a function of many points. If it raises an error, find the members that fail.

    Parameters
    ----------
    function : callable
        Maps points of shape (n, d) to outputs of shape (n, K).
    points : ndarray of shape (n, d)
        The points.
    n_outputs : int
        Number K of outputs.

    Returns
    -------
    Evaluations
        Outputs and failures. After an exception the points are evaluated one by one.
    """
    try:
        # a copy, as a function that fails may have written into its argument
        outputs = np.asarray(unwrapped(function(points.copy())), dtype=np.float64)
        if outputs.shape == (len(points), n_outputs):
            return Evaluations.from_outputs(outputs)
    except (ForwardModelError, KeyboardInterrupt):
        raise
    except BaseException as error:
        logger.debug("A batch failed. Its members are evaluated one by one: %r", error)
    return evaluate_rows(
        lambda point: np.asarray(unwrapped(function(point[None])))[0], points, n_outputs
    )
