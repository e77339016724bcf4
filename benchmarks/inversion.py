"""What ensemble Kalman inversion costs, and how far it can be relied upon.

    python benchmarks/inversion.py gallery        # every problem: errors, evaluations
    python benchmarks/inversion.py darcy          # a field of 64 and 256 coefficients
    python benchmarks/inversion.py losses         # gap to the penalized maximum in the span
    python benchmarks/inversion.py published      # beside EnsembleKalmanProcesses.jl

Each takes --seeds. The last one has the examples of that package, version of July 2026: a sinusoid
with a random phase, the mean variance of a Lorenz 96 system with seasons, and a Darcy flow with 50
coefficients, with priors, data, noise and ensemble sizes as they are there. Its updates are written
here anew from what it has published, as Julia is not at hand: the default of its `Inversion`, with
the data misfit controller, Nesterov's momentum and shrunken correlations; and the plain one, with
perturbed data. Misfits are those of the mean output per datum, as it tells them.
"""

import argparse
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numba
import numpy as np
import pymc as pm
from scipy.optimize import minimize
from scipy.sparse import coo_array
from scipy.sparse.linalg import spsolve
from scipy.special import gamma, kv

import pymc_ensemble as pe
from pymc_ensemble.benchmark.problems import PROBLEMS
from pymc_ensemble.gallery.darcy import temperatures


def gallery(seeds: int, problems: list[str]) -> None:
    """Errors of the posterior, and what the mode and a fit cost, on all problems."""
    print("| problem | d | posterior: evaluations | misfit | worst mean, sd | sd | mode | fit |")
    print("|---|---|---|---|---|---|---|---|")
    for name in problems or PROBLEMS:
        problem = PROBLEMS[name]
        rows = []
        for seed in range(seeds):
            with problem.model() as model, warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                start = None
                if problem.start is not None:
                    start = problem.start(100, np.random.default_rng(seed))
                options = {"initial_ensemble": start, "random_seed": seed, "progressbar": False}
                try:
                    posterior = pe.invert(**options)
                    others = [pe.invert(target=target, **options) for target in ("map", "fit")]
                except NotImplementedError:
                    break
            mean, sd = problem.moments
            U = posterior["sample_stats"]["unconstrained"].to_numpy()[0]
            every = [posterior, *others]
            cost = [int(one["inversion"]["n_evals"][-1]) for one in every]
            cost = [
                c if one["inversion"].attrs["converged"] else np.nan
                for c, one in zip(cost, every, strict=True)
            ]
            shift, ratio = np.abs((U.mean(0) - mean) / sd).max(), U.std(0, ddof=1) / sd
            misfit = float(posterior["inversion"]["misfit"][-1])
            rows.append([cost[0], misfit, shift, ratio.min(), ratio.max(), *cost[1:]])
        if not rows:
            print(f"| {name} | | no forward map | | | | | |", flush=True)
            continue
        n, misfit, shift, low, high, mode, fit = np.median(rows, axis=0)
        told = [f"{c:.0f}" if np.isfinite(c) else "–" for c in (mode, fit)]
        print(
            f"| {name} | {model.reference.sizes and len(mean)} | {n:.0f} | {misfit:.2f} "
            f"| {shift:.2f} | {low:.2f} to {high:.2f} | {told[0]} | {told[1]} |",
            flush=True,
        )


def darcy(seeds: int) -> None:
    """Evaluations until the misfit per datum is below 1.1, and the rounds."""
    for d, J in ((64, 50), (256, 100)):
        rng = np.random.default_rng(77)
        data = temperatures(rng.standard_normal((1, d)))[0] + 0.01 * rng.standard_normal(100)
        forward = pe.forward_model(temperatures, output_shape=100, vectorized=True)
        with pm.Model() as model:
            pm.Normal("y", forward(pm.Normal("u", shape=d)), 0.01, observed=data)
        for seed in range(seeds):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                result = pe.invert(model, ensemble_size=J, random_seed=seed, progressbar=False)
            history = result["inversion"]
            below = np.flatnonzero(history["misfit"].to_numpy() < 1.1)
            n = history["n_evals"].to_numpy()
            print(
                f"d={d} J={J} seed {seed}: misfit {float(history['misfit'][-1]):.2f}, below 1.1 "
                f"after {n[below[0]] if len(below) else 'no'} of {n[-1]} evaluations in "
                f"{len(n)} rounds",
                flush=True,
            )


def regressions() -> Iterator[tuple[str, pm.Model]]:
    """Regressions that bend a little, with losses that are not quadratic."""
    rng = np.random.default_rng(3)
    X = 2 * rng.standard_normal((60, 12)) / np.sqrt(12)
    eta = X @ rng.standard_normal(12)
    counts = rng.poisson(np.exp(eta + 1))
    successes = (rng.random(60) < 1 / (1 + np.exp(-eta))).astype(int)
    values = eta + 0.3 * rng.standard_t(3, 60)
    for name in ("Poisson", "Bernoulli", "Student-t"):
        with pm.Model() as model:
            e = X @ pm.Normal("b", shape=12)
            e = e + 0.1 * pm.math.sin(3 * e)
            if name == "Poisson":
                pm.Poisson("y", pm.math.exp(e + 1), observed=counts)
            elif name == "Bernoulli":
                pm.Bernoulli("y", logit_p=e, observed=successes)
            else:
                pm.StudentT("y", nu=3, mu=e, sigma=0.3, observed=values)
        yield name, model


def losses(seeds: int) -> None:
    """Nats between the mode that is found and that of L-BFGS in the span of the start."""
    for name, model in regressions():
        problem = pe.InverseProblem.from_model(model)

        def potential(u: np.ndarray, problem: pe.InverseProblem = problem) -> float:
            [value] = problem.loss(problem.forward(u[None])) + problem.prior_potential(u[None])
            return float(value)

        for J in (100, 8):
            gaps, cost = [], []
            for seed in range(seeds):
                U = problem.sample_prior(J, np.random.default_rng(seed))
                mean = U.mean(0)
                V = np.linalg.svd(U - mean, full_matrices=False)[2][: min(J - 1, 12)]
                best = minimize(
                    lambda c, m=mean, V=V: potential(m + c @ V), np.zeros(len(V)), method="L-BFGS-B"
                )
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)
                    result = pe.invert(model, target="map", initial_ensemble=U, progressbar=False)
                gaps.append(potential(result["estimate"]["b"].to_numpy()) - best.fun)
                cost.append(int(result["inversion"]["n_evals"][-1]))
            print(
                f"{name}, J={J}: gap {np.min(gaps):.3f} to {np.max(gaps):.3f} nats, "
                f"{np.min(cost)} to {np.max(cost)} evaluations",
                flush=True,
            )


# -- the examples of EnsembleKalmanProcesses.jl -------------------------------------------------


@dataclass
class Example:
    """A published problem, with a normal prior in unconstrained coordinates.

    Attributes
    ----------
    J, rounds : int
        Size of the ensemble, and how often it is evaluated at most.
    mean, sd : ndarray of shape (d,)
        Of the prior.
    forward : callable
        Outputs, shape (J, K), at unconstrained points.
    data : ndarray of shape (K,)
    noise : ndarray of shape (K, K)
        Covariance.
    """

    J: int
    rounds: int
    mean: np.ndarray
    sd: np.ndarray
    forward: Callable[[np.ndarray], np.ndarray]
    data: np.ndarray
    noise: np.ndarray

    def misfit(self, g: np.ndarray) -> float:
        """Of the mean output, per datum."""
        off = g.mean(0) - self.data
        return float(off @ np.linalg.solve(self.noise, off)) / len(off)


def of_lognormal(mean: float, sd: float) -> tuple[float, float]:
    """Mean and standard deviation of the logarithm of a lognormal variable with those given."""
    variance = np.log1p((sd / mean) ** 2)
    return float(np.log(mean) - variance / 2), float(np.sqrt(variance))


def sinusoid() -> Example:
    """Amplitude and shift of a sinusoid, by its range and mean."""
    rng = np.random.default_rng(41)
    t = np.arange(0, 2 * np.pi + 0.01, 0.01)

    def forward(u: np.ndarray) -> np.ndarray:
        wave = np.sin(t + 2 * np.pi * rng.random((len(u), 1)))
        wave = np.exp(u[:, :1]) * wave + u[:, 1:]
        return np.column_stack([np.ptp(wave, axis=1), wave.mean(1)])

    [data] = forward(np.array([[0.0, 7.0]])) + np.sqrt(0.1) * rng.standard_normal(2)
    (m, s), noise = of_lognormal(2, 1), 0.1 * np.eye(2)
    return Example(20, 10, np.array([m, 0.0]), np.array([s, 5.0]), forward, data, noise)


@numba.njit
def lorenz_96(F, A, omega, x0, steps, first, windows, length):
    """Variance over space and time in windows of a transient Lorenz 96 system, by Runge and Kutta.

    Members run side by side: arrays have the shape (sites, members).
    """
    n, J = x0.shape[0], len(F)
    dt = 1 / 64
    x, k, y, total = x0.copy(), np.zeros((n, J)), np.zeros((n, J)), np.zeros((n, J))
    sums, squares = np.zeros((windows, J)), np.zeros((windows, J))
    share, reach = np.array([0.0, 0.5, 0.5, 1.0]), np.array([1.0, 2.0, 2.0, 1.0]) / 6
    for step in range(1, steps + 1):
        force = F + A * np.sin(omega * dt * step)
        total[:] = 0.0
        for stage in range(4):
            for i in range(n):
                for j in range(J):
                    y[i, j] = x[i, j] + share[stage] * dt * k[i, j]
            for i in range(n):
                here, there = y[i], y[(i + 1) % n]
                one, two = y[(i - 1) % n], y[(i - 2) % n]  # neighbours of a row
                for j in range(J):
                    slope = (there[j] - two[j]) * one[j] - here[j] + force[j]
                    k[i, j] = slope
                    total[i, j] += reach[stage] * slope
        for i in range(n):
            for j in range(J):
                x[i, j] += dt * total[i, j]
        window = (step - first) // length if step >= first else -1
        if 0 <= window < windows:
            for i in range(n):
                for j in range(J):
                    sums[window, j] += x[i, j]
                    squares[window, j] += x[i, j] ** 2
    count = n * length
    return (squares - sums**2 / count) / (count - 1)


def lorenz() -> Example:
    """Mean and seasonal amplitude of the forcing, by the variance in four quarters of a year."""
    rng = np.random.default_rng(4137)
    sites, year, first = 36, 72 * 64, 800 * 64 + 1
    x0, omega = 0.01 * rng.standard_normal((sites, 1)), 2 * np.pi / 72

    def variances(F: np.ndarray, A: np.ndarray, years: int) -> np.ndarray:
        """Of each year by its quarters, shape (J, years, 4); windows are a step shorter than 64."""
        start = np.repeat(x0, len(F), axis=1)
        found = [
            lorenz_96(F, A, omega, start, begin + year, begin, 72, 63)
            for begin in first + year * np.arange(years)
        ]
        return np.array(found).reshape(years, 4, 18, len(F)).mean(2).transpose(2, 0, 1)

    def forward(u: np.ndarray) -> np.ndarray:
        return variances(*np.exp(u.T), years=1)[:, 0]

    [many] = variances(np.array([8.0]), np.array([2.5]), years=20)
    priors = np.array([of_lognormal(9, 2), of_lognormal(3, 1.25)])
    return Example(20, 5, *priors.T, forward, many.mean(0), np.cov(many.T))


def darcy_flow() -> Example:
    """The logarithm of a permeability, by 50 coefficients, from 49 pressures."""
    rng = np.random.default_rng(100234)
    N, terms, nodes = 80, 50, 8
    x = np.linspace(0, 1, N)
    q = np.linspace(0, 1, nodes)
    points, few = (np.stack(np.meshgrid(a, a, indexing="ij"), -1).reshape(-1, 2) for a in (x, q))

    def matern(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Smoothness .25 and correlation length 1, as the arguments are given there."""
        r = np.sqrt(0.5) * np.linalg.norm(a[:, None] - b, axis=-1)
        with np.errstate(invalid="ignore"):
            values = 2**0.75 / gamma(0.25) * r**0.25 * kv(0.25, r)
        return np.where(r == 0, 1.0, values)

    # Karhunen-Loeve expansion by 8x8 nodes of equal weight, carried to the grid
    values, vectors = np.linalg.eigh(matern(few, few) / nodes**2)
    values, vectors = values[-terms:], vectors[:, -terms:]
    modes = matern(points, few) / nodes @ vectors / np.sqrt(values)
    f = np.where(x <= 4 / 6, 1000.0, np.where(x <= 5 / 6, 2000.0, 3000.0))
    source = np.tile(f, (N, 1))[1:-1, 1:-1].ravel()
    index = np.arange((N - 2) ** 2).reshape(N - 2, N - 2)
    seen = np.ix_(range(9, 70, 10), range(9, 70, 10))

    def pressures(u: np.ndarray) -> np.ndarray:
        k = np.exp(modes @ u).reshape(N, N) * (N - 1) ** 2
        across, along = 0.5 * (k[1:, 1:-1] + k[:-1, 1:-1]), 0.5 * (k[1:-1, 1:] + k[1:-1, :-1])
        diagonal = across[1:] + across[:-1] + along[:, 1:] + along[:, :-1]
        rows, columns, entries = [index.ravel()], [index.ravel()], [diagonal.ravel()]
        for a, b, w in (
            (index[1:], index[:-1], across[1:-1]),
            (index[:, 1:], index[:, :-1], along[:, 1:-1]),
        ):
            rows += [a.ravel(), b.ravel()]
            columns += [b.ravel(), a.ravel()]
            entries += 2 * [-w.ravel()]
        w, i, j = map(np.concatenate, (entries, rows, columns))
        matrix = coo_array((w, (i, j))).tocsc()
        h = np.zeros((N, N))
        h[1:-1, 1:-1] = spsolve(matrix, source, permc_spec="MMD_AT_PLUS_A").reshape(N - 2, N - 2)
        return h[seen].ravel()

    def forward(U: np.ndarray) -> np.ndarray:
        return np.array([pressures(u) for u in U])

    exact = pressures(np.full(terms, -1.5))
    noise = 0.05**2 * np.ptp(exact) * np.eye(len(exact))
    data = exact + rng.standard_normal(len(exact)) * np.sqrt(noise[0, 0])
    return Example(50, 20, np.zeros(terms), np.ones(terms), forward, data, noise)


def shrunken(C: np.ndarray, d: int, J: int) -> np.ndarray:
    """Covariance of d parameters and outputs with correlations shrunken as far as noise explains.

    Blocks are multiplied, entry by entry, by the largest even power of their correlations that
    changes them by no more than their standard errors do (Vishny, Morzfeld et al. 2024).
    """
    sd = np.sqrt(np.diag(C))
    R = np.clip(C / np.outer(sd, sd), -1 + 1e-8, 1 - 1e-8)
    found, p, q = R.copy(), slice(0, d), slice(d, None)
    for block in ((p, q), (q, q)):
        r = R[block]
        allowed = np.linalg.norm((1 - r) / np.sqrt(J))
        powers = (k for k in range(2, 11, 2) if np.linalg.norm(r ** (k + 1) - r) > allowed)
        power = next(powers, 10)
        for share in np.linspace(1, 0, 10):
            mixed = ((1 - share) * r ** (power - 2) + share * r**power) * r
            if np.linalg.norm(mixed - r) < allowed:
                found[block] = mixed
                break
    found[q, p] = found[p, q].T
    return found * np.outer(sd, sd)


def julia(example: Example, seed: int, default: bool) -> list[float]:
    """Misfits of the ensembles that the published update has evaluated, to time one at most."""
    rng = np.random.default_rng(seed)
    u = example.mean + example.sd * rng.standard_normal((example.J, len(example.mean)))
    (J, d), K = u.shape, len(example.data)
    before, theta, time, misfits = u, 1.0, 0.0, []
    root = np.linalg.cholesky(example.noise)
    while True:
        g = example.forward(u)
        misfits.append(example.misfit(g))
        if time >= 1 or len(misfits) == example.rounds:
            return misfits
        off = np.linalg.solve(root, (g - example.data).T)
        loss = 0.5 * (off**2).sum(0)
        dt = min(max(K / (2 * loss.mean()), np.sqrt(K / (2 * loss.var(ddof=1)))), 1 - time)
        time = 1.0 if time + dt > 1 - 1e-12 else time + dt
        C = np.cov(np.hstack([u, g]).T, bias=True)
        y = example.data
        if default:
            C = shrunken(C, d, J)
        else:
            y = y + rng.standard_normal((J, K)) @ root.T / np.sqrt(dt)
        moved = u + (y - g) @ np.linalg.solve(C[d:, d:] + example.noise / dt, C[d:, :d])
        u = moved
        if default:
            after = (np.sqrt(theta**4 + 4 * theta**2) - theta**2) / 2
            u = moved + after * (1 / theta - 1) * (moved - before)
            before, theta = moved, after


def inverted(example: Example, seed: int, **options: object) -> list[float]:
    """Misfits of the ensembles that `pymc_ensemble.invert` has evaluated."""
    forward = pe.forward_model(
        example.forward, output_shape=len(example.data), vectorized=True, stochastic=False
    )
    with pm.Model() as model:
        u = pm.Normal("u", example.mean, example.sd)
        pm.MvNormal("y", forward(u), cov=example.noise, observed=example.data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        result = pe.invert(
            model,
            ensemble_size=example.J,
            maxiter=example.rounds - 1,
            random_seed=seed,
            progressbar=False,
            **options,
        )
    return result["inversion"]["misfit"].to_numpy().tolist()


def published(seeds: int, names: list[str]) -> None:
    """Misfits and evaluations beside those of the published updates."""
    ways = {
        "invert()": inverted,
        'invert(target="fit")': lambda e, s: inverted(e, s, target="fit"),
        'invert(target="fit", momentum=True)': lambda e, s: inverted(
            e, s, target="fit", momentum=True
        ),
        "EKP.jl, default": lambda e, s: julia(e, s, True),
        "EKP.jl, plain": lambda e, s: julia(e, s, False),
    }
    examples = {"sinusoid": sinusoid, "lorenz": lorenz, "darcy": darcy_flow}
    for name in names or examples:
        example = examples[name]()
        found: dict[str, list[list[float]]] = {way: [] for way in ways}
        for seed in range(seeds):
            for way, run in ways.items():
                found[way].append(run(example, seed))
                told = ", ".join(f"{misfit:.3g}" for misfit in found[way][-1])
                print(f"{name}, seed {seed}, {way}: {told}", flush=True)
        for way, runs in found.items():
            fitted = [next((k for k, m in enumerate(run, 1) if m <= 1), np.inf) for run in runs]
            rounds, last = [len(run) for run in runs], [run[-1] for run in runs]
            print(
                f"| {name} | {way} | {example.J * np.median(fitted):.0f} | "
                f"{example.J * np.median(rounds):.0f} | {np.median(last):.2f} "
                f"({min(last):.2f} to {max(last):.2f}) |",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("gallery", "darcy", "losses", "published"))
    parser.add_argument("names", nargs="*", help="problems of the gallery, or published ones")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    match given.what:
        case "gallery":
            gallery(given.seeds, given.names)
        case "darcy":
            darcy(given.seeds)
        case "losses":
            losses(given.seeds)
        case "published":
            published(given.seeds, given.names)
