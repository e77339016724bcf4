"""The step methods' contract with PyMC, tested with a sampler whose law is known."""

import itertools
import logging
import math
import pickle
import warnings
from dataclasses import replace
from functools import partial

import cloudpickle
import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
from pymc.exceptions import SamplingError
from pymc.model.transform.optimization import freeze_dims_and_data
from pymc.sampling.parallel import ParallelSamplingError
from pymc.step_methods import CompoundStep
from toys import CountCalls, ToyState, ToyStep, gaussian_model, sample

import pymc_ensemble as pe
from pymc_ensemble import log
from pymc_ensemble.diagnosis.ensembles import to_ensemble
from pymc_ensemble.problem import driver
from pymc_ensemble.problem.points import usual_point
from pymc_ensemble.samplers.ensemble import Ensemble
from pymc_ensemble.step_methods import base as step_methods

J = 10  # particles of the toy sampler
BURN_IN = 3  # its iterations of J evaluations each: the start and two more


# -- draws and stats ----------------------------------------------------------------------------


def test_stats_are_complete_and_typed():
    idata = sample(gaussian_model(), draws=30, chains=2)
    stats = idata.sample_stats
    assert {name: stats[name].dtype.kind for name in stats.data_vars} == {
        "lp": "f",
        "log_q": "f",
        "particle": "i",
        "sweep": "i",
        "n_evals": "i",
        "acceptance": "f",
        "proposal_lp": "f",
        "proposal_log_q": "f",
        "step_size": "f",
        "n_failed": "i",
        "converged": "b",
        "lost": "b",
        "unconstrained": "f",
        "made_by": "u",
    }
    lp = -0.5 * (idata.posterior.x**2).sum("x_dim_0") - np.log(2 * np.pi)
    np.testing.assert_allclose(stats.lp, lp)
    np.testing.assert_array_equal(stats.unconstrained, idata.posterior.x)
    assert (stats.n_failed == 0).all()
    assert stats.converged.all()


@pytest.mark.parametrize("draws", [1, 7, 10, 25, 50])
def test_path_of_each_particle_is_contiguous(draws):
    idata = sample(gaussian_model(), draws=draws)
    S = math.ceil(draws / J)
    expected = list(itertools.product(range(J), range(S)))[:draws]
    stats = idata.sample_stats.isel(chain=0)
    drawn = zip(stats.particle.to_numpy(), stats.sweep.to_numpy(), strict=True)
    assert [(int(p), int(s)) for p, s in drawn] == expected
    np.testing.assert_array_equal(stats.n_evals, (BURN_IN + 1 + stats.sweep) * J)


def test_draws_are_the_particles_of_the_sampler(monkeypatch):
    """Every snapshot of the sampler is found where its sweep and particle say."""
    snapshots = []

    class Recording(ToyStep.sampler_class):
        def finish(self, state, block, rng):
            snapshots.extend(block)
            return block

    monkeypatch.setattr(ToyStep, "sampler_class", Recording)
    with pm.Model() as model:
        a = pm.Normal("a")
        b = pm.HalfNormal("b", shape=(2, 3))
        pm.Normal("y", a + b.sum(), 1.0, observed=0.0)
    ensembles = to_ensemble(sample(model, draws=40))
    assert len(snapshots) == 4
    posterior = ensembles["posterior"].isel(chain=0)
    for sweep, snapshot in enumerate(snapshots):
        drawn = posterior.isel(sweep=sweep)
        np.testing.assert_array_equal(drawn["a"], snapshot.U[:, 0])
        np.testing.assert_allclose(
            drawn["b"], np.exp(snapshot.U[:, 1:]).reshape(J, 2, 3), rtol=1e-14
        )


def test_blocks_that_do_not_fit_in_memory(monkeypatch):
    """Blocks have equal length, never less than five sweeps."""
    whole = to_ensemble(sample(gaussian_model(), draws=170))
    monkeypatch.setattr(step_methods, "BLOCK_BYTES", 0)
    idata = sample(gaussian_model(), draws=170)
    particle = idata.sample_stats.particle.to_numpy()[0]
    lengths = [len(list(path)) for _, path in itertools.groupby(particle)]
    assert lengths == J * [6] + J * [6] + J * [5]
    np.testing.assert_array_equal(to_ensemble(idata)["posterior"]["x"], whole["posterior"]["x"])


def test_more_draws_than_announced():
    """A chain goes on in blocks when it is asked for more than PyMC announced."""
    step = ToyStep(model=gaussian_model())
    with gaussian_model() as model:
        step.setup_chain(np.random.default_rng(1), 0, 20)
        step.stop_tuning()
        point, sweeps = model.initial_point(), []
        for _ in range(20 + 50 + 1):
            point, [stats] = step.step(point)
            sweeps.append(stats["sweep"])
    assert max(sweeps[:20]) == 1
    assert set(sweeps[20:70]) == {2, 3, 4, 5, 6}
    assert sweeps[70] == 7


def test_points_are_not_overwritten():
    """Neither the arrays that come in nor those that go out are shared with later draws."""
    model = gaussian_model()
    with model:
        step = ToyStep()
    step.setup_chain(np.random.default_rng(1), 5, 60)
    shared = {name: value.copy() for name, value in model.initial_point().items()}
    points, copies = [], []
    for call in range(65):
        if call == 5:
            step.stop_tuning()
        point, _ = step.step(shared)
        points.append(point)
        copies.append({name: value.copy() for name, value in point.items()})
        for name, value in point.items():  # as PyMC's workers do
            shared[name][...] = value
    for point, copy in zip(points, copies, strict=True):
        np.testing.assert_array_equal(point["x"], copy["x"])
    assert len({tuple(copy["x"]) for copy in copies[5:]}) == 60


def test_chains_do_not_share_anything():
    """One instance serves all chains in turn, and nothing is left over."""
    model = gaussian_model()
    two = sample(model, chains=2)
    step = ToyStep()
    again = sample(model, step, chains=2)
    once_more = sample(model, step, chains=2)
    np.testing.assert_array_equal(two.posterior.x, again.posterior.x)
    np.testing.assert_array_equal(two.posterior.x, once_more.posterior.x)
    assert not np.array_equal(two.posterior.x[0], two.posterior.x[1])
    assert two.sample_stats.n_evals.to_numpy()[1, 0] == (BURN_IN + 1) * J


# -- tuning -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tune", [None, 3, 1000])
def test_tuning_is_free_once_the_burn_in_has_passed(tune):
    count = CountCalls()
    idata = sample(gaussian_model(), ToyStep(hook=count), tune=tune)
    assert count.evaluations == (BURN_IN + 5) * J
    assert idata.sample_stats.n_evals.max() == count.evaluations
    assert idata.sample_stats.converged.all()


def test_tuning_draws_are_particles():
    idata = sample(gaussian_model(), tune=20, discard_tuned_samples=False)
    warmup, stats = idata["warmup_posterior"], idata["warmup_sample_stats"]
    assert warmup.sizes["draw"] == 20
    np.testing.assert_array_equal(stats["n_evals"][0, :5], np.array([1, 2, 3, 3, 3]) * J)
    lp = -0.5 * (warmup["x"] ** 2).sum("x_dim_0") - np.log(2 * np.pi)
    np.testing.assert_allclose(stats["lp"], lp)
    assert (stats["sweep"] == -1).all()
    assert np.isnan(stats["log_q"]).all()
    np.testing.assert_array_equal(stats["converged"][0], np.arange(20) >= BURN_IN - 1)


def test_tuning_without_any_usable_particle_keeps_the_point():
    """The first evaluations may leave nothing better than the initial point."""
    model = gaussian_model()
    with model:
        step = ToyStep()
    step.setup_chain(np.random.default_rng(1), 5, 60)
    U, nowhere = np.zeros((J, 2)), np.full(J, np.inf)
    ensemble = Ensemble(U, U, nowhere, nowhere)
    step.chain = replace(step.chain, state=ToyState(U, ensemble=ensemble, burned_in=True))
    start = model.initial_point()
    start["x"][:] = 7.0
    point, [stats] = step.step(start)
    np.testing.assert_array_equal(point["x"], start["x"])
    assert stats["particle"] == -1


def test_no_tuning_runs_the_burn_in_and_says_so(caplog):
    caplog.set_level(logging.INFO, "pymc_ensemble")
    idata = sample(gaussian_model(), tune=0)
    assert "tune=0: burn-in runs before the first draw" in caplog.text
    assert idata.sample_stats.n_evals.max() == (BURN_IN + 5) * J
    assert idata.sample_stats.converged.all()


def test_tuning_that_is_too_short_is_marked():
    with pytest.warns(UserWarning, match=r"after 2 iterations \(20 .*pm.sample\(tune=80\)"):
        idata = sample(gaussian_model(), tune=2)
    assert not idata.sample_stats.converged.any()
    assert idata.sample_stats.n_evals.max() == (2 + 5) * J


@pytest.mark.parametrize("tune", [None, 0])
def test_burn_in_that_does_not_pass_is_marked(tune):
    with pytest.warns(UserWarning, match="larger ensemble_size"):
        idata = sample(gaussian_model(), ToyStep(burn_in=10**6), tune=tune)
    assert not idata.sample_stats.converged.any()
    assert idata.sample_stats.n_evals.max() == (ToyStep.default_tune_steps + 5) * J


# -- models -------------------------------------------------------------------------------------


def test_step_is_built_before_its_model():
    step = ToyStep()
    model = gaussian_model()
    np.testing.assert_array_equal(sample(model, step).posterior.x, sample(model).posterior.x)
    with pytest.raises(TypeError, match="has no model yet"):
        _ = ToyStep().vars


def test_step_is_used_again_on_other_models():
    step = ToyStep(vars=["x"])
    for model in (
        gaussian_model(3),
        gaussian_model(2),
        pm.observe(pm.do(gaussian_model(2), {}), {}),
        gaussian_model(2).copy(),
    ):
        size = model.initial_point()["x"].size
        assert sample(model, step).posterior.x.shape == (1, 50, size)


def test_do_and_observe_change_what_is_sampled():
    with pm.Model() as model:
        a = pm.Normal("a")
        b = pm.Normal("b")
        y = pm.Normal("y", a + b, 1.0)
    step = ToyStep()
    observed = pm.observe(model, {y: 0.5})
    assert set(sample(observed, step).posterior.data_vars) == {"a", "b"}
    assert set(sample(pm.do(observed, {"b": 1.0}), step).posterior.data_vars) == {"a"}
    assert [v.name for v in step._binding.vars] == ["a"]


def test_model_that_grew_after_the_step_was_built():
    with pm.Model() as model:
        a = pm.Normal("a")
        step = ToyStep()
        pm.Normal("b", a)
        pm.Normal("y", a, 1.0, observed=0.0)
    assert set(sample(model, step).posterior.data_vars) == {"a", "b"}


def test_pickled_step_needs_no_context():
    model = gaussian_model()
    with model:
        step = ToyStep()
    copy = pickle.loads(cloudpickle.dumps(step))
    assert [v.name for v in copy.vars] == ["x"]
    draws = []
    for each in (step, copy):
        each.setup_chain(np.random.default_rng(3), 4, 20)
        point = model.initial_point()
        for call in range(24):
            if call == 4:
                each.stop_tuning()
            point, _ = each.step(point)
        draws.append(point["x"])
    np.testing.assert_array_equal(*draws)


def test_discrete_variables_are_refused():
    with pm.Model() as model:
        rate = pm.HalfNormal("rate")
        count = pm.Poisson("count", rate)
        pm.Normal("y", count, 1.0, observed=0.0)
        with pytest.raises(ValueError, match=r"`count` is discrete.*Marginalize"):
            ToyStep()
    with pytest.raises(ValueError, match=r"`count` is discrete.*Marginalize"):
        sample(model)


def test_subset_of_variables_is_refused():
    with pm.Model():
        a = pm.Normal("a")
        b = pm.HalfNormal("b")
        pm.Normal("y", a, b, observed=0.0)
        with pytest.raises(ValueError, match=r"leaves out `b`.*pm\.do"):
            ToyStep([a])
        with pytest.raises(ValueError, match=r"`c` is not a continuous free variable.*`a`, `b`"):
            ToyStep(["a", "b", "c"])
        with pytest.raises(ValueError, match=r"`y` is not"):
            ToyStep(["a", "b", "y"])
        for complete in ([a, b], [b, a], ["a", "b_log__"]):
            assert [v.name for v in ToyStep(complete).vars] == ["a", "b_log__"]


@pytest.mark.parametrize(
    ("step", "options"),
    [
        (pe.EnsembleKalmanSampler, {"rough": "no"}),
        (pe.EnsembleKalmanSampler, {"allow_subspace": 1.0}),
        (pe.EnsembleGaussianProcessSampler, {"adjust": "no"}),
        (pe.EnsembleLangevinSampler, {"adjust": "yes"}),
        (pe.MultiscaleSampler, {"central": "no"}),
        (pe.MultiscaleSampler, {"blocked": "yes"}),
    ],
)
def test_options_that_are_neither_true_nor_false_are_refused(step, options):
    [name] = options
    with pytest.raises(TypeError, match=f"{name} must be True or False"):
        step(**options)
    step(adjust=np.bool_(True))


@pytest.mark.parametrize(
    ("order", "options"),
    [
        (1, {"cores": 1}),
        (-1, {"cores": 1, "tune": 0}),
        (1, {"cores": 2, "mp_ctx": "fork"}),
        (-1, {"cores": 2, "mp_ctx": "forkserver"}),
    ],
)
def test_step_method_beside_one_that_moves_all_variables_is_refused(order, options, tmp_path):
    """Before the first evaluation, as its stats would be untrue."""
    called = tmp_path / "called"
    with pm.Model() as model:
        rate = pm.HalfNormal("rate")
        pm.Normal("y", rate, 1.0, observed=0.5)
        step = [ToyStep(hook=LeaveFile(called)), pm.Metropolis([rate])][::order]
        with pytest.raises(
            (ValueError, ParallelSamplingError), match=r"ToyStep moves all variables.*`rate`"
        ):
            sample(model, step, chains=2, **options)
    assert not called.exists()
    sample(model, CompoundStep(step[::order][:1]), chains=2, **options)
    assert called.exists()


class LeaveFile:
    """Hook that leaves a file behind when it is called, in whatever process."""

    def __init__(self, path):
        self.path = path

    def __call__(self, U):
        self.path.touch()
        return U


def test_step_without_a_model_is_refused_outside_of_it():
    with pytest.raises(TypeError, match=r"no model yet.*`ToyStep\(model=model\)`"):
        pm.sample(step=ToyStep(), model=gaussian_model(), progressbar=False)
    step = ToyStep(model=gaussian_model())
    assert [v.name for v in step.vars] == ["x"]


@pytest.mark.parametrize(
    ("initvals", "told"), [(None, []), ({"b": 2.0}, ["`b`"]), ({"a": 1.0, "b": 2.0}, ["`a`, `b`"])]
)
def test_initial_values_are_not_ignored_silently(initvals, told, caplog):
    with pm.Model() as model:
        pm.Normal("a", initval="prior")  # at random, whatever else is given
        pm.Normal("c", initval=pm.Normal.dist())
        pm.Normal("d", shape=2, initval=[1.0, 2.0])
        b = pm.HalfNormal("b")
        pm.Normal("y", b, 1.0, observed=0.0)
    if initvals and "a" in initvals:
        model.rvs_to_initial_values[model["a"]] = None
    sample(model, initvals=initvals, chains=2)
    lines = [r.getMessage() for r in caplog.records if "initial values" in r.getMessage()]
    assert len(lines) == len(told)
    for line, names in zip(lines, told, strict=True):
        assert f"The initial values of {names} are not used" in line
        assert "draws of the prior" in line
        assert "`initial_ensemble`" in line


def custom():
    return pm.CustomDist("a", 1.0, dist=lambda m, size: pm.LogNormal.dist(m, 1.0, size=size))


@pytest.mark.parametrize("parent", [lambda: pm.Gamma("a", 2.0, 1.0), custom])
def test_usual_initial_values_are_those_of_pymc(parent):
    with pm.Model() as model:
        a = parent()
        pm.Dirichlet("w", pt.stack([a, 1.0, 2.0]))
        pm.Normal("u", a, shape=2, initval=[3.0, 4.0])
    expected, found = model.initial_point(), usual_point(model)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value)


def test_unblocked_is_refused():
    with pytest.raises(ValueError, match="moves all variables together"):
        ToyStep(blocked=False)


# -- failures and interrupts ----------------------------------------------------------------------


def test_first_failure_is_told_with_its_parameters(caplog):
    with pm.Model() as model:
        scale = pm.HalfNormal("scale")
        pm.Normal("y", scale, 1.0, observed=0.0)

    def fails_sometimes(U):
        return np.where(U > 1.0, np.nan, U)

    idata = sample(model, ToyStep(hook=fails_sometimes), draws=100, chains=2)
    told = [r.getMessage() for r in caplog.records if "a forward evaluation failed" in r.msg]
    assert len(told) == 2  # once a chain
    value = float(told[0].split("scale=")[1].split()[0])
    assert value > math.e  # in the model's units: exp of the coordinate that failed
    assert "not finite" in told[0]
    # P(u > 1) = 0.16 in every evaluation, start included
    n_failed = idata.sample_stats.n_failed.max("draw")
    n_evals = idata.sample_stats.n_evals.max("draw")
    share = (n_failed.sum() / n_evals.sum()).item()
    assert share == pytest.approx(0.159, abs=4 * math.sqrt(0.159 * 0.841 / n_evals.sum().item()))


def test_too_many_failures_end_the_run():
    def always_fails(U):
        return np.full_like(U, np.nan)

    with pytest.raises(SamplingError) as error:
        sample(gaussian_model(), ToyStep(hook=always_fails))
    message = str(error.value)
    assert "All 10 members failed" in message
    assert "10 of 10 forward evaluations failed" in message
    assert "The first failure was at x=[" in message
    assert "not finite" in message
    assert "initial_ensemble" in message


@pytest.mark.parametrize("complete", [1, 2])
def test_interrupt_hands_out_the_complete_sweeps(complete, caplog):
    # a burn-in of 1 + 2 * 2 rounds, then two rounds a sweep, the last one is cut off in the middle
    hook = CountCalls(raise_at=1 + 2 * 2 + 2 * complete + 2, exception=KeyboardInterrupt())
    idata = sample(gaussian_model(), ToyStep(hook=hook), draws=50)
    uninterrupted = to_ensemble(sample(gaussian_model(), draws=50))["posterior"]["x"]
    assert idata.posterior.sizes["draw"] == complete * J
    ensembles = to_ensemble(idata)["posterior"]["x"]
    np.testing.assert_array_equal(ensembles, uninterrupted[:, :complete])
    assert f"{complete} complete sweeps become {complete * J} draws" in caplog.text


@pytest.mark.parametrize("raise_at", [3, 7])
def test_interrupt_before_the_first_complete_sweep(raise_at):
    """PyMC has nothing to return then."""
    hook = CountCalls(raise_at=raise_at, exception=KeyboardInterrupt())
    with pytest.raises(ValueError, match="Not enough samples"):
        sample(gaussian_model(), ToyStep(hook=hook), draws=50)


# -- state, log and bar ---------------------------------------------------------------------------


@pytest.mark.parametrize("saved_at", [0, 2, 10, 13, 40, 60])
def test_saved_state_goes_on_as_if_nothing_had_happened(saved_at):
    model = gaussian_model()
    with model:
        step, other = ToyStep(), ToyStep()
        step.setup_chain(np.random.default_rng(5), 10, 100)

        def advance(step, point, calls):
            drawn = []
            for call in calls:
                if call == 10:
                    step.stop_tuning()
                point, [stats] = step.step(point)
                drawn.append((*point["x"], stats["lp"], stats["sweep"], stats["n_evals"]))
            return drawn

        start = model.initial_point()
        advance(step, start, range(saved_at))
        saved = step.sampling_state
        expected = advance(step, start, range(saved_at, 90))
        other.sampling_state = saved
        assert advance(other, start, range(saved_at, 90)) == expected
        step.sampling_state = saved
        assert advance(step, start, range(saved_at, 90)) == expected


@pytest.mark.parametrize(
    "step",
    [
        ToyStep,
        pe.EnsembleKalmanSampler,
        partial(pe.EnsembleKalmanSampler, adjust=True, ensemble_size=20),
        pe.MultiscaleSampler,
        partial(pe.EnsembleGaussianProcessSampler, ensemble_size=20),
        pe.EnsembleLangevinSampler,
    ],
)
@pytest.mark.parametrize("calls", [0, 3, 60, 65])
def test_states_are_compared(step, calls):
    """Before the start, in the burn-in, at its end, and among the draws."""
    model = gaussian_model()
    bit_generator = np.random.Philox(5)  # whose state has arrays
    step, point = step(model=model), model.initial_point()
    step.setup_chain(np.random.Generator(bit_generator), 60, 30)

    def advance(calls):
        nonlocal point
        for call in calls:
            if call == 60:
                step.stop_tuning()
            point, _ = step.step(point)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the burn-in is short
        advance(range(calls))
        before = step.sampling_state
        assert before == step.sampling_state
        assert before == pickle.loads(pickle.dumps(before))
        advance([calls])
    after = step.sampling_state
    assert before != after
    assert before.chain != after.chain
    assert before != "something else"


def test_state_of_another_ensemble_size_is_refused():
    with gaussian_model():
        step = ToyStep(ensemble_size=12)
        with pytest.raises(ValueError, match="ensemble_size"):
            step.sampling_state = ToyStep().sampling_state


def test_progress_is_told_round_by_round(caplog, monkeypatch):
    caplog.set_level(logging.INFO, "pymc_ensemble")
    clock = itertools.count(0.0, 3.0)  # every look at the clock is three seconds later
    for module in (driver, log):
        monkeypatch.setattr(module, "perf_counter", lambda: next(clock))
    sample(gaussian_model(), draws=20)
    lines = [r.getMessage() for r in caplog.records if r.name == "pymc_ensemble"]
    assert lines[0].startswith("Chain 0: burn-in iteration 1, at 1; 10 evaluations, 0.3 s each")
    assert any("sweep 1, " in line and "to go" in line for line in lines)
    assert "about 0:00:00 to go, until " in lines[-1]


def test_progress_is_not_told_at_every_round(caplog, monkeypatch):
    caplog.set_level(logging.INFO, "pymc_ensemble")
    clock = itertools.count(0.0, 0.05)
    for module in (driver, log):
        monkeypatch.setattr(module, "perf_counter", lambda: next(clock))
    sample(gaussian_model(), draws=200)
    seconds = next(clock)
    lines = [r.getMessage() for r in caplog.records if r.name == "pymc_ensemble"]
    assert lines.pop().endswith("pymc_ensemble.diagnose(idata) looks closer.")
    told = [line for line in lines if line.startswith("Chain 0: ")]
    assert 1 <= len(told) <= seconds / 2
    assert set(lines) - set(told) == {"The burn-in is over: 3 iterations, 30 evaluations."}


@pytest.mark.parametrize(("progressbar", "evaluations"), [(True, 80), ("combined+stats", 160)])
def test_progress_bar_has_a_column_of_ensembles(progressbar, evaluations, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with gaussian_model():
        pm.sample(
            draws=50,
            chains=2,
            cores=1,
            step=ToyStep(),
            random_seed=1,
            progressbar=progressbar,
            compute_convergence_checks=False,
        )
    drawn = capsys.readouterr().out
    for shown in ("Ensemble", f" {evaluations} runs, acc .50"):
        assert shown in drawn


def test_callback_and_var_names():
    seen = []
    with pm.Model() as model:
        a = pm.Normal("a")
        pm.Deterministic("b", 2 * a)
        pm.Normal("y", a, 1.0, observed=0.0)
    idata = sample(
        model,
        draws=20,
        tune=5,
        var_names=["b"],
        callback=lambda trace, draw: seen.append((draw.tuning, float(draw.point["a"]))),
    )
    assert list(idata.posterior.data_vars) == ["b"]
    assert [tuning for tuning, _ in seen] == [True] * 5 + [False] * 20
    np.testing.assert_allclose(idata.posterior.b[0], [2 * a for _, a in seen[5:]])


# -- what is told at the end ----------------------------------------------------------------------


def curved_model():
    """A banana: the law of its linearized map fits it badly."""
    with pm.Model() as model:
        u = pm.Normal("u", 0.0, 3.0, shape=2)
        pm.Normal("y", pm.math.stack([u[0], u[1] + u[0] ** 2]), [1.0, 0.1], observed=[0.0, 0.0])
    return model


@pytest.mark.parametrize(("adjust", "times"), [(False, 1), (True, 0)])
def test_poor_approximation_is_told_once_a_chain(adjust, times, caplog):
    with curved_model() as model:
        sample(model, pe.EnsembleKalmanSampler(ensemble_size=20, adjust=adjust), draws=100)
    said = [r.message for r in caplog.records if r.name == "pymc_ensemble"]
    what = (
        "not where the posterior is",
        "not the law that was fitted to the ensemble",
        "a Metropolis test would have accepted only",
    )
    assert sum(any(words in line for words in what) for line in said) == times


def test_good_approximation_is_not_warned_of(caplog):
    caplog.set_level(logging.INFO, "pymc_ensemble")
    with gaussian_model() as model:
        sample(model, pe.EnsembleKalmanSampler(ensemble_size=20), draws=100)
    assert "The draws passed the quick checks" in caplog.text
    assert not [r for r in caplog.records if r.name == "pymc_ensemble" and r.levelname != "INFO"]


def test_modes_that_were_lost_are_marked(caplog):
    """The prior ensemble is in both of two modes, and that of many a chain ends in one of them.

    Some 10 particles of the first ensemble are in likely places of the mode that is left.
    """
    with pm.Model() as model:
        u = pm.Normal("u", 0.0, 5.0)
        pm.NormalMixture(
            "y",
            w=[0.5, 0.5],
            mu=pm.math.stack([u, u + 3.0]),
            sigma=[0.3, 0.9],
            observed=[1.0, 1.0],
        )
    n_lost = 0
    step = partial(pe.EnsembleKalmanSampler, ensemble_size=80)
    for seed in range(2, 5):
        caplog.clear()
        idata = sample(model, step(), draws=240, chains=2, random_seed=seed)
        one_mode = (idata.posterior["u"].std("draw") < 0.8).to_numpy()  # they are three apart
        lost = idata.sample_stats["lost"].to_numpy()
        assert (lost == one_mode[:, None]).all()
        n_lost += one_mode.sum()
        told = any("a mode was lost" in reason for reason in pe.diagnose(idata).reasons)
        assert told == one_mode.all()
        passed = "the burn-in found likely places where this chain has no draws: u="
        assert (passed in caplog.text) == one_mode.any()
    assert n_lost


def test_data_of_another_length_bind_the_step_anew():
    with pm.Model() as model:
        x = pm.Data("x", np.arange(5.0))
        slope = pm.Normal("slope")
        pm.Normal("y", slope * x, 1.0, observed=pm.Data("z", np.zeros(5)))
    step = pe.EnsembleKalmanSampler(ensemble_size=20)
    with model:
        sample(model, step)
        pm.set_data({"x": np.arange(31.0), "z": 2 * np.arange(31.0)})
        slopes = sample(model, step).posterior["slope"]
    assert abs(float(slopes.mean()) - 2) < 0.1


def test_frozen_data_change_nothing():
    with pm.Model(coords={"t": np.arange(5)}) as model:
        x = pm.Data("x", np.arange(5.0), dims="t")
        pm.Normal("y", pm.Normal("slope") * x, 1.0, observed=pm.Data("z", np.ones(5)), dims="t")
    one, two = (
        sample(each, pe.EnsembleKalmanSampler(ensemble_size=20)).posterior["slope"]
        for each in (model, freeze_dims_and_data(model))
    )
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("stat", ["made_by", "unconstrained"])
def test_dimensions_of_stats_are_refused_by_name(stat):
    with pm.Model(coords={f"{stat}_dim_0": list("abc")}) as model:
        pm.Normal("y", pm.Normal("x", shape=2), 1.0, observed=np.zeros(2))
    with pytest.raises(ValueError, match=f"{stat}_dim_0.*Rename it"):
        ToyStep(model=model)
