"""Step methods: ensembles of particles as draws of `pymc.sample`.

One chain is one ensemble. A block of its sweeps becomes draws particle by particle, each in order.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field, replace
from operator import length_hint
from time import monotonic
from typing import Any, ClassVar

import numpy as np
import pymc as pm
from numpy.typing import ArrayLike, NDArray
from pymc.step_methods.compound import StepMethodState
from pymc.step_methods.state import dataclass_state
from pytensor.graph.basic import Variable
from rich.progress import ProgressColumn
from xarray import DataTree

from pymc_ensemble.diagnosis.facts import Facts
from pymc_ensemble.diagnosis.findings import first_look
from pymc_ensemble.diagnosis.fountain import PACKET, Fountain
from pymc_ensemble.diagnosis.modes import without_draws
from pymc_ensemble.diagnosis.run import Run
from pymc_ensemble.log import ProgressLog, logger, show_log
from pymc_ensemble.problem.checks import given_generator
from pymc_ensemble.problem.driver import one_blas_thread
from pymc_ensemble.problem.points import (
    LayoutVariable,
    Named,
    Point,
    describe,
    names_of,
    points_of,
    variable_layout,
)
from pymc_ensemble.samplers.ensemble import Snapshot

from .chain import Chain, equal
from .common_stage import CommonStage
from .draws import NO_STATS, STATS, Block, Draw, Stats, vector_stats
from .interrupts import (
    end_run,
    end_with_main_process,
    interruptible,
    pass_on_first_interrupt,
    shield,
)
from .progress import BarFields, Board, EnsembleColumn, Place, bar_is_live
from .running import RunningStep

__all__ = ["EnsembleStep"]

# Sweeps become draws in blocks. If the whole run takes less memory than this, it is one block.
# Otherwise a block has at least so many sweeps, because az.ess sees no correlation across blocks.
BLOCK_BYTES = 2**30
SHORTEST_BLOCK = 5
FEW_DRAWS = 100  # too few draws to judge a run

FloatArray = NDArray[np.float64]


@dataclass_state
class EnsembleStepState(StepMethodState):
    """State of an ensemble step method that PyMC saves."""

    ensemble_size: int = field(metadata={"frozen": True})
    tune: bool
    chain: Chain

    def __eq__(self, other: object) -> bool:
        return equal(self, other)


class EnsembleStep(RunningStep):
    """Step method whose chains are ensembles of interacting particles.

    A subclass names its sampler, and passes the options of this sampler on.

    Parameters
    ----------
    vars : list of variables or names, optional
        Variables to sample. An ensemble moves all continuous variables of the model, so this can
        only repeat the default.
    options : dict
        Options of the sampler.
    ensemble_size : int, optional
        Number of particles J.
    initial_ensemble : array_like, mapping or DataTree, optional
        Where the particles start; see `initial_ensembles`. By default they are drawn from the
        prior.
    compile_kwargs : dict, optional
        Options for the compilation of the forward map.
    model : pm.Model, optional
        Model to sample. By default the one on the context stack when sampling starts.
    rng : Generator or seed, optional
        Used until `pymc.sample` gives each chain a generator.
    initial_point : dict, optional
        Not needed; PyMC passes it to all step methods.
    blocked : bool, default True
        An ensemble moves all its variables together, so True is the only choice.
    """

    _state_class = EnsembleStepState
    stats_dtypes_shapes: ClassVar[dict[str, tuple[Any, list[int]]]] = {
        name: (dtype, []) for name, dtype in STATS.items()
    }
    stats_dtypes: ClassVar[list[dict[str, type]]] = [STATS]

    def __init__(
        self,
        vars: Named | Sequence[Named] | None = None,
        *,
        options: Mapping[str, Any],
        ensemble_size: int | None = None,
        initial_ensemble: ArrayLike | Mapping[str, ArrayLike] | DataTree | None = None,
        compile_kwargs: Mapping[str, Any] | None = None,
        model: pm.Model | None = None,
        rng: Any = None,
        initial_point: Point | None = None,
        blocked: bool = True,
    ):
        self.tune = True
        self.rng = given_generator(rng, "rng")
        self._common = CommonStage()
        self._progress = ProgressLog("Chain 0")
        self.chain = Chain()
        self._board = Board()
        self._place = Place(self._board, 0)
        super().__init__(
            vars, options, ensemble_size, initial_ensemble, compile_kwargs, model, blocked
        )

    @property
    def vars(self) -> list[Variable]:
        """Value variables of the model that is being sampled."""
        self._common.name_run()  # pymc.sample reads `vars` before it starts chains
        return super().vars

    def _bind(self, model: pm.Model) -> None:
        super()._bind(model)
        self._declare_stats()

    def _declare_stats(self) -> None:
        """Tell PyMC the shapes of vector stats before it reads them."""
        vectors = {name: np.asarray(value) for name, value in self._vector_stats().items()}
        types: dict[str, Any] = {
            name: np.dtype((v.dtype, v.shape)) if v.ndim else v.dtype.type
            for name, v in vectors.items()
        }
        shapes = {name: (v.dtype.type, list(v.shape)) for name, v in vectors.items()}
        for name, value in vectors.items():
            taken = f"{name}_dim_0"  # PyMC's name for a dimension without `dims`
            labels = self._bound.model.coords.get(taken)
            if value.ndim and labels is not None and len(labels) != len(value):
                raise ValueError(
                    f"The model has a dimension `{taken}`, but the stat `{name}` has a dimension "
                    f"of this name, of length {len(value)}. Rename it in the model's `coords`."
                )
        cls = type(self)
        self.stats_dtypes = [cls.stats_dtypes[0] | types]  # type: ignore[misc]
        self.stats_dtypes_shapes = cls.stats_dtypes_shapes | shapes  # type: ignore[misc]

    def _vector_stats(self) -> Stats:
        """Stats whose shapes depend on the model, with placeholders for unknown values."""
        return vector_stats(self._bound.problem.dimension, self._proposes)

    @property
    def _proposes(self) -> bool:
        """Whether draws carry the points of independent proposals."""
        return False

    def __getstate__(self) -> dict[str, Any]:
        waiting: dict[str, Any] = {"_queue": iter([]), "_layout": [], "_handed": None}
        return self.__dict__ | {"_chain": self.chain} | waiting

    # -- life of a chain ------------------------------------------------------------------------

    @property
    def chain(self) -> Chain:
        """Memory of the chain. Set it to continue from there."""
        return replace(self._chain, position=self._chain.position - length_hint(self._queue))

    @chain.setter
    def chain(self, chain: Chain) -> None:
        self._chain = chain
        self._queue: Iterator[Draw] = iter([])
        self._layout: list[LayoutVariable] = []
        self._handed: Point | None = None  # the last draw
        self._first: Point = {}

    def setup_chain(self, rng: Any, tune: int, draws: int) -> None:
        """Forget the previous chain."""
        super().setup_chain(rng, tune, draws)
        self.tune = True
        self.chain = Chain(tune=tune, draws=draws)
        self._common.set_up_chain(self._chain_number)
        self._place = self._board.begin()
        self._progress = ProgressLog(f"Chain {self._chain_number}", self._place)
        show_log()
        shield()
        end_with_main_process()

    def step(self, point: Point) -> Draw:
        """Next draw: a particle of the ensemble, at one of its sweeps."""
        if point is not self._handed:
            self._look_at_point(point)
        moved, stats = next(self._queue, None) or self._next_draw(point)
        self._handed = self._with_leaves(point, moved)
        return self._handed, stats

    def _look_at_point(self, point: Point) -> None:
        """Refuse a point that another step method has moved. Log unused initial values."""
        if not self._layout:
            self._layout = variable_layout(point, names_of(self._bound.vars))
            self._first = {v.name: np.array(point[v.name]) for v in self._layout}
            self._bound.leaves.seed(self.rng)
            if self._board.company:
                self._refuse_company()
            if self._chain.state is None and self._chain_number == 0:
                self._tell_of_initial_values(self._layout, point)
        if self._handed is None:
            return
        names = [v.name for v in self._layout]
        if moved := [n for n in names if not np.array_equal(point[n], self._handed[n])]:
            if all(np.array_equal(point[n], self._first[n]) for n in names):
                return  # the initial point of the chain, which a caller has passed again
            values = {value.name: rv.name for value, rv in self._bound.model.values_to_rvs.items()}
            raise ValueError(
                f"`{values[moved[0]]}` was moved by another step method, but "
                f"{type(self).__name__} moves it, too. Then the posterior of the other particles "
                "would change unnoticed, and stats such as `lp` would be wrong. Leave out the "
                "other step method, or let only that one move the variable: "
                "`step=[MultiscaleSampler(vars), other]` with other variables in `vars`."
            )

    def _next_draw(self, point: Point) -> Draw:
        """Compute the next draw when no finished draw is left."""
        chain = self._chain
        if self.tune:
            chain.position += 1
            return self._tuning_draw(point)
        if chain.block is None or chain.position == chain.block.n_draws:
            chain.block, chain.position = self._compute_block(), 0
        draws = chain.block.draws(self._layout, chain.position)
        chain.position += len(draws)
        self._queue = iter(draws)
        return next(self._queue)

    def _tuning_draw(self, point: Point) -> Draw:
        """Do one iteration of the burn-in, if it is not over. Return the particles in turn."""
        chain = self._chain
        if chain.state is None or not chain.state.burned_in:
            with self._interrupts_end_the_run():
                self._burn_in_once()
        stats = (
            NO_STATS
            | vector_stats(self._bound.problem.dimension, self._proposes)
            | {
                "n_evals": chain.n_evals,
                "n_failed": chain.n_failed,
                "converged": chain.converged,
                "tune": True,
            }
        )
        ensemble = chain.state.ensemble
        potential = np.empty(0) if ensemble is None else ensemble.potential
        usable = np.flatnonzero(np.isfinite(potential))
        if not len(usable):  # no particle has a finite density yet, so keep the incoming point
            return {name: value.copy() for name, value in point.items()}, [stats]
        particle = int(usable[chain.position % len(usable)])
        stats |= {
            "particle": particle,
            "lp": -float(ensemble.potential[particle]),
            "unconstrained": ensemble.U[particle],
        }
        return points_of(self._layout, ensemble.U[[particle]])[0], [stats]

    def _compute_block(self) -> Block:
        """Advance the ensemble by a block of sweeps."""
        chain = self._chain
        if chain.interrupted is not None:
            end_run(chain.interrupted)
        if not chain.sampling:
            with self._interrupts_end_the_run():
                self._end_burn_in()
        n_sweeps = self._sweeps_of_next_block()
        done: list[tuple[Snapshot, int, int, int]] = []  # snapshot, sweep, n_evals, n_failed
        try:
            with interruptible():
                while len(done) < n_sweeps:
                    snapshot = self._sweep(n_sweeps - len(done))
                    done.append((snapshot, chain.sweeps, chain.n_evals, chain.n_failed))
                    chain.sweeps += 1
        except KeyboardInterrupt:
            chain.interrupted = monotonic()
            logger.warning(
                f"{self._progress.label}interrupted. The {len(done)} complete sweeps become "
                f"{len(done) * self.ensemble_size} draws, then the chain ends. Interrupt again to "
                "end it at once. With cores=1, PyMC goes on with the next chain."
            )
            if not done:
                end_run(chain.interrupted)
        sweeps, sweep, n_evals, n_failed = zip(*done, strict=True)
        with self._driver.failures_in_words(chain.state):
            snapshots = self._bound.sampler.finish(chain.state, sweeps, self.rng)
        shared = {
            "sweep": sweep,
            "n_evals": n_evals,
            "n_failed": n_failed,
            "step_size": [float(snapshot.step_size) for snapshot in snapshots],
            "converged": [chain.converged] * len(snapshots),
            "lost": [False] * len(snapshots),
        }
        made_by = Fountain.of(self._facts.text()) if chain.made_by is None else chain.made_by
        chain.made_by = made_by
        block = Block.of(snapshots, shared, made_by, self._chain_number, self._proposes)
        return self._look_at(block) if block.n_draws >= max(FEW_DRAWS, chain.draws) else block

    @property
    def _facts(self) -> Facts:
        """Facts that this step method declares about the draws of the chain."""
        bound, chain = self._bound, self._chain
        if chain.facts is None:
            options = self._options
            chain.facts = Facts.of(
                bound.model,
                bound.vars,
                type(self).__name__,
                options if self.scheme is None else {**options, "scheme": self.scheme},
                self._origin,
                bound.sampler.size,
            )
        return chain.facts

    def _look_at(self, block: Block) -> Block:
        """Log the quality of the draws of this chain. Mark them if a mode was lost."""
        chain = self._chain
        run = Run.of_chain(self._facts, block.U, block.stats, self._bound.problem.coordinate_names)
        with one_blas_thread():
            found = first_look(run)
            elsewhere = np.empty(0, dtype=int)
            if chain.seen and run.origin.density_known:
                U, lp = (np.concatenate(part) for part in zip(*chain.seen, strict=True))
                elsewhere = without_draws(run.paths, run.stats["lp"], U, lp)
        block.stats["lost"][:] = len(elsewhere) > 0
        doubt = f"{found[0].severity}: {found[0].reason}" if found else ""
        if len(elsewhere):
            place = describe(self._sampled_model, U[elsewhere[0]])
            doubt = f"the burn-in found likely places where this chain has no draws: {place}."
        self._progress.conclude(doubt)
        return block

    def _sweeps_of_next_block(self) -> int:
        """Number of sweeps of the next block: blocks are equal, and each fits into memory."""
        to_go = math.ceil(self._chain.draws / self.ensemble_size) - self._chain.sweeps
        if self.ensemble_size == 1:  # an ordinary chain
            return 1
        if to_go <= 0:  # the caller wants more draws than it announced
            return SHORTEST_BLOCK
        coordinates = self._bound.problem.dimension * (2 if self._proposes else 1)
        numbers_a_draw = coordinates + len(STATS) + math.ceil(PACKET / 8)
        fitting = BLOCK_BYTES // (8 * numbers_a_draw * self.ensemble_size)
        return math.ceil(to_go / max(1, to_go // max(SHORTEST_BLOCK, fitting)))

    @contextmanager
    def _interrupts_end_the_run(self) -> Iterator[None]:
        """End the run at an interrupt in the burn-in, when there are no draws yet."""
        try:
            with interruptible():
                yield
        except KeyboardInterrupt:
            end_run(monotonic())

    # -- progress bar ---------------------------------------------------------------------------

    def _progressbar_config(
        self, n_chains: int = 1
    ) -> tuple[list[ProgressColumn], dict[str, list]]:
        self._board.start(n_chains)
        return [EnsembleColumn(self._board, n_chains)], BarFields(self._board)

    def _make_progressbar_update_functions(self) -> tuple:
        def update_stats(stats: Stats) -> Stats:
            if bar_is_live():
                self._board.note_bar()
            return {
                "sweep": stats["sweep"] + 1,
                "n_evals": stats["n_evals"],
                "n_failed": stats["n_failed"],
                "acceptance": stats["acceptance"],
            }

        # PyMC keeps the function until the run ends
        pass_on_first_interrupt(owner=update_stats)
        self._common.remove_with(owner=update_stats)
        return (update_stats,)
