r"""Bregman proximity operators and Bregman-Moreau envelopes of separable terms.

For a convex g, a Legendre function psi with distance D, and a smoothing lam,

    left:   P(x) = argmin_y g(y) + D(y, x) / lam,    env(x) the least value,
            env'(x) = psi''(x) (x - P(x)) / lam;
    right:  P(x) = argmin_y g(y) + D(x, y) / lam,    env'(x) = (psi'(x) - psi'(P(x))) / lam.

g is a kink, right slope r and left slope l at m: the operator moves x by the slope of its side, and
stops at m. Or the indicator of a box: both operators are the nearest point, for psi is separable.

Bauschke, Dao and Lindstrom (2018), Regularizing with Bregman-Moreau envelopes, SIAM Journal on
Optimization 28:3208; Lau and Liu (2022), Bregman proximal Langevin Monte Carlo via Bregman-Moreau
envelopes, ICML.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from quincunx.engine.bregman.legendre import Legendre
from quincunx.engine.composite import Kinks

SIDES = ("left", "right")


def recentred(psi: Legendre, location: Array) -> Legendre:
    """The function with its origin at a point, where that may be anywhere."""
    if not psi.is_line:
        return psi
    return eqx.tree_at(lambda psi: psi.origin, psi, location)


def proximity(psi: Legendre, x: Array, kinks: Kinks, smoothing: Array, side: str) -> Array:
    """The proximity operator of `smoothing` times separable kinks.

    Args:
        psi: the Legendre function.
        x: points of its domain.
        kinks: locations and slopes, of the shape of `x`.
        smoothing: lam.
        side: `left` or `right`.
    """
    at, above = kinks.location, x > kinks.location
    k = smoothing * jnp.where(above, kinks.right, -kinks.left)
    moved = psi.left_shift(x, k) if side == "left" else psi.right_shift(x, k, at)
    stopped = jnp.where(above, jnp.maximum(moved, at), jnp.minimum(moved, at))
    stopped = jnp.where(jnp.isnan(moved), at, stopped)
    if side == "right":
        stopped = _better(psi, x, kinks, smoothing, stopped)
    return jnp.where(k == 0, x, stopped)


def _better(psi: Legendre, x: Array, kinks: Kinks, smoothing: Array, moved: Array) -> Array:
    """The kink itself where it is a better point: D(x, .) need not be convex."""
    shifted = moved - kinks.location
    slope = kinks.right * jnp.maximum(shifted, 0) + kinks.left * jnp.maximum(-shifted, 0)
    there = smoothing * slope + psi.distance(x, moved)
    low, high = (psi.origin + psi.scale * end for end in psi.interval)
    first, last = jnp.minimum(low, high), jnp.maximum(low, high)
    inside = (kinks.location > first) & (kinks.location < last)
    at = psi.distance(x, jnp.where(inside, kinks.location, x))
    return jnp.where(inside & ~(there <= at), kinks.location, moved)


def envelope(psi: Legendre, x: Array, kinks: Kinks, smoothing: Array, side: str) -> Array:
    """The envelope of separable kinks, summed; its derivative is the envelope's.

    By the envelope theorem the operator may be held fixed, from the kink, as the rest is
    differentiated.
    """
    fixed = jax.lax.stop_gradient((psi, x, kinks, smoothing))
    point = kinks.location + jax.lax.stop_gradient(proximity(*fixed, side) - kinks.location)
    distance = psi.distance(point, x) if side == "left" else psi.distance(x, point)
    moving = (kinks.left > 0) | (kinks.right > 0)
    return kinks.value(jnp.where(moving, point, kinks.location)) + jnp.sum(
        jnp.where(moving, distance, 0.0) / smoothing
    )
