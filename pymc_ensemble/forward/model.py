"""A Python function as a forward model inside a `pm.Model`."""

import functools
import inspect
import logging
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from os import PathLike
from typing import Any
from uuid import uuid4

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from numpy.typing import NDArray
from pytensor.graph.basic import Variable

from pymc_ensemble.forward.workers.backend import Recipe, backend, check_executor
from pymc_ensemble.forward.workers.chunks import Backend, Chunk, ExecutorLike
from pymc_ensemble.samplers.options import require_flags

from .batch import Batch, _bytes
from .members import Outcomes, Outputs, Seed, Signature, Task, random_argument
from .memory import Memory, Spill
from .op import ForwardOp
from .programs import ExternalProgram
from .rounds import Round
from .runtime import Runtime, _forget, _in_chain_process, _runtimes
from .store import EvaluationStore, Key
from .versions import fingerprint

FloatArray = NDArray[np.float64]
logger = logging.getLogger("pymc_ensemble")

TRIALS = 5  # points of the prior at which the shape of the outputs is looked for
UNSEEDED = 0x5EED  # entropy of stochastic evaluations outside of a run

"""Draws of a point of the prior come from this seed, too."""


def forward_model(
    function: Callable[..., Any] | None = None,
    /,
    *,
    output_shape: Any = None,
    vectorized: bool = False,
    stochastic: bool = False,
    executor: ExecutorLike = None,
    timeout: float | None = None,
    retries: int = 0,
    store: str | PathLike | None = None,
    version: str | None = None,
) -> Any:
    """Turn a Python function into a forward model to be called inside a `pm.Model`.

    Called with random variables it gives PyTensor variables; called with numbers it calls the
    function. It has no gradient. A member that fails (raises, returns NaN or infinity or the wrong
    shape, takes too long, kills its worker) does not end the run: its outputs are NaN.

    Parameters
    ----------
    function : callable
        Takes numbers or arrays, by position or by name, and returns an array or number, a tuple of
        them, or a dict of them.
    output_shape : tuple of int, list of tuples or dict of tuples, optional
        Shape of the output: ``(12,)``, or ``()`` for a number; of each output, as a list
        ``[(12,), ()]`` if the function returns a tuple, or as a dict ``{"heat": (12,)}`` if it
        returns a dict. Found by one call at a point of the prior by default.
    vectorized : bool, default False
        Whether the function takes whole batches: then every argument and every output has a
        leading dimension, one entry for each member. Where a batch raises, its members are called
        one by one, as batches of one; return rows of NaN to spare that.
    stochastic : bool, default False
        Whether the function is random. It then has an argument ``rng``, a NumPy Generator, or
        ``seed``, an integer (vectorized: a list or an array of them). They follow from the seed of
        the run and the number of the evaluation, so that a run can be repeated, and a repeated
        point is a new replicate.
    executor : Executor, "threads", "processes" or int, optional
        Who calls the function: worker threads or processes of our own, so many processes, or any
        object with the interface of `concurrent.futures.Executor`: Python's pools, loky's, Dask's
        ``client.get_executor()``, `mpi4py.futures.MPIPoolExecutor`. By default the process that
        samples. Workers get one batch a round.
    timeout : float, optional
        Seconds after which a call is given up. Our own processes and external programs are killed
        and replaced; anything else counts as lost but may go on in its thread. A vectorized
        function has this long for a batch.
    retries : int, default 0
        How often a failed evaluation is tried again; for failures that are a matter of luck.
    store : path-like, optional
        File in which every evaluation is saved, failures included, before it is used. A run that
        was killed and is started again with the same seed takes them from there. See `open_store`.
    version : str, optional
        Version of the model: evaluations in the store that were made with another are not used. By
        default it follows from the source of the function, the defaults and numbers that it uses,
        and the functions of the same module that it calls.

    Returns
    -------
    ForwardModel

    Raises
    ------
    TypeError, ValueError
        If an option is not what it should be.

    Notes
    -----
    A process remembers what it has evaluated, up to 256 MiB. The same point is not evaluated again,
    also if it comes back changed in its last digits, as draws do that have been through a
    transform: `pm.compute_log_likelihood`, `pm.sample_posterior_predictive` and a
    `pm.Deterministic` of the outputs cost nothing. In a run a stochastic function is called anew.

    Examples
    --------
    >>> import numpy as np, pymc as pm, pymc_ensemble as pe
    >>> @pe.forward_model
    ... def decay(amplitude, rate):
    ...     return amplitude * np.exp(-rate * np.arange(5.0))
    >>> with pm.Model():
    ...     amplitude = pm.LogNormal("amplitude")
    ...     rate = pm.LogNormal("rate")
    ...     mu = decay(amplitude, rate)
    ...     y = pm.Normal("y", mu, 0.1, observed=[1.0, 0.4, 0.1, 0.1, 0.0])
    >>> mu.type.shape
    (5,)
    """
    options = {
        "output_shape": output_shape,
        "vectorized": vectorized,
        "stochastic": stochastic,
        "executor": executor,
        "timeout": timeout,
        "retries": retries,
        "store": store,
        "version": version,
    }
    if function is None:
        return functools.partial(forward_model, **options)
    return ForwardModel(function, **options)


class ForwardModel:
    """A Python function as a forward model; see `forward_model`."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        output_shape: Any = None,
        vectorized: bool = False,
        stochastic: bool = False,
        executor: ExecutorLike = None,
        timeout: float | None = None,
        retries: int = 0,
        store: str | PathLike | None = None,
        version: str | None = None,
    ):
        if not callable(function):
            raise TypeError(f"A forward model needs a function, not {function!r}.")
        check_executor(executor)
        require_flags(vectorized=vectorized, stochastic=stochastic)
        if output_shape is not None:
            _described(output_shape)
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout must be a positive number of seconds, not {timeout!r}.")
        if not isinstance(store, str | PathLike | None):
            raise TypeError(f"store must be the path of a file, not {store!r}.")
        if not isinstance(retries, int) or retries < 0:
            raise ValueError(f"retries must be an integer of at least 0, not {retries!r}.")
        if isinstance(function, ExternalProgram) and timeout is not None:
            function = function.with_timeout(timeout)
        self.function = function
        self._output_shape = output_shape
        self.vectorized = vectorized
        self.random = random_argument(function) if stochastic else ""
        self.executor = executor
        self.timeout, self.retries = timeout, retries
        self.store_path = store
        self._version = version
        if store is not None and version is None:
            fingerprint(function)  # refused at once where there is none
        self._token, self._pid = uuid4().hex, os.getpid()
        self._spill = Spill(f"pymc_ensemble-{self._token}")
        weakref.finalize(self, _forget, self._token, os.getpid(), self._spill.folder)
        functools.update_wrapper(self, function, updated=())

    @functools.cached_property
    def outputs(self) -> Outputs | None:
        """Outputs, as far as the user, or the function itself, has described them."""
        shape = self._output_shape
        if shape is None:
            shape = getattr(self.function, "output_shape", None)
        return None if shape is None else _described(shape)

    def __repr__(self) -> str:
        return f"<forward model {self.name}>"

    @property
    def name(self) -> str:
        """Name of the function."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    def __getstate__(self) -> dict[str, Any]:
        # a copy elsewhere is of the same version, whatever becomes of the function on the way
        return self.__dict__ | {"executor": Recipe.of(self.executor), "version": self.version}

    @functools.cached_property
    def version(self) -> str:
        """Version of the model, told when it is first used: all that it refers to is there then."""
        if self._version is not None or self.store_path is None:
            return str(self._version or "")
        return fingerprint(self.function)

    @property
    def _runtime(self) -> Runtime:
        """What this process has for the model."""
        runtime = _runtimes.get(self._token)
        if runtime is not None and runtime.pid == os.getpid():
            return runtime
        inherited, runtime = runtime, Runtime()
        executor: Any = self.executor
        if self._pid != os.getpid() and not isinstance(executor, Recipe):
            executor = Recipe.of(executor)  # workers of another process are not ours
        runtime.executor = executor.make() if isinstance(executor, Recipe) else executor
        if self.store_path is not None:
            runtime.store = EvaluationStore(self.store_path, self.version)
        if inherited is not None:  # by a fork
            runtime.inherited = inherited
            runtime.memories, runtime.store = inherited.memories, inherited.store
            runtime.n_evaluations, runtime.seconds = inherited.n_evaluations, inherited.seconds
        _runtimes[self._token] = runtime
        return runtime

    @property
    def n_evaluations(self) -> int:
        """Evaluations that this process has asked for, those that were already known left out."""
        return self._runtime.n_evaluations

    @property
    def store(self) -> EvaluationStore | None:
        """Evaluations on disk, if there is a store."""
        return self._runtime.store

    def close(self) -> None:
        """Stop the workers that were started for this model; they start again when needed."""
        self._runtime.close()

    # -- in a model -----------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Put the forward model into a graph, or call the function with numbers."""
        values = [*args, *kwargs.values()]
        if not any(_is_symbolic(value) for value in values):
            self._runtime.n_evaluations += 1
            return self.function(*args, **kwargs)
        self._check_arguments(args, kwargs)
        names = self._input_names(len(args), list(kwargs))
        inputs = [self._as_input(name, value) for name, value in zip(names, values, strict=True)]
        shapes = [variable.type.shape for variable in inputs]
        if any(None in shape for shape in shapes):
            drawn = _at_prior(inputs, 0)
            shapes = [value.shape for value in drawn]
        signature = Signature(
            tuple(names),
            tuple(tuple(map(int, shape)) for shape in shapes),
            tuple(variable.type.dtype for variable in inputs),
            len(args),
            self.outputs,
        )
        store = self._runtime.store
        if store is not None:
            known = store.outputs(signature)
            if signature.outputs is None:
                signature = _with_outputs(signature, known)
        if signature.outputs is None:
            found = self._runtime.found
            if signature not in found:
                found[signature] = self._find_outputs(signature, inputs)
            signature = found[signature]
        if store is not None:
            store.bind(signature)
        results: Any = ForwardOp(self, signature)(*inputs, return_list=True)
        outputs = signature.outputs
        assert outputs is not None
        if outputs.kind == "array":
            return results[0]
        if outputs.kind == "dict":
            return dict(zip(outputs.names, results, strict=True))
        return tuple(results)

    def _check_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Refuse arguments that the function does not take, as every evaluation would fail."""
        try:
            signature = inspect.signature(self.function)
        except (TypeError, ValueError):
            return
        given = {**kwargs, self.random: None} if self.random else kwargs
        try:
            signature.bind(*args, **given)
        except TypeError as error:
            raise TypeError(
                f"{self.name}{signature} cannot be called with these arguments: {error}."
            ) from None

    def _input_names(self, n_positional: int, keywords: Sequence[str]) -> list[str]:
        try:
            parameters = inspect.signature(self.function).parameters.values()
        except (TypeError, ValueError):
            parameters = []  # type: ignore[assignment]
        by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        names = [p.name for p in parameters if p.kind in by_position]
        names = [name for name in names if name != self.random]
        names += [f"input_{i}" for i in range(len(names), n_positional)]
        return [*names[:n_positional], *keywords]

    def _as_input(self, name: str, value: Any) -> Any:
        try:
            variable = pt.as_tensor(value if _is_symbolic(value) else np.asarray(value))
        except (TypeError, ValueError, NotImplementedError) as error:
            raise TypeError(
                f"The argument `{name}` of {self.name} is {value!r:.100}, which is no number, "
                "array or PyTensor variable. Fix it with functools.partial, and wrap the result."
            ) from error
        if variable.type.dtype.startswith("complex"):
            raise TypeError(f"The argument `{name}` of {self.name} is complex.")
        return variable.astype("float64") if variable.type.dtype == "float32" else variable

    def _find_outputs(self, signature: Signature, inputs: Sequence[Variable]) -> Signature:
        """Call the function at points of the prior until it works at one."""
        reason = ""
        for number in range(TRIALS):
            values = _at_prior(inputs, number)
            point = np.concatenate([np.ravel(value) for value in values]).astype(float)
            [(outcomes, key)] = self._attempt(signature, point[None], number)
            if outcomes.found is not None and outcomes.statuses[0] == "ok":
                signature = _with_outputs(signature, outcomes.found)
                if self._runtime.store is not None:
                    self._runtime.store.bind(signature)
                    self._runtime.store.put([key], outcomes)
                self._memory(signature).add([key[0]], point[None], outcomes.outputs)
                return signature
            reason = f"{self._at(signature, point)}\n{outcomes.reasons.get(0, '')}"
        raise ValueError(
            f"The shape of the outputs of {self.name} could not be found: it failed at {TRIALS} "
            "points of the prior. Give `output_shape`, or a prior that stays where it works. The "
            f"last failure was at {reason}"
        )

    def _attempt(
        self, signature: Signature, point: FloatArray, number: int
    ) -> list[tuple[Outcomes, Key]]:
        """Evaluate a single point without knowing its outputs, where members are evaluated."""
        task = Task(self.function, signature, self.vectorized, self.random)
        key = (_bytes(point)[0], f"trial {number}" if self.random else "", 0)
        seeds: list[Seed] | None = [(UNSEEDED, (number,))] if self.random else None
        workers = backend(self._executor_for_trial(), task, self._timeout)
        try:
            found = list(workers.run(Chunk(np.zeros(1, dtype=int), point, seeds, None), None))
        finally:
            workers.close()
        self._runtime.n_evaluations += 1
        return [(outcomes, key) for _, outcomes in found]

    def _executor_for_trial(self) -> ExecutorLike:
        executor = self._runtime.executor
        own = executor == "processes" or isinstance(executor, int)
        return 1 if own else executor

    @property
    def _timeout(self) -> float | None:
        """Seconds to wait for a function that does not watch its own clock."""
        return None if isinstance(self.function, ExternalProgram) else self.timeout

    # -- evaluating -----------------------------------------------------------------------------

    def _memory(self, signature: Signature) -> Memory:
        return self._runtime.memories.setdefault(signature, Memory())

    def _backend(self, signature: Signature) -> Backend:
        runtime = self._runtime
        if signature not in runtime.backends:
            record = None if runtime.store is None else runtime.store.put
            task = Task(self.function, signature, self.vectorized, self.random, record=record)
            if runtime.store is not None:
                self._tell_of(runtime.store)  # and check it here, not in every worker
            runtime.backends[signature] = backend(runtime.executor, task, self._timeout)
        return runtime.backends[signature]

    def evaluate(
        self, signature: Signature, points: FloatArray, this: Round | None = None
    ) -> tuple[FloatArray, dict[int, str]]:
        """Evaluate points, in one batch.

        Parameters
        ----------
        signature : Signature
        points : ndarray of shape (n, d)
            Inputs, one flat vector for each point.
        this : Round, optional
            The round that the batch belongs to. Without one, points that were evaluated before
            are recognized up to rounding, and a stochastic function is called once for a point.

        Returns
        -------
        outputs : ndarray of shape (n, K)
            NaN in the rows that failed.
        failures : dict of int to str
            Why they did.
        """
        self._backend(signature)  # what cannot be used is refused before anything is evaluated
        keys = _bytes(points)
        seeds, replicates = self._randomness(keys, this)
        outputs = np.empty((len(points), signature.n_outputs))
        batch = Batch(signature, points, keys, seeds, replicates, outputs)
        new = bool(self.random) and this is not None  # a replicate, whatever is known
        rows = batch.finite_rows()
        repeated: dict[int, int] = {}
        if not new:
            rows, repeated = batch.unique_rows(rows)
            rows = self._recall(batch, rows, exact=this is not None)
        todo = rows
        for attempt in range(self.retries + 1):
            if len(todo):
                self._evaluate(batch, todo, attempt, this)
                todo = [i for i in todo if i in batch.reasons] if batch.reasons else []
        self._remember(batch, rows)
        for i, original in repeated.items():
            batch.fill(i, outputs[original], batch.reasons.get(original))
        if batch.reasons and this is None:
            self._warn_once(batch)
        return outputs, batch.reasons

    def _remember(self, batch: "Batch", rows: Sequence[int]) -> None:
        """Keep evaluations for later, and for other processes."""
        keys, points, outputs = batch.keys, batch.points, batch.outputs
        rows = [i for i in rows if i not in batch.reasons] if batch.reasons else rows
        if len(rows) < len(keys):
            keys, points, outputs = [keys[i] for i in rows], points[rows], outputs[rows]
        self._memory(batch.signature).add(keys, points, outputs)
        if keys and _in_chain_process():
            self._spill.write(points, outputs)

    def _randomness(
        self, keys: Sequence[bytes], this: Round | None
    ) -> tuple[list[Seed] | None, list[str]]:
        """Seeds of the members, and the names of their replicates."""
        if not self.random:
            return None, [""] * len(keys)
        seeds: list[Seed] = []
        if this is not None and this.seed is not None:
            entropy, lead = this.seed.entropy, tuple(this.seed.spawn_key)
            seeds = [(entropy, (*lead, this.n_models, i)) for i in range(len(keys))]  # type: ignore[misc]
        else:
            counts = self._runtime.replicates
            for key in keys:
                replicate = counts.get(key, 0)
                counts[key] = replicate + (this is not None)
                entropy = int.from_bytes(blake2b(key, digest_size=16).digest(), "little")
                seeds.append((entropy, (UNSEEDED, replicate)))
        names = [f"{entropy}/{'.'.join(map(str, spawn))}" for entropy, spawn in seeds]
        return seeds, names

    def _recall(self, batch: "Batch", rows: Sequence[int], exact: bool) -> Sequence[int]:
        """Fill in what is remembered, and return the rows that are not."""
        memory = self._memory(batch.signature)
        if memory.knows_any(batch.keys):
            rows = [i for i in rows if not batch.recall(i, memory.exact(batch.keys[i]))]
        if exact or not rows:
            return rows
        self._learn_from_others(batch.signature, memory)
        return [i for i in rows if not batch.recall(i, memory.near(batch.points[i]))]

    def _learn_from_others(self, signature: Signature, memory: Memory) -> None:
        """Remember what other processes have evaluated: chains of PyMC, and earlier runs."""
        for points, outputs in self._spill.read():
            if points.shape[1] != sum(signature.sizes) or outputs.shape[1] != signature.n_outputs:
                continue
            memory.add(_bytes(points), points, outputs)
        runtime = self._runtime
        if runtime.store is None:
            return
        runtime.stored_rows, names = runtime.store.keys_after(runtime.stored_rows)
        size = 8 * (signature.n_outputs + sum(signature.sizes)) + 200
        names = [name for name in names if memory.exact(name[0]) is None]
        names = names[-(memory.max_bytes // size) :]
        for i, outcome in runtime.store.get(names, signature.n_outputs):
            key = names[i][0]
            if outcome.statuses[0] == "ok":
                memory.add([key], np.frombuffer(key)[None], outcome.outputs)

    def _evaluate(
        self, batch: "Batch", rows: Sequence[int], attempt: int, this: Round | None
    ) -> None:
        """Fill in outputs and reasons, from the store or by calls of the function."""
        runtime, workers = self._runtime, self._backend(batch.signature)
        keys: list[Key] | None = None
        if runtime.store is not None:
            keys = [(batch.keys[i], batch.replicates[i], attempt) for i in rows]
            found = dict(runtime.store.get(keys, batch.signature.n_outputs))
            for j, outcome in found.items():
                batch.fill(rows[j], outcome.outputs[0], outcome.reasons.get(0))
            keys = [key for j, key in enumerate(keys) if j not in found]
            rows = [i for j, i in enumerate(rows) if j not in found]
        if not rows:
            return
        for part, outcomes in workers.run(batch.chunk(rows, keys, attempt), runtime.seconds):
            if runtime.store is not None and not (workers.saves and outcomes.complete):
                assert part.keys is not None
                outcomes = runtime.store.put(part.keys, outcomes)
            batch.take(part.rows, outcomes)
            self._warn_of_lost(outcomes)
            seconds, n = float(outcomes.seconds.sum()), len(part)
            runtime.count(n, seconds)
            if this is not None:
                this.n_calls += n
                this.seconds += seconds

    def _tell_of(self, store: EvaluationStore) -> None:
        ours, others = store.count()
        if ours:
            logger.info(f"{ours} evaluations of {self.name} are known from {store.path}.")
        elif others:
            logger.warning(
                f"The {others} evaluations of {self.name} in {store.path} are of other versions of "
                f"the model, and are not used. This is version {self.version!r}."
            )

    def _warn_of_lost(self, outcomes: Outcomes) -> None:
        """Tell, once, of members that took too long or killed their worker."""
        for row, reason in outcomes.reasons.items():
            status = outcomes.statuses[row]
            if status in ("timeout", "died") and status not in self._runtime.warned:
                self._runtime.warned.add(status)
                logger.warning(f"An evaluation of {self.name} was lost. {reason}")

    def _warn_once(self, batch: "Batch") -> None:
        """Tell of the first failure that no sampler reports."""
        if "failure" in self._runtime.warned:
            return
        self._runtime.warned.add("failure")
        row = min(batch.reasons)
        logger.warning(
            f"The forward model {self.name} failed, and gives NaN, at "
            f"{self._at(batch.signature, batch.points[row])}\n{batch.reasons[row]}\n"
            "Later failures are not told."
        )

    def _at(self, signature: Signature, point: FloatArray) -> str:
        """Inputs by name."""
        with np.printoptions(precision=4, threshold=20):
            values = zip(signature.names, signature.split(point[None]), strict=True)
            return ", ".join(f"{name}={value[0]}" for name, value in values)

    def evaluate_flat(self, points: FloatArray, n_outputs: int, this: Round) -> FloatArray:
        """Evaluate points of shape (n, d), each the only argument: outputs of shape (n, K)."""
        names = tuple(self._input_names(1, []))
        spec = Outputs("array", ("output",), ((n_outputs,),))
        signature = Signature(names, ((points.shape[1],),), ("float64",), 1, spec)
        if self._runtime.store is not None and signature not in self._runtime.memories:
            self._runtime.store.bind(signature)
        outputs, reasons = self.evaluate(signature, points, this)
        this.failures |= reasons
        this.n_models += 1
        return outputs


def _is_symbolic(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_is_symbolic(entry) for entry in value)
    return isinstance(value, Variable)


def _with_outputs(signature: Signature, outputs: Outputs | None) -> Signature:
    return Signature(
        signature.names, signature.shapes, signature.dtypes, signature.n_positional, outputs
    )


def _described(output_shape: Any) -> Outputs:
    """Outputs by what the user says of their shapes."""

    def shape(value: Any) -> tuple[int, ...]:
        sizes = value if isinstance(value, tuple) else (value,)
        if all(isinstance(k, int | np.integer) for k in sizes):
            if min(sizes, default=0) < 0:
                raise ValueError(f"output_shape={output_shape!r} has a negative length.")
            return tuple(int(k) for k in sizes)
        raise TypeError(
            f"output_shape={output_shape!r} must be a tuple of integers, or a list or dict of such "
            "tuples if the function returns several arrays."
        )

    if isinstance(output_shape, Mapping):
        return Outputs(
            "dict", tuple(map(str, output_shape)), tuple(map(shape, output_shape.values()))
        )
    if isinstance(output_shape, list) or (
        isinstance(output_shape, tuple) and any(isinstance(s, tuple) for s in output_shape)
    ):
        names = tuple(f"output_{i}" for i in range(len(output_shape)))
        return Outputs("tuple", names, tuple(map(shape, output_shape)))
    return Outputs("array", ("output",), (shape(output_shape),))


def _at_prior(inputs: Sequence[Variable], seed: int) -> list[np.ndarray]:
    """Values of variables at a point of the prior or, if it cannot be drawn from, the start."""
    try:
        values = pm.draw(list(inputs), random_seed=UNSEEDED + seed, mode="FAST_COMPILE")
    except Exception as error:
        model = pm.modelcontext(None) if pm.Model.get_context(error_if_none=False) else None
        if model is None or seed:
            raise ValueError(
                "The inputs of the forward model cannot be drawn from the prior, so its outputs "
                "have to be described: give `output_shape`, and inputs of known shapes. "
                f"({error})"
            ) from error
        in_values = model.replace_rvs_by_values(list(inputs))
        at = model.compile_fn(
            in_values, inputs=model.value_vars, mode="FAST_COMPILE", on_unused_input="ignore"
        )
        values = at(model.initial_point())
    return [np.asarray(value) for value in values]
