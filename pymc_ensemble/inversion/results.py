"""Result of an inversion, in the form of the results of samplers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pymc as pm
import xarray as xr
from numpy.typing import NDArray

from pymc_ensemble.diagnosis.facts import Facts
from pymc_ensemble.diagnosis.fountain import Fountain
from pymc_ensemble.problem.inverse_problem import InverseProblem
from pymc_ensemble.problem.points import free_values
from pymc_ensemble.samplers.ensemble import Ensemble, Origin
from pymc_ensemble.samplers.kalman.inversion import InversionState
from pymc_ensemble.samplers.linearization import Anomalies, moment_law

FloatArray = NDArray[np.float64]


def result_of(
    model: pm.Model,
    problem: InverseProblem,
    end: InversionState,
    rows: Sequence[Mapping[str, float]],
    ensembles: Sequence[Ensemble],
    options: Mapping[str, Any],
) -> xr.DataTree:
    """Result of an inversion, in a form that other parts of the package can read.

    Parameters
    ----------
    model : pm.Model
    problem : InverseProblem
        Inverse problem with the densities in unconstrained coordinates.
    end : InversionState
        The last state.
    rows : sequence of dict
        Recorded numbers of each iteration.
    ensembles : sequence of Ensemble
        Ensemble of each iteration.
    options : dict
        Options of `invert` that the result carries.
    """
    ensemble, J = end.ensemble, len(end.ensemble)
    origin = Origin("inversion")
    facts = Facts.of(model, model.value_vars, "invert", options, origin, J)
    numbers = np.arange(J)
    lp = -(problem.loss(ensemble.Z) + problem.prior_potential(ensemble.U))
    unknown = np.full(J, np.nan)
    has_law = problem.dimension + 1 < J  # else the particles have no density
    log_q = moment_law(Anomalies.of(ensemble.U)).log_density(ensemble.U) if has_law else unknown
    stats: dict[str, Any] = {
        "lp": lp,
        "log_q": log_q,
        "particle": numbers,
        "sweep": np.zeros(J, dtype=int),
        "n_evals": np.full(J, int(rows[-1]["n_evals"])),
        "acceptance": unknown,
        "step_size": np.full(J, float(end.step_size)),
        "n_failed": np.full(J, int(rows[-1]["n_failed"])),
        "converged": np.full(J, end.converged),
        "lost": np.zeros(J, dtype=bool),
        "tune": np.zeros(J, dtype=bool),
    }
    packets = Fountain.of(facts.text()).packets(0, stats["sweep"], numbers)
    vectors = {"unconstrained": ensemble.U, "made_by": packets}
    draws = ("chain", "draw")
    sample_stats = xr.Dataset({name: (draws, values[None]) for name, values in stats.items()})
    for name, values in vectors.items():
        sample_stats[name] = ((*draws, f"{name}_dim_0"), values[None])
    history = {name: ("iteration", [row[name] for row in rows]) for name in rows[0]}
    coords = {"coordinate": list(problem.coordinate_names)}
    inversion = xr.Dataset(history, coords)
    inversion["lp"] = (("iteration", "particle"), [-one.potential for one in ensembles])
    everywhere = ("iteration", "particle", "coordinate")
    inversion["unconstrained"] = (everywhere, [one.U for one in ensembles])
    inversion.attrs = {
        "target": options["target"],
        "converged": int(end.converged),
        "d_eff": end.information,
        "deficit": end.information / J,
    }
    center = labelled(model, ensemble.U.mean(0, keepdims=True))
    return xr.DataTree.from_dict(
        {
            "posterior": labelled(model, ensemble.U),
            "sample_stats": sample_stats,
            "estimate": center.isel(chain=0, draw=0, drop=True),
            "inversion": inversion,
        }
    )


def labelled(model: pm.Model, U: FloatArray) -> xr.Dataset:
    """Free variables at points, with the dimensions and coordinates of the model, as one chain."""
    arrays = {}
    for name, values in free_values(model, U).items():
        unnamed = [f"{name}_dim_{k}" for k in range(values.ndim - 1)]
        own = model.named_vars_to_dims.get(name) or unnamed
        arrays[name] = (("chain", "draw", *map(str, own)), values[None])
    used = {str(dim) for dims, _ in arrays.values() for dim in dims}
    labels = {str(dim): list(known) for dim, known in model.coords.items() if known is not None}
    coords = {dim: known for dim, known in labels.items() if dim in used}
    return xr.Dataset(arrays, coords | {"chain": [0], "draw": np.arange(len(U))})
