"""A stage of the burn-in that serves all chains of a run, and is computed once.

With ``cores=1`` the chains follow one another, and the outcome is kept in memory. Chain processes
of one run find each other by a folder, whose name came to them with the step method: the first one
that gets the lock in it computes, the others wait and read the outcome. The operating system takes
the lock from a process that has died, and the next one in line computes the stage itself. Its
random numbers do not depend on the chain, so that the outcome is always the same.
"""

import os
import pickle
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymc.exceptions import SamplingError

from pymc_ensemble.log import logger
from pymc_ensemble.problem.driver import Account

from .interrupts import in_chain_process

FloatArray = NDArray[np.float64]

PREFIX = "pymc_ensemble-run-"  # of the folders; the number of the main process comes next


@dataclass(frozen=True)
class Outcome:
    """What a common stage has found.

    Attributes
    ----------
    found : object
        What the sampler goes on from.
    account : Account
        Forward evaluations that it has taken.
    iterations : int
        Iterations of the burn-in that it has taken.
    seen : list of tuple
        Particles, shape (n, d), and their log densities.
    failure : str
        Why nothing could be found; empty otherwise.
    """

    found: Any
    account: Account
    iterations: int = 0
    seen: list[tuple[FloatArray, FloatArray]] = field(default_factory=list)
    failure: str = ""


class CommonStage:
    """Computes a stage for the first chain of a run that asks for it, and hands it to all.

    Each step method has one of its own.
    """

    def __init__(self) -> None:
        self._outcome: Outcome | None = None
        self._process = os.getpid()  # to which the outcome belongs: workers inherit earlier ones
        self.run = ""

    def __getstate__(self) -> dict[str, Any]:
        return {"run": self.run, "_outcome": None, "_process": 0}

    def name_run(self) -> None:
        """Choose a new name in the main process; chain processes keep that of their run."""
        if not in_chain_process():
            self.run = f"{os.getpid()}-{secrets.token_hex(8)}"

    @property
    def folder(self) -> Path:
        """Where the chain processes of this run meet."""
        return Path(tempfile.gettempdir()) / f"{PREFIX}{self.run}"

    def set_up_chain(self, number: int) -> None:
        """Forget the run before if this is the first chain of this one here."""
        if number == 0 or self._process != os.getpid():
            self._outcome, self._process = None, os.getpid()

    def outcome(self, compute: Callable[[], Outcome], label: str) -> tuple[Outcome, bool]:
        """Outcome of the stage, and whether it was computed for this chain.

        Parameters
        ----------
        compute : callable
            Computes it; the same in all chains.
        label : str
            Name of the chain for the log.

        Raises
        ------
        SamplingError
            If `compute` raises it, or has done so for another chain.
        """
        own = False
        if self._outcome is None:
            if in_chain_process():
                self._outcome, own = self._in_turn(compute, label)
            else:
                self._outcome, own = compute(), True
        return self._outcome, own

    def _in_turn(self, compute: Callable[[], Outcome], label: str) -> tuple[Outcome, bool]:
        """Outcome that another process has left in the folder, or that is left there for others."""
        from filelock import FileLock, Timeout  # only chains in processes of their own need it

        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            lock = FileLock(self.folder / "lock")
            try:
                held = lock.acquire(timeout=0)
            except Timeout:
                logger.info(
                    f"{label}waits for another chain, which computes this stage for all chains."
                )
                held = lock.acquire()
        except OSError as error:  # no chain depends on others
            logger.info(f"{label}computes the common stage by itself: {error}")
            return compute(), True
        with held:
            return self._read_or_compute(compute)

    def _read_or_compute(self, compute: Callable[[], Outcome]) -> tuple[Outcome, bool]:
        """The same for the process that has the lock."""
        try:
            outcome: Outcome = pickle.loads((self.folder / "outcome").read_bytes())
        except OSError:
            pass
        else:
            if outcome.failure:
                raise SamplingError(outcome.failure)
            return outcome, False
        remove_leftovers()
        try:
            outcome = compute()
        except SamplingError as error:
            self._leave(Outcome(None, Account(), failure=str(error)))
            raise
        self._leave(outcome)
        return outcome, True

    def _leave(self, outcome: Outcome) -> None:
        """Write the outcome for other chains, complete or not at all."""
        unfinished = self.folder / f"outcome-{os.getpid()}"
        try:
            unfinished.write_bytes(pickle.dumps(outcome))
            unfinished.replace(self.folder / "outcome")
        except OSError as error:
            logger.info(f"The common stage is not saved for the other chains: {error}")

    def remove_with(self, owner: object) -> None:
        """Remove the folder as soon as the object `owner`, which lasts as long as the run, goes."""
        weakref.finalize(owner, shutil.rmtree, self.folder, ignore_errors=True)


def remove_leftovers() -> None:
    """Remove folders of runs whose main process was killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        number = folder.name.removeprefix(PREFIX).partition("-")[0]
        if number.isdecimal() and not _runs(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def _runs(pid: int) -> bool:
    """Whether there is a process of this number."""
    if os.name != "posix":  # os.kill would end it
        import ctypes

        kernel: Any = vars(ctypes)["windll"].kernel32
        synchronize = 0x00100000  # the least that one can ask of a process
        handle = kernel.OpenProcess(synchronize, False, pid)
        kernel.CloseHandle(handle)
        return bool(handle)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
