"""What every problem of the gallery is: a model that knows its forward map and its posterior."""

import json
from collections.abc import Callable, Mapping, Sequence
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

Reference = tuple[Moments, str]
"""Moments of a posterior, and how they were found."""

STATISTICS = ("mean", "sd", "mcse_mean", "mcse_sd")


class GalleryModel(pm.Model):
    """A `pymc.Model` with a counted forward map and a posterior that is known.

    Parameters
    ----------
    description : str
        What the problem teaches, one sentence.
    forward : ForwardModel, optional
        The black box; None for a model that is written in PyTensor throughout.
    reference : callable
        Returns the posterior's moments and how they were found; called when first asked for.
    truth : mapping, optional
        The parameters behind the data, where the data are synthetic.
    coords : mapping, optional
        Coordinates as in `pymc.Model`.
    """

    def __init__(
        self,
        description: str,
        *,
        forward: ForwardModel | None = None,
        reference: Callable[[], Reference],
        truth: Mapping[str, ArrayLike] | None = None,
        coords: Mapping[str, Sequence | NDArray | range] | None = None,
    ):
        super().__init__(coords=coords)
        self.description = description
        self.forward = forward
        self.truth = truth
        self._reference = reference

    @cached_property
    def reference(self) -> xr.Dataset:
        """Moments of the model's exact posterior.

        Returns
        -------
        xarray.Dataset
            Each parameter with the dimension ``statistic``: ``mean``, ``sd`` and their Monte Carlo
            standard errors ``mcse_mean`` and ``mcse_sd``, which are zero where the posterior is
            known in closed form or by quadrature. The attribute ``source`` says how it is known.
        """
        all_moments, source = self._reference()
        variables = {}
        for name, moments in all_moments.items():
            values = np.array([moments.get(k, np.zeros_like(moments["mean"])) for k in STATISTICS])
            variables[name] = (("statistic", *self._dims(name)), values)
        coords = {"statistic": list(STATISTICS)} | {
            dim: list(values) for dim, values in self.coords.items() if values is not None
        }
        used = {dim for dims, _ in variables.values() for dim in dims}
        return xr.Dataset(
            variables,
            coords={dim: values for dim, values in coords.items() if dim in used},
            attrs={"source": source},
        )

    def _dims(self, name: str) -> tuple[str, ...]:
        """Dimensions of a variable, or of the variable behind an unconstrained coordinate."""
        values_to_names = {value.name: rv.name for rv, value in self.rvs_to_values.items()}
        return tuple(self.named_vars_to_dims.get(values_to_names.get(name, name), ()))


def stored_reference(problem: str) -> Reference:
    """Read moments that took long to compute from the package's data.

    ``benchmarks/gallery_references.py`` computes and stores them.
    """
    stored = files(__package__).joinpath("data", "references.json")
    entry = json.loads(stored.read_text(encoding="utf-8"))[problem]
    return entry["moments"], entry["source"]


def gaussian_posterior(
    A: Array, y: Array, noise_sd: float, prior_variance: float = 1.0
) -> tuple[Array, Array]:
    """Posterior mean (d,) and covariance (d, d) of y = A u + noise under the prior N(0, s^2 I)."""
    precision = A.T @ A / noise_sd**2 + np.eye(A.shape[1]) / prior_variance
    return np.linalg.solve(precision, A.T @ y / noise_sd**2), np.linalg.inv(precision)


def quadrature(potential: Callable[[Array], Array], *axes: Array) -> tuple[Array, Array]:
    """Mean (d,) and covariance (d, d) of exp(-potential) by the trapezoidal rule on a grid.

    Parameters
    ----------
    potential : callable
        Takes points of shape (..., d) and returns their potentials.
    *axes : ndarray
        Equidistant nodes of each coordinate, wide enough that the density vanishes at the ends.
    """
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
    values = potential(points)
    weights = np.exp(values.min() - values)
    weights /= weights.sum()
    mean = weights @ points
    anomalies = points - mean
    return mean, (anomalies.T * weights) @ anomalies
