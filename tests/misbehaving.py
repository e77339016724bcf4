"""Forward models that misbehave, and a log of their calls that all processes share."""

import os
import time

import numpy as np

import pymc_ensemble as pe


class Log:
    """Calls, in a file that all processes append to."""

    def __init__(self, path):
        self.path = path
        path.touch()

    def note(self, value):
        with self.path.open("a") as file:
            file.write(f"{float(value)!r}\n")

    def read(self):
        return [float(line) for line in self.path.read_text().split()]


def misbehave(log, hang=30.0):
    """Function whose first input says how it fails."""

    def function(x):
        log.note(x[0])
        if x[0] == 1:
            raise ZeroDivisionError("one")
        if x[0] == 2:
            return x * np.nan
        if x[0] == 3:
            return np.ones(3)
        if x[0] == 4:
            os._exit(7)
        if x[0] == 5:
            time.sleep(hang)
        return 2 * x

    return function


class Solver:
    """A simulator with a state: calls beside each other spoil it.

    It is here, and not beside a test, as workers that are not forked import its module.
    """

    def __init__(self, slow=0.1):
        self.y, self.slow = 0.0, slow

    def __call__(self, x):
        self.y = 0.0
        for _ in range(20):
            time.sleep(self.slow if x[0] < 0 else 1e-4)
            self.y += x[1]
        return np.array([x[0], self.y])


def problem(function, **options):
    """Inverse problem whose forward map is a forward model of two inputs and two outputs."""
    forward = pe.forward_model(function, output_shape=(2,), **options)
    prior = (np.zeros(2), np.eye(2))
    return pe.InverseProblem(forward, prior=prior, data=np.zeros(2), noise=1.0), forward


def points(first):
    """Points with the given first coordinates."""
    return np.column_stack([np.asarray(first, dtype=float), np.ones(len(first))])
