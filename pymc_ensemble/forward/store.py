"""Evaluations on disk: a run that was killed goes on where it stopped.

The store is an SQLite database. SQLite comes with Python, keeps its promises when a process is
killed, lets several processes write, and its content can be read without executing any of it.
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

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .evaluation import ForwardModelError
from .tasks import Outcomes, Outputs, Signature
from .wal import damage

FloatArray = NDArray[np.float64]
Key = tuple[bytes, str, int]
"""Parameters as bytes, replicate, and number of the attempt."""

APPLICATION_ID = 0x70656D73  # marks the files as ours
FORMAT = "1"
BUSY_SECONDS = 300.0
DEAR_SECONDS = 0.1  # of evaluation, for which it is worth to wait for the disk
AT_ONCE = 500  # rows per query
COLUMNS = (
    "version, parameters, replicate, attempt, status, outputs, reason, started, seconds, worker"
)
BOOKKEEPING = ("status", "reason", "start", "duration", "worker", "version", "replicate", "attempt")
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
HEADER_BYTES = 100  # of any database; a file that has less is something else
REASON_CHARACTERS = 10_000  # of a message that are kept, half from either end
NOTHING_IS_RUN = {
    sqlite3.SQLITE_DBCONFIG_ENABLE_TRIGGER: False,
    sqlite3.SQLITE_DBCONFIG_ENABLE_VIEW: False,
    sqlite3.SQLITE_DBCONFIG_TRUSTED_SCHEMA: False,
    sqlite3.SQLITE_DBCONFIG_DEFENSIVE: True,
}


UNREADABLE = (MemoryError, OverflowError, UnicodeDecodeError)  # what damage leads to, beside errors


class StoreError(ForwardModelError):
    """A file that is not an evaluation store, not that of this model, or damaged."""


_open: "weakref.WeakSet[EvaluationStore]" = weakref.WeakSet()  # with a connection in this process
_guard = threading.RLock()  # one operation at a time, and no fork in the midst of it


def _before_fork() -> None:
    """Close all connections: SQLite's locks do not survive a fork. They are opened when needed."""
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


class EvaluationStore:
    """Finished evaluations of one forward model, in a file.

    Any number of threads and processes of one machine may use the file at the same time. (SQLite's
    locks cannot be relied upon on network file systems.)

    Parameters
    ----------
    path : path-like
        The file; it is created when first needed.
    version : str, default ""
        Version of the model. Evaluations of other versions are left alone.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> store = EvaluationStore(pathlib.Path(tempfile.mkdtemp()) / "runs.db")
    >>> len(store)
    0
    """

    def __init__(self, path: str | PathLike, version: str = ""):
        self._connection: sqlite3.Connection | None = None
        self._checked = False
        self.path, self.version = Path(path).absolute(), version

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_connection": None}

    def __del__(self) -> None:
        self.close()

    def __len__(self) -> int:
        return self._query("SELECT count(*) FROM evaluations")[0][0]

    # -- the file -------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the file; it is opened again when needed."""
        with _guard:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _connected(self) -> sqlite3.Connection:
        """Connection of this process, to be used under the guard."""
        if self._connection is None:
            self._connection = self._opened()
            _open.add(self)
        return self._connection

    def _opened(self) -> sqlite3.Connection:
        if not self.path.parent.is_dir():
            raise StoreError(f"There is no folder {self.path.parent} for the evaluation store.")
        if not self.path.exists():
            self._create()
        if (size := self.path.stat().st_size) < HEADER_BYTES:
            raise StoreError(
                f"{self.path} has {size} bytes, so it is no evaluation store. It is left as it is: "
                "choose another file for `store=`, or remove this one."
            )
        log = self.path.with_name(f"{self.path.name}-wal")
        if what := damage(log):
            raise StoreError(
                f"{log}, which holds the last evaluations of a run that was killed, is damaged "
                f"({what}). Restore it from a backup, or remove it: what it holds is then "
                "evaluated again."
            )
        try:
            connection = sqlite3.connect(
                self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        try:
            self._prepare(connection)
        except BaseException:  # raised again: the file is only not left open
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Make the file ours if it is new, and refuse it if it is not."""
        with self._reading():
            for setting, value in NOTHING_IS_RUN.items():
                connection.setconfig(setting, value)
            [[owner]] = connection.execute("PRAGMA application_id").fetchall()
            if owner != APPLICATION_ID:
                raise StoreError(
                    f"{self.path} is a database, but no evaluation store. Choose another file for "
                    "`store=`."
                )
            found = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master")
            for kind, name, table, text in found.fetchall():
                known = kind == "table" and TABLES.get(name) == text
                if not known and not (kind == "index" and table in TABLES and text is None):
                    raise self._damaged(f"it has a {kind} {name!r} that is not ours")
            connection.execute("PRAGMA journal_mode = WAL")
            self._check(connection)

    def _check(self, connection: sqlite3.Connection) -> None:
        """Read everything once in a run: no damage goes unnoticed."""
        if self._checked:
            return
        about = dict(connection.execute("SELECT name, value FROM about").fetchall())
        if about.get("digest", _digest_of(about)) != _digest_of(about):
            raise self._damaged("the checksum of its description is wrong")
        if about.get("format") != FORMAT:
            raise StoreError(
                f"The evaluation store {self.path} has format {about.get('format')!r}, this "
                f"version of the package reads format {FORMAT!r}."
            )
        problems = connection.execute("PRAGMA integrity_check(1)").fetchall()
        if problems != [("ok",)]:
            raise self._damaged(str(problems[0][0]))
        for key, *columns, digest in connection.execute(
            f"SELECT key, {COLUMNS}, digest FROM evaluations"
        ):
            if digest != _digest(key, columns):
                raise self._damaged(f"the checksum of evaluation {key.hex()} is wrong")
        self._checked = True

    def _create(self) -> None:
        """Make a new store, complete or not at all, though others may do so at the same time."""
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
                f"The evaluation store {self.path} cannot be made: {error}."
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
        """Say whose errors these are: of the machine, or of what is in the file."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise self._unusable(error) from error
        except (sqlite3.DatabaseError, *UNREADABLE) as error:
            raise self._damaged(str(error)) from error

    def _query(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._reading(), _guard:
            return self._connected().execute(query, values).fetchall()

    # -- what it is about -----------------------------------------------------------------------

    def bind(self, signature: Signature) -> None:
        """Note whose evaluations these are, or refuse those of another model.

        Parameters
        ----------
        signature : Signature
            With known outputs.

        Raises
        ------
        StoreError
            If the store has evaluations of a function with other inputs or outputs, or if one of
            them has a name that the store needs for itself.
        """
        text = _describe(signature)
        if self._compare(signature, text) is None:
            digest = _digest_of({"format": FORMAT, "signature": text})
            self._query(
                "INSERT OR IGNORE INTO about VALUES ('signature', ?), ('digest', ?)", (text, digest)
            )
            self._compare(signature, text)

    def outputs(self, signature: Signature) -> Outputs | None:
        """Outputs of the function, if the store knows them; refuse other inputs."""
        return self._compare(signature, _describe(signature))

    def _compare(self, signature: Signature, text: str) -> Outputs | None:
        results = () if signature.outputs is None else signature.outputs.names
        if taken := [name for name in (*signature.names, *results) if name in BOOKKEEPING]:
            raise StoreError(
                f"`{taken[0]}` is the name of an input or output of the forward model, and of what "
                f"an evaluation store notes itself: {', '.join(BOOKKEEPING)}. Rename it, for "
                f"example to `{taken[0]}_`."
            )
        stored = self._query("SELECT value FROM about WHERE name = 'signature'")
        if not stored:
            return None
        theirs, ours = json.loads(stored[0][0]), json.loads(text)
        outputs = theirs["outputs"]
        if signature.outputs is None:
            ours["outputs"] = outputs
        if theirs != ours:
            raise StoreError(
                f"The evaluation store {self.path} belongs to another forward model: its inputs "
                f"are {theirs['inputs']} and its outputs {outputs}; here they are "
                f"{ours['inputs']} and {ours['outputs']}. Choose another file for `store=`."
            )
        return Outputs(
            outputs["kind"], tuple(outputs["names"]), tuple(map(tuple, outputs["shapes"]))
        )

    # -- evaluations ----------------------------------------------------------------------------

    def _key(self, key: Key) -> bytes:
        parameters, replicate, attempt = key
        head = json.dumps([self.version, replicate, attempt]).encode()
        return blake2b(head + b"\0" + parameters, digest_size=16).digest()

    def put(self, keys: Sequence[Key], outcomes: Outcomes) -> Outcomes:
        """Save evaluations.

        Parameters
        ----------
        keys : sequence of Key
        outcomes : Outcomes

        Returns
        -------
        Outcomes
            As they are on disk: what another process has saved before takes precedence.
        """
        rows = []
        for i, key in enumerate(keys):
            status = outcomes.statuses[i]
            outputs = outcomes.outputs[i].astype("<f8").tobytes() if status == "ok" else b""
            row = [self.version, key[0], key[1], key[2], status, outputs]
            if i in outcomes.reasons:
                outcomes.reasons[i] = _cut(outcomes.reasons[i])
            row += [outcomes.reasons.get(i, ""), float(outcomes.started[i])]
            row += [float(outcomes.seconds[i]), outcomes.worker]
            name = self._key(key)
            rows.append([name, *row, _digest(name, row)])
        try:
            with _guard:
                new = self._insert(self._connected(), rows)
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"An evaluation could not be saved in {self.path}: {error}."
            ) from error
        if new < len(rows):
            for i, stored in self.get(keys, outcomes.outputs.shape[1]):
                outcomes.outputs[i], outcomes.statuses[i] = stored.outputs[0], stored.statuses[0]
                outcomes.reasons.pop(i, None)
                if stored.reasons:
                    outcomes.reasons[i] = stored.reasons[0]
        return outcomes

    def _insert(self, connection: sqlite3.Connection, rows: Sequence[Sequence[Any]]) -> int:
        """Insert rows whose keys are new, and return their number."""
        # a killed process loses nothing either way; what was dear is to survive a power failure
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

    def get(self, keys: Sequence[Key], n_outputs: int) -> Iterator[tuple[int, Outcomes]]:
        """Find evaluations.

        Parameters
        ----------
        keys : sequence of Key
        n_outputs : int
            Number of outputs.

        Yields
        ------
        index : int
            Of the key.
        outcome : Outcomes
            A single one.
        """
        names = {self._key(key): i for i, key in enumerate(keys)}
        everything = list(names)
        for first in range(0, len(everything), AT_ONCE):
            some = everything[first : first + AT_ONCE]
            marks = ", ".join("?" * len(some))
            query = f"SELECT key, {COLUMNS}, digest FROM evaluations WHERE key IN ({marks})"
            for name, *columns, digest in self._query(query, some):
                if digest != _digest(name, columns):
                    raise self._damaged(f"the checksum of evaluation {name.hex()} is wrong")
                yield names[name], self._outcome(columns, n_outputs)

    def _outcome(self, columns: Sequence[Any], n_outputs: int) -> Outcomes:
        _, _, _, _, status, outputs, reason, started, seconds, worker = columns
        values = np.full((1, n_outputs), np.nan)
        if status == "ok":
            values[0] = np.frombuffer(outputs, "<f8")
        reasons = {} if status == "ok" else {0: reason}
        return Outcomes(values, [status], reasons, np.array([started]), np.array([seconds]), worker)

    def keys_after(self, row: int) -> tuple[int, list[Key]]:
        """Keys of this version that came after a row, and the number of the last row."""
        found = self._query(
            "SELECT rowid, parameters, replicate, attempt FROM evaluations "
            "WHERE version = ? AND rowid > ? ORDER BY rowid",
            (self.version, row),
        )
        return (found[-1][0] if found else row), [tuple(key) for _, *key in found]

    def count(self) -> tuple[int, int]:
        """Number of evaluations of this version, and of other versions."""
        query = "SELECT count(*), ifnull(sum(version = ?), 0) FROM evaluations"
        [[total, ours]] = self._query(query, (self.version,))
        return ours, total - ours

    def to_dataset(self) -> xr.Dataset:
        """All evaluations, of all versions, as a labelled data set.

        Returns
        -------
        xarray.Dataset
            With the dimension ``evaluation``: the inputs of the forward model by name; its
            outputs, NaN where the evaluation failed; ``status`` (ok, failed, timeout, died),
            ``reason``, ``start`` (time), ``duration`` (seconds), ``worker``, ``version``,
            ``replicate`` and ``attempt``.
        """
        rows = self._query(f"SELECT {COLUMNS} FROM evaluations ORDER BY rowid")
        about = dict(self._query("SELECT name, value FROM about"))
        columns = list(zip(*rows, strict=True)) if rows else [()] * 10
        version, parameters, replicate, attempt, status, outputs, reason, start, took, worker = (
            columns
        )
        data: dict[str, Any] = {}
        if "signature" in about:
            described = json.loads(about["signature"])
            inputs, results = described["inputs"], described["outputs"]
            data |= _labelled(inputs["names"], inputs["shapes"], parameters)
            data |= _labelled(results["names"], results["shapes"], outputs, taken=set(data))
        started = np.array(start, dtype=float)
        data |= {
            "status": ("evaluation", np.array(status, dtype=str)),
            "reason": ("evaluation", np.array(reason, dtype=str)),
            "start": ("evaluation", (started * 1e9).astype("datetime64[ns]")),
            "duration": ("evaluation", np.array(took, dtype=float), {"units": "s"}),
            "worker": ("evaluation", np.array(worker, dtype=str)),
            "version": ("evaluation", np.array(version, dtype=str)),
            "replicate": ("evaluation", np.array(replicate, dtype=str)),
            "attempt": ("evaluation", np.array(attempt, dtype=np.int64)),
        }
        return xr.Dataset(data, attrs={"store": str(self.path)})


def open_store(path: str | PathLike) -> xr.Dataset:
    """Read an evaluation store.

    Parameters
    ----------
    path : path-like
        The file that was given to a forward model as ``store=``.

    Returns
    -------
    xarray.Dataset
        See `EvaluationStore.to_dataset`.

    Raises
    ------
    StoreError
        If there is no such file, or if it is damaged or something else.
    """
    if not isinstance(path, str | PathLike):
        raise TypeError(f"`path` has to be that of an evaluation store, not {path!r}.")
    if not Path(path).is_file():
        raise StoreError(f"There is no evaluation store {path}.")
    return EvaluationStore(path).to_dataset()


def _describe(signature: Signature) -> str:
    outputs = signature.outputs
    return json.dumps(
        {
            "inputs": {  # of which the points consist
                "names": [signature.names[i] for i in signature.varying],
                "shapes": [signature.shapes[i] for i in signature.varying],
            },
            "outputs": None
            if outputs is None
            else {"kind": outputs.kind, "names": outputs.names, "shapes": outputs.shapes},
        }
    )


def _digest_of(about: Mapping[str, str]) -> str:
    """Checksum of the description of a store."""
    text = json.dumps(sorted((name, value) for name, value in about.items() if name != "digest"))
    return blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _cut(text: str) -> str:
    """Message of limited length: where it began, and how it ended."""
    left_out = len(text) - REASON_CHARACTERS
    if left_out <= 0:
        return text
    half = REASON_CHARACTERS // 2
    return f"{text[:half]}\n[{left_out} characters left out]\n{text[-half:]}"


def _digest(key: bytes, columns: Iterable[Any]) -> bytes:
    """Checksum of a row."""
    state = blake2b(key, digest_size=16)
    for value in columns:
        data = value if isinstance(value, bytes) else repr(value).encode()
        state.update(len(data).to_bytes(8, "little") + data)
    return state.digest()


def _labelled(
    names: Sequence[str],
    shapes: Sequence[Sequence[int]],
    vectors: Sequence[bytes],
    taken: set[str] | frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Variables of a data set from flat vectors; empty ones become NaN."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    table = np.full((len(vectors), sum(sizes)), np.nan)
    for row, vector in zip(table, vectors, strict=True):
        if vector:
            row[:] = np.frombuffer(vector, "<f8")
    pieces = np.split(table, np.cumsum(sizes)[:-1], axis=1)
    variables = {}
    for name, shape, piece in zip(names, shapes, pieces, strict=True):
        label = f"{name}_output" if name in taken else name
        dims = ("evaluation", *(f"{label}_dim_{i}" for i in range(len(shape))))
        variables[label] = (dims, piece.reshape(len(table), *shape))
    return variables
