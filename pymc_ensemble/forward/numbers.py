"""Numbers in the result of a function: without masked values, and without units.

Workers of foreign executors get this module by value, so it uses only NumPy and the standard
library.
"""

from typing import Any

import numpy as np

FLOAT = np.dtype(np.float64)  # there is one such object only
PLAIN = (float, int, bool, np.ndarray, np.float64, np.float32, np.int64, np.bool_)
DIMENSIONLESS = (("m_as", ""), ("to_value", ""), ("rescale", "dimensionless"))
"""How a quantity without a unit becomes a number: in pint; astropy and unyt; quantities."""


def numbers(value: Any) -> np.ndarray:
    """Array of real numbers, NaN where a value is masked or missing.

    Parameters
    ----------
    value : array_like
        Numbers, a masked array, a column with missing values, or a quantity without a unit, alone
        or in lists.

    Raises
    ------
    TypeError
        If there is anything other than real numbers, or a quantity with a unit.
    """
    array = np.asarray(unwrapped(value))
    if array.dtype is FLOAT:
        return array
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"the forward model returned {value!r:.200} of type {type(value).__name__}, expected "
            "an array of real numbers"
        )
    return array.astype(np.float64)


def unwrapped(value: Any) -> Any:
    """Value with NaN for masked entries. Units are refused, as NumPy would drop them silently."""
    if type(value) in PLAIN:
        return value
    if isinstance(value, list | tuple):
        if all(type(entry) in PLAIN for entry in value):
            return value
        return [unwrapped(entry) for entry in value]
    package = _package(value)
    if package == "pandas" and hasattr(value, "to_numpy"):
        return _of_table(value)
    if package == "xarray" and hasattr(value, "data"):
        return unwrapped(value.data)
    if type(value).__name__ == "NAType":
        return np.nan
    if (unit := _unit(value)) is not None:
        return _without_unit(value, unit)
    hidden = _mask(value)
    if hidden is None:
        return value
    data = np.asarray(value.filled(0) if hasattr(value, "filled") else value)
    return np.where(np.broadcast_to(hidden, data.shape), np.nan, data) if hidden.any() else data


def dropped(value: Any) -> str:
    """What NumPy would silently drop from a value: "mask", "unit", or ""."""
    if type(value) in PLAIN:
        return ""
    if isinstance(value, list | tuple):
        return next(filter(None, map(dropped, value)), "")
    package = _package(value)
    if package == "xarray" and hasattr(value, "data"):
        return dropped(value.data)
    if package == "pandas":
        return ""
    if _unit(value) is not None:
        return "unit"
    hidden = _mask(value)
    return "mask" if hidden is not None and hidden.any() else ""


def _package(value: Any) -> str:
    return type(value).__module__.partition(".")[0]


def _unit(value: Any) -> Any:
    """Unit of a quantity, also that of pure numbers. The `units` of xarray are only a label."""
    if _package(value) in ("pandas", "xarray"):
        return None
    unit = getattr(value, "unit", None)
    unit = getattr(value, "units", None) if unit is None else unit
    return None if callable(unit) else unit


def _mask(value: Any) -> np.ndarray | None:
    mask = getattr(value, "mask", None)
    return None if mask is None or callable(mask) else np.asarray(mask)


def _of_table(value: Any) -> np.ndarray:
    """Series, column or table of pandas."""
    array = np.asarray(value)
    if array.dtype.kind != "O":
        return array
    entries = [np.nan if type(x).__name__ == "NAType" else x for x in array.ravel().tolist()]
    if any(isinstance(entry, str) for entry in entries):
        return array
    return np.asarray(unwrapped(entries)).reshape(array.shape)


def _without_unit(value: Any, unit: Any) -> Any:
    for name, target in DIMENSIONLESS:
        convert = getattr(value, name, None)
        if convert is not None:
            try:
                return unwrapped(convert(target))
            except Exception:  # an error of a unit library: refused below, with the unit
                break
    raise TypeError(
        f"the forward model returned {value!r:.100} of type {type(value).__name__}: values in "
        f"{unit} are refused, as the likelihood does not know the unit. Return plain numbers in "
        "the unit of the data"
    )
