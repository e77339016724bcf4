"""Step methods of `pymc.sample`: ensembles of particles as draws."""

from .base import EnsembleStep
from .gaussian_process import EnsembleGaussianProcessSampler
from .informed import LikelihoodInformedSampler
from .kalman import EnsembleKalmanSampler
from .langevin import EnsembleLangevinSampler
from .multifidelity import MultifidelitySampler
from .multiscale import MultiscaleSampler

__all__ = [
    "EnsembleGaussianProcessSampler",
    "EnsembleKalmanSampler",
    "EnsembleLangevinSampler",
    "EnsembleStep",
    "LikelihoodInformedSampler",
    "MultifidelitySampler",
    "MultiscaleSampler",
]
