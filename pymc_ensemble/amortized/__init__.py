"""Posteriors learned from simulations of a model, once for all data sets."""
