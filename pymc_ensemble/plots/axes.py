"""The Axes that a picture is drawn into."""

from typing import Any

from matplotlib.axes import Axes

LINES = 12  # more cannot be told apart


def axes_of(ax: Axes | None, **size: Any) -> Axes:
    """Return the Axes that were given, or those of a new figure."""
    if ax is not None:
        if not isinstance(ax, Axes):
            raise TypeError(f"`ax` must be a matplotlib Axes, not {type(ax).__name__}.")
        return ax
    import matplotlib.pyplot as plt  # not before it is needed: it chooses a backend

    return plt.subplots(layout="constrained", **size)[1]
