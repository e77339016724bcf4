"""Evidence from a mixture that is fitted to draws: importance or bridge sampling."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pymc as pm
import scipy  # parts of it are loaded when they are used first
import xarray as xr
from numpy.typing import NDArray

from pymc_ensemble.log import ProgressLog, number
from pymc_ensemble.problem.driver import Account, Driver, one_blas_thread, seed_of_round
from pymc_ensemble.problem.inverse_problem import problem_of
from pymc_ensemble.problem.points import unconstrained
from pymc_ensemble.samplers.certificate import CERTAIN
from pymc_ensemble.samplers.ensemble import Ensemble
from pymc_ensemble.samplers.linearization import Anomalies
from pymc_ensemble.samplers.proposals import tail_degrees

from .run import Run
from .weights import Weights

FloatArray = NDArray[np.float64]

WIDE = 0.1  # weight of a component around all draws, as the draws may lack tails
WIDTH = 2.0  # scale of that component, in standard deviations of the draws


@dataclass(frozen=True)
class Mixture:
    """Mixture of Student-t laws in the normalized coordinates of draws.

    Attributes
    ----------
    anomalies : Anomalies
        Mean of the draws, and a factor of their covariance.
    components : list of (float, frozen multivariate_t)
        Log weights, and laws.
    """

    anomalies: Anomalies
    components: list[tuple[float, Any]]

    @classmethod
    def of(cls, U: FloatArray, rng: np.random.Generator) -> "Mixture":
        """Fit to draws `U`, shape (n, d). Held-out draws choose the number of components."""
        anomalies = Anomalies.of(U)
        x = (U - anomalies.mean) @ anomalies.L_pinv.T
        half, held_out = np.array_split(rng.permutation(x), 2)
        best, highest, k = 1, -np.inf, 1
        while (fitted := _components(half, k, rng)) is not None:
            score = float(_log_density(fitted, held_out).mean())
            if score <= highest:
                break
            best, highest, k = k, score, 2 * k
        # of all draws, a cluster may be smaller than any was
        while (components := _components(x, best, rng)) is None and best > 1:
            best //= 2
        if components is None or anomalies.rank < U.shape[1]:
            raise ValueError(
                f"{len(np.unique(U, axis=0))} different draws are too few to fit a law in "
                f"{U.shape[1]} dimensions. Draw more."
            )
        return cls(anomalies, components)

    def draw(self, n: int, rng: np.random.Generator) -> FloatArray:
        """Draw points, shape (n, d)."""
        weights = np.exp([log_weight for log_weight, _ in self.components])
        counts = rng.multinomial(n, weights / weights.sum())
        x = np.concatenate(
            [
                np.reshape(law.rvs(count, random_state=rng), (count, -1))
                for count, (_, law) in zip(counts, self.components, strict=True)
                if count
            ]
        )
        return self.anomalies.mean + x @ self.anomalies.L.T

    def log_density(self, U: FloatArray) -> FloatArray:
        """Log density at points of shape (n, d)."""
        x = (U - self.anomalies.mean) @ self.anomalies.L_pinv.T
        return _log_density(self.components, x) - self.anomalies.log_volume

    def log_normal(self, U: FloatArray) -> FloatArray:
        """Log density of the normal law with the mean and covariance of the draws."""
        x = (U - self.anomalies.mean) @ self.anomalies.L_pinv.T
        constant = 0.5 * x.shape[1] * np.log(2 * np.pi) + self.anomalies.log_volume
        return np.asarray(-0.5 * (x**2).sum(1) - constant, dtype=float)


def _components(x: FloatArray, k: int, rng: np.random.Generator) -> list[tuple[float, Any]] | None:
    """Wide component, and one for each of k clusters; None if there are too few draws for that."""
    n, d = x.shape
    label = np.zeros(n, dtype=int)
    if k > 1:
        label = scipy.cluster.vq.kmeans2(x, k, minit="++", rng=rng)[1]
    degrees, components = tail_degrees(d), []
    for one in range(k):
        members = x[label == one]
        different = len(np.unique(members, axis=0))
        if different < 2 * (d + 2):
            return None
        # shrunk towards the covariance of all draws: a few draws do not determine their own
        share = (d + 2) / different
        C = (1 - share) * np.cov(members.T).reshape(d, d) + share * np.eye(d) / k
        law = scipy.stats.multivariate_t(members.mean(0), C, df=degrees)
        components.append((float(np.log((1 - WIDE) * len(members) / n)), law))
    wide = scipy.stats.multivariate_t(np.zeros(d), WIDTH**2 * np.eye(d), df=degrees)
    return [*components, (float(np.log(WIDE)), wide)]


def _log_density(components: list[tuple[float, Any]], x: FloatArray) -> FloatArray:
    parts = [log_weight + np.reshape(law.logpdf(x), -1) for log_weight, law in components]
    return np.asarray(scipy.special.logsumexp(parts, axis=0), dtype=float)


def bridge(
    idata: xr.DataTree,
    run: Run | None,
    model: pm.Model,
    evaluations: int,
    rng: np.random.Generator,
    compile_kwargs: Mapping[str, Any] | None,
) -> tuple[tuple[float, float, float], Weights, bool]:
    """Evidence of a model from draws, and from evaluations at draws of a mixture.

    Parameters
    ----------
    idata : DataTree
    run : Run or None
        The same result, if it comes from a step method of this package.
    model : pm.Model
        The model that was sampled.
    evaluations : int
        Forward evaluations to make.
    rng : numpy.random.Generator
    compile_kwargs : dict or None
        Options for the compilation of the forward map.

    Returns
    -------
    (value, standard_error, effective_size) : tuple of float
    weights : Weights
        Weights of the draws of the mixture.
    exact : bool
        Whether draws of the run were used.
    """
    problem, _ = problem_of(model, compile_kwargs=compile_kwargs)
    try:
        problem.sample_prior(1, np.random.default_rng(0))
    except ValueError as error:
        raise ValueError(f"The evidence is not defined. {error}") from error
    draws, lp = _other_draws(idata, model, evaluations) if run is None else _draws_of(run, idata)
    half, d = draws.shape[1] // 2, draws.shape[-1]
    mixture = Mixture.of(draws[:, :half].reshape(-1, d), rng)
    exact = run is None or (run.origin.adjusted and run.converged)
    kept = draws[:, half:].reshape(-1, d)
    n_new = evaluations - (len(kept) if lp is None else 0)
    points = mixture.draw(n_new, rng)
    wanted = np.concatenate([points, kept]) if lp is None else points
    driver = Driver(problem, model, Account(), ProgressLog("log_evidence"))
    values = driver.evaluate(wanted, seed_of_round(rng, 0))
    with one_blas_thread():
        log_p = -Ensemble.evaluated(problem, wanted, values).potential
        log_ratio = log_p[:n_new] - mixture.log_density(points)
        weights = Weights.of(np.empty((n_new, 0)), log_ratio)
        if not exact:
            one_chain = np.zeros(n_new, dtype=int)
            return (*averaged(log_ratio, one_chain), weights.ess), weights, False
        of_kept = log_p[n_new:] if lp is None else lp[:, half:].ravel()
        log_ratio_kept = (of_kept - mixture.log_density(kept)).reshape(len(draws), -1)
        found = bridged(log_ratio, log_ratio_kept)
        _require_agreement(found, averaged(log_ratio, np.zeros(n_new, dtype=int)))
        return found, weights, True


def _require_agreement(found: tuple[float, float, float], alone: tuple[float, float]) -> None:
    """Refuse draws that do not follow the density, if evaluations without them contradict.

    Evaluations alone give values that are right on average. If their weights have a heavy tail, the
    values are usually too low. So a value that is higher contradicts the draws.
    """
    if alone[0] - found[0] > CERTAIN * np.hypot(found[1], alone[1]):
        raise ValueError(
            "The draws do not follow the posterior: with the draws, the log evidence is "
            f"{number(found[0], '.2f')} (standard error {number(found[1], '.2g')}), but from the "
            f"evaluations at other points alone it is {number(alone[0], '.2f')} "
            f"({number(alone[1], '.2g')}). Draw again, with a longer burn-in and more draws; "
            "diagnose(idata) may tell more."
        )


def chains_of(run: Run, idata: xr.DataTree) -> NDArray[np.int64]:
    """Number of the chain of each draw of a run, shape (n,)."""
    return run.numbers // idata["sample_stats"].sizes["draw"]


def _draws_of(run: Run, idata: xr.DataTree) -> tuple[FloatArray, FloatArray]:
    """Draws of a run of this package, shape (chains, draws, d), and their log densities."""
    chain = chains_of(run, idata)
    of_chain = [np.flatnonzero(chain == one) for one in np.unique(chain)]
    n = min(map(len, of_chain))
    rows = np.array([index[:n] for index in of_chain])
    return run.U[rows], run.stats["lp"][rows]


def _other_draws(idata: xr.DataTree, model: pm.Model, evaluations: int) -> tuple[FloatArray, None]:
    """Draws of any run: so many that half of the evaluations are for the second half of them."""
    posterior = idata["posterior"].dataset if "posterior" in idata.children else xr.Dataset()
    names = [rv.name for rv in model.free_RVs]
    if missing := [name for name in names if name not in posterior]:
        raise ValueError(
            f"The result has no draws of `{missing[0]}`, which is a variable of the model. Pass "
            "the model that was sampled."
        )
    C, n = posterior.sizes["chain"], posterior.sizes["draw"]
    kept = max(1, min(n, evaluations // C))
    chosen = posterior.isel(draw=np.linspace(0, n - 1, kept).astype(int))
    values = {name: chosen[name].transpose("chain", "draw", ...).to_numpy() for name in names}
    flat = {name: v.reshape(C * kept, *v.shape[2:]) for name, v in values.items()}
    U = unconstrained(model, flat, "idata")
    if not np.isfinite(U).all():
        raise ValueError(
            "Some draws lie on the bounds of their variables, where they have no unconstrained "
            "coordinates. Sample in double precision."
        )
    return U.reshape(C, kept, -1), None


def averaged(
    log_weights: FloatArray, chain: NDArray[np.int64], controls: FloatArray | None = None
) -> tuple[float, float]:
    """Logarithm of a mean of importance weights, and its standard error.

    Parameters
    ----------
    log_weights : ndarray of shape (n,)
    chain : ndarray of int, shape (n,)
        Chain of each point. Chains that do not see the same modes differ by more than their
        standard errors.
    controls : ndarray of shape (n, k), optional
        Control variates: numbers with mean zero that are correlated with the weights.
    """
    top = log_weights.max()
    w = np.exp(log_weights - top) if np.isfinite(top) else np.zeros(len(log_weights))
    degrees = len(w) - 1
    if controls is not None:
        slope = np.linalg.lstsq(controls - controls.mean(0), w - w.mean(), rcond=None)[0]
        w = w - controls @ slope  # eq. (D13)
        degrees -= controls.shape[1]
    mean = w.mean()
    variance = ((w - mean) ** 2).sum() / degrees / len(w)
    of_chain = np.array([w[chain == one].mean() for one in np.unique(chain)])
    if len(of_chain) > 1:
        variance = max(variance, of_chain.var(ddof=1) / len(of_chain))
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.log(mean) + top), float(np.sqrt(variance) / mean)  # eq. (D10)


def control_variates(
    draws: FloatArray,
    second: NDArray[np.bool_],
    points: FloatArray,
    log_q: FloatArray,
    rng: np.random.Generator,
) -> FloatArray | None:
    """Control variates: densities of two laws near the posterior, over that of the points, less 1.

    Parameters
    ----------
    draws : ndarray of shape (n, d)
    second : ndarray of bool, shape (n,)
        Which draws, and points, belong to the second half of their chain. Laws for points of one
        half are fitted to draws of the other half, as they must not depend on the points.
    points : ndarray of shape (n, d)
        One point for each draw.
    log_q : ndarray of shape (n,)
        Log densities from which the points were drawn.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of shape (n, 2) or None
        Control variates with mean zero. None if there are too few draws for a fit.
    """
    found = np.empty((len(points), 2))
    for half in (second, ~second):
        try:
            mixture = Mixture.of(draws[~half], rng)
        except ValueError:  # too few different draws
            return None
        laws = np.array([mixture.log_density(points[half]), mixture.log_normal(points[half])])
        found[half] = np.expm1(laws - log_q[half]).T  # eq. (D13)
    return found


def bridged(log_ratio: FloatArray, log_ratio_kept: FloatArray) -> tuple[float, float, float]:
    """Evidence by the bridge between a mixture and a posterior, with its error.

    Parameters
    ----------
    log_ratio : ndarray of shape (m,)
        Log density over that of the mixture, at draws of the mixture.
    log_ratio_kept : ndarray of shape (C, n)
        The same at draws of C chains of the posterior.

    Returns
    -------
    value, standard_error, effective_size : float
    """
    from arviz_stats.base import array_stats  # takes longer to load than PyMC

    ess = float(array_stats.ess(log_ratio_kept, chain_axis=0, draw_axis=1, method="mean"))
    m, n = len(log_ratio), log_ratio_kept.size
    worth = min(ess, n) if np.isfinite(ess) else n
    # eq. (D11)
    log_m, log_n = np.log(m / (m + worth)), np.log(worth / (m + worth))
    value = float(np.median(log_ratio_kept))
    for _ in range(1000):
        above = log_ratio - np.logaddexp(log_n + log_ratio, log_m + value)
        below = -np.logaddexp(log_n + log_ratio_kept, log_m + value)
        log_mean_above = scipy.special.logsumexp(above) - np.log(m)
        before, value = value, float(log_mean_above - scipy.special.logsumexp(below) + np.log(n))
        if abs(value - before) < 1e-8:
            break
    f, g = (np.exp(v - v.max()) for v in (above, below))
    ess_below = float(array_stats.ess(g, chain_axis=0, draw_axis=1, method="mean"))
    worth_below = min(ess_below, n) if np.isfinite(ess_below) else worth
    relative = f.var() / f.mean() ** 2 / m + g.var() / g.mean() ** 2 / worth_below
    return value, float(np.sqrt(relative)), float(m * f.mean() ** 2 / (f**2).mean())
