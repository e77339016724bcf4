"""The log ``pymc_ensemble``: messages of a chain while it computes."""

import logging
import math
import multiprocessing
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from statistics import fmean
from time import perf_counter
from typing import NamedTuple, Protocol, TextIO

from .forward.evaluation import Evaluations
from .samplers.words import number as number
from .samplers.words import percent as percent

logger = logging.getLogger("pymc_ensemble")
YEAR = 365.25 * 24 * 3600.0  # seconds
LONGEST = 100 * YEAR  # longest duration that is shown in seconds


def not_quiet(record: logging.LogRecord) -> bool:
    """Whether PyMC is not quiet. If it is, the level of its logger is above all levels."""
    return logging.getLogger("pymc").level <= logging.CRITICAL


logger.addFilter(not_quiet)


class BesidePyMC(logging.StreamHandler):
    """Handler with the level of PyMC's logger. It writes to the current `sys.stderr`.

    A progress bar replaces `sys.stderr`. A worker cannot draw the bar of the main process. There,
    `print_line` shows a line, above the bar if there is one.
    """

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.print_line: Callable[[str], None] | None = None

    def filter(self, record: logging.LogRecord) -> bool | logging.LogRecord:
        """Follow the level of PyMC's logger."""
        return record.levelno >= logging.getLogger("pymc").level and super().filter(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Show a line."""
        if self.print_line is None:
            super().emit(record)
        else:
            self.print_line(self.format(record) + "\n")

    @property
    def stream(self) -> TextIO:
        """Stream for the lines."""
        in_worker = multiprocessing.parent_process() is not None
        return (sys.__stderr__ if in_worker else None) or sys.stderr


def show_log() -> None:
    """Show the log together with PyMC's log, unless logging was configured."""
    if logger.level == logging.NOTSET and not logger.hasHandlers():
        logger.setLevel(logging.INFO)
        logger.addHandler(BesidePyMC())


def show_in_worker(print_line: Callable[[str], None]) -> None:
    """Show the log of this process by a function, instead of the default handler.

    Parameters
    ----------
    print_line : callable
        Takes a text that ends with a line feed.
    """
    show_log()
    for handler in logger.handlers:
        if isinstance(handler, BesidePyMC):
            handler.print_line = print_line


class Progress(NamedTuple):
    """Progress of a chain, in floats for shared memory.

    Attributes
    ----------
    sampling : float
        Whether the burn-in is over.
    iteration : float
        Iterations of the burn-in, or 0 if not known.
    n_evals, to_go, n_failed : float
        Forward evaluations so far, those until the end of the chain (without the rest of the
        burn-in), and failed ones.
    acceptance : float
        Mean acceptance over the ensemble and the sweeps so far; NaN if not known.
    left : float
        Seconds until the end of the chain (without the rest of the burn-in); NaN if not known.
    burn_in : float
        Evaluations of the burn-in, when it is over.
    rough : float
        Whether the sampler has found the forward map rough; NaN if it did not examine the map.
    doubtful : float
        Whether the draws failed the quick checks; NaN before the checks.
    """

    sampling: float
    iteration: float
    n_evals: float
    to_go: float
    n_failed: float
    acceptance: float
    left: float
    burn_in: float = 0.0
    rough: float = math.nan
    doubtful: float = math.nan

    def text(self, since: float) -> str:
        """Short text for a progress bar.

        Parameters
        ----------
        since : float
            Age of this progress in seconds.

        Examples
        --------
        >>> Progress(True, 9, 1240, 1760, 0, 0.61, 133.0).text(since=3.0)
        '1240/3000 runs, acc .61, 2:10 left'
        >>> Progress(False, 4, 400, 2600, 12, float("nan"), 130.0).text(since=0.0)
        '400/3000+ runs, 12 failed, burn-in 4, 2:10+ left'
        """
        more = "" if self.sampling else "+"
        total = f"/{self.n_evals + self.to_go:.0f}{more}" if self.to_go else ""
        notes = [f"{self.n_evals:.0f}{total} runs"]
        if self.n_failed:
            notes.append(f"{self.n_failed:.0f} failed")
        if self.iteration and not self.sampling:
            notes.append(f"burn-in {self.iteration:.0f}")
        if self.acceptance == self.acceptance:
            notes.append(f"acc {min(self.acceptance, 1.0):.2f}".replace(" 0.", " ."))
        if self.left == self.left and (self.left > 0 or not self.sampling):
            notes.append(f"{minutes(max(0.0, self.left - since))}{more} left")
        elif self.left != self.left:
            notes.append(f"{minutes(since)} so far")
        return ", ".join(notes)


class Finding(Protocol):
    """Result of the examination of a forward map, with a text for it."""

    @property
    def rough(self) -> bool:
        """Whether the map is noisy or rough."""


class Screen(Protocol):
    """Place where a chain shows its progress."""

    @property
    def watched(self) -> bool:
        """Whether a progress bar is on the screen."""

    def write(self, progress: Progress) -> None:
        """Show the progress of the chain."""

    def all_chains(self) -> list[Progress] | None:
        """Progress of all chains of the run; None before the last one begins."""


class ProgressLog:
    """Shows the progress of a chain, because one round of evaluations may take minutes.

    A progress bar shows it continuously. Without a bar, the log shows it from time to time.

    Parameters
    ----------
    whose : str
        Beginning of every line, such as "Chain 0".
    screen : Screen, optional
        Screen of the progress bar.
    """

    def __init__(self, whose: str, screen: Screen | None = None):
        self.label = f"{whose}: "
        self.screen = screen
        self.started = self.last = self.last_round = perf_counter()
        self.evaluations = 0  # number of evaluations made, and their time by the clock
        self.waited = 0.0
        self.busy = 0.0  # the same time with the work of the sampler in between
        self.known = 0  # evaluations found in a store or in memory
        self.worked = 0.0  # time of the evaluations, summed over the workers
        self.since: tuple[float, float] | None = None  # a time, and the remaining sweeps then
        self.acceptances: list[float] = []
        self.progress = Progress(False, 0, 0, 0, 0, math.nan, math.nan)

    @property
    def watched(self) -> bool:
        """Whether a progress bar is on the screen."""
        return self.screen is not None and self.screen.watched

    def begin(self) -> None:
        """Note that the first round of evaluations begins."""
        if not self.progress.n_evals:
            self.started = self.last_round = perf_counter()
            self._show(self.progress)

    def count(self, members: int, seconds: float, evaluations: Evaluations | None = None) -> None:
        """Note a batch of forward evaluations.

        Parameters
        ----------
        members : int
            Number of evaluations.
        seconds : float
            Time that the batch took.
        evaluations : Evaluations, optional
            Record of a forward model about its calls.
        """
        made, worked = members, seconds
        if evaluations is not None and evaluations.n_calls is not None:
            made, worked = evaluations.n_calls, evaluations.seconds or 0.0
        self.known += max(0, members - made)
        self.evaluations += made
        self.worked += worked
        now = perf_counter()
        if made:
            self.waited += seconds
            self.busy += max(seconds, now - self.last_round)
        self.last_round = now

    def tell(
        self,
        message: str,
        n_evals: int,
        n_failed: int,
        to_go: int | None = None,
        *,
        sampling: bool = True,
        iteration: int = 0,
        sweeps_to_go: float = math.nan,
        acceptance: float = math.nan,
    ) -> None:
        """Show the progress; without a bar, log `message` if the last line is old enough.

        Parameters
        ----------
        message : str
            Text about the work done.
        n_evals, n_failed : int
            Forward evaluations of the chain, and number of failed ones.
        to_go : int, optional
            Evaluations until the end of the chain, without its burn-in.
        sampling : bool, default True
            Whether the burn-in is over.
        iteration : int, default 0
            Iteration of the burn-in.
        sweeps_to_go : float, optional
            Sweeps until the end of the chain. They give the remaining time if a sweep needs no
            evaluations.
        acceptance : float, optional
            Mean acceptance of the ensemble in the complete sweep.
        """
        now = perf_counter()
        made = max(self.evaluations, 1)
        left = math.nan if to_go is None else self.busy / made * to_go
        if sampling and not to_go:
            left = self._time_of_sweeps(now, sweeps_to_go)
        if acceptance == acceptance:
            self.acceptances.append(float(acceptance))
        mean = fmean(self.acceptances) if self.acceptances else math.nan
        shown = self.progress._replace(n_evals=n_evals, n_failed=n_failed, to_go=to_go or 0)
        shown = shown._replace(sampling=sampling, iteration=iteration or shown.iteration)
        self._show(shown._replace(acceptance=mean, left=left))
        pause = min(60.0, max(2.0, 0.02 * (now - self.started)))
        if self.watched or now - self.last < pause:
            return
        self.last = now
        notes = [f"{n_failed} failed"] * bool(n_failed)
        notes += [f"{self.known} were known"] * bool(self.known)
        text = f"{n_evals} evaluations{f' ({", ".join(notes)})' if notes else ''}"
        text += f", {self.worked / made:.3g} s each"
        if self.worked > 1.5 * self.waited > 0:
            text += f", {number(self.worked / self.waited)} at a time"
        if to_go is not None:
            rest = self.busy / made * to_go
            if sampling:
                text += f"; about {duration(rest)} to go, until {clock(rest)}"
            else:
                text += f"; the draws after the burn-in take about {duration(rest)}"
        logger.info(f"{self.label}{message}; {text}")

    def end_burn_in(self, iterations: int, n_evals: int, found: Finding | None = None) -> None:
        """Log the end of the burn-in, when all chains have reached it.

        Parameters
        ----------
        iterations, n_evals : int
            Iterations and forward evaluations of this chain.
        found : object, optional
            Result of the examination of the forward map: whether it is ``rough``, and a text.
        """
        rough = math.nan if found is None else float(found.rough)
        self._show(self.progress._replace(iteration=iterations, burn_in=n_evals, rough=rough))
        chains = [self.progress] if self.screen is None else self.screen.all_chains()
        if chains is None or not all(chain.burn_in for chain in chains):
            return
        spread = sorted({int(chain.iteration) for chain in chains})
        took = f"{spread[0]} to {spread[-1]}" if len(spread) > 1 else str(spread[0])
        total = sum(int(chain.burn_in) for chain in chains)
        several = f" of {len(chains)} chains" if len(chains) > 1 else ""
        logger.info(f"The burn-in{several} is over: {took} iterations, {total} evaluations.")
        rough_ones = sum(chain.rough == 1 for chain in chains)
        if found is not None and rough_ones in (0, len(chains)):
            logger.info(str(found))
        elif found is not None:
            logger.warning(
                f"{rough_ones} of {len(chains)} chains have found the forward map to be rough, "
                "and follow the smooth posterior. The other chains use a Metropolis test. Decide "
                "for all: adjust=True or rough=True."
            )

    def conclude(self, doubt: str = "") -> None:
        """Log whether the draws of all chains passed the quick checks: one line if all is well.

        Parameters
        ----------
        doubt : str, default ""
            Reason why the draws of this chain failed; of several chains the first one is shown.
        """
        closer = "pymc_ensemble.diagnose(idata) looks closer."
        others = [] if self.screen is None else self.screen.all_chains() or []
        heard = any(chain.doubtful == 1 for chain in others)
        self._show(self.progress._replace(doubtful=float(bool(doubt))))
        if doubt and not heard:
            logger.warning(f"{self.label}{doubt} {closer}")
        chains = [self.progress] if self.screen is None else self.screen.all_chains()
        if chains is None or any(math.isnan(chain.doubtful) for chain in chains):
            return
        in_doubt = sum(chain.doubtful == 1 for chain in chains)
        if not in_doubt:
            logger.info(f"The draws passed the quick checks. {closer}")
        elif in_doubt > 1:
            logger.warning(f"{in_doubt} of {len(chains)} chains did not pass the quick checks.")

    def _time_of_sweeps(self, now: float, sweeps_to_go: float) -> float:
        """Seconds for the remaining sweeps, from the time of the complete ones."""
        if sweeps_to_go == 0:
            return 0.0
        if self.since is None:
            self.since = now, sweeps_to_go
        started, first = self.since
        done = first - sweeps_to_go
        return (now - started) / done * sweeps_to_go if done > 0 else math.nan

    def _show(self, progress: Progress) -> None:
        self.progress = progress
        if self.screen is not None:
            self.screen.write(progress)


def clock(seconds: float) -> str:
    """Time of day, so many seconds from now, with the date if it is not today."""
    if not abs(seconds) < LONGEST:
        return "no day that a calendar has"
    now = datetime.now()
    end = now + timedelta(seconds=seconds)
    return f"{end:%H:%M}" if end.date() == now.date() else f"{end:%a %d %b %H:%M}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds; years if it is very many.

    Examples
    --------
    >>> duration(3754.2), duration(3e10)
    ('1:02:34', '950.6 years')
    """
    if not abs(seconds) < LONGEST:
        return f"{number(seconds / YEAR)} years"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def minutes(seconds: float) -> str:
    """Minutes and seconds, and hours if there are any.

    Examples
    --------
    >>> minutes(130.4), minutes(3754.2)
    ('2:10', '1:02:34')
    """
    text = duration(seconds)
    return text[2:].removeprefix("0") if text.startswith("0:") else text
