"""What samplers declare about draws, and that it survives whatever is done to a result."""

import json
from dataclasses import fields
from pathlib import Path
from typing import get_args

import numpy as np
import pymc as pm
import pytest
import xarray as xr
from pymc.distributions import transforms

import pymc_ensemble as pe
from pymc_ensemble.diagnosis.facts import FORMAT, Facts, entries, facts_of, together
from pymc_ensemble.diagnosis.fountain import EMPTY, PACKET, Fountain, texts
from pymc_ensemble.problem.points import in_model
from pymc_ensemble.samplers.ensemble import Law, Origin

QUIET = {"progressbar": False, "random_seed": 1, "compute_convergence_checks": False}


def many_transforms():
    """Every kind of variable; one support depends on another variable."""
    with pm.Model() as model:
        a = pm.Normal("a")
        pm.LogNormal("scale", shape=(2, 1))
        pm.Dirichlet("share", np.ones(3))
        pm.Uniform("below", 0, a**2 + 1)
        pm.Uniform("between", [0, 1], [2, 3])
        kind = transforms.ordered
        pm.Normal("order", shape=2, transform=kind, initval=[0.0, 1.0])
        pm.Beta("odds", 2, 2)
        pm.ZeroSumNormal("zero", shape=3)
        pm.TruncatedNormal("upper", 0, 1, upper=1.0)
    return model


def pair():
    """Two variables, one of them with a transform."""
    with pm.Model() as model:
        a = pm.Normal("a", shape=2)
        scale = pm.LogNormal("scale")
        pm.Normal("y", a + scale, 1.0, observed=[3.0, 2.0])
    return model


def sample(model, step, draws=400, chains=2, cores=1, **kwargs):
    with model:
        return pm.sample(draws, step=step, chains=chains, cores=cores, **QUIET | kwargs)


@pytest.fixture(scope="module")
def idata():
    return sample(pair(), pe.EnsembleKalmanSampler(ensemble_size=40, adjust=True))


def facts(idata):
    return facts_of(idata["sample_stats"].dataset)


# -- the code -----------------------------------------------------------------------------------


def random_text(size, seed=0):
    """A text that cannot be compressed by much."""
    return "".join(map(chr, np.random.default_rng(seed).integers(32, 0x2FF, size)))


@pytest.mark.parametrize("size", [1, 60, 900, 20_000])
def test_any_few_packets_tell_the_text(size):
    """With r more packets than blocks, no two the same, all but 2**-r of sets do."""
    text = random_text(size)
    fountain = Fountain.of(text)
    length = int.from_bytes(fountain.pool[0, 1:4].tobytes())
    n_blocks = -(-length // 64)
    n = 3000
    packets = fountain.packets(3, np.arange(n) // 50, np.arange(n) % 50)
    assert packets.nbytes / n < 100
    for stride in (1, 2, 3, 5, 7, 10, 50, 64, 97):
        few = packets[stride - 1 :: stride]
        if len(few) > 1.2 * n_blocks + 12:
            assert texts(few[: round(1.2 * n_blocks + 12)]) == ([text], 0)
    rng = np.random.default_rng(1)
    trials = 20 if size > 1000 else 200
    told = [
        texts(packets[rng.choice(n, n_blocks + 6 + n_blocks // 10, replace=False)])[0] == [text]
        for _ in range(trials)
    ]
    assert np.mean(told) > 0.9
    if n_blocks > 1:
        assert texts(packets[: n_blocks - 1]) == ([], 1)


def test_packets_of_several_texts_are_told_apart():
    first, second = random_text(500, 1), random_text(700, 2)
    numbers = np.arange(40)
    packets = np.concatenate(
        [Fountain.of(text).packets(0, numbers, 0 * numbers) for text in (first, second)]
        + [EMPTY[None], Fountain.of(random_text(700, 3)).packets(0, numbers[:3], numbers[:3])]
    )
    shuffled = np.random.default_rng(0).permutation(packets)
    told, incomplete = texts(shuffled)
    assert set(told) == {first, second}
    assert incomplete == 1
    assert texts(EMPTY[None]) == ([], 0)


def test_packets_of_another_layout_are_refused():
    packets = Fountain.of("a").packets(0, np.arange(9), np.arange(9))
    packets[4, 0] = 7
    with pytest.raises(ValueError, match="layout 7, which is unknown"):
        texts(packets)


# -- what is declared ---------------------------------------------------------------------------


def test_values_follow_from_coordinates():
    """Of every transform that a name tells; where it does not, coordinates are shown."""
    model = many_transforms()
    told = Facts.of(model, model.value_vars, "sampler", {}, Origin("density"), 10)
    told = Facts.of_text(told.text())
    U = np.random.default_rng(0).normal(size=(7, told.dimension))
    expected = in_model(model, U)  # of all variables in the order of the model
    names = [label for v in told.variables for label in entries(v.name, v.shape)]
    values = dict(zip(told.labels, told.values(U).T, strict=True))
    for label, column in zip(names, expected.T, strict=True):
        if label != "below":
            np.testing.assert_allclose(values[label], column, rtol=1e-9, atol=1e-12)
    assert set(told.labels) - set(names) == {"below_interval__"}
    np.testing.assert_array_equal(values["below_interval__"], U[:, 5])  # behind 1, 2 and 2


def test_a_result_has_the_values_of_its_coordinates(idata):
    told = facts(idata)
    U = idata.sample_stats.unconstrained.to_numpy().reshape(-1, told.dimension)
    drawn = [idata.posterior[v.name].to_numpy().reshape(len(U), -1) for v in told.variables]
    np.testing.assert_allclose(told.values(U), np.concatenate(drawn, axis=1), rtol=1e-12)


def kalman(**options):
    return pe.EnsembleKalmanSampler(ensemble_size=30, **({"adjust": False} | options))


LINEAR, SKEWED = 0.0, 1.0


@pytest.mark.parametrize(
    ("step", "skewed", "origin"),
    [
        (kalman(), LINEAR, Origin("gaussian")),
        (kalman(), SKEWED, Origin("approximate")),
        (kalman(adjust=True), LINEAR, Origin("density", True)),
        (kalman(rough=True), LINEAR, Origin("fit")),
        (kalman(scheme="paper"), LINEAR, Origin("approximate")),
        (pe.EnsembleLangevinSampler(ensemble_size=20), LINEAR, Origin("approximate")),
        (
            pe.EnsembleLangevinSampler(ensemble_size=20, adjust=True),
            LINEAR,
            Origin("density", True),
        ),
        (pe.MultiscaleSampler(adjust=False), LINEAR, Origin("density", False, 3)),
        (pe.MultiscaleSampler(adjust=True, directions=1), LINEAR, Origin("density", True, 2)),
        (pe.MultiscaleSampler(rough=True), LINEAR, Origin("smooth", False, 5)),
        (
            pe.EnsembleGaussianProcessSampler(ensemble_size=20),
            LINEAR,
            Origin("surrogate", False, 0),
        ),
        (
            pe.EnsembleGaussianProcessSampler(ensemble_size=20, adjust=True),
            LINEAR,
            Origin("density", True),
        ),
        (
            pe.EnsembleGaussianProcessSampler(ensemble_size=20, scheme="paper"),
            LINEAR,
            Origin("approximate"),
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:The burn-in had not passed")
def test_every_sampler_declares_what_its_draws_follow(step, skewed, origin):
    with pm.Model() as model:
        a, b = pm.Normal("a"), pm.Normal("b")
        means = pm.math.stack([a + b, a - b])
        if skewed:
            pm.Poisson("y", pm.math.exp(3 + means), observed=[20, 30])
        else:
            pm.Normal("y", means, 0.5, observed=[1.0, 0.5])
    told = facts(sample(model, step, draws=60, chains=1, tune=30))
    assert told.origin == origin
    assert told.sampler == type(step).__name__
    assert told.particles == step.ensemble_size
    assert told.options == json.loads(json.dumps(told.options))
    assert told.version == pe.__version__
    assert told.map == ("rough" if told.options.get("rough") else None)


def test_stochastic_forward_maps_are_declared():
    @pe.forward_model(output_shape=(1,), stochastic=True)
    def noisy(a, rng):
        return np.array([a + 0.1 * rng.standard_normal()])

    with pm.Model() as model:
        pm.Normal("y", noisy(pm.Normal("a")), 0.5, observed=[0.5])
    assert facts(sample(model, kalman(), draws=60, chains=1)).map == "stochastic"


@pytest.mark.parametrize("alone", [True, False])
def test_variables_of_other_step_methods_are_declared(alone):
    with pm.Model() as model:
        k = pm.Bernoulli("k", 0.4)
        a = pm.LogNormal("a")
        b = pm.Normal("b", shape=2)
        pm.Normal("y", a + b.sum() + k, 0.3, observed=0.7)
        own = [a, b] if alone else [b]
        steps = [pe.MultiscaleSampler(vars=own), pm.BinaryGibbsMetropolis([k])]
        if not alone:
            steps.append(pm.Metropolis([a]))
    idata = sample(model, steps, draws=50, tune=250)
    told = facts(idata)
    assert {v.name for v in told.moved} == ({"a", "b"} if alone else {"b"})
    assert {v.name for v in told.others} == ({"k"} if alone else {"k", "a"})
    where = idata.sample_stats.unconstrained.to_numpy()
    assert where.shape == (2, 50, 4)
    own = where[..., : told.dimension].reshape(-1, told.dimension)
    values = dict(zip(told.labels, told.values(own).T, strict=False))
    np.testing.assert_allclose(values["b[1]"], idata.posterior["b"][..., 1].to_numpy().ravel())
    if alone:
        np.testing.assert_allclose(values["a"], idata.posterior["a"].to_numpy().ravel())
    assert set(np.unique(where[..., told.dimension :])) >= {0.0, 1.0}


def test_the_page_explains_every_entry_and_stat():
    page = (Path(__file__).parents[2] / "docs" / "sample_stats.md").read_text("utf-8")
    names = {field.name for record in (Facts, Origin) for field in fields(record)}
    steps = [
        pe.EnsembleKalmanSampler,
        pe.EnsembleGaussianProcessSampler,
        pe.EnsembleLangevinSampler,
        pe.LikelihoodInformedSampler,
        pe.MultifidelitySampler,
        pe.MultiscaleSampler,
    ]
    names |= {name for step in steps for name in step.stats_dtypes_shapes}
    names |= {"format", *get_args(Law)}
    assert {name for name in names if f"`{name}`" not in page} == set()


# -- what results go through --------------------------------------------------------------------

KEPT = {
    "slice": lambda data: data.isel(draw=slice(371, None)),
    "thin": lambda data: data.isel(draw=slice(3, None, 13)),
    "one chain": lambda data: data.isel(chain=[1], draw=slice(0, 30)),
    "reorder": lambda data: data.isel(draw=np.random.default_rng(0).permutation(400)[:40]),
    "draws put together": lambda data: xr.concat([data, data.isel(draw=slice(50))], "draw"),
    "chains put together": lambda data: xr.concat(
        [data, data.assign_coords(chain=[2, 3])], "chain", data_vars="minimal"
    ),
    "filled up": lambda data: xr.concat(
        [data, data.isel(draw=slice(50)).assign_coords(chain=[2, 3])], "chain", join="outer"
    ),
}


@pytest.mark.parametrize("kind", KEPT)
def test_facts_survive(idata, kind, tmp_path):
    expected = facts(idata)
    stats = KEPT[kind](idata["sample_stats"].dataset)
    assert facts_of(stats) == expected
    xr.DataTree.from_dict({"sample_stats": stats}).to_netcdf(tmp_path / "r.nc", engine="h5netcdf")
    with xr.open_datatree(tmp_path / "r.nc", engine="h5netcdf") as loaded:
        assert facts(loaded) == expected


def test_processes_declare_the_same(idata):
    step = pe.EnsembleKalmanSampler(ensemble_size=40, adjust=True)
    other = sample(pair(), step, cores=2, discard_tuned_samples=False)
    for name in ("unconstrained", "made_by"):
        np.testing.assert_array_equal(other.sample_stats[name], idata.sample_stats[name])
    early = other["warmup_sample_stats"].dataset
    assert (early["made_by"] == 0).all()
    drawn = np.isfinite(early["unconstrained"].to_numpy()).all(2)
    assert drawn.any()
    np.testing.assert_allclose(
        early["unconstrained"].to_numpy()[drawn][:, :2],
        other["warmup_posterior"]["a"].to_numpy()[drawn],
    )


def test_facts_cost_less_than_a_hundred_bytes_a_draw(idata, tmp_path):
    made_by = idata["sample_stats"]["made_by"]
    n = made_by.sizes["chain"] * made_by.sizes["draw"]
    assert made_by.dtype == np.uint8
    assert made_by.nbytes == PACKET * n < 100 * n
    data = xr.Dataset({"made_by": xr.concat([made_by] * 20, "draw")})
    data.to_netcdf(tmp_path / "r.nc", engine="h5netcdf")
    assert (tmp_path / "r.nc").stat().st_size < 100 * 20 * n
    with xr.open_dataset(tmp_path / "r.nc", engine="h5netcdf") as loaded:
        assert loaded["made_by"].load().nbytes == PACKET * 20 * n


def test_too_few_draws_are_told(idata):
    with pytest.raises(ValueError, match=r"has 4 draws\. They are too few to tell"):
        facts_of(idata["sample_stats"].dataset.isel(draw=slice(2)))


def test_results_that_cannot_be_read_are_refused(idata):
    stats = idata["sample_stats"].dataset
    with pytest.raises(ValueError, match=r"no stat `made_by`: version 0\.1"):
        facts_of(stats.drop_vars("made_by"))
    with pytest.raises(ValueError, match=r"the shape \(2, 400, 3\)"):
        facts_of(stats.isel(made_by_dim_0=slice(3)))
    later = json.loads(facts(idata).text()) | {"format": FORMAT + 1, "version": "9.1"}
    with pytest.raises(ValueError, match=f"version 9.1 .* format {FORMAT + 1}, .* format {FORMAT}"):
        Facts.of_text(json.dumps(later))


def test_runs_put_together_have_in_common_what_holds_for_both(idata):
    told = facts(idata)
    other = json.loads(told.text()) | {"map": "rough", "particles": 20}
    other["origin"] = {"law": "gaussian", "adjusted": False, "evaluations": 1}
    both = together([told, Facts.of_text(json.dumps(other))])
    assert both.origin == Origin("approximate")
    assert (both.map, both.particles) == ("rough", 20)
    with pm.Model() as model:
        pm.Normal("y", pm.Normal("elsewhere"), 1.0, observed=0.0)
    elsewhere = facts(sample(model, kalman(), draws=60, chains=1))
    with pytest.raises(ValueError, match="different models: `a` is in one of them only"):
        together([told, elsewhere])
