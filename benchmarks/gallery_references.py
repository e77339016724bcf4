"""Compute the gallery's reference posteriors that have no closed form, and store them.

    python benchmarks/gallery_references.py [PROBLEM ...]

writes moments to ``pymc_ensemble/gallery/data/references.json`` and draws, in units of standard
deviations from the mean, to ``PROBLEM.npz`` beside it. Poisson regression and Darcy flow are done
by importance sampling, which needs nothing but the forward map; influenza by quadrature; lynx and
hare by NUTS (nutpie) on the version of the model that has gradients; Lorenz 63 by quadrature with
long averages, Lorenz 96 by importance sampling with polynomials fitted to long averages. Together
they take about half an hour on one core.
"""

import argparse
import json
from functools import partial
from itertools import product
from math import comb
from pathlib import Path

import arviz as az
import numpy as np
import pymc as pm
from scipy.optimize import least_squares, minimize
from scipy.stats import nbinom, norm

from pymc_ensemble import gallery
from pymc_ensemble.gallery.darcy import temperatures
from pymc_ensemble.gallery.influenza import IN_BED, log_infected
from pymc_ensemble.gallery.lorenz63 import TRUTH, lorenz63_averages, lorenz63_data, random_start
from pymc_ensemble.gallery.lorenz96 import FLUCTUATIONS, OBSERVED, PRIOR, WINDOW, lorenz96_averages
from pymc_ensemble.gallery.lorenz96 import TRUTH as TRUTH_96
from pymc_ensemble.gallery.lorenz96 import random_start as random_start_96
from pymc_ensemble.gallery.model import N_DRAWS, Reference, resample
from pymc_ensemble.gallery.two_grids import BURGERS_CELLS, shock
from pymc_ensemble.gallery.two_time_steps import COUNT_NOISE, log_new_cases, log_populations

DATA = Path(gallery.__file__).parent / "data"
REFERENCES = DATA / "references.json"


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


def importance_sampling(mean, precision, potential, n_draws, rng, degrees=5, transform=None):
    """Moments and equally weighted draws of exp(-potential) from Student-t draws.

    Two pilots of a tenth of the draws each fit the proposal to the posterior.

    Parameters
    ----------
    mean, precision : ndarray, shapes (d,) and (d, d)
        Of the first proposal.
    potential : callable
        Points (n, d) to minus log posterior (n,).
    transform : callable, optional
        Draws to the parameters that are asked for.
    """
    d = len(mean)
    for n in (n_draws // 10, n_draws // 10, n_draws):
        L = np.linalg.cholesky(precision)
        normal = rng.standard_normal((n, d))
        radius2 = degrees / rng.chisquare(degrees, n)
        draws = mean + np.linalg.solve(L.T, normal.T).T * np.sqrt(radius2)[:, None]
        log_proposal = -(degrees + d) / 2 * np.log1p((normal**2).sum(1) * radius2 / degrees)
        log_weights = -potential(draws) - log_proposal
        weights = np.exp(log_weights - log_weights.max())
        mean = np.average(draws, axis=0, weights=weights)
        precision = np.linalg.inv(np.cov(draws.T, aweights=weights))
    if transform is not None:
        draws = transform(draws)
    efficiency = weights.sum() ** 2 / (weights**2).sum() / n_draws
    source = f"importance sampling, {n_draws} draws, {efficiency:.0%} effective"
    return summarize_weighted(draws, weights), draws[resample(weights, rng)], source


def darcy(d):
    """Modes of a conductivity."""
    model = gallery.darcy(d)
    y = model.rvs_to_values[model["y"]].data

    def residuals(u):
        return np.concatenate([(temperatures(u) - y) / 0.01, u], axis=-1)

    def potential(u):
        return (residuals(u) ** 2).sum(-1) / 2

    fit = least_squares(residuals, np.zeros(d))
    # In many dimensions heavy tails in the radius waste draws.
    degrees = 5 if d <= 16 else d
    moments, draws, source = importance_sampling(
        fit.x, fit.jac.T @ fit.jac, potential, 200_000, np.random.default_rng(20), degrees
    )
    return Reference({"u": moments}, {"u": draws}, source)


def poisson_regression():
    """Five coefficients, sixty counts."""
    model = gallery.poisson_regression()
    y = model.rvs_to_values[model["y"]].data

    def potential(beta):
        eta = beta @ X.T
        return np.exp(eta).sum(-1) - eta @ y + (beta**2).sum(-1) / 2

    X = np.array([model.forward(e) for e in np.eye(5)]).T
    fit = minimize(potential, np.zeros(5))
    moments, draws, source = importance_sampling(
        fit.x, np.linalg.inv(fit.hess_inv), potential, 1_000_000, np.random.default_rng(20)
    )
    return Reference({"beta": moments}, {"beta": draws}, source)


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
    thinned = posterior.stack(sample=("chain", "draw")).isel(
        sample=np.linspace(0, chains * draws - 1, N_DRAWS).astype(int)
    )
    thinned = {name: values.values.T for name, values in thinned.data_vars.items()}
    return Reference(moments, thinned, source)


def moments_on_grid(names, logs, weights, cell, rng):
    """Moments and draws of positive parameters and of their logarithms.

    Parameters
    ----------
    logs, weights : ndarray, shapes (n, d) and (n,)
        Nodes of a grid in the logarithms, and their probabilities.
    cell : ndarray, shape (d,)
        Spacing of the grid.
    """
    nodes = resample(weights, rng)
    jitter = cell * rng.uniform(-0.5, 0.5, (N_DRAWS, len(names)))
    moments, draws = {}, {}
    for k, name in enumerate(names):
        for variable, transform in ((name, np.exp), (f"{name}_log__", np.asarray)):
            values = transform(logs[:, k])
            mean = weights @ values
            moments[variable] = {"mean": mean, "sd": np.sqrt(weights @ (values - mean) ** 2)}
            draws[variable] = transform((logs[nodes] + jitter)[:, k])
    return moments, draws


def influenza(n=(101, 101, 151)):
    """Quadrature over the logarithms of rates and dispersion."""
    log_beta = np.log(1.73) + np.linspace(-0.4, 0.4, n[0])
    log_gamma = np.log(0.54) + np.linspace(-0.9, 0.8, n[1])
    log_phi_inv = np.linspace(np.log(0.003), np.log(8.0), n[2])
    grid = np.meshgrid(log_beta, log_gamma, log_phi_inv, indexing="ij")
    rates = np.exp(np.stack([g[..., 0].ravel() for g in grid[:2]], 1))
    mu = np.exp([log_infected(pair) for pair in rates])[:, None, :]
    phi_inv = np.exp(log_phi_inv)[:, None]
    likelihood = nbinom.logpmf(IN_BED, 1 / phi_inv, 1 / (1 + phi_inv * mu)).sum(-1)
    prior = norm.logpdf(rates, [2.0, 0.4], [1.0, 0.5]).sum(1)[:, None] - 5 * phi_inv[:, 0]
    logs = np.stack([g.ravel() for g in grid], 1)
    # The density in the logarithms has their sum as its Jacobian.
    log_density = (likelihood + prior).ravel() + logs.sum(1)
    weights = np.exp(log_density - log_density.max())
    weights /= weights.sum()
    cell = np.array([axis[1] - axis[0] for axis in (log_beta, log_gamma, log_phi_inv)])
    names = ("beta", "gamma", "phi_inv")
    moments, draws = moments_on_grid(names, logs, weights, cell, np.random.default_rng(1978))
    return Reference(moments, draws, "quadrature")


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
    cell = widths * (axis[1] - axis[0])
    moments, draws = moments_on_grid(("r", "b"), logs, weights, cell, rng)
    source = f"cubic fit of averages over {time:g} units of time, quadrature"
    return Reference(moments, draws, source)


def polynomial_fit(points, values, degree, precisions):
    """Least-squares polynomial of total degree `degree` through values (n, K) at points (n, d)."""
    powers = [p for p in product(range(degree + 1), repeat=points.shape[1]) if sum(p) <= degree]

    def features(points):
        return np.stack([np.prod(points**p, axis=-1) for p in powers], axis=-1)

    roots = np.sqrt(precisions)[:, None]
    coefficients = np.linalg.lstsq(roots * features(points), roots * values, rcond=None)[0]
    return lambda points: features(points) @ coefficients


def lorenz96(rounds=((128, 100.0, 2), (128, 500.0, 3), (256, 500.0, 3)), inflation=1.5, seed=96):
    """Polynomial fits of long averages on designs about the posterior, importance sampling.

    Each round has a number of runs, their length, and the degree of the polynomial; its design is
    normal, with the covariance of the posterior that the round before has found, inflated; the fit
    takes all runs so far that are not too far away.

    The balance of energy, <X^2> = F <X> - h c <X Ybar>, holds to far less than the averages
    fluctuate, and makes the posterior a thin curved sheet. Two things flatten it: what is fitted in
    place of <X^2> is the little by which the balance fails, and what takes the place of F is
    F - h c r with r = <X Ybar> / <X> as observed, a change of coordinates of unit Jacobian.
    """
    rng = np.random.default_rng(seed)
    ratio = OBSERVED[3] / OBSERVED[0]
    prior_mean, prior_sd = np.array(list(PRIOR.values())).T
    whiten = np.linalg.inv(np.linalg.cholesky(FLUCTUATIONS))

    def sheared(u, sign):
        shift = sign * u[:, 0] * np.exp(u[:, 2]) * ratio
        return u + np.array([0.0, 1.0, 0.0, 0.0]) * shift[:, None]

    def parameters(v):
        return sheared(center + v @ scale.T, 1)

    def balance(u, averages):
        h, F, log_c, _ = u.T
        shift = F * averages[:, 0] - h * np.exp(log_c) * averages[:, 3]
        return np.insert(np.zeros((len(u), 4)), 2, shift, axis=1)

    def averages_fit(points, averages, times, degree):
        imbalances = averages - balance(parameters(points), averages)
        fit = polynomial_fit(points, imbalances, degree, times)

        def fitted(v):
            values = fit(v)
            return values + balance(parameters(v), values)

        return fitted

    def posterior(runs, degree, n_draws):
        fitted = averages_fit(*runs, degree)

        def residuals(v):
            v = np.atleast_2d(v)
            misfit = (fitted(v) - OBSERVED) @ whiten.T
            return np.concatenate([misfit, (parameters(v) - prior_mean) / prior_sd], axis=1)

        def potential(v):
            # Nothing is known about the averages far from the design.
            return np.where((v**2).sum(1) > 25, np.inf, (residuals(v) ** 2).sum(1) / 2)

        fit = least_squares(lambda v: residuals(v)[0], np.zeros(4))
        precision = fit.jac.T @ fit.jac
        return importance_sampling(fit.x, precision, potential, n_draws, rng, transform=parameters)

    center = sheared(np.array([list(TRUTH_96.values())]), -1)[0]
    scale = np.diag([0.1, 0.3, 0.2, 0.7]) / inflation
    known = []
    for n, time, degree in rounds:
        u = parameters(inflation * rng.standard_normal((n, 4)))
        starts = np.stack([random_start_96(rng) for _ in u])
        known.append((u, lorenz96_averages(u, starts, window=time)[:, 0], np.full(n, time)))
        u, averages, times = (np.concatenate(column) for column in zip(*known, strict=True))
        points = np.linalg.solve(scale, (sheared(u, -1) - center).T).T
        near = np.abs(points).max(1) < 6
        runs = points[near], averages[near], times[near]
        moments, draws, sampling = posterior(runs, degree, 100_000)
        # The error of the fit shows in fits to runs that are drawn anew from those that there are.
        resampled = [rng.integers(near.sum(), size=near.sum()) for _ in range(20)]
        variants = [posterior([x[k] for x in runs], degree, 10_000)[0] for k in resampled]
        for statistic in ("mean", "sd"):
            spread = np.std([variant[statistic] for variant in variants], axis=0, ddof=1)
            moments[f"mcse_{statistic}"] = np.hypot(moments[f"mcse_{statistic}"], spread)
        residuals = (runs[1] - averages_fit(*runs, degree)(runs[0])) @ whiten.T
        degrees_of_freedom = near.sum() - comb(degree + 4, 4)
        variance = (runs[2] / WINDOW) @ residuals**2 / degrees_of_freedom
        excess = np.sqrt(variance).round(2)
        source = (
            f"fit of degree {degree} to {near.sum()} averages over {runs[2].min():g} to {time:g} "
            f"units of time, with residuals {excess.min():g} to {excess.max():g} times the "
            f"fluctuations at the truth; {sampling}"
        )
        print(source, moments, sep="\n")
        flat = sheared(draws, -1)
        center, scale = flat.mean(0), np.linalg.cholesky(np.cov(flat.T))
    moments = {
        name: {statistic: values[k] for statistic, values in moments.items()}
        for k, name in enumerate(TRUTH_96)
    }
    return Reference(moments, dict(zip(TRUTH_96, draws.T, strict=True)), source)


def fitted(potential, start, n_draws, transform, chunk=5000):
    """Importance sampling about the best of many draws of the prior.

    Parameters
    ----------
    potential : callable
        Points (n, d) in unconstrained coordinates to minus log posterior (n,).
    start : ndarray of shape (d,)
    n_draws : int
    transform : callable
        Points (n, d) to a dict of variables, with their logarithms where they are positive.
    """
    options = {"maxiter": 2000, "xatol": 1e-6, "fatol": 1e-8}
    fit = minimize(
        lambda u: float(potential(u[None])[0]), start, method="Nelder-Mead", options=options
    )
    mode, d = fit.x, len(fit.x)
    # curvature by differences over a tenth of what raises the potential by a half
    steps = np.full(d, 1e-4)
    for _ in range(3):
        ends = [potential(mode + np.outer([-1, 0, 1], steps * e)) for e in np.eye(d)]
        steps /= np.sqrt([max(low + high - 2 * mid, 1e-12) for low, mid, high in ends]) / 0.1
    a, b = steps * np.eye(d)[:, None], steps * np.eye(d)[None]
    signs = [(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)]
    hessian = sum(
        c * potential((mode + i * a + j * b).reshape(-1, d)).reshape(d, d) for i, j, c in signs
    ) / (4 * np.outer(steps, steps))

    def in_chunks(u):
        return np.concatenate([potential(part) for part in np.array_split(u, len(u) // chunk + 1)])

    columns = []

    def flat(u):
        values = transform(u)
        columns.extend(
            (name, v.reshape(len(u), -1).shape[1], v.shape[1:]) for name, v in values.items()
        )
        return np.concatenate([v.reshape(len(u), -1) for v in values.values()], axis=1)

    moments, draws, source = importance_sampling(
        mode,
        hessian,
        in_chunks,
        n_draws,
        np.random.default_rng(20),
        transform=flat,
    )
    ends = np.cumsum([size for _, size, _ in columns])
    parts = {
        name: (slice(end - size, end), shape)
        for (name, size, shape), end in zip(columns, ends, strict=True)
    }
    return Reference(
        {
            name: {k: v[part].reshape(shape) for k, v in moments.items()}
            for name, (part, shape) in parts.items()
        },
        {name: draws[:, part].reshape(len(draws), *shape) for name, (part, shape) in parts.items()},
        source,
    )


def predators_and_prey():
    """Four rates, eighteen counts."""
    model = gallery.predators_and_prey()
    y, mean = model.rvs_to_values[model["y"]].data, np.array([-0.125, -3, -0.125, -3])

    def potential(u):
        loss = 0.5 * (((log_populations(np.exp(u), 0.035) - y) / COUNT_NOISE) ** 2).sum(1)
        return loss + 0.5 * (((u - mean) / 0.5) ** 2).sum(1)

    truth = np.log(model.truth["rates"])
    return fitted(potential, truth, 50_000, lambda u: {"rates": np.exp(u), "rates_log__": u})


def burgers():
    """Three parameters of a shock, 24 velocities."""
    model = gallery.burgers()
    y = model.rvs_to_values[model["y"]].data
    mean, sd = np.array([np.log(0.05), 1.0, 0.0]), np.array([0.5, 0.3, 0.2])

    def potential(u):
        loss = 0.5 * (((shock(u, BURGERS_CELLS) - y) / 0.05) ** 2).sum(1)
        return loss + 0.5 * (((u - mean) / sd) ** 2).sum(1)

    names = list(model.truth)
    return fitted(
        potential,
        np.array(list(model.truth.values())),
        20_000,
        lambda u: dict(zip(names, u.T, strict=True)),
    )


def outbreak():
    """Two rates and a dispersion, thirty counts."""
    model = gallery.outbreak()
    y = model.rvs_to_values[model["cases"]].data
    mean, sd = np.log([0.5, 0.3, 10.0]), np.array([0.5, 0.5, 1.0])

    def potential(u):
        mu, alpha = np.exp(log_new_cases(np.exp(u[:, :2]), 0.02)), np.exp(u[:, 2:])
        loss = -nbinom.logpmf(y, alpha, alpha / (alpha + mu)).sum(1)
        return loss + 0.5 * (((u - mean) / sd) ** 2).sum(1)

    def transform(u):
        names = list(model.truth)
        logs = {f"{name}_log__": v for name, v in zip(names, u.T, strict=True)}
        return {name: np.exp(logs[f"{name}_log__"]) for name in names} | logs

    return fitted(potential, np.log(list(model.truth.values())), 100_000, transform)


PROBLEMS = {
    "predators_and_prey": predators_and_prey,
    "burgers": burgers,
    "outbreak": outbreak,
    "poisson_regression": poisson_regression,
    "lynx_hare": lynx_hare,
    "influenza": influenza,
    "lorenz63": lorenz63,
    "lorenz96": lorenz96,
}
PROBLEMS |= {f"darcy_{d}": partial(darcy, d) for d in (9, 16, 25, 36, 49, 64)}


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
        reference = PROBLEMS[name]()
        moments = {
            variable: {k: significant(v) for k, v in statistics.items()}
            for variable, statistics in reference.moments.items()
        }
        stored = json.loads(REFERENCES.read_text())
        stored[name] = {"source": reference.source, "moments": moments}
        REFERENCES.write_text(json.dumps(dict(sorted(stored.items())), indent=1) + "\n")
        scores = {
            variable: (draws - np.asarray(moments[variable]["mean"])) / moments[variable]["sd"]
            for variable, draws in reference.draws.items()
        }
        np.savez_compressed(
            DATA / f"{name}.npz", **{k: v.astype(np.float16) for k, v in scores.items()}
        )
        print(f"{name}: {reference.source}")


if __name__ == "__main__":
    main()
