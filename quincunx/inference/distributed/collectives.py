"""What agents do together, and what each does by itself, inside an axis over agents.

Every exchange and every computation of an agent is compiled by itself. So `vmap` on one device and
`shard_map` on several, which would be fused differently, round alike and give the same draws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jaxtyping import PyTree

AXIS = "agents"


def total(value: Any) -> Any:
    """The sum over agents, for all of them."""
    return _sealed(lambda value: jax.lax.psum(value, AXIS), value)


def largest(value: Any) -> Any:
    """The largest over agents, for all of them."""
    return _sealed(lambda value: jax.lax.pmax(value, AXIS), value)


def anywhere(flag: Any) -> Any:
    """Whether a flag is up at any agent, for all of them."""
    return largest(flag.astype(jnp.int32)) > 0


def sent(value: Any, pairs: list[tuple[int, int]]) -> Any:
    """What each agent gets where pairs say who sends to whom."""
    return _sealed(lambda value: jax.lax.ppermute(value, AXIS, pairs), value)


def _sealed(exchange: Callable[[Any], Any], value: Any) -> Any:
    """An exchange that is compiled by itself, so that all ways to run agents round alike."""
    return jax.lax.optimization_barrier(exchange(jax.lax.optimization_barrier(value)))


def locally(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """What an agent computes by itself, compiled as if there were no others.

    On one device agents take turns, so that matrix products and fusions are those of an agent on a
    device of its own, and both round alike.
    """

    def sealed(*arguments: PyTree) -> PyTree:
        return jax.lax.optimization_barrier(fn(*jax.lax.optimization_barrier(arguments)))

    return sequential_vmap(sealed)
