"""Sampler of many parameters: it learns the slope of the outputs, and keeps the prior."""

from .averaged import AveragedLaw
from .mode import ModeSearch
from .sampler import LikelihoodInformed

__all__ = ["AveragedLaw", "LikelihoodInformed", "ModeSearch"]
