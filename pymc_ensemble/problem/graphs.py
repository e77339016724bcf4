"""Typed shorthands for operations on PyTensor graphs."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytensor
from pytensor.graph.replace import graph_replace
from pytensor.graph.rewriting.utils import rewrite_graph
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
