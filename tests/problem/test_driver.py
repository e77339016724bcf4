"""Rounds of evaluations: what is counted, seeded, limited, and told."""

import logging

import numpy as np
import pymc as pm
import pytest
from pymc.exceptions import SamplingError
from threadpoolctl import threadpool_info
from toys import ToySampler, gaussian_model

import pymc_ensemble as pe
from pymc_ensemble.forward.evaluation import Evaluations
from pymc_ensemble.log import ProgressLog
from pymc_ensemble.problem.driver import Account, Driver, seed_of_round
from pymc_ensemble.samplers.ensemble import Ensemble, EnsembleFailure


def scale_model():
    """One parameter, whose coordinate is its logarithm."""
    with pm.Model() as model:
        scale = pm.HalfNormal("scale")
        pm.Normal("y", scale, 1.0, observed=0.0)
    return model


class Problem:
    """A forward map that fails where its input is positive, and remembers its seeds."""

    dimension = 1

    def __init__(self, fails=True):
        self.fails, self.seeds = fails, []

    def evaluate(self, U, seed=None):
        self.seeds.append(seed)
        failed = (U[:, 0] > 0) & self.fails
        errors = [(int(k), f"Traceback: row {k}") for k in np.flatnonzero(failed)]
        return Evaluations.from_outputs(U, errors)

    def loss(self, Z):
        return 0.5 * (Z**2).sum(axis=1)

    def prior_potential(self, U):
        return np.zeros(len(U))


class Round:
    """One round with given points, and a hook that is called in `ask` and in `tell`."""

    def __init__(self, points, hook=lambda: None):
        self.points, self.hook = np.array(points)[:, None], hook

    def ask(self, state, rng):
        self.hook()
        return self.points, "pending"

    def tell(self, state, pending, evaluations):
        assert pending == "pending"
        self.hook()
        return (state or 0) + int(evaluations.failed.sum()), None


def driver(problem, **options):
    return Driver(problem, scale_model(), Account(), ProgressLog("Here"), **options)


def test_rounds_are_counted_and_the_first_failure_is_told(caplog):
    drive, rng = driver(Problem(), consequence="So be it."), np.random.default_rng(1)
    state, _ = drive.round(Round([-1.0, -2.0]), None, rng)
    assert (state, drive.account) == (0, Account(2, 0, ""))
    state, _ = drive.round(Round([-1.0, np.log(2.0), 2.0]), state, rng)
    state, _ = drive.round(Round([1.0]), state, rng)
    assert (state, drive.account.n_evals, drive.account.n_failed) == (3, 6, 3)
    assert drive.account.first_failure == "scale=2.0\nTraceback: row 1"
    [told] = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert told.startswith("Here: a forward evaluation failed, at scale=2.0\nTraceback: row 1\n")
    assert told.endswith("So be it.")


def test_seeds_follow_from_the_generator_and_the_evaluations_before():
    problem, rng = Problem(), np.random.default_rng(np.random.SeedSequence(5, spawn_key=(3,)))
    drive = driver(problem)
    drive.round(Round([-1.0, -2.0]), None, rng)
    drive.round(Round([-1.0]), None, rng)
    drive.round(Round([-1.0]), None, rng, number=0)
    words = [tuple(seed.generate_state(4)) for seed in problem.seeds]
    assert words[0] == words[2] == tuple(seed_of_round(rng, 0).generate_state(4))
    assert words[1] == tuple(seed_of_round(rng, 2).generate_state(4)) != words[0]
    assert all(seed.entropy == 5 and seed.spawn_key[0] == 3 for seed in problem.seeds)
    other = np.random.default_rng(np.random.SeedSequence(5, spawn_key=(4,)))
    assert tuple(seed_of_round(other, 0).generate_state(4)) != words[0]


def test_linear_algebra_has_one_thread():
    threads = []

    def look():
        threads.extend(p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas")

    before = [p["num_threads"] for p in threadpool_info()]
    driver(Problem()).round(Round([-1.0], look), None, np.random.default_rng(1))
    assert len(threads) >= 2
    assert set(threads) == {1}
    assert [p["num_threads"] for p in threadpool_info()] == before


def test_sampler_that_cannot_go_on_is_explained():
    """In `ask` and in `tell`, with the first failure and what to try."""
    drive = driver(Problem(), where="in this chain", remedy="something else.")
    calls = []

    def fail_at_the_second_call():
        calls.append(None)
        if len(calls) >= 2:
            raise EnsembleFailure("Nothing goes.")

    for n_evals in (2, 2):  # `tell` fails, then `ask`
        with pytest.raises(SamplingError) as error:
            drive.round(Round([1.0, -1.0], fail_at_the_second_call), None, np.random.default_rng(1))
        assert str(error.value).split("\n") == [
            "Nothing goes.",
            f"1 of {n_evals} forward evaluations failed in this chain.",
            "The first failure was at scale=2.71828",
            "Traceback: row 0",
            "What to try: something else.",
        ]
        assert isinstance(error.value.__cause__, EnsembleFailure)


def test_sampler_that_names_a_remedy_is_given_no_other():
    """What helps against failures of the forward map is beside the point then."""

    def fail():
        raise EnsembleFailure("The density is rough.", "Use another sampler.")

    drive = driver(Problem(fails=False), where="in this chain", remedy="something else.")
    with pytest.raises(SamplingError) as error:
        drive.round(Round([1.0], fail), None, np.random.default_rng(1))
    assert str(error.value).split("\n") == [
        "The density is rough. Use another sampler.",
        "0 of 0 forward evaluations failed in this chain.",
    ]


def test_density_that_is_not_finite_is_explained():
    """Without a failed evaluation: the member whose density is not finite is named."""
    problem = Problem(fails=False)
    problem.prior_potential = lambda U: np.where(U[:, 0] > 1, np.inf, 0.0)
    U = np.array([[0.0], [np.log(4.0)]])

    class State:
        ensemble = Ensemble.evaluated(problem, U, problem.evaluate(U))

    told = r"density is not finite, for example at scale=4\.0"
    with pytest.raises(SamplingError, match=told), driver(problem).failures_in_words(State()):
        raise EnsembleFailure("Too few.")


def test_other_errors_pass():
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        driver(Problem()).round(Round([1.0], interrupt), None, np.random.default_rng(1))


def test_failure_of_a_real_sampler():
    """The toy sampler gives up if fewer than two members are left."""
    model = gaussian_model()
    problem = pe.InverseProblem.from_model(model)
    problem.evaluate = lambda U, seed=None: Evaluations.from_outputs(np.full((len(U), 2), np.nan))
    drive = Driver(problem, model, Account(), ProgressLog("Here"))
    sampler = ToySampler(problem)
    with pytest.raises(SamplingError, match=r"All 10 members failed.\n10 of 10 forward") as error:
        drive.round(sampler, sampler.start(np.ones((10, 2))), np.random.default_rng(1))
    assert "x=[1. 1.]" in str(error.value)
    assert "outputs are not finite" in str(error.value)
