"""Step methods: ensembles of particles as draws of `pymc.sample`.

One chain is one ensemble. Draws are handed out particle by particle over a block of sweeps, so that
neighbouring draws are neighbours on the path of a particle.
"""

import logging
import math
import sys
import warnings
from dataclasses import dataclass, field, replace
from functools import cache
from operator import length_hint
from time import perf_counter
from typing import Any, ClassVar

import numpy as np
import pymc as pm
from pymc.blocking import DictToArrayBijection
from pymc.exceptions import SamplingError
from pymc.step_methods.compound import (
    BlockedStep,
    Competence,
    CompoundStep,
    StepMethodState,
)
from pymc.step_methods.state import dataclass_state
from pymc.util import get_random_generator
from rich.progress import TextColumn
from rich.table import Column
from threadpoolctl import ThreadpoolController

from .initial_ensemble import InitialEnsembles, initial_ensembles
from .problem import InverseProblem
from .samplers.ensemble import EnsembleFailure, Info, Snapshot
from .samplers.kalman import EnsembleKalman

__all__ = ["EnsembleKalmanSampler"]

logger = logging.getLogger("pymc_ensemble")

BLOCK_BYTES = 2**28  # of sweeps that are computed before they are handed out
SHORTEST_BLOCK = 5  # sweeps; shorter paths would let az.ess overlook correlation
DRAWS_AT_ONCE = 512  # that become Python objects at a time


@dataclass(frozen=True)
class Variable:
    """Where one variable lies in the vector of unconstrained coordinates."""

    name: str
    where: slice
    shape: tuple[int, ...]
    dtype: np.dtype

    def values(self, U):
        """List of the values in the rows of `U`, shape (n, d); each an array, scalars too."""
        values = U[:, self.where].reshape(len(U), *self.shape).astype(self.dtype, copy=False)
        return list(values) if self.shape else [values[i, ...] for i in range(len(U))]


def variable_layout(point, names):
    """Variables in the order of `point`; `names` tells the order of the coordinates."""
    info = DictToArrayBijection.map({name: point[name] for name in names}).point_map_info
    ends = np.cumsum([size for _, _, size, _ in info]).tolist()
    variables = {
        name: Variable(name, slice(end - size, end), shape, dtype)
        for (name, shape, size, dtype), end in zip(info, ends, strict=True)
    }
    return [variables[name] for name in point if name in variables]


def points_of(variables, U):
    """List of dicts of values by variable name, one for each row of `U`."""
    names = [variable.name for variable in variables]
    columns = zip(*(variable.values(U) for variable in variables), strict=True)
    return [dict(zip(names, values)) for values in columns]  # noqa: B905, called for each draw


@dataclass(frozen=True)
class Block:
    """Complete sweeps that wait to be handed out as draws, particle by particle.

    Attributes
    ----------
    U : ndarray of shape (J, S, d)
        Paths of the particles over S sweeps.
    lp, log_q, acceptance : ndarray of shape (J, S)
        As in `Snapshot`.
    step_size : list of float, length S
    sweep, n_evals, n_failed : list of int, length S
        Number of the sweep, and the chain's forward evaluations and failures up to it.
    converged : bool
        Whether the burn-in had passed its test.
    """

    U: np.ndarray
    lp: np.ndarray
    log_q: np.ndarray
    acceptance: np.ndarray
    step_size: list[float]
    sweep: list[int]
    n_evals: list[int]
    n_failed: list[int]
    converged: bool

    @classmethod
    def of(cls, snapshots, **shared):
        """Join the snapshots of successive sweeps; `shared` holds the other attributes."""
        paths = {
            name: np.stack([getattr(snapshot, name) for snapshot in snapshots], axis=1)
            for name in ("U", "lp", "log_q", "acceptance")
        }
        return cls(**paths, step_size=[float(s.step_size) for s in snapshots], **shared)

    @property
    def n_draws(self):
        """Number of draws."""
        return self.lp.size

    def draws(self, variables, start):
        """List of the draws from number `start` on, as `step` returns them; at most a few particles.

        Python objects are made for some hundred draws at once: this is what a draw costs.
        """
        S = len(self.sweep)
        first = start // S
        particles = slice(first, first + max(1, DRAWS_AT_ONCE // S))
        lp, log_q, acceptance = (
            paths[particles].ravel().tolist() for paths in (self.lp, self.log_q, self.acceptance)
        )
        n = len(lp) // S
        stats = [
            {
                "lp": lp,
                "log_q": log_q,
                "particle": particle,
                "sweep": sweep,
                "n_evals": n_evals,
                "acceptance": acceptance,
                "step_size": step_size,
                "n_failed": n_failed,
                "converged": self.converged,
                "tune": False,
            }
            for lp, log_q, particle, sweep, n_evals, acceptance, step_size, n_failed in zip(
                lp,
                log_q,
                [particle for particle in range(first, first + n) for _ in range(S)],
                self.sweep * n,
                self.n_evals * n,
                acceptance,
                self.step_size * n,
                self.n_failed * n,
                strict=True,
            )
        ]
        points = points_of(variables, self.U[particles].reshape(n * S, -1))
        return [(point, [stat]) for point, stat in zip(points, stats, strict=True)][start % S :]


@dataclass
class Chain:
    """What one chain remembers from call to call.

    Attributes
    ----------
    tune, draws : int
        Calls for tuning, and draws after it, that were announced.
    state : object or None
        State of the sampler.
    converged : bool
        Whether the burn-in has passed its test.
    iterations, sweeps : int
        Completed iterations of the burn-in, completed sweeps after it.
    n_evals, n_failed : int
        Forward evaluations so far, and how many of them failed.
    first_failure : str
        Parameters and traceback of the first failed evaluation.
    block : Block or None
        Draws that are being handed out.
    position : int
        How many draws were handed out: of this block, or in the tuning phase.
    sampling : bool
        Whether adaptation has ended.
    interrupted : bool
        Whether the chain ends when the block is exhausted.
    """

    tune: int = 0
    draws: int = 0
    state: Any = None
    converged: bool = False
    iterations: int = 0
    sweeps: int = 0
    n_evals: int = 0
    n_failed: int = 0
    first_failure: str = ""
    block: Block | None = None
    position: int = 0
    sampling: bool = False
    interrupted: bool = False


@dataclass_state
class EnsembleStepState(StepMethodState):
    """What PyMC saves of an ensemble step method."""

    ensemble_size: int = field(metadata={"frozen": True})
    tune: bool
    chain: Chain


@dataclass(frozen=True)
class Binding:
    """A step method's model, and all that was made from it."""

    model: pm.Model
    variables: tuple
    vars: list
    problem: Any
    sampler: Any
    initial: InitialEnsembles | None


class ProgressLog:
    """Tells by the log how far a chain is, from time to time: one round may take minutes."""

    def __init__(self, label):
        self.label = label
        self.started = self.last = perf_counter()
        self.seconds = 0.0  # spent in forward evaluations
        self.evaluations = 0

    def tell(self, message, chain, evaluations_to_go=None):
        """Log `message` with the state of `chain`, unless the last line is not old enough."""
        now = perf_counter()
        if now - self.last < min(60.0, max(2.0, 0.02 * (now - self.started))):
            return
        self.last = now
        each = self.seconds / max(self.evaluations, 1)
        text = f"{self.label}{message}; {chain.n_evals} evaluations"
        if chain.n_failed:
            text += f" ({chain.n_failed} failed)"
        text += f", {each:.3g} s each"
        if evaluations_to_go is not None:
            text += f"; about {_duration(each * evaluations_to_go)} to go"
        logger.info(text)


def _names(vars):
    """Names of variables that are given as one or several variables or names."""
    several = vars if isinstance(vars, list | tuple) else [vars]
    return [v if isinstance(v, str) else v.name for v in several]


def _variables(model):
    """What a posterior depends on: when it changes, a step has to be bound anew."""
    return (*model.basic_RVs, *model.potentials)


def _chain_number(rng):
    """Number of the chain that `pymc.sample` spawned `rng` for; the same in every process."""
    spawn_key = rng.bit_generator.seed_seq.spawn_key
    return spawn_key[-1] if spawn_key else 0


def _duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def _adopt_handlers_of_pymc():
    """Show the log where PyMC shows its own, unless logging was configured."""
    if logger.level == logging.NOTSET and not logger.hasHandlers():
        pymc_logger = logging.getLogger("pymc")
        logger.setLevel(pymc_logger.level)
        for handler in pymc_logger.handlers:
            logger.addHandler(handler)


@cache
def _blas():
    return ThreadpoolController().select(user_api="blas")


def _one_blas_thread():
    """Limit linear algebra to one thread: matrices are small, and chains run side by side."""
    return _blas().limit(limits=1)


class EnsembleStep(BlockedStep):
    """Step method whose chains are ensembles of interacting particles.

    A subclass names its sampler and hands over the options that this sampler has.

    Parameters
    ----------
    vars : list of variables or names, optional
        Variables to sample. An ensemble owns all continuous variables of the model, so this can
        only repeat what is the default.
    ensemble_size : int, optional
        Number of particles J. The sampler's default depends on the number of parameters.
    initial_ensemble : array_like, mapping or DataTree, optional
        Where the particles start: positions of shape (J, d) in unconstrained coordinates; values of
        shape (J, ...) by variable name; or the result of an earlier run, whose last ensembles are
        continued without burn-in. By default they are drawn from the prior.
    compile_kwargs : dict, optional
        For the compilation of the model's functions, for example ``{"mode": "NUMBA"}``.
    options : dict
        Options of the sampler.
    model : pm.Model, optional
        Model to sample. By default the one on the context stack, looked up when sampling starts.
    rng : Generator or seed, optional
        Used until `pymc.sample` hands over a generator for each chain.
    initial_point : dict, optional
        Not needed; PyMC passes it to all step methods.
    blocked : bool, default True
        An ensemble moves all its variables together, so True is the only choice.
    """

    problem_class: ClassVar[type] = InverseProblem
    sampler_class: ClassVar[type]
    default_blocked = True
    default_tune_steps: int | None = 80
    _state_class = EnsembleStepState
    stats_dtypes_shapes = {  # noqa: RUF012
        "lp": (np.float64, []),
        "log_q": (np.float64, []),
        "particle": (np.int64, []),
        "sweep": (np.int64, []),
        "n_evals": (np.int64, []),
        "acceptance": (np.float64, []),
        "step_size": (np.float64, []),
        "n_failed": (np.int64, []),
        "converged": (bool, []),
        "tune": (bool, []),
    }

    def __new__(cls, *args, **kwargs):
        """Create a step without looking for a model: it is found when sampling starts."""
        return object.__new__(cls)

    def __getnewargs_ex__(self):
        return (), {}

    def __init__(
        self,
        vars=None,
        *,
        options,
        ensemble_size=None,
        initial_ensemble=None,
        compile_kwargs=None,
        model=None,
        rng=None,
        initial_point=None,
        blocked=True,
    ):
        if not blocked:
            raise ValueError(
                f"{type(self).__name__} moves all variables together. Leave out `blocked=False`."
            )
        self.blocked = True
        self.tune = True
        self.rng = get_random_generator(rng)
        self.chain = Chain()
        self._names = None if vars is None else _names(vars)
        self._ensemble_size = ensemble_size
        self._initial_ensemble = initial_ensemble
        self._compile_kwargs = compile_kwargs
        self._options = options
        self._binding: Binding | None = None
        self._progress = ProgressLog("")
        model = pm.Model.get_context(error_if_none=False) if model is None else model
        if model is not None:
            self._bind(model)

    # -- binding to a model ---------------------------------------------------------------------

    @property
    def vars(self):
        """Value variables of the model that is being sampled.

        The model on the context stack counts, so a step may be built before its model, and used
        again on a copy of it. Worker processes have no such stack; they use the model that came
        with the step.
        """
        model = pm.Model.get_context(error_if_none=False)
        if model is None and self._binding is None:
            raise TypeError(
                f"{type(self).__name__} has no model yet. Build it, or call `pm.sample`, inside "
                "`with model:`, or pass `model=`."
            )
        if model is not None and not self._is_bound_to(model):
            self._bind(model)
        return self._binding.vars

    def _is_bound_to(self, model):
        bound = self._binding
        return bound is not None and bound.model is model and bound.variables == _variables(model)

    def _bind(self, model):
        vars = self._owned_variables(model)
        problem = self.problem_class.from_model(
            model, vars, compile_kwargs=self._compile_kwargs
        )
        initial, ensemble_size = None, self._ensemble_size
        if self._initial_ensemble is not None:
            initial = initial_ensembles(self._initial_ensemble, model, problem.coordinate_names)
            given = initial.U.shape[1]
            if ensemble_size not in (None, given):
                raise ValueError(
                    f"initial_ensemble has {given} members, but ensemble_size is {ensemble_size}. "
                    "Leave out ensemble_size, or make them equal."
                )
            ensemble_size = given
        sampler = self.sampler_class(problem, ensemble_size=ensemble_size, **self._options)
        self._binding = Binding(model, _variables(model), vars, problem, sampler, initial)

    def _owned_variables(self, model):
        name = type(self).__name__
        continuous = model.continuous_value_vars
        if discrete := [model.values_to_rvs[v].name for v in model.discrete_value_vars]:
            raise ValueError(
                f"`{discrete[0]}` is discrete; {name} moves continuous variables only, and all of "
                "them at once, so it cannot share a model with another step method. Marginalize "
                f"`{discrete[0]}` out of the model, or sample with `pm.sample()`'s own step methods."
            )
        if self._names is None:
            return continuous
        by_name = {v.name: v for v in continuous}
        by_name |= {model.values_to_rvs[v].name: v for v in continuous}
        if unknown := [n for n in self._names if n not in by_name]:
            raise ValueError(
                f"`{unknown[0]}` is not a continuous free variable of the model that is sampled. "
                f"Those are {', '.join(f'`{model.values_to_rvs[v].name}`' for v in continuous)}; "
                "leave out `vars` to sample them all."
            )
        chosen = {by_name[n] for n in self._names}
        if left_out := [model.values_to_rvs[v].name for v in continuous if v not in chosen]:
            raise ValueError(
                f"`vars` leaves out `{left_out[0]}`, but {name} has to own all continuous "
                "variables: a move of the others would change the posterior under the whole "
                "ensemble. Leave out `vars`, or fix the variable: "
                f"`with pm.do(model, {{{left_out[0]!r}: value}}): pm.sample(step={name}())`."
            )
        return continuous

    @property
    def ensemble_size(self):
        """Number of particles."""
        return None if self._binding is None else self._binding.sampler.ensemble_size

    @property
    def stats_dtypes(self):
        """Names and types of the stats. `CompoundStep` asks for them first: it is refused here."""
        if sys._getframe(1).f_code is CompoundStep.__init__.__code__:
            raise ValueError(
                f"{type(self).__name__} cannot be combined with other step methods: a move of the "
                "others would change the posterior under the whole ensemble. It samples all "
                f"variables itself: `pm.sample(step={type(self).__name__}())`."
            )
        return [{name: dtype for name, (dtype, _) in self.stats_dtypes_shapes.items()}]

    @staticmethod
    def competence(var, has_grad):
        """Never chosen by PyMC on its own."""
        return Competence.INCOMPATIBLE

    def __getstate__(self):
        return self.__dict__ | {"_chain": self.chain, "_queue": iter([]), "_layout": None}

    # -- life of a chain ------------------------------------------------------------------------

    @property
    def chain(self):
        """What the chain remembers. To set it is to go on from there."""
        return replace(self._chain, position=self._chain.position - length_hint(self._queue))

    @chain.setter
    def chain(self, chain):
        self._chain = chain
        self._queue = iter([])
        self._layout = None

    def setup_chain(self, rng, tune, draws):
        """Forget everything about the chain before."""
        super().setup_chain(rng, tune, draws)
        self.tune = True
        self.chain = Chain(tune=tune, draws=draws)
        self._progress = ProgressLog(f"Chain {_chain_number(self.rng)}: ")
        _adopt_handlers_of_pymc()

    def step(self, point):
        """Next draw: a particle of the ensemble, at one of its sweeps."""
        for draw in self._queue:
            return draw
        if self._layout is None:
            self._layout = variable_layout(point, [v.name for v in self.vars])
        chain = self._chain
        if self.tune:
            chain.position += 1
            return self._tuning_draw(point)
        if chain.block is None or chain.position == chain.block.n_draws:
            self._compute_block()
        draws = chain.block.draws(self._layout, chain.position)
        chain.position += len(draws)
        self._queue = iter(draws)
        return next(self._queue)

    def _tuning_draw(self, point):
        """Do one iteration of the burn-in, if it is not over; show one particle after the other."""
        chain = self._chain
        if chain.state is None or not chain.state.burned_in:
            self._iterate()
        stats = {
            "lp": math.nan,
            "log_q": math.nan,
            "particle": -1,
            "sweep": -1,
            "n_evals": chain.n_evals,
            "acceptance": math.nan,
            "step_size": math.nan,
            "n_failed": chain.n_failed,
            "converged": chain.converged,
            "tune": True,
        }
        ensemble = chain.state.ensemble
        usable = np.flatnonzero(np.isfinite(ensemble.potential))
        if not len(usable):  # nothing better is known yet than the point that came in
            return {variable.name: point[variable.name] for variable in self._layout}, [stats]
        particle = int(usable[chain.position % len(usable)])
        stats |= {"particle": particle, "lp": -float(ensemble.potential[particle])}
        return points_of(self._layout, ensemble.U[[particle]])[0], [stats]

    def _compute_block(self):
        """Advance the ensemble by a block of sweeps, and queue its draws."""
        chain = self._chain
        if chain.interrupted:
            raise KeyboardInterrupt
        if not chain.sampling:
            self._end_burn_in()
        n_sweeps = self._sweeps_of_next_block()
        snapshots: list[Snapshot] = []
        shared: dict[str, list[int]] = {"sweep": [], "n_evals": [], "n_failed": []}
        try:
            while len(snapshots) < n_sweeps:
                snapshot = self._iterate(sweeps_to_go=n_sweeps - len(snapshots)).snapshot
                if snapshot is None:  # an ensemble that went on from an earlier run is evaluated
                    continue
                snapshots.append(snapshot)
                shared["sweep"].append(chain.sweeps)
                shared["n_evals"].append(chain.n_evals)
                shared["n_failed"].append(chain.n_failed)
                chain.sweeps += 1
        except KeyboardInterrupt:
            if not snapshots:
                raise
            chain.interrupted = True
            logger.warning(
                f"{self._progress.label}interrupted; the {len(snapshots)} sweeps that are complete "
                f"become {len(snapshots) * self.ensemble_size} draws, then the chain ends."
            )
        snapshots = self._binding.sampler.finish(chain.state, snapshots, self.rng)
        chain.block = Block.of(snapshots, converged=chain.converged, **shared)
        chain.position = 0

    def _sweeps_of_next_block(self):
        """As many sweeps as memory holds, in blocks of equal length."""
        to_go = math.ceil(self._chain.draws / self.ensemble_size) - self._chain.sweeps
        if to_go <= 0:  # more draws are asked for than were announced
            return SHORTEST_BLOCK
        numbers_a_draw = self._binding.problem.dimension + len(self.stats_dtypes_shapes)
        fitting = BLOCK_BYTES // (8 * numbers_a_draw * self.ensemble_size)
        return math.ceil(to_go / max(1, to_go // max(SHORTEST_BLOCK, fitting)))

    def _end_burn_in(self):
        """Stop all adaptation; run the burn-in first if there were no calls for tuning."""
        chain, sampler = self._chain, self._binding.sampler
        if chain.state is None:
            self._start()
        if chain.tune == 0 and not chain.state.burned_in:
            logger.info(f"{self._progress.label}tune=0: burn-in runs before the first draw.")
            while not chain.state.burned_in and chain.iterations < self.default_tune_steps:
                self._iterate()
        if not chain.converged:
            remedy = (
                "Use a larger ensemble_size, more informative priors or an initial_ensemble"
                if chain.state.burned_in or chain.iterations >= self.default_tune_steps
                else f"Give it more time: `pm.sample(tune={self.default_tune_steps})`"
            )
            warnings.warn(
                f"The burn-in had not passed its test after {chain.iterations} iterations "
                f"({chain.n_evals} forward evaluations). The run goes on from the ensemble as it "
                f"is, and its draws carry `converged=False`. {remedy}.",
                stacklevel=2,
            )
        chain.state = sampler.freeze(chain.state)
        chain.sampling = True

    # -- one iteration --------------------------------------------------------------------------

    def _start(self):
        bound, chain = self._binding, self._chain
        if bound.initial is None:
            U = bound.problem.sample_prior(self.ensemble_size, self.rng)
            chain.state = bound.sampler.start(U)
        else:
            chain.state = bound.sampler.start(bound.initial.for_chain(_chain_number(self.rng)))

    def _iterate(self, sweeps_to_go=None) -> Info:
        """Evaluate rounds until an iteration of the sampler is complete."""
        chain = self._chain
        if chain.state is None:
            self._start()
        complete = False
        while not complete:
            info = self._round()
            complete = info.complete
            if sweeps_to_go is None:
                self._progress.tell(f"burn-in iteration {chain.iterations + 1}, {info.message}", chain)
            else:
                self._progress.tell(
                    f"sweep {chain.sweeps + 1}, {info.message}",
                    chain,
                    (sweeps_to_go - complete) * self.ensemble_size,
                )
        if sweeps_to_go is None:
            chain.iterations += 1
            chain.converged = chain.state.converged
        return info

    def _round(self) -> Info:
        """Evaluate one batch of points, and let the sampler learn from it."""
        chain, sampler, problem = self._chain, self._binding.sampler, self._binding.problem
        try:
            with _one_blas_thread():
                points, pending = sampler.ask(chain.state, self.rng)
            started = perf_counter()
            evaluations = problem.evaluate(points)
            self._progress.seconds += perf_counter() - started
            self._progress.evaluations += len(points)
            self._report_first_failure(points, evaluations)
            with _one_blas_thread():
                chain.state, info = sampler.tell(chain.state, pending, evaluations)
        except EnsembleFailure as failure:
            raise SamplingError(self._explain(failure)) from failure
        chain.n_evals += info.n_evaluations
        chain.n_failed += info.n_failed
        return info

    def _report_first_failure(self, points, evaluations):
        chain = self._chain
        if chain.first_failure or not evaluations.failed.any():
            return
        row = int(np.flatnonzero(evaluations.failed)[0])
        reason = dict(evaluations.errors).get(row, "The outputs are not finite.")
        chain.first_failure = f"{self._describe(points[row])}\n{reason}"
        logger.warning(
            f"{self._progress.label}a forward evaluation failed, at {chain.first_failure}\n"
            "Its particle stays where it was. Later failures of this chain are counted in the stat "
            "`n_failed`, but not told."
        )

    def _describe(self, u):
        """Parameters at the point `u`, shape (d,), by name and as in the model."""
        model = self._binding.model
        in_model = model.compile_fn(
            model.replace_rvs_by_values(model.free_RVs),
            inputs=model.value_vars,
            mode="FAST_COMPILE",
            on_unused_input="ignore",
        )
        [point] = points_of(self._layout, u[None])
        with np.printoptions(precision=4, threshold=20):
            return ", ".join(
                f"{rv.name}={value}"
                for rv, value in zip(model.free_RVs, in_model(point), strict=True)
            )

    def _explain(self, failure):
        chain = self._chain
        text = [str(failure), f"{chain.n_failed} of {chain.n_evals} forward evaluations had failed."]
        ensemble = None if chain.state is None else chain.state.ensemble
        if chain.first_failure:
            text.append(f"The first failure was at {chain.first_failure}")
        elif ensemble is not None and not np.isfinite(ensemble.potential).all():
            member = int(np.flatnonzero(~np.isfinite(ensemble.potential))[0])
            text.append(
                "No forward evaluation failed, but the posterior density is not finite, for "
                f"example at {self._describe(ensemble.U[member])}"
            )
        text.append(
            "What to try: priors, or an `initial_ensemble`, that stay where the forward map works; "
            "a larger `ensemble_size`; or a forward map that returns a value instead of failing."
        )
        return "\n".join(text)

    # -- progress bar ---------------------------------------------------------------------------

    @staticmethod
    def _progressbar_config(n_chains=1):
        columns = [
            TextColumn("{task.fields[sweep]}", table_column=Column("Sweep", ratio=1)),
            TextColumn("{task.fields[n_evals]}", table_column=Column("Evaluations", ratio=1)),
            TextColumn("{task.fields[acceptance]:0.2f}", table_column=Column("Acceptance", ratio=1)),
        ]
        stats = {
            "sweep": [0] * n_chains,
            "n_evals": [0] * n_chains,
            "acceptance": [0.0] * n_chains,
        }
        return columns, stats

    @staticmethod
    def _make_progressbar_update_functions():
        def update_stats(stats):
            return {
                "sweep": stats["sweep"] + 1,
                "n_evals": stats["n_evals"],
                "acceptance": stats["acceptance"],
            }

        return (update_stats,)


class EnsembleKalmanSampler(EnsembleStep):
    pass
