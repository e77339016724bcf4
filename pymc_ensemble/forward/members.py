"""What a worker does: call the user's function for some members of a batch.

Workers of foreign executors get this module by value, so it needs NumPy and the standard library
alone, and they need not have the package.
"""

import inspect
import os
import socket
import struct
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .containers import Form, build
from .numbers import FLOAT, numbers

FloatArray = NDArray[np.float64]
Shape = tuple[int, ...]
Seed = tuple[int, tuple[int, ...]]
"""Entropy and spawn key of a `numpy.random.SeedSequence`."""

STATUSES = ("ok", "failed", "timeout", "died")


ABANDONED = "abandoned forward model"  # name of threads whose call was given up


class ProgramFailed(RuntimeError):
    """An external program failed; its message says all that is to be said."""


class TimedOut(Exception):
    """A call took longer than it may."""


class Abandoned(TimedOut):
    """A call that took longer than it may, and goes on in a thread of this process."""


@dataclass(frozen=True)
class Outputs:
    """What a function returns: one array, a tuple of arrays, or a dict of arrays."""

    kind: Literal["array", "tuple", "dict"]
    names: tuple[str, ...]
    shapes: tuple[Shape, ...]

    @property
    def sizes(self) -> list[int]:
        """Number of entries of each array."""
        return [int(np.prod(shape)) for shape in self.shapes]

    @classmethod
    def of(cls, result: Any, batch: int | None = None) -> "Outputs":
        """Describe a result; of a whole batch of members, if their number is given."""
        parts: Sequence[Any]
        if isinstance(result, dict):
            kind, names, parts = "dict", tuple(map(str, result)), list(result.values())
        elif isinstance(result, tuple):
            kind, parts = "tuple", result
            names = tuple(f"output_{i}" for i in range(len(result)))
        else:
            kind, names, parts = "array", ("output",), [result]
        shapes = [numbers(part).shape for part in parts]
        if batch is not None:
            if any(shape[:1] != (batch,) for shape in shapes):
                raise ValueError(
                    f"the forward model returned outputs of shape {shapes[0]} for a batch of "
                    f"{batch} members, expected ({batch}, ...)"
                )
            shapes = [shape[1:] for shape in shapes]
        return cls(kind, names, tuple(shapes))  # type: ignore[arg-type]

    def parts(self, result: Any) -> Sequence[Any]:
        """Arrays in a result, in order."""
        if self.kind == "array":
            return (result,)
        if self.kind == "dict":
            if not isinstance(result, dict) or set(result) != set(self.names):
                found = list(result) if isinstance(result, dict) else type(result).__name__
                raise ValueError(
                    f"the forward model returned {found}, expected a dict with the keys "
                    f"{list(self.names)}"
                )
            return [result[name] for name in self.names]
        if not isinstance(result, tuple | list) or len(result) != len(self.shapes):
            raise ValueError(
                f"the forward model returned {type(result).__name__}, expected a tuple of "
                f"{len(self.shapes)} arrays"
            )
        return result


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a function, and how they lie in flat vectors.

    Attributes
    ----------
    names, shapes, dtypes : tuple
        The inputs.
    n_positional : int
        How many of them are passed by position.
    outputs : Outputs or None
        The outputs; None as long as they are not known.
    fixed : tuple of int
        Inputs that are the same for all points, and no part of them.
    forms : tuple of Form, optional
        How the arguments are made of the inputs, if they are not the inputs themselves;
        `names_of_arguments` are those of the arguments then.
    """

    names: tuple[str, ...]
    shapes: tuple[Shape, ...]
    dtypes: tuple[str, ...]
    n_positional: int
    outputs: Outputs | None
    fixed: tuple[int, ...] = ()
    forms: tuple[Form, ...] | None = None
    names_of_arguments: tuple[str, ...] = ()

    @property
    def varying(self) -> list[int]:
        """Inputs of which the points consist."""
        return [i for i in range(len(self.names)) if i not in self.fixed]

    @property
    def sizes(self) -> list[int]:
        """Number of entries of each input that varies."""
        return [int(np.prod(self.shapes[i])) for i in self.varying]

    @property
    def n_outputs(self) -> int:
        """Number of entries of all outputs together."""
        return 0 if self.outputs is None else sum(self.outputs.sizes)

    def split(self, points: FloatArray) -> list[np.ndarray]:
        """Inputs that vary, of shape (m, ...), from points of shape (m, d)."""
        varying = self.varying
        if len(varying) == 1 and self.shapes[varying[0]] and self.dtypes[varying[0]] == "float64":
            return [points.reshape(len(points), *self.shapes[varying[0]])]
        if not varying:
            return []
        pieces = np.split(points, np.cumsum(self.sizes)[:-1], axis=1)
        return [
            np.ascontiguousarray(piece.reshape(len(points), *self.shapes[i]), dtype=self.dtypes[i])
            for piece, i in zip(pieces, varying, strict=True)
        ]


@dataclass(frozen=True)
class Task:
    """A function with everything that a worker has to know to call it.

    Attributes
    ----------
    function : callable
        The user's function.
    signature : Signature
    vectorized : bool
        Whether the function takes many members at once.
    stochastic : {"", "seed", "rng"}
        Name of the argument for a seed or a generator.
    timeout : float or None
        Seconds after which a call is abandoned; None where someone else watches over it.
    record : callable or None
        Saves the outcome of members: called with their rows and an `Outcomes`, which it returns.
    fixed : tuple of ndarray
        Values of the inputs that are the same for all points.
    """

    function: Callable[..., Any]
    signature: Signature
    vectorized: bool = False
    stochastic: str = ""
    timeout: float | None = None
    record: Callable[[Sequence[Any], "Outcomes"], "Outcomes"] | None = None
    fixed: tuple[np.ndarray, ...] = ()

    def caller(self) -> Callable[..., Any]:
        """Function of positional arguments alone, which is given up after the time-out."""
        function, timeout = self.function, self.timeout
        n, names, forms = self.signature.n_positional, self.signature.names, self.signature.forms
        if forms is not None:
            names = self.signature.names_of_arguments
        names = (*names[n:], self.stochastic) if self.stochastic else names[n:]
        if names:

            def call(*arguments: Any) -> Any:
                keywords = dict(zip(names, arguments[n:], strict=True))
                return self.function(*arguments[:n], **keywords)

            function = call
        if forms is not None:
            of_arguments, n_inputs = function, len(self.signature.names)

            def of_inputs(*inputs: Any) -> Any:
                arguments = [build(form, inputs) for form in forms]
                return of_arguments(*arguments, *inputs[n_inputs:])

            function = of_inputs
        if timeout is None:
            return function
        return lambda *arguments: within(timeout, lambda: function(*arguments))

    def arguments(self, points: FloatArray, random: Sequence[Any] | None) -> Iterator[Any]:
        """Inputs at each of the points (m, d); batches of one if vectorized."""
        if self.vectorized:
            batch = self.batch(points, random)
            rows = range(len(points))
            return zip(*([values[i : i + 1] for i in rows] for values in batch), strict=True)
        columns: list[Any] = [*self.signature.split(points)]
        for i, value in zip(self.signature.fixed, self.fixed, strict=True):
            # each its own copy: the function may write into its arguments
            columns.insert(i, map(np.copy, repeat(value, len(points))))
        if random is not None:
            columns.append(random)
        return zip(*columns, strict=True)

    def batch(self, points: FloatArray, random: Sequence[Any] | None) -> list[Any]:
        """Inputs at all of the points (m, d), each with a leading dimension."""
        columns: list[Any] = [*self.signature.split(points)]
        for i, value in zip(self.signature.fixed, self.fixed, strict=True):
            columns.insert(i, np.repeat(value[None], len(points), axis=0))
        return columns if random is None else [*columns, random]

    def random(self, seed: Seed) -> Any:
        """What a stochastic function gets: a generator, or an integer."""
        sequence = np.random.SeedSequence(seed[0], spawn_key=seed[1])
        if self.stochastic == "rng":
            return np.random.default_rng(sequence)
        return int(sequence.generate_state(1, np.uint64)[0] >> 1)


@dataclass
class Outcomes:
    """What became of some members.

    Attributes
    ----------
    outputs : ndarray of shape (m, K)
        NaN in rows that failed.
    statuses : list of str
    reasons : dict of int to str
        Why rows failed.
    started : ndarray of shape (m,)
        Seconds since the epoch.
    seconds : ndarray of shape (m,)
    worker : str
    found : Outputs or None
        Description of the outputs, if it was not known before.
    """

    outputs: FloatArray
    statuses: list[str]
    reasons: dict[int, str] = field(default_factory=dict)
    started: FloatArray = field(default_factory=lambda: np.empty(0))
    seconds: FloatArray = field(default_factory=lambda: np.empty(0))
    worker: str = ""
    found: Outputs | None = None

    def __len__(self) -> int:
        return len(self.statuses)

    @property
    def complete(self) -> bool:
        """Whether no worker was lost."""
        return not self.reasons or not {"timeout", "died"} & set(self.statuses)

    def fail(self, row: int, status: str, reason: str) -> None:
        """Mark a row as failed."""
        self.outputs[row] = np.nan
        self.statuses[row] = status
        self.reasons[row] = reason

    def rows(self, start: int, stop: int) -> "Outcomes":
        """Some of the members."""
        reasons = {i - start: text for i, text in self.reasons.items() if start <= i < stop}
        some = slice(start, stop)
        return Outcomes(
            self.outputs[some],
            self.statuses[some],
            reasons,
            self.started[some],
            self.seconds[some],
            self.worker,
            self.found,
        )

    @classmethod
    def failure(cls, n_outputs: int, status: str, reason: str, seconds: float) -> "Outcomes":
        """A single member that failed without a word of its own."""
        return cls(
            np.full((1, n_outputs), np.nan),
            [status],
            {0: reason},
            np.array([time.time() - seconds]),
            np.array([seconds]),
            "",
        )


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
        One for each member, of a stochastic function.
    keys : sequence, optional
        What the members are called by ``task.record``.
    diary : str, optional
        File in which finished members are noted, for the case that this process dies.
    patience : float, optional
        Seconds after which no further member is begun.
    out : ndarray of shape (m, K), optional
        Where the outputs are put.

    Returns
    -------
    Outcomes
        Of the first members; of all, unless the patience ended or a call was given up that goes
        on in this process. Nothing is called beside that: if it has not ended after another
        time-out, the answer is of no member.
    """
    if task.timeout is not None and not _is_undisturbed(task.timeout):
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
    """Evaluate members; the outcomes as plain arrays, which any pickler takes back."""
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
            except BaseException as error:  # asyncio.CancelledError, SystemExit, the user's own
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
    """Evaluate all members in one call; None if it fails and they must be called one by one."""
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
    except BaseException:  # whatever it is, each member is called alone next, and tells its own
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


def wrong_shape(found: Shape, expected: Any) -> str:
    """Message for outputs of the wrong shape."""
    return f"the forward model returned outputs of shape {found}, expected {expected}"


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


def within(seconds: float, function: Callable[[], Any]) -> Any:
    """Call a function in a thread, which is left to itself if it takes too long."""
    done: list[tuple[bool, Any]] = []

    def target() -> None:
        try:
            done.append((True, function()))
        except BaseException as error:
            done.append((False, error))

    thread = threading.Thread(target=target, daemon=True, name="forward model")
    thread.start()
    thread.join(seconds)
    if not done:
        thread.name = ABANDONED
        raise Abandoned(
            f"It took more than timeout={seconds:g} s. It counts as lost, but it cannot be killed "
            "there and may go on; our own processes can be (executor='processes')."
        )
    good, value = done[0]
    if good:
        return value
    raise value


def _is_undisturbed(seconds: float) -> bool:
    """Whether no call that was given up goes on in this process; wait for it, but no longer."""
    deadline = time.monotonic() + seconds
    for thread in threading.enumerate():
        if thread.name == ABANDONED:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                return False
    return True


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
    """Read the members that were finished; None if the chunk was never begun."""
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


def random_argument(function: Callable[..., Any]) -> str:
    """Name of the argument by which a stochastic function takes its randomness."""
    names = inspect.signature(function).parameters
    for name in ("rng", "seed"):
        if name in names:
            return name
    raise TypeError(
        "A stochastic forward model takes its randomness as an argument: `rng`, a NumPy Generator, "
        "or `seed`, an integer. Add one of them to the function."
    )


def short_traceback(error: BaseException, frames: int = 3) -> str:
    """Format the innermost frames of an exception, its causes left out.

    Of a program that failed, the message is enough: the frames are those of this package.

    Parameters
    ----------
    error : BaseException
        The exception.
    frames : int, default 3
        How many frames to keep, counted from where the exception was raised.

    Returns
    -------
    str
    """
    if isinstance(error, ProgramFailed):
        text = str(error)
    else:
        stack = traceback.extract_tb(error.__traceback__)[-frames:]
        lines = ["Traceback (most recent call last):\n", *traceback.format_list(stack)]
        text = "".join([*lines, *traceback.format_exception_only(error)]).strip()
    return text.encode(errors="backslashreplace").decode()  # a store takes no lone surrogates
