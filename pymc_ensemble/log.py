"""What a chain tells by the log ``pymc_ensemble`` while it computes."""

import logging
import multiprocessing
import sys
from time import perf_counter
from typing import TextIO

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
    chain : int
        Number of the chain.
    """

    def __init__(self, chain: int):
        self.label = f"Chain {chain}: "
        self.started = self.last = perf_counter()
        self.seconds = 0.0  # spent in forward evaluations
        self.evaluations = 0

    def count(self, evaluations: int, seconds: float) -> None:
        """Take note of a batch of forward evaluations."""
        self.evaluations += evaluations
        self.seconds += seconds

    def tell(self, message: str, n_evals: int, n_failed: int, to_go: int | None = None) -> None:
        """Log `message`, unless the last line is not old enough.

        Parameters
        ----------
        message : str
            What was done.
        n_evals, n_failed : int
            Forward evaluations of the chain, and how many of them failed.
        to_go : int, optional
            Evaluations until the next draws come.
        """
        now = perf_counter()
        if now - self.last < min(60.0, max(2.0, 0.02 * (now - self.started))):
            return
        self.last = now
        each = self.seconds / max(self.evaluations, 1)
        failed = f" ({n_failed} failed)" if n_failed else ""
        rest = "" if to_go is None else f"; about {duration(each * to_go)} to go"
        logger.info(
            f"{self.label}{message}; {n_evals} evaluations{failed}, {each:.3g} s each{rest}"
        )


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
