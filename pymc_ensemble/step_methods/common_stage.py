"""A stage of the burn-in that is computed once for all chains of a run.

With ``cores=1`` the chains run one after another, and the outcome stays in memory. Otherwise the
chain processes of a run share a folder. They get its name with the step method. The first process
that locks the folder computes the stage; the others wait and read the outcome. If this process
dies, the operating system releases the lock, and the next process computes the stage. The random
numbers do not depend on the chain, so the outcome is always the same.
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

PREFIX = "pymc_ensemble-run-"  # first part of folder names; the number of the main process follows


@dataclass(frozen=True)
class Outcome:
    """Outcome of a common stage.

    Attributes
    ----------
    found : object
        Result from which the sampler continues.
    account : Account
        Forward evaluations of the stage.
    iterations : int
        Iterations of the burn-in that the stage has taken.
    seen : list of tuple
        Particles, shape (n, d), and their log densities.
    failure : str
        Reason of a failure; empty if there was none.
    """

    found: Any
    account: Account
    iterations: int = 0
    seen: list[tuple[FloatArray, FloatArray]] = field(default_factory=list)
    failure: str = ""


class CommonStage:
    """Computes a stage for the first chain that asks for it, and gives the outcome to all chains.

    Each step method has its own.
    """

    def __init__(self) -> None:
        self._outcome: Outcome | None = None
        self._process = os.getpid()  # owner of the outcome: workers inherit earlier outcomes
        self.run = ""

    def __getstate__(self) -> dict[str, Any]:
        return {"run": self.run, "_outcome": None, "_process": 0}

    def name_run(self) -> None:
        """Choose a new name in the main process. Chain processes keep the name of their run."""
        if not in_chain_process():
            self.run = f"{os.getpid()}-{secrets.token_hex(8)}"

    @property
    def folder(self) -> Path:
        """Folder that the chain processes of this run share."""
        return Path(tempfile.gettempdir()) / f"{PREFIX}{self.run}"

    def set_up_chain(self, number: int) -> None:
        """Forget the previous run, if this is the first chain of a run in this process."""
        if number == 0 or self._process != os.getpid():
            self._outcome, self._process = None, os.getpid()

    def outcome(self, compute: Callable[[], Outcome], label: str) -> tuple[Outcome, bool]:
        """Outcome of the stage, and whether it was computed for this chain.

        Parameters
        ----------
        compute : callable
            Computes the stage; the same in all chains.
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
        """Outcome from the folder; if there is none, compute it and leave it for others."""
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
        except OSError as error:  # each chain can compute the stage itself
            logger.info(f"{label}computes the common stage by itself: {error}")
            return compute(), True
        with held:
            return self._read_or_compute(compute)

    def _read_or_compute(self, compute: Callable[[], Outcome]) -> tuple[Outcome, bool]:
        """Outcome for the process that has the lock."""
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
        """Write the outcome for other chains. A partial file is never visible."""
        unfinished = self.folder / f"outcome-{os.getpid()}"
        try:
            unfinished.write_bytes(pickle.dumps(outcome))
            unfinished.replace(self.folder / "outcome")
        except OSError as error:
            logger.info(f"The common stage is not saved for the other chains: {error}")

    def remove_with(self, owner: object) -> None:
        """Remove the folder when the object `owner` is collected; it lives as long as the run."""
        weakref.finalize(owner, shutil.rmtree, self.folder, ignore_errors=True)


def remove_leftovers() -> None:
    """Remove folders of runs whose main process was killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        number = folder.name.removeprefix(PREFIX).partition("-")[0]
        if number.isdecimal() and not _runs(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def _runs(pid: int) -> bool:
    """Whether a process with this number is running."""
    if os.name != "posix":  # os.kill would end the process there
        import ctypes

        kernel: Any = vars(ctypes)["windll"].kernel32
        synchronize = 0x00100000  # SYNCHRONIZE, the smallest access right to a process
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
