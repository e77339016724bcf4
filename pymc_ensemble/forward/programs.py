"""Simulators that are programs of their own: they read and write files."""

import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from .calls import ProgramFailed, TimedOut
from .folders import own_folder, remove_folder

GRACE_SECONDS = 2.0
OUTPUT = ".output"  # what a program prints, in its scratch folder
LAST_BYTES, LAST_LINES = 2000, 10  # of it that an error shows: a screen holds 24 lines

_groups: Path | None = None  # where a worker notes the programs that it is running
_running: set[int] = set()


@dataclass(frozen=True)
class ExternalProgram:
    """A program that reads and writes files, as the function of a forward model.

    Every call has a scratch folder of its own, which is the program's working directory. It is
    removed afterwards. A program that takes too long is killed, with all that it has started.

    Parameters
    ----------
    command : str or sequence of str
        The program and its arguments. Relative paths are those of the scratch folder.
    write : callable
        ``write(folder, *inputs)`` writes the input files.
    read : callable
        ``read(folder)`` reads the output files and returns the outputs.
    timeout : float, optional
        Seconds after which the program is killed. That of the forward model takes precedence.
    scratch : path-like, optional
        Folder for the scratch folders, by default that of the system for temporary files.
    keep_failed : bool, default False
        Whether the scratch folders of failed calls are left for inspection.

    Examples
    --------
    >>> import numpy as np, sys
    >>> from pymc_ensemble.forward import ExternalProgram
    >>> code = "x = float(open('x').read()); open('y', 'w').write(str(2 * x))"
    >>> double = ExternalProgram(
    ...     [sys.executable, "-c", code],
    ...     write=lambda folder, x: (folder / "x").write_text(str(x)),
    ...     read=lambda folder: float((folder / "y").read_text()),
    ... )
    >>> double(1.5)
    3.0
    """

    command: str | Sequence[str]
    write: Callable[..., Any]
    read: Callable[[Path], Any]
    timeout: float | None = None
    scratch: str | PathLike | None = None
    keep_failed: bool = False

    @property
    def __name__(self) -> str:
        return Path(self._arguments[0]).name

    @property
    def _arguments(self) -> list[str]:
        if isinstance(self.command, str):
            return shlex.split(self.command)
        return [str(part) for part in self.command]

    def with_timeout(self, timeout: float) -> "ExternalProgram":
        """Copy with another time-out."""
        return replace(self, timeout=timeout)

    def __fingerprint__(self) -> tuple[Any, ...]:
        return (self._arguments, self.write, self.read)

    def __call__(self, *inputs: Any) -> Any:
        """Run the program once.

        Raises
        ------
        ProgramFailed
            A RuntimeError: if a signal ended it, or its exit status is not zero; with its inputs
            and the last lines that it printed. What `write` and `read` raise passes through, the
            latter with a note of the same.
        """
        where = self.scratch
        if where is None and not self.keep_failed:
            where = own_folder()
        folder = Path(tempfile.mkdtemp(prefix="forward-", dir=where))
        finished = False
        try:
            self.write(folder, *inputs)
            if failure := self._run(folder):
                raise ProgramFailed(
                    f"{self.__name__} {failure}{self._circumstances(folder, inputs)}"
                )
            try:
                outputs = self.read(folder)
            except Exception as error:
                ended = f"{self.__name__} ended as if all was well"
                error.add_note(f"{ended}{self._circumstances(folder, inputs)}")
                raise
            finished = True
        finally:
            if finished or not self.keep_failed:
                remove_folder(folder)
        return outputs

    def _circumstances(self, folder: Path, inputs: Sequence[Any]) -> str:
        """Inputs, the last lines that were printed, and where the files are."""
        numbers = (np.asarray(value, dtype=float) for value in inputs)
        values = ", ".join(np.array2string(v, precision=4, threshold=20) for v in numbers)
        printed = (folder / OUTPUT).read_bytes()[-LAST_BYTES:].decode(errors="replace")
        last = "\n".join(printed.strip().splitlines()[-LAST_LINES:])
        said = f"It said at last:\n{last}" if last else "It printed nothing."
        where = f" Its files are in {folder}." if self.keep_failed else ""
        return f", with the inputs {values}.{where} {said}"

    def _run(self, folder: Path) -> str:
        """Run the program, and tell how it has failed, if it has."""
        with (folder / OUTPUT).open("wb") as output:
            process = subprocess.Popen(
                self._arguments,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                with _noted(process.pid):
                    status = process.wait(self.timeout)
            except BaseException as error:
                _kill(process)
                if isinstance(error, subprocess.TimeoutExpired):
                    raise TimedOut(
                        f"The program took more than timeout={self.timeout:g} s and was killed."
                    ) from None
                raise
        return how_it_failed(status) if status else ""


def how_it_failed(status: int) -> str:
    """Exit status in words.

    Parameters
    ----------
    status : int
        Exit status; less than zero if a signal ended the program. Shells add 128 to the number of
        the signal that has ended what they started.

    Examples
    --------
    >>> how_it_failed(3), how_it_failed(-11), how_it_failed(139)
    ('ended with exit status 3', 'was killed by SIGSEGV', 'ended with exit status 139 (SIGSEGV)')
    """
    names = {int(number): number.name for number in signal.Signals}
    if status < 0:
        return f"was killed by {names.get(-status, f'signal {-status}')}"
    name = names.get(status - 128)
    return f"ended with exit status {status}{f' ({name})' if name else ''}"


def note_groups_in(file: Path) -> None:
    """Note programs that are started in this process, as who kills it has to kill them, too."""
    global _groups
    if os.name == "posix":
        _groups = file
    _running.clear()


def kill_groups(file: Path) -> None:
    """Kill the programs that a worker has started, and all that they have started."""
    try:
        numbers = file.read_text().split()
    except FileNotFoundError:
        return
    for number in numbers:
        with contextlib.suppress(OSError):  # it has just ended
            os.killpg(int(number), signal.SIGKILL)


@contextlib.contextmanager
def _noted(pid: int) -> Iterator[None]:
    """Keep a note of a program for as long as it runs: its number may be used again then."""
    if _groups is None:
        yield
        return
    _running.add(pid)
    _groups.write_text(" ".join(map(str, set(_running))))
    try:
        yield
    finally:
        _running.discard(pid)
        _groups.write_text(" ".join(map(str, set(_running))))


def _kill(process: subprocess.Popen) -> None:
    """Kill a program and what it has started."""
    if os.name != "posix":
        process.kill()
        process.wait()
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
