"""Comparison of the ensemble samplers with NUTS, emcee and others.

    python -m pymc_ensemble.benchmark --quick

runs a small one in less than three minutes; without ``--quick`` it takes hours, can be interrupted,
and goes on where it was. See ``--help``, and `pymc_ensemble.benchmark.report` for what comes out.
"""
