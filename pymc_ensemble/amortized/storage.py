"""Estimates in files: arrays and text, without pickled objects."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from pymc_ensemble.version import __version__

from .learned import Learned

FORMAT = 1  # version of the file; others are refused
PARTS = ("network", "scaling", "familiarity", "estimate", "record")


def save(learned: Learned, path: str | PathLike) -> None:
    """Write an estimate to a file."""
    _require_path(path)
    import equinox as eqx
    import jax

    estimate = learned.estimate
    leaves = jax.tree_util.tree_leaves(eqx.filter(estimate.networks, eqx.is_array))
    arrays: dict[str, Mapping[str, np.ndarray]] = {
        "network": {f"{k:04d}": np.asarray(leaf) for k, leaf in enumerate(leaves)},
        "scaling": learned.scaling.arrays(),
        "familiarity": learned.familiarity.arrays(),
        "estimate": {
            name: np.asarray(getattr(estimate, name))
            for name in ("center", "scale", "candidates", "floor")
        },
        "record": {"history": learned.history},
    }
    text = {
        "format": FORMAT,
        "version": __version__,
        "sizes": asdict(estimate.sizes),
        "scaling": learned.scaling.words(),
        "facts": learned.facts.text(),
        "record": {
            name: getattr(learned, name)
            for name in ("method", "conservative", "members", "simulations", "failed", "tested")
        },
    }
    flat = {f"{part}/{name}": v for part, known in arrays.items() for name, v in known.items()}
    with Path(path).open("wb") as file:
        np.savez_compressed(file, text=np.array(json.dumps(text)), **flat)  # type: ignore[arg-type]


def load(path: str | PathLike) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """Arrays by part and name, and text of a file.

    Raises
    ------
    ValueError
        If the file contains no estimate, or has another format.
    """
    _require_path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            text = json.loads(str(file["text"]))
            flat = {name: file[name] for name in file.files if name != "text"}
        number = text["format"]
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(
            f"{Path(path)} is not a file of an amortized posterior ({error}). "
            "AmortizedPosterior.save writes such files."
        ) from error
    if number != FORMAT:
        raise ValueError(
            f"{Path(path)} was written by version {text.get('version')} of pymc_ensemble in "
            f"format {number}, but this version reads format {FORMAT}. Install that "
            "version, or amortize again."
        )
    arrays: dict[str, dict[str, np.ndarray]] = {part: {} for part in PARTS}
    for name, values in flat.items():
        part, _, key = name.partition("/")
        arrays[part][key] = values
    return arrays, text


def _require_path(path: Any) -> None:
    """Refuse anything that is not a path."""
    if not isinstance(path, str | PathLike) or not str(path):
        raise TypeError(f"`path` must name a file, such as 'learned.npz', not {path!r}.")


def networks_of(sizes: Any, members: int, arrays: Mapping[str, np.ndarray]) -> Any:
    """Networks with the saved weights."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    empty = sizes.ensemble(jax.random.split(jax.random.key(0), members))
    weights, rest = eqx.partition(empty, eqx.is_array)
    leaves, structure = jax.tree_util.tree_flatten(weights)
    saved = [arrays[key] for key in sorted(arrays)]
    if [leaf.shape for leaf in leaves] != [array.shape for array in saved]:
        raise ValueError(
            "The weights in the file do not fit these networks: another version of flowjax or "
            "equinox wrote it. Install that version, or amortize again."
        )
    filled = [jnp.asarray(array, leaf.dtype) for array, leaf in zip(saved, leaves, strict=True)]
    return eqx.combine(jax.tree_util.tree_unflatten(structure, filled), rest)
