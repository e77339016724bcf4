"""Groundwater flow through an unknown medium: a partial differential equation as forward map."""

from functools import cache

import numpy as np
import pymc as pm
from scipy.linalg import solveh_banded

from pymc_ensemble.forward import forward_model
from pymc_ensemble.gallery.model import Array, GalleryModel, stored_reference

CELLS = 32
"""Cells per side of the unit square."""

OBSERVED = np.array([3, 6, 9, 12, 15, 17, 20, 23, 26, 29])
"""Node indices at which the temperature is observed, in both directions."""


@cache
def _log_conductivity_basis() -> Array:
    """Karhunen-Loeve modes sqrt(lambda_k) phi_k at the nodes, shape (16, 33, 33)."""
    modes = sorted(
        ((i, j) for i in range(4) for j in range(4)), key=lambda k: (k[0] ** 2 + k[1] ** 2, k)
    )
    nodes = np.arange(CELLS + 1) / CELLS
    cosines = np.array([np.cos(np.pi * i * nodes) * (np.sqrt(2) if i else 1) for i in range(4)])
    return np.array(
        [np.outer(cosines[i], cosines[j]) / (np.pi**2 * (i**2 + j**2) + 9) for i, j in modes]
    )


def log_conductivity(u: Array) -> Array:
    """Log conductivity at the nodes, ``sum_k u_k sqrt(lambda_k) phi_k``.

    Parameters
    ----------
    u : ndarray, shape (..., 16)
        Coefficients.

    Returns
    -------
    ndarray, shape (..., 33, 33)
    """
    return np.tensordot(u, _log_conductivity_basis(), axes=1)


def temperatures(u: Array) -> Array:
    """Solve -div(a grad T) = 50 on the unit square with T = 0 on its boundary.

    Five-point flux scheme on 32 x 32 cells, with the `log_conductivity` log a.

    Parameters
    ----------
    u : ndarray, shape (16,)
        Coefficients of the log conductivity.

    Returns
    -------
    ndarray, shape (100,)
        T at the observed nodes, the index along x varying slowest.
    """
    a = np.exp(log_conductivity(u))
    # Conductivities of the faces between neighboring nodes, in each direction.
    ax = (a[1:, 1:-1] + a[:-1, 1:-1]) / 2
    ay = (a[1:-1, 1:] + a[1:-1, :-1]) / 2
    inner = CELLS - 1
    # The symmetric matrix by its lower diagonals: rows 0, 1 and `inner` hold all that is not zero.
    bands = np.zeros((inner + 1, inner, inner))
    bands[0] = ax[1:] + ax[:-1] + ay[:, 1:] + ay[:, :-1]
    bands[1, :, :-1] = -ay[:, 1:-1]
    bands[inner, :-1] = -ax[1:-1]
    T = solveh_banded(
        bands.reshape(inner + 1, -1),
        np.full(inner**2, 50 / CELLS**2),
        lower=True,
        overwrite_ab=True,
        overwrite_b=True,
    ).reshape(inner, inner)
    return T[np.ix_(OBSERVED - 1, OBSERVED - 1)].ravel()


def darcy() -> GalleryModel:
    """Log conductivity of a plate from a hundred temperatures: 16 parameters, an elliptic PDE.

    The prior is a Gaussian field cut off after 16 Karhunen-Loeve modes; the noise has standard
    deviation 0.01. One evaluation takes about a millisecond.

    Returns
    -------
    GalleryModel
        Parameters ``u`` of shape (16,), data ``y`` of shape (100,).

    References
    ----------
    .. [1] A. Garbuno-Inigo, F. Hoffmann, W. Li and A. M. Stuart, "Interacting Langevin diffusions:
       gradient structure and ensemble Kalman sampler", SIAM J. Appl. Dyn. Syst. 19, 2020,
       doi:10.1137/19M1251655

    Examples
    --------
    >>> from pymc_ensemble import gallery
    >>> gallery.darcy().reference["u"].sel(statistic="mean").values[:3].round(1)
    array([ 0.4, -0.6,  2.6])
    """
    noise_sd = 0.01
    rng = np.random.default_rng(77)
    truth = rng.standard_normal(16)
    y = temperatures(truth) + noise_sd * rng.standard_normal(100)

    forward = forward_model(temperatures, output_shape=(100,))
    with GalleryModel(
        "An inverse problem of textbook type: many data, a prior that decides what they do not, "
        "and a nearly Gaussian posterior that the ensemble Kalman sampler finds in few solves.",
        forward=forward,
        reference=lambda: stored_reference("darcy"),
        truth={"u": truth},
        coords={"mode": range(16), "sensor": range(100)},
    ) as model:
        u = pm.Normal("u", 0.0, 1.0, dims="mode")
        pm.Normal("y", forward(u), noise_sd, observed=y, dims="sensor")
    return model
