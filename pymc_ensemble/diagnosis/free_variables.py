"""Which variables of a result are free."""

import numpy as np
from numpy.typing import NDArray

from pymc_ensemble.samplers.gaussian_process.basis import basis_size, basis_values

from .regression import TRAINING_DRAWS

FloatArray = NDArray[np.float64]

LARGEST_REST = 0.05  # share of the variance of a function of others that a fit may leave
NO_MISFIT = 1e-4  # share of the variance of log_q that may be due to rounding
LARGEST_MISFIT = 0.3  # share of the variance of log_q with which coordinates can still be told
EXACTLY = 1e-12  # the same of one that is a polynomial


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
