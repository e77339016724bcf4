"""What a chain tells by the log ``pymc_ensemble`` while it computes."""

import logging
import multiprocessing
import sys
from datetime import datetime, timedelta
from time import perf_counter
from typing import TextIO

from .forward.evaluation import Evaluations

logger = logging.getLogger("pymc_ensemble")


class CurrentStderr(logging.StreamHandler):
    """Writes to `sys.stderr` as it is at that time: a progress bar puts itself in its place.

    The bar of the main process is nothing that a worker could draw, so workers write past it.
    """

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        """Where lines go."""
        in_worker = multiprocessing.parent_process() is not None
        return (sys.__stderr__ if in_worker else None) or sys.stderr


def show_log() -> None:
    """Show the log beside PyMC's own, unless logging was configured or PyMC is to be silent."""
    if logger.level == logging.NOTSET and not logger.hasHandlers():
        logger.setLevel(logging.getLogger("pymc").level)
        logger.addHandler(CurrentStderr())


class ProgressLog:
    """Tells from time to time how far a chain is: one round of evaluations may take minutes.

    Parameters
    ----------
    whose : str
        What begins every line, such as "Chain 0".
    """

    def __init__(self, whose: str):
        self.label = f"{whose}: "
        self.started = self.last = perf_counter()
        self.evaluations = 0  # that were made, and their time by the clock
        self.waited = 0.0
        self.known = 0  # evaluations that were found in a store or in memory
        self.worked = 0.0  # time of the evaluations, added up over the workers

    def count(self, members: int, seconds: float, evaluations: Evaluations | None = None) -> None:
        """Take note of a batch of forward evaluations.

        Parameters
        ----------
        members : int
            Their number.
        seconds : float
            Time that the batch took.
        evaluations : Evaluations, optional
            What a forward model tells of its own calls.
        """
        made, worked = members, seconds
        if evaluations is not None and evaluations.n_calls is not None:
            made, worked = evaluations.n_calls, evaluations.seconds or 0.0
        self.known += max(0, members - made)
        self.evaluations += made
        self.worked += worked
        if made:
            self.waited += seconds

    def tell(
        self,
        message: str,
        n_evals: int,
        n_failed: int,
        to_go: int | None = None,
        *,
        sampling: bool = True,
    ) -> None:
        """Log `message`, unless the last line is not old enough.

        Parameters
        ----------
        message : str
            What was done.
        n_evals, n_failed : int
            Forward evaluations of the chain, and how many of them failed.
        to_go : int, optional
            Evaluations until the chain is done, its burn-in left out.
        sampling : bool, default True
            Whether the burn-in is over.
        """
        now = perf_counter()
        if now - self.last < min(60.0, max(2.0, 0.02 * (now - self.started))):
            return
        self.last = now
        made = max(self.evaluations, 1)
        notes = [f"{n_failed} failed"] * bool(n_failed)
        notes += [f"{self.known} were known"] * bool(self.known)
        text = f"{n_evals} evaluations{f' ({", ".join(notes)})' if notes else ''}"
        text += f", {self.worked / made:.3g} s each"
        if self.worked > 1.5 * self.waited > 0:
            text += f", {self.worked / self.waited:.1f} at a time"
        if to_go is not None:
            rest = self.waited / made * to_go
            if sampling:
                text += f"; about {duration(rest)} to go, until {clock(rest)}"
            else:
                text += f"; the draws after the burn-in take about {duration(rest)}"
        logger.info(f"{self.label}{message}; {text}")


def clock(seconds: float) -> str:
    """Time of day, and the day if it is not today, after so many seconds."""
    now = datetime.now()
    end = now + timedelta(seconds=seconds)
    return f"{end:%H:%M}" if end.date() == now.date() else f"{end:%a %d %b %H:%M}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    Examples
    --------
    >>> duration(3754.2)
    '1:02:34'
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
