r"""Where U = sum_i f_i is least, found by the agents together, and how it is curved there.

Newton steps with |H|, the Hessian whose eigenvalues are made positive, so that they descend:

    z' = z - a |H|^(-1) grad U,    a = 1, halved where U does not fall.

In each of a fixed number of rounds the agents add up their values, gradients and Hessians; nothing
else leaves them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, PyTree

from quincunx.engine.density import Density
from quincunx.engine.errors import MethodError
from quincunx.inference.distributed.collectives import AXIS, largest, locally, total
from quincunx.inference.distributed.mesh import everywhere, on_host
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


class At(NamedTuple):
    """A potential and its derivatives at a position."""

    z: Array
    value: Array
    slope: Array
    hessian: Array


def survey(
    method: Networked, density: Density, key: Array, mesh: Mesh | None
) -> tuple[Survey, PyTree]:
    """Find the mode.

    Returns:
        What is known about it, on the host, and what each agent keeps of the survey, where it is.

    Raises:
        MethodError: none with a positive definite Hessian was found.
    """
    found, each = _survey(method, density, everywhere(key, mesh), mesh)
    found = on_host(found)
    if not found.least > 0:
        message = (
            f"No mode of model `{density.program.name}` was found: the search ended where the "
        )
        message += "log density is not curved downwards in all directions. Distributed samplers "
        raise MethodError(message + "need a proper posterior that is smooth about its mode.")
    return found, each


@eqx.filter_jit
def _survey(
    method: Networked, density: Density, key: Array, mesh: Mesh | None
) -> tuple[Survey, PyTree]:
    def run(density: Density, key: Array) -> tuple[Survey, PyTree]:
        def one(own: Density) -> tuple[PyTree, Survey]:
            at = _search(own, 0.1 * own.initial(key), total)
            values = jnp.linalg.eigvalsh(at.hessian)
            steepest = jnp.max(jnp.linalg.eigvalsh(locally(_potential)(own, at.z)[2]))
            found = Survey(at.z, at.hessian, values[-1], values[0], largest(steepest))
            return method.surveyed(own, found), found

        each, found = method.among(density, one)
        return found, each

    if mesh is None:
        return run(density, key)
    everywhere = PartitionSpec()
    specs = (density_specs(density), everywhere)
    there = (everywhere, PartitionSpec(AXIS))
    return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=there, check_vma=False)(
        density, key
    )


def _potential(own: Density, z: Array) -> tuple[Array, Array, Array]:
    value, slope = jax.value_and_grad(own.log_density)(z)
    return -value, -slope, -jax.hessian(own.log_density)(z)


def alone(own: Density, z: Array) -> At:
    """Where an agent's own potential is least; it asks nobody."""
    return _search(own, z, lambda parts: parts)


def _search(own: Density, z: Array, add: Callable[[Any], Any]) -> At:
    """A fixed number of Newton steps on what `add` makes of the agents' potentials."""

    def look(z: Array) -> At:
        return At(z, *add(locally(_potential)(own, z)))

    def tick(carry: tuple[At, Array], _: None) -> tuple[tuple[At, Array], None]:
        at, size = carry
        values, vectors = jnp.linalg.eigh(at.hessian)
        bound = jnp.maximum(jnp.abs(values), 1e-8 * jnp.max(jnp.abs(values)))
        direction = vectors @ ((vectors.T @ at.slope) / bound)
        there = look(at.z - size * direction)
        fall = _FALLS * size * jnp.sum(direction * at.slope)
        gentler = jnp.sum(there.slope**2) < 0.25 * jnp.sum(at.slope**2)
        level = there.value <= at.value + 1e-7 * jnp.abs(at.value)
        better = (there.value <= at.value - fall) | (gentler & level)
        better &= jnp.all(jnp.isfinite(there.hessian))
        chosen = jax.tree.map(lambda a, b: jnp.where(better, a, b), there, at)
        return (chosen, jnp.where(better, jnp.minimum(2 * size, 1.0), size / 2)), None

    first = (look(z), jnp.ones((), z.dtype))
    return jax.lax.scan(tick, first, None, TICKS - 1)[0][0]
