"""The walk through a PyMC model: forward outputs, likelihood terms and prior.

For every observed variable the inputs of its likelihood that depend on the unknowns are found (the
frontier). They are the forward outputs, except that some are taken in their natural form. What
stands before the frontier is the forward map, what stands behind it is the loss.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pymc as pm
import pytensor
import pytensor.scalar as ps
import pytensor.tensor as pt
from pymc.distributions.distribution import SymbolicRandomVariable
from pymc.model import Model
from pytensor.compile.ops import FromFunctionOp
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Apply, Constant, Variable, equal_computations
from pytensor.graph.replace import graph_replace
from pytensor.graph.rewriting.utils import rewrite_graph
from pytensor.graph.traversal import ancestors, walk
from pytensor.tensor.elemwise import DimShuffle
from pytensor.tensor.random.op import RandomVariable
from pytensor.tensor.random.type import RandomType
from pytensor.tensor.variable import TensorVariable
from pytensor.xtensor import as_xtensor
from pytensor.xtensor.type import XTensorType

from pymc_ensemble.problem.batching import CHEAP_MODE
from pymc_ensemble.problem.curvature import FAMILIES, Family
from pymc_ensemble.problem.links import Natural, Role, natural, scalar_op

QUADRATIC = (pm.Normal.rv_type, pm.LogNormal.rv_type, pm.MvNormal.rv_type)


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
class Term:
    """The likelihood of one observed variable as a function of forward outputs.

    Parameters
    ----------
    name : str
        Name of the observed variable.
    holes : list of TensorVariable
        Variables in place of the forward outputs.
    outputs : list of TensorVariable
        The forward outputs as expressions of the unknowns, of the shapes of `holes`.
    bounds : list of (float, float)
        Domain of each output.
    loss : TensorVariable
        Scalar loss of the holes and `observation`.
    observation, data : TensorVariable
        A variable in place of the observed values, and these.
    weights : list of TensorVariable or None
        Fisher weights in closed form, of the shapes of `holes`.
    variable : TensorVariable
        The random variable given the holes, to simulate from.
    quadratic : bool
        Whether the loss is quadratic in the outputs with constant curvature.
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


@dataclass(frozen=True)
class Extraction:
    """A PyMC model taken apart."""

    coordinates: Coordinates
    terms: list[Term]
    log_prior: TensorVariable
    prior_draws: list[TensorVariable] = field(repr=False)
    flat: list[str] = field(default_factory=list)


def extract(model: Model, vars: Sequence[Variable] | None = None) -> Extraction:
    """Take a model apart into forward outputs, likelihood terms and prior.

    Parameters
    ----------
    model : pymc.Model
        The model.
    vars : sequence of Variable, optional
        The variables to sample; all continuous variables of the model must be among them.

    Returns
    -------
    Extraction
    """
    check_model(model, vars)
    coordinates = join_coordinates(model)
    terms = extract_terms(model, coordinates)
    [log_prior] = as_functions_of(
        coordinates, [model.logp(vars=[*model.free_RVs, *model.potentials], jacobian=True)]
    )
    return Extraction(coordinates, terms, log_prior, prior_draws(model), flat_variables(model))


# --- checks ---------------------------------------------------------------------------------------


def check_model(model: Model, vars: Sequence[Variable] | None) -> None:
    """Refuse what cannot be sampled, naming the variable and the remedy."""
    if model.discrete_value_vars:
        discrete = [model.values_to_rvs[v].name for v in model.discrete_value_vars]
        raise ValueError(
            f"{_quoted(discrete)} {_are(discrete)} discrete; ensemble samplers move continuous "
            f"variables only. Marginalize {_them(discrete)} out of the model (for example with a "
            "pm.Mixture), or sample the model with another step method."
        )
    if not model.observed_RVs:
        raise ValueError(
            "The model has no observed variable, hence no likelihood to invert. Give the data to a "
            "variable with `observed=`, or draw from the prior with pm.sample_prior_predictive."
        )
    for rv in model.observed_RVs:
        if isinstance(rv.owner.op, pm.Simulator.rv_type):
            raise NotImplementedError(
                f"`{rv.name}` is a pm.Simulator, whose likelihood is itself random. Make its "
                "simulator the forward map (pe.forward_model) of an ordinary likelihood such as "
                "pm.Normal or pm.MvNormal."
            )
    if vars is not None:
        given = {model.rvs_to_values.get(v, v) for v in vars}
        missing = [model.values_to_rvs[v].name for v in model.value_vars if v not in given]
        if missing:
            raise ValueError(
                f"`vars` leaves out {_quoted(missing)}; an ensemble step owns all continuous "
                f"variables of the model. Add {_them(missing)} to `vars` or leave `vars` out; to "
                "hold a variable fixed, use pm.do."
            )


def _quoted(names: Iterable[str | None]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _are(names: Sequence) -> str:
    return "is" if len(names) == 1 else "are"


def _them(names: Sequence) -> str:
    return "it" if len(names) == 1 else "them"


def flat_variables(model: Model) -> list[str]:
    """Names of variables without a proper prior to draw from."""
    improper = (pm.Flat.rv_type, pm.HalfFlat.rv_type)
    return [rv.name for rv in model.free_RVs if isinstance(_core_op(rv), improper)]


def _core_op(rv: Variable):
    op = rv.owner.op
    return getattr(op, "core_op", op)


# --- coordinates ----------------------------------------------------------------------------------


def join_coordinates(model: Model) -> Coordinates:
    """Write all value variables as pieces of one vector."""
    if any(None in v.type.shape for v in model.value_vars):
        with pytensor.config.change_flags(mode=CHEAP_MODE):
            known = model.eval_rv_shapes()
        shapes = {v.name: tuple(map(int, known[v.name])) for v in model.value_vars}
    else:
        shapes = {v.name: tuple(v.type.shape) for v in model.value_vars}
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    root = pt.vector("u", shape=(sum(sizes),), dtype="float64")
    ends = np.cumsum(sizes)
    values = {}
    for var, size, end in zip(model.value_vars, sizes, ends, strict=True):
        shape = shapes[var.name]
        piece = root[end - 1] if shape == () else root[end - size : end]
        if len(shape) > 1:
            piece = piece.reshape(shape)
        piece = piece.astype(var.type.dtype)
        values[var] = as_xtensor(piece, dims=var.type.dims) if is_labelled(var) else piece
    return Coordinates(root, values, shapes)


def as_functions_of(
    coordinates: Coordinates, graphs: Sequence[Variable]
) -> list[TensorVariable]:
    """Rewrite graphs of value variables as graphs of the vector of unknowns, without labels."""
    return unlabelled(graph_replace(list(graphs), coordinates.values, strict=False))


def is_labelled(variable: Variable) -> bool:
    """Whether a variable has named dimensions."""
    return isinstance(variable.type, XTensorType)


def unlabelled(graphs: Sequence[Variable]) -> list[TensorVariable]:
    """Lower graphs with named dimensions to plain tensors."""
    if not any(is_labelled(v) for v in ancestors(graphs)):
        return list(graphs)
    tensors = [g.values if is_labelled(g) else g for g in graphs]
    return rewrite_graph(tensors, include=("lower_xtensor", "canonicalize"), clone=True)


# --- likelihood terms -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Frontier:
    """A likelihood and its inputs that depend on the unknowns.

    Parameters
    ----------
    rv : TensorVariable
        The random variable, without labelled dimensions.
    inputs : dict of TensorVariable to Role
        The inputs that depend on the unknowns, and what they are.
    family : Family or None
        The family of the random variable, if it is one of the table.
    parameters : dict of str to TensorVariable
        All parameters of the family by name.
    sources : dict of TensorVariable to Variable
        For a model with labelled dimensions, the labelled variable behind each root of `rv`.
    """

    rv: TensorVariable
    inputs: dict[TensorVariable, Role]
    family: Family | None
    parameters: dict[str, TensorVariable]
    sources: dict[TensorVariable, Variable]


def extract_terms(model: Model, coordinates: Coordinates) -> list[Term]:
    """Find the likelihood terms of all observed variables."""
    values = {rv: model.rvs_to_values[rv] for rv in model.observed_RVs}
    frontiers = []
    for rv in model.observed_RVs:
        others = {k: v for k, v in values.items() if k is not rv}
        frontier = find_frontier(rv, model.free_RVs, others)
        if not frontier.inputs:
            raise ValueError(
                f"The likelihood of `{rv.name}` does not depend on the unknowns of the model. "
                "Let its parameters depend on them, or take it out of the model."
            )
        frontiers.append(frontier)

    # all at once: what the likelihoods share is shared by the forward outputs
    variables = [v for f in frontiers for v in (f.sources.values() if f.sources else f.inputs)]
    in_values = model.replace_rvs_by_values(variables)
    expressions = dict(zip(variables, as_functions_of(coordinates, in_values), strict=True))

    terms = []
    for rv, frontier in zip(model.observed_RVs, frontiers, strict=True):
        if frontier.sources:
            tensors = {root: expressions[v] for root, v in frontier.sources.items()}
            inputs = graph_replace(list(frontier.inputs), tensors, strict=False)
        else:
            inputs = [expressions[v] for v in frontier.inputs]
        [data] = unlabelled([values[rv]])
        terms.append(make_term(rv.name, frontier, inputs, data, coordinates.root, model.free_RVs))
    return terms


def find_frontier(
    rv: Variable, free: Sequence[Variable], observed: dict[Variable, Variable]
) -> Frontier:
    """Find the inputs of a likelihood that depend on the unknowns.

    Parameters
    ----------
    rv : Variable
        The observed random variable.
    free : sequence of Variable
        The free random variables of the model.
    observed : dict of Variable to Variable
        The other observed variables and their values: to this likelihood they are data.

    Returns
    -------
    Frontier
    """
    upstream = set(ancestors([rv]))
    if observed := {k: v for k, v in observed.items() if k in upstream}:
        [rv] = graph_replace([rv], observed)
    sources: dict[TensorVariable, Variable] = {}
    if is_labelled(rv):
        cuts = {}
        for v in likelihood_inputs(rv, free):
            tensor = pt.tensor(dtype=v.type.dtype, shape=v.type.shape)
            cuts[v] = as_xtensor(tensor, dims=v.type.dims) if is_labelled(v) else tensor
            sources[tensor] = v
        [rv] = unlabelled(graph_replace([rv], cuts))
        free = list(sources)

    found = likelihood_inputs(rv, free)
    family = FAMILIES.get(type(rv.owner.op))
    if family is None:
        inputs = {v: role(users) for v, users in found.items()}
        return Frontier(rv, inputs, None, {}, sources)
    parameters = name_parameters(rv, family)
    if "mu" in parameters and isinstance(rv.owner.op, pm.NegativeBinomial.rv_type):
        roots = frozenset(free)
        found = {
            v: family.roles[name]
            for name, v in parameters.items()
            if not roots.isdisjoint(ancestors([v]))
        }
        return Frontier(rv, found, family, parameters, sources)
    return Frontier(rv, {v: role(u) for v, u in found.items()}, family, parameters, sources)


def likelihood_inputs(
    rv: Variable, free: Sequence[Variable]
) -> dict[Variable, list[tuple[Apply, int]]]:
    """Walk to the inputs that depend on free variables, through random variables inside.

    `Censored`, `Mixture` and the like take random variables as inputs; what is wanted are the
    inputs of those.

    Returns
    -------
    dict of Variable to list of (Apply, int)
        The inputs in the order found, each with the nodes that use it and at which position.
    """
    roots = frozenset(free)
    found: dict[Variable, list[tuple[Apply, int]]] = {}
    visited = set()

    def visit(node: Apply) -> None:
        if node in visited:
            return
        visited.add(node)
        for position, v in enumerate(node.inputs):
            if isinstance(v.type, RandomType) or isinstance(v, Constant) or _is_size(node, v):
                continue
            if roots.isdisjoint(ancestors([v])):
                continue
            if v not in roots and _contains_random_variable(v, roots):
                visit(v.owner)
            else:
                found.setdefault(v, []).append((node, position))

    visit(rv.owner)
    return found


def _is_size(node: Apply, variable: Variable) -> bool:
    size = getattr(node.op, "size_param", lambda node: None)(node)
    return variable is size


def _contains_random_variable(variable: Variable, roots: frozenset[Variable]) -> bool:
    upstream = walk([variable], lambda v: v.owner.inputs if v.owner and v not in roots else None)
    return any(
        isinstance(_core_op(v), RandomVariable | SymbolicRandomVariable)
        for v in upstream
        if v.owner and v not in roots
    )


def role(users: Sequence[tuple[Apply, int]]) -> Role:
    """What an input is to the random variables that use it."""
    roles = set()
    for node, position in users:
        family = FAMILIES.get(type(node.op))
        arguments = node.op.dist_params(node) if family is not None else []
        names = dict(zip((id(v) for v in arguments), family.roles, strict=False)) if family else {}
        name = names.get(id(node.inputs[position]))
        roles.add(family.roles[name] if name is not None else Role.OTHER)
    return roles.pop() if len(roles) == 1 else Role.OTHER


def name_parameters(rv: TensorVariable, family: Family) -> dict[str, TensorVariable]:
    """Parameters of a random variable by name, in the spelling that has orthogonal ones."""
    node = rv.owner
    parameters = dict(zip(family.roles, node.op.dist_params(node), strict=False))
    if isinstance(node.op, pm.NegativeBinomial.rv_type):
        return _mean_and_dispersion(**parameters) or parameters
    return parameters


def _mean_and_dispersion(
    alpha: TensorVariable, p: TensorVariable
) -> dict[str, TensorVariable] | None:
    """Find mu in p = sigmoid(log(alpha) - log(mu)), as PyMC spells alpha / (mu + alpha)."""
    difference = _argument(p, ps.Sigmoid)
    if difference is None or not isinstance(scalar_op(difference), ps.Sub):
        return None
    log_alpha, log_mu = difference.owner.inputs
    dispersion, mu = _argument(log_alpha, ps.Log), _argument(log_mu, ps.Log)
    if mu is None:
        return None
    alpha = _without_dimshuffle(alpha)
    if dispersion is not None:
        same = dispersion is alpha or equal_computations([dispersion], [alpha])
    else:
        same = isinstance(alpha, Constant) and isinstance(
            constant := _without_dimshuffle(log_alpha), Constant
        ) and np.array_equal(np.log(alpha.data), constant.data)
    return {"alpha": alpha, "mu": mu} if same else None


def _argument(variable: TensorVariable, function: type[ps.ScalarOp]) -> TensorVariable | None:
    variable = _without_dimshuffle(variable)
    if not isinstance(scalar_op(variable), function):
        return None
    return _without_dimshuffle(variable.owner.inputs[0])


def _without_dimshuffle(variable: TensorVariable) -> TensorVariable:
    while variable.owner is not None and isinstance(variable.owner.op, DimShuffle):
        variable = variable.owner.inputs[0]
    return variable


def make_term(
    name: str,
    frontier: Frontier,
    inputs: Sequence[TensorVariable],
    data: TensorVariable,
    root: TensorVariable,
    free: Sequence[Variable],
) -> Term:
    """Write the likelihood as a function of forward outputs in natural form.

    Parameters
    ----------
    name : str
        Name of the observed variable.
    frontier : Frontier
        The likelihood and its inputs.
    inputs : sequence of TensorVariable
        The inputs as functions of the unknowns.
    data : TensorVariable
        The observed values.
    root : TensorVariable
        The vector of unknowns.
    free : sequence of Variable
        The free random variables of the model.

    Returns
    -------
    Term
    """
    rv, family = frontier.rv, frontier.family
    names = {v: k for k, v in frontier.parameters.items()}
    naturals = [
        whitened(expression, frontier.parameters["cov"])
        if _is_whitenable(frontier, v)
        else natural(expression, role, root)
        for (v, role), expression in zip(frontier.inputs.items(), inputs, strict=True)
    ]
    shapes = output_shapes([n.output for n in naturals], root, data, name)
    holes = [
        pt.tensor(f"{name}_{i}", dtype=n.output.type.dtype, shape=shape)
        for i, (n, shape) in enumerate(zip(naturals, shapes, strict=True))
    ]
    given = {
        v: v.type.filter_variable(n.parameter(hole), allow_convert=True)
        for v, n, hole in zip(frontier.inputs, naturals, holes, strict=True)
    }
    [rv_given] = graph_replace([rv], given)
    # what is left of the free variables is their shape, in sizes
    left = [v for v in free if v in set(ancestors([rv_given]))]
    [rv_given] = graph_replace([rv_given], {v: pt.zeros(v.type.shape, v.dtype) for v in left})
    observation = data.type(name=f"{name}_observation")
    loss = -pm.logp(rv_given, observation, warn_rvs=False).sum()

    weights: list[TensorVariable | None] = [None] * len(holes)
    if family is not None:
        parameters = dict(
            zip(
                frontier.parameters,
                graph_replace(list(frontier.parameters.values()), given, strict=False),
                strict=True,
            )
        )
        weights = [
            fisher_weight(rv.owner.op, family, names.get(v), n, hole, parameters, data)
            for v, n, hole in zip(frontier.inputs, naturals, holes, strict=True)
        ]
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
    )


def fisher_weight(
    op: RandomVariable,
    family: Family,
    name: str | None,
    natural: Natural,
    hole: TensorVariable,
    parameters: dict[str, TensorVariable],
    data: TensorVariable,
) -> TensorVariable | None:
    """Fisher information of a forward output, summed over all observations that it feeds.

    Returns
    -------
    TensorVariable or None
        Of the shape of `hole`; None if the family has no closed form for the parameter.
    """
    information = family.fisher.get(name) if name is not None else None
    if natural.whitens:
        per_entry, core_ndim = pt.ones_like(hole), 1
    elif information is not None:
        per_entry = information(parameters) * natural.slope(parameters[name]) ** 2
        core_ndim = dict(zip(family.roles, op.ndims_params, strict=False)).get(name, 0)
    else:
        return None
    batch = tuple(data.shape)[: data.type.ndim - op.ndim_supp]
    core = tuple(per_entry.shape)[per_entry.type.ndim - core_ndim :]
    full = pt.broadcast_to(per_entry, (*batch, *core))
    # the transpose of `spread` sums the entries' weights
    constant = full.type()
    [weight] = graph_replace(
        [pytensor.grad((natural.spread(hole) * constant).sum(), hole)], {constant: full}
    )
    return weight


def _is_whitenable(frontier: Frontier, variable: TensorVariable) -> bool:
    """Whether a variable is the mean of a Gaussian vector whose covariance is data."""
    parameters = frontier.parameters
    return (
        isinstance(frontier.rv.owner.op, pm.MvNormal.rv_type)
        and variable is parameters["mu"]
        and list(frontier.inputs) == [variable]
    )


def whitened(mean: TensorVariable, covariance: TensorVariable) -> Natural:
    """Output L^-1 mean of a Gaussian vector with the fixed covariance L L^T."""
    factor = pt.linalg.cholesky(covariance)
    if not any(isinstance(v, SharedVariable) for v in ancestors([factor])):
        with pytensor.config.change_flags(mode=CHEAP_MODE):
            factor = pt.constant(factor.eval())

    def colored(hole: TensorVariable) -> TensorVariable:
        return (factor @ hole[..., None])[..., 0]

    output = pt.linalg.solve_triangular(factor, mean, lower=True, b_ndim=1)
    return Natural(output, colored, lambda hole: hole, pt.ones_like, whitens=True)


def output_shapes(
    outputs: Sequence[TensorVariable], root: TensorVariable, data: TensorVariable, name: str
) -> list[tuple[int, ...]]:
    """Shapes of the forward outputs, without an evaluation of a foreign forward model."""
    shapes = []
    for output in outputs:
        shape = output.type.shape
        if None in shape:
            with pytensor.config.change_flags(mode=CHEAP_MODE):
                function = pytensor.function([root], output.shape, on_unused_input="ignore")
            if not any(is_foreign(node) for node in function.maker.fgraph.apply_nodes):
                shape = tuple(map(int, function(np.zeros(root.type.shape))))
            elif output.type.ndim == data.type.ndim:
                known = data.shape.eval() if None in data.type.shape else data.type.shape
                shape = tuple(
                    int(n) if m is None else m for m, n in zip(shape, known, strict=True)
                )
            else:
                raise ValueError(
                    f"The shape of the forward outputs behind `{name}` cannot be told before an "
                    "evaluation. Declare it with pytensor.tensor.specify_shape(output, shape)."
                )
        shapes.append(shape)
    return shapes


def is_foreign(node: Apply) -> bool:
    """Whether a node runs code from outside PyTensor and PyMC, which may fail at a point."""
    module = type(node.op).__module__
    return isinstance(node.op, FromFunctionOp) or not module.startswith(
        ("pytensor.", "pymc.distributions", "pymc.logprob", "pymc.pytensorf", "pymc.math")
    )


# --- prior ----------------------------------------------------------------------------------------


def prior_draws(model: Model) -> list[TensorVariable]:
    """Random value variables: the free variables behind their transforms, as their law has it."""
    draws = []
    for rv in model.free_RVs:
        transform = model.rvs_to_transforms[rv]
        draws.append(rv if transform is None else transform.forward(rv, *rv.owner.inputs))
    return unlabelled(draws)
