"""What evaluations that are no draws say of a run."""

import numpy as np
import pymc as pm
import pytest
import xarray as xr
from known_runs import SURROGATE, declare_sampled, positions, sample, standard_normal_run
from pymc.exceptions import SamplingError

import pymc_ensemble as pe
from pymc_ensemble.diagnosis.known import Evidence
from pymc_ensemble.diagnosis.modes import without_draws
from pymc_ensemble.diagnosis.repeats import Agreement, Repeated
from pymc_ensemble.diagnosis.run import Run
from pymc_ensemble.diagnosis.stored import other_evaluations
from pymc_ensemble.forward import StoreError


def stored_model(path, simulate, **options):
    box = pe.forward_model(simulate, output_shape=(2,), store=path, **options)
    with pm.Model() as model:
        a, b = pm.Normal("a"), pm.Normal("b")
        pm.Normal("y", box(a, b), 0.5, observed=[0.5, 0.2])
    return model


@pytest.fixture(scope="module")
def fragile(tmp_path_factory):
    """A forward model that fails where its first argument is large, and a run of it."""
    path = tmp_path_factory.mktemp("store") / "fragile.db"

    def simulate(first, second):
        if first > 0.6:
            raise FloatingPointError("no convergence")
        return np.array([first, first - second])

    model = stored_model(path, simulate)
    return (
        model,
        path,
        sample(model, pe.EnsembleKalmanSampler(adjust=False, ensemble_size=40), 200, 2),
    )


# -- a store ------------------------------------------------------------------------------------


def test_failures_in_a_corner_are_located(fragile):
    model, path, idata = fragile
    for given in (model, None):
        diagnosis = pe.diagnose(idata, model=given, store=path)
        [reason] = [reason for reason in diagnosis.reasons if "cut off" in reason]
        assert "most of them where `first` is above 0." in reason
        assert any("`first` is above 0." in remedy for remedy in diagnosis.remedies)


def test_failures_anywhere_are_noted(tmp_path):
    run = standard_normal_run(np.random.default_rng(1))
    stored = pe.open_store(
        saved(tmp_path / "runs.db", fails=lambda x: int(1e6 * abs(x[0])) % 5 == 0)
    )
    diagnosis = pe.diagnose(run, store=stored)
    assert diagnosis.trustworthy
    assert any("of the stored evaluations failed, here and there" in n for n in diagnosis.notes)


def saved(path, fails):
    """A store of a function of ``x`` at 400 points; some fail."""

    @pe.forward_model(output_shape=(1,), store=path)
    def simulate(x):
        if fails(x):
            raise FloatingPointError("bad luck")
        return x[:1]

    rng = np.random.default_rng(2)
    problem = pe.InverseProblem(simulate, prior=(np.zeros(3), np.ones(3)), data=[0.0], noise=1.0)
    problem.evaluate(rng.standard_normal((400, 3)))
    return path


def test_log_densities_follow_from_stored_outputs(fragile):
    model, path, idata = fragile
    run = Run.of(idata, model)
    others = other_evaluations(path, run, model)
    U, lp = others.known
    k = np.flatnonzero((run.U[7] == U).all(1))
    assert len(k) == 1
    assert lp[k[0]] == pytest.approx(run.stats["lp"].ravel()[7], rel=1e-12)
    assert others.failed.sum() == (others.inputs[:, 0] > 0.6).sum() > 20


def test_surrogates_are_checked_against_stored_evaluations(fragile):
    model, path, idata = fragile
    idata = idata.copy(deep=True)
    declare_sampled(idata, SURROGATE)
    assert "shift" not in pe.diagnose(idata, model=model).parameters
    assert "shift" in pe.diagnose(idata, model=model, store=path).parameters


def test_archives_of_points_and_outputs():
    model = pe.gallery.bimodal()
    idata = sample(model, pe.EnsembleKalmanSampler(adjust=True, ensemble_size=60))
    draws = positions(idata)
    one_mode = draws[..., 0] > draws[..., 1]
    draws[~one_mode] = draws[~one_mode][:, ::-1]  # as if no particle had ever left it
    problem = pe.InverseProblem.from_model(model)
    U = draws[0, :50, ::-1]
    outputs = problem.evaluate(U).outputs
    outputs[0] = np.nan
    diagnosis = pe.diagnose(idata, model=model, store=(U, outputs))
    assert any("a mode that the draws do not have" in reason for reason in diagnosis.reasons)
    found = pe.diagnose(idata, model=model, store=({"u": U}, outputs))
    assert found.reasons == diagnosis.reasons
    with pytest.raises(ValueError, match=r"points of `store` have shape \(50, 1\)"):
        pe.diagnose(idata, model=model, store=(U[:, :1], outputs))
    with pytest.raises(ValueError, match="outputs of `store` have shape"):
        pe.diagnose(idata, model=model, store=(U, outputs[:3]))
    with pytest.raises(ValueError, match="Pass the model"):
        pe.diagnose(idata, store=(U, outputs))


def test_stores_that_do_not_fit_are_refused(fragile, tmp_path):
    model, path, idata = fragile
    with pytest.raises(ValueError, match="`store` must be the path of an evaluation store"):
        pe.diagnose(idata, model=model, store=7)
    with pytest.raises(ValueError, match=r"not one of `pymc_ensemble\.open_store`"):
        pe.diagnose(idata, model=model, store=xr.Dataset())
    with pytest.raises(StoreError, match="There is no evaluation store"):
        pe.diagnose(idata, model=model, store=tmp_path / "nowhere.db")
    stored = pe.open_store(path).rename(first="third")
    with pytest.raises(ValueError, match="`store` has no `first`"):
        pe.diagnose(idata, model=model, store=stored)
    with pytest.raises(ValueError, match="is empty"):
        pe.diagnose(idata, model=model, store=pe.open_store(path).isel(evaluation=slice(0)))
    run = standard_normal_run(np.random.default_rng(1))
    with pytest.raises(ValueError, match="the model has 0"):
        pe.diagnose(run, model=black_box_free(), store=path)


def black_box_free():
    with pm.Model() as model:
        x = pm.Normal("x", shape=2)
        pm.Normal("y", x[0], 1.0, observed=0.0)
    return model


# -- the burn-in --------------------------------------------------------------------------------


def test_modes_of_the_burn_in_are_not_forgotten():
    run = standard_normal_run(np.random.default_rng(1))
    there = 30.0 - 1e-3 * np.arange(40).reshape(4, 10, 1) * np.ones(2)
    points = np.concatenate([there, positions(run)[:, :10]], 1)
    lp = np.full((4, 20), -1.0)
    stats = {"lp": (("chain", "draw"), lp), "unconstrained": (("chain", "draw", "k"), points)}
    run["warmup_sample_stats"] = xr.DataTree(xr.Dataset(stats))
    diagnosis = pe.diagnose(run)
    assert diagnosis.verdict == "wrong"
    assert "a mode that the draws do not have, at x[0]=30, x[1]=30" in diagnosis.headline
    lp[:, :10] = -50.0  # far down
    run["warmup_sample_stats"]["lp"].values[:] = lp
    assert pe.diagnose(run).trustworthy


def test_points_without_draws():
    rng = np.random.default_rng(1)
    draws = rng.standard_normal((1, 5, 100, 2))
    lp = -0.5 * (draws**2).sum(-1)
    places = np.array([[9.0, 9.0], [0.1, 0.2], [9.1, 9.0], [9.0, 9.1], [20.0, 0.0]])
    values = np.array([-1.0, 0.0, -0.5, -2.0, -30.0])
    assert without_draws(draws, lp, places, values).tolist() == [2, 0, 3]
    assert without_draws(draws, lp, places[:3], values[:3]).tolist() == [2, 0]
    assert without_draws(draws, lp, places[:2], values[:2]).tolist() == []  # one is an accident
    # as likely as the median of the draws, -log 2, but for 3
    assert without_draws(draws, lp, places[:3], values[:3] - 3).tolist() == []
    assert without_draws(draws, np.full(lp.shape, np.nan), places, values).tolist() == []
    assert without_draws(draws, lp, places[[0, 0, 0]], values[[0, 0, 0]]).tolist() == []
    spread = 3 * draws  # not where the density says
    assert without_draws(spread, 9 * lp, 3 * places, values).tolist() == []


@pytest.mark.parametrize("step", [0.0, 0.01])
def test_points_among_draws_that_are_repeated_or_hardly_move(step):
    """In many dimensions all points are far from all others."""
    rng = np.random.default_rng(1)
    start, points = rng.standard_normal((100, 20)), rng.standard_normal((200, 20))
    draws = start + step * rng.standard_normal((1, 50, 100, 20)).cumsum(1)
    lp_of_draws, lp = (-0.5 * (X**2).sum(-1) for X in (draws, points))
    assert without_draws(draws, lp_of_draws, points, lp).tolist() == []


# -- the same points again ----------------------------------------------------------------------


def noisy_model(noise):
    def simulate(a, b, rng):
        return np.array([a, a - b]) + noise * rng.standard_normal(2)

    box = pe.forward_model(simulate, output_shape=(2,), stochastic=True)
    with pm.Model() as model:
        a, b = pm.Normal("a"), pm.Normal("b")
        pm.Normal("y", box(a, b), 0.5, observed=[0.5, 0.2])
    return model


def test_noise_is_measured_by_repeated_evaluations():
    model = noisy_model(0.5)  # as large as that of the data
    idata = sample(model, pe.EnsembleKalmanSampler(adjust=True, ensemble_size=40), 400)
    diagnosis = pe.diagnose(idata, model=model, repeats=80)
    assert 0.6 < diagnosis.statistics["noise"] < 4.0
    assert diagnosis.statistics["luck"] > 0.2
    assert any("A Metropolis test keeps lucky evaluations" in r for r in diagnosis.reasons)
    assert any("80 forward evaluations were made again" in note for note in diagnosis.notes)
    assert any("rough=True" in remedy for remedy in diagnosis.remedies)


def test_deterministic_maps_have_no_noise(fragile):
    model, _, idata = fragile
    before = pe.diagnose(idata, model=model)
    diagnosis = pe.diagnose(idata, model=model, repeats=40)
    assert diagnosis.reasons == before.reasons
    assert diagnosis.statistics["noise"] < 1e-4
    assert any("40 forward evaluations were made again" in note for note in diagnosis.notes)


@pytest.fixture(scope="module")
def learned():
    """A surrogate that is right, and the model."""
    model = noisy_model(0.0)
    return sample(model, pe.EnsembleGaussianProcessSampler(ensemble_size=20), 200, 2), model


def test_right_surrogates_are_asked_for_the_truth(learned):
    idata, model = learned
    diagnosis = pe.diagnose(idata, model=model, repeats=40)
    assert not any("surrogate's" in reason for reason in diagnosis.reasons)
    assert diagnosis.statistics["slope"] == pytest.approx(1, abs=0.05)
    noisy = Repeated(40, 0, 10, 2.0, 0.0, Agreement(0.1, 0.05, 1.0, 0.1))
    alone = Evidence.of(Run.of(idata), None, np.random.default_rng(1))
    assert alone.fit is None
    assert noisy.judge(alone)[0] == []  # its draws have not met the noise


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (lambda lp, rng: 3 * lp, "off by"),
        (lambda lp, rng: lp / 3, "times too flat"),
        (lambda lp, rng: 2 * lp, "times too steep"),
        (lambda lp, rng: lp + 3 * rng.standard_normal(lp.shape), "off by"),
    ],
)
def test_wrong_surrogates_are_told_whatever_the_seed(learned, wrong, word):
    """Densities that are off by a factor, or by an error: told from twenty draws, each twice."""
    idata, model = learned
    for seed in range(5):
        changed = idata.copy(deep=True)
        lp = changed["sample_stats"]["lp"].values
        lp[:] = wrong(lp, np.random.default_rng(seed))
        diagnosis = pe.diagnose(changed, model=model, repeats=40, random_seed=seed)
        assert diagnosis.verdict == "wrong"
        assert any("surrogate's log density is" in reason for reason in diagnosis.reasons)
        if word != "times too steep":  # which may be off by more than is bearable as well
            assert any(word in reason for reason in diagnosis.reasons)


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_agreement_of_densities(noise):
    """Slope, error and their standard errors against many repetitions, without and with noise."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(400):
        carried = -rng.exponential(size=30)
        rest = 0.4 * rng.standard_normal(30) + noise * rng.standard_normal(30)
        true = 1.5 * carried + rest + 7
        found.append(Agreement.of(carried, true, noise**2, 1.0))
    slope, error = (np.array([getattr(a, name) for a in found]) for name in ("slope", "error"))
    assert slope.mean() == pytest.approx(1.5, abs=0.02)
    assert np.mean([a.slope_sd for a in found]) == pytest.approx(slope.std(), rel=0.15)
    assert np.sqrt((error**2).mean()) == pytest.approx(np.hypot(0.5, 0.4), rel=0.06)
    if noise < 1:
        assert np.mean([a.error_sd for a in found]) == pytest.approx(error.std(), rel=0.3)


def test_repeats_are_checked(fragile):
    model, _, idata = fragile
    with pytest.raises(ValueError, match="`repeats` evaluates the forward map"):
        pe.diagnose(idata, repeats=40)
    with pytest.raises(ValueError, match="at least 8"):
        pe.diagnose(idata, model=model, repeats=3)
    with pytest.raises(TypeError, match=r"`repeats` is 20\.5"):
        pe.diagnose(idata, model=model, repeats=20.5)


def test_forward_map_that_no_longer_works_is_told():
    """The run was made when it worked; now neither repeats nor a probe find anything."""
    broken = []

    def simulate(a, b):
        if broken:
            raise OSError("the licence has expired")
        return np.array([a, a - b])

    with pm.Model() as model:
        a, b = pm.Normal("a"), pm.Normal("b")
        forward = pe.forward_model(simulate, output_shape=(2,))
        pm.Normal("y", forward(a, b), 0.5, observed=[0.5, 0.2])
    idata = sample(model, pe.EnsembleKalmanSampler(adjust=False, ensemble_size=20), 100)
    broken.append(True)
    told = r"first one at a=.*, b=.*\n(.|\n)*the licence has expired"
    with pytest.raises(ValueError, match=told):
        pe.diagnose(idata, model=model, repeats=40)
    told = r"first failure was at a=.*, b=.*\n(.|\n)*has expired(.|\n)*without `probe`"
    with pytest.raises(SamplingError, match=told):
        pe.diagnose(idata, model=model, probe=200)


def test_probes_are_checked(fragile):
    model, _, idata = fragile
    with pytest.raises(ValueError, match="`probe` is -5"):
        pe.diagnose(idata, model=model, probe=-5)
    with pytest.raises(ValueError, match="needs 8 evaluations at least"):
        pe.diagnose(idata, model=model, probe=1)
    with pytest.raises(TypeError, match="not NoneType"):
        pe.diagnose(None)
    [note] = [n for n in pe.diagnose(idata, model=model, probe=9).notes if "searched for" in n]
    spent = int(note.split("with ")[1].split()[0])
    assert 9 <= spent < 18  # iterations are finished
