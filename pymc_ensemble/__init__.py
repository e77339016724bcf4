"""Ensemble Kalman samplers for PyMC models without gradients."""

__version__ = "0.1.0.dev0"

__all__: list[str] = []
