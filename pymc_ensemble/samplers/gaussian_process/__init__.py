"""Ensemble Gaussian process sampler."""

from .sampler import EnsembleGaussianProcess

__all__ = ["EnsembleGaussianProcess"]
