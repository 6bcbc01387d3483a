"""Where paths start: a Gaussian law that covers the posterior, found from the density alone.

Two are tried. *Laplace*: the mode and the curvature there, found by L-BFGS from several starts.
*Cloud*: mean and standard deviations of many short Metropolis chains from far apart, which covers
separate modes where a mode's curvature sees one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from quincunx.engine.density import Density
from quincunx.inference.paths.annealing import AIM, Particles
from quincunx.inference.paths.target import Whitening

FAR = 10.0  # sd of the far starts
_STARTS, _ITERATIONS, _TOLERANCE = 8, 300, 1e-4
_CHAINS, _STEPS = 128, 300
_APART = 5.0  # standard deviations between different modes
_FLOOR = 1e-6


class Modes(NamedTuple):
    """What L-BFGS found.

    Attributes:
        whitening: at the best mode.
        several: whether starts ended in different modes.
        usable: whether the curvature at the best mode is that of a maximum.
        evaluations: of the density, each with its gradient.
    """

    whitening: Whitening
    several: bool
    usable: bool
    evaluations: int


def starts(density: Density, key: Array, count: int) -> Array:
    """Half near, as chains start, and half far away."""
    near_key, far_key = jax.random.split(key)
    near = jax.vmap(density.initial)(jax.random.split(near_key, count - count // 2))
    far = FAR * jax.random.normal(far_key, (count // 2, density.dim), near.dtype)
    return jnp.concatenate([near, far])


@eqx.filter_jit
def _optimise(density: Density, key: Array) -> tuple[Array, Array, Array]:
    """Ends, log densities and numbers of iterations of several searches."""

    def potential(z: Array) -> Array:
        value = -density.log_density(z)
        return jnp.where(jnp.isfinite(value), value, jnp.inf)

    solver = optax.lbfgs(memory_size=20)
    advance = optax.value_and_grad_from_state(potential)

    def search(z: Array) -> tuple[Array, Array, Array]:
        def unfinished(loop: Any) -> Array:
            _, _, slope, count = loop
            return (count < _ITERATIONS) & (jnp.linalg.norm(slope) > _TOLERANCE)

        def step(loop: Any) -> Any:
            z, state, _, count = loop
            value, slope = advance(z, state=state)
            update, state = solver.update(
                slope, state, z, value=value, grad=slope, value_fn=potential
            )
            moved: Any = optax.apply_updates(z, update)
            good = jnp.all(jnp.isfinite(moved))
            return jnp.where(good, moved, z), state, slope, jnp.where(good, count + 1, _ITERATIONS)

        first = (z, solver.init(z), jnp.full_like(z, jnp.inf), jnp.zeros((), jnp.int32))
        z, _, _, count = jax.lax.while_loop(unfinished, step, first)
        return z, density.log_density(z), count

    return jax.lax.map(search, starts(density, key, _STARTS))


@eqx.filter_jit
def _curvature(density: Density, z: Array) -> Array:
    slope = jax.grad(density.log_density)
    eye = jnp.eye(density.dim, dtype=z.dtype)
    rows = jax.lax.map(lambda v: jax.jvp(slope, (z,), (v,))[1], eye, batch_size=64)
    return -0.5 * (rows + rows.T)


def laplace(density: Density, key: Array) -> Modes:
    """The Gaussian law at the highest mode that is found."""
    ends, values, counts = jax.device_get(_optimise(density, key))
    values = np.where(np.isfinite(values), values, -np.inf)
    best = int(np.argmax(values))
    evaluations = 2 * int(counts.sum()) + 2 * density.dim
    hessian = np.asarray(_curvature(density, jnp.asarray(ends[best])), float)
    usable = bool(np.isfinite(values[best]) and np.isfinite(hessian).all())
    factor = np.eye(density.dim)
    if usable:
        curvatures, axes = np.linalg.eigh(hessian)
        usable = bool(curvatures.min() > _FLOOR * curvatures.max())
        floored = np.maximum(curvatures, max(_FLOOR * curvatures.max(), 1e-300))
        factor = np.linalg.cholesky((axes / floored) @ axes.T)
    several = False
    if usable:
        height = values > values[best] - 2 * density.dim - 10
        gaps = np.linalg.solve(factor, (ends[height] - ends[best]).T)
        several = bool((np.abs(gaps).max(axis=0) > _APART).any())
    dtype = jax.dtypes.canonicalize_dtype(float)
    whitening = Whitening(jnp.asarray(ends[best], dtype), jnp.asarray(factor, dtype))
    return Modes(whitening, several, usable, evaluations)


@eqx.filter_jit
def _wander(density: Density, key: Array) -> tuple[Array, Array]:
    """Ends and log densities of short Langevin chains, each with a step size of its own."""
    start_key, key = jax.random.split(key)
    both = jax.vmap(jax.value_and_grad(density.log_density))

    def look(z: Array) -> Particles:
        value, slope = both(z)
        finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(slope), axis=-1)
        value = jnp.where(finite, value, -jnp.inf)
        return Particles(z, value, jnp.where(finite[:, None], slope, jnp.zeros_like(slope)))

    def step(carry: tuple, key: Array) -> tuple[tuple, None]:
        at, size = carry
        noise_key, accept_key = jax.random.split(key)
        h = size[:, None]
        noise = jax.random.normal(noise_key, at.y.shape, at.y.dtype)
        there = look(at.y + 0.5 * h * at.slope + jnp.sqrt(h) * noise)
        back = at.y - there.y - 0.5 * h * there.slope
        log_ratio = there.psi - at.psi - 0.5 * jnp.sum(back**2, axis=1) / size
        log_ratio += 0.5 * jnp.sum(noise**2, axis=1)
        accept = jnp.log(jax.random.uniform(accept_key, size.shape)) < log_ratio
        accept |= jnp.isneginf(at.psi) & jnp.isfinite(there.psi)
        chosen = jax.tree.map(
            lambda new, old: jnp.where(accept.reshape(-1, *(1,) * (new.ndim - 1)), new, old),
            there,
            at,
        )
        probability = jnp.nan_to_num(jnp.exp(jnp.minimum(log_ratio, 0.0)))
        return (chosen, size * jnp.exp(0.3 * (probability - AIM))), None

    first = look(starts(density, start_key, _CHAINS))
    sizes = jnp.full(_CHAINS, 0.01, first.y.dtype)
    (at, _), _ = jax.lax.scan(step, (first, sizes), jax.random.split(key, _STEPS))
    return at.y, at.psi


def cloud(density: Density, key: Array) -> tuple[Whitening, int]:
    """Mean and spread of short chains from far apart, and the evaluations that they took."""
    ends, values = jax.device_get(_wander(density, key))
    values = np.where(np.isfinite(values), values, -np.inf)
    kept = ends[values > values.max() - 4 * density.dim - 20]
    middle = np.median(kept, axis=0)
    spread = (
        np.sqrt(np.mean((kept - middle) ** 2, axis=0)) if len(kept) > 1 else np.ones_like(middle)
    )
    dtype = jax.dtypes.canonicalize_dtype(float)
    spread = np.maximum(spread, 1e-3)
    whitening = Whitening(jnp.asarray(middle, dtype), jnp.asarray(np.diag(spread), dtype))
    return whitening, _CHAINS * (_STEPS + 1)
