r"""The product of densities that samplers have been learned for, as kernels of paths.

With m learned processes, b_i their inverse temperatures, log p_i their annealed densities and
controls u_i, each in its own coordinates, powers c_i and s_k = k / K, the paths follow

    log pi_k = (1 - s_k) sum_i c_i log p_{i, b_i(k)} + s_k log gamma,
    F: x + h_k (g_{k+1}(x) + (1 - s_{k+1}) sum_i c_i u_{i,k}(x)), 2 h_k,
    B: x' + h_k (g_{k+1}(x') - (1 - s_{k+1}) sum_i c_i u_{i,k+1}(x')), 2 h_k,

g_k the gradient of log pi_k, from the Gaussian law that is the product of their starts to the
density gamma. These are Feynman and Kac's weights for a product of learned diffusions, taken from
the kernels that are sampled, so that they are exact however many steps there are.

Skreta et al. (2025), Feynman-Kac correctors in diffusion, ICML.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from quincunx.engine.density import Density
from quincunx.inference.paths.process import LIMIT, Kernels, Process, Steps
from quincunx.inference.paths.target import Target, Whitening, log_normal


class Level(NamedTuple):
    """Where on the way a density is.

    Attributes:
        parts: inverse temperatures of the processes.
        share: of the last density.
    """

    parts: tuple[Array, ...]
    share: Array


class ProductSteps(NamedTuple):
    """What the kernels need of their step.

    Attributes:
        index: k.
        after: where the density k + 1 is.
        size: h_k.
        parts: steps of the processes.
    """

    index: Array
    after: Level
    size: Array
    parts: tuple[Steps, ...]


class Together(NamedTuple):
    """All densities at the same places, each in its own coordinates, the last one in these.

    Attributes:
        density: the last one.
        whitening: the coordinates of the product.
        parts: targets of the processes.
    """

    density: Density
    whitening: Whitening
    parts: tuple[Target, ...]

    def with_score(
        self, y: Float[Array, "n dim"]
    ) -> tuple[Float[Array, "n part"], Float[Array, "n part dim"]]:
        """Log densities with their gradients."""
        own = Target(self.density, self.whitening)
        z = self.whitening.position(y)
        found = [target.with_score(target.whitening.inverse(z)) for target in self.parts] + [
            own.with_score(y)
        ]
        values, scores = zip(*found, strict=True)
        return jnp.stack(values, axis=-1), jnp.stack(scores, axis=-2)


class Product(Kernels):
    """The kernels, in coordinates in which the product of the starts is standard normal.

    Attributes:
        processes: those that were learned.
        targets: what for, with their coordinates.
        whitening: of the product.
        powers: c_i.
    """

    processes: tuple[Process, ...]
    targets: tuple[Target, ...]
    whitening: Whitening
    powers: tuple[float, ...]

    def target(self, density: Density, whitening: Whitening) -> Together:
        """What is evaluated at all places."""
        return Together(density, whitening, self.targets)

    @property
    def length(self) -> int:
        """How many steps there are."""
        return self.processes[0].steps

    @property
    def densities(self) -> int:
        """How many densities are evaluated at a place."""
        return len(self.targets) + 1

    def last(self, log_gamma: Array) -> Array:
        """Log of the density at the end, of all that were evaluated."""
        return log_gamma[..., -1]

    def plan(self) -> ProductSteps:
        """What depends on the step alone, for all steps at once."""
        parts = tuple(process.plan() for process in self.processes)
        sizes = jnp.stack([jnp.exp(jnp.mean(jnp.log(part.size), axis=1)) for part in parts])
        indices = jnp.arange(self.length)
        after = Level(tuple(part.after for part in parts), (indices + 1.0) / self.length)
        return ProductSteps(indices, after, jnp.min(sizes, axis=0), parts)

    def start(self, key: Array, n: int) -> Array:
        """Standard normal places."""
        mean = self.whitening.mean
        return jax.random.normal(key, (n, mean.shape[0]), mean.dtype)

    def log_start(self, y: Array) -> Array:
        """Their log density."""
        return log_normal(y)

    def annealed(self, at: Level, y: Array, log_gamma: Array) -> Array:
        """Log pi_k, not normalised."""
        total = jnp.where(at.share > 0, at.share * log_gamma[..., -1], 0.0)
        z = self.whitening.position(y)
        for i, (process, target) in enumerate(zip(self.processes, self.targets, strict=True)):
            there = target.whitening.inverse(z)
            level = process.annealed(at.parts[i], there, log_gamma[..., i])
            share = (1 - at.share) * self.powers[i]
            total = total + jnp.where(share > 0, share * level, 0.0)
        return total

    def slope(self, at: Level, y: Array, score: Array) -> Array:
        """Gradient of log pi_k."""
        parts = (
            process.slope(at.parts[i], place, score[:, i])
            for i, (process, place) in enumerate(self._places(y))
        )
        return at.share * score[:, -1] + self._joined(at, parts)

    def forward(self, at: ProductSteps, y: Array, score: Array) -> tuple[Array, Array]:
        """Mean and variance of F_k."""
        return self._kernel("forward", at, y, score)

    def back(self, at: ProductSteps, y: Array, score: Array) -> tuple[Array, Array]:
        """Mean and variance of B_k, at x' = x_{k+1}."""
        return self._kernel("back", at, y, score)

    def _kernel(self, way: str, at: ProductSteps, y: Array, score: Array) -> tuple[Array, Array]:
        def drift(i: int, process: Process, place: Array) -> Array:
            mean, variance = getattr(process, way)(at.parts[i], place, score[:, i])
            return 2 * (mean - place) / variance

        parts = (drift(i, *both) for i, both in enumerate(self._places(y)))
        last = at.after.share * jnp.clip(score[:, -1], -LIMIT, LIMIT)
        mean = y + at.size * (last + self._joined(at.after, parts))
        return mean, jnp.full_like(y, 2 * at.size)

    def _places(self, y: Array) -> list[tuple[Process, Array]]:
        z = self.whitening.position(y)
        both = zip(self.processes, self.targets, strict=True)
        return [(process, target.whitening.inverse(z)) for process, target in both]

    def _joined(self, at: Level, drifts: Any) -> Array:
        """The sum of gradients that are each in its own coordinates, in those of the product."""
        total = jnp.zeros(())
        for power, target, drift in zip(self.powers, self.targets, drifts, strict=True):
            in_z = jax.scipy.linalg.solve_triangular(
                target.whitening.factor.T, drift.T, lower=False
            )
            total = total + power * in_z.T @ self.whitening.factor
        return (1 - at.share) * total


def product(
    processes: tuple[Process, ...], targets: tuple[Target, ...], powers: tuple[float, ...]
) -> Product:
    """Kernels for the product, from where the product of the starts is.

    Args:
        processes: learned, all with annealed kernels and the same number of steps.
        targets: what they were learned for.
        powers: of their densities, all positive.
    """
    precision, pull = 0.0, 0.0
    for process, target, power in zip(processes, targets, powers, strict=True):
        factor = np.asarray(target.whitening.factor, float)
        mean = np.asarray(target.whitening.mean) + factor @ np.asarray(process.mean)
        inverse = np.linalg.inv(factor * np.exp(np.asarray(process.log_sd)))
        precision = precision + power * inverse.T @ inverse
        pull = pull + power * inverse.T @ inverse @ mean
    covariance = np.linalg.inv(precision)
    dtype = targets[0].whitening.mean.dtype
    centre = jnp.asarray(covariance @ pull, dtype)
    whitening = Whitening(centre, jnp.asarray(np.linalg.cholesky(covariance), dtype))
    return Product(processes, targets, whitening, powers)
