"""Progress of ensembles in PyMC's progress bar, also from other processes.

PyMC updates its bar with every draw, but an ensemble computes many sweeps before the first draw.
So each chain writes its progress into memory that it shares with the main process. A column of the
bar reads it there; rich renders this column ten times a second. Log lines of chains in other
processes go the same way. If these processes printed them, the bar would break.
"""

import logging
import math
import mmap
import multiprocessing
import os
import struct
import sys
import weakref
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.shared_memory import SharedMemory
from time import monotonic
from typing import Any

import numpy as np
from rich.file_proxy import FileProxy
from rich.progress import ProgressColumn, Task
from rich.table import Column
from rich.text import Text

from pymc_ensemble.log import Progress, show_in_worker

__all__ = ["BarFields", "Board", "EnsembleColumn", "Place", "bar_is_live"]

WORKER = "worker_chain_"  # PyMC's name of its processes, before the number of the chain
CHAINS = 256  # number of chains with a place; further chains have no text in the bar
NUMBERS = struct.Struct("<11d")  # numbers of a chain: the time, and a Progress
ENDS = struct.Struct("<2q")  # bytes of log lines of a chain that were read, and written
FOUND = struct.Struct("<q")  # whether the process of a chain has found the board
# result of the first chain: whether known, fluctuation, cost, and whether the map is curved
FINDING = struct.Struct("<q2d?")
PLACE = 4096  # bytes for one chain: its numbers, the ends, and a ring buffer of log lines
LINES = NUMBERS.size + ENDS.size + FOUND.size
ROOM = PLACE - LINES
WIDTH = 39  # longest text on one line: in a terminal of 80 columns, PyMC's columns need the rest
HEAD = struct.Struct("<3q")  # kind of bar on the screen, number of chains, other step methods
NO_BAR, BAR, COLUMN = 0, 1, 2


class Board:
    """Memory in which the chains of a run write their progress.

    Forked processes share anonymous memory, which leaves nothing behind, however they end. Spawned
    processes need a name to find the memory. The memory gets this name when the step method is
    pickled for them, and loses it as soon as all of them have found the memory.
    """

    def __init__(self) -> None:
        self.memory: Any = mmap.mmap(-1, (CHAINS + 1) * PLACE)
        self._named: SharedMemory | None = None
        self._remove: Any = None
        self._is_clear = True
        self._begun = 0  # number of chains begun in this process
        self.reaches_others = True

    def start(self, chains: int) -> None:
        """Forget the last run, unless pickling the step method has already done so."""
        if not self._is_clear:
            self._clear()
        FINDING.pack_into(self.memory, HEAD.size, False, math.nan, 0, False)
        self._is_clear, self._begun = False, 0
        HEAD.pack_into(self.memory, 0, NO_BAR, chains, 0)

    def _clear(self) -> None:
        for chain in range(CHAINS):
            start = (chain + 1) * PLACE
            self.memory[start : start + LINES] = bytes(LINES)

    @property
    def screen(self) -> int:
        """What is on the screen: no moving bar, a bar, or a bar with our column."""
        return HEAD.unpack_from(self.memory)[0]

    @property
    def chains(self) -> int:
        """Number of chains of the run."""
        return HEAD.unpack_from(self.memory)[1]

    @property
    def company(self) -> bool:
        """Whether other step methods take part in the run."""
        return HEAD.unpack_from(self.memory)[2] > 0

    def note_company(self) -> None:
        """Note that other step methods take part in the run."""
        HEAD.pack_into(self.memory, 0, self.screen, self.chains, 1)

    def note_bar(self) -> None:
        """Note that a progress bar is on the screen."""
        self._note(max(self.screen, BAR), self.chains)

    def note_column(self) -> None:
        """Note that a progress bar with our column is on the screen."""
        self._note(COLUMN, self.chains)

    def _note(self, screen: int, chains: int) -> None:
        HEAD.pack_into(self.memory, 0, screen, chains, self.company)

    @property
    def finding(self) -> tuple[float, int, bool] | None:
        """Arguments of `note_finding` from the first chain; None as long as there are none."""
        known, found, evaluations, bent = FINDING.unpack_from(self.memory, HEAD.size)
        return (found, int(evaluations), bent) if known else None

    def note_finding(self, found: float, evaluations: int, bent: bool = False) -> None:
        """Note the result of the first chain for all chains.

        Parameters
        ----------
        found : float
            Fluctuation of the log density; NaN if it is not known.
        evaluations : int
            Number of evaluations that it took.
        bent : bool, default False
            Whether the forward map is too curved for a linear fit.
        """
        for known in (False, True):  # other chains read the values as soon as the flag is set
            FINDING.pack_into(self.memory, HEAD.size, known, found, evaluations, bent)

    def begin(self) -> "Place":
        """Begin the next chain of this process."""
        name = multiprocessing.current_process().name
        if name.startswith(WORKER):
            place = Place(self, int(name.removeprefix(WORKER)))
            place.mark_found()
            show_in_worker(place.print)
            return place
        self._begun += 1
        return Place(self, self._begun - 1)

    # -- on the way to processes that are spawned -----------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        self._clear()
        self._is_clear = True
        if self._named is None:
            with suppress(OSError):  # a system without shared memory
                named = SharedMemory(create=True, size=len(self.memory))
                self._named, self.memory = named, named.buf
                self._remove = weakref.finalize(self, _remove, named, os.getpid())
        level = logging.getLogger("pymc").level  # above all levels in a quiet run
        return {"name": None if self._named is None else self._named.name, "level": level}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        if multiprocessing.current_process().name.startswith(WORKER):
            logging.getLogger("pymc").setLevel(state["level"])
        self.reaches_others = False
        with suppress(OSError):  # unpickled after the end of the run
            if state["name"] is not None:
                self._found = SharedMemory(state["name"])
                self.memory, self.reaches_others = self._found.buf, True

    def remove_name(self) -> None:
        """Remove the name when no process needs it. Then a kill leaves nothing behind."""
        if self._named is not None:
            self._remove.detach()
            self._named.unlink()
            self._kept, self._named = self._named, None  # the memory is that of this object


class BarFields(dict[str, Any]):
    """Empty dict of progress bar fields that notes when PyMC merges it with another one.

    PyMC does not tell a step method about other step methods. But before the chains begin, it asks
    all of them for the fields of one bar, even if the bar is hidden.

    Parameters
    ----------
    board : Board
    """

    def __init__(self, board: Board):
        super().__init__()
        self._board = board

    def __or__(self, others: Any) -> Any:
        self._board.note_company()
        return {**self, **others}

    def __ror__(self, others: Any) -> Any:
        self._board.note_company()
        return {**others, **self}


def _remove(named: SharedMemory, owner: int) -> None:
    if os.getpid() == owner:
        named.unlink()


class Place:
    """Place on a board where one chain writes.

    Parameters
    ----------
    board : Board
    chain : int
        Number of the chain in the run, from 0.
    """

    def __init__(self, board: Board, chain: int):
        self.chain = chain
        self._board, self._start = board, (chain + 1) * PLACE
        self._exists = chain < CHAINS

    @property
    def follows_another(self) -> bool:
        """Whether the first chain of the run is another one, and writes on the same board."""
        return 0 < self.chain < self._board.chains and self._board.reaches_others

    @property
    def watched(self) -> bool:
        """Whether a bar is on the screen."""
        return self._exists and self._board.screen != NO_BAR

    def mark_found(self) -> None:
        """Note that the process of the chain has found the board."""
        if self._exists:
            FOUND.pack_into(self._board.memory, self._start + LINES - FOUND.size, 1)

    @property
    def found(self) -> bool:
        """Whether the process of the chain has found the board, if there is a place for it."""
        if not self._exists:
            return True
        return FOUND.unpack_from(self._board.memory, self._start + LINES - FOUND.size)[0] > 0

    def write(self, progress: Progress) -> None:
        """Write the progress of the chain."""
        if self._exists:
            NUMBERS.pack_into(self._board.memory, self._start, monotonic(), *progress)

    def read(self) -> tuple[Progress, float] | None:
        """Progress of the chain, and its age in seconds; None before the chain begins."""
        if not self._exists:
            return None
        stamp, *numbers = NUMBERS.unpack_from(self._board.memory, self._start)
        return (Progress(*numbers), max(0.0, monotonic() - stamp)) if stamp else None

    def all_chains(self) -> list[Progress] | None:
        """Progress of all chains of the run; None before the last one begins."""
        if not self._board.chains:  # `pm.sample` has not announced any
            places = [self]
        else:
            places = [Place(self._board, chain) for chain in range(self._board.chains)]
        told = [place.read() for place in places]
        return None if None in told else [one[0] for one in told if one is not None]

    def print(self, text: str) -> None:
        """Show a line of the log, above the bar if there is one."""
        memory, data = self._board.memory, text.encode()
        read, written = ENDS.unpack_from(memory, self._start + NUMBERS.size)
        full = len(data) > ROOM - (written - read)
        if not self._exists or self._board.screen != COLUMN or full:
            stream = sys.__stderr__ or sys.stderr
            stream.write(text)
            stream.flush()
            return
        for place, piece in self._pieces(written, len(data)):
            memory[place], data = data[:piece], data[piece:]
        ENDS.pack_into(memory, self._start + NUMBERS.size, read, written + len(text.encode()))

    def printed(self) -> str:
        """Lines of the log that have not been shown."""
        if not self._exists:
            return ""
        memory = self._board.memory
        read, written = ENDS.unpack_from(memory, self._start + NUMBERS.size)
        if read == written:
            return ""
        data = b"".join(bytes(memory[place]) for place, _ in self._pieces(read, written - read))
        ENDS.pack_into(memory, self._start + NUMBERS.size, written, written)
        return data.decode(errors="replace")

    def _pieces(self, start: int, length: int) -> list[tuple[slice, int]]:
        """One or two pieces of the ring buffer, and their lengths."""
        first = start % ROOM
        head = min(length, ROOM - first)
        base = self._start + LINES
        pieces = [(slice(base + first, base + first + head), head)]
        if length > head:
            pieces.append((slice(base, base + length - head), length - head))
        return pieces


class EnsembleColumn(ProgressColumn):
    """Column of a progress bar: evaluations, failures, acceptance rate and remaining time.

    Parameters
    ----------
    board : Board
        Where the chains write.
    chains : int
        Number of chains.
    """

    def __init__(self, board: Board, chains: int):
        super().__init__(table_column=Column("Ensemble", max_width=WIDTH, overflow="fold"))
        self._board = board
        self._places = [Place(board, chain) for chain in range(chains)]
        self._rows = 0

    def render(self, task: Task) -> Text:
        """Text of one chain, or of all chains if they share a row."""
        if bar_is_live():
            self._board.note_column()
        for place in self._places if task.id == 0 else ():
            if lines := place.printed():
                sys.stderr.write(lines)  # avoids the lock of logging: rich holds its own
        if all(place.found for place in self._places):
            self._board.remove_name()
        self._rows = max(self._rows, task.id + 1)
        shown = self._places if self._rows == 1 else [self._places[task.id]]
        told = [place.read() for place in shown]
        return Text(together(told))


def bar_is_live() -> bool:
    """Whether a progress bar moves on the screen. Then all output goes through rich."""
    return isinstance(sys.stderr, FileProxy) and os.environ.get("TERM") not in ("dumb", "unknown")


def together(told: Sequence[tuple[Progress, float] | None]) -> str:
    """Text of one or several chains; chains that have not begun are None.

    Parameters
    ----------
    told : sequence of (Progress, float) or None
        Progress of each chain, and its age in seconds.

    Returns
    -------
    str
        Sum of the evaluations, mean acceptance rate, and longest remaining time.
    """
    begun = [one for one in told if one is not None]
    if len(begun) < 2:
        return begun[0][0].text(begun[0][1]) if begun else ""
    every = [progress for progress, _ in begun]
    numbers = np.array(every)
    lefts = [p.left - wait for p, wait in begun]
    acceptance = numbers[:, 5]
    progress = Progress(
        sampling=len(begun) == len(told) and all(p.sampling for p in every),
        iteration=0,
        n_evals=numbers[:, 2].sum(),
        to_go=numbers[:, 3].sum(),
        n_failed=numbers[:, 4].sum(),
        acceptance=np.nanmean(acceptance) if np.isfinite(acceptance).any() else np.nan,
        left=np.nanmax(lefts) if np.isfinite(lefts).any() else np.nan,
    )
    return progress.text(0.0)
