"""Data for workers and from workers: functions with their signatures, and outcomes.

This module goes to workers by value, as `members` does.
"""

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .calls import within
from .containers import Form, build
from .numbers import numbers

FloatArray = NDArray[np.float64]
Shape = tuple[int, ...]
Seed = tuple[int, tuple[int, ...]]
"""Entropy and spawn key of a `numpy.random.SeedSequence`."""


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
        """Describe a result. If `batch` is given, it is that of a batch of so many members."""
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
    """Inputs and outputs of a function, and their places in flat vectors.

    Attributes
    ----------
    names, shapes, dtypes : tuple
        The inputs.
    n_positional : int
        Number of inputs that are passed by position.
    outputs : Outputs or None
        The outputs. None as long as they are not known.
    fixed : tuple of int
        Inputs that are the same for all points, and are not part of a point.
    forms : tuple of Form, optional
        How the arguments are made from the inputs, if they are not the inputs themselves. Then
        `names_of_arguments` are the names of the arguments.
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
        """Indices of the inputs that make a point."""
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
    """A function with all that a worker needs to call it.

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
        Seconds after which a call is abandoned. None if the time-out is enforced elsewhere.
    record : callable or None
        Saves outcomes of members. It takes their rows and an `Outcomes`, which it returns.
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
        """Function with only positional arguments, which is given up after the time-out."""
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
        """Inputs at each of the points (m, d). If vectorized, they are batches of one."""
        if self.vectorized:
            batch = self.batch(points, random)
            rows = range(len(points))
            return zip(*([values[i : i + 1] for i in rows] for values in batch), strict=True)
        columns: list[Any] = [*self.signature.split(points)]
        for i, value in zip(self.signature.fixed, self.fixed, strict=True):
            # a copy for each call, as the function may write into its arguments
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
        """Generator or integer for a stochastic function."""
        sequence = np.random.SeedSequence(seed[0], spawn_key=seed[1])
        if self.stochastic == "rng":
            return np.random.default_rng(sequence)
        return int(sequence.generate_state(1, np.uint64)[0] >> 1)


@dataclass
class Outcomes:
    """Outcomes of some members.

    Attributes
    ----------
    outputs : ndarray of shape (m, K)
        Outputs, with NaN in rows that failed.
    statuses : list of str
    reasons : dict of int to str
        Reasons of failed rows.
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
        """A single failed member, with the reason that is given here."""
        return cls(
            np.full((1, n_outputs), np.nan),
            [status],
            {0: reason},
            np.array([time.time() - seconds]),
            np.array([seconds]),
            "",
        )


def wrong_shape(found: Shape, expected: Any) -> str:
    """Message for outputs of the wrong shape."""
    return f"the forward model returned outputs of shape {found}, expected {expected}"


def random_argument(function: Callable[..., Any]) -> str:
    """Name of the argument by which a stochastic function takes its randomness."""
    names = inspect.signature(function).parameters
    for name in ("rng", "seed"):
        if name in names:
            return name
    raise TypeError(
        "A stochastic forward model needs an argument for its randomness: `rng`, a NumPy "
        "Generator, or `seed`, an integer. Add one of them to the function."
    )
