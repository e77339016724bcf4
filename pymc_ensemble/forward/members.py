"""What a worker does: call the user's function for some members of a batch.

Workers of foreign executors get this module by value, so it uses only NumPy and the standard
library. The workers need not have the package.
"""

import os
import socket
import struct
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .calls import Abandoned, TimedOut, is_undisturbed, short_traceback
from .numbers import FLOAT, numbers
from .tasks import Outcomes, Outputs, Seed, Task, wrong_shape

FloatArray = NDArray[np.float64]
STATUSES = ("ok", "failed", "timeout", "died")


def evaluate(
    task: Task,
    points: FloatArray,
    seeds: Sequence[Seed] | None = None,
    keys: Sequence[Any] | None = None,
    diary: str | None = None,
    patience: float | None = None,
    out: FloatArray | None = None,
) -> Outcomes:
    """Call the function for some members.

    Parameters
    ----------
    task : Task
    points : ndarray of shape (m, d)
        Inputs of the members.
    seeds : sequence of Seed, optional
        One seed for each member, if the function is stochastic.
    keys : sequence, optional
        Keys of the members for ``task.record``.
    diary : str, optional
        File in which finished members are noted, in case this process dies.
    patience : float, optional
        Seconds after which no further member is begun.
    out : ndarray of shape (m, K), optional
        Array for the outputs.

    Returns
    -------
    Outcomes
        Outcomes of all members. Only of the first ones, if the patience ended, or if a call was
        given up that goes on in this process. Nothing else is called as long as it goes on. If it
        has not ended after another time-out, there are no outcomes.
    """
    if task.timeout is not None and not is_undisturbed(task.timeout):
        return _of_nobody(task)
    points = np.array(points)  # a copy: the function may write into its arguments
    random = None if seeds is None else [task.random(seed) for seed in seeds]
    if task.vectorized and len(points) > 1:
        try:
            outcomes = _together(task, points, random)
        except Abandoned:
            return _of_nobody(task)
        if outcomes is not None:
            return task.record(keys or [], outcomes) if task.record is not None else outcomes
    return _one_by_one(task, points, random, keys, diary, patience, out)


def evaluate_to_tuple(*arguments: Any) -> tuple[Any, ...]:
    """Evaluate members, and return plain arrays, which any pickler can send."""
    outcomes = evaluate(*arguments)
    found = outcomes.found
    return (
        outcomes.outputs,
        outcomes.statuses,
        outcomes.reasons,
        outcomes.started,
        outcomes.seconds,
        outcomes.worker,
        None if found is None else (found.kind, found.names, found.shapes),
    )


def _one_by_one(
    task: Task,
    points: FloatArray,
    random: Sequence[Any] | None,
    keys: Sequence[Any] | None,
    diary: str | None,
    patience: float | None,
    out: FloatArray | None,
) -> Outcomes:
    m = len(points)
    signature, spec = task.signature, task.signature.outputs
    outputs = np.empty((m, signature.n_outputs)) if out is None else out
    outcomes = Outcomes(outputs, ["ok"] * m, worker=worker_name(), found=spec)
    outcomes.started, outcomes.seconds = np.zeros(m), np.zeros(m)
    noted = None if diary is None else open(diary, "wb", buffering=0)  # noqa: PTH123, SIM115
    simple = spec is not None and spec.kind == "array" and not task.vectorized
    shape = spec.shapes[0] if spec is not None and simple else None
    is_vector = shape is not None and len(shape) == 1
    each_at_once = task.record is not None or noted is not None
    call = task.caller()
    clock = time.perf_counter
    offset = time.time() - clock()
    times = [clock()]
    begun, abandoned = times[0], False
    try:
        for i, arguments in enumerate(task.arguments(points, random)):
            if patience is not None and i and times[-1] - begun > patience:
                m = i
                break
            try:
                result = call(*arguments)
                if simple:
                    plain = type(result) is np.ndarray and result.dtype is FLOAT
                    row = result if plain else numbers(result)
                    if row.shape != shape:
                        raise ValueError(wrong_shape(row.shape, shape))
                    outputs[i] = row if is_vector else row.ravel()
                else:
                    if spec is None:
                        outcomes.found = spec = Outputs.of(result, 1 if task.vectorized else None)
                        outcomes.outputs = outputs = np.full((m, sum(spec.sizes)), np.nan)
                    outputs[i] = flat(spec, result, 1 if task.vectorized else None)[0]
            except KeyboardInterrupt:
                raise
            except TimedOut as error:
                outcomes.fail(i, "timeout", str(error))
                abandoned = isinstance(error, Abandoned)
            except BaseException as error:  # also asyncio.CancelledError, SystemExit, own classes
                outcomes.fail(i, "failed", short_traceback(error))
            times.append(clock())
            if each_at_once:
                outcomes.started[i] = offset + times[-2]
                outcomes.seconds[i] = times[-1] - times[-2]
                _save(task, outcomes, i, keys, noted)
                times[-1] = clock()
            if abandoned:
                m = i + 1
                break
    finally:
        if noted is not None:
            noted.close()
    if not each_at_once:
        outcomes.started = offset + np.array(times[:-1])
        outcomes.seconds = np.diff(times)
    settle(outcomes, 0, m)
    return outcomes if m == len(points) else outcomes.rows(0, m)


def _save(task: Task, outcomes: Outcomes, i: int, keys: Sequence[Any] | None, noted: Any) -> None:
    """Save one member, in the store and in the diary."""
    settle(outcomes, i, i + 1)
    if task.record is not None and keys is not None:
        kept = task.record(keys[i : i + 1], outcomes.rows(i, i + 1))
        if kept.statuses[0] == "ok":
            outcomes.outputs[i], outcomes.statuses[i] = kept.outputs[0], "ok"
            outcomes.reasons.pop(i, None)
        else:
            outcomes.fail(i, kept.statuses[0], kept.reasons[0])
    if noted is not None:
        note(noted, outcomes.rows(i, i + 1))


def _together(task: Task, points: FloatArray, random: Sequence[Any] | None) -> Outcomes | None:
    """Evaluate all members in one call. None if it fails; then they are called one by one."""
    m, spec = len(points), task.signature.outputs
    if random is not None and task.stochastic == "seed":
        random = np.array(random)  # type: ignore[assignment]
    started, begun = time.time(), time.perf_counter()
    try:
        result = task.caller()(*task.batch(points.copy(), random))
        spec = Outputs.of(result, m) if spec is None else spec
        outputs = flat(spec, result, m)
    except (KeyboardInterrupt, Abandoned):
        raise
    except BaseException:  # each member is called alone next, and raises its own error
        return None
    seconds = time.perf_counter() - begun
    outcomes = Outcomes(
        outputs,
        ["ok"] * m,
        {},
        np.full(m, started),
        np.full(m, seconds / m),
        worker_name(),
        spec,
    )
    settle(outcomes, 0, m)
    return outcomes


def _of_nobody(task: Task) -> Outcomes:
    return Outcomes(np.empty((0, task.signature.n_outputs)), [], worker=worker_name())


def settle(outcomes: Outcomes, start: int, stop: int) -> None:
    """Mark rows that are not finite as failed."""
    good = finite_rows(outcomes.outputs[start:stop])
    if good.all():
        return
    for i in (start + np.flatnonzero(~good)).tolist():
        if outcomes.statuses[i] == "ok":
            row = outcomes.outputs[i]
            bad = np.flatnonzero(~np.isfinite(row))
            outcomes.fail(
                i,
                "failed",
                f"{bad.size} of {len(row)} forward outputs are not finite, the first is "
                f"output {bad[0]}: {row[bad[0]]}",
            )


def finite_rows(outputs: FloatArray) -> NDArray[np.bool_]:
    """Whether the rows of outputs (n, K) are finite, without another array of that size."""
    n, K = outputs.shape
    step = max(1, 2**22 // max(K, 1))
    parts = [np.isfinite(outputs[i : i + step]).all(axis=1) for i in range(0, n, step)]
    return np.concatenate(parts) if parts else np.ones(0, dtype=bool)


def flat(spec: Outputs, result: Any, batch: int | None) -> FloatArray:
    """Outputs of shape (batch, K) in a result, whose shapes are checked."""
    lead = () if batch is None else (batch,)
    rows = []
    for part, shape in zip(spec.parts(result), spec.shapes, strict=True):
        array = numbers(part)
        if array.shape != lead + shape:
            raise ValueError(wrong_shape(array.shape, lead + shape))
        rows.append(array.reshape(batch or 1, -1))
    return np.concatenate(rows, axis=1) if len(rows) != 1 else np.array(rows[0])


HEADER = "<BddII"  # of an entry: status, start, duration, lengths of what follows


def note(file: Any, outcomes: Outcomes) -> None:
    """Append one member to a diary."""
    reason = outcomes.reasons.get(0, "").encode(errors="backslashreplace")
    outputs = outcomes.outputs[0].tobytes()
    status = STATUSES.index(outcomes.statuses[0])
    times = (outcomes.started[0], outcomes.seconds[0])
    header = struct.pack(HEADER, status, *times, len(outputs), len(reason))
    file.write(header + outputs + reason)


def read_diary(diary: str) -> list[Outcomes] | None:
    """Read the finished members. None if the chunk was never begun."""
    try:
        with open(diary, "rb") as file:  # noqa: PTH123
            data = file.read()
    except FileNotFoundError:
        return None
    finished, at, size = [], 0, struct.calcsize(HEADER)
    while at + size <= len(data):
        status, started, seconds, length, length_of_reason = struct.unpack_from(HEADER, data, at)
        at += size
        if at + length + length_of_reason > len(data):
            break
        outputs = np.frombuffer(data, np.float64, length // 8, at).copy()
        reason = data[at + length : at + length + length_of_reason].decode()
        reasons = {} if STATUSES[status] == "ok" else {0: reason}
        times = (np.array([started]), np.array([seconds]))
        finished.append(Outcomes(outputs[None], [STATUSES[status]], reasons, *times))
        at += length + length_of_reason
    return finished


def worker_name() -> str:
    """Host, process and thread."""
    thread = threading.current_thread()
    suffix = "" if thread is threading.main_thread() else f":{thread.name}"
    return f"{socket.gethostname()}:{os.getpid()}{suffix}"
