"""Ensemble Gaussian process sampler."""
