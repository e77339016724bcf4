"""The file of a store. Other and damaged files are refused. It is closed before a fork.

It is an SQLite database. SQLite comes with Python, is safe when a process is killed, and lets
several processes write. Its content can be read without executing any of it.
"""

import json
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from os import PathLike
from pathlib import Path
from typing import Any
from uuid import uuid4

from .evaluation import ForwardModelError
from .wal import damage

APPLICATION_ID = 0x70656D73  # marks files of this package
FORMAT = "1"
BUSY_SECONDS = 300.0
DEAR_SECONDS = 0.1  # for longer evaluations it pays to wait for the disk
COLUMNS = (
    "version, parameters, replicate, attempt, status, outputs, reason, started, seconds, worker"
)
TABLES = {
    "about": "CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "evaluations": """CREATE TABLE evaluations (
    key BLOB PRIMARY KEY, version TEXT, parameters BLOB, replicate TEXT, attempt INTEGER,
    status TEXT, outputs BLOB, reason TEXT, started REAL, seconds REAL, worker TEXT, digest BLOB
)""",
}
SCHEMA = f"""
BEGIN IMMEDIATE;
{";".join(TABLES.values())};
INSERT INTO about VALUES ('format', '{FORMAT}');
PRAGMA application_id = {APPLICATION_ID};
COMMIT;
"""
HEADER_BYTES = 100  # header of any database; a smaller file is something else
NOTHING_IS_RUN = {
    sqlite3.SQLITE_DBCONFIG_ENABLE_TRIGGER: False,
    sqlite3.SQLITE_DBCONFIG_ENABLE_VIEW: False,
    sqlite3.SQLITE_DBCONFIG_TRUSTED_SCHEMA: False,
    sqlite3.SQLITE_DBCONFIG_DEFENSIVE: True,
}
UNREADABLE = (MemoryError, OverflowError, UnicodeDecodeError)  # damage may lead to these, too


class StoreError(ForwardModelError):
    """A file that is not an evaluation store, belongs to another model, or is damaged."""


_open: "weakref.WeakSet[Database]" = weakref.WeakSet()  # with a connection in this process
_guard = threading.RLock()  # one operation at a time, and no fork during it


def _before_fork() -> None:
    """Close all connections, as SQLite's locks do not survive a fork. They reopen when needed."""
    _guard.acquire()
    for store in list(_open):
        store.close()


def _after_fork_in_child() -> None:
    global _guard
    _guard = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=lambda: _guard.release(),
        after_in_child=_after_fork_in_child,
    )


class Database:
    """A file with evaluations that many threads and processes read and write."""

    def __init__(self, path: str | PathLike, version: str = ""):
        self._connection: sqlite3.Connection | None = None
        self._checked = False
        self.path, self.version = Path(path).absolute(), version

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_connection": None}

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. It reopens when needed."""
        with _guard:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _connected(self) -> sqlite3.Connection:
        """Connection of this process. Use it only under the guard."""
        if self._connection is None:
            self._connection = self._opened()
            _open.add(self)
        return self._connection

    def _opened(self) -> sqlite3.Connection:
        if not self.path.parent.is_dir():
            raise StoreError(
                f"There is no folder {self.path.parent} for the evaluation store. Make it, or "
                "choose another path for `store=`."
            )
        if not self.path.exists():
            self._create()
        if (size := self.path.stat().st_size) < HEADER_BYTES:
            raise StoreError(
                f"{self.path} has {size} bytes, so it is not an evaluation store. It was not "
                "touched. Choose another file for `store=`, or remove this one."
            )
        log = self.path.with_name(f"{self.path.name}-wal")
        if what := damage(log):
            raise StoreError(
                f"{log}, which holds the last evaluations of a run that was killed, is damaged "
                f"({what}). Restore it from a backup, or remove it. Then its evaluations are made "
                "again."
            )
        try:
            connection = sqlite3.connect(
                self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        try:
            self._prepare(connection)
        except BaseException:  # close the file, and raise again
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Make a new file a store, and refuse other files."""
        with self._reading():
            for setting, value in NOTHING_IS_RUN.items():
                connection.setconfig(setting, value)
            [[owner]] = connection.execute("PRAGMA application_id").fetchall()
            if owner != APPLICATION_ID:
                raise StoreError(
                    f"{self.path} is a database, but not an evaluation store. Choose another file "
                    "for `store=`."
                )
            found = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master")
            for kind, name, table, text in found.fetchall():
                known = kind == "table" and TABLES.get(name) == text
                if not known and not (kind == "index" and table in TABLES and text is None):
                    raise self._damaged(
                        f"it has a {kind} {name!r} that an evaluation store does not have"
                    )
            connection.execute("PRAGMA journal_mode = WAL")
            self._check(connection)

    def _check(self, connection: sqlite3.Connection) -> None:
        """Read everything once in a run, so that damage is noticed."""
        if self._checked:
            return
        about = dict(connection.execute("SELECT name, value FROM about").fetchall())
        if about.get("digest", digest_of(about)) != digest_of(about):
            raise self._damaged("the checksum of its description is wrong")
        if about.get("format") != FORMAT:
            raise StoreError(
                f"The evaluation store {self.path} has format {about.get('format')!r}, but this "
                f"version of the package reads format {FORMAT!r}. Choose another file for "
                "`store=`, or install the version that wrote it."
            )
        problems = connection.execute("PRAGMA integrity_check(1)").fetchall()
        if problems != [("ok",)]:
            raise self._damaged(str(problems[0][0]))
        for key, *columns, digest in connection.execute(
            f"SELECT key, {COLUMNS}, digest FROM evaluations"
        ):
            if digest != digest_of_row(key, columns):
                raise self._damaged(f"the checksum of evaluation {key.hex()} is wrong")
        self._checked = True

    def _create(self) -> None:
        """Make a new store, complete or not at all. Others may do so at the same time."""
        new = self.path.with_name(f".{self.path.name}.{uuid4().hex}")
        try:
            connection = sqlite3.connect(new, isolation_level=None)
            try:
                connection.executescript(SCHEMA)
            finally:
                connection.close()
            try:
                os.link(new, self.path)
            except FileExistsError:
                pass
            except OSError:  # a file system without links
                if not self.path.exists():
                    new.rename(self.path)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"The evaluation store {self.path} cannot be created: {error}. Choose another "
                "file for `store=`."
            ) from error
        finally:
            new.unlink(missing_ok=True)

    def _unusable(self, error: sqlite3.Error) -> StoreError:
        return StoreError(f"The evaluation store {self.path} cannot be used: {error}.")

    def _damaged(self, what: str) -> StoreError:
        return StoreError(
            f"{self.path} is damaged, or is no evaluation store ({what}). Nothing was read from "
            "it. Choose another file for `store=`, or restore this one from a backup."
        )

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Tell errors of the machine from damage of the file."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise self._unusable(error) from error
        except (sqlite3.DatabaseError, *UNREADABLE) as error:
            raise self._damaged(str(error)) from error

    def _query(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._reading(), _guard:
            return self._connected().execute(query, values).fetchall()

    def _insert(self, rows: Sequence[Sequence[Any]]) -> int:
        """Insert rows with new keys, and return their number."""
        with _guard:
            connection = self._connected()
            # a killed process loses nothing; expensive evaluations also survive a power failure
            dear = sum(row[-3] for row in rows) > DEAR_SECONDS
            connection.execute(f"PRAGMA synchronous = {'FULL' if dear else 'NORMAL'}")
            before = connection.total_changes
            connection.execute("BEGIN IMMEDIATE")
            try:
                marks = ", ".join("?" * 12)
                connection.executemany(f"INSERT OR IGNORE INTO evaluations VALUES ({marks})", rows)
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
            return connection.total_changes - before


def digest_of(about: Mapping[str, str]) -> str:
    """Checksum of the description of a store."""
    text = json.dumps(sorted((name, value) for name, value in about.items() if name != "digest"))
    return blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def digest_of_row(key: bytes, columns: Iterable[Any]) -> bytes:
    """Checksum of a row."""
    state = blake2b(key, digest_size=16)
    for value in columns:
        data = value if isinstance(value, bytes) else repr(value).encode()
        state.update(len(data).to_bytes(8, "little") + data)
    return state.digest()
