"""Moves of Metropolis sweeps: they propose where one half of the ensemble goes, given the other.

A move is a function of four arguments.

==========  =======================================================================================
group       ndarray of shape (n, d): the particles to be moved, in unconstrained coordinates
partners    ndarray of shape (m, d): the other half of the ensemble, which stays where it is
law         `GaussianLaw` that approximates the posterior. It comes from a linear fit of the forward
            outputs of the partners, which is ``law.map(U)``, shape (n, K). It has ``law.mean``,
            shape (d,), ``law.covariance``, shape (d, d), and ``law.log_density(U)``, shape (n,).
            ``law.anomalies.mean``, shape (d,), and ``law.anomalies.L``, shape (d, r), are the mean
            of the partners and a factor of their covariance.
rng         `numpy.random.Generator`: the only source of randomness
==========  =======================================================================================

A move returns two arrays: the points that it proposes, shape (n, d), and the logarithm of the
proposal ratio, ``log q(u | u') - log q(u' | u)``, shape (n,). Here q is the density of a proposal,
given the partners. For a symmetric move the log ratio is zero. A move that does not look at the
group may return a third array: the log density from which it drew each point, shape (n,).

The proposal for one row must not depend on the other rows of the group. Then the posterior is
invariant, whatever the move is.

Examples
--------
>>> import numpy as np, pymc as pm
>>> import pymc_ensemble as pe
>>> def gaussian_step(group, partners, law, rng):
...     "A random walk with the covariance of the fitted law, which is symmetric."
...     root = np.linalg.cholesky(law.covariance)
...     step = 2.4 / np.sqrt(group.shape[1]) * rng.standard_normal(group.shape) @ root.T
...     return group + step, np.zeros(len(group))
>>> with pm.Model():
...     x = pm.Normal("x", shape=2)
...     y = pm.Normal("y", x[0] ** 2 + x[1], 0.5, observed=1.0)
...     idata = pm.sample(
...         draws=500,
...         chains=2,
...         cores=1,
...         step=pe.EnsembleKalmanSampler(moves={pe.moves.independence: 0.5, gaussian_step: 0.5}),
...         random_seed=1,
...         progressbar=False,
...     )
>>> bool(idata["sample_stats"]["converged"].all())
True
"""

from pymc_ensemble.samplers.moves import (
    Move,
    WrongMoveError,
    differential_evolution,
    independence,
    stretch,
    walk,
)

__all__ = [
    "Move",
    "WrongMoveError",
    "differential_evolution",
    "independence",
    "stretch",
    "walk",
]
