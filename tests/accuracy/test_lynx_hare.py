"""Lynx and hare from the prior, over many seeds: no run may end in a wrong mode."""

import arviz as az
import numpy as np
import pymc as pm
import pytest

import pymc_ensemble as pe
from pymc_ensemble import gallery

pytestmark = pytest.mark.accuracy

EVALUATIONS = 24_000


@pytest.mark.parametrize("seed", range(20))
def test_adjusted_sampler_finds_the_published_posterior(seed, capsys):
    model = gallery.lynx_hare()
    with model:
        idata = pm.sample(
            step=pe.EnsembleKalmanSampler(adjust=True),
            draws=2000,
            chains=4,
            cores=1,
            random_seed=seed,
            progressbar=False,
            compute_convergence_checks=False,
        )
    shifts, ratios = [], []
    for name in model.reference.data_vars:
        if name not in idata.posterior:
            continue  # moments of an unconstrained coordinate
        mean, sd = (model.reference[name].sel(statistic=k).values for k in ("mean", "sd"))
        chains = idata.posterior[name].values
        draws = chains.reshape(-1, *chains.shape[2:])
        shifts.append(np.ravel((draws.mean(0) - mean) / sd))
        ratios.append(np.ravel(draws.std(0) / sd))
        # every ensemble on its own has found the mode
        assert (np.abs(chains.mean(1) - mean) < sd).all()
    shifts, ratios = np.concatenate(shifts), np.concatenate(ratios)
    r_hat = max(float(value.max()) for value in az.rhat(idata).data_vars.values())
    with capsys.disabled():
        print(
            f"\nseed {seed}: {model.forward.n_evaluations} evaluations, largest shift "
            f"{np.abs(shifts).max():.3f} sd, sd ratios {ratios.min():.3f} to {ratios.max():.3f}, "
            f"R-hat {r_hat:.4f}"
        )
    assert len(shifts) == 8
    assert model.forward.n_evaluations <= EVALUATIONS
    assert np.abs(shifts).max() < 0.3
    assert ((ratios > 0.8) & (ratios < 1.2)).all()
    assert r_hat < 1.05
