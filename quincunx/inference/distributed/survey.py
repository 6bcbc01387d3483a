r"""Where U = sum_i f_i is least, found by the agents together, and how it is curved there.

Newton steps with |H|, the Hessian whose eigenvalues are made positive, so that they descend:

    z' = z - a |H|^(-1) grad U,    a = 1, halved where U does not fall.

In each of a fixed number of rounds the agents add up their values, gradients and Hessians; nothing
else leaves them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from quincunx.engine.density import Density
from quincunx.engine.errors import MethodError
from quincunx.inference.distributed.collectives import largest, locally, total
from quincunx.inference.distributed.mesh import on_host, place
from quincunx.inference.driver import density_specs

if TYPE_CHECKING:
    from quincunx.inference.distributed.network import Networked

TICKS = 50
PASSES = 2.0 * TICKS
_FALLS = 1e-4


class Survey(NamedTuple):
    """What is known about the mode.

    Attributes:
        mode: where U is least, `(dim,)`.
        hessian: of U there, `(dim, dim)`.
        largest: largest eigenvalue of it.
        least: least eigenvalue of it.
        steepest: largest eigenvalue of an agent's Hessian there.
    """

    mode: Array
    hessian: Array
    largest: Array
    least: Array
    steepest: Array


class _At(NamedTuple):
    """U and its derivatives at a position."""

    z: Array
    value: Array
    slope: Array
    hessian: Array


def survey(method: Networked, density: Density, key: Array, mesh: Mesh | None) -> Survey:
    """Find the mode.

    Raises:
        MethodError: none with a positive definite Hessian was found.
    """
    if mesh is not None:
        key = place(key, PartitionSpec(), mesh)
    found = on_host(_survey(method, density, key, mesh))
    if not found.least > 0:
        message = (
            f"No mode of model `{density.program.name}` was found: the search ended where the "
        )
        message += "log density is not curved downwards in all directions. Distributed samplers "
        raise MethodError(message + "need a proper posterior that is smooth about its mode.")
    return found


@eqx.filter_jit
def _survey(method: Networked, density: Density, key: Array, mesh: Mesh | None) -> Survey:
    def run(density: Density, key: Array) -> Survey:
        return method.among(density, lambda own: ((), _search(own, key)))[1]

    if mesh is None:
        return run(density, key)
    everywhere = PartitionSpec()
    specs = (density_specs(density), everywhere)
    return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=everywhere, check_vma=False)(
        density, key
    )


def _search(own: Density, key: Array) -> Survey:
    """An agent's part."""

    def potential(own: Density, z: Array) -> tuple[Array, Array, Array]:
        value, slope = jax.value_and_grad(own.log_density)(z)
        return -value, -slope, -jax.hessian(own.log_density)(z)

    def together(z: Array) -> _At:
        return _At(z, *total(locally(potential)(own, z)))

    def tick(carry: tuple[_At, Array], _: None) -> tuple[tuple[_At, Array], None]:
        at, size = carry
        values, vectors = jnp.linalg.eigh(at.hessian)
        bound = jnp.maximum(jnp.abs(values), 1e-8 * jnp.max(jnp.abs(values)))
        direction = vectors @ ((vectors.T @ at.slope) / bound)
        there = together(at.z - size * direction)
        fall = _FALLS * size * jnp.sum(direction * at.slope)
        gentler = jnp.sum(there.slope**2) < 0.25 * jnp.sum(at.slope**2)
        level = there.value <= at.value + 1e-7 * jnp.abs(at.value)
        better = (there.value <= at.value - fall) | (gentler & level)
        better &= jnp.all(jnp.isfinite(there.hessian))
        chosen = jax.tree.map(lambda a, b: jnp.where(better, a, b), there, at)
        return (chosen, jnp.where(better, jnp.minimum(2 * size, 1.0), size / 2)), None

    first = together(0.1 * own.initial(key))
    (at, _), _ = jax.lax.scan(tick, (first, jnp.ones((), first.z.dtype)), None, TICKS - 1)
    eigenvalues = jnp.linalg.eigvalsh(at.hessian)
    steepest = jnp.max(jnp.linalg.eigvalsh(locally(potential)(own, at.z)[2]))
    return Survey(at.z, at.hessian, eigenvalues[-1], eigenvalues[0], largest(steepest))
