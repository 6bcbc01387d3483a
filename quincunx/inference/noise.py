"""How noisy a gradient estimate is, from the gradients of single rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from quincunx.engine import Block
from quincunx.engine.density import Density
from quincunx.engine.sharding import alone, from_devices, over_devices
from quincunx.inference import minibatch
from quincunx.inference.driver import on_devices
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
    dim, own, shard = z.shape[0], alone(density), density.shard
    plate, parts = density.program.data_plates[0], 1 if shard is None else shard.parts
    rows = real = plate.size
    if shard is not None:
        part = shard.rows(density)[plate.name]
        rows, real = part.size, part.count
    real = jnp.minimum(real, -(-rows_used(density, plate.size) // parts))
    count, at_once = min(rows, -(-_ROWS // parts)), min(rows, _AT_ONCE)

    def single(row: Array) -> Array:
        block = Block(row, 1) if own.shard is None else own.shard.row(own, row)
        score = weighed(own, z, block)[1]
        return score if other is None else score - weighed(own, other, block)[1]

    def mean(scores: Array) -> Array:
        return over_devices(density, jnp.mean(scores, axis=0)) / parts

    centre = mean(jax.vmap(single)(jnp.arange(at_once)))

    def add(total: tuple, start: Array) -> tuple[tuple, None]:
        places = start + jnp.arange(at_once)
        found = jax.vmap(single)(jnp.minimum(places, count - 1)) - centre[None]
        found = jnp.where((places < real)[:, None], found, 0.0)
        second = found.T @ found if dim <= _MANY_DIMENSIONS else jnp.sum(found**2, axis=0)
        return (total[0] + jnp.sum(found, axis=0), total[1] + second), None

    shape = (dim, dim) if dim <= _MANY_DIMENSIONS else (dim,)
    zero = (jnp.zeros_like(z), jnp.zeros(shape, z.dtype))
    sums, _ = jax.lax.scan(add, zero, jnp.arange(0, count, at_once))
    drift, second = (over_devices(density, part) / over_devices(density, real) for part in sums)
    if dim <= _MANY_DIMENSIONS:
        covariance = second - drift[:, None] * drift[None, :]
        values, vectors = jnp.linalg.eigh(covariance)
        factor = jnp.sqrt(jnp.maximum(values, 0.0))[:, None] * vectors.T
        return Errors(jnp.diagonal(covariance), factor)
    few = min(count, -(-_FEW_ROWS // parts))
    sample = jax.lax.map(single, jnp.arange(few), batch_size=min(few, at_once))
    sample = (sample - mean(sample)[None]) / (few * parts) ** 0.5
    return Errors(second - drift**2, from_devices(density, sample))


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
    method: StochasticKernel,
    mesh: Mesh | None,
    density: Density,
    tuning: Tuning,
    draws: Array,
    key: Array,
) -> Noise:
    """The mean of a minibatch's noise over draws, in scaled coordinates.

    Args:
        method: the sampler, whose gradient estimator it is.
        mesh: the devices, where the run is spread over several.
        density: the target.
        tuning: what its chains share.
        draws: an even number of positions, `(draw, dim)`; estimators that remember gradients are
            taken to remember those of the other half.
        key: for the order of the rows and the start of the power iterations.
    """
    estimator = method.estimator(density)

    def over_draws(density: Density, tuning: Tuning, draws: Array, key: Array) -> Noise:
        view = minibatch.shuffled(density, key)

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

    return on_devices(mesh, over_draws, density, tuning, draws, key)


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
