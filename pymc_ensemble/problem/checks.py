"""Refuse models that cannot be sampled before any evaluation, by name and with a remedy."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pymc as pm
import pytensor
from pymc.model import Model
from pymc.util import get_random_generator
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Constant, Variable
from pytensor.graph.traversal import ancestors
from pytensor.tensor.basic import Join, MakeVector
from pytensor.tensor.elemwise import DimShuffle
from pytensor.tensor.math import All
from pytensor.tensor.random.op import RandomVariable
from pytensor.tensor.type import TensorType

from pymc_ensemble.problem._pymc import (
    CUSTOM_DISTRIBUTIONS,
    CheckParameterValue,
    MinibatchOp,
)
from pymc_ensemble.problem.batching import as_it_stands
from pymc_ensemble.problem.frontier import core_op, is_foreign


def given_model(model: Any) -> Model:
    """The given model, or the one on the context stack.

    Parameters
    ----------
    model : pymc.Model or None

    Returns
    -------
    pymc.Model

    Raises
    ------
    TypeError
        If there is no model, or if it is something else.
    """
    if model is None:
        model = Model.get_context(error_if_none=False)
        if model is None:
            raise TypeError("There is no model. Call this inside `with model:`, or pass `model=`.")
    if not isinstance(model, Model):
        raise TypeError(f"`model` must be a pymc.Model, not {type(model).__name__}.")
    return model


def given_generator(seed: Any, name: str) -> np.random.Generator:
    """The given random generator, or one from a seed. `name` is that of the argument."""
    try:
        return get_random_generator(seed)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`{name}` must be a seed, such as 1, or a numpy.random.Generator, not {seed!r}."
        ) from error


def check_compile_kwargs(compile_kwargs: Any) -> None:
    """Refuse options that `pytensor.function` does not know, and would refuse only later."""
    if compile_kwargs is None:
        return
    if not isinstance(compile_kwargs, Mapping):
        raise TypeError(
            '`compile_kwargs` must be a mapping of options of pytensor.function, such as {"mode": '
            f'"NUMBA"}}, not {compile_kwargs!r}.'
        )
    known = set(inspect.signature(pytensor.function).parameters) - {"inputs", "outputs"}
    if unknown := [name for name in compile_kwargs if name not in known]:
        raise ValueError(
            f"`compile_kwargs` has {unknown[0]!r}, which is not an option of pytensor.function. "
            f"Options are {', '.join(sorted(known))}."
        )


def check_model(
    model: Model,
    vars: Sequence[Variable | str] | None,
    needs_likelihood: bool = True,
    needs_density: bool = True,
) -> None:
    """Refuse a model that cannot be sampled. Errors name the variable and the remedy.

    Parameters
    ----------
    model : pymc.Model
    vars : sequence of Variable or str, optional
        The variables to sample, or their names, by default all.
    needs_likelihood : bool, default True
        Whether there must be an observed variable.
    needs_density : bool, default True
        Whether observed variables must have a density. A `pymc.Simulator` has none.

    Raises
    ------
    TypeError
        If `vars` is not a list of variables or names.
    ValueError
        If there is nothing to sample, or if variables are discrete or left out.
    NotImplementedError
        If there is a `pymc.Simulator`.
    """
    if model.discrete_value_vars:
        discrete = [model.values_to_rvs[v].name for v in model.discrete_value_vars]
        remedy = (
            f"Marginalize {_them(discrete)} out of the model (for example with a pm.Mixture), or "
            "sample the model with another step method."
        )
        raise ValueError(
            f"{quoted(discrete)} {_are(discrete)} discrete; ensemble samplers move continuous "
            f"variables only. {without_missing(model) or remedy}"
        )
    if needs_likelihood and not model.observed_RVs:
        raise ValueError(
            "The model has no observed variable, so there is no likelihood. Give the data to a "
            "variable with `observed=`, or draw from the prior with pm.sample_prior_predictive."
        )
    if not model.free_RVs:
        raise ValueError("The model has no free variable, so there is nothing to sample.")
    for rv in model.basic_RVs if needs_density else ():
        if isinstance(core_op(rv), pm.Simulator.rv_type):
            raise NotImplementedError(
                f"`{rv.name}` is a pm.Simulator, whose likelihood is itself random. Make its "
                "simulator the forward map of an ordinary likelihood, such as pm.Normal or "
                "pm.MvNormal (see pytensor.wrap_py); or learn from simulations, without a "
                "likelihood: pymc_ensemble.amortize."
            )
    for rv in (*model.observed_RVs, *model.potentials):
        graphs = [rv, model.rvs_to_values[rv]] if rv in model.rvs_to_values else [rv]
        ops = (v.owner.op for v in ancestors(graphs) if v.owner is not None)
        if any(isinstance(op, MinibatchOp) for op in ops):
            raise ValueError(
                f"`{rv.name}` depends on a pm.Minibatch, a part of the data that changes at "
                "random, so there is no posterior to sample. Give it all data, without "
                "pm.Minibatch and `total_size`."
            )
    if vars is not None:
        vars = [vars] if isinstance(vars, Variable | str) else vars
        if not isinstance(vars, Sequence) or not all(isinstance(v, Variable | str) for v in vars):
            raise TypeError(f"`vars` must be a list of variables or their names, not {vars!r}.")
        unknown = [v for v in vars if isinstance(v, str) and v not in model.named_vars]
        if unknown:
            raise ValueError(f"The model has no {quoted(unknown)}, named in `vars`.")
        variables = [model[v] if isinstance(v, str) else v for v in vars]
        given = {model.rvs_to_values.get(v, v) for v in variables}
        missing = [model.values_to_rvs[v].name for v in model.value_vars if v not in given]
        if missing:
            raise ValueError(
                f"`vars` leaves out {quoted(missing)}, but an ensemble step moves all continuous "
                f"variables of the model. Add {_them(missing)} to `vars`, or leave `vars` out. To "
                "hold a variable fixed, use pm.do."
            )
    check_data(model)


def without_missing(model: Model) -> str:
    """Remedy for discrete variables that are only missing entries of data, otherwise empty."""
    discrete = [model.values_to_rvs[v] for v in model.discrete_value_vars]
    observed = {rv.name: rv for rv in model.observed_RVs}
    missing = {}
    for rv in discrete:
        name = str(rv.name).removesuffix("_unobserved")
        if name == rv.name or f"{name}_observed" not in observed or name not in model.named_vars:
            return ""
        others = [
            o for o in model.basic_RVs if o is not rv and o is not observed[f"{name}_observed"]
        ]
        joint = getattr(rv.owner.op, "ndim_supp", 0) > 0
        if joint or rv in ancestors([*others, *model.potentials]):
            return ""  # without them the posterior would be different
        missing[name] = rv
    [name, *_] = missing
    return (
        f"{quoted([f'{name}_unobserved' for name in missing])} "
        f"{'stands' if len(missing) == 1 else 'stand'} for missing entries of the data of "
        f"{quoted(missing)}. Leave these entries out, which does not change the posterior of the "
        f"parameters: with `known = ~numpy.ma.getmaskarray(data)`, observe `data[known]` instead "
        f"of `data`, and give `{name}` the parameters of these entries only, such as `mu[known]`. "
        "pm.sample_posterior_predictive draws the missing ones afterwards."
    )


def quoted(names: Iterable[str | None]) -> str:
    """Names of variables as messages show them."""
    return ", ".join(f"`{name}`" for name in names)


def _are(names: Sequence) -> str:
    return "is" if len(names) == 1 else "are"


def _them(names: Sequence) -> str:
    return "it" if len(names) == 1 else "them"


def check_data(model: Model) -> None:
    """Refuse observed variables without data, or with data that no distribution can make.

    A distribution from the user may give infinity or NaN a meaning.
    """
    for rv in model.observed_RVs:
        value = model.rvs_to_values[rv]
        if isinstance(value, Constant):
            data = np.asarray(value.data)
        elif isinstance(value, SharedVariable):
            data = np.asarray(value.get_value(borrow=True))
        else:
            continue
        if data.size == 0:
            raise ValueError(
                f"`{rv.name}` has no data: its observed array is empty, of shape {data.shape}. "
                "Give it data, or leave it out of the model."
            )
        if data.dtype.kind == "f" and not isinstance(core_op(rv), CUSTOM_DISTRIBUTIONS):
            wrong = np.argwhere(~np.isfinite(data))
            if len(wrong):
                where = ", ".join(map(str, wrong[0]))
                raise ValueError(
                    f"`{rv.name}` observes {data[tuple(wrong[0])]} at index [{where}]: "
                    f"{len(wrong)} of {data.size} data are not finite. Leave these out, or mask "
                    "them with numpy.ma."
                )


def _factorizes(condition: Variable) -> bool:
    """Whether rounding decides a condition.

    A covariance may be singular to working precision. The loss uses its factor as it is.
    """
    ops = [above.owner.op for above in ancestors([condition]) if above.owner]
    return any("linalg" in type(getattr(op, "core_op", op)).__module__ for op in ops)


def check_constants(model: Model, densities: Mapping[Variable, Variable]) -> None:
    """Refuse constants for which the density is zero or NaN, whatever the unknowns are.

    Such constants are parameters of distributions, by the conditions of PyMC, and potentials.

    Parameters
    ----------
    model : pymc.Model
    densities : mapping of Variable to Variable
        Log densities of its variables. One without a log density is refused elsewhere, with the
        remedy.

    Raises
    ------
    ValueError
        If there is such a constant.
    """
    conditions: list[tuple[str, str, Variable]] = []
    numbers: list[tuple[str, str, Variable]] = []
    for rv in model.basic_RVs:
        if isinstance(rv.owner.op, RandomVariable):
            parameters = rv.owner.op.dist_params(rv.owner)
            numbers += [(rv.name, "a parameter of `{}`", parameter) for parameter in parameters]
        for variable in ancestors([densities[rv]] if rv in densities else []):
            if variable.owner and isinstance(variable.owner.op, CheckParameterValue):
                asked = variable.owner.op.msg
                for condition in variable.owner.inputs[1:]:
                    conditions += [(rv.name, asked, part) for part in _parts(condition)]
    numbers += [(potential.name, "the potential `{}`", potential) for potential in model.potentials]
    conditions = [e for e in conditions if _is_constant(e[2]) and not _factorizes(e[2])]
    numbers = [entry for entry in numbers if _is_constant(entry[2])]
    graphs = [entry[2] for entry in (*conditions, *numbers)]
    if not graphs:
        return
    values = pytensor.function([], graphs, mode=as_it_stands())()
    for (name, asked, condition), value in zip(conditions, values, strict=False):
        if not np.all(value):
            raise ValueError(
                f"`{name}` has a parameter{_compared(condition)} for which its density is zero: "
                f"PyMC asks for {asked}. It does not depend on the unknowns; correct it in the "
                "model."
            )
    for (name, what, _), value in zip(numbers, values[len(conditions) :], strict=True):
        potential = not what.startswith("a parameter")
        if np.isnan(value).any() or (potential and not np.isfinite(value).all()):
            raise ValueError(
                f"{what.format(name).capitalize()} is {np.ravel(value)[0]}, whatever the unknowns "
                "are: the model has no density. Correct it in the model."
            )


def _parts(condition: Variable) -> Iterator[Variable]:
    """Parts of a condition. Some may be constant, and others not."""
    node = condition.owner
    if node is None or not isinstance(node.op, All | MakeVector | Join | DimShuffle):
        yield condition
        return
    for part in node.inputs[isinstance(node.op, Join) :]:  # a join begins with its axis
        yield from _parts(part)


def _is_constant(graph: Variable) -> bool:
    """Whether a value depends only on constants and data, without foreign operations."""
    for variable in ancestors([graph]):
        if variable.owner is not None:
            if is_foreign(variable.owner) or isinstance(variable.owner.op, RandomVariable):
                return False
        elif not isinstance(variable, Constant) and not _is_data(variable):
            return False
    return True


def _is_data(variable: Variable) -> bool:
    """Whether it is an array that may be replaced. A shared random generator is not."""
    return isinstance(variable, SharedVariable) and isinstance(variable.type, TensorType)


def _compared(condition: Variable) -> str:
    """What a condition compares, in brackets, if it compares numbers."""
    while condition.owner and len(condition.owner.inputs) == 1:
        condition = condition.owner.inputs[0]
    if condition.owner is None or condition.owner.inputs[0].type.dtype == "bool":
        return ""
    value = pytensor.function([], condition.owner.inputs[0], mode=as_it_stands())()
    return f" ({np.min(value)})"
