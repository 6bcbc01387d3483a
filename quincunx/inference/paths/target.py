"""A density in whitened coordinates, evaluated for many points at once."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from quincunx.engine.density import Density

LOG_2PI = 1.8378770664093453


@runtime_checkable
class Scored(Protocol):
    """What paths are simulated towards: log gamma and its gradient."""

    def with_score(
        self, y: Float[Array, "n dim"]
    ) -> tuple[Float[Array, " n"], Float[Array, "n dim"]]:
        """Both at points y."""
        ...


class Whitening(eqx.Module):
    """The affine map z = mean + factor y, in which the start is a standard normal law.

    Attributes:
        mean: of the start.
        factor: lower-triangular Cholesky factor of its covariance.
    """

    mean: Float[Array, " dim"]
    factor: Float[Array, "dim dim"]

    def position(self, y: Array) -> Array:
        """Z for points y, `(..., dim)`."""
        return jnp.broadcast_to(self.mean, y.shape) + y @ self.factor.T

    def inverse(self, z: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        """The points y of places z."""
        rest = (z - jnp.broadcast_to(self.mean, z.shape)).T
        return jax.scipy.linalg.solve_triangular(self.factor, rest, lower=True).T

    @property
    def log_volume(self) -> Array:
        """Log |det factor|."""
        return jnp.sum(jnp.log(jnp.abs(jnp.diagonal(self.factor))))


class Target(eqx.Module):
    """log gamma(y) = log density(z(y)) + log |det factor|, with NaN made -inf.

    Attributes:
        density: over z.
        whitening: the map from y to z.
    """

    density: Density
    whitening: Whitening

    def log_gamma(self, y: Float[Array, "n dim"]) -> Float[Array, " n"]:
        """Log densities."""
        z = self.whitening.position(y)
        value = jax.vmap(self.density.log_density)(z)
        return _defined(value) + self.whitening.log_volume

    def with_score(
        self, y: Float[Array, "n dim"]
    ) -> tuple[Float[Array, " n"], Float[Array, "n dim"]]:
        """Log densities and their gradients in y; a gradient that is not finite becomes zero."""
        z = self.whitening.position(y)
        value, slope = jax.vmap(jax.value_and_grad(self.density.log_density))(z)
        slope = slope @ self.whitening.factor
        finite = jnp.all(jnp.isfinite(slope), axis=-1, keepdims=True)
        slope = jnp.where(finite, slope, jnp.zeros_like(slope))
        return _defined(value) + self.whitening.log_volume, slope


def _defined(value: Array) -> Array:
    return jnp.where(jnp.isnan(value) | (value == jnp.inf), -jnp.inf, value)


def log_normal(y: Array) -> Array:
    """Log density of the standard normal law, `(n, dim)` to `(n,)`."""
    return -0.5 * jnp.sum(y**2, axis=-1) - 0.5 * y.shape[-1] * LOG_2PI
