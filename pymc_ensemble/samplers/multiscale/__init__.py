"""Multiscale derivative-free sampler."""

from .sampler import Multiscale

__all__ = ["Multiscale"]
