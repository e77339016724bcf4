"""Ensemble Kalman sampler."""

from .sampler import EnsembleKalman

__all__ = ["EnsembleKalman"]
