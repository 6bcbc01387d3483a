"""How noisy a gradient estimate is, from the gradients of single rows."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from quincunx.engine import Block
from quincunx.engine.density import Density
from quincunx.inference.estimators import weighed
from quincunx.inference.minibatch import Batches
from quincunx.inference.stochastic import Noise

_ROWS, _NUMBERS = 2048, 4_000_000
_AT_ONCE = 256
POWER = 30


def rows_used(density: Density, rows: int) -> int:
    """How many rows the figures are of, all where there are few."""
    return min(rows, _ROWS, max(64, _NUMBERS // density.dim))


def row_errors(density: Density, batches: Batches, z: Array) -> Array:
    """Scores estimated from single rows, less their mean, `(count, dim)`.

    Args:
        density: the target, its rows shuffled.
        batches: how they are cut.
        z: position.
    """
    count = rows_used(density, batches.rows)

    def score(row: Array) -> Array:
        return weighed(density, z, Block(row, 1))[1]

    found = jax.lax.map(score, jnp.arange(count), batch_size=min(count, _AT_ONCE))
    return found - jnp.mean(found, axis=0, keepdims=True)


def finite_share(batches: Batches) -> float:
    """The variance of a minibatch's error in units of that of a single row's."""
    return (1.0 - batches.size / batches.rows) / batches.size


def noise_of(errors: Array, scale: Array, batches: Batches, key: Array) -> Noise:
    """Covariance of a minibatch's error in scaled coordinates.

    Args:
        errors: of single rows, `(count, dim)`.
        scale: squared scale of each coordinate.
        batches: how the rows are cut.
        key: for the start of the power iteration.
    """
    scaled = errors * jnp.sqrt(scale)[None]

    def covariance(v: Array) -> Array:
        return scaled.T @ (scaled @ v) / len(scaled)

    share = finite_share(batches)
    largest = largest_eigenvalue(covariance, scale, key)
    return Noise(share * largest, share * jnp.mean(scaled**2))


def largest_eigenvalue(apply: Any, like: Array, key: Array) -> Array:
    """Largest eigenvalue, in absolute value, of a symmetric map, by power iteration.

    Args:
        apply: the map.
        like: a vector of its shape.
        key: for the start.
    """

    def step(v: Array, _: None) -> tuple[Array, Array]:
        image = apply(v)
        size = jnp.linalg.norm(image)
        return image / jnp.where(size > 0, size, 1.0), size

    start = jax.random.normal(key, like.shape, like.dtype)
    return jax.lax.scan(step, start / jnp.linalg.norm(start), None, POWER)[1][-1]
