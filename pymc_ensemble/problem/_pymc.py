"""Undocumented names of PyMC and PyTensor, in one place.

A test fails if one of them moves.
"""

from pymc.data import MinibatchOp
from pymc.distributions.custom import CustomDistRV, CustomSymbolicDistRV
from pymc.distributions.distribution import PartialObservedRV, SymbolicRandomVariable
from pymc.distributions.mixture import _BaseMixtureRV as BaseMixtureRV
from pymc.distributions.shape_utils import change_dist_size
from pymc.distributions.transforms import (
    ChainedTransform,
    CircularTransform,
    Ordered,
    Transform,
)
from pymc.distributions.transforms import _default_transform as default_transform
from pymc.initial_point import make_initial_point_expression
from pymc.logprob.basic import conditional_logp
from pymc.logprob.utils import CheckParameterValue
from pytensor.compile.ops import FromFunctionOp
from pytensor.link.vm import Loop
from pytensor.tensor.random.basic import VonMisesRV
from pytensor.tensor.random.utils import compute_batch_shape

# registered by pymc.logprob.utils: out of the support the log density is minus infinity
PARAMETER_CHECKS_TO_INFINITY = "local_check_parameter_to_ninf_switch"
# densities that users have written
CUSTOM_DISTRIBUTIONS = (CustomDistRV, CustomSymbolicDistRV)
# registered by pytensor.xtensor: labelled dimensions become axes
LOWER_LABELS = "lower_xtensor"

__all__ = [
    "CUSTOM_DISTRIBUTIONS",
    "LOWER_LABELS",
    "PARAMETER_CHECKS_TO_INFINITY",
    "BaseMixtureRV",
    "ChainedTransform",
    "CheckParameterValue",
    "CircularTransform",
    "FromFunctionOp",
    "Loop",
    "MinibatchOp",
    "Ordered",
    "PartialObservedRV",
    "SymbolicRandomVariable",
    "Transform",
    "VonMisesRV",
    "change_dist_size",
    "compute_batch_shape",
    "conditional_logp",
    "default_transform",
    "make_initial_point_expression",
]
