"""Draws of an estimate in the form of the results of samplers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pymc as pm
import xarray as xr

from pymc_ensemble.diagnosis.facts import Facts
from pymc_ensemble.diagnosis.fountain import Fountain

from .estimate import Drawn
from .generating import Generator


def result_of(
    generator: Generator,
    facts: Facts,
    drawn: Drawn,
    observed: Mapping[str, np.ndarray],
    attrs: Mapping[str, Any],
) -> xr.DataTree:
    """Draws with stats that `diagnose`, `plots` and ``initial_ensemble=`` can read."""
    model = generator.model
    chains, n, d = drawn.U.shape
    named = generator.named(drawn.U.reshape(-1, d))
    posterior = {
        name: _labelled(model, name, values.reshape(chains, n, *values.shape[1:]))
        for name, values in named.items()
    }
    everywhere = np.broadcast_arrays(drawn.lp, drawn.sweep, drawn.particle)
    lp, sweep, particle = everywhere
    stats: dict[str, Any] = {
        "lp": lp,
        "log_q": lp,
        "particle": particle,
        "sweep": sweep,
        "n_evals": np.zeros_like(sweep),
        "acceptance": np.full(lp.shape, drawn.acceptance),
        "step_size": np.full(lp.shape, np.inf),
        "n_failed": np.zeros_like(sweep),
        "converged": np.ones(lp.shape, dtype=bool),
        "lost": np.zeros(lp.shape, dtype=bool),
        "tune": np.zeros(lp.shape, dtype=bool),
    }
    fountain = Fountain.of(facts.text())
    packets = [fountain.packets(c, drawn.sweep, drawn.particle) for c in range(chains)]
    vectors: dict[str, np.ndarray] = {"unconstrained": drawn.U, "made_by": np.stack(packets)}
    draws = ("chain", "draw")
    sample_stats = xr.Dataset({name: (draws, values) for name, values in stats.items()})
    for name, values in vectors.items():
        sample_stats[name] = ((*draws, f"{name}_dim_0"), values)
    coords = {"chain": np.arange(chains), "draw": np.arange(n)}
    data = {name: ((_dims(model, name, values.ndim)), values) for name, values in observed.items()}
    return xr.DataTree.from_dict(
        {
            "posterior": xr.Dataset(posterior, coords | _labels(model, posterior), dict(attrs)),
            "sample_stats": sample_stats.assign_coords(coords),
            "observed_data": xr.Dataset(data, _labels(model, data)),
        }
    )


def _dims(model: pm.Model, name: str, ndim: int) -> tuple[str, ...]:
    unnamed = [f"{name}_dim_{k}" for k in range(ndim)]
    return tuple(map(str, model.named_vars_to_dims.get(name) or unnamed))


def _labelled(model: pm.Model, name: str, values: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    return ("chain", "draw", *_dims(model, name, values.ndim - 2)), values


def _labels(model: pm.Model, arrays: Mapping[str, Any]) -> dict[str, list[Any]]:
    used = {dim for dims, _ in arrays.values() for dim in dims}
    known = {str(dim): labels for dim, labels in model.coords.items() if labels is not None}
    return {dim: list(labels) for dim, labels in known.items() if dim in used}
