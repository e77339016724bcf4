"""How a step method runs its sampler, round by round: burn-in iterations, then sweeps."""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, cast

import numpy as np
import pymc as pm

from pymc_ensemble.log import ProgressLog, logger
from pymc_ensemble.problem.driver import Account, Driver
from pymc_ensemble.problem.inverse_problem import InverseProblem
from pymc_ensemble.problem.points import split_angles
from pymc_ensemble.samplers.ensemble import Info, Origin, Snapshot
from pymc_ensemble.samplers.examination import Examination

from .binding import BoundStep
from .chain import Chain
from .common_stage import CommonStage, Outcome

COMMON_KEY = 0x1107  # distinguishes the seed of a common stage from the seeds of the chains
CONSEQUENCE = (
    "Its particle stays where it was. If this was its start, another draw replaces it. Later "
    "failures of this chain are counted in the stat `n_failed`, but not reported."
)
REMEDY = (
    "priors, or an `initial_ensemble`, that stay where the forward map works; a larger ensemble; "
    "or a forward map that returns a value instead of failing."
)


class RunningStep(BoundStep):
    """Step method that advances a chain of its sampler."""

    default_tune_steps = 80
    common_key: ClassVar[int] = COMMON_KEY
    common_round: ClassVar[str] = "burn-in iteration"  # what a round of a common stage is called
    remedy_of_burn_in = "Use a larger ensemble_size, more informative priors or an initial_ensemble"
    rng: np.random.Generator
    _chain: Chain
    _common: CommonStage
    _progress: ProgressLog

    def _start(self) -> None:
        """Choose the positions from which the particles start."""
        bound, chain = self._bound, self._chain
        if bound.initial is None:
            U = bound.problem.sample_prior(self.ensemble_size, self.rng)
            if isinstance(bound.problem, InverseProblem):
                bound.problem.check_prior(U)
            chain.state = bound.sampler.start(U, redraw=True)
        else:
            U = bound.initial.for_chain(self._chain_number)
            chain.state = bound.sampler.start(U, skip_burn_in=bound.initial.burned_in)

    def _start_for_all(
        self, goes_on: Callable[[Any], bool], outcome_of: Callable[[Any], Any], **options: Any
    ) -> Outcome:
        """Run the burn-in once for all chains. The outcome does not depend on the chain that asks.

        Parameters
        ----------
        goes_on : callable
            Whether a state needs another round. The burn-in stops in any case when tuning ends.
        outcome_of : callable
            Returns the part of the last state that all chains get.
        **options
            Options of the sampler's `start`.
        """
        bound, seed = self._bound, cast(np.random.SeedSequence, self.rng.bit_generator.seed_seq)
        key = (*self._spawn_key[:-1], self.common_key)
        rng = np.random.default_rng(np.random.SeedSequence(seed.entropy, spawn_key=key))
        driver = replace(self._driver, account=Account())
        with driver.failures_in_words(None):
            if bound.initial is None:
                U = self._first_positions(rng)
                if isinstance(bound.problem, InverseProblem):
                    bound.problem.check_prior(U)
                state = bound.sampler.start(U, redraw=True, **options)
            else:
                skip = bound.initial.burned_in
                state = bound.sampler.start(bound.initial.U[0], skip_burn_in=skip, **options)
        iterations, seen = 0, []
        while goes_on(state) and iterations < (self._chain.tune or self.default_tune_steps):
            state, info = self._evaluator(driver, state).round(bound.sampler, state, rng)
            self._tell(driver, f"{self.common_round} {iterations + 1}", info, iterations)
            iterations += info.complete
            if info.complete and (ensemble := state.ensemble) is not None:
                seen.append((ensemble.U[ensemble.ok], -ensemble.potential[ensemble.ok]))
        with driver.failures_in_words(state):
            return Outcome(outcome_of(state), driver.account, iterations, seen)

    def _first_positions(self, rng: np.random.Generator) -> np.ndarray:
        """Draws of the prior at which the common stage begins."""
        size: int = self._bound.sampler.start_size
        return self._bound.problem.sample_prior(size, rng)

    def _take_over(self, outcome: Outcome, own: bool) -> None:
        """Record a common stage, which this chain (`own`) or another one has computed."""
        chain, account = self._chain, outcome.account
        chain.seen = [*outcome.seen]
        if own:
            chain.n_evals, chain.n_failed = account.n_evals, account.n_failed
            chain.first_failure, chain.n_shared = account.first_failure, account.n_evals

    @property
    def _found(self) -> Examination | None:
        """Result of the sampler's examination of the forward map, if there was one."""
        found: Examination | None = getattr(self._chain.state, "found", None)
        return found

    @property
    def _origin(self) -> Origin:
        """Law of the draws, and facts about the forward map."""
        origin, found = self._bound.sampler.origin(self._chain.state), self._found
        if found is None:
            return origin
        return replace(origin, fluctuation=float(f"{found.fluctuation:.3g}"))

    def _burn_in_once(self) -> None:
        """Do one iteration of the burn-in."""
        chain = self._chain
        if chain.state is None:
            with self._driver.failures_in_words(None):
                self._start()
        self._iterate(f"burn-in iteration {chain.iterations + 1}")
        chain.iterations += 1
        if (ensemble := chain.state.ensemble) is not None:
            chain.seen.append((ensemble.U[ensemble.ok], -ensemble.potential[ensemble.ok]))
        self._note_convergence()

    def _note_convergence(self) -> None:
        """Note whether the burn-in has passed its test. A continued run keeps its old result."""
        chain, initial = self._chain, self._bound.initial
        chain.converged = chain.state.converged
        if initial is not None and initial.burned_in:
            chain.converged = initial.converged

    def _end_burn_in(self) -> None:
        """Stop all adaptation. Run the burn-in first, if there were no tuning calls."""
        chain = self._chain
        if chain.tune == 0:
            logger.info(f"{self._progress.label}tune=0: burn-in runs before the first draw.")
        while chain.state is None or (chain.tune == 0 and self._burn_in_goes_on()):
            self._burn_in_once()
        tuning_was_short = not chain.state.burned_in and self._burn_in_goes_on()
        with self._driver.failures_in_words(chain.state):
            chain.state = self._bound.sampler.freeze(chain.state)
        if self._bound.initial is None or not self._bound.initial.burned_in:
            chain.converged = chain.converged and chain.state.converged
        if not chain.converged:
            remedy = (
                f"Give it more time: `pm.sample(tune={self.default_tune_steps})`"
                if tuning_was_short
                else self.remedy_of_burn_in
            )
            warnings.warn(
                f"The burn-in had not passed its test after {chain.iterations} iterations "
                f"({chain.n_evals} forward evaluations). The run goes on from the ensemble as it "
                f"is, and its draws carry `converged=False`. {remedy}.",
                stacklevel=2,
            )
        self._warn_of_split_angles()
        self._progress.end_burn_in(chain.iterations, chain.n_evals, self._found)
        chain.sampling = True

    def _warn_of_split_angles(self) -> None:
        """Warn if the posterior of an angle lies at the cut of its period."""
        ensemble, bound = self._chain.state.ensemble, self._bound
        pilot = getattr(self._chain.state, "pilot", None)  # a single walker is on one side only
        if ensemble is None and pilot is None:
            return
        U = pilot.positions if pilot is not None else ensemble.U[ensemble.ok]
        for name, where in split_angles(bound.model, U, bound.problem.coordinate_names).items():
            warnings.warn(
                f"The posterior of the angle `{name}` is around {where:.2f}, where its period is "
                "cut. So the ensemble is in two parts. Draws may be wrong, and their mean and "
                "standard deviation say nothing. Measure the angle from there: use a pm.VonMises "
                f"with `mu={where:.1f}`. If its prior is flat, use another angle, and add "
                f"{where:.1f} to get `{name.partition('[')[0]}`.",
                stacklevel=2,
            )

    def _burn_in_goes_on(self) -> bool:
        chain = self._chain
        return not chain.state.burned_in and chain.iterations < self.default_tune_steps

    def _sweep(self, sweeps_to_go: int) -> Snapshot:
        """Advance the ensemble by one sweep."""
        snapshot = None
        while snapshot is None:
            info = self._iterate(f"sweep {self._chain.sweeps + 1}", sweeps_to_go)
            snapshot = info.snapshot
        return snapshot

    def _iterate(self, what: str, sweeps_to_go: int | None = None) -> Info:
        """Evaluate rounds until an iteration of the sampler is complete."""
        chain, begun, complete = self._chain, self._chain.n_evals, False
        while not complete:
            chain.state, info = self._evaluator(self._driver, chain.state).round(
                self._bound.sampler, chain.state, self.rng, chain.n_evals - chain.n_shared
            )
            complete = info.complete
            spent = 0 if complete or sweeps_to_go is None else chain.n_evals - begun
            self._tell(self._driver, what, info, chain.iterations, sweeps_to_go, spent)
        return info

    def _evaluator(self, driver: Driver, state: Any) -> Driver:
        """Driver that evaluates the next points. A sampler with several models overrides this."""
        return driver

    def _tell(
        self,
        driver: Driver,
        what: str,
        info: Info,
        iterations: int,
        sweeps_to_go: int | None = None,
        spent: int = 0,
    ) -> None:
        """Report a round: in the burn-in, or `spent` evaluations after the last sweep."""
        chain, sampling = self._chain, sweeps_to_go is not None
        left = max(math.ceil(chain.draws / self.ensemble_size) - chain.sweeps, sweeps_to_go or 0)
        left -= info.complete and sampling
        cost = getattr(self._bound.sampler, "evaluations_per_sweep", self.ensemble_size)
        driver.tell(
            f"{what}, {info.message}",
            max(0, left * cost - spent),
            sampling=sampling,
            iteration=iterations + 1,
            sweeps_to_go=left,
            acceptance=math.nan if info.snapshot is None else info.snapshot.acceptance.mean(),
        )

    @property
    def _driver(self) -> Driver:
        return Driver(
            self._bound.problem,
            self._sampled_model,
            self._chain,
            self._progress,
            where="in this chain",
            consequence=CONSEQUENCE,
            remedy=REMEDY,
        )

    @property
    def _spawn_key(self) -> tuple[int, ...]:
        """Key by which `pymc.sample` distinguishes chains; the same in every process."""
        sequence: Any = self.rng.bit_generator.seed_seq
        return sequence.spawn_key

    @property
    def _chain_number(self) -> int:
        return self._spawn_key[-1] if self._spawn_key else 0

    @property
    def _sampled_model(self) -> pm.Model:
        """Model of the variables that this step moves."""
        return self._bound.model
