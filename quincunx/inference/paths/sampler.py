r"""Draws by trained kernels: whole paths with their weights, or segments with resampling.

At the ends j of segments of an annealed kernel the particles have log weights

    log pi_j(x_j) - log pi_i(x_i) + sum_{i <= k < j} (log B_k - log F_k),

i the start of the segment; they are resampled where few of them are effective, and moved by
Langevin steps with Metropolis' correction, which leave pi_j as it is. After the last segment such
moves repair what the kernels left blurred; weights are not touched.

Chen, Richter, Berner, Blessing, Neumann and Anandkumar (2025), Sequential controlled Langevin
diffusions, ICLR.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from quincunx.engine.density import Density
from quincunx.inference.method import Sampler, Weighted
from quincunx.inference.paths.process import Kernels, log_gauss
from quincunx.inference.paths.resampling import effective_share, systematic
from quincunx.inference.paths.target import Whitening


class Particles(NamedTuple):
    """Places on the way.

    Attributes:
        x: `(n, dim)`.
        score: gradients of log gamma, or of the log of each density of a product.
        log_gamma: log gamma, or the log of each density of a product.
    """

    x: Float[Array, "n dim"]
    score: Float[Array, "n ..."]
    log_gamma: Float[Array, " n *part"]


class PathSampler(Sampler):
    """Kernels that have been trained, or not.

    Attributes:
        process: the kernels.
        whitening: the coordinates that they move in.
        sizes: step sizes of the moves after each segment, `(segments,)`.
        resample: whether particles are resampled and moved; annealed kernels only.
        threshold: share of effective particles below which they are resampled.
        moves: steps after each segment.
    """

    process: Kernels
    whitening: Whitening
    sizes: Float[Array, " segments"]
    resample: bool = eqx.field(static=True)
    threshold: float = eqx.field(static=True)
    moves: int = eqx.field(static=True)

    @property
    def segments(self) -> int:
        """Parts of a path."""
        return self.sizes.shape[0]

    def draw(self, density: Density, key: Array, n: int) -> Weighted:
        """Run n paths."""
        process = self.process
        target = process.target(density, self.whitening)
        start_key, key = jax.random.split(key)
        x = process.start(start_key, n)
        log_gamma, score = target.with_score(x)
        first = (Particles(x, score, log_gamma), -process.log_start(x), jnp.arange(n))
        cut = lambda leaf: leaf.reshape(self.segments, -1, *leaf.shape[1:])  # noqa: E731
        parts = (jnp.arange(self.segments), jax.tree.map(cut, process.plan()), self.sizes)

        def segment(carry: tuple, part: tuple) -> tuple[tuple, Array]:
            particles, log_weight, origin = carry
            index, plan, size = part
            keys = jax.random.split(jax.random.fold_in(key, index), 3)
            particles, ratio = self._steps(target, particles, plan, keys[0])
            log_weight = log_weight + ratio
            if not self.resample:
                return (particles, log_weight, origin), jnp.full(n, jnp.nan, x.dtype)
            b = jax.tree.map(lambda leaf: leaf[-1], plan.after)
            level = process.annealed(b, particles.x, particles.log_gamma)
            total = log_weight + level
            known = jnp.any(jnp.isfinite(total))
            poor = (effective_share(total) < self.threshold) & known
            chosen = jnp.where(poor, systematic(keys[1], total), jnp.arange(n))
            particles = jax.tree.map(lambda leaf: leaf[chosen], particles)
            mean = jax.scipy.special.logsumexp(total) - jnp.log(n)
            total = jnp.where(poor, mean, total)
            seen = jnp.where(poor, log_weight + level, jnp.nan)
            particles = self._moved(target, particles, b, size, keys[2])
            level = process.annealed(b, particles.x, particles.log_gamma)
            log_weight = total - jnp.where(jnp.isfinite(level), level, 0.0)
            return (particles, log_weight, origin[chosen]), seen

        (particles, log_weight, origin), seen = jax.lax.scan(segment, first, parts)
        log_weight = log_weight + process.last(particles.log_gamma)
        log_weight = jnp.where(jnp.isnan(log_weight), -jnp.inf, log_weight)
        z = self.whitening.position(particles.x)
        if not self.resample:
            return Weighted(z, log_weight)
        return Weighted(z, log_weight, seen, origin)

    def forwards(self, density: Density, key: Array, n: int) -> Array:
        """Log weights of n whole paths, nothing resampled."""
        return dataclasses.replace(self, resample=False).draw(density, key, n).log_weight

    def backwards(self, density: Density, key: Array, z: Array) -> Array:
        """Log weights of whole paths that end in given places, by the backward kernels."""
        process = self.process
        target = process.target(density, self.whitening)
        x = self.whitening.inverse(z)
        log_gamma, score = target.with_score(x)

        def step(carry: tuple, at: Any) -> tuple[tuple, None]:
            (x, score, log_gamma), total = carry
            mean, variance = process.back(at, x, score)
            noise = jax.random.normal(jax.random.fold_in(key, at.index), x.shape, x.dtype)
            back = mean + jnp.sqrt(variance) * noise
            log_gamma, there = target.with_score(back)
            to, wide = process.forward(at, back, there)
            total -= log_gauss(x - to, wide)
            total += process.log_back(at, back - mean, variance)
            return (Particles(back, there, log_gamma), total), None

        first = (Particles(x, score, log_gamma), process.last(log_gamma))
        (start, total), _ = jax.lax.scan(step, first, process.plan(), reverse=True)
        return total - process.log_start(start.x)

    def cost(self, n: int) -> tuple[int, int]:
        """A gradient of each density for each step and move."""
        moves = self.moves * self.segments if self.resample else 0
        made = n * (self.process.length + 1 + moves) * self.process.densities
        return made, made

    def _steps(
        self,
        target: Any,
        particles: Particles,
        plan: Any,
        key: Array,
    ) -> tuple[Particles, Array]:
        """One segment, and the sum of log B - log F."""
        process = self.process

        def step(carry: tuple, at: Any) -> tuple[tuple, None]:
            (x, score, _), total = carry
            mean, variance = process.forward(at, x, score)
            noise = jax.random.normal(jax.random.fold_in(key, at.index), x.shape, x.dtype)
            moved = mean + jnp.sqrt(variance) * noise
            log_gamma, there = target.with_score(moved)
            fro, broad = process.back(at, moved, there)
            total -= log_gauss(moved - mean, variance)
            total += process.log_back(at, x - fro, broad)
            return (Particles(moved, there, log_gamma), total), None

        zero = jnp.zeros_like(process.last(particles.log_gamma))
        (particles, total), _ = jax.lax.scan(step, (particles, zero), plan)
        return particles, total

    def _moved(
        self,
        target: Any,
        particles: Particles,
        b: Any,
        size: Array,
        key: Array,
    ) -> Particles:
        """Langevin steps with Metropolis' correction that leave the annealed density as it is."""
        process = self.process

        def slope(at: Particles) -> Array:
            return process.slope(b, at.x, at.score)

        def reach(start: Particles, end: Particles) -> Array:
            rest = end.x - start.x - size * slope(start)
            return -0.25 * jnp.sum(rest**2, axis=-1) / size

        def move(at: Particles, key: Array) -> tuple[Particles, None]:
            noise_key, accept_key = jax.random.split(key)
            noise = jax.random.normal(noise_key, at.x.shape, at.x.dtype)
            moved = at.x + size * slope(at) + jnp.sqrt(2 * size) * noise
            log_gamma, score = target.with_score(moved)
            there = Particles(moved, score, log_gamma)
            ratio = process.annealed(b, moved, log_gamma) - process.annealed(b, at.x, at.log_gamma)
            ratio += reach(there, at) - reach(at, there)
            ratio = jnp.where(jnp.isnan(ratio), -jnp.inf, ratio)
            accept = jnp.log(jax.random.uniform(accept_key, ratio.shape)) < ratio
            shaped = lambda leaf: accept.reshape(-1, *(1,) * (leaf.ndim - 1))  # noqa: E731
            return jax.tree.map(lambda a, c: jnp.where(shaped(a), a, c), there, at), None

        return jax.lax.scan(move, particles, jax.random.split(key, self.moves))[0]
