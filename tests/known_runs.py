"""Results to be diagnosed: short runs, and draws whose law and stats are made up."""

import numpy as np
import pymc as pm
import xarray as xr


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


def standard_normal_run(rng, C=4, S=10, J=50, p=2, shift=0.0, scale=1.0):
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
    }

    def flat(values):  # particle by particle, as the step methods hand them out
        return np.swapaxes(values, 1, 2).reshape(C, J * S, *values.shape[3:])

    return xr.DataTree.from_dict(
        {
            "posterior": xr.Dataset({"x": (("chain", "draw", "k"), flat(X))}),
            "sample_stats": xr.Dataset(
                {name: (("chain", "draw"), flat(values)) for name, values in stats.items()}
            ),
        }
    )
