"""What a model says of its forward models."""

from typing import Any

import pymc as pm
from pytensor.graph.traversal import ancestors

from pymc_ensemble.forward.op import ForwardOp


def forward_models(model: pm.Model) -> list[Any]:
    """Forward models that a model uses."""
    nodes = (v.owner for v in ancestors([*model.basic_RVs, *model.potentials]))
    return [node.op.forward for node in nodes if node and isinstance(node.op, ForwardOp)]


def is_stochastic(model: pm.Model) -> bool:
    """Whether the model has a forward model that was declared as stochastic."""
    return any(forward.random for forward in forward_models(model))


def estimated_likelihoods(model: pm.Model) -> dict[str, dict[str, Any]]:
    """What is known of likelihoods that are estimates, by the names of observed variables."""
    told = (forward.likelihood_facts(model) for forward in forward_models(model))
    return dict(one for one in told if one is not None)


def require_own_data(model: pm.Model) -> None:
    """Refuse a model that cannot draw data, or whose synthetic likelihood draws too random ones.

    Raises
    ------
    ValueError
    """
    if model.potentials:
        raise ValueError(
            f"The potential `{model.potentials[0].name}` is not a distribution, so neither "
            "parameters nor data can be drawn from it. Write it as a prior, or as an observed "
            "variable, for example a pm.CustomDist with `random`."
        )
    if names := list(estimated_likelihoods(model)):
        raise ValueError(
            f"`{names[0]}` is a synthetic likelihood. Data drawn from it would have the scatter "
            "of the simulator twice. Write a model that observes a pm.Simulator instead."
        )
