"""Problems of the comparison: gallery models, with the posteriors that samplers should find."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial

import numpy as np
import xarray as xr

from pymc_ensemble import gallery
from pymc_ensemble.benchmark.metrics import Array, Labels
from pymc_ensemble.gallery import GalleryModel

Start = Callable[[int, np.random.Generator], Array]
"""Makes a first ensemble of shape (J, d), in unconstrained coordinates."""


@dataclass(frozen=True)
class Problem:
    """A model, and the posterior that a sampler should find.

    Parameters
    ----------
    name : str
        Name in tables and on the command line.
    model : callable
        Makes the model, with a black box as forward map.
    native : callable, optional
        Makes the same model in PyTensor, with gradients.
    target : callable, optional
        Makes the model whose posterior the sampler should find, by default `model`. For rough
        forward maps it is the smooth model behind them. Exact samplers cannot find its posterior.
    rough : bool, default False
        Whether the forward map has fluctuations that a sampler should average out.
    modes : callable, optional
        Takes draws (n, d) and returns the number of the mode of each.
    start : callable, optional
        Where ensembles start, by default in the prior.
    share : float, default 1
        Part of the budget that samplers spend. It is below 1 if evaluations are expensive.
    only : tuple of str, optional
        Samplers to compare, by default all. Systems with many time steps cost too much for chains
        that evaluate one point at a time.
    """

    name: str
    model: Callable[[], GalleryModel]
    native: Callable[[], GalleryModel] | None = None
    target: Callable[[], GalleryModel] | None = None
    rough: bool = False
    modes: Labels | None = None
    start: Start | None = None
    share: float = 1.0
    only: tuple[str, ...] = ()

    @cached_property
    def _target(self) -> GalleryModel:
        return (self.target or self.model)()

    @cached_property
    def coordinates(self) -> list[str]:
        """Names of the unconstrained variables, in which errors are measured."""
        return [variable.name for variable in self._target.value_vars]

    @cached_property
    def moments(self) -> tuple[Array, Array]:
        """Exact means and standard deviations, each of shape (d,)."""
        mean, sd = (
            flattened(self._target.reference.sel(statistic=statistic), self.coordinates, ())
            for statistic in ("mean", "sd")
        )
        return mean, sd

    @cached_property
    def reference_draws(self) -> Array:
        """Draws of the exact posterior, shape (n, d)."""
        return flattened(self._target.reference_draws, self.coordinates, ("draw",))

    def draws(self, posterior: xr.Dataset) -> Array:
        """Unconstrained coordinates of the draws of `pymc.sample`, shape (n, d).

        Raises
        ------
        NotImplementedError
            If a variable has a transform other than the logarithm.
        """
        logs = {}
        for name in self.coordinates:
            if name not in posterior:
                variable, transform, _ = name.rsplit("_", 3)[0], *name.rsplit("_", 3)[1:3]
                if transform != "log":
                    raise NotImplementedError(f"{name} has a transform that is not a logarithm.")
                logs[name] = np.log(posterior[variable])
        return flattened(posterior.assign(logs), self.coordinates, ("chain", "draw"))


def flattened(values: xr.Dataset, names: list[str], dims: tuple[str, ...]) -> Array:
    """Stack the variables: (n, d) for n entries along `dims`, (d,) without `dims`."""
    n = int(np.prod([values.sizes[dim] for dim in dims])) if dims else 1
    columns = [
        values[name].transpose(*dims, ...).values.reshape(n, -1).astype(float) for name in names
    ]
    stacked = np.concatenate(columns, axis=1)
    return stacked if dims else stacked[0]


def _square(low: float, high: float) -> Start:
    return lambda size, rng: rng.uniform(low, high, (size, 2))


def _lorenz63_start(size: int, rng: np.random.Generator) -> Array:
    return np.log(rng.uniform([27.0, 2.25], [29.0, 3.5], (size, 2)))


def _quadrants(u: Array) -> np.ndarray:
    return 2 * (u[:, 0] > 0) + (u[:, 1] > 0)


def _sides(u: Array) -> np.ndarray:
    return (u[:, 0] > u[:, 1]).astype(int)


def _both(name: str, maker: Callable[..., GalleryModel], **options: object) -> Problem:
    """A problem of the gallery as it is, with its native version."""
    return Problem(name, partial(maker, **options), partial(maker, native=True, **options))


_wide = partial(gallery.linear_multiscale, prior_variance=1.0)

PROBLEMS = {
    problem.name: problem
    for problem in (
        _both("linear 10-d", gallery.linear_gaussian, d=10),
        _both("linear 20-d", gallery.linear_gaussian, d=20),
        _both("decay", gallery.decay, noise_sd=0.3),
        _both("Poisson", gallery.poisson_regression),
        _both("nonlinear 5-d", gallery.smooth_nonlinear),
        _both("Darcy 16-d", gallery.darcy),
        _both("lynx and hare", gallery.lynx_hare),
        _both("influenza", gallery.influenza),
        Problem("bimodal", gallery.bimodal, partial(gallery.bimodal, native=True), modes=_sides),
        Problem(
            "four smooth modes",
            partial(gallery.four_modes, rough=False),
            partial(gallery.four_modes, rough=False, native=True),
            modes=_quadrants,
            start=_square(-2.0, 2.0),
        ),
        Problem(
            "four modes",
            gallery.four_modes,
            partial(gallery.four_modes, native=True),
            target=partial(gallery.four_modes, rough=False),
            rough=True,
            modes=_quadrants,
            start=_square(-2.0, 2.0),
        ),
        Problem(
            "rough linear",
            gallery.linear_multiscale,
            partial(gallery.linear_multiscale, native=True),
            target=partial(gallery.linear_multiscale, rough=False),
            rough=True,
            start=_square(0.0, 1.0),
        ),
        Problem(
            "rough linear, wide prior",
            _wide,
            partial(_wide, native=True),
            target=partial(_wide, rough=False),
            rough=True,
            start=_square(0.0, 1.0),
        ),
        Problem(
            "Lorenz 63",
            gallery.lorenz63,
            rough=True,
            start=_lorenz63_start,
            only=("EKS", "EKS unadjusted", "EKS paper", "EGPS", "EGPS epochs", "EGPS potential"),
        ),
        Problem("Lorenz 96", gallery.lorenz96, rough=True, share=0.1, only=("EKS", "EGPS")),
    )
}
"""The problems by their names."""


@cache
def find(name: str) -> Problem:
    """Problem of that name. Linear problems have any dimension, as in ``linear 50-d``."""
    if name in PROBLEMS:
        return PROBLEMS[name]
    if (linear := re.fullmatch(r"linear (\d+)-d", name)) is None:
        raise KeyError(f"There is no problem {name!r}. There are {', '.join(PROBLEMS)}.")
    return _both(name, gallery.linear_gaussian, d=int(linear[1]))
