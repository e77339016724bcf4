"""Initial state of a small weather model, from a background and later observations."""

from collections.abc import Callable

import numpy as np
import pymc as pm

from pymc_ensemble.forward import forward_model
from pymc_ensemble.gallery.hamiltonian import hamiltonian_reference
from pymc_ensemble.gallery.model import Array, GalleryModel
from pymc_ensemble.samplers.options import require_counts

FORCING = 8.0  # makes the system chaotic: errors double in 0.4 units of time
STEP = 0.05  # time step of the Runge-Kutta scheme: six hours, if a unit of time is five days
STEPS = 8  # from the initial state to the last observation
SEEN = (4, 8)  # steps after which every second variable is observed
BACKGROUND_SD, NOISE_SD = 1.0, 0.5
SPIN_UP = 400  # steps from rest to the attractor
DATA_SEED = 61


def _neighbors(x: Array) -> tuple[Array, Array, Array, Array]:
    """Neighbors of states of shape (d, ...): two and one places below, one and two above."""
    ring = np.concatenate([x[-2:], x, x[:2]])
    return ring[:-4], ring[1:-3], ring[3:-1], ring[4:]


def _velocity(x: Array) -> Array:
    """Time derivatives of states of shape (d, ...)."""
    two_below, below, above, _ = _neighbors(x)
    return (above - two_below) * below - x + FORCING


def _pulled(x: Array, w: Array) -> Array:
    """Product of `w` with the Jacobian of the velocity at `x`, both of shape (d, ...)."""
    two_below, below, above, two_above = _neighbors(x)
    _, w_below, w_above, w_two_above = _neighbors(w)
    return w_below * two_below - w_two_above * above + w_above * (two_above - below) - w


def _stages(x: Array) -> tuple[Array, list[Array]]:
    """State one step later, and the four states at which the velocity was computed."""
    velocities: list[Array] = []
    states: list[Array] = []
    for weight in (0.0, 0.5, 0.5, 1.0):
        states.append(x + weight * STEP * velocities[-1] if velocities else x)
        velocities.append(_velocity(states[-1]))
    k1, k2, k3, k4 = velocities
    return x + STEP / 6 * (k1 + 2 * (k2 + k3) + k4), states


def _pulled_back(states: list[Array], w: Array) -> Array:
    """Product of `w` with the Jacobian of one step, given the states of `_stages`."""
    g4 = _pulled(states[3], STEP / 6 * w)
    g3 = _pulled(states[2], STEP / 3 * w + STEP * g4)
    g2 = _pulled(states[1], STEP / 3 * w + STEP / 2 * g3)
    g1 = _pulled(states[0], STEP / 6 * w + STEP / 2 * g2)
    return w + g1 + g2 + g3 + g4


@np.errstate(over="ignore", invalid="ignore")
def seen_later(start: Array) -> tuple[Array, Callable[[Array], Array]]:
    """Every second variable after 0.2 and 0.4 units of time, and the adjoint of this map.

    Parameters
    ----------
    start : ndarray of shape (n, d)
        Initial states.

    Returns
    -------
    outputs : ndarray of shape (n, 2 ceil(d / 2))
    pull_back : callable
        Product of weights, shaped like the outputs, with the Jacobian; shape (n, d).
    """
    x, path, seen = start.T, [], []
    for step in range(1, STEPS + 1):
        x, states = _stages(x)
        path.append(states)
        if step in SEEN:
            seen.append(x[::2])

    @np.errstate(over="ignore", invalid="ignore")
    def pull_back(weights: Array) -> Array:
        at_times = np.split(weights.T, len(SEEN))
        w = np.zeros_like(start.T)
        for step in range(STEPS, 0, -1):
            if step in SEEN:
                w[::2] += at_times[SEEN.index(step)]
            w = _pulled_back(path[step - 1], w)
        return w.T

    return np.concatenate(seen).T, pull_back


def initial_state(d: int = 40) -> GalleryModel:
    """Initial state of the Lorenz 96 system: what a weather forecast begins with.

    The state of d variables on a circle follows
    x_i' = (x_{i+1} - x_{i-2}) x_{i-1} - x_i + 8. A first guess of it, the background, has errors of
    standard deviation 1. Every second variable is observed after 0.2 and 0.4 units of time, with
    noise of standard deviation 0.5. The parameters are the errors of the background.

    Parameters
    ----------
    d : int, default 40
        Number of variables, at least 10.

    Returns
    -------
    GalleryModel
        Parameters ``u`` of shape (d,), data ``y`` of shape (2 ceil(d / 2),). The reference takes
        some seconds to compute.

    Raises
    ------
    ValueError
        If `d` is below 10.

    References
    ----------
    .. [1] E. N. Lorenz and K. A. Emanuel, "Optimal sites for supplementary weather observations",
       J. Atmos. Sci. 55, 1998, doi:10.1175/1520-0469(1998)055<0399:OSFSWO>2.0.CO;2

    Examples
    --------
    >>> from pymc_ensemble import gallery
    >>> gallery.initial_state(100).truth["u"].shape
    (100,)
    """
    require_counts(10, d=d)
    rng = np.random.default_rng(DATA_SEED)
    state = FORCING + rng.standard_normal(d)
    for _ in range(SPIN_UP):
        state, _ = _stages(state)
    truth = BACKGROUND_SD * rng.standard_normal(d)
    background = state - truth
    exact = seen_later(state[None])[0][0]
    y = exact + NOISE_SD * rng.standard_normal(len(exact))

    def seen(u: Array) -> Array:
        return seen_later(background + u)[0]

    def potential(u: Array) -> tuple[Array, Array]:
        outputs, pull_back = seen_later(background + u)
        misfit = (outputs - y) / NOISE_SD
        return 0.5 * (misfit**2).sum(1), pull_back(misfit / NOISE_SD)

    def information(u: Array) -> Array:
        K = len(y)
        _, pull_back = seen_later(np.tile(background + u, (K, 1)))
        return pull_back(np.eye(K) / NOISE_SD)

    forward = forward_model(seen, output_shape=(len(y),), vectorized=True)
    with GalleryModel(
        "The state of a chaotic system a moment ago: later observations of half of it, and a "
        "prior so wide that the map is curved across it.",
        forward=forward,
        reference=lambda: hamiltonian_reference(potential, information, d, "on the adjoint"),
        truth={"u": truth},
        coords={"place": range(d)},
    ) as model:
        u = pm.Normal("u", 0.0, BACKGROUND_SD, dims="place")
        pm.Normal("y", forward(u), NOISE_SD, observed=y)
    return model
