"""The forward map of a model with a cheap simulator in place of its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pymc as pm
from numpy.typing import NDArray
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.traversal import toposort

from pymc_ensemble.forward import Evaluations, ForwardModel, forward_model
from pymc_ensemble.forward.op import ForwardOp
from pymc_ensemble.problem.compiled import CompiledForward
from pymc_ensemble.problem.extraction import Extraction, extract
from pymc_ensemble.problem.graphs import substitute

FloatArray = NDArray[np.float64]
Cheap = Callable[..., Any] | Mapping[str, Callable[..., Any]]


class CheapModel:
    """Forward map of a model whose simulators are replaced by cheap ones.

    It has the same outputs as the model's own forward map: all that the model computes from outputs
    of the simulators, and also, for example, unknown scales.

    Parameters
    ----------
    model : pm.Model
    cheap : mapping of str to ForwardModel
        The cheap simulators, by the names of the simulators that they replace.
    compile_kwargs : dict, optional
        Options for the compilation, as for the model's own forward map.

    Raises
    ------
    ValueError
        If the outputs of a cheap simulator have other shapes than those of the one it replaces.

    Examples
    --------
    >>> import numpy as np, pymc as pm, pymc_ensemble as pe
    >>> from pymc_ensemble.problem.cheap_model import CheapModel, stand_ins
    >>> fine = pe.forward_model(lambda u: np.sin(u), output_shape=(2,))
    >>> with pm.Model() as model:
    ...     u = pm.Normal("u", shape=2)
    ...     y = pm.Normal("y", 2 * fine(u), 0.1, observed=[0.5, 1.0])
    >>> cheap = CheapModel(model, stand_ins(model, lambda u: u))
    >>> cheap.evaluate(np.array([[0.5, 0.25]])).outputs
    array([[1. , 0.5]])
    """

    def __init__(
        self,
        model: pm.Model,
        cheap: Mapping[str, ForwardModel],
        compile_kwargs: Mapping[str, Any] | None = None,
    ):
        inputs = {node.op: node.inputs for node in nodes_of(model.basic_RVs + model.potentials)}
        ops = {op: _in_place_of(op, cheap[op.forward.name], inputs[op]) for op in inputs}
        self._forward = CompiledForward(_with_ops(extract(model), ops), compile_kwargs)
        self._cheap = dict(cheap)

    @property
    def names(self) -> str:
        """Names of the cheap simulators."""
        return ", ".join(model.name for model in self._cheap.values())

    def evaluate(self, U: FloatArray, seed: np.random.SeedSequence | None = None) -> Evaluations:
        """Evaluate the cheap forward map at points (n, d); any of them may fail."""
        return self._forward(np.array(U, dtype=float), seed)


def stand_ins(model: pm.Model, cheap: Cheap) -> dict[str, ForwardModel]:
    """Cheap simulators, by the names of the forward models that they replace.

    Parameters
    ----------
    model : pm.Model
    cheap : callable or mapping of str to callable
        One simulator for each forward model of `model`, by name if there are several.

    Raises
    ------
    ValueError
        If the model has no forward model; if one of them has no cheap simulator; if a name is
        unknown; or if a simulator is stochastic.
    TypeError
        If a cheap simulator is not a function.
    """
    ops = {node.op.forward: node.op for node in nodes_of(model.basic_RVs + model.potentials)}
    own = {forward.name: op for forward, op in ops.items()}
    if len(own) < len(ops):
        every = [forward.name for forward in ops]
        twice = next(name for name in every if every.count(name) > 1)
        raise ValueError(
            f"Two forward models of the model have the name {twice!r}, so it is not known which "
            "cheap model belongs to which. Give their functions different names."
        )
    if not own:
        raise ValueError(
            "The model has no forward model that a cheap one could replace. Write its simulator "
            "as `simulate = pe.forward_model(function)`, and call that in the model."
        )
    if not isinstance(cheap, Mapping):
        if len(own) > 1:
            names = ", ".join(f"{name!r}: ..." for name in own)
            raise ValueError(
                f"The model has {len(own)} forward models, but `cheap` is one function. Give one "
                f"for each, by name: cheap={{{names}}}."
            )
        cheap = dict.fromkeys(own, cheap)
    if unknown := set(cheap) - set(own):
        raise ValueError(
            f"`cheap` has {min(unknown)!r}, but the forward models of this model are "
            f"{', '.join(map(repr, own))}."
        )
    if missing := [name for name in own if name not in cheap]:
        raise ValueError(
            f"`cheap` has no function for the forward model {missing[0]!r}. Give one for each. If "
            "a forward model costs little, give the same function."
        )
    found = {}
    for name, function in cheap.items():
        if not callable(function):
            raise TypeError(f"The cheap model of {name} must be a function, not {function!r}.")
        found[name] = function if isinstance(function, ForwardModel) else forward_model(function)
        for one, what in ((own[name].forward, "forward model"), (found[name], "cheap model")):
            if one.random:
                raise ValueError(
                    f"The {what} {one.name} is stochastic, so its difference to another model "
                    "cannot be learned. Use EnsembleGaussianProcessSampler, which averages over "
                    "noise."
                )
    return found


def nodes_of(graphs: Sequence[Variable]) -> list[Apply]:
    """Applications of forward models in graphs, each after those that it depends on."""
    return [node for node in toposort(list(graphs)) if isinstance(node.op, ForwardOp)]


def _in_place_of(op: ForwardOp, cheap: ForwardModel, inputs: Sequence[Variable]) -> ForwardOp:
    """Operation of a cheap simulator with the inputs and outputs of another one."""
    signature = cheap.with_known_outputs(replace(op.signature, outputs=cheap.outputs), inputs)
    own, other = op.signature.outputs, signature.outputs
    assert own is not None
    assert other is not None
    if (own.kind, own.shapes) != (other.kind, other.shapes):
        raise ValueError(
            f"The cheap model {cheap.name} returns outputs of shape {_told(other.shapes)}, but "
            f"{op.forward.name} of shape {_told(own.shapes)}. Both must return the same "
            "quantities: let the cheap model interpolate to where the data were taken."
        )
    return ForwardOp(cheap, signature, op.rounding, op.unknowns, op.flexible)


def _told(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(map(str, shapes))


def _with_ops(extraction: Extraction, ops: Mapping[ForwardOp, ForwardOp]) -> Extraction:
    """Extraction whose outputs come from other operations."""
    outputs = [output for term in extraction.terms for output in term.outputs]
    while node := next((n for n in nodes_of(outputs) if n.op in ops), None):
        replaced = ops[node.op].make_node(*node.inputs).outputs
        outputs = substitute(outputs, dict(zip(node.outputs, replaced, strict=True)))
    rest = iter(outputs)
    terms = [replace(t, outputs=[next(rest) for _ in t.outputs]) for t in extraction.terms]
    return replace(extraction, terms=terms)
