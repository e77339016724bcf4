"""What draws and their stats say about the posterior that they are meant to be: arrays alone.

Draws are arrays of shape (C, S, J, p): chains, sweeps, particles, parameters.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from arviz_stats.base import array_stats
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from scipy.special import gammaln, logsumexp
from scipy.stats import chi2
from threadpoolctl import threadpool_limits

from .coordinates import Bounds, Redundancy
from .diagnostics import path_ess
from .samplers.surrogate import Function, GaussianProcess, basis_size, basis_values

FloatArray = NDArray[np.float64]

FEWEST_WEIGHTS = 50  # of which a tail can be told
TRAINING_DRAWS = 1000
ENOUGH_DRAWS = 4000  # where these are too few for a fit
VAGUE, NOISY = 0.1, 0.3  # error of a moment by the fit, and noise about it, that ask for more
FUNCTIONS, SAMPLE = 50, 1000  # that a fit leaves open, and the points at which they are compared
PROPOSALS = 4000  # of each round of adaptive importance sampling
ROUNDS = 5
N_KERNELS, KERNEL_ROUNDS = 300, 2
LARGEST_REST = 0.05  # share of the variance of a function of others that a fit may leave
NO_MISFIT = 1e-4  # share of the variance of log_q that may be due to rounding
LARGEST_MISFIT = 0.3  # share of the variance of log_q with which coordinates can still be told
EXACTLY = 1e-12  # the same of one that is a polynomial
MOST_FOR_KERNELS = 10  # parameters
MOST_COMPARED = 3000  # points in the search for places without draws
FEWEST_VISITS = 3  # that are no accident
FEWEST_APART = 30  # draws that tell how far from others a draw may be
DEEP = 3.0  # below the usual log density of draws, where a mode has next to no mass
CLOSE = 0.2  # posterior sd, within which a smooth function changes little
HORIZON = 3.0  # distance from the draws that a fit may reach, in those between neighbors


@dataclass(frozen=True)
class SamplingError:
    """How far means and standard deviations can be off by chance, for each of p parameters.

    Attributes
    ----------
    ess : ndarray of shape (p,)
        Effective sample size of the mean, from the paths of the particles.
    mean : ndarray of shape (p,)
        Standard error of the mean, in posterior standard deviations: the larger one of what paths
        and what differences between chains say.
    sd : ndarray of shape (p,)
        Relative standard error of the standard deviation.
    drift : ndarray of shape (p,)
        Change of the mean from the first to the second half of the sweeps, in posterior standard
        deviations.
    """

    ess: FloatArray
    mean: FloatArray
    sd: FloatArray
    drift: FloatArray

    @classmethod
    def of(cls, X: FloatArray) -> "SamplingError":
        """Errors of draws `X`, shape (C, S, J, p)."""
        C, S = X.shape[:2]
        center, scale = X.mean((0, 1, 2)), np.maximum(X.std((0, 1, 2)), 1e-300)
        z = (X - center) / scale
        paths = np.moveaxis(z, (3, 0, 2, 1), (0, 1, 2, 3))
        ess = np.nan_to_num(path_ess(paths), nan=1.0)
        squares = paths**2 - 1
        ess_squares = np.nan_to_num(path_ess(squares), nan=1.0)
        mean = 1 / np.sqrt(ess)
        sd = 0.5 * squares.std((1, 2, 3)) / np.sqrt(ess_squares)
        if C > 1:
            mean = np.maximum(mean, z.mean((1, 2)).std(0, ddof=1) / np.sqrt(C))
            sd = np.maximum(sd, 0.5 * (z**2).mean((1, 2)).std(0, ddof=1) / np.sqrt(C))
        half = S // 2
        drift = np.zeros(z.shape[-1])
        if half:
            drift = z[:, -half:].mean((0, 1, 2)) - z[:, :half].mean((0, 1, 2))
        return cls(ess, mean, sd, drift)


@dataclass(frozen=True)
class Weights:
    """Importance weights of draws from a known law, and what they say of its error.

    Attributes
    ----------
    log_weights : ndarray of shape (n,)
        Pareto-smoothed and normalized.
    khat : float
        Shape of their tail: beyond 0.7 they cannot be relied upon.
    efficiency : float
        Effective share of the draws.
    shift : ndarray of shape (p,)
        Estimated error of the means, in posterior standard deviations.
    sd_ratio : ndarray of shape (p,)
        Estimated ratio of the standard deviations to the true ones.
    """

    log_weights: FloatArray
    khat: float
    efficiency: float
    shift: FloatArray
    sd_ratio: FloatArray

    @classmethod
    def of(cls, X: FloatArray, log_ratio: FloatArray) -> "Weights":
        """Weights of draws `X`, shape (n, p), by their unnormalized log weights, shape (n,)."""
        finite = np.isfinite(log_ratio)
        lowest = log_ratio[finite].min() if finite.any() else 0.0
        log_ratio = np.where(finite, log_ratio, lowest - 50)
        log_ratio = log_ratio - log_ratio.max()
        log_weights, khat = log_ratio, -np.inf
        most = np.sort(log_ratio)[-max(5, int(min(0.2 * len(X), 3 * np.sqrt(len(X))))) :]
        if len(X) < FEWEST_WEIGHTS:
            khat = np.inf
        elif np.ptp(most) > 1e-8:  # else there is no tail to smooth
            log_weights, khat = array_stats.psislw(-log_ratio)
        weights = np.exp(log_weights - log_weights.max())
        weights /= weights.sum()
        mean = weights @ X
        sd = np.sqrt(np.maximum(weights @ (X - mean) ** 2, 1e-300))
        return cls(
            np.log(np.maximum(weights, 1e-300)),
            float(khat),
            float(1 / (weights**2).sum() / len(X)),
            (X.mean(0) - mean) / sd,
            X.std(0) / sd,
        )


@dataclass(frozen=True)
class Regression:
    """Posterior that a regression of the log density on the draws stands for.

    A Gaussian process with a quadratic mean is fitted to the values of the log density that the
    draws carry, and sampled in place of the posterior. Wherever the draws are, their frequencies
    play no role in it: so it can tell how far they are from what they should be.

    Attributes
    ----------
    mean, sd : ndarray of shape (p,)
        Moments of the posterior by the fit.
    shift : ndarray of shape (p,)
        Error of the means of the draws, in posterior standard deviations.
    sd_ratio : ndarray of shape (p,)
        Ratio of the standard deviations of the draws to those of the posterior.
    shift_error, sd_ratio_error : ndarray of shape (p,)
        Their standard errors, as far as the fit is uncertain; those of `sd_ratio` are relative.
    khat, efficiency : float
        Reliability of the sample from the fit.
    uncertainty : float
        Standard deviation of the log density by the fit, on average over the posterior.
    noise : float
        Standard deviation of the log density about the fit: the roughness of the forward map.
    """

    mean: FloatArray
    sd: FloatArray
    shift: FloatArray
    sd_ratio: FloatArray
    shift_error: FloatArray
    sd_ratio_error: FloatArray
    khat: float
    efficiency: float
    uncertainty: float
    noise: float

    @classmethod
    def of(
        cls,
        X: FloatArray,
        lp: FloatArray,
        bounds: Bounds,
        rng: np.random.Generator,
        others: tuple[FloatArray, FloatArray] | None = None,
    ) -> "Regression | None":
        """Fit to draws `X`, shape (n, p), with log densities `lp`, shape (n,).

        Parameters
        ----------
        X : ndarray of shape (n, p)
        lp : ndarray of shape (n,)
            Log density of the parameters, NaN where it is not known.
        bounds : Bounds
            Those of the parameters: the fit is made where there are none.
        rng : numpy.random.Generator
        others : tuple of ndarray, optional
            Points that are no draws, shape (m, p), with their log densities, shape (m,).

        Returns
        -------
        Regression or None
            None where there are too few different draws for a fit.
        """
        if not (X.std(0) > 0).all() or not np.isfinite(X).all():
            return None
        complete = Redundancy.of(X)
        kept = complete.kept
        bounds, p = bounds[kept], len(kept)
        Y, lp = bounds.coordinates(X[:, kept]), lp + bounds.log_jacobian(X[:, kept])
        center, scale = Y.mean(0), Y.std(0)
        values, vectors = np.linalg.eigh(np.corrcoef(Y.T).reshape(p, p))
        root = scale[:, None] * vectors * np.sqrt(np.maximum(values, 1e-10))
        if others is not None:
            inside = bounds.contain(others[0][:, kept])
            points, values = others[0][inside][:, kept], others[1][inside]
            Y = np.concatenate([Y, bounds.coordinates(points)])
            lp = np.concatenate([lp, values + bounds.log_jacobian(points)])
        x = np.linalg.solve(root, (Y - center).T).T
        _, different = np.unique(x.round(10), axis=0, return_index=True)
        different = different[np.isfinite(lp[different])]
        x, lp = x[different], lp[different]
        if others is not None and len(lp):  # most of them may be of no use
            high = lp > np.quantile(lp, 0.99) - 50 - 10 * p
            x, lp = x[high], lp[high]
        level, result = lp, None
        for most in (max(TRAINING_DRAWS, 3 * basis_size("quadratic", p)), ENOUGH_DRAWS):
            some = rng.permutation(len(x))[:most]
            with threadpool_limits(1, "blas"):
                fit = _fit(x[some], lp[some], level[some], rng)
                if fit is None:
                    return None
                process, points, weights = fit
                w = np.exp(weights.log_weights)
                w /= w.sum()
                moved = complete(bounds.parameters(center + points @ root.T))
                mean = w @ moved
                sd = np.sqrt(w @ (moved - mean) ** 2)
                errors = _errors_of_moments(process, points, moved, w, rng)
                level = process.evaluate(x)[0][:, 0]
                residual = ((lp - level) / np.sqrt(_relative_noise(level, p)))[some]
                result = cls(
                    mean,
                    sd,
                    (X.mean(0) - mean) / sd,
                    X.std(0) / sd,
                    *errors,
                    weights.khat,
                    weights.efficiency,
                    float(w @ process.sd(points)[:, 0]),
                    min(float(process.noise[0]), _nugget(x[some], residual, rng)),
                )
            if result.largest_error < VAGUE and result.noise < NOISY:
                break
        return result

    @property
    def largest_error(self) -> float:
        """Standard error of the moment that is known worst."""
        return float(max(self.shift_error.max(), self.sd_ratio_error.max()))

    @property
    def reliable(self) -> bool:
        """Whether the fit says anything about the posterior where the draws are."""
        sampled = self.efficiency > 0.3 or (self.khat < 0.95 and self.efficiency > 0.02)
        return sampled and self.uncertainty < 0.6


def _fit(
    x: FloatArray, lp: FloatArray, level: FloatArray, rng: np.random.Generator
) -> tuple[GaussianProcess, FloatArray, Weights] | None:
    """Process for values `lp` at points, and a weighted sample of the density that it stands for.

    The lower the `level`, shape (n,), which is the values themselves or a smooth fit to them, the
    less they count: far down, a density need not be known well.
    """
    p = x.shape[1]
    relative = _relative_noise(level, p)
    used = relative < np.inf
    if used.sum() < max(1.5 * basis_size("quadratic", p), 20):
        return None
    process = GaussianProcess.fit(
        x[used], lp[used, None], "quadratic", rng, relative_noise=relative[used]
    )
    return process, *_adaptive_sample(process, x[used], rng)


def _relative_noise(level: FloatArray, p: int) -> FloatArray:
    """How much less values count, as a variance, the lower they are."""
    fall = np.maximum((np.quantile(level, 0.99) if len(level) else 0.0) - level, 0.0)
    return np.where(fall < 50 + 10 * p, 1 + (fall / (2 * p + 4)) ** 4, np.inf)


def _errors_of_moments(
    process: GaussianProcess,
    points: FloatArray,
    parameters: FloatArray,
    weights: FloatArray,
    rng: np.random.Generator,
) -> tuple[FloatArray, FloatArray]:
    """Standard errors of means, in standard deviations, and relative ones of these.

    Moments differ between the functions that a process leaves open.
    """
    chosen = rng.choice(len(points), SAMPLE, p=weights)
    points, moved = points[chosen], parameters[chosen]
    drawn = process.draw(FUNCTIONS, rng)
    together = Function(drawn.kernel[:, :, 0].T, drawn.basis[:, :, 0].T)
    difference = process.evaluate(points, together)[0] - process.evaluate(points)[0]
    w = np.exp(difference - difference.max(0))
    w /= w.sum(0)
    z = (moved - moved.mean(0)) / np.maximum(moved.std(0), 1e-300)
    means = w.T @ z
    sds = np.sqrt(np.maximum(w.T @ z**2 - means**2, 1e-300))
    low, high = np.quantile([means, np.log(sds)], [0.16, 0.84], axis=1)
    return tuple((high - low) / 2)


def _nugget(x: FloatArray, residual: FloatArray, rng: np.random.Generator) -> float:
    """Scatter of residuals between close neighbors: it vanishes if a fit was merely too stiff."""
    tree = cKDTree(x)
    nearest = np.quantile(tree.query(x, k=2)[0][:, 1], 0.25)
    near = tree.query_ball_point(x, max(CLOSE, nearest))
    pairs = [(i, some[rng.integers(len(some))]) for i, some in enumerate(near)]
    first, second = np.array([(i, j) for i, j in pairs if i != j] or [(0, 0)]).T
    difference = residual[first] - residual[second]
    return float(np.sqrt(0.5 * np.median(difference**2) / 0.455))  # of a squared normal variable


def _adaptive_sample(
    process: GaussianProcess, x: FloatArray, rng: np.random.Generator
) -> tuple[FloatArray, Weights]:
    """Points and their weights: a Student-t law that is fitted to the process round by round.

    The process is believed in the neighborhood of the draws `x` only, shape (n, p).
    """
    n, p = PROPOSALS, x.shape[1]
    tree = cKDTree(x)
    horizon = HORIZON * np.quantile(tree.query(x, k=2)[0][:, 1], 0.98)

    def weighted(points: FloatArray, log_proposal: FloatArray) -> Weights:
        known = np.isfinite(tree.query(points, distance_upper_bound=horizon)[0])
        value = process.evaluate(points)[0][:, 0]
        return Weights.of(points, np.where(known, value, -np.inf) - log_proposal)

    nu, inflation = max(5, p), 1.2 if p < 6 else 1.05
    mean, covariance = np.zeros(p), np.eye(p)
    for _ in range(ROUNDS):
        root, mean_of_law = np.linalg.cholesky(covariance) * inflation, mean
        tail = np.sqrt(rng.chisquare(nu, n) / nu)[:, None]
        points = mean + (rng.standard_normal((n, p)) / tail) @ root.T
        weights = weighted(points, _log_t(points, mean, root, nu))
        w = np.exp(weights.log_weights)
        w = np.minimum(w / w.sum(), 10 / n)
        w /= w.sum()
        mean = w @ points
        covariance = ((points - mean).T * w) @ (points - mean) + 1e-6 * np.eye(p)
    if p > MOST_FOR_KERNELS or weights.efficiency > 0.5:
        return points, weights
    # a shape that no ellipse fits: kernels around what was found, beside the law itself
    narrow = np.linalg.cholesky(covariance) * N_KERNELS ** (-1 / (p + 4))
    wide, log_norm = points, np.log(np.diag(narrow)).sum() + 0.5 * p * np.log(2 * np.pi)
    for _ in range(KERNEL_ROUNDS):
        kernels = points[rng.choice(n, N_KERNELS, p=w)]
        around = kernels[rng.integers(N_KERNELS, size=n)] + rng.standard_normal((n, p)) @ narrow.T
        points = np.where((rng.random(n) < 0.3)[:, None], wide, around)
        distances = cdist(
            *(np.linalg.solve(narrow, z.T).T for z in (points, kernels)), "sqeuclidean"
        )
        log_kernels = logsumexp(-0.5 * distances, axis=1) - np.log(N_KERNELS) - log_norm
        log_law = _log_t(points, mean_of_law, root, nu)
        log_proposal = np.logaddexp(np.log(0.7) + log_kernels, np.log(0.3) + log_law)
        weights = weighted(points, log_proposal)
        w = np.exp(weights.log_weights)
        w /= w.sum()
    return points, weights


def _log_t(points: FloatArray, mean: FloatArray, root: FloatArray, nu: float) -> FloatArray:
    """Log density of a multivariate Student-t law."""
    p = len(mean)
    e = np.linalg.solve(root, (points - mean).T)
    log_density = -0.5 * (nu + p) * np.log1p((e**2).sum(0) / nu) - np.log(np.diag(root)).sum()
    return log_density + gammaln((nu + p) / 2) - gammaln(nu / 2) - 0.5 * p * np.log(nu * np.pi)


def without_draws(
    draws: FloatArray, lp_of_draws: FloatArray, X: FloatArray, lp: FloatArray
) -> NDArray[np.int64]:
    """Likely points that are far from all draws, the most likely first, unless they are very few.

    Draws that are much less likely than a Gaussian law has them do not follow the posterior
    themselves, so that there is no telling: none are found then.

    Parameters
    ----------
    draws : ndarray of shape (C, S, J, p)
    lp_of_draws : ndarray of shape (C, S, J)
        Their log densities.
    X : ndarray of shape (m, p)
        Points that were evaluated.
    lp : ndarray of shape (m,)
        Their log densities.

    Returns
    -------
    ndarray of int
        Numbers of the points.
    """
    told = lp_of_draws[np.isfinite(lp_of_draws)]
    if not len(told):
        return np.empty(0, dtype=int)
    lowest, usual = np.quantile(told, [0.01, 0.5])
    expected = 0.5 * np.subtract(*chi2.ppf([0.99, 0.5], draws.shape[-1]))
    if usual - lowest > 2 * expected:
        return np.empty(0, dtype=int)
    likely = _thinned(np.flatnonzero(lp > max(lowest, usual - DEEP)))
    scale = np.maximum(draws.std((0, 1, 2)), 1e-300)
    alone = _different(_far_apart(draws)) / scale
    horizon = 2 * np.quantile(cKDTree(alone).query(alone, k=2)[0][:, 1], 0.99)
    tree = cKDTree(_different(draws) / scale)
    far = tree.query(X[likely] / scale)[0] > max(horizon, 1.0)
    _, different = np.unique(X[likely[far]], axis=0, return_index=True)
    found = likely[far][different]
    return found[np.argsort(-lp[found])] if len(found) >= FEWEST_VISITS else found[:0]


def _far_apart(draws: FloatArray) -> FloatArray:
    """Sweeps, of shape (C, S, J, p), so far apart that particles have forgotten where they were."""
    C, S, J, _ = draws.shape
    ess = np.nan_to_num(path_ess(np.moveaxis(draws, (3, 0, 2, 1), (0, 1, 2, 3))), nan=1.0)
    return draws[:, :: int(np.ceil(C * S * J / max(ess.min(), FEWEST_APART)))]


def _different(draws: FloatArray) -> FloatArray:
    """Draws of shape (C, S, J, p) as rows; those of a Metropolis test are repeated."""
    return _thinned(np.unique(draws.reshape(-1, draws.shape[-1]), axis=0))


def _thinned(rows: NDArray[Any]) -> NDArray[Any]:
    """Some of the rows, evenly, if there are too many to be compared with one another."""
    return rows[:: max(1, -(-len(rows) // MOST_COMPARED))]


def logarithmic(X: FloatArray, log_q: FloatArray) -> NDArray[np.bool_]:
    """Which parameters the sampler sees as logarithms, told by the law that it believes in.

    That law is Gaussian in the coordinates of the sampler, so its log density is quadratic there.

    Parameters
    ----------
    X : ndarray of shape (n, p)
    log_q : ndarray of shape (n,)

    Returns
    -------
    ndarray of bool, shape (p,)
    """
    positive = (X > 0).all(0)
    chosen = positive.copy()
    usable = np.flatnonzero(np.isfinite(log_q))
    p = X.shape[1]
    n_features = (p + 1) * (p + 2) // 2
    if not positive.any() or len(usable) < 1.2 * n_features:
        return chosen
    usable = usable[:: max(1, len(usable) // max(500, 3 * n_features))]
    X, log_q = X[usable], log_q[usable]

    def misfit(logs: NDArray[np.bool_]) -> float:
        Y = np.where(logs, np.log(np.where(logs, X, 1.0)), X)
        H = basis_values((Y - Y.mean(0)) / np.maximum(Y.std(0), 1e-300), "quadratic")
        coefficients = np.linalg.lstsq(H, log_q, rcond=None)[0]
        return float(((log_q - H @ coefficients) ** 2).mean())

    best = misfit(chosen)
    for k in np.flatnonzero(positive)[:20]:
        flipped = chosen.copy()
        flipped[k] = False
        if (value := misfit(flipped)) < 0.9 * best:
            chosen, best = flipped, value
    return chosen


def independent_blocks(blocks: list[FloatArray], most_columns: int) -> list[bool]:
    """Which variables are no simple functions of those before them.

    Sums and products of two others are recognized, and of any power of positive ones, exactly; free
    variables never are, and come first in a result.

    Parameters
    ----------
    blocks : list of ndarray of shape (n, p_k)
        Draws of every variable.
    most_columns : int
        Variables with more columns are not looked at.

    Returns
    -------
    list of bool
    """
    kept = [True] * len(blocks)
    _, different = np.unique(np.concatenate(blocks, axis=1), axis=0, return_index=True)
    different = different[:: max(1, len(different) // TRAINING_DRAWS)]
    rows = [block[different] for block in blocks]
    small = [k for k, block in enumerate(blocks) if block.shape[1] <= most_columns]
    for k in small[1:]:
        before = [rows[j] for j in small if kept[j] and j < k]
        Y = np.concatenate(before, axis=1)
        logs = np.log(Y[:, (Y > 0).all(0)])
        if len(Y) < 2 * (basis_size("quadratic", Y.shape[1]) + logs.shape[1]):
            continue
        H = basis_values((Y - Y.mean(0)) / np.maximum(Y.std(0), 1e-300), "quadratic")
        H = np.concatenate([H, logs - logs.mean(0)], axis=1)
        scales = [rows[k], np.log(rows[k])] if (rows[k] > 0).all() else [rows[k]]
        kept[k] = not any(_is_combination(values - values.mean(0), H) for values in scales)
    return kept


def _is_combination(values: FloatArray, H: FloatArray) -> bool:
    """Whether all columns of values are linear combinations of those of H, up to rounding."""
    left = values - H @ np.linalg.lstsq(H, values, rcond=None)[0]
    return bool(((left**2).sum(0) <= EXACTLY * (values**2).sum(0)).all())


def needed_blocks(blocks: list[FloatArray], log_q: FloatArray, most_columns: int) -> list[bool]:
    """Which variables are coordinates of the sampler, and not functions of the others.

    Parameters
    ----------
    blocks : list of ndarray of shape (n, p_k)
        Draws of every variable.
    log_q : ndarray of shape (n,)
        Log density of the law that the sampler believes in: without one of its coordinates it
        cannot be told.
    most_columns : int
        Variables with more columns are taken for functions of the others.

    Returns
    -------
    list of bool
    """
    kept = [block.shape[1] <= most_columns for block in blocks]
    if not any(kept):
        return [True] * len(blocks)
    usable = np.flatnonzero(np.isfinite(log_q))
    logs = [bool((block > 0).all()) for block in blocks]
    positive = np.flatnonzero(logs)

    def misfit(kept: list[bool], logs: list[bool], of: FloatArray = log_q[:, None]) -> float:
        chosen = [k for k in range(len(blocks)) if kept[k]]
        p = sum(blocks[k].shape[1] for k in chosen)
        n_features = (p + 1) * (p + 2) // 2
        rows = usable[:: max(1, len(usable) // max(600, 2 * n_features))]
        if len(rows) < 1.2 * n_features:
            return np.nan
        columns = [np.log(blocks[k][rows]) if logs[k] else blocks[k][rows] for k in chosen]
        Y = np.concatenate(columns, axis=1)
        Y = (Y - Y.mean(0)) / np.maximum(Y.std(0), 1e-300)
        H = basis_values(Y, "quadratic")
        values = of[rows]
        residual = values - H @ np.linalg.lstsq(H, values, rcond=None)[0]
        lost = 1 - n_features / len(rows)
        return float(((residual**2).mean(0) / np.maximum(values.var(0), 1e-300)).mean() / lost)

    def on_best_scales(kept: list[bool], enough: float) -> tuple[float, list[bool]]:
        """Least misfit, or the first that is enough, with variables as they are or logarithms."""
        best, chosen = misfit(kept, logs), logs
        for k in positive:
            if not kept[k] or not best > enough:
                continue
            flipped = [*chosen[:k], not chosen[k], *chosen[k + 1 :]]
            if (value := misfit(kept, flipped)) < 0.9 * best:
                best, chosen = value, flipped
        return best, chosen

    best, logs = on_best_scales(kept, NO_MISFIT)
    if best > LARGEST_MISFIT:  # the laws of the run have nothing in common
        return kept
    for k in range(len(blocks) - 1, -1, -1):
        if not kept[k] or sum(kept) == 1:
            continue
        fewer = [*kept[:k], False, *kept[k + 1 :]]
        # each of p coordinates has about one p-th of the variance that is explained
        p = sum(block.shape[1] for block, needed in zip(blocks, kept, strict=True) if needed)
        share = (1 - best) * blocks[k].shape[1] / p
        enough = max(best + 0.2 * min(best, share), NO_MISFIT)
        value, scales = on_best_scales(fewer, enough)
        if value > NO_MISFIT:  # so a function of the others must be told by itself, on some scale
            scaled = [blocks[k], np.log(blocks[k])] if k in positive else [blocks[k]]
            if min(misfit(fewer, scales, of) for of in scaled) > LARGEST_REST:
                continue
        if value <= enough if np.isfinite(best) else np.isfinite(value):
            kept, best, logs = fewer, value, scales
    return kept
