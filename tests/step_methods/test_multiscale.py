"""The multiscale sampler under `pm.sample`: alone, and beside other step methods."""

import itertools
import logging
import os

import arviz as az
import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pymc.exceptions import SamplingError
from scipy.stats import halfnorm, norm

import pymc_ensemble as pe
from pymc_ensemble import gallery
from pymc_ensemble.diagnosis.ensembles import ess, to_ensemble
from pymc_ensemble.problem import InverseProblem
from pymc_ensemble.samplers.multiscale.sampler import PublishedMultiscale

A = np.array([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0], [1.0, 1.0, 1.0], [2.0, 0.0, 1.0]])
Y = np.array([0.5, -0.3, 1.2, 0.8])
COVARIANCE = np.linalg.inv(A.T @ A / 0.25 + np.eye(3))
MEAN = COVARIANCE @ A.T @ Y / 0.25
CLOUD = 4  # a walker and its three explorers


def linear_model():
    with pm.Model() as model:
        u = pm.Normal("u", shape=3)
        pm.Normal("y", A @ u, 0.5, observed=Y)
    return model


def sample(model, step=None, **kwargs):
    settings = {"draws": 30, "chains": 2, "cores": 1, "random_seed": 1}
    with model:
        return pm.sample(
            step=pe.MultiscaleSampler(adjust=False) if step is None else step,
            progressbar=False,
            compute_convergence_checks=False,
            **settings | kwargs,
        )


@pytest.fixture(scope="module")
def model():
    return linear_model()


@pytest.fixture(scope="module")
def idata(model):
    return sample(model, draws=500)


@pytest.fixture(scope="module")
def walkers(model):
    return sample(model, pe.MultiscaleSampler(adjust=False, walkers=10), draws=1000)


@pytest.fixture
def batches(monkeypatch):
    """Sizes of the batches that are evaluated."""
    sizes, evaluate = [], InverseProblem.evaluate

    def counted(self, U, *args):
        sizes.append(len(U))
        return evaluate(self, U, *args)

    monkeypatch.setattr(InverseProblem, "evaluate", counted)
    return sizes


def assert_same(one, other):
    for group in ("posterior", "sample_stats"):
        for name, values in one[group].data_vars.items():
            np.testing.assert_array_equal(values, other[group][name], err_msg=name)


# -- draws and stats ----------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["idata", "walkers"])
def test_moments_are_those_of_the_posterior(which, request):
    idata = request.getfixturevalue(which)
    u = idata.posterior.u
    n = ess(idata)["u"].to_numpy()
    assert n.min() > 100
    sd = np.sqrt(np.diag(COVARIANCE))
    shift = (u.mean(("chain", "draw")) - MEAN) / sd
    assert (np.abs(shift) * np.sqrt(n)).max() < 4
    ratio = u.std(("chain", "draw")) / sd
    np.testing.assert_allclose(ratio, 1, atol=4 / np.sqrt(2 * n.min()))
    assert idata.sample_stats.converged.all()


def test_every_chain_is_a_chain_of_its_own(idata):
    assert (idata.sample_stats.particle == 0).all()
    np.testing.assert_array_equal(idata.sample_stats.sweep[0], np.arange(500))
    ratio = az.ess(idata.posterior.dataset, method="mean")["u"] / ess(idata)["u"]
    assert 0.6 < ratio.min() <= ratio.max() < 1.6
    assert (az.rhat(idata.posterior.dataset)["u"] < 1.05).all()
    paths = to_ensemble(idata)["posterior"]["u"]
    assert paths.sizes == {"chain": 2, "sweep": 500, "particle": 1, "u_dim_0": 3}


def test_walkers_are_particles(walkers):
    paths = to_ensemble(walkers)["posterior"]["u"]
    assert paths.sizes == {"chain": 2, "sweep": 100, "particle": 10, "u_dim_0": 3}
    ratio = az.ess(walkers.posterior.dataset, method="mean")["u"] / ess(walkers)["u"]
    assert 0.6 < ratio.min() <= ratio.max() < 1.6


def test_lp_is_the_log_density_of_the_model(model, idata):
    logp = model.compile_logp()
    for chain, draw in ((0, 0), (0, 499), (1, 250)):
        at = idata.posterior.u[chain, draw].to_numpy()
        expected = float(logp({"u": at}))
        assert idata.sample_stats.lp[chain, draw].item() == pytest.approx(expected, rel=1e-8)


def test_pilot_runs_once_for_all_chains(model, batches):
    idata = sample(model, chains=3)
    n_evals = idata.sample_stats.n_evals.to_numpy()
    pilot = n_evals[0, 0] - n_evals[1, 0]
    assert pilot > 500
    assert n_evals[1, 0] == n_evals[2, 0] < 300
    assert sum(batches) == n_evals[:, -1].sum()


@pytest.mark.parametrize(("walkers", "options", "cloud"), [(1, {}, 4), (5, {"central": True}, 7)])
def test_a_step_of_all_walkers_is_one_batch(model, batches, walkers, options, cloud):
    step = pe.MultiscaleSampler(adjust=False, walkers=walkers, **options)
    idata = sample(model, step, draws=30 * walkers, chains=1)
    assert batches[-30:] == 30 * [walkers * cloud]
    n_evals = to_ensemble(idata)["sample_stats"]["n_evals"][0].to_numpy()
    assert (np.diff(n_evals, axis=0) == walkers * cloud).all()
    assert n_evals.max() == sum(batches)


@pytest.mark.parametrize("directions", [1, 5])
def test_price_of_a_step_is_set_by_the_directions(model, directions):
    idata = sample(model, pe.MultiscaleSampler(adjust=False, directions=directions), chains=1)
    assert (idata.sample_stats.n_evals.diff("draw") == directions + 1).all()


# -- runs ---------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_same_draws_on_any_number_of_cores(model):
    """The pilot of an earlier run is left alone. Chains that are spawned have a test elsewhere."""
    step = pe.MultiscaleSampler(adjust=False)
    one = sample(model, step, chains=3, random_seed=5)
    sample(model, step, random_seed=6)  # leaves a pilot behind that belongs to another run
    two = sample(model, step, chains=3, cores=2, mp_ctx="fork", random_seed=5)
    np.testing.assert_array_equal(one.posterior.u, two.posterior.u)
    for name in ("lp", "log_q", "acceptance", "step_size"):
        np.testing.assert_array_equal(one.sample_stats[name], two.sample_stats[name])
    counts = [run.sample_stats.n_evals.to_numpy()[:, -1] for run in (one, two)]
    assert sorted(counts[0]) == sorted(counts[1])  # the pilot is counted in one chain


def test_seeds(model):
    step = pe.MultiscaleSampler(adjust=False)
    one = sample(model, step)
    assert_same(one, sample(model, step))
    other = sample(model, step, random_seed=2)
    assert not np.array_equal(one.posterior.u, other.posterior.u)
    assert not np.array_equal(one.posterior.u[0], one.posterior.u[1])


@pytest.mark.parametrize("kind", ["idata", "array", "mapping"])
def test_start_from_given_positions(model, idata, batches, kind):
    U = np.random.default_rng(0).multivariate_normal(MEAN, COVARIANCE, 40)
    given = {"idata": idata, "array": U, "mapping": {"u": U}}[kind]
    more = sample(model, pe.MultiscaleSampler(adjust=False, initial_ensemble=given))
    assert more.sample_stats.converged.all()
    if kind == "idata":  # no pilot: the probe comes first
        assert batches[0] == 10 * 7
        assert more.sample_stats.n_evals[0, 0] < 200
    else:
        assert batches[0] == 40


def test_start_from_another_sampler(model, batches):
    with model:
        nuts = pm.sample(
            200, tune=200, chains=2, cores=1, random_seed=1, progressbar=False,
            compute_convergence_checks=False, step=pm.Metropolis(),
        )  # fmt: skip
    more = sample(model, pe.MultiscaleSampler(adjust=False, initial_ensemble=nuts))
    assert batches[0] == 10 * 7
    assert np.isfinite(more.sample_stats.lp).all()


@pytest.mark.parametrize("kind", ["none", "matrix", "idata"])
def test_preconditioners(model, idata, kind):
    given = {"none": None, "matrix": 2 * COVARIANCE, "idata": idata}[kind]
    step = pe.MultiscaleSampler(adjust=False, preconditioner=given)
    more = sample(model, step)
    root = step._chain.state.inner.preconditioner.root
    u = idata.posterior.u.to_numpy().reshape(-1, 3)
    expected = {"none": np.eye(3), "matrix": 2 * COVARIANCE, "idata": np.cov(u.T)}[kind]
    np.testing.assert_allclose(root @ root.T, expected, rtol=1e-10)
    assert more.sample_stats.converged.all()


def test_few_draws_as_preconditioner(model, idata):
    """Two draws span no covariance, but tell the scales."""
    few = idata.isel(draw=slice(2), chain=slice(1))
    assert sample(
        model, pe.MultiscaleSampler(adjust=False, preconditioner=few)
    ).sample_stats.converged.all()


OPTIONS = [
    {"directions": 2},
    {"sigma": 0.3},
    {"delta": 0.5},
    {"step_size": 0.2},
    {"walkers": 2},
    {"adjust": True},
    {"rough": True},
    {"central": True},
    {"scheme": "paper"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_reach_the_sampler(model, options):
    with model:
        step = pe.MultiscaleSampler(**options)
    sampler = step._bound.sampler
    assert isinstance(sampler, PublishedMultiscale) == (step.scheme == "paper")
    assert all(getattr(sampler, name) == options[name] for name in options if name != "scheme")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adjust": True, "rough": True}, "exclude each other"),
        ({"walkers": 0}, "walkers must be an integer"),
        ({"directions": 0}, "directions must be an integer"),
        ({"sigma": -1.0}, "sigma must be positive"),
        ({"preconditioner": np.eye(2)}, r"Give a matrix of shape \(3, 3\)"),
        ({"vars": ["v"]}, "`v` is not a free variable"),
        ({"initial_ensemble": np.zeros((40, 2))}, r"shape \(40, 2\)"),
    ],
)
def test_options_are_judged_at_construction(model, batches, options, message):
    with model, pytest.raises(ValueError, match=message):
        pe.MultiscaleSampler(**options)
    step = pe.MultiscaleSampler(**options)  # without a model: when sampling starts
    with pytest.raises(ValueError, match=message):
        sample(model, step)
    assert not batches


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "fancy"}, 'scheme must be "averaged" or "paper", not \'fancy\''),
        ({"scheme": "paper", "adjust": True}, 'adjust=True is not an option of scheme="paper"'),
    ],
)
def test_schemes_are_judged_without_a_model(options, message):
    with pytest.raises(ValueError, match=message):
        pe.MultiscaleSampler(**options)


def test_too_few_initial_positions(model):
    step = pe.MultiscaleSampler(
        adjust=False, initial_ensemble=np.random.default_rng(0).normal(size=(9, 3))
    )
    with pytest.raises(ValueError, match=r"has 9 members, .* at least 10"):
        sample(model, step)


def test_too_short_tuning_is_marked(model):
    with pytest.warns(UserWarning, match="had not passed its test after 3 iterations"):
        idata = sample(model, tune=3, chains=1)
    assert not idata.sample_stats.converged.any()
    assert np.isfinite(idata.sample_stats.lp).all()


def test_no_tuning_runs_everything_before_the_first_draw(model):
    idata = sample(model, tune=0)
    assert idata.sample_stats.converged.all()


def test_saved_state(model):
    """In the pilot, in the warm-up, and among the draws."""
    with model:
        step, other = pe.MultiscaleSampler(adjust=True), pe.MultiscaleSampler(adjust=True)
        for saved_at in (2, 22, 60, 160):
            step.setup_chain(np.random.default_rng(5), 150, 80)

            def advance(step, point, calls):
                drawn = []
                for call in calls:
                    if call == 150:
                        step.stop_tuning()
                    point, [stats] = step.step(point)
                    drawn.append((*point["u"], stats["lp"], stats["n_evals"]))
                return drawn

            start = model.initial_point()
            advance(step, start, range(saved_at))
            saved = step.sampling_state
            expected = advance(step, start, range(saved_at, 170))
            for each in (step, other):
                each.sampling_state = saved
                assert advance(each, start, range(saved_at, 170)) == expected


def test_step_is_used_on_other_models(model):
    step = pe.MultiscaleSampler(adjust=False)
    sample(model, step)
    with pm.Model() as shifted:
        u = pm.Normal("u", 100, shape=3)
        pm.Normal("y", A @ u, 0.5, observed=Y + A @ np.full(3, 100.0))
    idata = sample(shifted, step)
    assert abs(idata.posterior.u.mean().item() - 100) < 2
    assert_same(idata, sample(shifted))


# -- what is sampled ----------------------------------------------------------------------------


@pytensor.wrap_py(itypes=[pt.dvector], otypes=[pt.dscalar])
def ring(x):
    return np.array(-8 * (np.hypot(*x) - 1) ** 2)


def test_potential_alone(caplog):
    """A black-box log density: the radius concentrates around one."""
    caplog.set_level(logging.INFO, "pymc_ensemble")
    with pm.Model() as model:
        x = pm.Normal("x", 0, 1, shape=2)
        pm.Potential("ring", ring(x))
    idata = sample(model, pe.MultiscaleSampler(adjust=False, walkers=20), draws=3000, chains=1)
    assert "differences of the log density itself" in caplog.text
    assert "no observed variable" in caplog.text
    radius = np.hypot(*idata.posterior.x.to_numpy().reshape(-1, 2).T)
    r = np.linspace(0, 4, 4001)
    w = r * np.exp(-8 * (r - 1) ** 2 - r**2 / 2)
    mean = (r * w).sum() / w.sum()
    sd = np.sqrt((r**2 * w).sum() / w.sum() - mean**2)
    # twenty walkers, 150 steps of about .1 each: 100 independent draws are the least
    assert abs(radius.mean() - mean) < 0.4 * sd
    assert radius.std() == pytest.approx(sd, rel=0.3)


def test_forward_map_is_told(model, caplog):
    caplog.set_level(logging.INFO, "pymc_ensemble")
    sample(model)
    told = [r.getMessage() for r in caplog.records if r.name == "pymc_ensemble"]
    line = "MultiscaleSampler: the gradient is measured by differences of 4 forward outputs."
    assert told.count(line) == 1


def test_likelihood_without_gradient(caplog):
    caplog.set_level(logging.INFO, "pymc_ensemble")
    with pm.Model() as model:
        x = pm.Normal("x", 0, 1, shape=2)
        pm.CustomDist("y", x, logp=lambda value, x: ring(x - value), observed=np.zeros(2))
    idata = sample(model)
    assert "`y`" in caplog.text
    assert "without the help" in caplog.text
    assert idata.sample_stats.converged.all()


def test_rough_map():
    """What is found is the posterior behind the oscillation."""
    rough, smooth = gallery.linear_multiscale(), gallery.linear_multiscale(rough=False).reference
    idata = sample(
        rough, pe.MultiscaleSampler(adjust=False, rough=True, walkers=20), draws=4000, chains=1
    )
    mean, sd = (smooth["u"].sel(statistic=k).to_numpy() for k in ("mean", "sd"))
    u = idata.posterior.u
    assert np.abs((u.mean(("chain", "draw")) - mean) / sd).max() < 0.6
    assert np.abs(u.std(("chain", "draw")) / sd - 1).max() < 0.4
    exact = rough.reference["u"].sel(statistic="mean").to_numpy()
    assert np.abs((exact - mean) / sd).max() > 2


def failing_model(limit):
    """A forward map that gives up above a limit of the sum of its parameters."""
    with pm.Model() as model:
        rate = pm.Normal("rate", 0, 1, shape=2)
        curve = pm.math.log(limit - rate.sum())
        pm.Normal("y", curve, 0.1, observed=1.0)
    return model


def test_failing_members_do_not_end_a_run(caplog):
    idata = sample(failing_model(3.0), pe.MultiscaleSampler(adjust=False, walkers=5), draws=100)
    assert idata.sample_stats.n_failed.max() > 0
    assert "a forward evaluation failed, at rate=[" in caplog.text
    assert np.isfinite(idata.sample_stats.lp).all()


def test_failing_explorers_are_left_out():
    """The posterior touches the wall behind which nothing can be evaluated."""
    with pm.Model() as model:
        x = pm.Normal("x")
        pm.Normal("y", pm.math.log(x), 5.0, observed=0.0)
    idata = sample(
        model, pe.MultiscaleSampler(adjust=False, walkers=10, sigma=0.3), draws=500, chains=1
    )
    assert (idata.posterior.x > 0).all()
    assert idata.sample_stats.n_failed.max() > 10
    assert idata.posterior.x.mean().item() == pytest.approx(np.sqrt(2 / np.pi), abs=0.3)


def test_nothing_but_failures():
    with pytest.raises(SamplingError) as error:
        sample(failing_model(-100.0))
    message = str(error.value)
    assert "The first failure was at rate=[" in message
    assert "forward evaluations failed in this chain" in message


class Interrupting:
    """A forward map that is interrupted by the user in the middle of a run."""

    def __init__(self, at):
        self.calls, self.at = itertools.count(1), at

    def __call__(self, u):
        if next(self.calls) == self.at:
            raise KeyboardInterrupt
        return A @ u


@pytest.mark.parametrize("walkers", [1, 4])
def test_interrupt_keeps_the_draws(walkers):
    """With one walker there is a draw for each step, with several the steps are complete ones."""

    def run(at):
        forward = pytensor.wrap_py(itypes=[pt.dvector], otypes=[pt.dvector])(Interrupting(at))
        with pm.Model() as model:
            u = pm.Normal("u", shape=3)
            pm.Normal("y", pt.specify_shape(forward(u), 4), 0.5, observed=Y)
        return sample(
            model, pe.MultiscaleSampler(adjust=False, walkers=walkers), draws=160, chains=1
        )

    whole = run(0)
    n_evals = to_ensemble(whole)["sample_stats"]["n_evals"].to_numpy()[0, :, 0]
    cut = run(n_evals[9] + 2)  # in the middle of the eleventh step
    assert cut.posterior.sizes["draw"] == 10 * walkers
    np.testing.assert_array_equal(
        to_ensemble(cut)["posterior"]["u"], to_ensemble(whole)["posterior"]["u"][:, :10]
    )


# -- beside other step methods ------------------------------------------------------------------


def mixed_model():
    """Which of two curves, a slope and a noise: three kinds of variables."""
    x, y = np.array([0.7, 1.0, 1.3]), np.array([0.8, 1.3, 1.9])
    with pm.Model() as model:
        curve = pm.Bernoulli("curve", 0.3)
        slope = pm.Normal("slope", 0, 1 + curve)
        noise = pm.HalfNormal("noise", 1.0)
        pm.Normal("y", slope * pm.math.switch(curve, x**2, x), noise, observed=y)
    a, s = np.meshgrid(np.linspace(-4, 6, 1001), np.linspace(0.01, 5, 500), indexing="ij")
    weights = []
    for k, curved in ((0, x), (1, x**2)):
        log_w = norm.logpdf(a, 0, 1 + k) + halfnorm.logpdf(s) + np.log([0.7, 0.3][k])
        weights.append(log_w + norm.logpdf(y, a[..., None] * curved, s[..., None]).sum(-1))
    w = np.exp(np.array(weights))
    w /= w.sum()
    moments = {"curve": w[1].sum(), "slope": (w * a).sum(), "noise": (w * s).sum()}
    squares = {"curve": w[1].sum(), "slope": (w * a**2).sum(), "noise": (w * s**2).sum()}
    return model, moments, {k: np.sqrt(squares[k] - moments[k] ** 2) for k in moments}


@pytest.mark.slow
def test_compound_step_has_the_exact_posterior():
    """Others move a discrete variable, and a continuous one with a transform."""
    model, means, sds = mixed_model()
    with model:
        steps = [
            pe.MultiscaleSampler(["slope"]),
            pm.BinaryMetropolis([model["curve"]]),
            pm.Metropolis([model["noise"]]),
        ]
    assert steps[0]._bound.sampler.adjust
    idata = sample(model, steps, draws=1200, tune=150, chains=1, random_seed=3)
    n = az.ess(idata.posterior.dataset, method="mean")
    for name, mean in means.items():
        assert n[name].item() > 40, name
        z = (idata.posterior[name].mean().item() - mean) / sds[name]
        assert abs(z) * np.sqrt(n[name].item()) < 4, name
        ratio = idata.posterior[name].std().item() / sds[name]
        assert ratio == pytest.approx(1, abs=4 / np.sqrt(n[name].item())), name
    # the slope was moved with the others where they had been left before
    density = model.compile_logp(jacobian=False)
    drawn = {name: idata.posterior[name][0].to_numpy() for name in means}
    for k in range(1, 1200, 50):
        noise = np.log(drawn["noise"][k - 1])
        point = {"curve": drawn["curve"][k - 1], "slope": drawn["slope"][k], "noise_log__": noise}
        assert idata.sample_stats.lp[0, k].item() == pytest.approx(float(density(point)), rel=1e-8)


def test_pilot_is_shared_beside_other_steps():
    """With the others where the model starts, so that it is the same for all chains."""
    model, means, _ = mixed_model()
    with model:
        steps = [pe.MultiscaleSampler(["slope", "noise"]), pm.BinaryMetropolis([model["curve"]])]
    idata = sample(model, steps, draws=20, tune=150)
    n_evals = idata.sample_stats.n_evals.to_numpy()
    assert n_evals.shape == (2, 20)
    assert n_evals[0, 0] - n_evals[1, 0] > 500
    parallel = sample(model, steps, draws=20, tune=150, cores=2)
    for name in means:
        np.testing.assert_array_equal(idata.posterior[name], parallel.posterior[name])


def test_variables_of_its_own_are_refused_to_others():
    model, *_ = mixed_model()
    with model:
        steps = [pe.MultiscaleSampler(["slope", "noise"]), pm.Metropolis([model["slope"]])]
        with pytest.raises(ValueError, match="`slope` was moved by another step method"):
            sample(model, [*steps, pm.BinaryMetropolis([model["curve"]])], chains=1)


def test_discrete_variables_are_left_to_others():
    model, *_ = mixed_model()
    with model:
        assert {v.name for v in pe.MultiscaleSampler(adjust=False).vars} == {"slope", "noise_log__"}
        with pytest.raises(ValueError, match=r"`curve` is discrete.*Leave it out of `vars`"):
            pe.MultiscaleSampler(["slope", "curve"])
        with pytest.raises(ValueError, match=r"walkers=3 needs all variables.*walkers=1"):
            pe.MultiscaleSampler(["slope"], walkers=3)
        with pytest.raises(ValueError, match="`nothing` is not a free variable"):
            pe.MultiscaleSampler(["slope", "nothing"])
