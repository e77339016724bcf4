"""Simulations from the prior: their law, their failures, and where they run."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
import xarray as xr

import pymc_ensemble as pe
from pymc_ensemble.amortized.generating import Generator
from pymc_ensemble.amortized.noise import Noise
from pymc_ensemble.problem.extraction import extract

pytestmark = [  # PyMC's own, of pm.Simulator
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def draw_event(rng, rate, size=None):
    """A simulator that fails now and then."""
    if rate > 2.0:
        raise ValueError("the rate is too large")
    return rng.poisson(10 * rate, size) + 0.0


def events():
    with pm.Model() as model:
        rate = pm.Uniform("rate", 0, 2.2)
        pm.Simulator("n", draw_event, rate, observed=np.ones(3))
    return model


def decay(store=None, executor=None):
    @pe.forward_model(store=store, executor=executor, version="1")
    def curve(amplitude, rate):
        if amplitude > 5:
            raise ValueError("the amplitude is too large")
        return amplitude * np.exp(-rate * np.arange(4.0))

    with pm.Model(coords={"time": [0, 1, 2, 3]}) as model:
        amplitude, rate = pm.LogNormal("amplitude"), pm.HalfNormal("rate")
        sigma = pm.Gamma("sigma", 4, 8)
        pm.Normal("y", curve(amplitude, rate), sigma, observed=np.zeros(4), dims="time")
        pm.Poisson("c", amplitude, observed=[1, 2])
    return model


@pytest.mark.parametrize("model", [events, decay])
def test_executors_change_nothing(model):
    """In this process, in threads, and in processes that know nothing of this one."""
    alone = pe.simulations(model(), 250, random_seed=3)
    with ThreadPoolExecutor(2) as pool:
        xr.testing.assert_identical(pe.simulations(model(), 250, pool, random_seed=3), alone)
    if model is events:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            elsewhere = pe.simulations(model(), 250, pool, random_seed=3)
        xr.testing.assert_identical(elsewhere, alone)
    assert alone["failed"].any()
    assert not pe.simulations(model(), 250, random_seed=4)["unconstrained"].equals(
        alone["unconstrained"]
    )


def test_what_a_dataset_holds(tmp_path, caplog):
    made = pe.simulations(decay(tmp_path / "runs.db", executor=2), 400, random_seed=1)
    assert made["y"].dims == ("simulation", "time")
    assert made["coordinate"].values.tolist() == ["amplitude_log__", "rate_log__", "sigma_log__"]
    assert made["c"].dtype.kind == "f"  # for the NaN of the failures
    failed = made["failed"].to_numpy()
    np.testing.assert_array_equal(failed, made["amplitude"] > 5)
    np.testing.assert_allclose(np.exp(made["unconstrained"][:, 2]), made["sigma"])
    for name in ("y", "c", "outputs"):
        rows = np.isnan(made[name].to_numpy()).all(1)
        np.testing.assert_array_equal(rows, failed)
    assert "the amplitude is too large" in caplog.text
    assert f"{failed.sum()} of 400 simulations failed" in caplog.text
    stored = pe.open_store(tmp_path / "runs.db")
    assert stored.sizes["evaluation"] >= 400


def test_the_law():
    """Moments of the prior, and of the data given the outputs."""
    good = pe.simulations(decay(), 4000, random_seed=2)
    good = good.isel(simulation=~good["failed"].to_numpy())
    n = good.sizes["simulation"]
    assert float(np.log(good["rate"] ** 2).mean()) == pytest.approx(
        -1.2704, abs=4 * 2.2214 / np.sqrt(n)
    )  # of the logarithm of a chi-square variable
    mu = good["amplitude"].to_numpy()[:, None] * np.exp(
        -good["rate"].to_numpy()[:, None] * np.arange(4)
    )
    z = (good["y"].to_numpy() - mu) / good["sigma"].to_numpy()[:, None]
    assert abs(z.mean()) < 4 / np.sqrt(z.size)
    assert z.std() == pytest.approx(1, abs=4 / np.sqrt(2 * z.size))
    assert np.abs(np.corrcoef(z.T) - np.eye(4)).max() < 4 / np.sqrt(n)
    counts = (good["c"] - good["amplitude"]) / np.sqrt(good["amplitude"])
    assert abs(float(counts.mean())) < 4 / np.sqrt(2 * n)
    assert float(counts.std()) == pytest.approx(1, abs=0.05)


def test_data_that_depend_on_other_data():
    """The second is drawn given the first one that was drawn, and not given what is observed."""
    with pm.Model() as model:
        x = pm.Normal("x")
        first = pm.Normal("first", x, 1.0, observed=50.0)
        pm.Normal("second", first, 0.1, observed=0.0)
    made = pe.simulations(model, 300, random_seed=1)
    assert "outputs" not in made
    assert abs(made["second"] - made["first"]).max() < 0.5
    assert abs(made["first"]).max() < 8


LIKELIHOODS = {
    "normal": lambda a: pm.Normal("y", a, [0.5, 1.0], observed=np.zeros(2)),
    "gamma": lambda a: pm.Gamma("y", 2.0, pt.exp(a), observed=np.ones(2)),
    "vector": lambda a: pm.MvNormal("y", a + np.zeros(2), np.eye(2), observed=[0, 0]),
    "mixture": lambda a: pm.NormalMixture(
        "y", [0.5, 0.5], pt.stack([a, -a]), 0.1, observed=np.zeros(2)
    ),
    "zeros": lambda a: pm.ZeroInflatedPoisson("y", 0.5, pt.exp(a), observed=[0, 1]),
    "censored": lambda a: pm.Censored("y", pm.Normal.dist(a), 0, 1, observed=[0, 1]),
}


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_noise_is_that_of_the_model(likelihood):
    """Rows have noise of their own, with the mean and the scatter that PyMC draws have."""
    with pm.Model() as model:
        LIKELIHOODS[likelihood](pm.Normal("a"))
    n, a = 1000, 0.3
    noise = Noise(extract(model).terms)
    generator = Generator(model)
    outputs = generator._forward(np.full((1, 1), a), None).outputs
    drawn = noise(np.repeat(outputs, n, 0), np.random.default_rng(1))["y"].astype(float)
    given = pm.draw(pm.do(model, {"a": a})["y"], n, random_seed=2).astype(float)
    assert drawn.shape == given.shape == (n, 2)
    scale = np.sqrt(2 / n) * given.std(0)
    assert (np.abs(drawn.mean(0) - given.mean(0)) < 4.5 * scale).all()
    squares = [(values - given.mean(0)) ** 2 for values in (drawn, given)]
    scale = np.sqrt(2 / n) * squares[1].std(0)
    assert (np.abs(squares[0].mean(0) - squares[1].mean(0)) < 4.5 * scale).all()
    assert len(np.unique(drawn, axis=0)) > 0.5 * len(np.unique(given, axis=0))


def discrete():
    pm.Poisson("y", pm.Bernoulli("k", 0.5) + 1.0, observed=1)


def with_potential():
    pm.Normal("y", pm.Normal("x"), observed=1.0)
    pm.Potential("ridge", pt.constant(1.0))


def improper():
    pm.Normal("y", pm.Flat("x"), observed=1.0)


def missing():
    data = np.ma.masked_invalid([1.0, np.nan])
    pm.MvNormal("y", pm.Normal("x") + np.zeros(2), np.eye(2) + 0.5, observed=data)


def behind():
    z = pm.Normal("z", pe.forward_model(lambda x: x, output_shape=())(pm.Normal("x")))
    pm.Normal("y", z, observed=1.0)


def taken():
    pm.Normal("y", pm.Normal("outputs"), observed=1.0)


def unobserved():
    pm.Normal("x")


REFUSED = {
    discrete: "`k` is discrete",
    with_potential: "potential `ridge`",
    improper: "`x`: nothing can be drawn from an improper prior",
    missing: "`y` has missing entries",
    behind: "`z` is unknown",
    taken: "`outputs` is a name that data sets",
    unobserved: "no observed variable",
}


@pytest.mark.filterwarnings(
    "ignore:Data in y contains missing values:pymc.exceptions.ImputationWarning"
)
@pytest.mark.parametrize("build", REFUSED, ids=lambda build: build.__name__)
def test_models_that_cannot_be_simulated(build):
    with pm.Model() as model:
        build()
    with pytest.raises(ValueError, match=REFUSED[build]):
        pe.simulations(model, 10)


def test_simulators_that_return_another_shape():
    """PyMC hands a scalar over as an array, whose shape easily gets into the data."""

    def grow(rng, rate, size=None):
        return np.array([rate * t for t in range(3)])

    with pm.Model() as model:
        pm.Simulator("n", grow, pm.HalfNormal("rate"), observed=np.ones(3))
    with pytest.raises(ValueError, match=r"`n` has the shape \(3, 1\), but its data have \(3,\)"):
        pe.simulations(model, 10)


def test_other_bad_input():
    with pytest.raises(TypeError, match="There is no model"):
        pe.simulations(n=10)
    for n in (0, None, 2.5):
        with pytest.raises(ValueError, match="n "):
            pe.simulations(events(), n)
    with pytest.raises(TypeError, match="executor"):
        pe.simulations(events(), 10, 8)
    with pytest.raises(TypeError, match="random_seed"):
        pe.simulations(events(), 10, random_seed="one")

    def never(rng, rate, size=None):
        raise ValueError("never")

    with pm.Model() as model:
        pm.Simulator("n", never, pm.Normal("x"), observed=1.0)
    with pytest.raises(RuntimeError, match="All 10 simulations failed"):
        pe.simulations(model, 10)
