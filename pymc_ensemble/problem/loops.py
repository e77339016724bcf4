"""Loops that advance all points of a batch together."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytensor
import pytensor.tensor as pt
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.replace import vectorize_graph
from pytensor.graph.traversal import ancestors, io_toposort
from pytensor.scan.op import Scan
from pytensor.tensor.variable import TensorVariable

from pymc_ensemble.problem.graphs import named_rewrites, rewritten


def vectorize_with_loops(
    outputs: Sequence[Variable], batched: Mapping[Variable, Variable], size: TensorVariable
) -> list[Variable]:
    """Vectorize a graph such that a `Scan` in it runs once, for the whole batch.

    `vectorize_graph` would start the loop anew for every point.

    Parameters
    ----------
    outputs : sequence of Variable
        Outputs for one point.
    batched : mapping of Variable to Variable
        Inputs, and their replacements with a leading batch dimension.
    size : TensorVariable
        Length of that dimension.

    Returns
    -------
    list of Variable

    Raises
    ------
    NotImplementedError
        If a loop draws random numbers, or ends at a condition, which may differ between points.
    """
    batched = dict(batched)
    for node in io_toposort(list(batched), outputs):
        if isinstance(node.op, Scan) and not batched.keys().isdisjoint(ancestors(node.inputs)):
            batched |= zip(node.outputs, _batched_loop(node, batched, size), strict=True)
    return vectorize_graph(list(outputs), batched)


def _batched_loop(
    node: Apply, batched: Mapping[Variable, Variable], size: TensorVariable
) -> list[TensorVariable]:
    """Outputs of a loop with a leading batch dimension."""
    op, info = node.op, node.op.info
    if info.as_while or info.mit_mot_in_slices or info.n_untraced_sit_sot:
        raise NotImplementedError("Only loops of a fixed length without random numbers.")
    [n_steps] = rewritten([node.inputs[0]], named_rewrites("ShapeOpt", "canonicalize"))
    if not batched.keys().isdisjoint(ancestors([n_steps])):
        raise NotImplementedError("Only loops of the same length for all points.")

    def with_batch(variables: Sequence[Variable]) -> list[TensorVariable]:
        """Give all variables a leading batch dimension, needed or not."""
        results = vectorize_with_loops(variables, batched, size)
        return [spread(r, v, size) for r, v in zip(results, variables, strict=True)]

    def time_first(variables: Sequence[Variable]) -> list[TensorVariable]:
        return [v.swapaxes(0, 1) for v in with_batch(variables)]

    sequences = time_first(op.outer_seqs(node.inputs))
    constants = with_batch(op.outer_non_seqs(node.inputs))
    histories = time_first([*op.outer_mitsot(node.inputs), *op.outer_sitsot(node.inputs)])
    taps = [*info.mit_sot_in_slices, *info.sit_sot_in_slices]
    starts = [history[: -min(tap)] for history, tap in zip(histories, taps, strict=True)]
    inner = op.fgraph.unfreeze()

    def step(*arguments: TensorVariable) -> list[TensorVariable]:
        results = vectorize_with_loops(
            inner.outputs, dict(zip(inner.inputs, arguments, strict=True)), size
        )
        return [spread(r, v, size) for r, v in zip(results, inner.outputs, strict=True)]

    traces = pytensor.scan(
        step,
        sequences=sequences,
        outputs_info=[
            *[
                start[0] if list(tap) == [-1] else {"initial": start, "taps": list(tap)}
                for start, tap in zip(starts, taps, strict=True)
            ],
            *[None] * info.n_nit_sot,
        ],
        non_sequences=constants,
        n_steps=n_steps,
        return_list=True,
        return_updates=False,
    )
    starts += [trace[:0] for trace in traces[len(starts) :]]
    return [
        pt.concatenate([start, trace]).swapaxes(0, 1)
        for start, trace in zip(starts, traces, strict=True)
    ]


def spread(result: Any, one: Variable, size: TensorVariable) -> TensorVariable:
    """Broadcast a variable over the batch if it does not depend on it."""
    if result.type.ndim > one.type.ndim:
        return result
    return pt.broadcast_to(result, (size, *tuple(result.shape)))
