"""Groundwater flow through an unknown medium: a partial differential equation as forward map."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import scipy  # parts of it are loaded when they are used first
from pytensor.gradient import DisconnectedType
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.op import Op
from pytensor.tensor.variable import TensorVariable

from pymc_ensemble.forward import forward_model
from pymc_ensemble.forward.numba import run_as_python
from pymc_ensemble.gallery.hamiltonian import hamiltonian_reference
from pymc_ensemble.gallery.model import Array, GalleryModel, Reference, stored_reference
from pymc_ensemble.samplers.options import require_flags

CELLS = 32
"""Cells per side of the unit square."""

INNER = CELLS - 1
"""Nodes per side at which the temperature is unknown."""

OBSERVED = np.array([3, 6, 9, 12, 15, 17, 20, 23, 26, 29])
"""Node indices at which the temperature is observed, in both directions."""

OBSERVED_NODES = np.ix_(OBSERVED - 1, OBSERVED - 1)
"""Their place among the inner nodes."""

SOURCE = 50.0

STORED = 64
"""Most parameters for which a reference is stored."""

CHUNK = 64
"""Number of matrices that are assembled together."""


@cache
def _log_conductivity_basis(d: int, cells: int = CELLS) -> Array:
    """Karhunen-Loeve modes sqrt(lambda_k) phi_k at the nodes, shape (d, (cells + 1)^2)."""
    n = round(np.sqrt(d))
    modes = sorted(
        ((i, j) for i in range(n) for j in range(n)), key=lambda k: (k[0] ** 2 + k[1] ** 2, k)
    )
    nodes = np.arange(cells + 1) / cells
    cosines = np.array([np.cos(np.pi * i * nodes) * (np.sqrt(2) if i else 1) for i in range(n)])
    fields = [np.outer(cosines[i], cosines[j]) / (np.pi**2 * (i**2 + j**2) + 9) for i, j in modes]
    return np.reshape(fields, (d, -1))


def log_conductivity(u: Array, cells: int = CELLS) -> Array:
    """Log conductivity at the nodes, ``sum_k u_k sqrt(lambda_k) phi_k``.

    Parameters
    ----------
    u : ndarray, shape (..., d)
        Coefficients; d is a square.
    cells : int, default 32
        Cells per side.

    Returns
    -------
    ndarray, shape (..., cells + 1, cells + 1)
    """
    fields = u @ _log_conductivity_basis(u.shape[-1], cells)
    return fields.reshape(*u.shape[:-1], cells + 1, cells + 1)


def _stiffness(a: Array) -> Array:
    """Matrices of the five-point flux scheme for conductivities `a` at the nodes, (n, 33, 33).

    Returns
    -------
    ndarray, shape (3, n, 31, 31)
        The diagonal of each symmetric matrix, minus the entries of neighbors along y, and minus
        those of neighbors along x. The last entries of each line belong to the boundary.
    """
    # Conductivities at the faces between neighboring nodes, in each direction.
    ax = (a[:, 1:, 1:-1] + a[:, :-1, 1:-1]) / 2
    ay = (a[:, 1:-1, 1:] + a[:, 1:-1, :-1]) / 2
    return np.stack([ax[:, 1:] + ax[:, :-1] + ay[:, :, 1:] + ay[:, :, :-1], ay[..., 1:], ax[:, 1:]])


def _solve(diagonal: Array, along_y: Array, along_x: Array) -> tuple[Array, Array]:
    """Cholesky factor (32, 961) and temperatures (31, 31) for one matrix of `_stiffness`."""
    inner = len(diagonal)
    bands = np.zeros((inner + 1, inner**2), order="F")
    bands[0] = diagonal.ravel()
    bands[1].reshape(inner, inner)[:, :-1] = -along_y[:, :-1]
    bands[inner, :-inner] = -along_x[:-1].ravel()
    load = np.full(inner**2, SOURCE / (inner + 1) ** 2)
    solve = scipy.linalg.lapack.dpbsv
    factor, T, failure = solve(bands, load, lower=1, overwrite_ab=1, overwrite_b=1)
    if failure:  # conductivities vary so much that rounding makes the matrix indefinite
        T = np.full(inner**2, np.nan)
    return factor, T.reshape(inner, inner)


def _observed(T: Array) -> Array:
    """Observed temperatures (n, 10, 10) of (n, inner, inner), linear between the nodes."""
    cells = T.shape[1] + 1
    if cells == CELLS:
        return T[:, *OBSERVED_NODES]
    place = OBSERVED / CELLS * cells
    left = np.minimum(place.astype(int), cells - 1)
    share = place - left
    T = np.pad(T, ((0, 0), (1, 1), (1, 1)))
    rows = (1 - share)[:, None] * T[:, left] + share[:, None] * T[:, left + 1]
    return (1 - share) * rows[:, :, left] + share * rows[:, :, left + 1]


def temperatures(u: Array, cells: int = CELLS) -> Array:
    """Solve -div(a grad T) = 50 on the unit square with T = 0 on its boundary.

    The scheme is the five-point flux scheme on `cells` x `cells` cells. The `log_conductivity` is
    log a. Any number of members are solved at once.

    Parameters
    ----------
    u : ndarray, shape (..., d)
        Coefficients of the log conductivity; d is a square.
    cells : int, default 32
        Cells per side. With fewer than 32, temperatures between nodes are interpolated.

    Returns
    -------
    ndarray, shape (..., 100)
        T at the observed nodes. The index along x varies slowest.
    """
    u = np.asarray(u, dtype=float)
    rows = u.reshape(-1, u.shape[-1])
    outputs = np.empty((len(rows), len(OBSERVED) ** 2))
    for start in range(0, len(rows), CHUNK):
        chunk = slice(start, start + CHUNK)
        matrices = _stiffness(np.exp(log_conductivity(rows[chunk], cells)))
        solutions = np.array([_solve(*matrix)[1] for matrix in matrices.swapaxes(0, 1)])
        outputs[chunk] = _observed(solutions).reshape(-1, len(OBSERVED) ** 2)
    return outputs.reshape(*u.shape[:-1], -1)


class Temperatures(Op):
    """`temperatures` of one member, with the gradient of the discretized problem.

    The outputs are the observed temperatures, those of all nodes, and the Cholesky factor of the
    matrix. With this factor the gradient costs one more pair of substitutions, by the adjoint
    method.
    """

    __props__ = ()

    def make_node(self, *inputs: Any) -> Apply:
        """Take a vector of coefficients."""
        run_as_python(Temperatures)
        (u,) = map(pt.as_tensor, inputs)
        n_observed = len(OBSERVED) ** 2
        shapes = [(n_observed,), (INNER, INNER), (INNER + 1, INNER**2)]
        return Apply(self, [u], [pt.tensor(dtype="float64", shape=shape) for shape in shapes])

    def perform(self, node: Apply, inputs: Sequence, outputs: list[list[Any]]) -> None:
        """Solve."""
        (u,) = inputs
        factor, T = _solve(*_stiffness(np.exp(log_conductivity(u))[None])[:, 0])
        outputs[0][0] = T[OBSERVED_NODES].ravel()
        outputs[1][0] = T
        outputs[2][0] = factor

    def pullback(
        self,
        inputs: Sequence[Variable],
        outputs: Sequence[Variable],
        cotangents: Sequence[Variable],
    ) -> list[Variable]:
        """Gradient with respect to u, from that of the observed temperatures alone."""
        observed, *others = cotangents
        assert all(isinstance(other.type, DisconnectedType) for other in others)
        adjoint: Any = TemperaturesAdjoint()
        return [adjoint(inputs[0], outputs[1], outputs[2], observed)]


class TemperaturesAdjoint(Op):
    """Gradient of ``w @ temperatures(u)`` with respect to u, from the solution at u."""

    __props__ = ()

    def make_node(self, *inputs: Any) -> Apply:
        """Take the coefficients u, T and factor of `Temperatures`, and the weights w."""
        run_as_python(TemperaturesAdjoint)
        variables = [pt.as_tensor(x) for x in inputs]
        return Apply(self, variables, [variables[0].type()])

    def perform(self, node: Apply, inputs: Sequence, outputs: list[list[Any]]) -> None:
        """Solve the adjoint problem."""
        u, T, factor, w = inputs
        load = np.zeros((INNER, INNER))
        load[OBSERVED_NODES] = w.reshape(len(OBSERVED), -1)
        adjoint, _ = scipy.linalg.lapack.dpbtrs(factor, load.ravel(), lower=1)
        # A(a) T = f. So the gradient with respect to the conductivity of a face is minus the
        # difference of T across the face, times that of the adjoint solution.
        T, adjoint = np.pad(T, 1), np.pad(adjoint.reshape(INNER, INNER), 1)
        sensitivity = np.zeros((CELLS + 1, CELLS + 1))
        along_x = np.diff(T, axis=0) * np.diff(adjoint, axis=0) / 2
        along_y = np.diff(T, axis=1) * np.diff(adjoint, axis=1) / 2
        sensitivity[1:] -= along_x
        sensitivity[:-1] -= along_x
        sensitivity[:, 1:] -= along_y
        sensitivity[:, :-1] -= along_y
        # d a / d log a = a
        sensitivity *= np.exp(log_conductivity(u))
        outputs[0][0] = _log_conductivity_basis(len(u)) @ sensitivity.ravel()


def _misfit(u: Array, y: Array, noise_sd: float) -> tuple[float, Array]:
    """Negative log likelihood at one point, up to a constant, and its gradient (d,)."""
    outputs: list[list[Any]] = [[None], [None], [None]]
    Temperatures().perform(None, [u], outputs)  # type: ignore[arg-type]
    misfit = (outputs[0][0] - y) / noise_sd
    gradient: list[list[Any]] = [[None]]
    inputs = [u, outputs[1][0], outputs[2][0], misfit / noise_sd]
    TemperaturesAdjoint().perform(None, inputs, gradient)  # type: ignore[arg-type]
    return 0.5 * float(misfit @ misfit), gradient[0][0]


def _slope(u: Array) -> Array:
    """Slope of the observed temperatures at one point, shape (100, d), by the adjoint method."""
    outputs: list[list[Any]] = [[None], [None], [None]]
    Temperatures().perform(None, [u], outputs)  # type: ignore[arg-type]
    rows = []
    for weights in np.eye(len(OBSERVED) ** 2):
        row: list[list[Any]] = [[None]]
        inputs = [u, outputs[1][0], outputs[2][0], weights]
        TemperaturesAdjoint().perform(None, inputs, row)  # type: ignore[arg-type]
        rows.append(row[0][0])
    return np.array(rows)


def _reference(d: int, y: Array, noise_sd: float) -> Reference:
    """Posterior: read if it is stored, computed if there are more parameters."""
    if d <= STORED:
        return stored_reference(f"darcy_{d}")

    def potential(U: Array) -> tuple[Array, Array]:
        values, gradients = zip(*(_misfit(u, y, noise_sd) for u in U), strict=True)
        return np.array(values), np.array(gradients)

    return hamiltonian_reference(
        potential, lambda u: _slope(u) / noise_sd, d, "with gradients by the adjoint method"
    )


def darcy(d: int = 16, native: bool = False) -> GalleryModel:
    """Log conductivity of a plate from a hundred temperatures, in 9 to 1024 parameters.

    The prior is a Gaussian field that is cut off after n x n Karhunen-Loeve modes. The noise has a
    standard deviation of 0.01. One evaluation takes about a quarter of a millisecond. Each d has a
    truth and data of its own.

    Parameters
    ----------
    d : int, default 16
        Number of parameters: n^2 with n from 3 to 32. Above 64 the reference is computed on its
        first use, which takes half a minute for 256 parameters.
    native : bool, default False
        Whether the map has a gradient, by the adjoint method, so that NUTS can be used. Otherwise
        it is a black box that evaluates a whole ensemble at once.

    Returns
    -------
    GalleryModel
        Parameters ``u`` of shape (d,), data ``y`` of shape (100,).

    Raises
    ------
    ValueError
        If `d` is not the square of an integer from 3 to 32.

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
    require_flags(native=native)
    if d not in [n**2 for n in range(3, CELLS + 1)]:
        raise ValueError(
            f"darcy has n x n modes for n from 3 to {CELLS}: d may be 9, 16, 25, ..., 1024, not "
            f"{d!r}."
        )
    noise_sd = 0.01
    rng = np.random.default_rng(77)
    truth = rng.standard_normal(d)
    y = temperatures(truth) + noise_sd * rng.standard_normal(100)

    def solve(u: TensorVariable) -> TensorVariable:
        solution: Any = Temperatures()(u)
        return solution[0]

    forward = None if native else forward_model(temperatures, output_shape=(100,), vectorized=True)
    with GalleryModel(
        "A textbook inverse problem: many data, a prior that decides what the data leave open, "
        "and a nearly Gaussian posterior that the ensemble Kalman sampler finds in few solves.",
        forward=forward,
        reference=lambda: _reference(d, y, noise_sd),
        truth={"u": truth},
        coords={"mode": range(d), "sensor": range(100)},
    ) as model:
        u = pm.Normal("u", 0.0, 1.0, dims="mode")
        pm.Normal("y", (forward or solve)(u), noise_sd, observed=y, dims="sensor")
    return model
