"""Resampling: indices whose expected counts are n times the normalised weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array


def systematic(key: Array, log_weight: Array) -> Array:
    """One uniform number, and a comb of n teeth; counts are within one of their means."""
    count = log_weight.shape[0]
    return _pick(log_weight, (jnp.arange(count) + jax.random.uniform(key)) / count)


def stratified(key: Array, log_weight: Array) -> Array:
    """One uniform number in each n-th of the unit interval."""
    count = log_weight.shape[0]
    return _pick(log_weight, (jnp.arange(count) + jax.random.uniform(key, (count,))) / count)


def multinomial(key: Array, log_weight: Array) -> Array:
    """Independent choices."""
    return jax.random.categorical(key, log_weight, shape=log_weight.shape)


def _pick(log_weight: Array, points: Array) -> Array:
    cumulative = jnp.cumsum(jax.nn.softmax(log_weight))
    chosen = jnp.searchsorted(cumulative, points * cumulative[-1], side="right")
    return jnp.minimum(chosen, log_weight.shape[0] - 1)


def effective_share(log_weight: Array) -> Array:
    """(sum w)^2 / (n sum w^2)."""
    top = jax.scipy.special.logsumexp
    return jnp.exp(2 * top(log_weight) - top(2 * log_weight)) / log_weight.shape[0]
