"""What the draws of a run are worth, and what can be made of them."""

from .coverage import Coverage, coverage
from .diagnose import Diagnosis, diagnose
from .ensembles import ess, to_ensemble
from .evidence import LogEvidence, log_evidence
from .report import Report, report
from .reweight import reweight

__all__ = [
    "Coverage",
    "Diagnosis",
    "LogEvidence",
    "Report",
    "coverage",
    "diagnose",
    "ess",
    "log_evidence",
    "report",
    "reweight",
    "to_ensemble",
]
