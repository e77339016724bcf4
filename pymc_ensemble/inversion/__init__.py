"""Fits by ensembles: inversion of a model, and training on batches of data."""
