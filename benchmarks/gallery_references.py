"""Compute the gallery's reference posteriors that have no closed form, and store them.

    python benchmarks/gallery_references.py [PROBLEM ...]

writes ``pymc_ensemble/gallery/data/references.json``. Poisson regression and Darcy flow are done
by importance sampling, which needs nothing but the forward map; lynx and hare by NUTS (nutpie) on
the version of the model that has gradients; Lorenz 63 by quadrature with long averages. Together
they take about ten minutes on one core.
"""

import argparse
import json
from pathlib import Path

import arviz as az
import numpy as np
import pymc as pm
from scipy.optimize import least_squares, minimize

from pymc_ensemble import gallery
from pymc_ensemble.gallery.lorenz63 import TRUTH, lorenz63_averages, lorenz63_data, random_start

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


def importance_sampling(mean, precision, potential, n_draws, rng, degrees=5):
    """Moments of exp(-potential) from Student-t draws.

    Two pilots of a tenth of the draws each fit the proposal to the posterior.

    Parameters
    ----------
    mean, precision : ndarray, shapes (d,) and (d, d)
        Of the first proposal.
    potential : callable
        (d,) to minus log posterior.
    """
    d = len(mean)
    for n in (n_draws // 10, n_draws // 10, n_draws):
        L = np.linalg.cholesky(precision)
        normal = rng.standard_normal((n, d))
        radius2 = degrees / rng.chisquare(degrees, n)
        draws = mean + np.linalg.solve(L.T, normal.T).T * np.sqrt(radius2)[:, None]
        log_proposal = -(degrees + d) / 2 * np.log1p((normal**2).sum(1) * radius2 / degrees)
        log_weights = -np.array([potential(u) for u in draws]) - log_proposal
        weights = np.exp(log_weights - log_weights.max())
        mean = np.average(draws, axis=0, weights=weights)
        precision = np.linalg.inv(np.cov(draws.T, aweights=weights))
    efficiency = weights.sum() ** 2 / (weights**2).sum() / n_draws
    source = f"importance sampling, {n_draws} draws, {efficiency:.0%} effective"
    return summarize_weighted(draws, weights), source


def darcy():
    """Sixteen modes of a conductivity."""
    model = gallery.darcy()
    y = model.rvs_to_values[model["y"]].data

    def residuals(u):
        return np.concatenate([(model.forward(u) - y) / 0.01, u])

    def potential(u):
        return (residuals(u) ** 2).sum() / 2

    fit = least_squares(residuals, np.zeros(16))
    moments, source = importance_sampling(
        fit.x, fit.jac.T @ fit.jac, potential, 200_000, np.random.default_rng(20)
    )
    return {"u": moments}, source


def poisson_regression():
    """Five coefficients, sixty counts."""
    model = gallery.poisson_regression()
    y = model.rvs_to_values[model["y"]].data

    def potential(beta):
        eta = model.forward(beta)
        return np.exp(eta).sum() - y @ eta + beta @ beta / 2

    fit = minimize(potential, np.zeros(5))
    moments, source = importance_sampling(
        fit.x, np.linalg.inv(fit.hess_inv), potential, 1_000_000, np.random.default_rng(20)
    )
    return {"beta": moments}, source


def lynx_hare(chains=4, draws=15000):
    """Sample by NUTS, and store the logarithms beside the parameters themselves."""
    with gallery.lynx_hare(native=True):
        idata = pm.sample(
            draws=draws,
            tune=1500,
            chains=chains,
            cores=1,
            nuts_sampler="nutpie",
            random_seed=1900,
            nuts={"target_accept": 0.95, "adaptation": "low_rank"},
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


def lorenz63(time=2000.0, n=13):
    """Cubic fit of long averages on a grid around the truth, then quadrature."""
    observed, covariance = lorenz63_data()
    center, widths = np.log(TRUTH), np.array([0.04, 0.09])
    axis = np.linspace(-1, 1, n)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    rng = np.random.default_rng(20)
    starts = np.stack([random_start(rng) for _ in grid])
    averages = lorenz63_averages(np.exp(center + widths * grid), starts, window=time)[:, 0]
    averages[:, [0, 1, 7, 8]] = 0  # by symmetry

    def cubic(v):
        return np.stack([v[:, 0] ** i * v[:, 1] ** j for i in range(4) for j in range(4 - i)], 1)

    coefficients = np.linalg.lstsq(cubic(grid), averages, rcond=None)[0]
    axis = np.linspace(-1, 1, 401)
    fine = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    residual = np.linalg.solve(
        np.linalg.cholesky(covariance), (cubic(fine) @ coefficients - observed).T
    )
    logs = center + widths * fine
    prior = ((logs - [3.3, 1.2]) / [0.15, 0.5]) ** 2
    weights = np.exp(-0.5 * ((residual**2).sum(0) + prior.sum(1)))
    weights /= weights.sum()
    moments = {}
    for name, values in zip(
        ("r", "b", "r_log__", "b_log__"), (*np.exp(logs).T, *logs.T), strict=True
    ):
        mean = weights @ values
        moments[name] = {"mean": mean, "sd": np.sqrt(weights @ (values - mean) ** 2)}
    return moments, f"cubic fit of averages over {time:g} units of time, quadrature"


PROBLEMS = {f.__name__: f for f in (poisson_regression, darcy, lynx_hare, lorenz63)}


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
