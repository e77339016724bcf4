"""Sampler for many parameters: it learns the slope of the outputs, and keeps the prior."""
