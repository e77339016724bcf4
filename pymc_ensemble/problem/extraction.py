"""The walk through a PyMC model: forward outputs, likelihood terms and prior.

For every observed variable, the walk finds the inputs of its likelihood that depend on the unknowns
(the frontier). They are the forward outputs, some of them in their natural form. The graph before
the frontier is the forward map, the graph behind it is the loss.
"""

import contextlib
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from pymc.model import Model
from pytensor.graph.basic import Variable
from pytensor.graph.traversal import walk
from pytensor.tensor.variable import TensorVariable
from pytensor.xtensor import as_xtensor

from pymc_ensemble.problem._pymc import (
    CircularTransform,
    Ordered,
    PartialObservedRV,
    Transform,
)
from pymc_ensemble.problem.checks import check_constants, check_model, quoted
from pymc_ensemble.problem.frontier import (
    Site,
    core_op,
    find_frontier,
    is_foreign,
    is_labelled,
    unlabelled,
)
from pymc_ensemble.problem.graphs import is_differentiable, substitute
from pymc_ensemble.problem.points import forward, middle_of_period, shapes_of
from pymc_ensemble.problem.terms import Term, density_term, make_term

logger = logging.getLogger("pymc_ensemble")


@dataclass(frozen=True)
class Coordinates:
    """The unknowns of a model as one vector, in the order of its value variables."""

    root: TensorVariable
    values: dict[Variable, Variable]
    shapes: dict[str, tuple[int, ...]]

    @property
    def names(self) -> tuple[str, ...]:
        """One name per coordinate, such as ``beta[0]``."""
        return tuple(
            name + (f"[{','.join(map(str, index))}]" if shape else "")
            for name, shape in self.shapes.items()
            for index in np.ndindex(shape)
        )


@dataclass(frozen=True)
class Extraction:
    """Parts of a PyMC model.

    Parameters
    ----------
    coordinates : Coordinates
        The unknowns.
    terms : list of Term
        The likelihood terms.
    constant : TensorVariable or None
        Loss of the observed variables that do not depend on the unknowns.
    log_prior : dict of str to TensorVariable
        Scalar terms of the log prior density as functions of the unknowns, by their names.
    prior_draws : list of TensorVariable
        Random value variables.
    flat : list of str
        Names of the variables whose prior is improper.
    """

    coordinates: Coordinates
    terms: list[Term]
    constant: TensorVariable | None
    log_prior: dict[str, TensorVariable]
    prior_draws: list[TensorVariable] = field(repr=False)
    flat: list[str] = field(default_factory=list)


def extract(
    model: Model,
    vars: Sequence[Variable | str] | None = None,
    given: Collection[str] = (),
    jacobian: bool = True,
) -> Extraction:
    """Take a model apart into forward outputs, likelihood terms and prior.

    Parameters
    ----------
    model : pymc.Model
        The model.
    vars : sequence of Variable or str, optional
        The variables to sample, or their names; all continuous variables of the model must be
        among them.
    given : collection of str, default ()
        Names of observed variables that are not data, but held fixed. These may be independent of
        the unknowns.
    jacobian : bool, default True
        Whether the prior is that of the unconstrained coordinates.

    Returns
    -------
    Extraction
        The parts.
    """
    check_model(model, vars)
    densities = log_densities(model, jacobian)
    check_constants(model, densities)
    coordinates = join_coordinates(model)
    # a free variable that depends on the forward model is imputed: its density is a likelihood, too
    latent = [rv for rv in model.free_RVs if is_behind_forward_model(rv, model)]
    terms = extract_terms(model, coordinates, latent)
    constant = extract_constant(model, coordinates, terms, given)
    log_prior = extract_prior(model, coordinates, latent, densities, jacobian)
    for potential in model.potentials:  # a potential without a gradient is a further output
        density = log_prior[potential.name]
        if not is_differentiable(density, coordinates.root):
            terms.append(density_term(pt.atleast_1d(-log_prior.pop(potential.name))))
    return Extraction(
        coordinates,
        terms,
        constant,
        log_prior,
        prior_draws(model),
        flat_variables(model),
    )


def extract_density(
    model: Model, vars: Sequence[Variable | str] | None = None, jacobian: bool = True
) -> Extraction:
    """Take a model apart into a prior and a log density that is known by its values only.

    Parameters
    ----------
    model : pymc.Model
        The model.
    vars : sequence of Variable or str, optional
        The variables to sample, or their names; all continuous variables of the model must be
        among them.
    jacobian : bool, default True
        Whether the prior is that of the unconstrained coordinates.

    Returns
    -------
    Extraction
        The one output is the negative log density of the observed variables and the potentials,
        and of the free variables whose own density has no gradient.
    """
    check_model(model, vars, needs_likelihood=False)
    densities = log_densities(model, jacobian)
    check_constants(model, densities)
    coordinates = join_coordinates(model)
    log_prior = extract_prior(model, coordinates, [], densities, jacobian)
    potentials = {potential.name for potential in model.potentials}
    unknown = [
        density
        for name, density in log_prior.items()
        if name in potentials or not is_differentiable(density, coordinates.root)
    ]
    log_prior = {name: term for name, term in log_prior.items() if term not in unknown}
    log_prior = log_prior or {"nothing": pt.constant(0.0)}
    if model.observed_RVs:
        if none := [rv for rv in model.observed_RVs if rv not in densities]:
            model.logp(vars=none)  # PyMC's error says why there is none
        observed = [densities[rv] for rv in model.observed_RVs]
        unknown += [d.sum() for d in as_functions_of(coordinates, observed)]
    output = -pt.add(0.0, 0.0, *unknown)
    terms = [density_term(pt.atleast_1d(output))]
    return Extraction(
        coordinates,
        terms,
        None,
        log_prior,
        prior_draws(model),
        flat_variables(model),
    )


def flat_variables(model: Model) -> list[str]:
    """Names of variables without a proper prior to draw from."""
    improper = (pm.Flat.rv_type, pm.HalfFlat.rv_type)
    return [rv.name for rv in model.free_RVs if isinstance(core_op(rv), improper)]


def is_behind_forward_model(rv: Variable, model: Model) -> bool:
    """Whether the distribution of a free variable depends on a foreign forward model."""
    stop = set(model.basic_RVs) - {rv}
    upstream = walk(
        rv.owner.inputs, lambda v: v.owner.inputs if v.owner and v not in stop else None
    )
    return any(v.owner and v not in stop and is_foreign(v.owner) for v in upstream)


# --- coordinates ----------------------------------------------------------------------------------


def join_coordinates(model: Model) -> Coordinates:
    """Write all value variables as pieces of one vector."""
    known = shapes_of(model)
    shapes = {v.name: known[v.name] for v in model.value_vars}
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    root = pt.vector("u", shape=(sum(sizes),), dtype="float64")
    values: dict[Variable, Variable] = {}
    for var, size, end in zip(model.value_vars, sizes, np.cumsum(sizes), strict=True):
        shape = shapes[var.name]
        piece = root[end - size : end].reshape(shape) if shape else root[end - 1]
        piece = piece.astype(var.type.dtype)
        values[var] = as_xtensor(piece, dims=var.type.dims) if is_labelled(var) else piece
    return Coordinates(root, values, shapes)


def as_functions_of(coordinates: Coordinates, graphs: Sequence[Variable]) -> list[TensorVariable]:
    """Rewrite graphs of value variables as graphs of the vector of unknowns, without labels."""
    return unlabelled(substitute(graphs, coordinates.values))


# --- likelihood -----------------------------------------------------------------------------------


def extract_terms(model: Model, coordinates: Coordinates, latent: Sequence[Variable]) -> list[Term]:
    """Find the likelihood terms of all observed variables, and of unknown ones with a likelihood.

    Observed variables that do not depend on the unknowns have no term.
    """
    data = {rv: model.rvs_to_values[rv] for rv in model.observed_RVs}
    variables = [*model.observed_RVs, *latent]
    frontiers = {}
    for rv in variables:
        others = {k: v for k, v in data.items() if k is not rv}
        frontier = find_frontier(rv, model.free_RVs, others)
        if frontier.inputs:
            frontiers[rv] = frontier
    if not frontiers:
        raise ValueError(
            f"The likelihood of {quoted(v.name for v in variables)} does not depend on the "
            "unknowns of the model. Let its parameters depend on them."
        )

    # all at once, so that forward outputs share the common parts of the likelihoods
    wanted = [
        v for f in frontiers.values() for v in (f.sources.values() if f.sources else f.inputs)
    ]
    wanted += model.free_RVs
    in_values = model.replace_rvs_by_values(wanted)
    expressions = dict(zip(wanted, as_functions_of(coordinates, in_values), strict=True))

    terms = []
    for rv, frontier in frontiers.items():
        if frontier.sources:
            sources = {root: expressions[v] for root, v in frontier.sources.items()}
            inputs = substitute(list(frontier.inputs), sources)
        else:
            sources = {v: expressions[v] for v in model.free_RVs}
            inputs = [expressions[v] for v in frontier.inputs]
        site = Site(
            name=rv.name,
            frontier=frontier,
            inputs=inputs,
            value=expressions[rv] if rv in latent else unlabelled([data[rv]])[0],
            latent=rv in latent,
            missing=_missing_entries(rv, model, expressions),
            shape_sources=sources,
        )
        terms.append(make_term(site, coordinates.root))
    return terms


def extract_constant(
    model: Model, coordinates: Coordinates, terms: Sequence[Term], given: Collection[str] = ()
) -> TensorVariable | None:
    """Loss of the observed variables that do not depend on the unknowns, if there are any."""
    found = {term.name for term in terms}
    constant = [rv for rv in model.observed_RVs if rv.name not in found]
    if not constant:
        return None
    if names := [rv.name for rv in constant if rv.name not in given]:
        logger.warning(
            "The likelihood of %s does not depend on the unknowns: %s a constant. Check that its "
            "parameters use them.",
            quoted(names),
            "it is" if len(names) == 1 else "they are",
        )
    densities = as_functions_of(coordinates, model.logp(vars=constant, sum=False))
    return -pt.add(*[density.sum() for density in densities], 0.0)


def _missing_entries(
    rv: Variable, model: Model, expressions: Mapping[Variable, TensorVariable]
) -> TensorVariable | None:
    """Values on the other side of the mask, if both sides share one distribution."""
    if not isinstance(rv.owner.op, PartialObservedRV):
        return None
    [other] = [v for v in rv.owner.outputs if v is not rv]
    return expressions[other] if other in model.free_RVs else model.rvs_to_values[other]


# --- prior ----------------------------------------------------------------------------------------


def log_densities(model: Model, jacobian: bool = True) -> dict[Variable, TensorVariable]:
    """Log densities of the variables of a model, without those that have none.

    They are derived together, which takes less time than one by one.
    """
    try:
        found = model.logp(vars=model.basic_RVs, jacobian=jacobian, sum=False)
        return dict(zip(model.basic_RVs, found, strict=True))
    except NotImplementedError:
        densities = {}
        for rv in model.basic_RVs:
            with contextlib.suppress(NotImplementedError):
                [densities[rv]] = model.logp(vars=[rv], jacobian=jacobian, sum=False)
        return densities


def extract_prior(
    model: Model,
    coordinates: Coordinates,
    latent: Sequence[Variable],
    given: Mapping[Variable, TensorVariable],
    jacobian: bool = True,
) -> dict[str, TensorVariable]:
    """Log prior density as a function of the unconstrained coordinates, term by term.

    If the density of a variable is part of the likelihood, only the Jacobian of its transform
    counts here. The log densities of variables are given, see `log_densities`.
    """
    ordinary = [rv for rv in model.free_RVs if rv not in latent]
    names = [rv.name for rv in ordinary]
    if none := [rv for rv in ordinary if rv not in given]:
        model.logp(vars=none)  # PyMC's error says why there is none
    densities = [given[rv] for rv in ordinary]
    for rv in latent:
        if jacobian and (transform := model.rvs_to_transforms[rv]) is not None:
            log_determinant = transform.log_jac_det(model.rvs_to_values[rv], *rv.owner.inputs)
            names.append(rv.name)
            densities += model.replace_rvs_by_values([log_determinant])
    for rv in model.free_RVs:
        if isinstance(model.rvs_to_transforms[rv], CircularTransform):
            turn = model.rvs_to_values[rv] - middle_of_period(rv, rv.owner.inputs)
            names.append(f"{rv.name}, one period of it")
            densities += model.replace_rvs_by_values([pt.switch(abs(turn) <= np.pi, 0.0, -np.inf)])
    names += [potential.name for potential in model.potentials]
    densities += model.replace_rvs_by_values(model.potentials)
    densities = as_functions_of(coordinates, densities)
    return {name: density.sum() for name, density in zip(names, densities, strict=True)}


def prior_draws(model: Model) -> list[TensorVariable]:
    """Random value variables: transformed draws of the free variables.

    If a transform orders independent variables with the same distribution, draws are sorted first.
    This is their distribution, given their order.
    """
    observed = {rv: model.rvs_to_values[rv] for rv in model.observed_RVs}
    draws = []
    for rv in model.free_RVs:
        transform = model.rvs_to_transforms[rv]
        if transform is None:
            draws.append(rv)
            continue
        draw = pt.sort(rv, axis=-1) if _is_exchangeable(rv, transform) else rv
        draws.append(forward(rv, transform, draw, rv.owner.inputs))
    return unlabelled(substitute(draws, observed))


def _is_exchangeable(rv: Variable, transform: Transform) -> bool:
    if not isinstance(transform, Ordered) or rv.owner.op.ndim_supp > 0:
        return False
    return all(p.type.ndim == 0 or p.type.shape[-1] == 1 for p in rv.owner.op.dist_params(rv.owner))
