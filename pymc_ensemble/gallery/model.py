"""The model of every gallery problem: it knows its forward map and its posterior."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files

import numpy as np
import pymc as pm
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from pymc_ensemble.forward import ForwardModel

Array = NDArray[np.float64]
Moments = Mapping[str, Mapping[str, ArrayLike]]
"""``{variable: {"mean": ..., "sd": ..., "mcse_mean": ..., "mcse_sd": ...}}``; no mcse: exact."""

Draws = Mapping[str, ArrayLike]
"""``{variable: array of shape (N_DRAWS, ...)}``."""

STATISTICS = ("mean", "sd", "mcse_mean", "mcse_sd")

N_DRAWS = 2000
"""Number of draws that a reference holds."""

DRAWS_SEED = 2000


@dataclass(frozen=True)
class Reference:
    """A known posterior."""

    moments: Moments
    draws: Draws
    source: str  # how it is known


class GalleryModel(pm.Model):
    """A `pymc.Model` with a counted forward map and a posterior that is known.

    Parameters
    ----------
    description : str
        What the problem teaches, in one sentence.
    forward : ForwardModel, optional
        The black box. It is None if the whole model is written in PyTensor.
    reference : callable
        Returns the posterior, a `Reference`. It is called on the first use.
    truth : mapping, optional
        The parameters behind the data, if the data are synthetic.
    coords : mapping, optional
        Coordinates as in `pymc.Model`.
    cheap : ForwardModel, optional
        A cheaper and less accurate black box with the same outputs.

    Examples
    --------
    >>> import numpy as np
    >>> from pymc_ensemble import gallery
    >>> model = gallery.decay()
    >>> model.forward(np.array([0.3, -0.2])).shape
    (12,)
    >>> model.reference["log_rate"].sel(statistic="mean").round(2).item()
    -0.21
    """

    def __init__(
        self,
        description: str,
        *,
        forward: ForwardModel | None = None,
        reference: Callable[[], Reference],
        truth: Mapping[str, ArrayLike] | None = None,
        coords: Mapping[str, Sequence | NDArray | range] | None = None,
        cheap: ForwardModel | None = None,
    ):
        super().__init__(coords=coords)
        self.description = description
        self.forward = forward
        self.cheap = cheap
        self.truth = truth
        self._find_reference = reference

    @cached_property
    def _reference(self) -> Reference:
        return self._find_reference()

    @cached_property
    def reference(self) -> xr.Dataset:
        """Moments of the model's exact posterior.

        Returns
        -------
        xarray.Dataset
            Each parameter with the dimension ``statistic``: ``mean``, ``sd`` and their Monte Carlo
            standard errors ``mcse_mean`` and ``mcse_sd``. These are zero if the posterior is known
            in closed form or by quadrature. The attribute ``source`` says how it is known.
        """
        values = {
            name: np.array([moments.get(k, np.zeros_like(moments["mean"])) for k in STATISTICS])
            for name, moments in self._reference.moments.items()
        }
        return self._dataset("statistic", list(STATISTICS), values)

    @cached_property
    def reference_draws(self) -> xr.Dataset:
        """Nearly independent draws of the model's exact posterior, to compare samples with.

        Every process gets the same draws.

        Returns
        -------
        xarray.Dataset
            The variables of `reference`, each with the dimension ``draw``: 2000 draws of equal
            weight. The attribute ``source`` says how the posterior is known.

        Examples
        --------
        >>> from pymc_ensemble import gallery
        >>> dict(gallery.decay().reference_draws.sizes)
        {'draw': 2000}
        """
        values = {name: np.asarray(draws) for name, draws in self._reference.draws.items()}
        return self._dataset("draw", range(N_DRAWS), values)

    def _dataset(self, dim: str, labels: Sequence, values: Mapping[str, Array]) -> xr.Dataset:
        """Label arrays whose first dimension is `dim`."""
        variables = {name: ((dim, *self._dims(name)), array) for name, array in values.items()}
        used = {dim for dims, _ in variables.values() for dim in dims}
        coords = {dim: labels} | {
            name: list(labels)
            for name, labels in self.coords.items()
            if labels is not None and name in used
        }
        return xr.Dataset(variables, coords=coords, attrs={"source": self._reference.source})

    def _dims(self, name: str) -> tuple[str, ...]:
        """Dimensions of a variable, or of the variable behind an unconstrained coordinate."""
        values_to_names = {value.name: rv.name for rv, value in self.rvs_to_values.items()}
        return tuple(self.named_vars_to_dims.get(values_to_names.get(name, name), ()))


def stored_reference(problem: str) -> Reference:
    """Read a posterior that took long to compute from the package's data.

    ``benchmarks/gallery_references.py`` computes and stores these posteriors. The stored draws are
    half-precision numbers, in standard deviations from the mean.
    """
    folder = files(__package__).joinpath("data")
    entry = json.loads(folder.joinpath("references.json").read_text(encoding="utf-8"))[problem]
    moments = entry["moments"]
    with folder.joinpath(f"{problem}.npz").open("rb") as file, np.load(file) as scores:
        draws = {
            name: np.asarray(of["mean"]) + np.asarray(of["sd"]) * scores[name].astype(float)
            for name, of in moments.items()
        }
    return Reference(moments, draws, entry["source"])


def gaussian_posterior(
    A: Array, y: Array, noise_sd: float, prior_variance: float = 1.0
) -> Reference:
    """Posterior of u for y = A u + noise under the prior N(0, s^2 I)."""
    precision = A.T @ A / noise_sd**2 + np.eye(A.shape[1]) / prior_variance
    mean = np.linalg.solve(precision, A.T @ y / noise_sd**2)
    covariance = np.linalg.inv(precision)
    rng = np.random.default_rng(DRAWS_SEED)
    draws = rng.multivariate_normal(mean, covariance, N_DRAWS, method="cholesky")
    moments = {"u": {"mean": mean, "sd": np.sqrt(np.diag(covariance))}}
    return Reference(moments, {"u": draws}, "closed form")


def resample(weights: Array, rng: np.random.Generator, n: int = N_DRAWS) -> NDArray[np.intp]:
    """Indices of `n` draws of equal weight, by systematic resampling, in random order."""
    positions = (rng.random() + np.arange(n)) / n
    cumulative = np.cumsum(weights)
    indices = np.searchsorted(cumulative, positions * cumulative[-1], side="right")
    return rng.permutation(np.minimum(indices, len(weights) - 1))


def quadrature(potential: Callable[[Array], Array], *axes: Array) -> tuple[Array, Array, Array]:
    """Integrate exp(-potential) by the trapezoidal rule on a grid.

    Parameters
    ----------
    potential : callable
        Takes points of shape (..., d) and returns their potentials, shape (...).
    *axes : ndarray of shape (n,)
        Equidistant nodes of each coordinate. They reach so far that the density vanishes at the
        ends.

    Returns
    -------
    mean, sd, draws : ndarray, shapes (d,), (d,) and (N_DRAWS, d)
        The draws are uniform within the cells of the grid.
    """
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
    values = potential(points)
    weights = np.exp(values.min() - values)
    weights /= weights.sum()
    mean = weights @ points
    sd = np.sqrt(weights @ (points - mean) ** 2)
    rng = np.random.default_rng(DRAWS_SEED)
    cell = np.array([axis[1] - axis[0] for axis in axes])
    draws = points[resample(weights, rng)] + cell * rng.uniform(-0.5, 0.5, (N_DRAWS, len(axes)))
    return mean, sd, draws
