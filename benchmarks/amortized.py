"""What amortized inference does: posteriors against exact ones, calibration, and times.

    python benchmarks/amortized.py [ROW ...] [--seeds 3] [--file amortized.jsonl]

Rows are the functions in `ROWS`. Each has its own simulations, networks and data sets for each
seed. Runs are kept in a file, one a line: an interrupted command goes on, and more seeds can be
added. `C2ST` is the share that a classifier tells right of 1000 draws and 1000 exact ones, half
where both are of one law: a network with two layers of 32 units and five parts, by scikit-learn.
Published benchmarks have 10 000 of each, and larger networks: their figures, in `PUBLISHED`, were
read, and not measured here.
"""

import argparse
import json
import logging
import multiprocessing
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import pymc as pm
from numpy.typing import NDArray

import pymc_ensemble as pe

Array = NDArray[np.float64]
Found = dict[str, Any]

DRAWS = 1000  # for the C2ST
DATA_SETS = {"crescents": 10}  # whose C2ST is averaged, 3 of other tasks
FRESH = 500  # simulations for a test of coverage: a standard error of .013 at 90%

PUBLISHED = {  # C2ST with 10 000 draws, means over ten data sets: neural posterior, neural ratio
    ("two moons", 1000): (0.725, 0.822),
    ("two moons", 10_000): (0.606, 0.761),
    ("Gaussian linear", 1000): (0.694, 0.672),
    ("SIR", 1000): (0.815, 0.841),
}

# -- tasks ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A model whose posterior is known.

    Attributes
    ----------
    build : callable
        From the tolerance of an approximate likelihood, which `pymc.sample_smc` uses, and data.
    exact : callable
        Draws of the posterior (n, d), in natural coordinates: from data, n and a generator.
    observed : str
    tolerances : tuple of float
        For `pymc.sample_smc`, of a normal kernel.
    """

    build: Callable[..., pm.Model]
    exact: Callable[[Array, int, np.random.Generator], Array]
    observed: str
    tolerances: tuple[float, ...] = ()

    def data(self, k: int) -> Array:
        """A data set of the prior."""
        made = pe.simulations(self.build(), 1, random_seed=1000 + k)
        return made[self.observed].to_numpy()[0]


CALLS = [0]  # of simulators


GRAVITY, HEIGHT, SCATTER, LANDING = 9.81, 1.1, 0.3, 0.25


def distance(v, alpha, height):
    """Where a ball lands that is thrown from a height, without drag."""
    up = v * np.sin(alpha)
    return v * np.cos(alpha) * (up + np.sqrt(up**2 + 2 * GRAVITY * np.maximum(height, 0))) / GRAVITY


def throw(rng, v, alpha, size=None):
    """One throw from a random height, and a random bounce."""
    CALLS[0] += 1
    landed = distance(v, alpha, rng.normal(HEIGHT, SCATTER)) * (1.0 + 0 * v)
    return np.atleast_1d(landed + rng.normal(0, LANDING))


def ball(epsilon=0.25, observed=(10.0,)):
    """Speed and angle of a throw, by where it lands."""
    with pm.Model() as model:
        v, alpha = pm.Uniform("v", 5, 15), pm.Uniform("alpha", 0.2, 1.4)
        pm.Simulator("x", throw, v, alpha, epsilon=epsilon, observed=observed)
    return model


def exact_ball(data, n, rng):
    """By quadrature over speed, angle and height."""
    edges = np.linspace(5, 15, 401), np.linspace(0.2, 1.4, 401)
    v, alpha = np.meshgrid(*(0.5 * (e[1:] + e[:-1]) for e in edges), indexing="ij")
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    likelihood = np.zeros_like(v)
    for node, weight in zip(nodes, weights, strict=True):
        z = (data[0] - distance(v, alpha, HEIGHT + SCATTER * node)) / LANDING
        likelihood += weight * np.exp(-0.5 * z**2)
    cell = rng.choice(v.size, n, p=(likelihood / likelihood.sum()).ravel())
    jitter = (rng.random((n, 2)) - 0.5) * [edge[1] - edge[0] for edge in edges]
    return np.column_stack([v.ravel()[cell], alpha.ravel()[cell]]) + jitter


RADIUS, THICKNESS = 0.1, 0.01


def bow(rng, a, b, size=None):
    """A point on a thin half circle, beside the size of one sum of parameters and a difference."""
    CALLS[0] += 1
    angle, radius = rng.uniform(-np.pi / 2, np.pi / 2), rng.normal(RADIUS, THICKNESS)
    s, t = np.abs(a + b) / np.sqrt(2), (b - a) / np.sqrt(2)
    return np.array([s - radius * np.cos(angle), t + radius * np.sin(angle)]).reshape(2)


def crescents(epsilon=0.05, observed=(0.1, 0.0)):
    """Two parameters whose posterior has two thin crescents."""
    with pm.Model() as model:
        a, b = pm.Uniform("a", -1, 1), pm.Uniform("b", -1, 1)
        pm.Simulator("y", bow, a, b, epsilon=epsilon, observed=observed)
    return model


def exact_crescents(data, n, rng):
    """By rejection: parameters and noise are one to one, given the sign of the sum."""
    kept = np.empty((0, 2))
    while len(kept) < n:
        angle = rng.uniform(-np.pi / 2, np.pi / 2, 4 * n)
        radius = rng.normal(RADIUS, THICKNESS, 4 * n)
        s, t = data[0] + radius * np.cos(angle), data[1] - radius * np.sin(angle)
        sign = rng.choice([-1, 1], 4 * n)
        found = np.column_stack([sign * s - t, sign * s + t]) / np.sqrt(2)
        kept = np.concatenate([kept, found[(s >= 0) & (np.abs(found) < 1).all(1)]])
    return kept[:n]


VARIANCE = 0.1  # of the prior and of the noise


def linear(epsilon=None, observed=(0.0,) * 10):
    """Ten parameters and a datum for each."""
    with pm.Model() as model:
        x = pm.Normal("x", 0, np.sqrt(VARIANCE), shape=10)
        pm.Normal("y", x, np.sqrt(VARIANCE), observed=observed)
    return model


def exact_linear(data, n, rng):
    """Half of the data, with half of the variance."""
    return data / 2 + np.sqrt(VARIANCE / 2) * rng.standard_normal((n, 10))


PEOPLE, TESTED, TIMES, STEP = 1_000_000, 1000, 10, 0.5


def infected(beta, gamma):
    """Share of the infected at ten times of 160 days, by the equations of Kermack and McKendrick.

    Rates may be numbers or arrays.
    """

    def slope(s, i):
        new = beta * s * i
        return -new, new - gamma * i

    s, i, seen = 1.0 - 1 / PEOPLE + 0 * beta, 1 / PEOPLE + 0 * beta, []
    per_time = round(160 / TIMES / STEP)
    for step in range(1, per_time * TIMES + 1):
        a, c = slope(s, i)
        a2, c2 = slope(s + STEP / 2 * a, i + STEP / 2 * c)
        a3, c3 = slope(s + STEP / 2 * a2, i + STEP / 2 * c2)
        a4, c4 = slope(s + STEP * a3, i + STEP * c3)
        s = s + STEP / 6 * (a + 2 * a2 + 2 * a3 + a4)
        i = i + STEP / 6 * (c + 2 * c2 + 2 * c3 + c4)
        if step % per_time == 0:
            seen.append(i)
    return np.clip(np.array(seen), 0.0, 1.0)


def counts_of_tests(rng, beta, gamma, size=None):
    """Who of a thousand are infected at ten times."""
    CALLS[0] += 1
    rates = (np.float64(rate).item() for rate in (beta, gamma))
    return rng.binomial(TESTED, infected(*rates)) + 0.0


RATES = {"beta": (np.log(0.4), 0.5), "gamma": (np.log(1 / 8), 0.2)}  # of lognormal priors


def epidemic(epsilon=5.0, observed=(1.0,) * TIMES):
    """Two rates of an epidemic, by tests of a thousand people at ten times."""
    with pm.Model() as model:
        beta, gamma = (pm.LogNormal(name, *rates) for name, rates in RATES.items())
        pm.Simulator("counts", counts_of_tests, beta, gamma, epsilon=epsilon, observed=observed)
    return model


def exact_epidemic(data, n, rng):
    """By quadrature over the logarithms of both rates, twice: to find, and to resolve."""
    box = [(m - 5 * sd, m + 5 * sd) for m, sd in RATES.values()]
    for points in (301, 401):
        edges = [np.linspace(*ends, points) for ends in box]
        u = np.meshgrid(*(0.5 * (e[1:] + e[:-1]) for e in edges), indexing="ij")
        share = np.clip(infected(*np.exp(u)), 1e-300, 1 - 1e-16)
        counts = data[:, None, None]
        lp = (counts * np.log(share) + (TESTED - counts) * np.log1p(-share)).sum(0)
        for x, (m, sd) in zip(u, RATES.values(), strict=True):
            lp = lp - 0.5 * ((x - m) / sd) ** 2
        weights = np.exp(lp - lp.max())
        where = [np.flatnonzero(weights.max(1 - k) > 1e-9) for k in (0, 1)]
        box = [
            (e[max(w[0] - 1, 0)], e[min(w[-1] + 2, points - 1)])
            for e, w in zip(edges, where, strict=True)
        ]
    cell = rng.choice(weights.size, n, p=(weights / weights.sum()).ravel())
    jitter = (rng.random((n, 2)) - 0.5) * [edge[1] - edge[0] for edge in edges]
    return np.exp(np.column_stack([x.ravel()[cell] for x in u]) + jitter)


TASKS = {
    "ball": Task(ball, exact_ball, "x", (0.25, 0.05)),
    "crescents": Task(crescents, exact_crescents, "y", (0.05, 0.01)),
    "linear": Task(linear, exact_linear, "y"),
    "epidemic": Task(epidemic, exact_epidemic, "counts", (5.0, 1.0)),
}

# -- what is measured -----------------------------------------------------------------------------


def c2st(draws: Array, exact: Array, seed: int = 0) -> float:
    """Share that a classifier tells right, by cross validation."""
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    X = (np.concatenate([draws, exact]) - exact.mean(0)) / exact.std(0)
    y = np.repeat([0, 1], [len(draws), len(exact)])
    classifier = MLPClassifier((32, 32), max_iter=300, n_iter_no_change=30, random_state=seed)
    parts = KFold(5, shuffle=True, random_state=seed)
    return float(cross_val_score(classifier, X, y, cv=parts).mean())


def values(idata: Any) -> Array:
    """All draws of all parameters, shape (n, d)."""
    posterior = idata["posterior"].dataset.stack(all=("chain", "draw"))
    rows = [posterior[name].transpose("all", ...).to_numpy() for name in posterior.data_vars]
    return np.concatenate([row.reshape(len(row), -1) for row in rows], axis=1)


@cache
def made(task: str, n: int, seed: int) -> Any:
    """Simulations of a task."""
    return pe.simulations(TASKS[task].build(), n, random_seed=seed)


@cache
def learned(task: str, n: int, seed: int, redrawn: bool = True, **options: Any) -> Any:
    """What is learned of a task, and the processor time, compilation included."""
    simulations = made(task, n, seed)
    if not redrawn:
        simulations = simulations.drop_vars("outputs")
    began = process_time()
    found = pe.amortize(TASKS[task].build(), simulations, random_seed=seed, **options)
    return found, process_time() - began


def accuracy(task: str, n: int, seed: int, **options: Any) -> Found:
    """C2ST, means and standard deviations of the posteriors of some data sets."""
    jax_is_fresh()
    amortized, seconds = learned(task, n, seed, **options)
    rng, told, errors = np.random.default_rng(seed), [], []
    for k in range(DATA_SETS.get(task, 3)):
        data = TASKS[task].data(k)
        draws = values(amortized.sample({TASKS[task].observed: data}, DRAWS, 1, random_seed=seed))
        exact = TASKS[task].exact(data, DRAWS, rng)
        told.append(c2st(draws, exact))
        shift = np.abs(draws.mean(0) - exact.mean(0)) / exact.std(0)
        errors.append((shift.max(), np.abs(draws.std(0) / exact.std(0) - 1).max()))
    return {"c2st": told, "errors": errors, "training": seconds}


def jax_is_fresh() -> None:
    """Forget what was compiled, so that processor times include it."""
    import jax

    jax.clear_caches()


def covered(task: str, n: int, seed: int, **options: Any) -> Found:
    """Share of truths within regions of 90%, and the signed area of expected coverage."""
    amortized, _ = learned(task, n, seed, **options)
    tested = amortized.coverage(FRESH, draws=300, random_seed=100 + seed)
    level = tested.data["simulations"]["highest_density"].to_numpy().ravel()
    return {"within": float((level < 0.9).mean()), "area": float(0.5 - level.mean())}


def thrown_ball(seed: int) -> Found:
    """Where a ball lands, from 5000 throws."""
    return accuracy("ball", 5000, seed) | covered("ball", 5000, seed)


def two_crescents(seed: int, n: int) -> Found:
    """A posterior with two curved modes."""
    return accuracy("crescents", n, seed) | covered("crescents", n, seed)


def gaussian(seed: int, redrawn: bool) -> Found:
    """Ten Gaussian means, from 1000 simulations, with new noise for every pass or without."""
    return accuracy("linear", 1000, seed, redrawn=redrawn)


def balance(seed: int, task: str, conservative: bool) -> Found:
    """Classifiers from 1000 simulations."""
    return covered(task, 1000, seed, method="ratio", conservative=conservative)


def one_member(seed: int) -> Found:
    """The crescents by one network in place of four."""
    return covered("crescents", 1000, seed, members=1)


def hundred(seed: int) -> Found:
    """Seconds by the clock for each of a hundred data sets."""
    amortized, _ = learned("epidemic", 1000, seed)
    counts = pe.simulations(epidemic(), 100, random_seed=50 + seed)["counts"].to_numpy()
    warnings.simplefilter("ignore")
    seconds = []
    for one in counts:
        began = perf_counter()
        amortized.sample({"counts": one}, random_seed=seed)
        seconds.append(perf_counter() - began)
    return {"first": seconds[0], "median": np.median(seconds[1:]), "longest": max(seconds[1:])}


def unlike(seed: int) -> Found:
    """Data sets that no simulation looks like, and fresh ones that are warned of."""
    rng = np.random.default_rng(seed)
    warned, fresh = [], []
    for task, n in (("ball", 5000), ("crescents", 1000), ("linear", 1000), ("epidemic", 1000)):
        amortized, _ = learned(task, n, seed)
        observed = TASKS[task].observed
        again = pe.simulations(TASKS[task].build(), 500, random_seed=60 + seed)[observed]
        good = again.to_numpy()
        fresh += [amortized.surprise({observed: one}) > 0.99 for one in good]
        some = good[rng.permutation(len(good))]
        odd = {
            "ball": [[-3.0], [-10.0], [40.0], [60.0], [100.0]],
            "crescents": some[:5] + 3 * (-1.0) ** np.arange(5)[:, None],
            "linear": 3 * some[:5],
            "epidemic": [500 * np.roll([2, 0, 1, 0, 2, 0, 1, 0, 2, 0], k) for k in range(5)],
        }[task]
        warned += [amortized.surprise({observed: one}) > 0.99 for one in odd]
    return {"warned": int(np.sum(warned)), "of": len(warned), "fresh": float(np.mean(fresh))}


def executors(seed: int) -> Found:
    """Whether draws are the same, wherever simulations ran."""
    context = multiprocessing.get_context("spawn")
    model, kept = ball(), []
    pools: list[Any] = [None, ThreadPoolExecutor(2), ProcessPoolExecutor(2, mp_context=context)]
    for pool in pools:
        simulations = pe.simulations(model, 500, pool, random_seed=seed)
        amortized = pe.amortize(model, simulations, members=2, random_seed=seed)
        kept.append(values(amortized.sample({"x": [8.0]}, random_seed=seed)))
        if pool is not None:
            pool.shutdown()
    return {"same": all(np.array_equal(kept[0], one) for one in kept)}


def smc(seed: int, task: str, epsilon: float, draws: int) -> Found:
    """`pymc.sample_smc` on the same `pymc.Simulator`, with a tolerance."""
    rng, told, calls = np.random.default_rng(seed), [], []
    for k in range(DATA_SETS.get(task, 3)):
        data = TASKS[task].data(k)
        with TASKS[task].build(epsilon, data):
            before = CALLS[0]
            idata = pm.sample_smc(draws, chains=1, cores=1, random_seed=seed, progressbar=False)
            calls.append(CALLS[0] - before)
        exact = TASKS[task].exact(data, DRAWS, rng)
        chosen = rng.choice(draws, DRAWS, replace=draws < DRAWS)
        told.append(c2st(values(idata)[chosen], exact))
    return {"c2st": told, "simulations": float(np.mean(calls))}


def root(counts):
    """Summaries of counts that are nearly Gaussian."""
    return np.sqrt(counts + 3 / 8)


def random_counts(beta, gamma, rng):
    """Counts of one epidemic."""
    return counts_of_tests(rng, beta, gamma)


def of_summaries(draws: Array, data: Array, rng: np.random.Generator) -> tuple[float, Any]:
    """C2ST, and the largest errors of means and standard deviations, of draws of both rates."""
    exact = exact_epidemic(data, DRAWS, rng)
    shift = np.abs(draws.mean(0) - exact.mean(0)) / exact.std(0)
    error = (shift.max(), np.abs(draws.std(0) / exact.std(0) - 1).max())
    return c2st(draws[:DRAWS], exact[: len(draws)]), error


def by_summaries(seed: int, covariance: Any = "constant") -> Found:
    """A synthetic likelihood, as in `docs/summaries.md`: two stages."""
    rng, told, calls, errors, verdicts = np.random.default_rng(seed), [], [], [], []
    of_roots = pe.synthetic_likelihood(random_counts, summaries=root, covariance=covariance)
    for k in range(3):
        data, before = TASKS["epidemic"].data(k), CALLS[0]
        with pm.Model():
            rates = [pm.LogNormal(name, *values) for name, values in RATES.items()]
            of_roots("y", *rates, observed=data)
            idata = pe.sample_synthetic(1000, random_seed=seed, progressbar=False)
        calls.append(CALLS[0] - before)
        draws = np.column_stack([idata.posterior[name].to_numpy().ravel() for name in RATES])
        one, error = of_summaries(draws, data, rng)
        told.append(one)
        errors.append(error)
        verdicts.append(pe.diagnose(idata).verdict)
    return {
        "each c2st": " ".join(f"{one:.2f}" for one in told),
        "c2st": told,
        "errors": errors,
        "simulations": float(np.mean(calls)),
        "most": max(calls),
        "verdicts": " ".join(verdicts),
    }


def smc_of_summaries(seed: int, draws: int) -> Found:
    """`pymc.sample_smc` with the same summaries."""
    rng, told, calls, errors = np.random.default_rng(seed), [], [], []
    for k in range(3):
        data, before = TASKS["epidemic"].data(k), CALLS[0]
        with pm.Model():
            rates = [pm.LogNormal(name, *values) for name, values in RATES.items()]
            pm.Simulator("y", counts_of_tests, *rates, sum_stat=root, epsilon=0.3, observed=data)
            idata = pm.sample_smc(draws, chains=1, cores=1, random_seed=seed, progressbar=False)
        found = np.column_stack([idata.posterior[name].to_numpy().ravel() for name in RATES])
        calls.append(CALLS[0] - before)
        one, error = of_summaries(found, data, rng)
        told.append(one)
        errors.append(error)
    each = " ".join(f"{one:.2f}" for one in told)
    mean = float(np.mean(calls))
    return {"each c2st": each, "c2st": told, "errors": errors, "simulations": mean}


CHANGES, DATA_OF_SPREAD = 0.4, 8


def spread_grows(level, rng):
    """Eight data whose spread grows with their level."""
    CALLS[0] += 1
    return level + np.exp(CHANGES * level - 0.2) * rng.standard_normal(DATA_OF_SPREAD)


def changing(seed: int, covariance: Any) -> Found:
    """A covariance that depends on the parameter, by data of ten levels of the prior."""
    level = np.linspace(-6, 6, 6001)
    spread, verdicts, errors, calls = np.exp(CHANGES * level - 0.2), [], [], []
    for k in range(10):
        rng, before = np.random.default_rng([seed, k]), CALLS[0]
        data = spread_grows(rng.standard_normal(), rng)
        lp = -0.5 * level**2 - DATA_OF_SPREAD * np.log(spread)
        lp = lp - 0.5 * (((data[:, None] - level) / spread) ** 2).sum(0)
        weights = np.exp(lp - lp.max()) / np.exp(lp - lp.max()).sum()
        mean = weights @ level
        sd = np.sqrt(weights @ (level - mean) ** 2)
        likelihood = pe.synthetic_likelihood(spread_grows, covariance=covariance)
        with pm.Model(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            likelihood("y", pm.Normal("level"), observed=data)
            idata = pe.sample_synthetic(1000, random_seed=seed, progressbar=False)
        draws = idata.posterior["level"].to_numpy()
        errors.append((abs(draws.mean() - mean) / sd, abs(draws.std() / sd - 1)))
        verdicts.append(pe.diagnose(idata).verdict)
        calls.append(CALLS[0] - before)
    wrong = [shift > 0.3 or ratio > 0.2 for shift, ratio in errors]
    silent = sum(
        verdict == "trustworthy" and bad for verdict, bad in zip(verdicts, wrong, strict=True)
    )
    return {
        "wrong": sum(wrong),
        "silent": silent,
        "trusted": verdicts.count("trustworthy"),
        "median": "/".join(f"{x:.2f}" for x in np.median(errors, 0)),
        "errors": errors,
        "simulations": float(np.mean(calls)),
    }


def quantiles(A, B, g, k, rng):
    """Four summaries of 500 data of the g-and-k law, by their octiles."""
    CALLS[0] += 1
    z = rng.standard_normal(500)
    x = A + B * (1 + 0.8 * np.tanh(g * z / 2)) * z * (1 + z**2) ** k
    q = np.quantile(x, np.arange(1, 8) / 8)
    width = q[5] - q[1]
    tails = q[6] - q[4] + q[2] - q[0]
    return np.array([q[3], np.log(width), (q[5] + q[1] - 2 * q[3]) / width, np.log(tails / width)])


OF_G_AND_K = {"A": (3, 0.5), "B": (0, 0.5), "g": (0.5, 0.5), "k": (-1, 0.5)}


def g_and_k(seed: int, n: int = 30_000) -> Found:
    """Four parameters, against importance weights of very many simulations: means by a cubic fit.

    Both are posteriors of the summaries, whose error is that of the Gaussian and of its fit.
    """
    rng = np.random.default_rng(seed)
    center, sd = np.array(list(OF_G_AND_K.values())).T
    data = quantiles(3.0, 1.0, 2.0, 0.5, rng)
    with pm.Model(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        A = pm.Normal("A", *OF_G_AND_K["A"])
        others = [pm.LogNormal(name, *OF_G_AND_K[name]) for name in "Bgk"]
        pe.synthetic_likelihood(quantiles)("y", A, *others, observed=data)
        before = CALLS[0]
        idata = pe.sample_synthetic(1000, random_seed=seed, progressbar=False)
    calls = CALLS[0] - before + 100  # with those when the model is built
    U = idata["sample_stats"]["unconstrained"].to_numpy()[0]
    middle, width = U.mean(0), np.minimum(2 * U.std(0), 2 * sd)
    points = middle + width * rng.standard_normal((n, 4))
    made = np.array([quantiles(u[0], *np.exp(u[1:]), rng) for u in points])
    x = (points - middle) / width
    terms = np.indices((5, 5, 5)).reshape(3, -1).T
    powers = np.column_stack([np.ones(n), x])
    features = np.unique(np.sort(terms, axis=1), axis=0)
    X = powers[:, features].prod(2)
    fitted = X @ np.linalg.lstsq(X, made, rcond=None)[0]
    residual = made - fitted
    near = np.exp(-0.5 * (x**2).sum(1))  # the covariance where the posterior is
    covariance = (residual * near[:, None]).T @ residual / near.sum()
    off = np.linalg.solve(np.linalg.cholesky(covariance), (data - fitted).T)
    lw = -0.5 * ((off**2).sum(0) + (((points - center) / sd) ** 2).sum(1) - (x**2).sum(1))
    weights = np.exp(lw - lw.max()) / np.exp(lw - lw.max()).sum()
    mean = weights @ points
    spread = np.sqrt(weights @ (points - mean) ** 2)
    error = (np.abs(middle - mean) / spread).max(), np.abs(U.std(0) / spread - 1).max()
    return {
        "errors": [error],
        "simulations": float(calls),
        "verdict": pe.diagnose(idata).verdict,
        "reference": float(1 / (weights**2).sum()),
    }


def control(seed: int, task: str) -> Found:
    """C2ST of exact draws and other exact ones."""
    rng, told = np.random.default_rng(seed), []
    for k in range(DATA_SETS.get(task, 3)):
        data = TASKS[task].data(k)
        told.append(c2st(*(TASKS[task].exact(data, DRAWS, rng) for _ in range(2))))
    return {"c2st": told}


ROWS: dict[str, Callable[[int], Found]] = {
    "ball, 5000": thrown_ball,
    "crescents, 1000": partial(two_crescents, n=1000),
    "crescents, 1000, one member": one_member,
    "crescents, 10000": partial(two_crescents, n=10_000),
    "linear, 1000": partial(gaussian, redrawn=True),
    "linear, 1000, noise kept": partial(gaussian, redrawn=False),
    **{
        f"{task}, 1000, {word} ratio": partial(balance, task=task, conservative=word != "plain")
        for task in ("crescents", "epidemic")
        for word in ("plain", "balanced")
    },
    "a hundred data sets": hundred,
    "unlike any simulation": unlike,
    "executors": executors,
    "epidemic, summaries": by_summaries,
    "epidemic, summaries, linear": partial(by_summaries, covariance="linear"),
    "spread grows, constant": partial(changing, covariance="constant"),
    "spread grows, linear": partial(changing, covariance="linear"),
    "g and k, summaries": g_and_k,
    "epidemic, summaries, sample_smc, 120": partial(smc_of_summaries, draws=120),
    "epidemic, summaries, sample_smc, 1200": partial(smc_of_summaries, draws=1200),
    **{f"{task}, exact draws": partial(control, task=task) for task in TASKS},
    **{
        f"{task}, sample_smc, {epsilon}": partial(smc, task=task, epsilon=epsilon, draws=1000)
        for task in ("ball", "crescents")
        for epsilon in TASKS[task].tolerances
    },
}

# -- runs and tables ------------------------------------------------------------------------------


def runs(path: Path, rows: list[str], seeds: int) -> dict[tuple[str, int], Found]:
    """Runs of rows with all seeds, those in the file taken from there; one seed after the other."""
    known: dict[tuple[str, int], Found] = {}
    if path.exists():
        for line in map(json.loads, path.read_text("utf-8").splitlines()):
            known[line["row"], line["seed"]] = line
    for seed in range(1, seeds + 1):
        for name in rows:
            if (name, seed) not in known:
                found = {"row": name, "seed": seed, **ROWS[name](seed)}
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(found, default=float) + "\n")
                print(json.dumps(found, default=float), flush=True)
                known[name, seed] = found
    return known


def told(found: list[Found]) -> str:
    """What all seeds have given, side by side; lists by their means, and the largest entry."""
    words = []
    for name in found[0]:
        if name in ("row", "seed"):
            continue
        each = []
        for run in found:
            value = run[name]
            if isinstance(value, list):
                worst = np.max(value, 0)
                ends = np.atleast_1d(worst if name == "errors" else np.mean(value))
                each.append("/".join(f"{x:.3g}" for x in ends))
                if name == "c2st":
                    each[-1] += f" ({worst:.3g})"
            else:
                each.append(f"{value:.3g}" if isinstance(value, float) else str(value))
        words.append(f"{name} {', '.join(each)}")
    return "; ".join(words)


def main() -> None:
    """Run what is not yet in the file, and print all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--file", type=Path, default=Path("amortized.jsonl"))
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    known = runs(options.file, options.rows, options.seeds)
    for name in options.rows:
        print(f"{name}: {told([known[name, seed] for seed in range(1, options.seeds + 1)])}")


if __name__ == "__main__":
    main()
