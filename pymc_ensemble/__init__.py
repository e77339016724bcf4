"""Ensemble samplers for PyMC models without gradients."""

from pymc_ensemble import gallery, plots
from pymc_ensemble.calibration import coverage
from pymc_ensemble.diagnosis import diagnose, reweight
from pymc_ensemble.diagnostics import ess, to_ensemble
from pymc_ensemble.forward import forward_model, open_store
from pymc_ensemble.gaussian_process_step import EnsembleGaussianProcessSampler
from pymc_ensemble.langevin_step import EnsembleLangevinSampler
from pymc_ensemble.multiscale_step import MultiscaleSampler
from pymc_ensemble.optimization import find_MAP_ensemble
from pymc_ensemble.problem import InverseProblem
from pymc_ensemble.step_methods import EnsembleKalmanSampler

__version__ = "0.1.0"

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
