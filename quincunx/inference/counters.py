"""Uniform random numbers by counter: one short inlined computation each.

Threefry-2x32 with 20 rounds turns a seed and a counter of two words each into two random words, so
that a number is known by its counter alone. It is JAX's own generator; written out in the place
where it is used it costs a tenth of a call of `jax.random` on a scalar.

Salmon, Moraes, Dror and Shaw (2011), Parallel random numbers: as easy as 1, 2, 3, SC '11.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def block(seed: Array, first: Any, second: Any) -> tuple[Array, Array]:
    """Two random words.

    Args:
        seed: two words, `(2,)`.
        first: a counter.
        second: another.
    """
    keys = (seed[0], seed[1], seed[0] ^ seed[1] ^ jnp.uint32(_PARITY))
    x = jnp.asarray(first, jnp.uint32) + keys[0]
    y = jnp.asarray(second, jnp.uint32) + keys[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x = x + y
            y = ((y << rotation) | (y >> (32 - rotation))) ^ x
        x = x + keys[(group + 1) % 3]
        y = y + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return x, y


def uniform(seed: Array, first: Any, second: Any, dtype: Any) -> Array:
    """A number from the open unit interval."""
    x, y = block(seed, first, second)
    if dtype == jnp.float64:
        high, low = (x >> 6).astype(dtype), (y >> 6).astype(dtype)
        return (high * 2**26 + low + 0.5) * 2.0**-52
    return ((x >> 9).astype(dtype) + 0.5) * 2.0**-23
