"""Ends of paths that are worth coming back to, and a local search that improves them."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from quincunx.inference.paths.annealing import AIM, look, move
from quincunx.inference.paths.target import Target

_EVENNESS = 1.0


class Buffer(eqx.Module):
    """A ring of places.

    Attributes:
        x: `(size, dim)`.
        log_gamma: there; minus infinity in places that are empty.
        next: where the next one goes.
    """

    x: Float[Array, "size dim"]
    log_gamma: Float[Array, " size"]
    next: Array

    def push(self, x: Array, log_gamma: Array) -> Buffer:
        """Put places in, over the oldest ones; those with no finite density are left out later."""
        size = self.x.shape[0]
        at = (self.next + jnp.arange(x.shape[0])) % size
        clean = jnp.where(jnp.isfinite(log_gamma), log_gamma, -jnp.inf)
        value = self.log_gamma.at[at].set(clean)
        return Buffer(self.x.at[at].set(x), value, (self.next + x.shape[0]) % size)

    def sample(self, key: Array, n: int) -> Array:
        """Places in proportion to 1 / (size + rank), the highest density first in rank.

        The best are drawn twice as often as the last: a stronger preference gives up modes that
        are wide and low.
        """
        order = jnp.argsort(-self.log_gamma)
        size = self.x.shape[0]
        rank = jnp.zeros(size, jnp.int32).at[order].set(jnp.arange(size, dtype=jnp.int32))
        weight = -jnp.log(_EVENNESS * size + rank)
        weight = jnp.where(jnp.isfinite(self.log_gamma), weight, -jnp.inf)
        return self.x[jax.random.categorical(key, weight, shape=(n,))]


def empty(size: int, dim: int, dtype: jnp.dtype) -> Buffer:
    """A buffer with nothing in it."""
    return Buffer(
        jnp.zeros((size, dim), dtype), jnp.full(size, -jnp.inf, dtype), jnp.zeros((), jnp.int32)
    )


def search(
    target: Target, x: Array, step: Array, key: Array, moves: int
) -> tuple[Array, Array, Array]:
    """Langevin steps on the target from given places.

    Returns:
        Where they end, log gamma there, and the step size after following the acceptance.
    """

    def one(carry: tuple, key: Array) -> tuple[tuple, None]:
        at, step = carry
        one_beta = jnp.ones((), x.dtype)
        at, acceptance = move(target, at, one_beta, step, key, gradient=True)
        return (at, jnp.clip(step * jnp.exp(0.5 * (acceptance - AIM)), 1e-8, 1.9)), None

    first = (look(target, x, gradient=True), step)
    (at, step), _ = jax.lax.scan(one, first, jax.random.split(key, moves))
    log_gamma = at.psi - 0.5 * jnp.sum(at.y**2, axis=-1) - 0.5 * x.shape[1] * jnp.log(2 * jnp.pi)
    return at.y, log_gamma, step
