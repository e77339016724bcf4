"""Let PyTensor's Numba backend run plain Python operations as Python."""

import warnings
from collections.abc import Callable
from typing import Any

from pytensor.compile.mode import get_default_mode
from pytensor.graph.op import Op
from pytensor.link.numba.linker import NumbaLinker


def run_as_python(op: type[Op]) -> None:
    """Let Numba call an operation in object mode, without a warning that it does so.

    PyTensor warns if it has no kernel for an operation, in case somebody forgot to write one. A
    black box has no kernel. The backend takes seconds to load, so nothing happens unless PyTensor
    would load it anyway.

    Parameters
    ----------
    op : type
        Class of the operation.
    """
    if isinstance(get_default_mode().linker, NumbaLinker):
        from pytensor.link.numba.dispatch import basic

        if op not in basic.numba_funcify.registry:
            basic.numba_funcify.register(op)(_object_mode)


def _object_mode(op: Op, node: Any = None, **kwargs: Any) -> Callable:
    from pytensor.link.numba.dispatch.basic import generate_fallback_impl

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Numba will use object mode", UserWarning)
        return generate_fallback_impl(op, node, **kwargs)
