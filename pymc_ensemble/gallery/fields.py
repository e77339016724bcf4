"""Problems of hundreds of parameters: fields, and counts in space."""

from typing import Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt

from pymc_ensemble.forward import forward_model
from pymc_ensemble.gallery.hamiltonian import hamiltonian_reference
from pymc_ensemble.gallery.model import DRAWS_SEED, N_DRAWS, Array, GalleryModel, Reference
from pymc_ensemble.samplers.options import require_counts, require_flags


def deconvolution(d: int = 100, native: bool = False) -> GalleryModel:
    """A field on a circle from blurred values: a linear map with a posterior in closed form.

    Every third value is observed through a blur of width 0.03, with noise of standard deviation
    0.05. The prior is Gaussian, with an exponential covariance of length 0.1.

    Parameters
    ----------
    d : int, default 100
        Number of parameters, at least 10.
    native : bool, default False
        Whether the map is written in PyTensor, with a gradient, instead of a black box.

    Returns
    -------
    GalleryModel
        Parameters ``u`` of shape (d,), data ``y`` of shape (ceil(d / 3),).

    Raises
    ------
    ValueError
        If `d` is below 10.

    Examples
    --------
    >>> from pymc_ensemble import gallery
    >>> gallery.deconvolution().reference["u"].sel(statistic="sd").values.max().round(1)
    np.float64(0.3)
    """
    require_flags(native=native)
    require_counts(10, d=d)
    grid = np.arange(d) / d
    apart = np.abs(grid[:, None] - grid)
    apart = np.minimum(apart, 1 - apart)
    covariance = np.exp(-apart / 0.1)
    blur = np.exp(-0.5 * (apart[::3] / 0.03) ** 2)
    A, noise_sd = blur / blur.sum(1, keepdims=True), 0.05
    rng = np.random.default_rng(31)
    truth = np.linalg.cholesky(covariance) @ rng.standard_normal(d)
    y = A @ truth + noise_sd * rng.standard_normal(len(A))

    def blurred(u: Array) -> Array:
        return u @ A.T

    def reference() -> Reference:
        gain = np.linalg.solve(A @ covariance @ A.T + noise_sd**2 * np.eye(len(A)), A @ covariance)
        mean, posterior = gain.T @ y, covariance - covariance @ A.T @ gain
        draws = np.random.default_rng(DRAWS_SEED).multivariate_normal(mean, posterior, N_DRAWS)
        moments = {"u": {"mean": mean, "sd": np.sqrt(np.diag(posterior))}}
        return Reference(moments, {"u": draws}, "closed form")

    forward = None if native else forward_model(blurred, output_shape=(len(A),), vectorized=True)
    with GalleryModel(
        "A field about which the prior says as much as the data: an ensemble smaller than the "
        "field cannot hold its covariance.",
        forward=forward,
        reference=reference,
        truth={"u": truth},
        coords={"place": grid, "sensor": grid[::3]},
    ) as model:
        u = pm.MvNormal("u", np.zeros(d), covariance, dims="place")
        outputs = pt.dot(A, u) if forward is None else forward(u)
        pm.Normal("y", outputs, noise_sd, observed=y, dims="sensor")
    return model


def cox_process(d: int = 256, native: bool = False) -> GalleryModel:
    """Counts in 64 cells of a line, with a log intensity that is a Gaussian field.

    Parameters
    ----------
    d : int, default 256
        Number of Karhunen-Loeve modes of the field, at least 10.
    native : bool, default False
        Whether the map is written in PyTensor, with a gradient, instead of a black box.

    Returns
    -------
    GalleryModel
        Parameters ``u`` of shape (d,), data ``counts`` of shape (64,). The reference takes some
        seconds to compute.

    Raises
    ------
    ValueError
        If `d` is below 10.

    References
    ----------
    .. [1] J. Møller, A. R. Syversveen and R. P. Waagepetersen, "Log Gaussian Cox processes",
       Scand. J. Stat. 25, 1998, doi:10.1111/1467-9469.00115

    Examples
    --------
    >>> from pymc_ensemble import gallery
    >>> model = gallery.cox_process()
    >>> int(model.rvs_to_values[model["counts"]].data.sum())
    139
    """
    require_flags(native=native)
    require_counts(10, d=d)
    cells, modes = (np.arange(64) + 0.5) / 64, np.arange(d)
    B = np.sqrt(2) * np.cos(np.pi * np.outer(cells, modes)) / (1 + (modes / 3) ** 1.5)
    rng = np.random.default_rng(41)
    truth = rng.standard_normal(d)
    counts = rng.poisson(np.exp(2 + B @ truth))

    def log_intensity(u: Array) -> Array:
        return 2 + u @ B.T

    def potential(u: Array) -> tuple[Array, Array]:
        z = log_intensity(u)
        return (np.exp(z) - counts * z).sum(1), (np.exp(z) - counts) @ B

    def information(u: Array) -> Array:
        factor: Array = np.exp(log_intensity(u) / 2)[:, None] * B
        return factor

    forward = None if native else forward_model(log_intensity, output_shape=(64,), vectorized=True)
    with GalleryModel(
        "Counts in space: the forward map is linear, but the likelihood is not Gaussian.",
        forward=forward,
        reference=lambda: hamiltonian_reference(potential, information, d, "on the intensity"),
        truth={"u": truth},
        coords={"mode": range(d), "cell": cells},
    ) as model:
        u = pm.Normal("u", 0.0, 1.0, dims="mode")
        z: Any = 2 + pt.dot(B, u) if forward is None else forward(u)
        pm.Poisson("counts", pm.math.exp(z), observed=counts, dims="cell")
    return model


def line_flow(d: int = 100, native: bool = False) -> GalleryModel:
    """Pressures along a line whose log conductivity is a Gaussian field: far from linear.

    The pressure is the integral of the inverse of the conductivity, from one end. It is observed at
    24 places. The noise has a standard deviation of 5% of the largest value.

    Parameters
    ----------
    d : int, default 100
        Number of Karhunen-Loeve modes of the field, at least 10.
    native : bool, default False
        Whether the map is written in PyTensor, with a gradient, instead of a black box.

    Returns
    -------
    GalleryModel
        Parameters ``u`` of shape (d,), data ``y`` of shape (24,). The reference takes some
        seconds to compute.

    Raises
    ------
    ValueError
        If `d` is below 10.

    Examples
    --------
    >>> from pymc_ensemble import gallery
    >>> gallery.line_flow().truth["u"].shape
    (100,)
    """
    require_flags(native=native)
    require_counts(10, d=d)
    n, modes = 256, np.arange(d)
    x = (np.arange(n) + 0.5) / n
    B = np.sqrt(2) * np.cos(np.pi * np.outer(modes, x)) / (1 + (modes / 3) ** 1.5)[:, None]
    B[0] /= np.sqrt(2)
    seen = np.linspace(n // 24 - 1, n - 1, 24).astype(int)
    T = np.tril(np.ones((n, n)))[seen] / n

    def pressure(u: Array) -> Array:
        return np.exp(-u @ B) @ T.T

    rng = np.random.default_rng(51)
    truth = rng.standard_normal(d)
    noise_sd = float(0.05 * pressure(truth).max())
    y = pressure(truth) + noise_sd * rng.standard_normal(24)

    def potential(u: Array) -> tuple[Array, Array]:
        resistance = np.exp(-np.clip(u @ B, -50, 50))
        misfit = (resistance @ T.T - y) / noise_sd
        return 0.5 * (misfit**2).sum(1), -((misfit @ T) * resistance) @ B.T / noise_sd

    def information(u: Array) -> Array:
        factor: Array = -(T * np.exp(-u @ B)) @ B.T / noise_sd
        return factor

    forward = None if native else forward_model(pressure, output_shape=(24,), vectorized=True)
    with GalleryModel(
        "A field behind an exponential: the posterior is far from Gaussian, and a sampler that has "
        "fitted a Gaussian law has to say so.",
        forward=forward,
        reference=lambda: hamiltonian_reference(potential, information, d, "on the pressures"),
        truth={"u": truth},
        coords={"mode": range(d), "sensor": x[seen]},
    ) as model:
        u = pm.Normal("u", 0.0, 1.0, dims="mode")
        outputs = pt.dot(T, pt.exp(-pt.dot(u, B))) if forward is None else forward(u)
        pm.Normal("y", outputs, noise_sd, observed=y, dims="sensor")
    return model
