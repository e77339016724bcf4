"""From a likelihood parameter back through its canonical link to the linear predictor."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import reduce
from operator import add, mul

import numpy as np
import pytensor.scalar as ps
import pytensor.tensor as pt
from pytensor.compile.ops import ViewOp
from pytensor.graph.basic import Constant, Variable
from pytensor.graph.traversal import walk
from pytensor.tensor.basic import Alloc
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.reshape import JoinDims, SplitDims
from pytensor.tensor.shape import Reshape, SpecifyShape
from pytensor.tensor.special import Softmax
from pytensor.tensor.subtensor import AdvancedSubtensor, Subtensor
from pytensor.tensor.variable import TensorVariable

from pymc_ensemble.problem.graphs import substitute

RATE_FLOOR = 1e-6
PREDICTOR_LIMIT = 30.0


class Role(Enum):
    """Role of a likelihood parameter, which decides the link of its natural form."""

    LOCATION = "location"  # never stepped back: nonlinearity stays in the forward map
    SCALE = "scale"  # always seen as its logarithm
    RATE = "rate"  # its logarithm, if the model has it so
    PROBABILITY = "probability"  # its logit, if the model has it so
    SIMPLEX = "simplex"  # its logits, if the model has them so
    OTHER = "other"


@dataclass(frozen=True)
class Natural:
    """The forward output behind a likelihood parameter.

    Parameters
    ----------
    output : TensorVariable
        The output, an expression of the unknowns.
    parameter : callable
        Rebuilds the likelihood parameter from a variable put in place of the output.
    spread : callable
        The same without the link: it maps every entry of the parameter to the entry of the output
        on which it depends. It is linear, so its transpose sums weights over broadcasting.
    slope : callable
        Derivative of the parameter by that entry, as a function of the parameter.
    bounds : (float, float)
        Range to which outputs are clipped for gradients and curvature.
    whitens : bool, default False
        Whether the output is a Gaussian mean in units of its noise, so that its weight is one.
    """

    output: TensorVariable
    parameter: Callable[[TensorVariable], TensorVariable]
    spread: Callable[[TensorVariable], TensorVariable]
    slope: Callable[[TensorVariable], TensorVariable]
    bounds: tuple[float, float] = (-np.inf, np.inf)
    whitens: bool = False


def depends(variable: Variable, root: Variable) -> bool:
    """Whether a variable is computed from a root."""
    return any(v is root for v in walk([variable], lambda v: v.owner.inputs if v.owner else None))


def natural(parameter: TensorVariable, role: Role, root: TensorVariable) -> Natural:
    """Find the natural form of a likelihood parameter.

    Parameters
    ----------
    parameter : TensorVariable
        The parameter as an expression of `root`.
    role : Role
        What the parameter is in its likelihood.
    root : TensorVariable
        The vector of unknowns. Everything that does not depend on it is data.

    Returns
    -------
    Natural
        The argument of the link, if the parameter is a link function of something, up to data
        factors and operations that only rearrange entries. Otherwise the logarithm for scales, and
        the parameter itself for all others.
    """
    core = strip_layout(parameter, root) if role is not Role.LOCATION else parameter

    def layout(inner: TensorVariable) -> TensorVariable:
        return substitute([parameter], {core: inner})[0] if core is not parameter else inner

    match role:
        case Role.SCALE | Role.RATE:
            if (form := log_form(core, root)) is not None:
                output, factor = form
            elif role is Role.SCALE:
                output, factor = pt.log(core), None
            else:
                return _identity(parameter, (RATE_FLOOR, np.inf))

            def positive(hole: TensorVariable) -> TensorVariable:
                return layout(pt.exp(hole) if factor is None else factor * pt.exp(hole))

            def spread(hole: TensorVariable) -> TensorVariable:
                return layout(hole if factor is None else hole + pt.zeros_like(factor))

            limits = (-PREDICTOR_LIMIT, PREDICTOR_LIMIT)
            return Natural(output, positive, spread, lambda value: value, limits)
        case Role.PROBABILITY:
            if (logit := logit_form(core, root)) is None:
                return _identity(parameter, (RATE_FLOOR, 1 - RATE_FLOOR))
            return Natural(
                logit,
                lambda hole: layout(pt.sigmoid(hole)),
                layout,
                lambda p: p * (1 - p),
                (-PREDICTOR_LIMIT, PREDICTOR_LIMIT),
            )
        case Role.SIMPLEX:
            core_op = core.owner.op if core.owner is not None else None
            last_axis = (core.type.ndim - 1,)
            if not isinstance(core_op, Softmax) or core_op.axis not in (None, last_axis):
                return _identity(parameter, (RATE_FLOOR, 1 - RATE_FLOOR))
            return Natural(
                core.owner.inputs[0],
                lambda hole: layout(pt.special.softmax(hole, axis=-1)),
                layout,
                # one logit moves all probabilities: n / p is to become n p (1 - p)
                lambda p: p * pt.sqrt(1 - p),
                (-PREDICTOR_LIMIT, PREDICTOR_LIMIT),
            )
        case _:
            return _identity(parameter)


def _identity(
    parameter: TensorVariable, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> Natural:
    return Natural(parameter, lambda hole: hole, lambda hole: hole, pt.ones_like, bounds)


def scalar_op(variable: Variable) -> ps.ScalarOp | None:
    """Scalar function of an elementwise operation, otherwise None."""
    op = variable.owner.op if variable.owner is not None else None
    return op.scalar_op if isinstance(op, Elemwise) else None


def is_layout(variable: Variable, root: Variable) -> int | None:
    """Input position of an operation that only rearranges entries, otherwise None."""
    if variable.owner is None:
        return None
    op, inputs = variable.owner.op, variable.owner.inputs
    match op:
        case (
            DimShuffle()
            | Alloc()
            | Reshape()
            | JoinDims()
            | SplitDims()
            | SpecifyShape()
            | ViewOp()
        ):
            position = 0
        case Subtensor() | AdvancedSubtensor() | Elemwise(scalar_op=ps.Identity() | ps.Cast()):
            position = 0
        case Elemwise(scalar_op=ps.Second()):
            position = 1
        case _:
            return None
    others = [v for i, v in enumerate(inputs) if i != position]
    return None if any(depends(v, root) for v in others) else position


def strip_layout(variable: TensorVariable, root: Variable) -> TensorVariable:
    """Go back through operations that rearrange entries, as long as the size does not grow."""
    while (position := is_layout(variable, root)) is not None:
        inner = variable.owner.inputs[position]
        if isinstance(variable.owner.op, Subtensor | AdvancedSubtensor) and (
            _static_size(inner) > _static_size(variable)
        ):
            break
        variable = inner
    return variable


def _static_size(variable: TensorVariable) -> float:
    shape = variable.type.shape
    return np.inf if None in shape else float(np.prod(shape))


def log_form(
    variable: TensorVariable, root: Variable
) -> tuple[TensorVariable, TensorVariable | None] | None:
    """Write a variable as factor * exp(exponent), the factor being data.

    Returns
    -------
    (exponent, factor) or None
        `factor` is None if it is one. The result is None if there is no such form.
    """
    if variable.owner is None:
        return None
    inputs = variable.owner.inputs
    if (position := is_layout(variable, root)) is not None:

        def moved(inner: TensorVariable) -> TensorVariable:
            arguments = [*inputs[:position], inner, *inputs[position + 1 :]]
            return variable.owner.op.make_node(*arguments).outputs[0]

        if (form := log_form(inputs[position], root)) is None:
            return None
        exponent, factor = form
        if factor is None:
            return moved(exponent), None
        exponent, factor = pt.broadcast_arrays(exponent, factor)
        return moved(exponent), moved(factor)

    match scalar_op(variable):
        case ps.Exp():
            return inputs[0], None
        case ps.Mul():
            return _product([(v, 1.0) for v in inputs], root)
        case ps.TrueDiv():
            return _product([(inputs[0], 1.0), (inputs[1], -1.0)], root)
        case ps.Reciprocal():
            return _product([(inputs[0], -1.0)], root)
        case ps.Sqr():
            return _product([(inputs[0], 2.0)], root)
        case ps.Sqrt():
            return _product([(inputs[0], 0.5)], root)
        case ps.Pow() if not depends(inputs[1], root):
            return _product([(inputs[0], inputs[1])], root)
        case _:
            return None


def _product(
    terms: Sequence[tuple[TensorVariable, float | TensorVariable]], root: Variable
) -> tuple[TensorVariable, TensorVariable | None] | None:
    """Collect powers of positive terms: exponents add up, data factors multiply."""
    exponents, factors = [], []
    for variable, power in terms:
        if not depends(variable, root):
            factors.append(variable**power)
        elif (form := log_form(variable, root)) is None:
            return None
        else:
            exponent, factor = form
            exponents.append(
                exponent if isinstance(power, float) and power == 1 else exponent * power
            )
            if factor is not None:
                factors.append(factor**power)
    if not exponents:
        return None
    return reduce(add, exponents), reduce(mul, factors) if factors else None


def logit_form(variable: TensorVariable, root: Variable) -> TensorVariable | None:
    """Logit of a variable that is a logistic function, or one minus it. Otherwise None."""
    if variable.owner is None:
        return None
    inputs = variable.owner.inputs
    if (position := is_layout(variable, root)) is not None:
        if (logit := logit_form(inputs[position], root)) is None:
            return None
        arguments = [*inputs[:position], logit, *inputs[position + 1 :]]
        return variable.owner.op.make_node(*arguments).outputs[0]
    match scalar_op(variable):
        case ps.Sigmoid():
            return inputs[0]
        case ps.Sub() if _is_one(inputs[0]):
            logit = logit_form(inputs[1], root)
            return None if logit is None else -logit
        case _:
            return None


def _is_one(variable: Variable) -> bool:
    while variable.owner is not None and isinstance(variable.owner.op, DimShuffle):
        variable = variable.owner.inputs[0]
    return isinstance(variable, Constant) and bool(np.all(variable.data == 1))
