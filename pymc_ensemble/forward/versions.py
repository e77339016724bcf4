"""Detect changes of a simulator, when a run or a prediction begins."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from .fingerprint import Fingerprint, Leaf, digest


def files_in(depends_on: Any) -> tuple[Path, ...]:
    """Files in `depends_on`, which must exist."""
    if isinstance(depends_on, str | bytes | PathLike) or not isinstance(depends_on, Iterable):
        raise TypeError(
            f"depends_on must be a list of paths of files, not {depends_on!r}. Write "
            f"depends_on=[{depends_on!r}]."
        )
    files = []
    for path in depends_on:
        if not isinstance(path, str | PathLike):
            raise TypeError(f"depends_on must be a list of paths of files; it has {path!r}.")
        files.append(Path(path).absolute())
        if not files[-1].is_file():
            raise ValueError(
                f"depends_on has {str(path)!r}, which is not a file. List the files of a folder "
                "one by one."
            )
    return tuple(files)


def fingerprint(function: Callable[..., Any], depends_on: Sequence[Path] = ()) -> str:
    """Version of a function: its code, and the values that it reads.

    Parameters
    ----------
    function : callable
    depends_on : sequence of path
        Files whose content counts.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If the function refers to a value that cannot be compared, such as a lock or an open file.
    """
    watch = Watch(function, depends_on)
    watch.begin()
    return watch.version


class Watch:
    """Detects changes of a function, and of all that it refers to.

    What the function changes itself, such as a counter, a cache or the state of a solver, is not a
    setting. It is left out as soon as it changes during a call.

    Parameters
    ----------
    function : callable
    depends_on : sequence of path
        Files whose content counts.
    """

    def __init__(self, function: Callable[..., Any], depends_on: Sequence[Path] = ()):
        self.function, self.depends_on = function, depends_on
        self.left_out: dict[str, frozenset[str]] = {}
        self.untold: dict[str, str] = {}
        self._leaves: dict[str, Leaf] | None = None
        self.at_first: dict[str, Leaf] = {}  # of what is left out

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"function": None}

    def of(self, function: Callable[..., Any]) -> "Watch":
        """Watch a copy of the function."""
        other = Watch(function, self.depends_on)
        other.left_out, other.at_first = dict(self.left_out), dict(self.at_first)
        return other

    def begin(self) -> list[str]:
        """Compare before a call. Returns the paths that have changed since the last call."""
        before, now = self._leaves, self._look()
        self._leaves = now
        return [] if before is None else _different(before, now)

    def end(self) -> None:
        """Compare after a call. What has changed was changed by the function itself."""
        before, now = self._leaves, self._look()
        if before is None or before == now:
            self._leaves = now
            return
        for path in _different(before, now):
            if path in before:
                self.at_first.setdefault(path, before[path])
                inside = [p for p in before if p.startswith(path) and p != path]
                entries = [p for p in inside if p[len(path)] in ".["]
                grown = before[path][0] == "dict" and entries
                self.left_out[path] = frozenset(entries if grown else ())
        self._leaves = self._look()
        self.at_first |= {path: leaf for path, leaf in before.items() if path not in self._leaves}

    def _look(self) -> dict[str, Leaf]:
        found = Fingerprint(self.function, self.depends_on, self.left_out)
        self.untold = found.untold
        return found.leaves

    @property
    def version(self) -> str:
        """Version of the function when a call began.

        Raises
        ------
        ValueError
            If the version is not known.
        """
        if self._leaves is None:
            self.begin()
        assert self._leaves is not None
        if self.untold:
            path, what = next(iter(self.untold.items()))
            raise ValueError(
                f"The version of {self.function!r:.100} is not known, as `{path}` is {what}. Give "
                '`version`, a text such as "1", and change it whenever results change. A store '
                "needs the version, as it uses evaluations only for the version that made them."
            )
        return digest(self.at_first | self._leaves).hex()[:16]

    def differs_from(self, other: "Watch") -> list[str]:
        """Paths in which the function in another process differs."""
        ours, theirs = self._leaves or {}, other._leaves or {}
        left_out = self.left_out.keys() | other.left_out.keys()
        return [
            path
            for path in _different(ours, theirs)
            if not any(path.startswith(start) for start in left_out)
        ]


def _different(one: Mapping[str, Leaf], other: Mapping[str, Leaf]) -> list[str]:
    return [path for path in one.keys() | other.keys() if one.get(path) != other.get(path)]
