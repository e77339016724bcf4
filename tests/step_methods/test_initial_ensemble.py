"""Starting ensembles: arrays, named values, and earlier runs."""

import numpy as np
import pymc as pm
import pytest
import xarray as xr
from pymc.distributions.transforms import ordered
from toys import CountCalls, ToyStep, gaussian_model, sample

import pymc_ensemble as pe
from pymc_ensemble.diagnosis.ensembles import to_ensemble
from pymc_ensemble.problem.points import unconstrained
from pymc_ensemble.step_methods.initial_ensemble import initial_ensembles

J = 10


def varied_model():
    """Transforms with fixed, random and no parameters."""
    with pm.Model(coords={"city": ["a", "b", "c"]}) as model:
        low = pm.Normal("low")
        sigma = pm.HalfNormal("sigma", shape=(2, 2))
        pm.Uniform("between", low, low + pm.math.exp(sigma[0, 0]))
        pm.Dirichlet("share", np.ones(3), dims="city")
        sorted_ = pm.Normal("sorted", shape=3, transform=ordered, initval=[-1, 0, 1])
        pm.Normal("y", sorted_.sum(), 1.0, observed=0.0)
    return model


def draws_around_initial_point(model, size, rng):
    """Values in the model and unconstrained values by name, and all coordinates in one array."""
    values = {
        name: value + 0.3 * rng.normal(size=(size, *value.shape))
        for name, value in model.initial_point().items()
    }
    to_model = model.compile_fn(
        model.replace_rvs_by_values(model.free_RVs), inputs=model.value_vars
    )
    in_model = [to_model({n: v[i] for n, v in values.items()}) for i in range(size)]
    columns = zip(*in_model, strict=True)
    named = {rv.name: np.stack(c) for rv, c in zip(model.free_RVs, columns, strict=True)}
    U = np.concatenate([value.reshape(size, -1) for value in values.values()], axis=1)
    return named, values, U


def test_named_values_become_coordinates():
    model, rng = varied_model(), np.random.default_rng(1)
    named, values, U = draws_around_initial_point(model, 7, rng)
    np.testing.assert_allclose(unconstrained(model, named), U, atol=1e-10)
    np.testing.assert_array_equal(unconstrained(model, values), U)
    mixed = {"low": named["low"], "sigma_log__": values["sigma_log__"]}
    mixed |= {name: named[name] for name in ("between", "share", "sorted")}
    np.testing.assert_allclose(unconstrained(model, mixed), U, atol=1e-10)


@pytest.mark.parametrize("form", [np.array, list, lambda U: {"x": U}])
def test_particles_start_where_they_were_told(form):
    U = np.random.default_rng(2).normal(size=(16, 3))
    starts = []

    def note(points):
        starts.append(points.copy())
        return points

    step = ToyStep(initial_ensemble=form(U), hook=note)
    idata = sample(gaussian_model(3), step, draws=32)
    np.testing.assert_array_equal(starts[0], U)
    assert to_ensemble(idata)["posterior"].sizes["particle"] == 16


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((20, 3)), r"shape \(20, 3\).*2 unconstrained coordinates \(`a`, `b_log__`\)"),
        (np.zeros(2), r"shape \(2,\)"),
        ({"a": np.zeros(20)}, r"no values for `b`.*shape \(ensemble_size,\)"),
        ({"a": np.zeros(20), "b": np.ones((20, 1))}, r"shape \(20, 1\) for `b`"),
        ({"a": np.zeros(20), "b": 1.0}, r"shape \(\) for `b`"),
        ({"a": np.zeros(20), "b": np.ones(20), "c": 1}, r"names `c`.*`a`, `b`"),
        ({"a": np.zeros(20), "b": np.ones(10)}, r"different length: \{'a': 20, 'b': 10\}"),
        ({"a": np.zeros(20), "b": -np.ones(20)}, r"not finite.*`b_log__` of member 0 \(20 such"),
        ([[np.nan, 0.0]] * 20, r"not finite.*`a`"),
    ],
)
def test_wrong_ensembles_are_refused_by_name(given, message):
    with pm.Model() as model:
        a = pm.Normal("a")
        b = pm.HalfNormal("b")
        pm.Normal("y", a, b, observed=0.0)
        with pytest.raises(ValueError, match=message):
            pe.EnsembleKalmanSampler(initial_ensemble=given)
    hook = CountCalls()
    with pytest.raises(ValueError, match=message):
        sample(model, ToyStep(initial_ensemble=given, hook=hook))
    assert hook.calls == 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda U: U * [1, 0, 1] + 0.1, r"does not vary.*`x\[1\]`.*noise.*allow_subspace=True"),
        (lambda U: U * [1, 1, 1e-17] + 3.0, r"does not vary.*`x\[2\]`"),
        (lambda U: 5.0 + U[:, [0, 1, 0]], r"subspace of dimension 2.*3 .*noise.*allow_subspace"),
        (lambda U: U @ [[1, 0, 0.3], [0, 1e-4, 0.1], [0, 0, 0]], "subspace of dimension 2"),
        (lambda U: U[:1] + U[:, :1], "subspace of dimension 1"),
    ],
)
def test_ensembles_without_spread_are_refused(spoil, message):
    U = np.random.default_rng(2).normal(size=(16, 3))
    hook = CountCalls()
    with pytest.raises(ValueError, match=message):
        sample(gaussian_model(3), ToyStep(initial_ensemble=spoil(U), hook=hook))
    assert hook.calls == 0
    with gaussian_model(3):
        step = pe.EnsembleKalmanSampler(initial_ensemble=spoil(U), allow_subspace=True)
    assert step.ensemble_size == 16


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_narrow_ensembles_are_accepted(scale):
    """Neither units nor strong correlations make a subspace."""
    U = np.random.default_rng(2).normal(size=(16, 3)) * [1, 1e-6, 1e6]
    U[:, 1] += U[:, 0]  # correlation 1 - 5e-13
    with gaussian_model(3):
        assert ToyStep(initial_ensemble=scale * U).ensemble_size == 16


def test_contradicting_ensemble_sizes_are_refused():
    with gaussian_model(), pytest.raises(ValueError, match="16 members, but ensemble_size is 20"):
        ToyStep(initial_ensemble=np.ones((16, 2)), ensemble_size=20)


def test_improper_prior_needs_an_ensemble():
    with pm.Model() as model:
        a = pm.Flat("a")
        pm.Normal("y", a, 1.0, observed=0.5)
        with pytest.raises(ValueError, match=r"`a`.*initial_ensemble"):
            pe.EnsembleKalmanSampler()
    step = pe.EnsembleKalmanSampler(initial_ensemble=np.random.default_rng(1).normal(size=(50, 1)))
    idata = sample(model, step, draws=500)
    assert idata.posterior.a.mean().item() == pytest.approx(0.5, abs=4 / np.sqrt(250))


def test_run_is_continued_chain_by_chain():
    """No burn-in, and each chain goes on from the last sweep of its own."""
    model = gaussian_model()
    first = sample(model, draws=30, chains=2)
    last = to_ensemble(first)["posterior"]["x"].isel(sweep=-1)
    starts = []

    def note(points):
        if len(points) == J:  # only the start is a round of all members
            starts.append(points.copy())
        return points

    second = sample(model, ToyStep(initial_ensemble=first, hook=note), draws=20, chains=3)
    assert len(starts) == 3
    for chain, start in enumerate(starts):
        np.testing.assert_array_equal(start, last[chain % 2])
    assert (second.sample_stats.n_evals.max("draw") == 3 * J).all()  # start and two sweeps
    assert second.sample_stats.converged.all()


def test_unconverged_run_stays_marked():
    model = gaussian_model()
    with pytest.warns(UserWarning, match="burn-in"):
        first = sample(model, ToyStep(burn_in=10**6), draws=20)
    with pytest.warns(UserWarning, match="burn-in"):
        second = sample(model, ToyStep(initial_ensemble=first), draws=20)
    assert not second.sample_stats.converged.any()


@pytest.mark.parametrize("draws", [991, 1000, 1040])
def test_continued_run_keeps_its_size(draws):
    """104 particles do not divide 1000 draws; earlier sweeps fill up what the last one lacks."""
    model = gaussian_model()
    first = sample(model, ToyStep(ensemble_size=104), draws=draws, chains=2)
    with model:
        step = ToyStep(initial_ensemble=first)
    assert step.ensemble_size == 104
    x, sweep = first.posterior["x"].to_numpy(), first.sample_stats["sweep"].to_numpy()
    for chain in range(2):
        start = step._bound.initial.for_chain(chain)
        assert len(np.unique(start, axis=0)) == 104
        n_last = (sweep[chain] == 9).sum()
        assert (n_last == 104) == (draws == 1040)
        np.testing.assert_array_equal(start[:n_last], x[chain, sweep[chain] == 9])
        before = x[chain, sweep[chain] == 8]
        np.testing.assert_array_equal(start[n_last:], before[: 104 - n_last])


def test_run_without_a_complete_ensemble_is_not_continued():
    """An interrupted chain shortens the others: a few particles of them are left then."""
    first = sample(gaussian_model(), draws=40).isel(draw=slice(0, 8))
    with gaussian_model(), pytest.raises(ValueError, match=r"8 draws .* 10 particles.*at least 10"):
        ToyStep(initial_ensemble=first)


def test_run_is_continued_from_a_file(tmp_path):
    """Back to unconstrained coordinates."""
    model = varied_model()
    first = sample(model, ToyStep(ensemble_size=30), draws=3 * 30)
    first.to_netcdf(tmp_path / "first.nc", engine="h5netcdf")
    names = [str(i) for i in range(11)]
    with xr.open_datatree(tmp_path / "first.nc", engine="h5netcdf") as loaded:
        start = initial_ensembles(loaded, model, names)
    assert start.burned_in
    assert start.U.shape == (1, 30, 11)
    last = to_ensemble(first)["posterior"].isel(chain=0, sweep=-1)
    again = model.compile_fn(model.replace_rvs_by_values(model.free_RVs), inputs=model.value_vars)
    info = {name: value.shape for name, value in model.initial_point().items()}
    for particle in (0, 29):
        parts = np.split(
            start.U[0, particle], np.cumsum([np.prod(s, dtype=int) for s in info.values()])[:-1]
        )
        point = {n: p.reshape(s) for (n, s), p in zip(info.items(), parts, strict=True)}
        for rv, value in zip(model.free_RVs, again(point), strict=True):
            np.testing.assert_allclose(value, last[rv.name].isel(particle=particle), rtol=1e-10)


def test_continued_run_of_another_model_is_refused():
    first = sample(gaussian_model(), draws=30)
    with pm.Model() as other:
        z = pm.Normal("z")
        pm.Normal("y", z, observed=0.0)
    with other, pytest.raises(ValueError, match="no values for `z`"):
        ToyStep(initial_ensemble=first)
