from dataclasses import dataclass, replace

import numpy as np
import pytest
from array_problems import random_linear, step

from pymc_ensemble.samplers.ensemble import Ensemble, EnsembleFailure, Info, Origin, Snapshot
from pymc_ensemble.samplers.kernels import NothingToFreeze
from pymc_ensemble.samplers.linearization import Anomalies
from pymc_ensemble.samplers.phases import EnsembleSampler
from pymc_ensemble.samplers.rest import IN_A_ROW, Standstill

REST = np.random.default_rng(0).standard_normal((50, 2))


def after(ensembles, time):
    rest = Standstill()
    for U in ensembles:
        rest = rest.after(Anomalies.of(U), time)
    return rest


def test_rest_takes_relaxation_times():
    """One relaxation time a comparison, however small the steps are."""
    assert after([REST] * (1 + IN_A_ROW), 1.0).done
    assert not after([REST] * (1 + 10 * IN_A_ROW), 0.05).done
    assert after([REST] * (2 + 20 * IN_A_ROW), 0.05 + 1e-9).done


def test_an_ensemble_that_drifts_is_not_at_rest():
    drifting = [REST + np.array([0.8 * k, 0.0]) for k in range(20)]
    assert not after(drifting, 1.0).done
    growing = [1.5**k * REST for k in range(20)]
    assert not after(growing, 1.0).done


# -- the life of a sampler, whatever its kernels are -----------------------------------------------


@dataclass(frozen=True)
class CounterState:
    ensemble: Ensemble
    left: int
    passes: bool = True
    frozen: bool = False

    @property
    def burned_in(self):
        return self.left <= 0

    @property
    def converged(self):
        return self.burned_in and self.passes


@dataclass(frozen=True)
class Counter(NothingToFreeze):
    """Evaluates its particles anew, and is done after some rounds."""

    problem: object
    rounds: int
    passes: bool = True

    def start(self, ensemble, *, at_rest=False):
        return CounterState(ensemble, 0 if at_rest else self.rounds, self.passes)

    def ask(self, state, rng):
        return state.ensemble.U, None

    def tell(self, state, pending, evaluations):
        U = state.ensemble.U
        snapshot = Snapshot(U, *np.zeros((3, len(U))), np.nan)
        info = Info.of(evaluations, "sampling", "", snapshot=snapshot)
        return replace(state, left=state.left - 1), info

    def freeze(self, state):
        return replace(state, frozen=True)


@dataclass(frozen=True)
class Counting(EnsembleSampler):
    burning: int = 2
    settling: int = 3
    passes: tuple = (True, True)

    @property
    def burn_in(self):
        return Counter(self.problem, self.burning, self.passes[0]) if self.burning else None

    @property
    def kernel(self):
        return Counter(self.problem, self.settling, self.passes[1])

    def origin(self, state):
        return Origin("density")


def started(**options):
    problem, rng = random_linear(2), np.random.default_rng(0)
    sampler = Counting(problem, 10, **options)
    return sampler, problem, sampler.start(problem.sample_prior(10, rng)), rng


def phases(sampler, problem, state, rng, rounds):
    seen = []
    for _ in range(rounds):
        seen.append(state.phase)
        state, info = step(sampler, problem, state, rng)
        told = {"settling": "burn-in"}.get(seen[-1], seen[-1])
        assert info.phase == told
        assert (info.snapshot is None) == (seen[-1] != "sampling")
    return seen, state


@pytest.mark.parametrize(
    ("burning", "settling", "skip", "expected"),
    [
        (2, 3, False, ["start", *["burn-in"] * 2, *["settling"] * 3, "sampling"]),
        (2, 0, False, ["start", "burn-in", "burn-in", "sampling", "sampling"]),
        (0, 2, False, ["start", "settling", "settling", "sampling"]),
        (0, 0, False, ["start", "sampling"]),
        (2, 3, True, ["start", "sampling"]),
    ],
)
def test_phases_follow_one_another(burning, settling, skip, expected):
    sampler, problem, state, rng = started(burning=burning, settling=settling)
    state = sampler.start(state.inner.U, skip_burn_in=skip)
    seen, state = phases(sampler, problem, state, rng, len(expected))
    assert seen == expected
    assert state.burned_in
    assert state.converged
    assert state.inner.frozen


@pytest.mark.parametrize("passes", [(True, True), (False, True), (True, False)])
def test_all_phases_must_pass(passes):
    sampler, problem, state, rng = started(passes=passes)
    _, state = phases(sampler, problem, state, rng, 7)
    assert state.phase == "sampling"
    assert state.converged == all(passes)


@pytest.mark.parametrize("rounds", range(1, 8))
def test_tuning_can_end_at_any_round(rounds):
    """What was cut short has not passed."""
    sampler, problem, state, rng = started()
    _, state = phases(sampler, problem, state, rng, rounds)
    frozen = sampler.freeze(state)
    assert frozen.phase == "sampling"
    assert frozen.converged == (rounds >= 6)
    assert frozen.inner.frozen
    assert sampler.freeze(frozen) is frozen


def test_nothing_can_be_sampled_without_an_evaluation():
    sampler, _, state, _ = started()
    assert state.ensemble is None
    with pytest.raises(EnsembleFailure, match="Nothing has been evaluated"):
        sampler.freeze(state)


def test_failures_in_a_row_end_the_run_and_others_do_not():
    sampler, problem, state, rng = started()
    state, _ = step(sampler, problem, state, rng)
    problem.fails = lambda U: np.arange(len(U)) > 0
    for _ in range(5):
        state, _ = step(sampler, problem, state, rng)
    assert state.failed_in_a_row == 0
    problem.fails = lambda U: np.ones(len(U), dtype=bool)
    with pytest.raises(EnsembleFailure, match="All of the last 10 forward evaluations"):
        step(sampler, problem, state, rng)


def test_a_sampler_goes_on_from_an_evaluated_ensemble():
    sampler, problem, state, rng = started()
    resumed = sampler.resume(problem.ensemble(state.inner.U))
    assert phases(sampler, problem, resumed, rng, 3)[0] == ["burn-in", "burn-in", "settling"]
