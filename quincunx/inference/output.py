"""Draws as an ArviZ tree: groups, dims, coordinates and provenance."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import arviz_base
import jax
import numpy as np
import xarray as xr
from jaxtyping import Array

from quincunx.engine.density import Density
from quincunx.inference.driver import Pieces
from quincunx.inference.method import Method

_PACKAGES = ("quincunx", "jax", "jaxlib", "numpyro", "blackjax", "arviz-base", "numpy")


class Timing(NamedTuple):
    """Seconds spent building programs and running them."""

    compile_seconds: float
    sample_seconds: float


def _join(pieces: Sequence[tuple[dict, dict]], which: int) -> dict[str, np.ndarray]:
    names = pieces[0][which] if pieces else ()
    return {name: np.concatenate([p[which][name] for p in pieces], axis=1) for name in names}


def _chains(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def gather(results: Sequence[Pieces], phase: str) -> tuple[dict, dict]:
    """Draws and statistics of a phase, `(chain, draw, ...)`, from all groups of chains."""
    parts = [getattr(pieces, phase) for pieces in results]
    return _chains([_join(part, 0) for part in parts]), _chains([_join(part, 1) for part in parts])


def count_costs(results: Sequence[Pieces], timing: Timing) -> dict[str, int | float]:
    """Gradients, evaluations and data passes of all chains, warm-up included, and seconds."""
    costs: dict[str, int | float] = {}
    for name in ("gradients", "evaluations"):
        by_phase = {
            phase: sum(int(pieces.totals[phase][name].sum()) for pieces in results)
            for phase in ("warmup", "posterior")
        }
        costs[name] = by_phase["warmup"] + by_phase["posterior"]
        costs[f"warmup_{name}"] = by_phase["warmup"]
    costs["data_passes"] = float(costs["evaluations"])
    return costs | timing._asdict()


def versions() -> dict[str, str]:
    """Versions of the packages that determine a run."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def provenance(method: Method, costs: Mapping[str, Any], key: Array, layout: str) -> dict[str, Any]:
    """What is needed to know where draws are from and to make them again."""
    return {
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "inference_library": "quincunx",
        "inference_library_version": versions()["quincunx"],
        "method": method.name,
        "kind": method.kind.name,
        "settings": json.dumps(method.settings()),
        "key": json.dumps(np.asarray(jax.random.key_data(key)).tolist()),
        "key_implementation": str(jax.random.key_impl(key)),
        "versions": json.dumps(versions()),
        "device": jax.devices()[0].device_kind,
        "precision": str(np.dtype(jax.dtypes.canonicalize_dtype(float))),
        "chain_method": layout,
        "costs": json.dumps(dict(costs)),
    }


def dims_of(density: Density, names: Sequence[str]) -> dict[str, list[str]]:
    """Dimension names of some sites."""
    return {name: density.labels.dims[name] for name in names if name in density.labels.dims}


def dataset(density: Density, draws: Mapping[str, Any]) -> xr.Dataset:
    """One group of draws as a labelled dataset."""
    dims = dims_of(density, list(draws))
    coords = _used(density.labels.coords, dims)
    tree = arviz_base.from_dict({"posterior": dict(draws)}, dims=dims, coords=coords)
    return tree["posterior"].to_dataset()


def _used(coords: Mapping[str, Any], dims: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    names = {dim for entry in dims.values() for dim in entry}
    return {dim: values for dim, values in coords.items() if dim in names}


def _observed(density: Density) -> dict[str, np.ndarray]:
    sites = density.program.role("observed")
    leaves = dict(zip(density.program.signature.array_names, density.leaves, strict=True))
    if all(site.argument for site in sites):
        return {site.name: np.asarray(leaves[str(site.argument)]) for site in sites}
    origin = np.zeros(density.dim, jax.dtypes.canonicalize_dtype(float))
    return jax.device_get(jax.jit(Density.observations)(density, origin))


def _constants(density: Density) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Arguments that were not observed as they stand, with the dims of data plates."""
    program, signature = density.program, density.program.signature
    observed = {site.argument for site in program.role("observed")}
    leaves = dict(zip(signature.array_names, density.leaves, strict=True))
    plates = {name: plate.name for plate in program.data_plates for name in plate.arrays}
    values, dims = {}, {}
    for name, constant in zip(signature.names, signature.constants, strict=True):
        if name in observed:
            continue
        if name in leaves:
            values[name] = np.asarray(leaves[name])
            if name in plates:
                rest = range(1, values[name].ndim)
                dims[name] = [plates[name], *(f"{name}_dim_{axis}" for axis in rest)]
        elif isinstance(constant, (bool, int, float)):
            values[name] = np.asarray(constant)
    return values, dims


def build_tree(
    density: Density,
    method: Method,
    results: Sequence[Pieces],
    timing: Timing,
    key: Array,
    layout: str,
) -> tuple[xr.DataTree, dict[str, int | float]]:
    """The ArviZ tree of a run of Markov chains, and its costs."""
    draws, stats = gather(results, "posterior")
    costs = count_costs(results, timing)
    groups: dict[str, Mapping[str, Any]] = {"posterior": draws, "sample_stats": stats}
    if any(pieces.warmup for pieces in results):
        groups["warmup_posterior"], groups["warmup_sample_stats"] = gather(results, "warmup")
    observed = _observed(density)
    constants, constant_dims = _constants(density)
    if observed:
        groups["observed_data"] = observed
    if constants:
        groups["constant_data"] = constants
    dims = dims_of(density, [*draws, *observed]) | constant_dims
    coords = _used(density.labels.coords, dims)
    tree = arviz_base.from_dict(groups, dims=dims, coords=coords, save_warmup=True)
    attributes = provenance(method, costs, key, layout)
    for group in ("posterior", "sample_stats"):
        tree[group].attrs.update(attributes)
    return tree, costs
