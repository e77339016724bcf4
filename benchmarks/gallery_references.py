"""Compute the gallery's reference posteriors that have no closed form, and store them.

    python benchmarks/gallery_references.py [PROBLEM ...]

writes ``pymc_ensemble/gallery/data/references.json``. Five-dimensional problems and Darcy flow are
done by importance sampling from a Student-t law about the mode, which needs nothing but the
forward map; lynx and hare by NUTS (nutpie) on the version of the model that has gradients.
Together they take about ten minutes on one core.
"""

import argparse
import json
from pathlib import Path

import arviz as az
import numpy as np
import pymc as pm
from scipy.optimize import least_squares, minimize

from pymc_ensemble import gallery

REFERENCES = Path(gallery.__file__).parent / "data" / "references.json"


def summarize_weighted(draws, weights):
    """Moments of weighted draws (n, d), with standard errors of the self-normalized estimates."""
    weights = weights / weights.sum()
    mean = weights @ draws
    squares = (draws - mean) ** 2
    sd = np.sqrt(weights @ squares)
    return {
        "mean": mean,
        "sd": sd,
        "mcse_mean": np.sqrt(weights**2 @ squares),
        "mcse_sd": np.sqrt(weights**2 @ (squares - sd**2) ** 2) / (2 * sd),
    }


def importance_sampling(residuals, potential, d, n_draws, rng, degrees=10):
    """Moments of exp(-potential) from Student-t draws around the Gauss-Newton mode.

    Parameters
    ----------
    residuals : callable
        (d,) to the vector whose half square is the potential, or near it: it gives the proposal.
    potential : callable
        (d,) to minus log posterior.
    """
    fit = least_squares(residuals, np.zeros(d), x_scale=1.0)
    L = np.linalg.cholesky(fit.jac.T @ fit.jac)
    normal = rng.standard_normal((n_draws, d))
    radius2 = degrees / rng.chisquare(degrees, n_draws)
    draws = fit.x + np.linalg.solve(L.T, normal.T).T * np.sqrt(radius2)[:, None]
    log_proposal = -(degrees + d) / 2 * np.log1p((normal**2).sum(1) * radius2 / degrees)
    log_weights = -np.array([potential(u) for u in draws]) - log_proposal
    weights = np.exp(log_weights - log_weights.max())
    efficiency = weights.sum() ** 2 / (weights**2).sum() / n_draws
    source = f"importance sampling, {n_draws} draws, {efficiency:.0%} effective"
    return summarize_weighted(draws, weights), source


def gaussian_problem(model, noise_sd, n_draws):
    """Sample a problem with Gaussian noise and a standard normal prior on one vector."""
    [name] = (rv.name for rv in model.free_RVs)
    y = model.rvs_to_values[model["y"]].data
    d = len(model.coords[model.named_vars_to_dims[name][0]])

    def residuals(u):
        return np.concatenate([(model.forward(u) - y) / noise_sd, u])

    def potential(u):
        return (residuals(u) ** 2).sum() / 2

    rng = np.random.default_rng(20)
    moments, source = importance_sampling(residuals, potential, d, n_draws, rng)
    return {name: moments}, source


def smooth_nonlinear():
    """Five parameters, six nonlinear outputs."""
    return gaussian_problem(
        gallery.smooth_nonlinear(), np.array([0.9, 0.25, 0.3, 0.3, 0.3, 0.5]), n_draws=1_000_000
    )


def darcy():
    """Sixteen modes of a conductivity."""
    return gaussian_problem(gallery.darcy(), 0.01, n_draws=200_000)


def poisson_regression():
    """Five coefficients, sixty counts."""
    model = gallery.poisson_regression()
    y = model.rvs_to_values[model["y"]].data

    def potential(beta):
        eta = model.forward(beta)
        return np.exp(eta).sum() - y @ eta + beta @ beta / 2

    # Pearson residuals about the mode: their Gauss-Newton matrix is the Fisher information.
    mode = minimize(potential, np.zeros(5)).x
    weights = np.exp(model.forward(mode) / 2)

    def residuals(beta):
        return np.concatenate([weights * model.forward(beta - mode), beta - mode])

    rng = np.random.default_rng(20)
    moments, source = importance_sampling(residuals, potential, 5, 1_000_000, rng)
    return {"beta": moments}, source


def lynx_hare(chains=4, draws=5000):
    """Sample by NUTS, and store the logarithms beside the parameters themselves."""
    with gallery.lynx_hare(native=True):
        idata = pm.sample(
            draws=draws,
            tune=1500,
            chains=chains,
            cores=1,
            nuts_sampler="nutpie",
            random_seed=1900,
            target_accept=0.9,
        )
    posterior = idata.posterior.to_dataset()
    logs = {f"{name}_log__": np.log(posterior[name]) for name in posterior.data_vars}
    posterior = posterior.assign(logs)
    n_diverging = int(idata.sample_stats.diverging.sum())
    rhat = max(float(v.max()) for v in az.rhat(posterior).data_vars.values())
    ess = min(float(v.min()) for v in az.ess(posterior).data_vars.values())
    source = (
        f"NUTS, {chains} chains of {draws} draws, R-hat at most {rhat:.4f}, "
        f"effective sample size at least {ess:.0f}, {n_diverging} divergences"
    )
    mcse_mean = az.mcse(posterior, method="mean")
    mcse_sd = az.mcse(posterior, method="sd")
    moments = {
        name: {
            "mean": values.mean(("chain", "draw")).values,
            "sd": values.std(("chain", "draw"), ddof=1).values,
            "mcse_mean": mcse_mean[name].values,
            "mcse_sd": mcse_sd[name].values,
        }
        for name, values in posterior.data_vars.items()
    }
    return moments, source


PROBLEMS = {f.__name__: f for f in (poisson_regression, smooth_nonlinear, darcy, lynx_hare)}


def significant(values, digits=6):
    """Round to a number of significant digits; arrays become lists."""
    if np.ndim(values):
        return [significant(v, digits) for v in values]
    return float(f"{float(values):.{digits}g}")


def main():
    """Compute the problems named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("problems", nargs="*", metavar="PROBLEM", help=", ".join(PROBLEMS))
    names = parser.parse_args().problems or list(PROBLEMS)
    for name in names:
        moments, source = PROBLEMS[name]()
        stored = json.loads(REFERENCES.read_text())
        stored[name] = {
            "source": source,
            "moments": {
                variable: {k: significant(v) for k, v in statistics.items()}
                for variable, statistics in moments.items()
            },
        }
        REFERENCES.write_text(json.dumps(dict(sorted(stored.items())), indent=1) + "\n")
        print(f"{name}: {source}")


if __name__ == "__main__":
    main()
