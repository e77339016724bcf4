"""Posteriors with several modes, which no Gaussian approximation can follow."""

from collections.abc import Callable

import numpy as np
import pymc as pm

from pymc_ensemble.forward import forward_model
from pymc_ensemble.gallery.model import Array, GalleryModel, Reference, quadrature
from pymc_ensemble.samplers.options import require_flags


def _posterior(potential: Callable[[Array], Array], half_width: float, n: int) -> Reference:
    axis = np.linspace(-half_width, half_width, n)
    mean, sd, draws = quadrature(potential, axis, axis)
    return Reference({"u": {"mean": mean, "sd": sd}}, {"u": draws}, "quadrature")


def bimodal(native: bool = False) -> GalleryModel:
    """Two ridges: only the squared difference of two parameters is observed.

    G(u) = (u_1 - u_2)^2 with y = 2, unit noise and prior N(0, I). The modes lie at
    ``|u_1 - u_2| = 1.3229``. By symmetry, each side has half of the mass.

    Parameters
    ----------
    native : bool, default False
        Whether the map is part of the model's graph, with gradients, so that NUTS can be used.
        Otherwise it is a black box.

    Returns
    -------
    GalleryModel
        Parameters ``u`` of shape (2,), data ``y`` of shape (1,).

    Examples
    --------
    >>> from pymc_ensemble import gallery
    >>> gallery.bimodal().reference["u"].sel(statistic="sd").values.round(4)
    array([0.9305, 0.9305])
    """
    require_flags(native=native)
    y = 2.0

    def outputs(u: Array) -> Array:
        return (u[..., :1] - u[..., 1:]) ** 2

    def potential(u: Array) -> Array:
        return ((outputs(u) - y) ** 2).sum(-1) / 2 + (u**2).sum(-1) / 2

    forward = None if native else forward_model(outputs, output_shape=(1,))
    with GalleryModel(
        "Two equal ridges: without adjusting, the ensemble Kalman sampler fits one Gaussian over "
        "both and must fail.",
        forward=forward,
        reference=lambda: _posterior(potential, half_width=7.0, n=1001),
        coords={"component": range(2)},
    ) as model:
        u = pm.Normal("u", 0.0, 1.0, dims="component")
        pm.Normal("y", (forward or outputs)(u), 1.0, observed=[y])
    return model


def four_modes(rough: bool = True, native: bool = False) -> GalleryModel:
    """Four equal modes, with a fast oscillation on top.

    G(u) = (u_1^2 - 1)^2 + (u_2^2 - 1)^2 + 0.1 (sin(20 pi u_1) + sin(20 pi u_2)) with y = 0, noise
    variance 0.05 and prior N(0, 0.1 I). Without the oscillation the modes are at
    (+-0.7766, +-0.7766), not at +-1. Each quadrant has a quarter of the mass. The paper draws its
    first ensembles uniformly from the square [-2, 2]^2.

    Parameters
    ----------
    rough : bool, default True
        Whether the map has the oscillation. The reference is always the posterior of the model as
        it stands. A sampler that averages the oscillation out should find the reference of
        ``rough=False``.
    native : bool, default False
        Whether the map is part of the model's graph, with gradients, so that NUTS can be used.
        Otherwise it is a black box.

    Returns
    -------
    GalleryModel
        Parameters ``u`` of shape (2,), data ``y`` of shape (1,).

    References
    ----------
    .. [1] O. R. A. Dunbar, A. B. Duncan, A. M. Stuart and M.-T. Wolfram, "Ensemble inference
       methods for models with noisy and expensive likelihoods", section 6.3,
       SIAM J. Appl. Dyn. Syst. 21, 2022, doi:10.1137/21M1410853

    Examples
    --------
    >>> from pymc_ensemble import gallery
    >>> gallery.four_modes(rough=False).reference["u"].sel(statistic="sd").values.round(4)
    array([0.8016, 0.8016])
    """
    require_flags(rough=rough, native=native)
    noise_variance, prior_variance = 0.05, 0.1

    def outputs(u: Array) -> Array:
        wells = (u**2 - 1) ** 2 + rough * 0.1 * np.sin(2 * np.pi * u / 0.1)
        return wells.sum(-1, keepdims=True)

    def potential(u: Array) -> Array:
        misfit = (outputs(u) ** 2).sum(-1)
        return misfit / (2 * noise_variance) + (u**2).sum(-1) / (2 * prior_variance)

    forward = None if native else forward_model(outputs, output_shape=(1,))
    with GalleryModel(
        "Four equal modes behind high barriers: a sampler that finds all four in the right "
        "proportion makes global moves.",
        forward=forward,
        reference=lambda: _posterior(potential, half_width=2.2, n=1101),
        coords={"component": range(2)},
    ) as model:
        u = pm.Normal("u", 0.0, np.sqrt(prior_variance), dims="component")
        pm.Normal("y", (forward or outputs)(u), np.sqrt(noise_variance), observed=[0.0])
    return model
