"""Coverage of the credible regions of an estimate."""

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pymc_ensemble.diagnosis.simulation import Simulation, fitted_levels, rank
from pymc_ensemble.diagnosis.uniformity import Coverage, judged

from .estimate import Drawn
from .generating import Generator
from .learned import Learned
from .simulations import checked, simulated

FloatArray = NDArray[np.float64]

AT_ONCE = 50  # number of data sets that are sampled together, in about 100 MB


def test(
    learned: Learned,
    generator: Generator,
    simulations: int | xr.Dataset,
    draws: int,
    rng: np.random.Generator,
    probability: float,
) -> Coverage:
    """Compare parameters of simulations with draws given their data.

    Parameters
    ----------
    learned : Learned
    generator : Generator
        Generator of the model for the simulations.
    simulations : int or Dataset
    draws : int
        Number of draws for each data set.
    rng : numpy.random.Generator
    probability : float
        Probability of the confidence bands.
    """
    if isinstance(simulations, xr.Dataset):
        made = checked(simulations, generator)
    else:
        made = simulated(generator, simulations, rng)
    failed = np.asarray(made["failed"]) if "failed" in made else np.zeros(made.sizes["simulation"])
    numbers = np.flatnonzero(~failed.astype(bool))
    if len(numbers) < 2:
        raise ValueError(
            f"`simulations` holds {len(numbers)} that have not failed. A test needs at least 2, "
            "and says little with fewer than 100. Make more with pymc_ensemble.simulations."
        )
    U = made["unconstrained"].transpose("simulation", ...).to_numpy()[numbers]
    data = {
        name: made[name].transpose("simulation", ...).to_numpy()[numbers].astype(float)
        for name in generator.observed
    }
    X = learned.scaling(data)
    levels = learned.estimate.log_density(U[:, None], X)[:, 0]
    done: dict[int, Simulation] = {}
    for first in range(0, len(numbers), AT_ONCE):
        rows = slice(first, first + AT_ONCE)
        drawn = _drawn(learned, X[rows], min(AT_ONCE, len(X)), draws, rng)
        truths = generator.named(U[rows])
        each = generator.named(np.concatenate([one.U[0] for one in drawn]))
        for k, (one, level) in enumerate(zip(drawn, levels[rows], strict=True)):
            part = slice(k * draws, (k + 1) * draws)
            ranks = {
                name: (
                    [f"{name}_dim_{axis}" for axis in range(truths[name].ndim - 1)],
                    rank(np.moveaxis(values[part], 0, -1), truths[name][k], rng=rng),
                )
                for name, values in each.items()
            }
            lp, by_lp = one.lp[0], learned.estimate.has_density
            if not by_lp:
                lp, level = fitted_levels(one.U[0], U[first + k])
            done[int(numbers[first + k])] = Simulation(
                xr.Dataset(ranks),
                1 - float(rank(lp, np.asarray(level), rng=rng)),
                by_lp,
                draws,
                0,
            )
    reasons = {int(k): "the simulation failed" for k in np.flatnonzero(failed)}
    return judged(done, len(failed), reasons, probability)


def _drawn(
    learned: Learned,
    X: FloatArray,
    size: int,
    draws: int,
    rng: np.random.Generator,
) -> list[Drawn]:
    """Draws given each row of data, padded to `size` rows: a new size would need a compilation."""
    filled = X[np.arange(size) % len(X)]
    return learned.estimate.draw(filled, draws, 1, rng, strict=False)[: len(X)]
