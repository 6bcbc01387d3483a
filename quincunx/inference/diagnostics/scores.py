"""Draws as flat positions, and the gradient of the log density there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from quincunx.engine.density import Density


def some_positions(density: Density, draws: Mapping[str, Any], most: int) -> Array:
    """Some draws as flat positions, evenly over chains and iterations.

    Args:
        density: the target.
        draws: by site, `(chain, draw, ...)`.
        most: how many at most.
    """
    total = int(np.prod(next(iter(draws.values())).shape[:2]))
    chosen = np.unique(np.linspace(0, total - 1, most).astype(int))
    return positions(density, draws, chosen)


def positions(density: Density, draws: Mapping[str, Any], chosen: np.ndarray | None = None) -> Any:
    """Draws as flat positions, those of all chains one after the other, `(n, dim)`.

    Args:
        density: the target.
        draws: by site, `(chain, draw, ...)`.
        chosen: indices of those that are wanted; all by default.
    """
    latent = {site.name: np.asarray(draws[site.name]) for site in density.program.latents}
    flat = {name: value.reshape(-1, *value.shape[2:]) for name, value in latent.items()}
    if chosen is not None:
        flat = {name: value[chosen] for name, value in flat.items()}
    return _unconstrained(density, flat)


@eqx.filter_jit
def _unconstrained(density: Density, values: Mapping[str, Any]) -> Array:
    return jax.vmap(density.unconstrain)(values)


@eqx.filter_jit
def log_density_and_scores(density: Density, z: Array) -> tuple[Array, Array]:
    """Log density and its gradient at positions; rows on disk are read once for all of them."""
    score = jax.value_and_grad(density.log_density)
    return jax.vmap(score)(z) if density.is_on_disk else jax.lax.map(score, z)
