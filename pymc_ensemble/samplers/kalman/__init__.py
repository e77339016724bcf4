"""Ensemble Kalman sampler."""
