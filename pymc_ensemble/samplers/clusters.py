"""Clusters of an ensemble, which stand for modes."""

import warnings

import numpy as np
import scipy  # parts of it are loaded when they are used first

from .ensemble import Array
from .linearization import Anomalies

MOST_CLUSTERS = 6


def clusters(
    points: Array, anomalies: Anomalies, rng: np.random.Generator, starts: int = 1
) -> list[Array]:
    """Divide particles into clusters, if these describe them better than one Gaussian law.

    Parameters
    ----------
    points : ndarray of shape (n, d)
        Different particles, without repeats.
    anomalies : Anomalies
        Statistics in whose coordinates distances are measured.
    rng : numpy.random.Generator
    starts : int, default 1
        Starts of k-means for each number of clusters.

    Returns
    -------
    list of ndarray
        Indices of the members of each cluster. There is only one cluster if the Bayesian
        information criterion prefers a single Gaussian law.
    """
    n, d = points.shape
    x = (points - anomalies.mean) @ anomalies.L_pinv.T
    fewest = 2 * (d + 2)  # members that span a cluster, and tell its shape
    best = np.zeros(n, dtype=int)
    lowest = _criterion(x, best, 1) if n >= 2 * fewest else -np.inf
    for k in range(2, min(MOST_CLUSTERS, n // fewest) + 1):
        for _ in range(starts):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of an empty cluster
                label = scipy.cluster.vq.kmeans2(x, k, minit="++", rng=rng)[1]
            if np.bincount(label, minlength=k).min() < fewest:
                continue
            criterion = _criterion(x, label, k)
            if criterion < lowest:
                best, lowest = label, criterion
    return [np.flatnonzero(best == one) for one in range(best.max() + 1)]


def _criterion(x: Array, label: Array, k: int) -> float:
    """Half of the Bayesian information criterion of Gaussian clusters, up to a constant."""
    n, d = x.shape
    value = 0.5 * np.log(n) * (k * (d + 1) * (d + 2) / 2 - 1)  # eq. (Q3)
    for one in range(k):
        members = x[label == one]
        C = np.cov(members.T, bias=True).reshape(d, d)
        value += len(members) * (0.5 * np.linalg.slogdet(C)[1] - np.log(len(members) / n))
    return float(value)
