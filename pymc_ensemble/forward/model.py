"""A Python function as a forward model inside a `pm.Model`."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pymc as pm
from numpy.typing import NDArray

from pymc_ensemble.forward.workers.backend import check_executor
from pymc_ensemble.forward.workers.chunks import ExecutorLike, check_timeout
from pymc_ensemble.samplers.options import require_flags

from .arguments import Arguments, check_arguments, is_symbolic, parameter_names
from .evaluator import watches_its_clock
from .finding import OutputFinder
from .op import ForwardOp
from .rounding import names_of_unknowns, rounding_of
from .rounds import Round
from .shapes import at_prior, described
from .tasks import Outputs, Signature, random_argument
from .versions import files_in, fingerprint

FloatArray = NDArray[np.float64]


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
    depends_on: Sequence[str | PathLike] = (),
) -> Any:
    """Turn a Python function into a forward model to be called inside a `pm.Model`.

    Called with random variables it gives PyTensor variables; called with numbers it calls the
    function. It has no gradient. A member that fails (raises, returns NaN or infinity or the wrong
    shape, takes too long, kills its worker) does not end the run: its outputs are NaN.

    Parameters
    ----------
    function : callable
        Takes numbers or arrays, by position or by name, also in dicts, lists, tuples, dataclasses
        and series of pandas; and returns an array or number, a tuple of them, or a dict of them.
    output_shape : tuple of int, list of tuples or dict of tuples, optional
        Shape of the output: ``(12,)``, or ``()`` for a number; of each output, as a list
        ``[(12,), ()]`` if the function returns a tuple, or as a dict ``{"heat": (12,)}`` if it
        returns a dict. Found by one call at a point of the prior by default.
    vectorized : bool, default False
        Whether the function takes whole batches: then every argument and every output has a
        leading dimension, one entry for each member. Where a batch raises, its members are called
        one by one, as batches of one. Return rows of NaN to avoid this.
    stochastic : bool, default False
        Whether the function is random. It then has an argument ``rng``, a NumPy Generator, or
        ``seed``, an integer (vectorized: a list or an array of them). They follow from the seed of
        the run and the number of the evaluation. So a run can be repeated, and a repeated point is
        a new replicate.
    executor : Executor, "threads", "processes" or int, optional
        Who calls the function: worker threads or processes of this package, so many processes, or
        any object with the interface of `concurrent.futures.Executor`: Python's pools, loky's,
        Dask's ``client.get_executor()``, `mpi4py.futures.MPIPoolExecutor`. By default the process
        that samples calls it. Workers get one batch a round. With worker processes, sample with
        ``pm.sample(cores=1)``.
    timeout : float, optional
        Seconds after which a call is given up, and its member has failed; no limit by default. The
        function then runs in worker processes of this package, which are killed and replaced: one
        process without an executor, as many as there would be threads with one. Process pools of
        others are built anew, and workers of Dask are restarted. Elsewhere a worker waits for such
        a call to end. If the call takes another time-out, the run ends with an error. External
        programs and UM-Bridge models watch their own clocks. A vectorized function has this long
        for a batch.
    retries : int, default 0
        How often a failed evaluation is tried again. Use it for failures that happen by chance.
    store : path-like, optional
        File in which every evaluation is saved, failures included, before it is used. A run that
        was killed takes them from there when it is started again with the same ``random_seed``. See
        `open_store`.
    version : str, optional
        Version of the model: evaluations in the store that were made with another are not used. By
        default it follows from all that the function depends on, as described in the notes.
    depends_on : sequence of path-like, optional
        Files that the function reads, whose content counts for what it depends on.

    Returns
    -------
    ForwardModel

    Raises
    ------
    TypeError, ValueError
        If an option is not what it should be.

    Notes
    -----
    A process remembers what it has evaluated, up to 256 MiB, and does not evaluate the same point
    again. A draw of this package's samplers may come back changed in its last digits, as it has
    been through the transform of its variable. It counts as the same point. So
    `pm.compute_log_likelihood`, `pm.sample_posterior_predictive` and a `pm.Deterministic` of the
    outputs cost nothing. In a run, a stochastic function is called again.

    When a run or a prediction begins, the package compares the function with what it was: its code
    and that of your own functions and classes that it uses, defaults, closures, the values of
    the global names and attributes that the code reads, however nested, the versions of installed
    packages, and the files in `depends_on`. If anything differs, earlier evaluations are not used,
    workers start anew, and a store keeps what follows as another version. What the function
    changes itself, such as a counter or a cache, does not count. Nor does the state of random
    number generators. The log names values that cannot be compared, such as locks and open files,
    once. A store then needs `version`.

    Inputs that do not depend on random variables reach the function as they are, NaN included, and
    are not stored with each point. A masked or missing output is NaN. A quantity with a unit is
    refused.

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
        "depends_on": depends_on,
    }
    if function is None:
        return functools.partial(forward_model, **options)
    return ForwardModel(function, **options)


class ForwardModel(OutputFinder):
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
        depends_on: Sequence[str | PathLike] = (),
    ):
        if not callable(function):
            raise TypeError(f"A forward model needs a function, not {function!r}.")
        check_executor(executor)
        require_flags(vectorized=vectorized, stochastic=stochastic)
        if output_shape is not None:
            described(output_shape)
        check_timeout(timeout)
        if not isinstance(store, str | PathLike | None):
            raise TypeError(f"store must be the path of a file, not {store!r}.")
        if store is not None and Path(store).is_dir():
            raise ValueError(
                f"store={str(store)!r} is a folder. Name a file in it: "
                f"store={str(Path(store) / 'evaluations.db')!r}."
            )
        if not isinstance(version, str | None):
            raise TypeError(f"version must be text, such as {str(version)!r}, not {version!r}.")
        if not isinstance(retries, int) or retries < 0:
            raise ValueError(f"retries must be an integer of at least 0, not {retries!r}.")
        files = files_in(depends_on)
        if timeout is not None and watches_its_clock(function):
            function = function.with_timeout(timeout)  # type: ignore[attr-defined]
        if store is not None and version is None:
            fingerprint(function, files)  # refuses the function at once if there is none
        super().__init__(
            function,
            vectorized=vectorized,
            random=random_argument(function) if stochastic else "",
            executor=executor,
            timeout=timeout,
            retries=retries,
            store=store,
            version=version,
            depends_on=files,
        )
        self._output_shape = output_shape
        functools.update_wrapper(self, function, updated=())

    @functools.cached_property
    def outputs(self) -> Outputs | None:
        """Outputs, if the user, or the function itself, has described them."""
        shape = self._output_shape
        if shape is None:  # a server is asked for its own only then
            shape = getattr(self.function, "output_shape", None)
        return None if shape is None else described(shape)

    def __repr__(self) -> str:
        return f"<forward model {self.name}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Put the forward model into a graph, or call the function with numbers."""
        values = [*args, *kwargs.values()]
        if not any(map(is_symbolic, values)):
            return self._call_with_numbers(args, kwargs)
        given = {**kwargs, self.random: None} if self.random else kwargs
        check_arguments(self.function, self.name, args, given)
        names = parameter_names(self.function, len(args), list(kwargs), self.random)
        arguments = Arguments.of(self.name, names, values, self.vectorized)
        inputs = arguments.inputs
        shapes = [variable.type.shape for variable in inputs]
        if any(None in shape for shape in shapes):
            shapes = [value.shape for value in at_prior(inputs, 0)]
        unknowns = [names_of_unknowns([variable]) for variable in inputs]
        signature = Signature(
            tuple(arguments.names),
            tuple(tuple(map(int, shape)) for shape in shapes),
            tuple(variable.type.dtype for variable in inputs),
            len(args),
            self.outputs,
            tuple(i for i, names_of_input in enumerate(unknowns) if not names_of_input),
        )
        if not arguments.plain:
            signature = replace(
                signature, forms=tuple(arguments.forms), names_of_arguments=tuple(names)
            )
        # if the length of data may change, so may that of the outputs
        fixed = [inputs[i].type.shape for i in signature.fixed]
        flexible = self.outputs is None and any(None in shape for shape in fixed)
        signature = self.with_known_outputs(signature, inputs)
        rounding = rounding_of([inputs[i] for i in signature.varying], signature.sizes)
        op = ForwardOp(self, signature, rounding, frozenset().union(*unknowns), flexible)
        results: Any = op(*inputs, return_list=True)
        outputs = signature.outputs
        assert outputs is not None
        if outputs.kind == "array":
            return results[0]
        if outputs.kind == "dict":
            return dict(zip(outputs.names, results, strict=True))
        return tuple(results)

    def _call_with_numbers(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        self._begin()
        self._runtime.n_evaluations += 1
        with self._calling(looked=True, here=True):
            result = self.function(*args, **kwargs)
        if is_symbolic(result):
            raise TypeError(
                f"{self.name} was called without variables of the model, but returned some: it "
                "takes them from outside of its arguments. Pass them as arguments, so that its "
                "evaluations can be counted and stored."
            )
        return result

    def likelihood_facts(self, model: pm.Model) -> tuple[str, dict[str, Any]] | None:
        """Observed variable whose likelihood is an estimate, and its facts, otherwise None."""
        return None

    def evaluate_flat(self, points: FloatArray, n_outputs: int, this: Round) -> FloatArray:
        """Evaluate points (n, d): each row is the only argument. Outputs have shape (n, K)."""
        names = tuple(parameter_names(self.function, 1, [], self.random))
        spec = Outputs("array", ("output",), ((n_outputs,),))
        signature = Signature(names, ((points.shape[1],),), ("float64",), 1, spec)
        if self.store is not None and (signature, "") not in self._runtime.sites:
            self.store.bind(signature)
        outputs, reasons = self.evaluate(signature, points, this)
        this.failures |= reasons
        this.n_models += 1
        return outputs
