"""Exponential decay with two parameters."""

import numpy as np
import pymc as pm

from pymc_ensemble.forward import forward_model
from pymc_ensemble.gallery.model import Array, GalleryModel, Reference, quadrature
from pymc_ensemble.samplers.options import require_flags, require_not_negative

DATA = {
    0.05: [
        1.152259, 0.857051, 0.682911, 0.495785, 0.342909, 0.296697,
        0.275178, 0.205603, 0.084077, 0.026611, 0.036576, 0.053118,
    ],
    0.3: [
        1.183692, 0.824025, 0.843017, 0.522010, 0.208992, 0.387095,
        0.601178, 0.442373, -0.091857, -0.289744, -0.119243, 0.063449,
    ],
}  # fmt: skip


def decay(noise_sd: float = 0.05, roughness: float = 0.0, native: bool = False) -> GalleryModel:
    """Exponential decay, amplitude times exp(-rate t), observed at twelve times with known noise.

    With little noise the posterior is nearly Gaussian. With much noise it is curved, and the
    ensemble Kalman sampler has a bias that only ``adjust=True`` removes.

    Parameters
    ----------
    noise_sd : {0.05, 0.3}, default 0.05
        Standard deviation of the noise. Each value has its own data.
    roughness : float, default 0
        Amplitude of plane waves that are added to the outputs, in units of `noise_sd`. They have
        random directions and periods of about 0.02. A sampler that averages them out should find
        the reference of ``roughness=0``. The posterior of the rough map itself has no reference, as
        it is too ragged for quadrature.
    native : bool, default False
        Whether the map is part of the model's graph, with gradients, so that NUTS can be used.
        Otherwise it is a black box.

    Returns
    -------
    GalleryModel
        Parameters ``log_amplitude`` and ``log_rate``, data ``y`` of shape (12,).

    Raises
    ------
    ValueError
        If there are no data for `noise_sd`. Also when the reference of a rough map is read.

    Examples
    --------
    >>> from pymc_ensemble import gallery
    >>> gallery.decay().reference["log_rate"].values[:2].round(4)
    array([-0.2086,  0.0585])
    """
    require_flags(native=native)
    require_not_negative(roughness=roughness)
    if noise_sd not in list(DATA):
        raise ValueError(
            f"decay has data for `noise_sd` 0.05 and 0.3, not for {noise_sd}. Take one of these."
        )
    times = np.linspace(0.2, 4, 12)
    y = np.array(DATA[noise_sd])
    rng = np.random.default_rng(3)
    phases = 2 * np.pi * rng.random(12)
    directions = rng.standard_normal((12, 2))

    def smooth(u: Array) -> Array:
        return np.exp(u[..., :1] - np.exp(u[..., 1:]) * times)

    def outputs(u: Array) -> Array:
        waves = np.sin(2 * np.pi * u @ directions.T / 0.02 + phases)
        return smooth(u) + roughness * noise_sd * waves

    def potential(u: Array) -> Array:
        misfit = (smooth(u) - y) / noise_sd
        return (misfit**2).sum(-1) / 2 + (u**2).sum(-1) / 2

    def reference() -> Reference:
        if roughness:
            raise ValueError(
                "The posterior of the rough decay is not known. Compare with the smooth one: "
                f"decay(noise_sd={noise_sd}).reference."
            )
        mean, sd, draws = quadrature(
            potential, np.linspace(-1.5, 2.5, 1001), np.linspace(-4.0, 3.0, 1401)
        )
        names = ("log_amplitude", "log_rate")
        moments = {name: {"mean": mean[k], "sd": sd[k]} for k, name in enumerate(names)}
        return Reference(moments, dict(zip(names, draws.T, strict=True)), "quadrature")

    solve = outputs if roughness else smooth
    forward = None if native else forward_model(solve, output_shape=(12,))
    with GalleryModel(
        "A smooth nonlinear map with a curved posterior: the bias of the ensemble Kalman sampler "
        "grows with the noise, and adjusting removes it.",
        forward=forward,
        reference=reference,
        truth={"log_amplitude": 0.3, "log_rate": -0.2},
        coords={"time": times},
    ) as model:
        log_amplitude = pm.Normal("log_amplitude", 0.0, 1.0)
        log_rate = pm.Normal("log_rate", 0.0, 1.0)
        mu = (forward or solve)(pm.math.stack([log_amplitude, log_rate]))
        pm.Normal("y", mu, noise_sd, observed=y, dims="time")
    return model
