"""Smooth regression problems with five parameters."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt

from pymc_ensemble.forward import forward_model
from pymc_ensemble.gallery.model import (
    DRAWS_SEED,
    N_DRAWS,
    Array,
    GalleryModel,
    Reference,
    resample,
    stored_reference,
)
from pymc_ensemble.samplers.options import require_flags


def poisson_regression(native: bool = False) -> GalleryModel:
    """Sixty counts with a log-linear rate: linear forward map, non-Gaussian likelihood.

    The forward map is the linear predictor. So all that is nonlinear is in the likelihood, and the
    samplers know the curvature of the likelihood.

    Parameters
    ----------
    native : bool, default False
        Whether the map is part of the model's graph, with gradients, so that NUTS can be used.
        Otherwise it is a black box.

    Returns
    -------
    GalleryModel
        Parameters ``beta`` of shape (5,), the intercept first; data ``y`` of shape (60,).

    Examples
    --------
    >>> from pymc_ensemble import gallery
    >>> gallery.poisson_regression().reference["beta"].sel(statistic="mean").values.round(2)
    array([ 0.39,  0.26, -0.51,  0.49,  0.25])
    """
    require_flags(native=native)
    rng = np.random.default_rng(5)
    X = np.column_stack([np.ones(60), rng.standard_normal((60, 4))])
    truth = np.array([0.5, 0.4, -0.5, 0.3, 0.2])
    y = rng.poisson(np.exp(X @ truth))

    def predictor(beta: Array) -> Array:
        return X @ beta

    forward = None if native else forward_model(predictor, output_shape=(60,))
    with GalleryModel(
        "Counts instead of Gaussian noise: keep what is nonlinear in the likelihood, and the "
        "ensemble Kalman sampler has no error but Monte Carlo error.",
        forward=forward,
        reference=lambda: stored_reference("poisson_regression"),
        truth={"beta": truth},
        coords={"predictor": range(5), "count": range(60)},
    ) as model:
        beta = pm.Normal("beta", 0.0, 1.0, dims="predictor")
        eta = (forward or predictor)(beta)
        pm.Poisson("y", mu=pm.math.exp(eta), observed=y, dims="count")
    return model


def smooth_nonlinear(native: bool = False) -> GalleryModel:
    """Five parameters and six outputs, which are a little nonlinear in each direction.

    G(u) = (u_1, u_2 - 0.6 u_1^2, u_3, u_4 exp(0.3 u_3), u_5 + 0.4 u_1 u_3, u_1 + ... + u_5) with
    noise standard deviations (0.9, 0.25, 0.3, 0.3, 0.3, 0.5) and prior N(0, I).

    Parameters
    ----------
    native : bool, default False
        Whether the map is part of the model's graph, with gradients, so that NUTS can be used.
        Otherwise it is a black box.

    Returns
    -------
    GalleryModel
        Parameters ``u`` of shape (5,), data ``y`` of shape (6,).

    Examples
    --------
    >>> from pymc_ensemble import gallery
    >>> gallery.smooth_nonlinear().reference["u"].sel(statistic="sd").values.round(2)
    array([0.41, 0.29, 0.29, 0.33, 0.28])
    """
    require_flags(native=native)
    noise_sd = np.array([0.9, 0.25, 0.3, 0.3, 0.3, 0.5])
    y = np.array([0.2, -0.481308, -0.574508, 0.728629, -0.219186, 0.932912])

    def outputs(u: Array) -> Array:
        u1, u2, u3, u4, u5 = (u[k] for k in range(5))
        stack = np.stack if isinstance(u, np.ndarray) else pt.stack
        return stack(
            [u1, u2 - 0.6 * u1**2, u3, u4 * np.exp(0.3 * u3), u5 + 0.4 * u1 * u3, u.sum(0)]
        )

    def reference() -> Reference:
        # Given u_1 and u_3, the outputs are linear in the other parameters v. So v is integrated in
        # closed form, and the two on a grid.
        axis = np.linspace(-6.0, 6.0, 481)
        u1, u3 = (x.ravel() for x in np.meshgrid(axis, axis, indexing="ij"))
        zero = np.zeros_like(u1)
        offsets = outputs(np.array([u1, zero, u3, zero, zero])).T
        A = np.zeros((u1.size, 6, 3))
        A[:, 1, 0] = A[:, 4, 2] = 1
        A[:, 3, 1] = np.exp(0.3 * u3)
        A[:, 5, :] = 1
        A /= noise_sd[:, None]
        misfit = (y - offsets) / noise_sd
        covariance = np.linalg.inv(np.eye(3) + np.swapaxes(A, 1, 2) @ A)
        score = np.einsum("nkv,nk->nv", A, misfit)
        mean = np.einsum("nvw,nw->nv", covariance, score)
        log_weights = ((mean * score).sum(1) - (misfit**2).sum(1) - u1**2 - u3**2) / 2
        weights = np.exp(log_weights) * np.sqrt(np.linalg.det(covariance))
        weights /= weights.sum()
        points = np.column_stack([u1, mean[:, 0], u3, mean[:, 1:]])
        spread = np.diagonal(covariance, axis1=1, axis2=2)
        spread = np.column_stack([zero, spread[:, 0], zero, spread[:, 1:]])
        center = weights @ points
        sd = np.sqrt(weights @ ((points - center) ** 2 + spread))

        random = np.random.default_rng(DRAWS_SEED)
        nodes = resample(weights, random)
        L = np.linalg.cholesky(covariance[nodes])
        draws = points[nodes]
        draws[:, [0, 2]] += (axis[1] - axis[0]) * random.uniform(-0.5, 0.5, (N_DRAWS, 2))
        draws[:, [1, 3, 4]] += np.einsum("nvw,nw->nv", L, random.standard_normal((N_DRAWS, 3)))
        return Reference({"u": {"mean": center, "sd": sd}}, {"u": draws}, "quadrature")

    forward = None if native else forward_model(outputs, output_shape=(6,))
    with GalleryModel(
        "A little curved in every direction: a surrogate or adjusting pays, and both can be "
        "checked.",
        forward=forward,
        reference=reference,
        coords={"component": range(5), "output": range(6)},
    ) as model:
        u = pm.Normal("u", 0.0, 1.0, dims="component")
        pm.Normal("y", (forward or outputs)(u), noise_sd, observed=y, dims="output")
    return model
