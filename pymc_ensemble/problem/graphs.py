"""Typed shorthands for operations on PyTensor graphs."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile import optdb
from pytensor.compile.builders import OpFromGraph
from pytensor.gradient import NullTypeGradError
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.replace import graph_replace
from pytensor.graph.rewriting.basic import GraphRewriter, in2out, node_rewriter
from pytensor.graph.rewriting.db import RewriteDatabaseQuery
from pytensor.graph.traversal import toposort
from pytensor.tensor.shape import Shape
from pytensor.tensor.variable import TensorVariable

from pymc_ensemble.problem._pymc import PARAMETER_CHECKS_TO_INFINITY


def substitute(graphs: Sequence[Any], replacements: Mapping[Any, Any]) -> list[Any]:
    """Replace variables in graphs; those that do not occur are ignored."""
    return list(graph_replace(list(graphs), dict(replacements), strict=False))


def rewritten(graphs: Sequence[Any], *rewriters: GraphRewriter) -> list[Any]:
    """Apply rewriters to a copy of graphs, one after the other."""
    graph = FunctionGraph(outputs=list(graphs), clone=True, copy_inputs=False)
    for rewriter in rewriters:
        rewriter.rewrite(graph)
    return list(graph.outputs)


@cache
def named_rewrites(*names: str) -> GraphRewriter:
    """PyTensor's rewrites of these names, gathered once: what applies to an Op is then known."""
    return optdb.query(RewriteDatabaseQuery(include=names))


def gradient(graph: TensorVariable, wrt: Sequence[TensorVariable]) -> list[Any]:
    """Gradient of a scalar graph. It is zero for variables that the graph does not depend on."""
    result: Any = pytensor.grad(graph, list(wrt), disconnected_inputs="ignore")
    return list(result)


def inlined(graphs: Sequence[Any]) -> list[Any]:
    """Expand operations that hold graphs of their own.

    Otherwise they would be compiled separately, and run point by point in a batch.
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


@node_rewriter([Shape])
def _known_shape(fgraph: FunctionGraph, node: Apply) -> list[Variable] | None:
    """A shape that the type tells: parts of it become constants, and are known in a batch."""
    shape = node.inputs[0].type.shape
    return None if None in shape else [pt.constant(np.array(shape, dtype="int64"))]


_with_known_shapes = in2out(_known_shape)


def simplified(graphs: Sequence[TensorVariable]) -> list[TensorVariable]:
    """Stabilize graphs. Outside of the support the log density is minus infinity, not an error."""
    stabilizing = named_rewrites("canonicalize", "stabilize", PARAMETER_CHECKS_TO_INFINITY)
    graphs = inlined(graphs)
    if any(isinstance(node.op, Shape) for node in toposort(graphs)):
        graphs = rewritten(graphs, _with_known_shapes)
    return inlined(rewritten(graphs, stabilizing))


def gradients(
    graph: TensorVariable,
    wrt: Sequence[TensorVariable],
    terms: Mapping[str, TensorVariable] | None = None,
) -> list[TensorVariable]:
    """Gradients of a scalar graph, zero for variables that it does not depend on.

    Parameters
    ----------
    graph : TensorVariable
        Scalar function.
    wrt : sequence of TensorVariable
        What it is to be differentiated by.
    terms : dict of str to TensorVariable, optional
        Terms whose sum is the graph, by their description in words.

    Raises
    ------
    NotImplementedError
        If one of the terms has no gradient. It names this term.
    """
    try:
        return gradient(graph, wrt)
    except (NotImplementedError, NullTypeGradError):
        for name, term in (terms or {}).items():
            check_differentiable(simplified([term])[0], wrt, name)
        raise


def check_differentiable(graph: TensorVariable, wrt: Sequence[TensorVariable], what: str) -> None:
    """Refuse a graph without a gradient.

    Parameters
    ----------
    graph : TensorVariable
        Scalar function.
    wrt : sequence of TensorVariable
        What it is to be differentiated by.
    what : str
        What the graph is, for the message.
    """
    try:
        gradient(graph, wrt)
    except (NotImplementedError, NullTypeGradError) as error:
        raise NotImplementedError(
            f"The log density of {what} has no gradient ({error}). Only the forward map may have "
            "no gradient, and it must enter the parameters of a distribution with `observed=`. "
            "Write the density in PyTensor, or give its operation a pullback."
        ) from error
