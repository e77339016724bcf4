"""Gaussian laws of the modes of an ensemble."""

import warnings

import numpy as np
import scipy  # parts of it are loaded when they are used first

from pymc_ensemble.samplers.ensemble import Array
from pymc_ensemble.samplers.linearization import Anomalies, GaussianLaw, moment_law

from .quadratic import seen_from

MOST_CLUSTERS = 6


def cluster_laws(U: Array, anomalies: Anomalies, rng: np.random.Generator) -> list[GaussianLaw]:
    """Laws with the moments of clusters, if these describe the particles better than one law does.

    Parameters
    ----------
    U : ndarray of shape (n, d)
        Particles.
    anomalies : Anomalies
        Their statistics, in whose coordinates the laws are.
    rng : numpy.random.Generator

    Returns
    -------
    list of GaussianLaw
        Empty if the Bayesian information criterion prefers one Gaussian law.
    """
    points = np.unique(U, axis=0)
    n, d = points.shape
    x = moment_law(anomalies).map.coordinates(points)
    fewest = 2 * (d + 2)  # members that span a cluster, and tell its shape
    best, lowest = None, _criterion(x, np.zeros(n, dtype=int), 1)
    for k in range(2, min(MOST_CLUSTERS, n // fewest) + 1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an empty cluster
            label = scipy.cluster.vq.kmeans2(x, k, minit="++", rng=rng)[1]
        if np.bincount(label, minlength=k).min() < fewest:
            continue
        criterion = _criterion(x, label, k)
        if criterion < lowest:
            best, lowest = label, criterion
    if best is None:
        return []
    parts = [Anomalies.of(points[best == one]) for one in range(best.max() + 1)]
    if min(part.rank for part in parts) < d:
        return []
    return [seen_from(moment_law(part), anomalies) for part in parts]


def _criterion(x: Array, label: Array, k: int) -> float:
    """Half of the Bayesian information criterion of Gaussian clusters, up to a constant."""
    n, d = x.shape
    value = 0.5 * np.log(n) * (k * (d + 1) * (d + 2) / 2 - 1)  # eq. (Q3)
    for one in range(k):
        members = x[label == one]
        C = np.cov(members.T, bias=True).reshape(d, d)
        value += len(members) * (0.5 * np.linalg.slogdet(C)[1] - np.log(len(members) / n))
    return float(value)
