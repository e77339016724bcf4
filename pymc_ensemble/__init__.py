"""Ensemble samplers for PyMC models without gradients."""

from pymc_ensemble import gallery, plots
from pymc_ensemble.diagnosis.coverage import coverage
from pymc_ensemble.diagnosis.diagnose import diagnose
from pymc_ensemble.diagnosis.ensembles import ess, to_ensemble
from pymc_ensemble.diagnosis.reweight import reweight
from pymc_ensemble.forward import forward_model, open_store
from pymc_ensemble.optimization import find_MAP_ensemble
from pymc_ensemble.problem import InverseProblem
from pymc_ensemble.step_methods.gaussian_process import EnsembleGaussianProcessSampler
from pymc_ensemble.step_methods.kalman import EnsembleKalmanSampler
from pymc_ensemble.step_methods.langevin import EnsembleLangevinSampler
from pymc_ensemble.step_methods.multiscale import MultiscaleSampler

__version__ = "0.2.0.dev0"

__all__ = [
    "EnsembleGaussianProcessSampler",
    "EnsembleKalmanSampler",
    "EnsembleLangevinSampler",
    "InverseProblem",
    "MultiscaleSampler",
    "coverage",
    "diagnose",
    "ess",
    "find_MAP_ensemble",
    "forward_model",
    "gallery",
    "open_store",
    "plots",
    "reweight",
    "to_ensemble",
]
