"""Simulators that are external programs, which read and write files."""

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
OUTPUT = ".output"  # file with the printed output, in the scratch folder
LAST_BYTES, LAST_LINES = 2000, 10  # part of it that an error shows: a screen holds 24 lines

_groups: Path | None = None  # file in which a worker notes its running programs
_running: set[int] = set()


@dataclass(frozen=True)
class ExternalProgram:
    """A program that reads and writes files, as the function of a forward model.

    Every call has its own scratch folder, which is the program's working directory. It is removed
    after the call. A program that takes too long is killed, with all processes that it has started.

    Parameters
    ----------
    command : str or sequence of str
        The program and its arguments. Relative paths are relative to the scratch folder.
    write : callable
        ``write(folder, *inputs)`` writes the input files.
    read : callable
        ``read(folder)`` reads the output files and returns the outputs.
    timeout : float, optional
        Seconds after which the program is killed. That of the forward model takes precedence.
    scratch : path-like, optional
        Folder for the scratch folders, by default that of the system for temporary files.
    keep_failed : bool, default False
        Whether to keep the scratch folders of failed calls for inspection.

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
        """Run the program. Returns how it has failed, or ""."""
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
        Exit status. It is negative if a signal ended the program. Shells add 128 to the number of
        the signal that ended their command.

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
    """Note programs that this process starts, so that they can be killed with it."""
    global _groups
    if os.name == "posix":
        _groups = file
    _running.clear()


def kill_groups(file: Path) -> None:
    """Kill the programs that a worker has started, with all their processes."""
    try:
        numbers = file.read_text().split()
    except FileNotFoundError:
        return
    for number in numbers:
        with contextlib.suppress(OSError):  # it has just ended
            os.killpg(int(number), signal.SIGKILL)


@contextlib.contextmanager
def _noted(pid: int) -> Iterator[None]:
    """Keep a note of a program while it runs. Later its number may belong to another one."""
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
    """Kill a program and all processes that it has started."""
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
