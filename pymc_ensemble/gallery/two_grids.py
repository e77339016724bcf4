"""Pairs of models: a simulator on a fine grid, and a cheap one on a coarse grid.

The cheap one is ``model.cheap``. Its grid decides what it costs, and how far off its posterior is.
"""

import numpy as np
import pymc as pm

from pymc_ensemble.forward import ForwardModel, forward_model
from pymc_ensemble.gallery.darcy import darcy, temperatures
from pymc_ensemble.gallery.model import Array, GalleryModel, stored_reference
from pymc_ensemble.samplers.options import require_counts

# --- a shock -----------------------------------------------------------------------------------

BURGERS_CELLS = 48
BURGERS_TIME, BURGERS_FRAMES = 0.6, 3
BURGERS_TRUTH = np.array([np.log(0.04), 1.1, 0.1])


def shock(parameters: Array, cells: int) -> Array:
    """Velocities of a viscous fluid at eight places and three times, by Burgers' equation.

    The scheme has finite volumes of first order, on a ring of length two.

    Parameters
    ----------
    parameters : ndarray of shape (n, 3)
        Logarithm of the viscosity, and amplitude and phase of the initial wave.
    cells : int
        Number of cells of the grid.

    Returns
    -------
    ndarray of shape (n, 24)
    """
    viscosity, amplitude, phase = np.asarray(parameters, dtype=float).T[..., None]
    viscosity = np.exp(np.minimum(viscosity, -1.2))
    dx = 2 / cells
    velocity = amplitude * np.sin(np.pi * (-1 + dx * np.arange(cells) - phase)) + 0.5
    step = 0.4 * min(dx / 2.5, dx * dx / 0.6)
    steps = int(np.ceil(BURGERS_TIME / BURGERS_FRAMES / step))
    step = BURGERS_TIME / BURGERS_FRAMES / steps

    def rate(v: Array) -> Array:
        right = np.roll(v, -1, 1)
        fastest = np.maximum(np.abs(v), np.abs(right))
        flux = 0.25 * (v * v + right * right) - (fastest / 2 + viscosity / dx) * (right - v)
        return (np.roll(flux, 1, 1) - flux) / dx

    place = (2 * (np.arange(8) + 0.5) / 8) / dx
    left, share = place.astype(int) % cells, place - place.astype(int)
    frames = []
    for _ in range(BURGERS_FRAMES):
        for _ in range(steps):
            slope = rate(velocity)
            velocity = velocity + step * (slope + rate(velocity + step * slope)) / 2
        frames.append((1 - share) * velocity[:, left] + share * velocity[:, (left + 1) % cells])
    return np.concatenate(frames, axis=1)


def burgers(cells: int = 16) -> GalleryModel:
    """Viscosity and initial wave of a fluid from 24 velocities, on a coarse and on a fine grid.

    The fine grid has 48 cells, that of the cheap simulator has `cells`. By default the coarse grid
    smears the shock, and its posterior is six standard deviations off.

    Parameters
    ----------
    cells : int, default 16
        Cells of the cheap simulator, from 8 to 48.

    Returns
    -------
    GalleryModel
        Parameters ``log_viscosity``, ``amplitude`` and ``phase``, data ``y`` of shape (24,). The
        cheap simulator is ``model.cheap``.

    Raises
    ------
    ValueError
        If there are too few cells, or more than on the fine grid.

    Examples
    --------
    >>> from pymc_ensemble import gallery
    >>> gallery.burgers().reference["amplitude"].sel(statistic="mean").values.round(1)
    np.float64(1.2)
    """
    require_counts(8, cells=cells)
    if cells > BURGERS_CELLS:
        raise ValueError(
            f"cells={cells} is a finer grid than that of the expensive simulator. Take at most "
            f"{BURGERS_CELLS} cells."
        )
    noise = 0.05 * np.random.default_rng(3).standard_normal(24)
    observed = shock(BURGERS_TRUTH[None], BURGERS_CELLS)[0] + noise

    def simulator(cells: int) -> ForwardModel:
        def fluid(log_viscosity: Array, amplitude: Array, phase: Array) -> Array:
            return shock(np.stack([log_viscosity, amplitude, phase], axis=1), cells)

        return forward_model(fluid, output_shape=(24,), vectorized=True)

    simulate = simulator(BURGERS_CELLS)
    names = ("log_viscosity", "amplitude", "phase")
    with GalleryModel(
        "Two models: a coarse grid smears a shock, just as viscosity does.",
        forward=simulate,
        cheap=simulator(cells),
        reference=lambda: stored_reference("burgers"),
        truth=dict(zip(names, BURGERS_TRUTH, strict=True)),
    ) as model:
        log_viscosity = pm.Normal("log_viscosity", np.log(0.05), 0.5)
        amplitude = pm.Normal("amplitude", 1.0, 0.3)
        phase = pm.Normal("phase", 0.0, 0.2)
        pm.Normal("y", simulate(log_viscosity, amplitude, phase), 0.05, observed=observed)
    return model


# --- groundwater -------------------------------------------------------------------------------


def coarse_darcy(cells: int = 8) -> GalleryModel:
    """Darcy flow with nine parameters, on a grid of 32 by 32 cells and on a coarse one.

    Parameters
    ----------
    cells : int, default 8
        Cells per side of the cheap simulator. Its posterior is 33 standard deviations off with 8
        cells, and 160 with 4.

    Returns
    -------
    GalleryModel
        As `darcy` with nine parameters. The cheap simulator is ``model.cheap``.

    Raises
    ------
    ValueError
        If there are fewer than 3 cells, or more than 32.

    Examples
    --------
    >>> from pymc_ensemble import gallery
    >>> gallery.coarse_darcy().cheap([0.0] * 9).shape
    (100,)
    """
    require_counts(3, cells=cells)
    if cells > 32:
        raise ValueError(
            f"cells={cells} is a finer grid than that of the expensive simulator. Take at most 32 "
            "cells."
        )
    model = darcy(9)

    def plate(u: Array) -> Array:
        return temperatures(u, cells)

    model.cheap = forward_model(plate, output_shape=(100,), vectorized=True)
    return model
