"""Typed shorthands for operations on PyTensor graphs."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytensor
from pytensor.compile.builders import OpFromGraph
from pytensor.gradient import NullTypeGradError
from pytensor.graph.replace import graph_replace
from pytensor.graph.rewriting.utils import rewrite_graph
from pytensor.graph.traversal import toposort
from pytensor.tensor.variable import TensorVariable


def substitute(graphs: Sequence[Any], replacements: Mapping[Any, Any]) -> list[Any]:
    """Replace variables in graphs; those that do not occur are ignored."""
    return list(graph_replace(list(graphs), dict(replacements), strict=False))


def rewritten(graphs: Sequence[Any], rewrites: Sequence[str], **options: Any) -> list[Any]:
    """Apply named rewrites to a copy of graphs."""
    result: Any = rewrite_graph(list(graphs), include=rewrites, clone=True, **options)
    return list(result)


def gradient(graph: TensorVariable, wrt: Sequence[TensorVariable]) -> list[Any]:
    """Gradient of a scalar graph; zero by what it does not depend on."""
    result: Any = pytensor.grad(graph, list(wrt), disconnected_inputs="ignore")
    return list(result)


def inlined(graphs: Sequence[Any]) -> list[Any]:
    """Expand operations that hold graphs of their own.

    These would be compiled apart from the rest, and run point by point in a batch.
    """
    graphs = list(graphs)
    while node := next((n for n in toposort(graphs) if isinstance(n.op, OpFromGraph)), None):
        inside = node.op.fgraph.unfreeze()
        outputs = substitute(inside.outputs, dict(zip(inside.inputs, node.inputs, strict=True)))
        graphs = substitute(graphs, dict(zip(node.outputs, outputs, strict=True)))
    return graphs


def is_differentiable(graph: TensorVariable, wrt: TensorVariable) -> bool:
    """Whether a scalar graph has a gradient."""
    try:
        gradient(graph, [wrt])
    except (NotImplementedError, NullTypeGradError):
        return False
    return True
