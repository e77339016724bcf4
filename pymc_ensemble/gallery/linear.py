"""Linear forward maps, smooth and with a fast oscillation on top."""

import numpy as np
import pymc as pm
from numpy.typing import ArrayLike

from pymc_ensemble.forward import forward_model
from pymc_ensemble.gallery.model import (
    DRAWS_SEED,
    Array,
    GalleryModel,
    Reference,
    gaussian_posterior,
    resample,
)
from pymc_ensemble.samplers.options import require_counts, require_flags, require_positive

MOST_PARAMETERS = 10_000  # the matrix of the map then takes 1.6 GB


def linear_gaussian(d: int = 10, native: bool = False) -> GalleryModel:
    """Linear map with Gaussian noise and prior: the posterior is known in closed form.

    The data are 2 d outputs with unit noise. The squared singular values of the map run from 1 to
    100, so that the precision of the posterior has a condition number of 50.5.

    Parameters
    ----------
    d : int, default 10
        Number of parameters.
    native : bool, default False
        Whether the map is part of the model's graph, with gradients, so that NUTS can be used.
        Otherwise it is a black box.

    Returns
    -------
    GalleryModel
        Parameters ``u`` of shape (d,), data ``y`` of shape (2 d,).

    Raises
    ------
    ValueError
        If `d` is not an integer from 1 to 10 000.

    Examples
    --------
    >>> from pymc_ensemble import gallery
    >>> gallery.linear_gaussian(10).reference["u"].sel(statistic="mean").values[:3].round(4)
    array([-0.435 ,  0.0441,  1.8471])
    """
    require_flags(native=native)
    require_counts(1, d=d)
    if d is None or d > MOST_PARAMETERS:
        raise ValueError(f"d must be an integer from 1 to {MOST_PARAMETERS}, not {d!r}.")
    rng = np.random.default_rng(1000)
    Q, _ = np.linalg.qr(rng.standard_normal((2 * d, d)))
    W, _ = np.linalg.qr(rng.standard_normal((d, d)))
    A = Q * np.sqrt(np.logspace(0, 2, d)) @ W.T
    truth = rng.standard_normal(d)
    y = A @ truth + rng.standard_normal(2 * d)

    def outputs(u: Array) -> Array:
        return A @ u

    forward = None if native else forward_model(outputs, output_shape=(2 * d,))
    with GalleryModel(
        "Linear and Gaussian: the ensemble Kalman sampler has no bias here, so any error is Monte "
        "Carlo error or a mistake.",
        forward=forward,
        reference=lambda: gaussian_posterior(A, y, noise_sd=1.0),
        truth={"u": truth},
        coords={"component": range(d), "output": range(2 * d)},
    ) as model:
        u = pm.Normal("u", 0.0, 1.0, dims="component")
        pm.Normal("y", (forward or outputs)(u), 1.0, observed=y, dims="output")
    return model


def linear_multiscale(
    prior_variance: float = 0.05,
    rough: bool = True,
    data: ArrayLike = (1.028114, 1.970460),
    native: bool = False,
) -> GalleryModel:
    """Linear map with a fast oscillation: G(u) = A u + sin(2 pi u / 0.1), A = diag(-1, 2).

    The noise has variance 0.05. The data come from u = (-1, 1); ``data=(1, 2)`` has no noise. The
    paper draws its first ensembles uniformly from the unit square.

    Parameters
    ----------
    prior_variance : float, default 0.05
        The prior is N(0, prior_variance I). The figures of the paper have 1.
    rough : bool, default True
        Whether the map has the oscillation. The reference is always the posterior of the model as
        it stands. A sampler that averages the oscillation out should find the reference of
        ``rough=False``.
    data : array_like, shape (2,)
        The observation.
    native : bool, default False
        Whether the map is part of the model's graph, with gradients, so that NUTS can be used.
        Otherwise it is a black box.

    Returns
    -------
    GalleryModel
        Parameters ``u`` of shape (2,), data ``y`` of shape (2,).

    Raises
    ------
    ValueError
        If `prior_variance` is not positive, or `data` are not two finite numbers.

    References
    ----------
    .. [1] O. R. A. Dunbar, A. B. Duncan, A. M. Stuart and M.-T. Wolfram, "Ensemble inference
       methods for models with noisy and expensive likelihoods", section 6.1,
       SIAM J. Appl. Dyn. Syst. 21, 2022, doi:10.1137/21M1410853

    Examples
    --------
    >>> from pymc_ensemble import gallery
    >>> smooth = gallery.linear_multiscale(rough=False, data=(1, 2))
    >>> smooth.reference["u"].sel(statistic="mean").values
    array([-0.5,  0.8])
    """
    require_flags(rough=rough, native=native)
    require_positive(prior_variance=prior_variance)
    try:
        y = np.asarray(data, dtype=float)
    except (TypeError, ValueError):
        y = np.empty(0)
    if prior_variance is None or y.shape != (2,) or not np.isfinite(y).all():
        raise ValueError(
            "linear_multiscale needs a positive prior_variance and two finite data, not "
            f"prior_variance={prior_variance!r} and data={data!r}."
        )
    slopes, period, noise_variance = np.array([-1.0, 2.0]), 0.1, 0.05

    def outputs(u: Array) -> Array:
        return slopes * u + float(rough) * np.sin(2 * np.pi * u / period)

    def potential(u: Array) -> Array:
        # Coordinate by coordinate: nothing couples the two.
        return (outputs(u) - y) ** 2 / (2 * noise_variance) + u**2 / (2 * prior_variance)

    def reference() -> Reference:
        if not rough:
            return gaussian_posterior(np.diag(slopes), y, np.sqrt(noise_variance), prior_variance)
        axis = np.linspace(-6, 6, 24_001)
        weights = np.exp(-potential(axis[:, None]))
        weights /= weights.sum(0)
        mean = axis @ weights
        sd = np.sqrt((weights * (axis[:, None] - mean) ** 2).sum(0))
        rng = np.random.default_rng(DRAWS_SEED)
        draws = np.stack([axis[resample(w, rng)] for w in weights.T], axis=1)
        draws += (axis[1] - axis[0]) * rng.uniform(-0.5, 0.5, draws.shape)
        return Reference({"u": {"mean": mean, "sd": sd}}, {"u": draws}, "quadrature")

    forward = None if native else forward_model(outputs, output_shape=(2,))
    with GalleryModel(
        "A smooth trend under a fast oscillation: gradients at single points are useless, but "
        "differences across an ensemble see the trend.",
        forward=forward,
        reference=reference,
        truth={"u": [-1.0, 1.0]},
        coords={"component": range(2)},
    ) as model:
        u = pm.Normal("u", 0.0, np.sqrt(prior_variance), dims="component")
        pm.Normal(
            "y", (forward or outputs)(u), np.sqrt(noise_variance), observed=y, dims="component"
        )
    return model
