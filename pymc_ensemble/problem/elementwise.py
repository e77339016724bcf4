"""Elementwise operations of a compiled function as plain calls of NumPy.

PyTensor runs an `Elemwise` in Python by a method for all cases. For a small array this takes ten
times as long as NumPy itself. What it asks of the operation at each call is known beforehand.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
from pytensor.graph.basic import Apply
from pytensor.scalar.basic import Add, Mul
from pytensor.tensor.elemwise import Elemwise

from pymc_ensemble.problem._pymc import Loop
from pymc_ensemble.problem.frontier import is_foreign


def call_numpy_directly(function: Any) -> None:
    """Replace the elementwise operations of a compiled function that runs in Python.

    Results are the same. It must be called where NumPy ignores floating-point errors.
    """
    machine = function.vm
    if type(machine) is not Loop:
        return
    for i, node in enumerate(machine.nodes):
        # what operations from outside PyTensor return may be no array, which PyTensor tells
        foreign = any(v.owner is not None and is_foreign(v.owner) for v in node.inputs)
        if isinstance(node.op, Elemwise) and hasattr(machine.thunks[i], "perform") and not foreign:
            machine.thunks[i] = _direct(node, machine.thunks[i])


def _direct(node: Apply, thunk: Any) -> Callable[[], None]:
    """Function that does what PyTensor's does, and in rare cases is the same."""
    op, function = node.op, node.op.nfunc
    several = isinstance(op.scalar_op, Add | Mul) and len(node.inputs) > 2
    if (
        not (isinstance(function, np.ufunc) or function is np.where)
        or not (several or len(node.inputs) == op.nfunc_spec[1])
        or len(node.outputs) > 1
        or op.inplace_pattern
        or hasattr(node.tag, "sig")  # types of the computation other than those of the inputs
    ):
        return thunk
    dtype = np.dtype(node.outputs[0].type.dtype)
    sources, [target] = thunk.inputs, thunk.outputs
    check = op._check_runtime_broadcast if _may_broadcast(node) else None

    def keep(values: Any) -> None:
        if type(values) is not np.ndarray or values.dtype != dtype:
            values = np.asarray(values, dtype=dtype)
        target[0] = values

    if len(sources) == 1:
        [source] = sources

        def direct() -> None:
            keep(function(source[0]))

    elif len(sources) == 2:
        first, second = sources

        def direct() -> None:
            x, y = first[0], second[0]
            if check is not None and x.shape != y.shape:
                check(node, (x, y))
            keep(function(x, y))

    else:

        def direct() -> None:
            values = [source[0] for source in sources]
            if check is not None and len({value.shape for value in values}) > 1:
                check(node, values)
            keep(reduce(function, values) if several else function(*values))

    # PyTensor asks for them where it explains an error
    direct.inputs, direct.outputs = sources, [target]  # type: ignore[attr-defined]
    return direct


def _may_broadcast(node: Apply) -> bool:
    """Whether a length of one may meet another at run time, which PyTensor refuses.

    It may if types do not allow for it, as these may be wrong: Draws of `LKJCholeskyCov` have types
    of other shapes.
    """
    lengths = zip(*(v.type.broadcastable for v in node.inputs), strict=True)
    return any(own.count(False) > 1 for own in lengths)
