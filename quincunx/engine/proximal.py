"""Proximal operators of the nonsmooth terms that priors and supports bring.

prox_{s g}(v) = argmin_x g(x) + |x - v|^2 / (2 s), elementwise for separable g.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from quincunx.engine.group_laplace import length


def expand(value: Any, shape: tuple[int, ...]) -> Array:
    """`value` broadcast to a shape, by leading axes of length one where it has fewer."""
    value = jnp.asarray(value)
    return jnp.broadcast_to(value.reshape((1,) * (len(shape) - value.ndim) + value.shape), shape)


def soft_threshold(v: Array, loc: Array | float, threshold: Array | float) -> Array:
    """Prox of t |x - m|: m + sign(v - m) max(|v - m| - t, 0)."""
    shifted = v - loc
    return loc + jnp.sign(shifted) * jnp.maximum(jnp.abs(shifted) - threshold, 0.0)


def asymmetric_soft_threshold(
    v: Array, loc: Array | float, left: Array | float, right: Array | float
) -> Array:
    """Prox of r (x - m)_+ + l (m - x)_+ : the two sides have slopes l (left) and r (right)."""
    shifted = v - loc
    return loc + jnp.maximum(shifted - right, 0.0) + jnp.minimum(shifted + left, 0.0)


def group_soft_threshold(
    v: Float[Array, "*batch n"], loc: Array | float, threshold: Array | float
) -> Float[Array, "*batch n"]:
    """Prox of t |x - m|_2 over the last axis: m + (v - m) max(1 - t / |v - m|, 0)."""
    shifted = v - loc
    size = length(shifted)
    kept = jnp.maximum(1 - threshold / jnp.where(size > 0, size, 1.0), 0.0)
    return loc + shifted * jnp.where(size > threshold, kept, 0.0)[..., None]


def project_box(v: Array, lower: Array | float, upper: Array | float) -> Array:
    """Prox of the indicator of [lower, upper]: the nearest point of the box."""
    return jnp.clip(v, lower, upper)


def project_simplex(v: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
    """Prox of the indicator of the probability simplex on the last axis.

    x = (v - theta)_+ with theta such that the entries of x sum to one (Held, Wolfe and
    Crowder, 1974).
    """
    ordered = jnp.flip(jnp.sort(v, axis=-1), axis=-1)
    excess = jnp.cumsum(ordered, axis=-1) - 1.0
    count = jnp.arange(1, v.shape[-1] + 1, dtype=v.dtype).reshape((1,) * (v.ndim - 1) + (-1,))
    active = jnp.sum(ordered - excess / count > 0, axis=-1, keepdims=True)
    theta = jnp.take_along_axis(excess, active - 1, axis=-1) / active
    return jnp.maximum(v - theta, 0.0)
