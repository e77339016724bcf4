"""Posteriors of problems with many parameters, by Hamiltonian Monte Carlo with exact gradients."""

from collections.abc import Callable

import numpy as np

from pymc_ensemble.gallery.model import DRAWS_SEED, N_DRAWS, Array, Reference
from pymc_ensemble.samplers.informed.law import InformedLaw

CHAINS, BURN_IN, DRAWS = 20, 150, 400
LEAPS = 6  # of a trajectory, about a quarter of a period of the law


def hamiltonian_reference(
    potential: Callable[[Array], tuple[Array, Array]],
    information: Callable[[Array], Array],
    d: int,
    source: str,
) -> Reference:
    """Posterior of u under the prior N(0, 1), by 20 chains of Hamiltonian Monte Carlo.

    Parameters
    ----------
    potential : callable
        Negative log likelihood (n,) and its gradient (n, d) at points (n, d).
    information : callable
        Factor F (K, d) of the information ``F^T F`` at one point (d,).
    d : int
        Number of parameters.
    source : str
        How the posterior is known: the words that follow "Hamiltonian Monte Carlo".

    Returns
    -------
    Reference
        Posterior of the variable ``u``. The errors of its moments come from the differences between
        chains.
    """

    @np.errstate(over="ignore", invalid="ignore")
    def whole(x: Array) -> tuple[Array, Array]:
        value, gradient = potential(x)
        return value + 0.5 * (x**2).sum(1), gradient + x

    law = mode_of(whole, information, d)
    shrink = 1 - 1 / np.sqrt(1 + law.information)

    def root(xi: Array) -> Array:
        return xi - (xi @ law.directions.T) * shrink @ law.directions

    rng = np.random.default_rng(DRAWS_SEED)
    xi, step = rng.standard_normal((CHAINS, d)), 1.2 / d**0.25
    value, slope = whole(law.center + root(xi))
    kept = []
    for n in range(BURN_IN + DRAWS):
        momentum = rng.standard_normal((CHAINS, d))
        h = step * rng.uniform(0.7, 1.3)
        new, p, g = xi, momentum - 0.5 * h * root(slope), slope
        for leap in range(LEAPS):
            new = new + h * p
            v, g = whole(law.center + root(new))
            p = p - h * root(g) * (0.5 if leap == LEAPS - 1 else 1.0)
        with np.errstate(over="ignore", invalid="ignore"):
            ratio = value - v + 0.5 * (momentum**2).sum(1) - 0.5 * (p**2).sum(1)
        accepted = np.log(rng.random(CHAINS)) < np.nan_to_num(ratio, nan=-np.inf)
        xi = np.where(accepted[:, None], new, xi)
        value, slope = np.where(accepted, v, value), np.where(accepted[:, None], g, slope)
        if n < BURN_IN:
            step *= np.exp(0.3 * (accepted.mean() - 0.8))
        else:
            kept.append(law.center + root(xi))
    draws = np.stack(kept)  # (draws, chains, d)
    mean, sd = draws.mean((0, 1)), draws.std((0, 1))
    moments = {
        "mean": mean,
        "sd": sd,
        "mcse_mean": draws.mean(0).std(0, ddof=1) / np.sqrt(CHAINS),
        "mcse_sd": ((draws - mean) ** 2).mean(0).std(0, ddof=1) / (2 * sd * np.sqrt(CHAINS)),
    }
    every = draws[:: DRAWS * CHAINS // N_DRAWS].reshape(-1, d)
    return Reference(
        {"u": moments}, {"u": rng.permutation(every)}, f"Hamiltonian Monte Carlo {source}"
    )


def mode_of(
    whole: Callable[[Array], tuple[Array, Array]], information: Callable[[Array], Array], d: int
) -> InformedLaw:
    """Gaussian law at the mode, by Gauss-Newton steps with a search for their damping."""
    x, damping = np.zeros(d), 1.0
    [value], [gradient] = whole(x[None])
    factor = information(x)
    for _ in range(200):
        step = InformedLaw(x, factor).newton_step(gradient, damping)
        [new], [slope] = whole((x + step)[None])
        if not new < value:
            damping *= 5
            if damping > 1e12:
                break
            continue
        gain, x, value, gradient, damping = value - new, x + step, new, slope, damping / 5
        factor = information(x)
        if gain < 1e-9:
            break
    return InformedLaw(x, factor)
