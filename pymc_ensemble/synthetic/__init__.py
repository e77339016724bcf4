"""Synthetic likelihoods: stochastic simulators by a Gaussian of their summaries."""
