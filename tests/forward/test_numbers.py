"""What a function returns becomes numbers: a mask hides, a unit is refused, nothing is dropped."""

import numpy as np
import pandas as pd
import pymc as pm
import pytest
import xarray as xr

import pymc_ensemble as pe
from pymc_ensemble.forward.numbers import dropped, numbers

X = np.linspace(0.0, 1.0, 4)
HIDDEN = np.array([False, True, False, False])
VALUES = np.where(HIDDEN, 1e20, X)
MISSING = np.where(HIDDEN, np.nan, X)


class Pint:
    """As pint's quantities are: an object that NumPy takes for its magnitude."""

    def __init__(self, magnitude, units):
        self.magnitude, self.units = magnitude, units

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.magnitude, dtype)

    def m_as(self, units):
        if self.units not in ("", "percent"):
            raise ValueError(f"{self.units} is no {units}")
        return self.magnitude * (0.01 if self.units == "percent" else 1.0)


class Astropy(np.ndarray):
    """As astropy's are: an array with a unit."""

    def __new__(cls, values, unit):
        new = np.asarray(values, dtype=float).view(cls)
        new.unit = unit
        return new

    def __array_finalize__(self, other):
        self.unit = getattr(other, "unit", None)

    def to_value(self, unit):
        if self.unit != "":
            raise TypeError("not dimensionless")
        return np.asarray(self)


class Masked(np.ndarray):
    """As astropy's masked arrays are, which are none of NumPy's."""

    @property
    def mask(self):
        return HIDDEN


masked = np.ma.masked_array(VALUES, HIDDEN)
COLUMN = pd.Series(np.where(HIDDEN, None, VALUES).tolist(), dtype="Float64")

HIDING = {
    "masked array": masked,
    "one masked number in a list": [float(x) for x in X[:1]] + [np.ma.masked] + X[2:].tolist(),
    "list of masked numbers": list(masked),
    "masked integers": np.ma.masked_array([0, 5, 0, 1], HIDDEN) + 0,
    "nullable column": COLUMN,
    "nullable array": COLUMN.array,
    "nullable integers": pd.Series([0, None, 0, 1], dtype="Int64"),
    "missing numbers in a list": [0.0, pd.NA, 0.5, 1.0],
    "labelled, with gaps": xr.DataArray(MISSING, attrs={"units": "m"}),
    "array of another package": VALUES.view(Masked),
}


@pytest.mark.parametrize("name", list(HIDING))
def test_what_is_masked_or_missing_is_nan(name):
    found = numbers(HIDING[name])
    np.testing.assert_array_equal(np.isnan(found), HIDDEN)
    assert np.nanmax(found) <= 1.0


SHOWING = {
    "mask without effect": np.ma.masked_array(X, np.zeros(4, bool)),
    "no mask": np.ma.masked_array(X),
    "nullable column": pd.Series(X, dtype="Float64"),
    "labels like attributes": pd.Series(X, index=["unit", "mask", "units", "filled"]),
    "labelled": xr.DataArray(X, dims="time", attrs={"units": "m"}),
    "dimensionless": Astropy(X, ""),
    "pint, dimensionless": Pint(X, ""),
    "percent": Pint(100 * X, "percent"),
    "list of these": [Pint(x, "") for x in X],
    "matrix": np.asmatrix(X),
    "range": [0, X[1], np.float32(X[2]), True],
}


@pytest.mark.parametrize("name", list(SHOWING))
def test_what_hides_nothing_stays(name):
    np.testing.assert_allclose(numbers(SHOWING[name]).ravel(), X, rtol=1e-7)


REFUSED = {
    "astropy": Astropy(X, "m"),
    "pint": Pint(X, "second"),
    "in a list": [1.0, Pint(2.0, "second")],
    "in labelled data": xr.DataArray(0.0).copy(data=Astropy(3.0, "kg")),
    "times": pd.Series(pd.to_timedelta([1, 2], unit="s")),
    "texts": pd.Series(["1", "2"]),
    "complex": 1j * X,
    "objects": np.array([1.0, Pint(1.0, "m")], dtype=object),
    "records": np.zeros(2, dtype=[("a", float)]),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_is_no_number_is_refused(name):
    with pytest.raises(TypeError, match="the forward model returned"):
        numbers(REFUSED[name])


def test_units_are_refused_by_name():
    with pytest.raises(TypeError, match=r"values in second are refused.*Return plain numbers"):
        numbers(REFUSED["pint"])


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("vectorized", [False, True])
def test_a_masked_member_fails_alone(vectorized, wrapped):
    """With `forward_model`, and where a plain function is the forward map."""
    if vectorized and not wrapped:
        pytest.skip("plain functions are called one by one")

    def simulate(u):
        values = u[..., :1] * X
        return np.ma.masked_array(np.where(values > 1.5, 1e20, values), values > 1.5)

    function = simulate
    if wrapped:
        function = pe.forward_model(simulate, output_shape=(4,), vectorized=vectorized)
    problem = pe.InverseProblem(function, prior=(np.zeros(1), np.eye(1)), data=X, noise=1.0)
    evaluations = problem.evaluate([[1.0], [2.0], [1.4]])
    np.testing.assert_array_equal(evaluations.failed, [False, True, False])
    np.testing.assert_array_equal(evaluations.outputs[0], X)
    assert "1 of 4 forward outputs are not finite" in dict(evaluations.errors)[1]


def test_a_run_with_units_ends_with_the_reason():
    forward = pe.forward_model(lambda a: Astropy(a * X, "m"))
    with (
        pm.Model(),
        pytest.raises(ValueError, match=r"(?s)output_shape.*values in m are refused"),
    ):
        forward(pm.Normal("a"))


@pytest.mark.parametrize("lost", ["mask", "unit"])
def test_arguments_keep_their_masks_and_units_or_are_refused(lost):
    argument = masked if lost == "mask" else Astropy(X, "m")
    assert dropped(argument) == dropped([1.0, argument]) == lost
    forward = pe.forward_model(lambda a, forcing: a * forcing, output_shape=(4,))
    with pm.Model(), pytest.raises(TypeError, match=rf"`forcing` .* has a {lost}.*partial"):
        forward(pm.Normal("a"), argument)
