"""Gaussian of summaries. Only samplers that average may evaluate its log density.

A step method of PyMC would take one simulation, lucky or not, for the mean. The samplers of this
package evaluate in rounds. An evaluation of the density outside of a round is refused.
"""

from collections.abc import Sequence
from typing import Any

import pymc as pm
import pytensor.tensor as pt
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.op import Op
from pytensor.graph.replace import _vectorize_node, graph_replace
from pytensor.graph.traversal import ancestors
from pytensor.tensor.random.basic import MvNormalRV
from pytensor.tensor.variable import TensorVariable

from pymc_ensemble.forward.numba import run_as_python
from pymc_ensemble.forward.op import ForwardOp
from pymc_ensemble.forward.rounds import current_round
from pymc_ensemble.problem.curvature import FAMILIES

REFUSAL = (
    "The model has a synthetic likelihood, `{}`: its log density at one point is that of one "
    "simulation, which only samplers that average may ask for. Sample with "
    "pymc_ensemble.sample_synthetic(); one stage of it is "
    "pm.sample(step=pymc_ensemble.EnsembleKalmanSampler(rough=True))."
)


class SummariesRV(MvNormalRV):
    """Random variable of summaries: a `pymc.MvNormal` with its own log density."""


class Summaries(pm.MvNormal):
    """Gaussian of summaries."""

    rv_op = SummariesRV(method="cholesky")

    @staticmethod
    def logp(value: Any, mu: Any, cov: Any) -> TensorVariable:
        """Log density. Outside of a round it is refused, before any simulation."""
        nodes = {v.owner for v in ancestors([mu]) if v.owner and isinstance(v.owner.op, ForwardOp)}
        for node in nodes:
            guard: Any = InRounds(getattr(node.op.forward, "observed", ""))
            [mean] = node.op.make_node(*map(guard, node.inputs)).outputs
            [mu] = graph_replace([mu], {node.outputs[0]: mean})
        return pm.MvNormal.logp(value, mu, cov)


FAMILIES[SummariesRV] = FAMILIES[MvNormalRV]


class InRounds(Op):
    """Identity, which only samplers of this package may evaluate.

    Parameters
    ----------
    observed : str
        Name of the observed variable.
    """

    __props__ = ("observed",)

    def __init__(self, observed: str):
        self.observed = observed

    def make_node(self, *inputs: Any) -> Apply:
        """Apply to a tensor of any shape."""
        run_as_python(InRounds)
        [x] = map(pt.as_tensor, inputs)
        return Apply(self, [x], [x.type()])

    def perform(self, node: Apply, inputs: Sequence, output_storage: list) -> None:
        """Return the input, or refuse."""
        if current_round() is None:
            raise TypeError(REFUSAL.format(self.observed))
        output_storage[0][0] = inputs[0]

    def infer_shape(self, *arguments: Any) -> list[tuple]:
        """Shape of the input."""
        return [arguments[-1][0]]

    def do_constant_folding(self, fgraph: Any, node: Apply) -> bool:
        """Never evaluate while a graph is compiled."""
        return False


@_vectorize_node.register(InRounds)
def _vectorize_in_rounds(op: InRounds, node: Apply, *inputs: Variable) -> Apply:
    return op.make_node(*inputs)
