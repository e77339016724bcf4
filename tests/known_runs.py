"""Results to be diagnosed: short runs, and draws whose law and stats are made up."""

from dataclasses import replace

import numpy as np
import pymc as pm
import xarray as xr

from pymc_ensemble.diagnosis.facts import Facts, FreeVariable, facts_of
from pymc_ensemble.diagnosis.fountain import Fountain
from pymc_ensemble.samplers.ensemble import Origin

PLAIN, ADJUSTED = Origin("gaussian"), Origin("density", adjusted=True)
WALKERS, SURROGATE = Origin("density", evaluations=3), Origin("surrogate", evaluations=0)


def sample(model, step, draws=600, chains=4, **kwargs):
    with model:
        return pm.sample(
            draws,
            step=step,
            chains=chains,
            cores=1,
            random_seed=1,
            progressbar=False,
            compute_convergence_checks=False,
            **kwargs,
        )


def standard_normal_run(rng, C=4, S=10, J=50, p=2, shift=0.0, scale=1.0, origin=PLAIN):
    """Draws from a Gaussian law with stats as if the posterior were the standard one."""
    X = shift + scale * rng.standard_normal((C, S, J, p))
    lp = -0.5 * (X**2).sum(-1)
    log_q = -0.5 * (((X - shift) / scale) ** 2).sum(-1) - p * np.log(scale)
    sweep = np.broadcast_to(np.arange(S)[:, None], X.shape[:3])
    stats = {
        "lp": lp,
        "log_q": log_q,
        "acceptance": np.ones(X.shape[:3]),
        "particle": np.broadcast_to(np.arange(J), X.shape[:3]),
        "sweep": sweep,
        "n_evals": J * (sweep + 5),
        "n_failed": np.zeros(X.shape[:3], dtype=int),
        "converged": np.ones(X.shape[:3], dtype=bool),
        "step_size": np.full(X.shape[:3], 2.0),
        "unconstrained": X,
    }

    def flat(values):  # particle by particle, as the step methods hand them out
        return np.swapaxes(values, 1, 2).reshape(C, J * S, *values.shape[3:])

    dims = ("chain", "draw", "k")
    run = xr.DataTree.from_dict(
        {
            "posterior": xr.Dataset({"x": (dims, flat(X))}),
            "sample_stats": xr.Dataset(
                {name: (dims[: values.ndim - 1], flat(values)) for name, values in stats.items()}
            ),
        }
    )
    return declare(run, origin)


def declare(run, origin):
    """The run as if its sampler had declared this."""
    stats = run["sample_stats"].dataset
    p, J = stats.sizes["k"], int(stats["particle"].max()) + 1
    x = FreeVariable("x", "x", (p,), (p,))
    return declare_facts(run, Facts("0", "sampler", {}, origin, J, None, (x,)))


def declare_facts(run, facts):
    """The run with other facts."""
    stats = run["sample_stats"].dataset
    sweep, particle = (stats[name].values for name in ("sweep", "particle"))
    packets = Fountain.of(facts.text()).packets(0, sweep.ravel(), particle.ravel())
    made_by = (("chain", "draw", "byte"), packets.reshape(*sweep.shape, -1))
    run["sample_stats"] = xr.DataTree(
        stats.drop_vars("made_by", errors="ignore").assign(made_by=made_by)
    )
    return run


def positions(run):
    """Where the draws are, shape (chain, draw, k), to be changed."""
    return run["sample_stats"]["unconstrained"].values


def declare_sampled(idata, origin):
    """The result of a sampler as if that had declared another origin."""
    facts = facts_of(idata["sample_stats"].dataset)
    return declare_facts(idata, replace(facts, origin=origin))
