"""Draws as an ArviZ tree: groups, dims, coordinates and provenance."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import arviz_base
import jax
import numpy as np
import xarray as xr
from jaxtyping import Array

from quincunx.engine.density import Density
from quincunx.engine.errors import QuincunxError, listing
from quincunx.inference.method import Method
from quincunx.inference.session import AGENT, Session

_ENGINES: Mapping[str, dict[str, Any]] = {
    ".nc": {"engine": "h5netcdf"},
    ".zarr": {"engine": "zarr", "consolidated": False},
}
_PACKAGES = ("quincunx", "jax", "jaxlib", "numpyro", "blackjax", "arviz-base", "numpy")


def count_costs(session: Session) -> dict[str, int | float]:
    """Gradients, evaluations and data passes of all chains, warm-up included, and seconds."""
    costs: dict[str, int | float] = {}
    for name in ("gradients", "evaluations"):
        warmup = session.total(name, "warmup")
        costs[name] = warmup + session.total(name, "posterior")
        costs[f"warmup_{name}"] = warmup
    costs["data_passes"] = costs["evaluations"] * session.method.passes(session.density)
    prepared = session.preparation
    for name in ("gradients", "evaluations"):
        costs[name] += getattr(prepared, name)
        costs[f"warmup_{name}"] += getattr(prepared, name)
    costs["data_passes"] += prepared.data_passes
    moved = session.method.traffic(session.density, prepared.value)
    if moved.rounds:
        chains = sum(group.size for group in session.groups)
        transitions = session.total("steps", "warmup") + session.total("steps", "posterior")
        costs["bytes"] = prepared.sent + transitions * moved.sent
        costs["rounds"] = prepared.rounds + transitions // chains * moved.rounds
    costs["compile_seconds"] = session.compile_seconds
    costs["sample_seconds"] = session.sample_seconds
    return costs


def versions() -> dict[str, str]:
    """Versions of the packages that determine a run."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def about(
    density: Density, method: Method, key: Array, costs: Mapping[str, Any], outcome: str
) -> dict[str, Any]:
    """What is needed to know where draws are from, whatever method made them."""
    deterministic = density.program.role("deterministic")
    return {
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "inference_library": "quincunx",
        "inference_library_version": versions()["quincunx"],
        "method": method.name,
        "kind": method.promise.name,
        "settings": json.dumps(method.settings()),
        "key": json.dumps(np.asarray(jax.random.key_data(key)).tolist()),
        "key_implementation": str(jax.random.key_impl(key)),
        "versions": json.dumps(versions()),
        "device": jax.devices()[0].device_kind,
        "precision": str(np.dtype(jax.dtypes.canonicalize_dtype(float))),
        "outcome": outcome,
        "thinning": 1,
        "deterministic": json.dumps([site.name for site in deterministic]),
        "costs": json.dumps(dict(costs)),
    }


def provenance(session: Session, costs: Mapping[str, Any]) -> dict[str, Any]:
    """What is needed to know where the draws of chains are from and to make them again."""
    outcome = session.outcome or ""
    return about(session.density, session.method, session.key, costs, outcome) | {
        "chain_method": session.layout,
        "execution": "free" if session.free else "lockstep",
        "thinning": session.plan.thinning * session.sink.stride,
        "num_warmup": session.plan.num_warmup,
        "num_samples": session.plan.num_samples,
        "num_chains": sum(group.size for group in session.groups),
        "init": session.start,
    }


def told_start(init: str | Mapping[str, Any] | None) -> str:
    """Where chains start, in words."""
    if isinstance(init, Mapping):
        return f"given values of {listing(init)}"
    return init or "left to the method"


def dims_of(density: Density, names: Sequence[str]) -> dict[str, list[str]]:
    """Dimension names of some sites."""
    return {name: density.labels.dims[name] for name in names if name in density.labels.dims}


def agent_dims(density: Density) -> dict[str, list[str]]:
    """Dimension names of what each agent has of the sites, among the statistics."""
    sites = density.program.role("latent", "deterministic")
    return {f"{AGENT}{site.name}": ["agent", *density.labels.dims[site.name]] for site in sites}


def _fitting(dims: Mapping[str, Sequence[str]], draws: Mapping[str, Any]) -> dict[str, list[str]]:
    """Without event dims where the values, such as log probabilities, have none."""
    return {name: list(dims[name])[: np.ndim(draws[name]) - 2] for name in dims}


def dataset(density: Density, draws: Mapping[str, Any]) -> xr.Dataset:
    """One group of draws as a labelled dataset."""
    dims = _fitting(dims_of(density, list(draws)), draws)
    coords = _used(density.labels.coords, dims)
    tree = arviz_base.from_dict({"posterior": dict(draws)}, dims=dims, coords=coords)
    return tree["posterior"].to_dataset()


def _used(coords: Mapping[str, Any], dims: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    names = {dim for entry in dims.values() for dim in entry}
    return {dim: values for dim, values in coords.items() if dim in names}


def _observed(density: Density) -> dict[str, np.ndarray]:
    """The observations, unless they are on disk."""
    if density.is_on_disk:
        return {}
    sites = density.program.role("observed")
    leaves = dict(zip(density.program.signature.array_names, density.leaves, strict=True))
    if all(site.argument for site in sites):
        return {site.name: np.asarray(leaves[str(site.argument)]) for site in sites}
    origin = np.zeros(density.dim, jax.dtypes.canonicalize_dtype(float))
    return jax.device_get(jax.jit(Density.observations)(density, origin))


def _constants(density: Density) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Arguments in memory that were not observed as they stand, with the dims of data plates."""
    program, signature = density.program, density.program.signature
    observed = {site.argument for site in program.role("observed")}
    leaves = dict(zip(signature.array_names, density.leaves, strict=True))
    plates = {name: plate.name for plate in program.data_plates for name in plate.arrays}
    taken = {dim for site in program.sites for dim in site.dims}
    taken |= {site.name for site in program.sites}
    values, dims = {}, {}
    for name, constant in zip(signature.names, signature.constants, strict=True):
        if name in observed or name in signature.stored:
            continue
        label = f"{name}_data" if name in taken else name
        if name in leaves:
            values[label] = np.asarray(leaves[name])
            if name in plates:
                rest = range(1, values[label].ndim)
                dims[label] = [plates[name], *(f"{label}_dim_{axis}" for axis in rest)]
        elif isinstance(constant, (bool, int, float)):
            values[label] = np.asarray(constant)
    return values, dims


def labelled(density: Density, groups: Mapping[str, Mapping[str, Any]]) -> xr.DataTree:
    """Groups of draws as a tree with dims and coords, with the observations and constants."""
    groups = dict(groups)
    observed = _observed(density)
    constants, constant_dims = _constants(density)
    if observed:
        groups["observed_data"] = observed
    if constants:
        groups["constant_data"] = constants
    dims = dims_of(density, list(density.labels.dims)) | constant_dims | agent_dims(density)
    coords = _used(density.labels.coords, dims)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found chain dimension to be longer")
        return arviz_base.from_dict(groups, dims=dims, coords=coords, save_warmup=True)


def build_tree(
    session: Session, *, ended: bool = True
) -> tuple[xr.DataTree, dict[str, int | float]]:
    """The ArviZ tree of a run of Markov chains, and its costs.

    Args:
        session: the run.
        ended: whether it has ended, so that its store may be completed.
    """
    density, plan = session.density, session.plan
    costs = count_costs(session)
    groups: dict[str, Mapping[str, Any]] = dict(session.sink.groups())
    if not (plan.keep_warmup and plan.num_warmup):
        groups = {name: values for name, values in groups.items() if "warmup" not in name}
    tree = labelled(density, groups)
    attributes = provenance(session, costs)
    session.sink.complete(tree, attributes, ended=ended)
    for group in ("posterior", "sample_stats"):
        tree[group].attrs.update(attributes)
    return tree, costs


@contextmanager
def opened(path: Path) -> Iterator[xr.DataTree]:
    """A tree that was written to netCDF or Zarr, to be read while the context lasts.

    Args:
        path: ending in `.nc` or `.zarr`.

    Raises:
        QuincunxError: another suffix, no such file, or one that is damaged.
    """
    if path.suffix not in _ENGINES:
        raise QuincunxError(f"Cannot load '{path}': the suffix must be .nc or .zarr.")
    if not path.exists():
        raise QuincunxError(f"There is no '{path}'.")
    try:
        with xr.open_datatree(path, **_ENGINES[path.suffix]) as tree:
            yield tree
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if isinstance(error, QuincunxError):
            raise
        message = f"'{path}' cannot be read: it is damaged, not written to its end, or no "
        raise QuincunxError(message + f"{path.suffix} file of ours ({error}).") from error
