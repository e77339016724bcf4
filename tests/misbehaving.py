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


def problem(function, **options):
    """Inverse problem whose forward map is a forward model of two inputs and two outputs."""
    forward = pe.forward_model(function, output_shape=(2,), **options)
    prior = (np.zeros(2), np.eye(2))
    return pe.InverseProblem(forward, prior=prior, data=np.zeros(2), noise=1.0), forward


def points(first):
    """Points with the given first coordinates."""
    return np.column_stack([np.asarray(first, dtype=float), np.ones(len(first))])
