"""Gaussian laws of the modes of an ensemble."""

import numpy as np

from pymc_ensemble.samplers.clusters import clusters
from pymc_ensemble.samplers.ensemble import Array
from pymc_ensemble.samplers.linearization import Anomalies, GaussianLaw, moment_law

from .quadratic import seen_from


def cluster_laws(U: Array, anomalies: Anomalies, rng: np.random.Generator) -> list[GaussianLaw]:
    """Laws with the moments of clusters, if these describe the particles better than one law.

    Parameters
    ----------
    U : ndarray of shape (n, d)
        Particles.
    anomalies : Anomalies
        Statistics of the particles, whose coordinates the laws use.
    rng : numpy.random.Generator

    Returns
    -------
    list of GaussianLaw
        Empty if one law is enough.
    """
    points = np.unique(U, axis=0)
    parts = [Anomalies.of(points[members]) for members in clusters(points, anomalies, rng)]
    if len(parts) == 1 or min(part.rank for part in parts) < U.shape[1]:
        return []
    return [seen_from(moment_law(part), anomalies) for part in parts]
