"""Comparison of the ensemble samplers with NUTS, emcee and others.

    python -m pymc_ensemble.benchmark --quick

runs a small benchmark in less than three minutes. Without ``--quick`` it takes hours. You can
interrupt it, and the same command goes on later. ``--help`` lists the options, and
`pymc_ensemble.benchmark.report` says what comes out.
"""
