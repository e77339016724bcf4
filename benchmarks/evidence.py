"""How well `log_evidence` knows the evidence, against other ways to it: a table.

    python benchmarks/evidence.py [--problems linear 2 ...] [--methods proposals ...] [--seeds 10]

Problems are those of the gallery. Their evidence is known from 100 000 importance samples of a
mixture that is fitted to draws of the known posterior. The columns: forward evaluations (median
over the seeds), root mean square error in nats, the largest error, and the root mean square of the
errors in units of the standard errors that a method tells, which is one where they are honest.

`dynesty`, `nautilus` and `pyvbmc` take part if they are installed, where the prior is Gaussian.
"""

import argparse
import logging
import warnings
from collections.abc import Callable

import numpy as np
import pymc as pm
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import norm

import pymc_ensemble as pe
from pymc_ensemble.benchmark.traces import Meter
from pymc_ensemble.diagnosis.bridge import Mixture, averaged
from pymc_ensemble.problem.points import unconstrained

Array = NDArray[np.float64]
Found = tuple[float, float, int]  # value, standard error, evaluations

PROBLEMS: dict[str, Callable[[], pe.gallery.GalleryModel]] = {
    "linear 2": lambda: pe.gallery.linear_gaussian(2),
    "linear 10": lambda: pe.gallery.linear_gaussian(10),
    "linear 20": lambda: pe.gallery.linear_gaussian(20),
    "decay": pe.gallery.decay,
    "poisson": pe.gallery.poisson_regression,
    "bimodal": pe.gallery.bimodal,
    "darcy 16": lambda: pe.gallery.darcy(16),
}
HARD = ("linear 20", "darcy 16", "bimodal")  # which get 3000 evaluations, and not 1500


def log_density(problem: pe.InverseProblem, U: Array) -> Array:
    """Log posterior density at points, not normalized."""
    values = problem.evaluate(U)
    lp = -problem.loss(values.outputs) - problem.prior_potential(U)
    return np.where(values.failed | np.isnan(lp), -np.inf, lp)


def known(model: pe.gallery.GalleryModel, problem: pe.InverseProblem) -> tuple[float, float]:
    """Evidence by importance sampling from the known posterior, and its standard error."""
    rng, n = np.random.default_rng(0), 100_000
    draws = {
        rv.name: model.reference_draws[rv.name].transpose("draw", ...) for rv in model.free_RVs
    }
    U = unconstrained(model, {name: values.to_numpy() for name, values in draws.items()})
    mixture = Mixture.of(U, rng)
    points = mixture.draw(n, rng)
    return averaged(log_density(problem, points) - mixture.log_density(points), np.zeros(n, int))


def sampled(model: pm.Model, step: object, draws: int, seed: int) -> xr.DataTree:
    """Draws of one chain."""
    with model:
        return pm.sample(
            draws,
            step=step,
            chains=1,
            cores=1,
            random_seed=seed,
            progressbar=False,
            compute_convergence_checks=False,
        )


def proposals(model: pm.Model, problem: pe.InverseProblem, hard: bool, seed: int) -> Found:
    """The adjusted ensemble Kalman sampler, whose proposals tell it for free."""
    idata = sampled(model, pe.EnsembleKalmanSampler(adjust=True), 2000 if hard else 1000, seed)
    found = pe.log_evidence(idata)
    return found.value, found.standard_error, int(idata.sample_stats["n_evals"].max())


def importance(model: pm.Model, problem: pe.InverseProblem, hard: bool, seed: int) -> Found:
    """The plain one, and as many evaluations from a mixture that is fitted to its draws."""
    idata = sampled(model, pe.EnsembleKalmanSampler(adjust=False), 600, seed)
    n = 1500 if hard else 600
    found = pe.log_evidence(idata, model=model, evaluations=n, random_seed=seed)
    return found.value, found.standard_error, int(idata.sample_stats["n_evals"].max()) + n


def smc(model: pm.Model, problem: pe.InverseProblem, hard: bool, seed: int) -> Found:
    """`pymc.sample_smc` with four chains of 250 particles, whose standard error is theirs."""
    meter = Meter(model.forward)
    value, error = by_smc(model, seed)
    return value, error, sum(meter.batches)


def by_smc(model: pm.Model, seed: int) -> tuple[float, float]:
    """Evidence by SMC, and its standard error."""
    with model:
        idata = pm.sample_smc(
            250,
            chains=4,
            cores=1,
            random_seed=seed,
            progressbar=False,
            compute_convergence_checks=False,
        )
    stats = idata["sample_stats"]
    chains = [
        np.ravel(np.concatenate([np.atleast_1d(v) for v in np.ravel(chain)]))
        for chain in stats["log_marginal_likelihood"].to_numpy()
    ]
    values = np.array([chain[np.isfinite(chain)][-1] for chain in chains])
    error = np.std(np.exp(values - values.max()), ddof=1) / np.exp(values - values.max()).mean() / 2
    value = float(np.logaddexp.reduce(values) - np.log(len(values)))
    return value, float(error)


def nested(model: pm.Model, problem: pe.InverseProblem, hard: bool, seed: int) -> Found:
    """`dynesty`, 100 live points, on the unit cube of a Gaussian prior."""
    import dynesty

    mean, root = gaussian_prior(problem)

    def transform(cube: Array) -> Array:
        return mean + root @ norm.ppf(np.clip(cube, 1e-16, 1 - 1e-16))

    def log_likelihood(u: Array) -> float:
        return float(-problem.loss(problem.forward(u[None]))[0])

    rng = np.random.default_rng(seed)
    sampler = dynesty.NestedSampler(
        log_likelihood, transform, problem.dimension, nlive=100, rstate=rng
    )
    sampler.run_nested(print_progress=False, dlogz=0.1)
    found = sampler.results
    return float(found.logz[-1]), float(found.logzerr[-1]), int(np.sum(found.ncall))


def networks(model: pm.Model, problem: pe.InverseProblem, hard: bool, seed: int) -> Found:
    """`nautilus`, 500 live points, until 500 points are effective: its error is 4%."""
    from nautilus import Sampler

    mean, root = gaussian_prior(problem)

    def transform(cube: Array) -> Array:
        return mean + norm.ppf(np.clip(cube, 1e-16, 1 - 1e-16)) @ root.T

    def log_likelihood(U: Array) -> Array:
        return -problem.loss(problem.forward(np.atleast_2d(U)))

    d = problem.dimension
    sampler = Sampler(
        transform, log_likelihood, d, n_live=500, vectorized=True, pass_dict=False, seed=seed
    )
    sampler.run(n_eff=500, verbose=False)
    return float(sampler.log_z), float(sampler.n_eff**-0.5), int(sampler.n_like)


def variational(model: pm.Model, problem: pe.InverseProblem, hard: bool, seed: int) -> Found:
    """PyVBMC: a lower bound, from a Gaussian process that some hundred evaluations teach."""
    from pyvbmc import VBMC

    mean, root = gaussian_prior(problem)
    sd = np.sqrt((root**2).sum(1))
    np.random.seed(seed)  # noqa: NPY002, it takes no generator
    unbounded = np.full((1, problem.dimension), np.inf)
    search = VBMC(
        lambda u: float(log_density(problem, np.atleast_2d(u))[0]),
        mean[None],
        -unbounded,
        unbounded,
        (mean - sd)[None],
        (mean + sd)[None],
        options={"display": "off"},
    )
    _, found = search.optimize()
    return float(found["elbo"]), float(found["elbo_sd"]), int(found["func_count"])


def gaussian_prior(problem: pe.InverseProblem) -> tuple[Array, Array]:
    """Mean of a Gaussian prior, and a factor of its covariance."""
    if not problem.gaussian_prior:
        raise ImportError("its prior is not Gaussian")
    H = problem.prior_hessian(np.zeros(problem.dimension))
    gradient = problem.prior_gradient(np.zeros((1, problem.dimension)))[0]
    return -np.linalg.solve(H, gradient), np.linalg.cholesky(np.linalg.inv(H))


METHODS = {
    "proposals": proposals,
    "importance": importance,
    "smc": smc,
    "dynesty": nested,
    "nautilus": networks,
    "pyvbmc": variational,
}


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=PROBLEMS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    print("| problem | method | evaluations | rms error | largest error | errors / their own |")
    print("|---|---|---|---|---|---|")
    for name in options.problems:
        model = PROBLEMS[name]()
        problem = pe.InverseProblem.from_model(model)
        exact, error = known(model, problem)
        for method in options.methods:
            try:
                runs = [
                    METHODS[method](model, problem, name in HARD, seed)
                    for seed in range(options.seeds)
                ]
            except ImportError as reason:
                print(f"| {name} | {method} | left out: {reason} | | | |", flush=True)
                continue
            values, errors, evaluations = np.array(runs).T
            off = values - exact
            print(
                f"| {name} ({exact:.3f} ± {error:.3f}) | {method} | {np.median(evaluations):.0f} | "
                f"{np.sqrt(np.mean(off**2)):.3f} | {np.abs(off).max():.3f} | "
                f"{np.sqrt(np.mean((off / errors) ** 2)):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
