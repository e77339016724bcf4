"""Training of a model on batches of data by an ensemble."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import pymc as pm
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from pymc_ensemble.log import ProgressLog, show_log
from pymc_ensemble.problem.checks import given_generator, given_model
from pymc_ensemble.problem.driver import Account, Driver
from pymc_ensemble.problem.inverse_problem import InverseProblem
from pymc_ensemble.problem.points import free_values, layout_of, points_of
from pymc_ensemble.samplers.kalman.training import Spread, Training, TrainingState
from pymc_ensemble.samplers.options import require_counts, require_flags
from pymc_ensemble.samplers.words import number

__all__ = ["TrainedEnsemble", "train"]

Batch = Mapping[str, ArrayLike]
Batches = Iterable[Batch] | Callable[[np.random.Generator], Batch]
Point = dict[str, np.ndarray]


@dataclass(frozen=True)
class TrainedEnsemble:
    """An ensemble after its training.

    Attributes
    ----------
    mean : dict of str to ndarray
        Trained values: the free variables of the model at the mean particle.
    particles : ndarray of shape (J, d)
        All particles, in unconstrained coordinates.
    history : xarray.Dataset
        By ``epoch``: ``loss``, the mean over particles and batches; ``validation``, if there was
        one; ``spread``, the standard deviation of the particles in units of the prior's;
        ``n_evals`` and ``n_failed``, forward evaluations so far; and ``elapsed``, in seconds.
    model : pymc.Model
    """

    mean: Point
    particles: NDArray[Any]
    history: xr.Dataset
    model: pm.Model = field(repr=False)
    _center: NDArray[np.float64] = field(repr=False)
    _functions: dict[tuple[str, ...], Any] = field(default_factory=dict, repr=False)

    def predict(
        self, data: Batch | None = None, var_names: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Functions of the unknowns at the mean particle.

        Parameters
        ----------
        data : dict of str to array_like, optional
            Data that replace those of the model during the call, as for `pymc.set_data`.
        var_names : list of str, optional
            Deterministic variables of the model, by default all.

        Returns
        -------
        dict of str to ndarray

        Raises
        ------
        ValueError
            If the model has no such variables.
        """
        known = [variable.name for variable in self.model.deterministics]
        names = tuple(known if var_names is None else var_names)
        if unknown := set(names) - set(known):
            raise ValueError(f"`{min(unknown)}` is not a deterministic variable of the model.")
        if not names:
            raise ValueError(
                "The model has no deterministic variable to predict. Wrap what is to be predicted "
                'in `pm.Deterministic("name", ...)`.'
            )
        if names not in self._functions:
            graphs = self.model.replace_rvs_by_values([self.model[name] for name in names])
            self._functions[names] = self.model.compile_fn(
                graphs, inputs=self.model.value_vars, on_unused_input="ignore"
            )
        [point] = points_of(layout_of(self.model), self._center[None])
        present = {name: self.model[name].get_value() for name in data or ()}
        try:
            pm.set_data(dict(data or {}), model=self.model)
            values = self._functions[names](point)
        finally:
            pm.set_data(present, model=self.model)
        return dict(zip(names, values, strict=True))


def train(
    model: pm.Model | None = None,
    batches: Batches | None = None,
    *,
    epochs: int = 10,
    steps: int | None = None,
    ensemble_size: int = 500,
    step: float = 3.0,
    spread: Spread = 0.02,
    momentum: bool = False,
    validation: Callable[[Point], float] | None = None,
    patience: int | None = None,
    random_seed: Any = None,
    progressbar: bool = True,
    compile_kwargs: Mapping[str, Any] | None = None,
) -> TrainedEnsemble:
    """Train a model of many parameters on batches of data, without derivatives.

    An ensemble goes down the loss of one batch after the other. The model, such as a neural
    network, may have parts that have no derivative, or be a black box. Each step costs one
    evaluation of the batch for each particle. This is hundreds of times the cost of a gradient, so
    use it only where there is none.

    Parameters
    ----------
    model : pymc.Model, optional
        By default the one on the context stack. Its unknowns are trained, beginning with draws of
        their prior. Its data are `pymc.Data`, both inputs and observed values.
    batches : iterable of dict, or callable
        Data of each step by name, as for `pymc.set_data`. All have the same shapes, and all
        particles of a step see the same data. Each epoch goes once through an iterable, such as a
        list (an iterator serves one epoch only). A function makes the data of a step from a
        `numpy.random.Generator`.
    epochs : int, default 10
        How often to go through the batches.
    steps : int, optional
        Steps of an epoch, if `batches` is a function.
    ensemble_size : int, default 500
        Number of particles J. They search J - 1 directions, and those that `spread` adds.
    step : float, default 3.0
        Length of a step. In a network of 2410 weights a length of 1 was three times slower, and 10
        diverged.
    spread : float or "replace", default 0.02
        Standard deviation of the noise that is added to the particles in each step, in units of the
        prior's. Steps and signs as activations need .05 to .1. With "replace" particles
        are drawn anew about their mean, closer by the root of the number of the step. This needs a
        `step` of about 30.
    momentum : bool, default False
        Whether particles have momentum, as in Nesterov's method. It is fast and overfits, and
        cannot be combined with added noise.
    validation : callable, optional
        Score of the free variables at the mean particle, given as a dict like `mean` of the result.
        Higher is better. It is computed after each epoch.
    patience : int, optional
        Epochs without a better score after which the training ends. The result is that of the best
        epoch.
    random_seed : int, Generator or None
        Seed of the first ensemble, of all noise, and of `batches`, if they are a function.
    progressbar : bool, default True
        Whether the log ``pymc_ensemble`` shows the progress.
    compile_kwargs : dict, optional
        Options for the compilation of the forward map.

    Returns
    -------
    TrainedEnsemble
        Result with ``mean``, ``particles``, ``history`` and ``predict(data)``. The model gets its
        own data back.

    Raises
    ------
    TypeError
        If `batches` is neither an iterable of dicts nor a function.
    ValueError
        If an option does not fit, or a batch has other names or shapes than the first one.
    SamplingError
        If fewer than a quarter of the particles have a finite loss.

    Notes
    -----
    Particles move by ``-h D (u - mean u) / |D|``, where ``D[i, k]`` is the mean product of the
    gradient of the loss at particle i with the deviation of the outputs of particle k [1]_. Memory
    holds them in single precision, at most twice. No array has the size d times d.

    References
    ----------
    .. [1] Kovachki, N. B. and Stuart, A. M. (2019). Ensemble Kalman inversion: a derivative-free
       technique for machine learning tasks. Inverse Problems, 35.
       https://doi.org/10.1088/1361-6420/ab1c3a

    Examples
    --------
    >>> import numpy as np, pymc as pm
    >>> import pymc_ensemble as pe
    >>> x = np.linspace(-1, 1, 40)
    >>> with pm.Model() as model:
    ...     inputs = pm.Data("inputs", x[:20])
    ...     targets = pm.Data("targets", np.sign(x[:20]))
    ...     weight = pm.Normal("weight")
    ...     level = pm.Deterministic("level", pm.math.switch(weight * inputs > 0, 1, -1))
    ...     _ = pm.Normal("y", level, 0.5, observed=targets)
    >>> batches = [{"inputs": x[k::2], "targets": np.sign(x[k::2])} for k in range(2)]
    >>> trained = pe.train(model, batches, ensemble_size=50, random_seed=1, progressbar=False)
    >>> trained.predict({"inputs": [0.5, -0.5], "targets": [0, 0]})["level"].tolist()
    [1, -1]
    """
    require_counts(1, epochs=epochs, steps=steps, patience=patience)
    require_counts(2, ensemble_size=ensemble_size)
    require_flags(progressbar=progressbar)
    model = given_model(model)
    rng = given_generator(random_seed, "random_seed")
    if batches is None:
        raise TypeError(
            "`batches` are needed: a list of dicts of data, or a function of a generator."
        )
    if callable(batches) != (steps is not None):
        raise ValueError(
            "Give `steps` of an epoch if `batches` is a function, and only then: an iterable has "
            "its own length."
        )
    if patience is not None and validation is None:
        raise ValueError("`patience` waits for a better `validation`. Give `validation`, too.")
    problem = InverseProblem.from_model(model, compile_kwargs=compile_kwargs)
    particles = problem.sample_prior(ensemble_size, rng).astype(np.float32)
    scale = particles.std(0, dtype=float)
    kernel = Training(problem, scale, step, spread, momentum)
    course = Course(model, problem, kernel, rng, progressbar, scale)
    source = _Source(model, batches, steps, rng)
    try:
        state = course.run(TrainingState(particles), source, epochs, validation, patience)
    finally:
        source.restore()
    return TrainedEnsemble(course.point(state), state.particles, course.history, model, state.mean)


@dataclass
class _Source:
    """Batches, which are set as data of the model one after another."""

    model: pm.Model
    batches: Batches
    steps: int | None
    rng: np.random.Generator
    first: dict[str, tuple[int, ...]] = field(default_factory=dict)
    own: dict[str, np.ndarray] = field(default_factory=dict)

    def epoch(self) -> Iterator[None]:
        """Set one batch after another as data of the model."""
        if callable(self.batches):
            every: Iterable[Batch] = (self.batches(self.rng) for _ in range(self.steps or 0))
        else:
            every = self.batches
        for batch in every:
            self._put(batch)
            yield

    def _put(self, batch: Batch) -> None:
        if not isinstance(batch, Mapping):
            raise TypeError(f"A batch must map names of data to values, but is {batch!r:.100}.")
        shapes = {name: np.shape(values) for name, values in batch.items()}
        if not self.first:
            data = {variable.name for variable in self.model.data_vars}
            if unknown := set(shapes) - data:
                raise ValueError(
                    f"A batch has `{min(unknown)}`, which is not a pm.Data of the model. There "
                    f"are {', '.join(f'`{name}`' for name in sorted(map(str, data)))}."
                )
            self.own = {name: self.model[name].get_value() for name in shapes}
            self.first = {name: values.shape for name, values in self.own.items()}
        for name in self.first.keys() | shapes.keys():
            if shapes.get(name) != self.first.get(name):
                raise ValueError(
                    f"A batch has the shape {shapes.get(name)} for `{name}`, but the data of the "
                    f"model have {self.first.get(name)}. All must be the same. Build the model "
                    "with a batch as its data, and leave out an incomplete batch at the end."
                )
        pm.set_data(dict(batch), model=self.model)

    def restore(self) -> None:
        """Give the model its own data back."""
        if self.own:
            pm.set_data(self.own, model=self.model)


@dataclass
class Course:
    """Epochs of a training, and their results."""

    model: pm.Model
    problem: InverseProblem
    kernel: Training
    rng: np.random.Generator
    progressbar: bool
    scale: NDArray[np.float64]
    account: Account = field(default_factory=Account)
    rows: list[dict[str, float]] = field(default_factory=list)

    def run(
        self,
        state: TrainingState,
        source: _Source,
        epochs: int,
        validation: Callable[[Point], float] | None,
        patience: int | None,
    ) -> TrainingState:
        """Train; return the state of the best epoch, or of the last one."""
        driver = Driver(self.problem, self.model, self.account, ProgressLog("train"))
        started, best, best_score, best_epoch = perf_counter(), state, -np.inf, 0
        if self.progressbar:
            show_log()
        for epoch in range(epochs):
            losses = []
            for _ in source.epoch():
                state, _ = driver.round(self.kernel, state, self.rng)
                losses.append(state.loss)
                if self.progressbar:
                    driver.tell(f"epoch {epoch + 1}, loss {number(state.loss, '.4g')}")
            if not losses:
                if epoch:
                    break  # the iterator is exhausted
                raise ValueError("`batches` is empty. Give at least one batch.")
            score = np.nan if validation is None else float(validation(self.point(state)))
            spread = float(np.mean(state.particles.std(0, dtype=float) / self.scale))
            self.rows.append(
                {
                    "loss": float(np.mean(losses)),
                    "validation": score,
                    "spread": spread,
                    "n_evals": self.account.n_evals,
                    "n_failed": self.account.n_failed,
                    "elapsed": perf_counter() - started,
                }
            )
            if score > best_score:
                best, best_score, best_epoch = state, score, epoch
            if patience is not None and epoch - best_epoch >= patience:
                return best
        return best if patience is not None else state

    def point(self, state: TrainingState) -> Point:
        """Free variables at the mean particle."""
        return {name: v[0] for name, v in free_values(self.model, state.mean[None]).items()}

    @property
    def history(self) -> xr.Dataset:
        """Recorded numbers of each epoch."""
        columns = {name: [row[name] for row in self.rows] for name in self.rows[0]}
        return xr.Dataset({name: ("epoch", values) for name, values in columns.items()})
