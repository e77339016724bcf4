"""Ensembles that fit: inversion of a model, and training on batches of data."""
