"""Fisher weights of the likelihood families: expected curvature of the loss per output."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from pytensor.graph.op import Op
from pytensor.tensor.variable import TensorVariable

from pymc_ensemble.problem.links import Role

Parameters = Mapping[str, TensorVariable]

EULER_GAMMA = float(np.euler_gamma)


@dataclass(frozen=True)
class Family:
    """A likelihood family: its parameters, their roles, and their Fisher information.

    Parameters
    ----------
    roles : dict of str to Role
        The parameters in the order of the random variable's inputs.
    fisher : dict of str to callable, default {}
        For each parameter with a closed form, the diagonal entry of the Fisher information of one
        observation, a function of the dictionary of all parameters.
    """

    roles: Mapping[str, Role]
    fisher: Mapping[str, Callable[[Parameters], TensorVariable]] = field(default_factory=dict)


def _location_scale(location: str, scale: str, per_location: float, per_scale: float) -> Family:
    """Fisher information of a location-scale family: constants over the squared scale."""
    return Family(
        {location: Role.LOCATION, scale: Role.SCALE},
        {
            location: lambda p: per_location / p[scale] ** 2,
            scale: lambda p: per_scale / p[scale] ** 2,
        },
    )


_t_information = {
    "mu": lambda p: (p["nu"] + 1) / ((p["nu"] + 3) * p["sigma"] ** 2),
    "sigma": lambda p: 2 * p["nu"] / ((p["nu"] + 3) * p["sigma"] ** 2),
}
_success = Family({"p": Role.PROBABILITY}, {"p": lambda p: 1 / (p["p"] * (1 - p["p"]))})

FAMILIES: dict[type[Op], Family] = {
    pm.Normal.rv_type: _location_scale("mu", "sigma", 1, 2),
    pm.LogNormal.rv_type: _location_scale("mu", "sigma", 1, 2),
    pm.HalfNormal.rv_type: Family(
        {"loc": Role.LOCATION, "sigma": Role.SCALE}, {"sigma": lambda p: 2 / p["sigma"] ** 2}
    ),
    pm.Laplace.rv_type: _location_scale("mu", "b", 1, 1),
    pm.Cauchy.rv_type: _location_scale("alpha", "beta", 1 / 2, 1 / 2),
    pm.Logistic.rv_type: _location_scale("mu", "s", 1 / 3, (3 + np.pi**2) / 9),
    pm.Gumbel.rv_type: _location_scale("mu", "beta", 1, np.pi**2 / 6 + (1 - EULER_GAMMA) ** 2),
    pm.StudentT.rv_type: Family(
        {"nu": Role.SCALE, "mu": Role.LOCATION, "sigma": Role.SCALE}, _t_information
    ),
    pm.Poisson.rv_type: Family({"mu": Role.RATE}, {"mu": lambda p: 1 / p["mu"]}),
    pm.Bernoulli.rv_type: _success,
    pm.Binomial.rv_type: Family(
        {"n": Role.OTHER, "p": Role.PROBABILITY},
        {"p": lambda p: p["n"] / (p["p"] * (1 - p["p"]))},
    ),
    pm.Geometric.rv_type: Family(
        {"p": Role.PROBABILITY}, {"p": lambda p: 1 / (p["p"] ** 2 * (1 - p["p"]))}
    ),
    pm.NegativeBinomial.rv_type: Family(
        {"alpha": Role.SCALE, "p": Role.PROBABILITY, "mu": Role.RATE},
        {
            "p": lambda p: p["alpha"] / (p["p"] ** 2 * (1 - p["p"])),
            "mu": lambda p: p["alpha"] / (p["mu"] * (p["alpha"] + p["mu"])),
        },
    ),
    pm.Exponential.rv_type: Family({"scale": Role.RATE}, {"scale": lambda p: 1 / p["scale"] ** 2}),
    pm.Gamma.rv_type: Family(
        {"alpha": Role.SCALE, "scale": Role.RATE},
        {
            "alpha": lambda p: pt.tri_gamma(p["alpha"]),
            "scale": lambda p: p["alpha"] / p["scale"] ** 2,
        },
    ),
    pm.InverseGamma.rv_type: Family(
        {"alpha": Role.SCALE, "beta": Role.SCALE},
        {
            "alpha": lambda p: pt.tri_gamma(p["alpha"]),
            "beta": lambda p: p["alpha"] / p["beta"] ** 2,
        },
    ),
    pm.Beta.rv_type: Family(
        {"alpha": Role.SCALE, "beta": Role.SCALE},
        {
            "alpha": lambda p: pt.tri_gamma(p["alpha"]) - pt.tri_gamma(p["alpha"] + p["beta"]),
            "beta": lambda p: pt.tri_gamma(p["beta"]) - pt.tri_gamma(p["alpha"] + p["beta"]),
        },
    ),
    pm.Weibull.rv_type: Family(
        {"alpha": Role.SCALE, "beta": Role.SCALE},
        {
            "alpha": lambda p: (np.pi**2 / 6 + (1 - EULER_GAMMA) ** 2) / p["alpha"] ** 2,
            "beta": lambda p: (p["alpha"] / p["beta"]) ** 2,
        },
    ),
    pm.Categorical.rv_type: Family({"p": Role.SIMPLEX}, {"p": lambda p: 1 / p["p"]}),
    pm.Multinomial.rv_type: Family(
        {"n": Role.OTHER, "p": Role.SIMPLEX},
        {"p": lambda p: p["n"][..., None] / p["p"]},
    ),
    pm.MvNormal.rv_type: Family({"mu": Role.LOCATION, "cov": Role.OTHER}),
    pm.VonMises.rv_type: Family({"mu": Role.LOCATION, "kappa": Role.SCALE}),
}
