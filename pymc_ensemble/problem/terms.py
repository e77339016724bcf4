"""The likelihood of one variable as a loss of forward outputs in natural form."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from pytensor.graph.traversal import ancestors
from pytensor.tensor.random.op import RandomVariable
from pytensor.tensor.rewriting.basic import topo_constant_folding
from pytensor.tensor.variable import TensorVariable

from pymc_ensemble.problem._pymc import PartialObservedRV, conditional_logp
from pymc_ensemble.problem.batching import cheap_mode
from pymc_ensemble.problem.covariance import (
    covariance_factor,
    is_whitenable,
    one_after_the_other,
    whitened,
    whitened_loss,
)
from pymc_ensemble.problem.curvature import Family
from pymc_ensemble.problem.frontier import Site, is_foreign
from pymc_ensemble.problem.graphs import gradient, rewritten, substitute
from pymc_ensemble.problem.links import Natural, Role, natural
from pymc_ensemble.problem.support import check_density, check_support

QUADRATIC = (pm.Normal.rv_type, pm.LogNormal.rv_type, pm.MvNormal.rv_type)
TRANSLATIONS = (
    pm.Normal.rv_type,
    pm.MvNormal.rv_type,
    pm.StudentT.rv_type,
    pm.Laplace.rv_type,
    pm.Cauchy.rv_type,
    pm.Logistic.rv_type,
    pm.Gumbel.rv_type,
)
LARGEST_LOSS = 1e290  # a larger loss means a density of zero


@dataclass(frozen=True)
class Term:
    """The likelihood of one variable as a function of forward outputs.

    Parameters
    ----------
    name : str
        Name of the variable.
    holes : list of TensorVariable
        Variables in place of the forward outputs.
    outputs : list of TensorVariable
        The forward outputs as expressions of the unknowns, of the shapes of `holes`.
    bounds : list of (float, float)
        Domain of each output.
    loss : TensorVariable
        Scalar loss as a function of `holes` and `observation`.
    observation, data : TensorVariable
        A variable in place of the values, and the values themselves: data or one of the holes.
    weights : list of TensorVariable or None
        Fisher weights in closed form, of the shapes of `holes`.
    variable : TensorVariable
        The random variable given the holes, for simulations.
    quadratic : bool
        Whether the loss is quadratic in the outputs with constant curvature.
    unknown_noise : bool, default False
        Whether the scale of a location-scale family depends on the unknowns.
    """

    name: str
    holes: list[TensorVariable]
    outputs: list[TensorVariable]
    bounds: list[tuple[float, float]]
    loss: TensorVariable
    observation: TensorVariable
    data: TensorVariable
    weights: list[TensorVariable | None]
    variable: TensorVariable
    quadratic: bool
    unknown_noise: bool = False


def density_term(output: TensorVariable) -> Term:
    """Likelihood whose only output, of shape (1,), is its loss.

    A loss above `LARGEST_LOSS` means a density of zero, which is not a failure of the model.
    """
    hole = pt.vector("loss", shape=(1,), dtype="float64")
    output = pt.specify_shape(
        pt.minimum(output, pt.constant(10 * LARGEST_LOSS, dtype="float64")), (1,)
    )
    loss = pt.switch(hole[0] < pt.constant(LARGEST_LOSS, dtype="float64"), hole[0], np.inf)
    weights: list[TensorVariable | None] = [pt.zeros_like(hole)]
    unbounded = [(-np.inf, np.inf)]
    return Term("density", [hole], [output], unbounded, loss, hole, hole, weights, hole, False)


def make_term(site: Site, root: TensorVariable) -> Term:
    """Write a likelihood as a function of forward outputs in natural form.

    Parameters
    ----------
    site : Site
        The random variable.
    root : TensorVariable
        The vector of unknowns.

    Returns
    -------
    Term
        The term. If the variable is unknown itself, the outputs are its distance from its location.
        In a family without a location they are its parameters and its values.
    """
    name = site.name
    site = one_after_the_other(site, output_shape(site.value, root, site.value, name))
    frontier = site.frontier
    rv, family = frontier.rv, frontier.family
    uses = Counter(frontier.parameters.values())
    names = {v: k for k, v in frontier.parameters.items() if uses[v] == 1}
    location = next((v for v, r in frontier.inputs.items() if r is Role.LOCATION), None)
    translated = site.latent and location is not None and isinstance(rv.owner.op, TRANSLATIONS)

    naturals = []
    factor = None
    for (v, role), expression in zip(frontier.inputs.items(), site.inputs, strict=True):
        if translated and v is location:
            expression = expression - site.value
        if is_whitenable(frontier, v):
            factor = covariance_factor(frontier.parameters["cov"])
            naturals.append(whitened(expression, factor))
        else:
            naturals.append(natural(expression, role, root))
    if site.latent and not translated:
        naturals.append(natural(site.value, Role.OTHER, root))
    # both sides of a mask that cuts through vectors are entangled
    entangled = site.missing is not None and rv.owner.op.ndim_supp > 0
    if site.missing is not None and entangled:
        naturals.append(natural(site.missing, Role.OTHER, root))

    masked = isinstance(rv.owner.op, PartialObservedRV)
    aligned = rv.owner.inputs[1] if masked else site.value
    holes = [
        pt.tensor(f"{name}_{i}", dtype=n.output.type.dtype, shape=shape)
        for i, n in enumerate(naturals)
        for shape in [output_shape(n.output, root, aligned, name)]
    ]
    given = {
        v: v.type.filter_variable(n.parameter(hole), allow_convert=True)
        for v, n, hole in zip(frontier.inputs, naturals, holes, strict=False)
    }
    rv_given = _without_shapes(substitute([rv], given)[0], site, root)
    # PyMC looks for constant infinite bounds, and would miss them behind an operation
    [rv_given] = rewritten([rv_given], topo_constant_folding)

    data = site.value
    if translated:
        data = pt.zeros(output_shape(site.value, root, site.value, name), site.value.dtype)
    elif site.latent:
        data = holes[len(site.inputs)]
    observation = data.type(name=f"{name}_observation")
    missing = None
    if entangled:
        missing = holes[-1]
    elif site.missing is not None:  # of no effect: entries are independent
        missing = pt.zeros(output_shape(site.missing, root, site.missing, name))
    if factor is not None and missing is None:
        loss = whitened_loss(holes[0], observation, factor)
    else:
        density = log_density(rv_given, observation, missing, name)
        loss = -density.sum()

    told = family is not None and Role.OTHER not in frontier.inputs.values()
    apart = not (site.latent or masked) and getattr(rv.owner.op, "ndim_supp", None) == 0
    if apart and not told:
        check_support(name, density, (observation, site.value), holes)
    if apart and told:
        # data of translations may be far from where the location stands here
        at = pt.zeros_like(site.value) if isinstance(rv.owner.op, TRANSLATIONS) else site.value
        roles = frontier.inputs.values()
        usual = [usual_value(*known) for known in zip(roles, naturals, holes, strict=True)]
        check_density(name, density, dict(zip([observation, *holes], [at, *usual], strict=True)))

    weights: list[TensorVariable | None] = [None] * len(holes)
    if family is not None:
        values = substitute(list(frontier.parameters.values()), given)
        parameters = dict(zip(frontier.parameters, values, strict=True))
        for i, (v, n, hole) in enumerate(zip(frontier.inputs, naturals, holes, strict=False)):
            weights[i] = fisher_weight(rv.owner.op, family, names.get(v), n, hole, parameters, data)
    locations = all(role is Role.LOCATION for role in frontier.inputs.values())
    return Term(
        name=name,
        holes=holes,
        outputs=[n.output for n in naturals],
        bounds=[n.bounds for n in naturals],
        loss=loss,
        observation=observation,
        data=data,
        weights=weights,
        variable=rv_given,
        quadratic=isinstance(rv.owner.op, QUADRATIC) and locations and None not in weights,
        unknown_noise=Role.SCALE in frontier.inputs.values()
        and family is not None
        and Role.LOCATION in family.roles.values(),
    )


def usual_value(role: Role, natural: Natural, hole: TensorVariable) -> TensorVariable:
    """Value of an output at which a distribution exists: one for rates, even probabilities.

    For scales it is two: at one, shape parameters of some families make the density at the bound
    finite.
    """
    value, (lower, upper) = float(np.log(2)) if role is Role.SCALE else 0.0, natural.bounds
    if lower >= 0:  # not behind a link
        value = 1.0 if upper > 1 else 1 / (hole.type.shape[-1] if role is Role.SIMPLEX else 2)
    return pt.constant(np.full(hole.type.shape, value, hole.type.dtype))


def log_density(
    rv: TensorVariable, value: TensorVariable, missing: TensorVariable | None, name: str
) -> TensorVariable:
    """Log density of a random variable, which may be one side of a masked one."""
    try:
        if missing is None:
            return pm.logp(rv, value, warn_rvs=False)
        other = missing.type()
        values = {v: value if v is rv else other for v in rv.owner.outputs}
        density = conditional_logp(values, warn_rvs=False)[value]
        return substitute([density], {other: missing})[0]
    except NotImplementedError as error:
        raise NotImplementedError(
            f"`{name}` has no log density ({error}). Give its distribution a `logp`, or a `dist` "
            "from which PyMC can derive one."
        ) from error


def _without_shapes(rv: TensorVariable, site: Site, root: TensorVariable) -> TensorVariable:
    """Replace remaining unknowns by zeros, as only their shapes matter."""
    upstream = set(ancestors([rv]))
    left = {
        v: v.type.filter_variable(
            pt.zeros(output_shape(source, root, site.value, site.name), dtype=v.type.dtype)
        )
        for v, source in site.shape_sources.items()
        if v in upstream
    }
    return substitute([rv], left)[0]


def fisher_weight(
    op: RandomVariable,
    family: Family,
    name: str | None,
    natural: Natural,
    hole: TensorVariable,
    parameters: Mapping[str, TensorVariable],
    value: TensorVariable,
) -> TensorVariable | None:
    """Fisher information of a forward output, summed over all observations that it feeds.

    Parameters
    ----------
    op : RandomVariable
        The random variable.
    family : Family
        Its family.
    name : str or None
        Name of the parameter behind the output.
    natural : Natural
        How the parameter is computed from the output.
    hole : TensorVariable
        The variable in place of the output.
    parameters : dict of str to TensorVariable
        All parameters as functions of the holes.
    value : TensorVariable
        The values of the random variable, for their shape.

    Returns
    -------
    TensorVariable or None
        Of the shape of `hole`; None if the family has no closed form for the parameter.
    """
    information = family.fisher.get(name) if name is not None else None
    if natural.whitens:
        per_entry, core_ndim = pt.ones_like(hole), 1
    elif name is not None and information is not None:
        per_entry = information(parameters) * natural.slope(parameters[name]) ** 2
        core_ndim = dict(zip(family.roles, op.ndims_params, strict=False)).get(name, 0)
    else:
        return None
    batch = tuple(value.shape)[: value.type.ndim - op.ndim_supp]
    core = tuple(per_entry.shape)[per_entry.type.ndim - core_ndim :]
    full = pt.broadcast_to(per_entry, (*batch, *core))
    # the transpose of `spread` sums the entries' weights
    constant = full.type()
    [weight] = gradient((natural.spread(hole) * constant).sum(), [hole])
    return substitute([weight], {constant: full})[0]


def output_shape(
    output: TensorVariable, root: TensorVariable, value: TensorVariable, name: str
) -> tuple[int, ...]:
    """Shape of a forward output, without an evaluation of a foreign forward model.

    Parameters
    ----------
    output : TensorVariable
        The output.
    root : TensorVariable
        The vector of unknowns.
    value : TensorVariable
        Values of the random variable. If all else fails, the output is aligned with them.
    name : str
        Name of the random variable.

    Returns
    -------
    tuple of int

    Raises
    ------
    ValueError
        If the shape is not known.
    """
    if None not in output.type.shape:
        return output.type.shape
    function = pytensor.function([root], output.shape, on_unused_input="ignore", mode=cheap_mode())
    if not any(is_foreign(node) for node in function.maker.fgraph.apply_nodes):
        return tuple(map(int, function(np.zeros(root.type.shape))))
    if output.type.ndim == value.type.ndim:
        known = (
            value.shape.eval(mode=cheap_mode()) if None in value.type.shape else value.type.shape
        )
        return tuple(
            int(k if n is None else n) for n, k in zip(output.type.shape, known, strict=True)
        )
    raise ValueError(
        f"The shape of the forward outputs behind `{name}` is not known before an evaluation. "
        "Declare it with pytensor.tensor.specify_shape(output, shape)."
    )
