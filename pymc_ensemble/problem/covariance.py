"""Gaussian vectors with correlated entries as likelihoods with independent ones."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import equal_computations
from pytensor.graph.traversal import ancestors
from pytensor.tensor.elemwise import DimShuffle
from pytensor.tensor.math import Dot
from pytensor.tensor.variable import TensorVariable

from pymc_ensemble.problem.batching import cheap_mode
from pymc_ensemble.problem.curvature import FAMILIES
from pymc_ensemble.problem.frontier import Frontier, Site, core_op, name_parameters
from pymc_ensemble.problem.links import Natural, Role

IMPOSSIBLE = 1e200  # a mean so far away that the density of any data is zero


def one_after_the_other(site: Site, shape: tuple[int, ...]) -> Site:
    """Write a Gaussian vector of unknown covariance as entries, each given those before it.

    Let L be the factor of the covariance L L^T. Given the entries before it, entry k has the
    standard deviation ``L[k, k]`` and the mean ``y[k] - L[k, k] r[k]`` with ``r = L^-1 (y - mu)``.
    The density is the same, and its Fisher information is diagonal in these 2 K numbers. In the K^2
    entries of the covariance it is far from diagonal.

    Parameters
    ----------
    site : Site
        Any random variable.
    shape : tuple of int
        Shape of its values.

    Returns
    -------
    Site
        The same site, unless it has Gaussian vectors of unknown covariance. They must be so few
        that they have no more numbers than a mean (K) and a covariance (K^2).
    """
    rv, parameters = site.frontier.rv, site.frontier.parameters
    if not isinstance(rv.owner.op, pm.MvNormal.rv_type) or site.latent or site.missing is not None:
        return site
    unknown = dict(zip(site.frontier.inputs, site.inputs, strict=True))
    K = shape[-1]
    if parameters["cov"] not in unknown or 2 * math.prod(shape) > K + K**2:
        return site
    mean, covariance = (unknown.get(parameters[k], parameters[k]) for k in ("mu", "cov"))
    factor, value = _factor(covariance), site.value.astype("float64")
    diagonal = pt.diagonal(factor, axis1=-2, axis2=-1)
    residual = pt.linalg.solve_triangular(factor, value - mean, lower=True, b_ndim=1)
    no_covariance = pt.isnan(factor).any((-2, -1), keepdims=True)[..., 0]
    means = pt.switch(
        no_covariance, pt.constant(IMPOSSIBLE, dtype="float64"), value - diagonal * residual
    )
    scales = pt.switch(no_covariance, 1.0, pt.abs(diagonal))
    means, scales = pt.specify_shape(means, shape), pt.broadcast_to(scales, shape)
    mu, sigma = means.type(), scales.type()
    independent = pm.Normal.dist(mu, sigma)
    family = FAMILIES[pm.Normal.rv_type]
    frontier = Frontier(
        independent,
        {mu: Role.LOCATION, sigma: Role.SCALE},
        family,
        name_parameters(independent, family),
        {},
    )
    return replace(site, frontier=frontier, inputs=[means, scales])


def is_whitenable(frontier: Frontier, variable: TensorVariable) -> bool:
    """Whether a variable is the mean of a Gaussian vector whose covariance is data."""
    return (
        isinstance(frontier.rv.owner.op, pm.MvNormal.rv_type)
        and variable is frontier.parameters["mu"]
        and list(frontier.inputs) == [variable]
    )


def covariance_factor(covariance: TensorVariable) -> TensorVariable:
    """Lower triangular L of a fixed covariance L L^T.

    If the covariance is written as a product A A^T, as PyMC does for ``chol=``, L comes from
    A = L Q. It is A itself if A is lower triangular. The product would lose half of the digits.
    """
    factor = _factor(covariance)
    if not any(isinstance(v, SharedVariable) for v in ancestors([factor])):
        factor = pt.constant(factor.eval(mode=cheap_mode()))
    return factor


def _factor(covariance: TensorVariable) -> TensorVariable:
    """Lower triangular L of a covariance L L^T. NaN if it is not a covariance."""
    if (square_root := _square_root(covariance)) is not None:
        return pt.linalg.qr(square_root.mT, mode="r").mT
    return pt.linalg.cholesky(covariance)


def _square_root(covariance: TensorVariable) -> TensorVariable | None:
    """The matrix A of a product A A^T."""
    node: Any = covariance.owner
    if node is not None and isinstance(node.op, DimShuffle) and node.op.is_left_expand_dims:
        expanded: Any = node.op
        inner = _square_root(node.inputs[0])
        return None if inner is None else expanded(inner)
    if node is None or not isinstance(core_op(covariance), Dot):
        return None
    left, right = node.inputs
    if left.type.ndim < 2 or left.type.ndim != right.type.ndim:
        return None
    # the transpose is written A.T or A.mT, and is on either side
    pairs = [(left.mT, right), (left, right.mT)]
    if left.type.ndim == 2:
        pairs += [(left.T, right), (left, right.T)]
    return left if any(equal_computations([a], [b]) for a, b in pairs) else None


def whitened_loss(
    output: TensorVariable, observation: TensorVariable, factor: TensorVariable
) -> TensorVariable:
    """Negative log density of Gaussian vectors with covariance L L^T.

    Parameters
    ----------
    output : TensorVariable of shape (..., K)
        Whitened means.
    observation : TensorVariable of shape (..., K)
        The vectors.
    factor : TensorVariable of shape (..., K, K)
        The factor L, whose diagonal may be negative.
    """
    residual = pt.linalg.solve_triangular(factor, observation, lower=True, b_ndim=1) - output
    log_scales = pt.log(pt.abs(pt.diagonal(factor, axis1=-2, axis2=-1))) + 0.5 * np.log(2 * np.pi)
    return (0.5 * residual**2 + log_scales).sum()


def whitened(mean: TensorVariable, factor: TensorVariable) -> Natural:
    """Output L^-1 mean of a Gaussian vector with the fixed covariance L L^T."""

    def colored(hole: TensorVariable) -> TensorVariable:
        return (factor @ hole[..., None])[..., 0]

    output = pt.linalg.solve_triangular(factor, mean, lower=True, b_ndim=1)
    return Natural(output, colored, lambda hole: hole, pt.ones_like, whitens=True)
