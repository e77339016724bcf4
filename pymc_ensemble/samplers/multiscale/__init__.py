"""Multiscale derivative-free sampler."""
