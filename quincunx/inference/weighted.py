"""Weighted draws as an ArviZ tree: equal-weight draws, and the raw ones with their weights."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array

from quincunx.engine.density import Density
from quincunx.inference.diagnostics.convergence import columns
from quincunx.inference.diagnostics.importance import (
    Importance,
    diagnose,
    equal_weights,
    pareto_smoothed,
)
from quincunx.inference.diagnostics.lineages import effective_sizes
from quincunx.inference.method import Method
from quincunx.inference.output import about, labelled

WEIGHTED, WEIGHTS = "weighted_posterior", "weighted_sample_stats"
_BATCH = 256


@dataclass(frozen=True, eq=False)
class Draws:
    """Weighted draws of several independent batches, on the host.

    Attributes:
        z: positions, `(batch, draw, dim)`.
        log_weight: `(batch, draw)`.
        tempered: log weights before each resampling, `(batch, stage, draw)`, or `None`.
        origin: the particle of the start of its batch that each draw descends from, `(batch,
            draw)`; `None` where draws are independent.
    """

    z: np.ndarray
    log_weight: np.ndarray
    tempered: np.ndarray | None
    origin: np.ndarray | None

    @functools.cached_property
    def importance(self) -> Importance:
        """What the weights say."""
        return diagnose(self.log_weight, self.tempered, self.origin)


@eqx.filter_jit
def _values(density: Density, z: Array) -> tuple[dict[str, Array], Array]:
    def one(z: Array) -> tuple[dict[str, Array], Array]:
        return density.constrain(z), density.log_density(z)

    flat = jax.lax.map(one, z.reshape(-1, z.shape[-1]), batch_size=_BATCH)
    return jax.tree.map(lambda leaf: leaf.reshape(*z.shape[:2], *leaf.shape[1:]), flat)


def weighted_tree(
    density: Density,
    draws: Draws,
    method: Method,
    key: Array,
    costs: Mapping[str, int | float],
    outcome: str,
    skipped: int,
    made: tuple[Mapping[str, np.ndarray], np.ndarray] | None = None,
    notes: Mapping[str, str | int | float] | None = None,
) -> xr.DataTree:
    """The tree of weighted draws.

    `posterior` has as many draws as there are weighted ones, resampled to equal weights from the
    Pareto-smoothed weights; `sample_stats` their log density and the raw weight of each;
    `weighted_posterior` and `weighted_sample_stats` the draws as they were made, with `log_weight`
    and `log_weight_smoothed`, which is normalised, and of resampled ones `origin`.

    Args:
        density: the target.
        draws: the weighted draws.
        method: what made them.
        key: for resampling.
        costs: by name.
        outcome: why the work ended before its plan.
        skipped: steps of training that were left out.
        made: constrained values by site and log densities where they are known, `(batch, draw,
            ...)`; else they are computed.
        notes: further attributes.
    """
    values, lp = made or jax.device_get(_values(density, jnp.asarray(draws.z)))
    smoothed, _ = pareto_smoothed(draws.log_weight)
    stats = {"log_weight": draws.log_weight, "log_weight_smoothed": smoothed, "lp": lp}
    if draws.origin is not None:
        stats["origin"] = draws.origin
    groups = {WEIGHTED: values, WEIGHTS: stats}
    if np.isfinite(smoothed).any():
        seed = np.asarray(jax.random.key_data(key)).astype(np.uint32)
        chosen = equal_weights(smoothed, np.random.default_rng(seed))
    else:
        chosen = np.arange(smoothed.size)

    def pick(array: np.ndarray) -> np.ndarray:
        return array.reshape(-1, *array.shape[2:])[chosen].reshape(array.shape)

    groups["posterior"] = {name: pick(array) for name, array in values.items()}
    groups["sample_stats"] = {"lp": pick(lp), "log_weight": pick(draws.log_weight)}
    if draws.tempered is not None:
        groups[WEIGHTS]["tempered_log_weight"] = np.moveaxis(draws.tempered, 1, 2)
    tree = labelled(density, groups)
    attributes = about(density, method, key, costs, outcome)
    batches, number = draws.log_weight.shape
    attributes |= {"num_samples": number, "num_chains": batches, "skipped": skipped}
    attributes |= notes or {}
    for group in groups:
        tree[group].attrs.update(attributes)
    return tree


def stored_draws(tree: xr.DataTree) -> Draws:
    """The weights of a tree; positions are not in it."""
    stats = tree[WEIGHTS].to_dataset()
    tempered = None
    if "tempered_log_weight" in stats:
        tempered = np.moveaxis(stats["tempered_log_weight"].values, 1, 2)
    weights = stats["log_weight"].values
    origin = stats["origin"].values if "origin" in stats else None
    return Draws(np.zeros((*weights.shape, 0)), weights, tempered, origin)


def weighted_sizes(tree: xr.DataTree, most: float) -> tuple[np.ndarray, np.ndarray]:
    """Effective sizes of all scalar parameters, of their centres and their tails.

    Args:
        tree: of weighted draws.
        most: that of the weights, which is that of all parameters of independent draws.
    """
    stats = tree[WEIGHTS].to_dataset()
    parts = columns({str(name): array for name, array in tree[WEIGHTED].items()})
    if "origin" not in stats or not np.isfinite(stats["log_weight_smoothed"]).any():
        size = np.full(sum(len(names) for names, _ in parts), most)
        return size, size
    weights, origin = stats["log_weight_smoothed"].values, stats["origin"].values
    found = [effective_sizes(values, weights, origin) for _, values in parts]
    bulk, tail = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return np.minimum(bulk, most), np.minimum(tail, most)


def is_weighted(tree: xr.DataTree) -> bool:
    """Whether a tree holds weighted draws."""
    return WEIGHTS in tree.children
