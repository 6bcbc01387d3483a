"""How noisy a gradient estimate is, from the gradients of single rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from quincunx.engine import Block
from quincunx.engine.density import Density
from quincunx.inference import minibatch
from quincunx.inference.estimators import ControlVariates, weighed
from quincunx.inference.minibatch import Batches
from quincunx.inference.stochastic import Noise, StochasticKernel, Tuning

_ROWS, _FEW_ROWS = 400_000, 2048
_MANY_DIMENSIONS = 256  # beyond which a covariance matrix is not made
_AT_ONCE = 256
POWER = 30


class Errors(NamedTuple):
    """Covariance of scores estimated from single rows.

    Attributes:
        diagonal: its diagonal, `(dim,)`.
        factor: a matrix F with covariance F' F, `(any, dim)`; of fewer rows where the dimension
            is high.
    """

    diagonal: Array
    factor: Array


def rows_used(density: Density, rows: int) -> int:
    """How many rows figures are of: all, where that can be done."""
    del density
    return min(rows, _ROWS)


def row_errors(density: Density, z: Array, other: Array | None = None) -> Errors:
    """Covariance of the scores that single rows give.

    Args:
        density: the target, its rows shuffled.
        z: position.
        other: where control variates are taken; the scores are then differences.
    """
    dim, rows = z.shape[0], density.structure.data_plates[0].size
    count, at_once = rows_used(density, rows), min(rows, _AT_ONCE)

    def single(row: Array) -> Array:
        score = weighed(density, z, Block(row, 1))[1]
        return score if other is None else score - weighed(density, other, Block(row, 1))[1]

    first = jax.vmap(single)(jnp.arange(at_once))
    centre = jnp.mean(first, axis=0)

    def add(total: tuple, start: Array) -> tuple[tuple, None]:
        places = start + jnp.arange(at_once)
        found = jax.vmap(single)(jnp.minimum(places, count - 1)) - centre[None]
        found = jnp.where((places < count)[:, None], found, 0.0)
        second = found.T @ found if dim <= _MANY_DIMENSIONS else jnp.sum(found**2, axis=0)
        return (total[0] + jnp.sum(found, axis=0), total[1] + second), None

    shape = (dim, dim) if dim <= _MANY_DIMENSIONS else (dim,)
    zero = (jnp.zeros_like(z), jnp.zeros(shape, z.dtype))
    (mean, second), _ = jax.lax.scan(add, zero, jnp.arange(0, count, at_once))
    mean, second = mean / count, second / count
    if dim <= _MANY_DIMENSIONS:
        covariance = second - mean[:, None] * mean[None, :]
        values, vectors = jnp.linalg.eigh(covariance)
        factor = jnp.sqrt(jnp.maximum(values, 0.0))[:, None] * vectors.T
        return Errors(jnp.diagonal(covariance), factor)
    few = min(count, _FEW_ROWS)
    sample = jax.lax.map(single, jnp.arange(few), batch_size=min(few, at_once))
    sample = (sample - jnp.mean(sample, axis=0, keepdims=True)) / few**0.5
    return Errors(second - mean**2, sample)


def noise_of(errors: Errors, scale: Array, batches: Batches, key: Array) -> Noise:
    """Covariance of a minibatch's error in scaled coordinates.

    Args:
        errors: of single rows.
        scale: squared scale of each coordinate.
        batches: how the rows are cut.
        key: for the start of the power iteration.
    """
    scaled = errors.factor * jnp.sqrt(scale)[None]
    share = finite_share(batches)
    largest = largest_eigenvalue(lambda v: scaled.T @ (scaled @ v), scale, key)
    return Noise(share * largest, share * jnp.mean(scale * errors.diagonal))


@eqx.filter_jit
def typical_noise(
    method: StochasticKernel, density: Density, tuning: Tuning, draws: Array, key: Array
) -> Noise:
    """The mean of a minibatch's noise over draws, in scaled coordinates.

    Args:
        method: the sampler, whose gradient estimator it is.
        density: the target.
        tuning: what its chains share.
        draws: an even number of positions, `(draw, dim)`; estimators that remember gradients are
            taken to remember those of the other half.
        key: for the order of the rows and the start of the power iterations.
    """
    estimator, view = method.estimator(density), minibatch.shuffled(density, key)

    def at(pair: tuple) -> Noise:
        position, other = pair
        if not estimator.reduces_noise:
            other = None
        elif type(estimator) is ControlVariates:
            other = tuning.anchor.position
        found = row_errors(view, position, other)
        return noise_of(found, tuning.scale, estimator.batches, key)

    halves = jnp.split(draws, 2)
    return jax.tree.map(jnp.mean, jax.lax.map(at, (halves[0], halves[1])))


def finite_share(batches: Batches) -> float:
    """The variance of a minibatch's error in units of that of a single row's."""
    return (1.0 - batches.size / batches.rows) / batches.size


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
