"""Ensemble samplers for PyMC models without gradients."""

from typing import TYPE_CHECKING

from .first_use import on_first_use
from .version import __version__ as __version__

if TYPE_CHECKING:
    from pymc_ensemble import gallery, moves, plots
    from pymc_ensemble.amortized.amortizing import amortize, load_amortized
    from pymc_ensemble.amortized.simulations import simulations
    from pymc_ensemble.approximation import approximate
    from pymc_ensemble.diagnosis.coverage import coverage
    from pymc_ensemble.diagnosis.diagnose import diagnose
    from pymc_ensemble.diagnosis.ensembles import ess, to_ensemble
    from pymc_ensemble.diagnosis.evidence import log_evidence
    from pymc_ensemble.diagnosis.report import report
    from pymc_ensemble.diagnosis.reweight import reweight
    from pymc_ensemble.forward import forward_model, open_store
    from pymc_ensemble.inversion.inverting import invert
    from pymc_ensemble.inversion.training import train
    from pymc_ensemble.optimization import find_MAP_ensemble
    from pymc_ensemble.problem import InverseProblem
    from pymc_ensemble.step_methods.gaussian_process import EnsembleGaussianProcessSampler
    from pymc_ensemble.step_methods.informed import LikelihoodInformedSampler
    from pymc_ensemble.step_methods.kalman import EnsembleKalmanSampler
    from pymc_ensemble.step_methods.langevin import EnsembleLangevinSampler
    from pymc_ensemble.step_methods.multifidelity import MultifidelitySampler
    from pymc_ensemble.step_methods.multiscale import MultiscaleSampler
    from pymc_ensemble.step_methods.suggestion import suggest
    from pymc_ensemble.synthetic.likelihood import synthetic_likelihood
    from pymc_ensemble.synthetic.sampling import sample_synthetic

__all__ = [
    "EnsembleGaussianProcessSampler",
    "EnsembleKalmanSampler",
    "EnsembleLangevinSampler",
    "InverseProblem",
    "LikelihoodInformedSampler",
    "MultifidelitySampler",
    "MultiscaleSampler",
    "amortize",
    "approximate",
    "coverage",
    "diagnose",
    "ess",
    "find_MAP_ensemble",
    "forward_model",
    "gallery",
    "invert",
    "load_amortized",
    "log_evidence",
    "moves",
    "open_store",
    "plots",
    "report",
    "reweight",
    "sample_synthetic",
    "simulations",
    "suggest",
    "synthetic_likelihood",
    "to_ensemble",
    "train",
]

# A name is loaded on its first use, and so are the parts of SciPy: ArviZ, SciPy's statistics and
# Matplotlib take longer to import than PyMC, its linear algebra a quarter of that, and a worker
# process that runs a simulator needs none of them. So the rooms import nothing in `__init__`.
_HOMES = {
    "EnsembleGaussianProcessSampler": "step_methods.gaussian_process",
    "EnsembleKalmanSampler": "step_methods.kalman",
    "EnsembleLangevinSampler": "step_methods.langevin",
    "InverseProblem": "problem",
    "LikelihoodInformedSampler": "step_methods.informed",
    "MultifidelitySampler": "step_methods.multifidelity",
    "MultiscaleSampler": "step_methods.multiscale",
    "amortize": "amortized.amortizing",
    "approximate": "approximation",
    "coverage": "diagnosis.coverage",
    "diagnose": "diagnosis.diagnose",
    "ess": "diagnosis.ensembles",
    "find_MAP_ensemble": "optimization",
    "forward_model": "forward",
    "gallery": "gallery",
    "invert": "inversion.inverting",
    "load_amortized": "amortized.amortizing",
    "log_evidence": "diagnosis.evidence",
    "moves": "moves",
    "open_store": "forward",
    "plots": "plots",
    "report": "diagnosis.report",
    "reweight": "diagnosis.reweight",
    "sample_synthetic": "synthetic.sampling",
    "simulations": "amortized.simulations",
    "suggest": "step_methods.suggestion",
    "synthetic_likelihood": "synthetic.likelihood",
    "to_ensemble": "diagnosis.ensembles",
    "train": "inversion.training",
}

if not TYPE_CHECKING:  # type checkers know the names from above, and find those that are misspelt
    __getattr__, __dir__ = on_first_use(__name__, _HOMES)
