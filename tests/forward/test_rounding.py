"""How far inputs move by rounding: known from transforms and graphs."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

import pymc_ensemble as pe
from pymc_ensemble.forward.rounding import BY_GRAPH, BY_TRANSFORM, rounding_of

VARIABLES = {
    "log": lambda: pm.LogNormal("x", 0.0, 8.0, shape=3),
    "interval": lambda: pm.Uniform("x", 2459000.0, 2459001.0, shape=3),
    "interval from zero": lambda: pm.Uniform("x", 0.0, 1e6, shape=3),
    "lower": lambda: pm.Truncated("x", pm.Normal.dist(0.0, 1.0), lower=-1e3, shape=3),
    "upper": lambda: pm.Truncated("x", pm.Normal.dist(0.0, 1.0), upper=1e3, shape=3),
    "log odds": lambda: pm.Beta("x", 0.3, 0.3, shape=3),
    "simplex": lambda: pm.Dirichlet("x", np.array([0.1, 1.0, 5.0])),
    "ordered": lambda: pm.Normal(
        "x", [-1e3, 0.0, 1e3], shape=3, transform=pm.distributions.transforms.ordered
    ),
    "sum to zero": lambda: pm.ZeroSumNormal("x", 100.0, shape=3),
}


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", list(VARIABLES))
def test_the_round_trip_of_a_transform_is_within(name, seed):
    with pm.Model() as model:
        x = VARIABLES[name]()
        rounding = rounding_of([x], [3])
    drawn = np.atleast_2d(pm.draw(x, 300, random_seed=seed))
    drawn = np.sort(drawn, axis=1) if name == "ordered" else drawn
    transform = model.rvs_to_transforms[x]
    there, back = pt.vector("there"), pt.vector("back")
    forward = pm.compile([there], transform.forward(there, *x.owner.inputs))
    backward = pm.compile([back], transform.backward(back, *x.owner.inputs))
    moved = 0
    for point in drawn:
        again = backward(forward(point))
        if np.isfinite(again).all():
            assert (np.abs(again - point) <= rounding.at(point)).all()
            moved += (again != point).any()
    assert moved > 0, "what does not move proves nothing"


def test_what_has_no_transform_does_not_move():
    with pm.Model():
        t, k = pm.Normal("t"), pm.LogNormal("k")
        v = pm.Normal("v", shape=(2, 3))
        inputs = [t, pt.stack([t, k]), v.T.reshape((6,)), v * 2.0, v * k, pm.Deterministic("d", t)]
        rounding = rounding_of(inputs, [1, 2, 6, 6, 6, 1])
    np.testing.assert_array_equal(rounding.relative[:3], [0.0, 0.0, BY_TRANSFORM])
    np.testing.assert_array_equal(rounding.relative[3:9], 0.0)
    np.testing.assert_array_equal(rounding.relative[9:15], BY_GRAPH)
    np.testing.assert_array_equal(rounding.relative[15:21], BY_TRANSFORM)
    assert rounding.relative[21] <= BY_GRAPH
    np.testing.assert_array_equal(rounding.absolute, 0.0)


SIGMA, T0 = 2e-5, 2459000.512345


def transits(forward, t0):
    with pm.Model() as model:
        t0 = t0()
        observed = T0 + SIGMA * np.random.default_rng(3).normal(size=8)
        pm.Normal("y", forward(t0), SIGMA, observed=observed)
    return model, observed


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # of PyMC
@pytest.mark.parametrize(
    "t0",
    [lambda: pm.Normal("t0", T0, 1e-4), lambda: pm.Uniform("t0", 2459000.0, 2459001.0)],
    ids=["normal", "interval"],
)
def test_proposals_of_another_step_method_are_evaluated(t0):
    """Also after a run of ours, whose draws are closer than the rounding of an interval."""
    forward = pe.forward_model(lambda t0: t0 + np.zeros(8), output_shape=(8,))
    model, observed = transits(forward, t0)
    options = {"cores": 1, "progressbar": False, "compute_convergence_checks": False}
    with model:
        pm.sample(400, step=pe.EnsembleKalmanSampler(), chains=2, random_seed=1, **options)
        before = forward.n_evaluations
        idata = pm.sample(
            300, tune=300, step=pm.DEMetropolisZ(), chains=3, random_seed=2, **options
        )
    accepted = idata.sample_stats["accepted"].to_numpy().sum()
    assert forward.n_evaluations - before > accepted
    exact = pm.logp(pm.Normal.dist(idata.posterior["t0"].to_numpy()[..., None], SIGMA), observed)
    with model:
        pm.compute_log_likelihood(idata, progressbar=False)
    np.testing.assert_allclose(idata.log_likelihood["y"], exact.eval(), rtol=1e-6, atol=1e-6)


def test_log_densities_by_hand_after_a_run():
    """Points of 1e-7 days apart, near draws that are remembered."""
    forward = pe.forward_model(lambda t0: t0 + np.zeros(8), output_shape=(8,))
    model, observed = transits(forward, lambda: pm.Normal("t0", T0, 1e-4))
    with model:
        idata = pm.sample(
            100,
            step=pe.EnsembleKalmanSampler(),
            chains=1,
            cores=1,
            random_seed=1,
            progressbar=False,
            compute_convergence_checks=False,
        )
    logp = model.compile_logp(vars=model.observed_RVs)
    for draw in idata.posterior["t0"].to_numpy().ravel()[:5]:
        for shift in (0.0, 1e-7, -2e-9):
            exact = pm.logp(pm.Normal.dist(draw + shift, SIGMA), observed).sum().eval()
            np.testing.assert_allclose(logp({"t0": draw + shift}), exact, rtol=1e-9)
