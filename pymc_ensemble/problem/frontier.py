"""The frontier of a likelihood: its inputs that depend on the unknowns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pymc as pm
import pytensor.scalar as ps
import pytensor.tensor as pt
from pytensor.graph.basic import Apply, Constant, Variable, equal_computations
from pytensor.graph.op import Op
from pytensor.graph.replace import _vectorize_node
from pytensor.graph.traversal import ancestors, walk
from pytensor.tensor.elemwise import DimShuffle
from pytensor.tensor.random.op import RandomVariable
from pytensor.tensor.random.type import RandomType
from pytensor.tensor.variable import TensorVariable
from pytensor.xtensor import as_xtensor
from pytensor.xtensor.type import XTensorType

from pymc_ensemble.problem._pymc import LOWER_LABELS, FromFunctionOp, SymbolicRandomVariable
from pymc_ensemble.problem.curvature import FAMILIES, Family
from pymc_ensemble.problem.graphs import named_rewrites, rewritten, substitute
from pymc_ensemble.problem.links import Role, scalar_op


@dataclass(frozen=True)
class Frontier:
    """A likelihood and its inputs that depend on the unknowns.

    Parameters
    ----------
    rv : TensorVariable
        The random variable, without labelled dimensions.
    inputs : dict of TensorVariable to Role
        The inputs that depend on the unknowns, and their roles.
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


@dataclass(frozen=True)
class Site:
    """A random variable with a likelihood, and its parts.

    Parameters
    ----------
    name : str
        Its name.
    frontier : Frontier
        Its likelihood, and those inputs of the likelihood that depend on the unknowns.
    inputs : list of TensorVariable
        These inputs as functions of the unknowns.
    value : TensorVariable
        Its values: data, or a function of the unknowns if it is unknown itself.
    latent : bool
        Whether it is itself unknown.
    missing : TensorVariable, optional
        The other values, if the variable is masked and both sides share one distribution.
    shape_sources : dict of Variable to TensorVariable, default {}
        Roots of the likelihood that may remain in it, only for their shape.
    """

    name: str
    frontier: Frontier
    inputs: list[TensorVariable]
    value: TensorVariable
    latent: bool = False
    missing: TensorVariable | None = None
    shape_sources: Mapping[Any, TensorVariable] = field(default_factory=dict)


def find_frontier(rv: Any, free: Sequence[Any], observed: dict[Variable, Variable]) -> Frontier:
    """Find the inputs of a likelihood that depend on the unknowns.

    Parameters
    ----------
    rv : Variable
        The observed random variable.
    free : sequence of Variable
        The free random variables of the model.
    observed : dict of Variable to Variable
        The other observed variables and their values, which are data for this likelihood.

    Returns
    -------
    Frontier
    """
    upstream = set(ancestors([rv]))
    if observed := {k: v for k, v in observed.items() if k in upstream}:
        # copies must not replace free variables that depend on the data
        stand_ins = {v: v.type() for v in free if v in upstream}
        [rv] = substitute([rv], {**observed, **stand_ins})
        [rv] = substitute([rv], {stand_in: v for v, stand_in in stand_ins.items()})
    sources: dict[TensorVariable, Variable] = {}
    if is_labelled(rv):
        cuts = {}
        for v in likelihood_inputs(rv, free):
            tensor = pt.tensor(dtype=v.type.dtype, shape=v.type.shape)
            cuts[v] = as_xtensor(tensor, dims=v.type.dims) if is_labelled(v) else tensor
            sources[tensor] = v
        [rv] = unlabelled(substitute([rv], cuts))
        free = list(sources)

    roles = {v: role(users) for v, users in likelihood_inputs(rv, free).items()}
    family = FAMILIES.get(type(rv.owner.op))
    parameters = name_parameters(rv, family) if family is not None else {}
    if family is not None and isinstance(rv.owner.op, pm.NegativeBinomial.rv_type):
        # its mean is not an input of the random variable
        roots = frozenset(free)
        roles = {
            v: family.roles[name]
            for name, v in parameters.items()
            if not roots.isdisjoint(ancestors([v]))
        }
    return Frontier(rv, roles, family, parameters, sources)


def likelihood_inputs(rv: Variable, free: Sequence[Variable]) -> dict[Any, list[tuple[Apply, int]]]:
    """Walk to the inputs that depend on free variables, through random variables inside.

    `Censored`, `Mixture` and similar distributions have random variables as inputs. This function
    finds the inputs of these.

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
    op = node.op
    has_size = isinstance(op, RandomVariable) or (
        isinstance(op, SymbolicRandomVariable) and op.extended_signature is not None
    )
    return has_size and variable is op.size_param(node)


def _contains_random_variable(variable: Variable, roots: frozenset[Variable]) -> bool:
    upstream = walk([variable], lambda v: v.owner.inputs if v.owner and v not in roots else None)
    return any(
        isinstance(core_op(v), RandomVariable | SymbolicRandomVariable)
        for v in upstream
        if v.owner and v not in roots
    )


def role(users: Sequence[tuple[Apply, int]]) -> Role:
    """Role of an input in the random variables that use it."""
    roles = set()
    for node, position in users:
        found = Role.OTHER
        if (family := FAMILIES.get(type(node.op))) is not None:
            parameters = node.op.dist_params(node)
            for parameter, known in zip(parameters, family.roles.values(), strict=False):
                if parameter is node.inputs[position]:
                    found = known
        roles.add(found)
    return roles.pop() if len(roles) == 1 else Role.OTHER


def name_parameters(rv: TensorVariable, family: Family) -> dict[str, TensorVariable]:
    """Parameters of a random variable by name, in the parametrization with orthogonal ones."""
    node = rv.owner
    parameters = dict(zip(family.roles, node.op.dist_params(node), strict=False))
    if isinstance(node.op, pm.NegativeBinomial.rv_type):
        return _mean_and_dispersion(**parameters) or parameters
    return parameters


def _mean_and_dispersion(
    alpha: TensorVariable, p: TensorVariable
) -> dict[str, TensorVariable] | None:
    """Find mu in p = sigmoid(log(alpha) - log(mu)), as PyMC writes alpha / (mu + alpha)."""
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
        same = (
            isinstance(alpha, Constant)
            and isinstance(constant := _without_dimshuffle(log_alpha), Constant)
            and np.array_equal(np.log(alpha.data), constant.data)
        )
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


def is_labelled(variable: Variable) -> bool:
    """Whether a variable has named dimensions."""
    return isinstance(variable.type, XTensorType)


def unlabelled(graphs: Sequence[Any]) -> list[Any]:
    """Lower graphs with named dimensions to plain tensors."""
    if not any(is_labelled(v) for v in ancestors(graphs)):
        return list(graphs)
    tensors = [g.values if is_labelled(g) else g for g in graphs]
    return rewritten(tensors, named_rewrites(LOWER_LABELS, "canonicalize"))


def is_foreign(node: Apply) -> bool:
    """Whether a node runs code from outside PyTensor and PyMC, which may fail at a point."""
    return is_foreign_op(node.op)


def is_foreign_op(op: Op) -> bool:
    """Whether an operation runs code from outside PyTensor and PyMC."""
    return isinstance(op, FromFunctionOp) or not type(op).__module__.startswith(
        ("pytensor.", "pymc.distributions", "pymc.logprob", "pymc.pytensorf", "pymc.math")
    )


def takes_batches(node: Apply) -> bool:
    """Whether PyTensor knows how a foreign operation is called for many points at once.

    Its vectorization is registered; or it names an equivalent function of NumPy or SciPy
    (``gufunc_spec``); or it has a ``gufunc_signature`` and takes a leading dimension itself.
    """
    op: Any = node.op
    if _vectorize_node.dispatch(type(op)) is not _vectorize_node.dispatch(Op):
        return True
    if getattr(op, "gufunc_spec", None) is not None:
        return True
    inputs = [pt.tensor(dtype=v.type.dtype, shape=(None, *v.type.shape)) for v in node.inputs]
    return with_leading_dimensions(op, inputs, [v.type.ndim + 1 for v in node.outputs]) is not None


def with_leading_dimensions(
    op: Op, inputs: Sequence[Variable], ndims: Sequence[int]
) -> list[Variable] | None:
    """Apply an operation with a signature to batches. None if it does not take them."""
    if not hasattr(op, "gufunc_signature"):
        return None
    try:
        outputs = op.make_node(*inputs).outputs
    except Exception:  # of the user's own checks
        return None
    return outputs if [v.type.ndim for v in outputs] == list(ndims) else None


def core_op(rv: Variable) -> Op:
    """Operation of a random variable, labelled or not."""
    op = rv.owner.op
    return getattr(op, "core_op", op)
