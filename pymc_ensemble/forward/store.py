"""Evaluations on disk, with which a killed run goes on where it stopped."""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .database import COLUMNS, FORMAT, Database, StoreError, digest_of, digest_of_row
from .tasks import Outcomes, Outputs, Signature

FloatArray = NDArray[np.float64]
Key = tuple[bytes, str, int]
"""Parameters as bytes, replicate, and number of the attempt."""

AT_ONCE = 500  # rows per query
BOOKKEEPING = ("status", "reason", "start", "duration", "worker", "version", "replicate", "attempt")
REASON_CHARACTERS = 10_000  # most characters of a message that are kept, half from either end


class EvaluationStore(Database):
    """Finished evaluations of one forward model, in a file.

    Any number of threads and processes of one machine may use the file at the same time. (SQLite's
    locks cannot be relied upon on network file systems.)

    Parameters
    ----------
    path : path-like
        The file. It is created when it is needed first.
    version : str, default ""
        Version of the model. Evaluations of other versions are not touched.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> store = EvaluationStore(pathlib.Path(tempfile.mkdtemp()) / "runs.db")
    >>> len(store)
    0
    """

    def __len__(self) -> int:
        return self._query("SELECT count(*) FROM evaluations")[0][0]

    # -- what it is about -----------------------------------------------------------------------

    def bind(self, signature: Signature) -> None:
        """Bind the store to a model, or refuse the evaluations of another model.

        Parameters
        ----------
        signature : Signature
            Signature of the model, with known outputs.

        Raises
        ------
        StoreError
            If the store has evaluations of a function with other inputs or outputs, or if an input
            or output has a name that the store uses itself.
        """
        text = _describe(signature)
        if self._compare(signature, text) is None:
            digest = digest_of({"format": FORMAT, "signature": text})
            self._query(
                "INSERT OR IGNORE INTO about VALUES ('signature', ?), ('digest', ?)", (text, digest)
            )
            self._compare(signature, text)

    def outputs(self, signature: Signature) -> Outputs | None:
        """Outputs of the function, if the store knows them. Other inputs are refused."""
        return self._compare(signature, _describe(signature))

    def _compare(self, signature: Signature, text: str) -> Outputs | None:
        results = () if signature.outputs is None else signature.outputs.names
        if taken := [name for name in (*signature.names, *results) if name in BOOKKEEPING]:
            raise StoreError(
                f"`{taken[0]}` is the name of an input or output of the forward model, but an "
                f"evaluation store uses this name itself: {', '.join(BOOKKEEPING)}. Rename it, "
                f"for example to `{taken[0]}_`."
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
                f"are {theirs['inputs']} and its outputs {outputs}. Here they are "
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
            Keys of the points.
        outcomes : Outcomes
            Outcomes of the evaluations.

        Returns
        -------
        Outcomes
            Outcomes on disk. Those that another process saved earlier take precedence.
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
            rows.append([name, *row, digest_of_row(name, row)])
        try:
            new = self._insert(rows)
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"An evaluation could not be saved in {self.path}: {error}. Check that the disk "
                "has space and the file can be written."
            ) from error
        if new < len(rows):
            for i, stored in self.get(keys, outcomes.outputs.shape[1]):
                outcomes.outputs[i], outcomes.statuses[i] = stored.outputs[0], stored.statuses[0]
                outcomes.reasons.pop(i, None)
                if stored.reasons:
                    outcomes.reasons[i] = stored.reasons[0]
        return outcomes

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
            Index of the key.
        outcome : Outcomes
            Outcome of this point.
        """
        names = {self._key(key): i for i, key in enumerate(keys)}
        everything = list(names)
        for first in range(0, len(everything), AT_ONCE):
            some = everything[first : first + AT_ONCE]
            marks = ", ".join("?" * len(some))
            query = f"SELECT key, {COLUMNS}, digest FROM evaluations WHERE key IN ({marks})"
            for name, *columns, digest in self._query(query, some):
                if digest != digest_of_row(name, columns):
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
            outputs, which are NaN if the evaluation failed; ``status`` (ok, failed, timeout, died),
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
        All evaluations, as `EvaluationStore.to_dataset` describes them.

    Raises
    ------
    StoreError
        If there is no such file, if it is damaged, or if it is not an evaluation store.
    TypeError
        If `path` is not a path.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import pytensor.tensor as pt
    >>> import pymc_ensemble as pe
    >>> path = f"{tempfile.mkdtemp()}/runs.db"
    >>> @pe.forward_model(store=path, output_shape=(3,))
    ... def simulate(rate):
    ...     return np.exp(-rate * np.arange(3))
    >>> rate = pt.dscalar("rate")
    >>> simulate(rate).eval({rate: 0.5}).round(2)
    array([1.  , 0.61, 0.37])
    >>> pe.open_store(path)["rate"].values
    array([0.5])
    """
    if not isinstance(path, str | PathLike):
        raise TypeError(f"`path` must be the path of an evaluation store, not {path!r}.")
    if not Path(path).is_file():
        raise StoreError(f"There is no evaluation store {path}. Check the path.")
    return EvaluationStore(path).to_dataset()


def _describe(signature: Signature) -> str:
    outputs = signature.outputs
    return json.dumps(
        {
            "inputs": {  # together they make a point
                "names": [signature.names[i] for i in signature.varying],
                "shapes": [signature.shapes[i] for i in signature.varying],
            },
            "outputs": None
            if outputs is None
            else {"kind": outputs.kind, "names": outputs.names, "shapes": outputs.shapes},
        }
    )


def _cut(text: str) -> str:
    """Message of limited length: its beginning and its end."""
    left_out = len(text) - REASON_CHARACTERS
    if left_out <= 0:
        return text
    half = REASON_CHARACTERS // 2
    return f"{text[:half]}\n[{left_out} characters left out]\n{text[-half:]}"


def _labelled(
    names: Sequence[str],
    shapes: Sequence[Sequence[int]],
    vectors: Sequence[bytes],
    taken: set[str] | frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Variables of a data set from flat vectors. Empty vectors become NaN."""
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
