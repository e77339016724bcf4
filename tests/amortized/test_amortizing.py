"""Posteriors that are learned: against exact ones, and what is refused."""

import pickle
import warnings
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pymc as pm
import pytest

import pymc_ensemble as pe

jax = pytest.importorskip("jax", reason="needs the extra `amortized`")

from pymc_ensemble.amortized import training  # noqa: E402
from pymc_ensemble.amortized.estimators import Architecture, classification  # noqa: E402
from pymc_ensemble.amortized.refining import RefinementError  # noqa: E402

pytestmark = pytest.mark.amortized


def linear(observed=(1.0, 0.2, 0.0), prior=1.0):
    """Two parameters, one of them positive, three data: Gaussian in unconstrained coordinates."""
    with pm.Model(coords={"k": ["a", "b", "c"]}) as model:
        x, r = pm.Normal("x", 0, prior), pm.LogNormal("r")
        mu = pm.math.stack([x, x + pm.math.log(r), pm.math.log(r)])
        pm.Normal("y", mu, 0.5, observed=np.array(observed), dims="k")
    return model


def exact(y):
    """Mean and covariance of (x, log r)."""
    A = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    covariance = np.linalg.inv(A.T @ A / 0.25 + np.eye(2))
    return covariance @ A.T @ np.array(y) / 0.25, covariance


@pytest.fixture(scope="module")
def model():
    return linear()


@pytest.fixture(scope="module")
def made(model):
    return pe.simulations(model, 800, random_seed=1)


@pytest.fixture(scope="module")
def posterior(model, made):
    return pe.amortize(model, made, members=2, random_seed=1)


@pytest.fixture(scope="module")
def ratio(model, made):
    return pe.amortize(model, made, method="ratio", conservative=True, members=1, random_seed=1)


@pytest.fixture(scope="module")
def diffusion(model, made):
    return pe.amortize(model, made, method="diffusion", members=2, random_seed=1)


def errors(idata, y):
    mean, covariance = exact(y)
    sd = np.sqrt(np.diag(covariance))
    U = idata["sample_stats"]["unconstrained"].to_numpy().reshape(-1, 2)
    return np.abs(U.mean(0) - mean) / sd, U.std(0) / sd


@pytest.mark.parametrize("y", [(1.0, 0.2, 0.0), (-0.5, -1.0, -0.6), (1.4, 2.2, 0.4)])
def test_posterior_of_a_linear_model(posterior, y):
    idata = posterior.sample({"y": y}, random_seed=1)
    error, spread = errors(idata, y)
    assert error.max() < 0.25
    assert 0.8 < spread.min() <= spread.max() < 1.25
    stats = idata["sample_stats"].dataset
    np.testing.assert_allclose(np.log(idata.posterior["r"]), stats["unconstrained"][..., 1])
    # the density that draws carry is normalized: E exp(f - lp) = 1 for a density f inside
    U = stats["unconstrained"].to_numpy().reshape(-1, 2)
    mean, covariance = exact(y)
    z = U - mean
    inner = covariance / 2
    log_f = -0.5 * np.einsum("ni,ij,nj->n", z, np.linalg.inv(inner), z)
    log_f -= np.log(2 * np.pi) + 0.5 * np.log(np.linalg.det(inner))
    weights = np.exp(log_f - stats["lp"].to_numpy().ravel())
    assert weights.mean() == pytest.approx(1, abs=4 * weights.std() / np.sqrt(len(U)) + 0.01)


def test_ratio_of_a_linear_model(ratio):
    y = (1.0, 0.2, 0.0)
    idata = ratio.sample({"y": y}, random_seed=1)
    error, spread = errors(idata, y)
    assert error.max() < 0.5
    assert 0.8 < spread.min() <= spread.max() < 1.8  # balanced: rather too wide
    assert 0.1 < float(idata["sample_stats"]["acceptance"].mean()) < 0.7
    assert pe.to_ensemble(idata)["posterior"].sizes["particle"] == 100


@pytest.mark.parametrize("y", [(1.0, 0.2, 0.0), (-0.5, -1.0, -0.6)])
def test_diffusion_of_a_linear_model(diffusion, y):
    """Kernels about the data widen what is learned by some percent."""
    idata = diffusion.sample({"y": y}, random_seed=1)
    error, spread = errors(idata, y)
    assert error.max() < 0.4
    assert 0.8 < spread.min() <= spread.max() < 1.4


def test_a_map_from_noise_has_no_density_and_claims_none(diffusion, model):
    diffusion.tested = None
    idata = diffusion.sample(draws=300, random_seed=1)
    assert np.isnan(idata["sample_stats"]["lp"]).all()
    assert np.isnan(idata["sample_stats"]["log_q"]).all()
    diagnosis = pe.diagnose(idata)
    assert diagnosis.verdict == "doubtful"
    assert "nothing has tested" in str(diagnosis)
    assert "carry no log density" in str(diagnosis)
    result = pe.coverage(model, diffusion, simulations=50, draws=200, random_seed=2)
    assert result.verdict in ("calibrated", "conservative")
    assert diffusion.tested == result.verdict
    idata = diffusion.sample(draws=300, random_seed=1)
    assert pe.diagnose(idata).verdict == "trustworthy"
    assert "learned from simulations" in pe.report(idata).methods
    with pytest.warns(UserWarning, match="No simulation looks like these data"):
        diffusion.sample({"y": (2.0, -2.0, 2.0)}, draws=10, random_seed=1)
    with model:
        again = pm.sample(
            100,
            step=pe.EnsembleKalmanSampler(initial_ensemble=idata, adjust=True),
            chains=1,
            cores=1,
            random_seed=1,
            progressbar=False,
        )
    assert bool(again["sample_stats"]["converged"].all())


def test_what_other_parts_make_of_results(posterior, model):
    idata = posterior.sample(draws=300, chains=2, random_seed=1)
    assert idata["posterior"].sizes == {"chain": 2, "draw": 300}
    assert idata["observed_data"]["y"].dims == ("k",)
    posterior.tested = None
    idata = posterior.sample(random_seed=1)
    diagnosis = pe.diagnose(idata)
    assert diagnosis.verdict == "doubtful"
    assert "nothing has tested" in str(diagnosis)
    result = pe.coverage(model, posterior, simulations=50, draws=200, random_seed=2)
    assert result.calibrated
    assert result.finished == 50
    assert posterior.tested == "calibrated"
    idata = posterior.sample(random_seed=1)
    diagnosis = pe.diagnose(idata)
    assert "nothing has tested" not in str(diagnosis)
    assert "calibrated on average" in diagnosis.notes[0]
    with pytest.raises(ValueError, match="amortized estimate"):
        pe.diagnose(idata, model=model, probe=2000)
    with pytest.raises(ValueError, match="refine"):
        pe.reweight(idata)
    assert "learned from simulations" in pe.report(idata).methods
    for plot in (pe.plots.path, pe.plots.spread, pe.plots.coverage):
        plot(result if plot is pe.plots.coverage else idata)
    plt.close("all")
    with model:
        again = pm.sample(
            200,
            step=pe.EnsembleKalmanSampler(initial_ensemble=idata, adjust=True),
            chains=1,
            cores=1,
            random_seed=1,
            progressbar=False,
        )
    assert bool(again["sample_stats"]["converged"].all())


def test_coverage_of_another_prior_is_no_verdict_on_this_one(posterior):
    """A prior three times as wide: what was learned knows nothing of its tails."""
    before = posterior.tested
    result = pe.coverage(
        lambda: linear(prior=4.0), posterior, simulations=50, draws=200, random_seed=3
    )
    assert result.verdict == "overconfident"
    assert posterior.tested == before


def test_coverage_on_held_out_simulations(posterior, model):
    held = pe.simulations(model, 80, random_seed=9)
    result = posterior.coverage(held, draws=200, random_seed=1)
    assert (result.finished, result.simulations) == (80, 80)


def test_refined_draws_are_those_of_the_likelihood(posterior):
    y = (1.0, 0.2, 0.0)
    better = posterior.refine({"y": y}, evaluations=1000, random_seed=1)
    attrs = better["posterior"].attrs
    assert attrs["khat"] <= 0.7
    assert attrs["n_evals"] == 1000
    mean, covariance = exact(y)
    U = better["sample_stats"]["unconstrained"].to_numpy()[0]
    error = 4 / np.sqrt(1000 * attrs["efficiency"])
    assert (np.abs(U.mean(0) - mean) / np.sqrt(np.diag(covariance))).max() < error
    np.testing.assert_allclose(U.std(0), np.sqrt(np.diag(covariance)), rtol=error)
    # the log density of the model, normalized or not, is quadratic with the right curvature
    lp = better["sample_stats"]["lp"].to_numpy()[0]
    z = U - mean
    distance = np.einsum("ni,ij,nj->n", z, np.linalg.inv(covariance), z)
    np.testing.assert_allclose(lp + 0.5 * distance, (lp + 0.5 * distance)[0], atol=1e-6)


def test_a_map_is_refined_by_kernels_about_its_draws(diffusion, model, monkeypatch):
    """By weights with the density of the model; the equation and the map have none."""
    monkeypatch.setattr(training, "REGRESSION_PASSES", 50)
    monkeypatch.setattr("pymc_ensemble.amortized.refining.LABELS", 1000)
    y = (1.0, 0.2, 0.0)
    mean, covariance = exact(y)
    sd = np.sqrt(np.diag(covariance))
    for by in ("weights", "equation", "map"):
        better = diffusion.refine({"y": y}, 600, model, 1, by=by, draws=600)
        attrs, stats = better["posterior"].attrs, better["sample_stats"].dataset
        assert (attrs["refined"], attrs["n_evals"]) == (by, 600)
        assert attrs["khat"] <= 0.7
        U = stats["unconstrained"].to_numpy()[0]
        assert U.shape == (600, 2)
        # what the weights are worth, and what the latents add by chance; networks smooth
        error = 4 * np.sqrt((1 / attrs["efficiency"] + 1) / 600) + (0.1 if by == "map" else 0)
        assert (np.abs(U.mean(0) - mean) / sd).max() < error
        np.testing.assert_allclose(U.std(0), sd, rtol=error)
        lp = stats["lp"].to_numpy()[0]
        assert np.isfinite(lp).all() if by == "weights" else np.isnan(lp).all()
        with pytest.raises(ValueError, match="cannot be diagnosed"):
            pe.diagnose(better)


def test_ways_of_refinement_do_not_depend_on_the_method(posterior):
    """One has a density of its own, which weights then need."""
    better = posterior.refine({"y": (1.0, 0.2, 0.0)}, 300, random_seed=1, by="equation")
    points = posterior.refine({"y": (1.0, 0.2, 0.0)}, 300, random_seed=1)
    ends, known = (one["sample_stats"]["unconstrained"].to_numpy()[0] for one in (better, points))
    assert ends.shape == known.shape
    np.testing.assert_allclose(ends.mean(0), known.mean(0), atol=0.2)


def test_refinement_is_refused_where_weights_mean_nothing(posterior):
    narrow = replace(posterior.estimate, scale=0.3 * posterior.estimate.scale)
    with pytest.raises(ValueError, match=r"k-hat.*initial_ensemble=error.draws"):
        replace(posterior, estimate=narrow).refine(random_seed=1)
    other = linear()
    with other:
        pm.Normal("z")
    with pytest.raises(ValueError, match="in its free variables"):
        posterior.refine(model=other)


def test_what_was_evaluated_is_kept_where_refinement_is_refused(posterior, model):
    """With the log density of the model, and weights; a sampler can go on from there."""
    narrow = replace(posterior.estimate, scale=0.3 * posterior.estimate.scale)
    with pytest.raises(RefinementError) as caught:
        replace(posterior, estimate=narrow).refine(evaluations=60, random_seed=1)
    kept = pickle.loads(pickle.dumps(caught.value)).draws
    stats = kept["sample_stats"].dataset
    density = model.compile_logp()
    u = stats["unconstrained"].to_numpy()[0]
    expected = [float(density({"x": x, "r_log__": log_r})) for x, log_r in u]
    np.testing.assert_allclose(stats["lp"].to_numpy()[0], expected)
    np.testing.assert_allclose(stats["log_weight"], stats["lp"] - stats["log_q"])
    assert kept["posterior"].attrs["n_evals"] == 60
    step = pe.EnsembleKalmanSampler(initial_ensemble=kept, model=model)
    assert step.ensemble_size == len(u) == 60
    with pytest.raises(ValueError, match="cannot be diagnosed"):
        pe.diagnose(kept)


def test_refinement_by_a_random_likelihood_is_refused(posterior):
    """Weights would prefer lucky runs, of a synthetic likelihood or any other noisy map."""

    def simulate(x, r, rng):
        raise AssertionError("nothing is to be simulated")

    noisy = pe.forward_model(simulate, stochastic=True, output_shape=(3,))
    synthetic = pe.synthetic_likelihood(simulate, replicates=15, initial_covariance=np.eye(3))
    for which in ("noisy", "synthetic"):
        with pm.Model() as other:
            x, r = pm.Normal("x"), pm.LogNormal("r")
            if which == "noisy":
                pm.Normal("y", noisy(x, r), 0.5, observed=np.zeros(3))
            else:
                synthetic("y", x, r, observed=np.zeros(3))
        with pytest.raises(ValueError, match="stochastic"):
            posterior.refine(model=other)


@pytest.mark.parametrize("option", ["draws", "chains"])
def test_numbers_of_draws_are_not_none(posterior, option):
    with pytest.raises(ValueError, match=option):
        posterior.sample(**{option: None})


def test_numbers_of_evaluations_and_simulations_are_not_none(posterior):
    with pytest.raises(ValueError, match="evaluations"):
        posterior.refine(evaluations=None)
    with pytest.raises(ValueError, match="simulations"):
        posterior.coverage(None)
    with pytest.raises(ValueError, match="draws"):
        posterior.coverage(draws=None)


@pytest.mark.parametrize("learned", ["posterior", "ratio", "diffusion"])
def test_files(learned, request, model, tmp_path):
    """What was saved draws the same; nothing is pickled; files of other models are refused."""
    learned = request.getfixturevalue(learned)
    learned.save(tmp_path / "learned.npz")
    with np.load(tmp_path / "learned.npz", allow_pickle=False) as file:
        assert {file[name].dtype.kind for name in file.files} <= set("fiU")
    with model:
        loaded = pe.load_amortized(tmp_path / "learned.npz")
    draws = [one.sample(draws=50, random_seed=3)["posterior"].dataset for one in (learned, loaded)]
    assert draws[0].equals(draws[1])
    assert str(loaded) == str(learned)
    other = linear()
    with other:
        pm.Normal("z")
    with pytest.raises(ValueError, match="belongs to another model"):
        pe.load_amortized(tmp_path / "learned.npz", other)
    (tmp_path / "other.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="not a file of an amortized posterior"):
        pe.load_amortized(tmp_path / "other.npz", model)
    with pytest.raises(TypeError, match="`path`"):
        pe.load_amortized(3, model)


def test_unfamiliar_data(posterior, model):
    """Warned of, and diagnosed; fresh simulations are not."""
    with pytest.warns(UserWarning, match="No simulation looks like these data"):
        idata = posterior.sample({"y": (2.0, -2.0, 2.0)}, random_seed=1)
    assert "look more like the others" in str(pe.diagnose(idata))
    fresh = pe.simulations(model, 200, random_seed=5)["y"].to_numpy()
    warned = [posterior.surprise({"y": y}) > 0.99 for y in fresh]
    assert np.mean(warned) < 0.05
    assert posterior.surprise() < 0.99


def test_same_seed_same_draws(model, made, monkeypatch):
    """Of the training and of the draws; each has a seed of its own."""
    monkeypatch.setattr(training, "PASSES", 3)
    learned = [pe.amortize(model, made, members=2, random_seed=seed) for seed in (1, 1, 2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, same, other = (each.sample(draws=20, random_seed=1) for each in learned)
    assert one["posterior"].equals(same["posterior"])
    assert not one["posterior"].equals(other["posterior"])


def test_balance_is_what_its_paper_says():
    """A classifier that says p for all pairs: log 2 or more, and (2 p - 1)^2 times the weight."""
    network = Architecture.of("ratio", 1, 1).build(jax.random.key(0))
    theta = x = np.zeros((8, 1), np.float32)
    logit = float(network.log_density(theta[0], x[0]))
    p = 1 / (1 + np.exp(-logit))
    entropy = -0.5 * (np.log(p) + np.log(1 - p))
    for balance in (0.0, 100.0):
        loss = float(classification(network, theta, x, 3, balance=balance))
        assert loss == pytest.approx(entropy + balance * (2 * p - 1) ** 2, rel=1e-5)


def test_flow(monkeypatch):
    """A flow of splines for one parameter: its density is normalized, and learns."""
    monkeypatch.setattr(training, "PASSES", 30)
    with pm.Model() as model:
        x = pm.Normal("x")
        pm.Normal("y", x, 0.5, observed=1.0)
    made = pe.simulations(model, 400, random_seed=1)
    learned = pe.amortize(model, made, density="flow", members=1, random_seed=1)
    assert learned.history[-1].mean() < learned.history[0].mean() - 0.1
    idata = learned.sample(random_seed=1)
    x, lp = idata["posterior"]["x"].to_numpy(), idata["sample_stats"]["lp"].to_numpy()
    assert abs(x.mean() - 0.8) < 0.3
    f = np.exp(-0.5 * ((x - 0.8) / 0.3) ** 2) / (0.3 * np.sqrt(2 * np.pi))
    weights = f / np.exp(lp)
    assert weights.mean() == pytest.approx(1, abs=4 * weights.std() / np.sqrt(weights.size) + 0.02)


REFUSED = {
    "sample({})": "`data` has no `y`",
    "sample({'y': (1, 2, 3), 'z': 1})": "`z`, which the model does not observe",
    "sample({'y': (1.0, 2.0)})": "`y` have the shape (2,), but those of the simulations (3,)",
    "sample({'y': (1.0, np.nan, 0.0)})": "`y` are not finite",
    "sample({'y': 'abc'})": "`y` are not an array of numbers",
    "sample({'y': [[1], [2, 3]]})": "`y` are not an array of numbers",
    "sample([1.0, 2.0, 3.0])": "`data` must be a mapping",
    "sample(draws=0)": "draws must be an integer",
    "sample(draws='5')": "draws must be an integer",
    "sample(chains=0)": "chains must be an integer",
    "sample(random_seed='x')": "`random_seed`",
    "surprise({'y': [1.0]})": "`y` have the shape",
    "surprise(3)": "`data` must be a mapping",
    "coverage(1)": "simulations must be an integer",
    "coverage('x')": "simulations must be an integer",
    "coverage(20, draws=1)": "draws must be an integer",
    "coverage(20, probability=2)": "probability=2 must be",
    "coverage(20, model=3)": "`model` must be",
    "coverage(20, model=other)": "`model` has other parameters or data",
    "coverage(made.drop_vars('y'))": "`simulations` has no `y`",
    "coverage(made.isel(simulation=[]))": "`simulations` is empty",
    "coverage(made.isel(simulation=[0]))": "`simulations` holds 1 that",
    "refine(evaluations=10)": "evaluations must be an integer",
    "refine(by='weight')": "by='weight' must be",
    "refine(draws=0)": "draws must be an integer",
    "refine({'y': (1, 2)})": "`y` have the shape",
    "refine(model=3)": "`model` must be",
    "refine(model=other)": "`model` differs from the model",
    "save(3)": "`path`",
}


@pytest.mark.parametrize("call", REFUSED)
def test_refused_by_name(posterior, made, call):
    other = linear()
    with other:
        pm.Normal("z")
    with pytest.raises((TypeError, ValueError)) as caught:
        eval(
            f"posterior.{call}", globals() | {"posterior": posterior, "made": made, "other": other}
        )
    assert REFUSED[call] in str(caught.value)


@pytest.mark.parametrize(
    "given", [{"executor": 2}, {"chains": 2}, {"tune": 10}], ids=lambda given: next(iter(given))
)
def test_what_coverage_of_an_estimate_does_not_take(posterior, model, given):
    with pytest.raises(ValueError, match=f"`{next(iter(given))}` is for step methods"):
        pe.coverage(model, posterior, simulations=20, **given)


def test_what_a_run_has_evaluated_is_refused(model, tmp_path):
    """Draws, and the store of the forward model."""
    forward = pe.forward_model(lambda x: x * np.ones(3), store=tmp_path / "runs.db", version="1")
    with pm.Model() as own:
        pm.Normal("y", forward(pm.Normal("x")), 0.5, observed=np.zeros(3))
        idata = pm.sample(
            50,
            step=pe.EnsembleKalmanSampler(ensemble_size=20, adjust=True),
            chains=1,
            cores=1,
            random_seed=1,
            progressbar=False,
        )
    with pytest.raises(TypeError, match="not a sample of the prior"):
        pe.amortize(own, idata)
    with pytest.raises(ValueError, match="store of a run is not a sample of the prior"):
        pe.amortize(own, pe.open_store(tmp_path / "runs.db").rename(evaluation="simulation"))


def test_refused(model, made, monkeypatch):
    def amortize(given=made, of=model, **options):
        return pe.amortize(of, given, **options)

    for options, message in (
        ({"method": "diffusions"}, "method"),
        ({"density": "spline"}, "density"),
        ({"conservative": True}, 'method="ratio"'),
        ({"method": "ratio", "density": "flow"}, "density"),
        ({"method": "diffusion", "density": "flow"}, "density"),
        ({"method": "diffusion", "conservative": True}, 'Use method="ratio"'),
        ({"members": 0}, "members"),
    ):
        with pytest.raises(ValueError, match=message):
            amortize(**options)
    with pytest.raises(TypeError, match="conservative"):
        amortize(conservative="no")
    with pytest.raises(ValueError, match=r"99 simulations are too few .* make 100 or more"):
        amortize(made.isel(simulation=slice(99)))
    with pytest.raises(TypeError, match="Dataset of simulations"):
        amortize(1000)
    with pytest.raises(ValueError, match="store of a run is not a sample of the prior"):
        amortize(made.assign_attrs(drawn_from="a run"))
    with pytest.raises(ValueError, match="`simulations` has no `y`"):
        amortize(made.drop_vars("y"))
    with pytest.raises(ValueError, match="needs a dimension `simulation`"):
        amortize(made.rename(simulation="draw"))
    with pytest.raises(ValueError, match="`y` has the shape"):
        amortize(made.isel(k=slice(2)))
    with pytest.raises(RuntimeError, match="have failed"):
        amortize(made.assign(failed=("simulation", np.arange(800) > 300)))
    with pytest.raises(ValueError, match="`y`: the values are the same in all simulations"):
        amortize(made.assign(y=made["y"] * 0))
    with pytest.raises(ValueError, match="outputs behind `y` are the same"):
        amortize(made.assign(outputs=made["outputs"] * 0))
    with pytest.raises(TypeError, match="There is no model"):
        amortize(of=None)
    monkeypatch.setattr("pymc_ensemble.amortized.amortizing.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install .*amortized"):
        amortize()
