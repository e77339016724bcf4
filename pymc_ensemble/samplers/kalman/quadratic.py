"""Gaussian law from a quadratic fit to evaluated log densities."""

from dataclasses import dataclass

import numpy as np

from pymc_ensemble.samplers.ensemble import Array, Ensemble, Problem
from pymc_ensemble.samplers.gaussian_process.basis import (
    basis_size,
    basis_values,
    quadratic_hessian,
)
from pymc_ensemble.samplers.linearization import (
    FARTHEST,
    Anomalies,
    GaussianLaw,
    moment_law,
    prior_slope,
)

MOST_COEFFICIENTS = 1500  # 53 dimensions: with more, a fit takes longer than it saves
RIDGE = 1e-3  # in nats: coefficients that the points do not determine become zero


@dataclass(frozen=True)
class Archive:
    """Evaluated points with a finite density.

    Attributes
    ----------
    U : ndarray of shape (n, d)
    loss, prior : ndarray of shape (n,)
        Loss and prior potential.
    """

    U: Array
    loss: Array
    prior: Array

    @classmethod
    def of(cls, ensemble: Ensemble) -> "Archive":
        """The members of an ensemble."""
        ok = ensemble.ok
        return cls(ensemble.U[ok], ensemble.loss[ok], ensemble.prior[ok])

    def joined(self, ensemble: Ensemble) -> "Archive":
        """Archive with the members of an ensemble, too."""
        new = Archive.of(ensemble)
        pairs = ((self.U, new.U), (self.loss, new.loss), (self.prior, new.prior))
        return Archive(*(np.concatenate(pair) for pair in pairs))


def quadratic_law(
    problem: Problem,
    archive: Archive,
    members: Ensemble,
    anomalies: Anomalies,
    exponent: float = 1.0,
) -> GaussianLaw | None:
    """Gaussian law of a quadratic that is fitted to the losses of an archive, near an ensemble.

    Parameters
    ----------
    problem : InverseProblem
        Problem, whose prior adds a known curvature.
    archive : Archive
    members : Ensemble
        Members with finite densities. The fit is near them, in their normalized coordinates.
    anomalies : Anomalies
        Anomalies of the members.
    exponent : float, default 1.0
        Inverse temperature of the loss.

    Returns
    -------
    GaussianLaw or None
        None if there are too few points, or if the members do not span the space.
    """
    d = members.U.shape[1]
    wanted = basis_size("quadratic", d)
    if wanted > MOST_COEFFICIENTS or len(archive.U) < wanted or anomalies.rank < d:
        return None
    potential = exponent * archive.loss + archive.prior
    usual = np.median(exponent * members.loss + members.prior)
    chosen = np.argsort(potential)[: 2 * wanted + 40]
    excess = np.maximum(potential[chosen] - usual, 0.0)
    # eq. (Q1)
    root = np.exp(-0.5 * excess / (2 * d + 4))[:, None]
    law = moment_law(anomalies)
    x = law.map.coordinates(archive.U[chosen])
    features = basis_values(x, "quadratic")
    offset = archive.loss[chosen].min()
    loss = archive.loss[chosen, None] - offset
    penalty = RIDGE * np.eye(wanted)
    coefficients = np.linalg.lstsq(
        np.vstack([features * root, penalty]), np.vstack([loss * root, np.zeros((wanted, 1))])
    )[0][:, 0]
    gradient, curvature = coefficients[1 : d + 1], quadratic_hessian(coefficients[None], d)[0]
    prior_gradient, prior_curvature = prior_slope(problem, anomalies, members.U)
    H = exponent * curvature + prior_curvature  # eq. (Q2)
    if not np.isfinite(H).all():
        return None
    rates, R = np.linalg.eigh(H)
    rates = np.maximum(rates, FARTHEST**-2)  # no law is wider than its ensemble knows
    force = -(exponent * gradient + prior_gradient)
    center = (R.T @ force) / rates
    length = np.linalg.norm(center)
    force = force * min(1.0, FARTHEST * np.sqrt(d) / max(length, 1e-300))
    return GaussianLaw(law.map, rates, R, force)


def seen_from(law: GaussianLaw, anomalies: Anomalies) -> GaussianLaw:
    """The same law in the normalized coordinates of another ensemble."""
    to_own = law.anomalies.L_pinv @ anomalies.L
    center = law.map.coordinates(anomalies.mean[None])[0]
    H = to_own.T @ (law.R * law.rates) @ law.R.T @ to_own
    rates, R = np.linalg.eigh(0.5 * (H + H.T))
    rates = np.maximum(rates, np.finfo(float).tiny)
    force = to_own.T @ (law.R * law.rates) @ law.R.T @ (law.center - center)
    return GaussianLaw(moment_law(anomalies).map, rates, R, force)
