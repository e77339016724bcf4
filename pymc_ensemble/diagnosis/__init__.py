"""What the draws of a run are worth, and what can be made of them."""

from .coverage import Coverage, coverage
from .diagnose import Diagnosis, diagnose
from .ensembles import ess, to_ensemble
from .reweight import reweight

__all__ = ["Coverage", "Diagnosis", "coverage", "diagnose", "ess", "reweight", "to_ensemble"]
