"""Temporary folders, which the next run removes if this one is killed."""

import os
import shutil
import tempfile
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

PREFIX = "pymc_ensemble-"
LOCK = "in_use"

_roots: dict[int, tuple[Path, Any]] = {}  # by process, as a fork has its own folders


def new_folder(name: str) -> Path:
    """Make an empty temporary folder.

    Parameters
    ----------
    name : str
        Beginning of the folder's name.

    Returns
    -------
    Path
        A folder inside the temporary folder of this process. The latter is removed when the process
        ends. If the process is killed, the next process that needs a folder removes it.
    """
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=own_folder()))


def use_folder(folder: Path) -> None:
    """Make temporary folders inside that of another process, which removes it."""
    _roots[os.getpid()] = (folder, None)


def remove_folder(folder: Path) -> None:
    """Remove a folder and its contents."""
    shutil.rmtree(folder, ignore_errors=True)


def own_folder() -> Path:
    """Temporary folder of this process, which holds its lock while it is alive."""
    root, _ = _roots.get(os.getpid(), (None, None))
    if root is None or not root.is_dir():
        _remove_abandoned()
        root = Path(tempfile.mkdtemp(prefix=PREFIX))
        lock = (root / "new").open("w")
        _try_to_lock(lock)
        (root / "new").replace(root / LOCK)  # others find it locked, or not at all
        _roots[os.getpid()] = (root, lock)
        Finalize(None, _close, args=(os.getpid(),), exitpriority=10)
    return root


def _close(pid: int) -> None:
    root, lock = _roots.pop(pid)
    lock.close()
    remove_folder(root)


def _remove_abandoned() -> None:
    """Remove the folders of processes that were killed."""
    for root in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            with (root / LOCK).open("r+") as lock:
                abandoned = _try_to_lock(lock)
        except OSError:  # it belongs to another user, or is just being made
            continue
        if abandoned:
            remove_folder(root)


def _try_to_lock(file: Any) -> bool:
    """Lock a file for this process and its forks, until it is closed or they end."""
    try:
        if os.name == "posix":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError:
        return False
    return True
