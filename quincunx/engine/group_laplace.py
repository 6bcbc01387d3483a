"""The multivariate Laplace law of a group of coefficients that vanish together."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln
from numpyro.distributions import Distribution, constraints


class GroupLaplace(Distribution):
    r"""Density proportional to exp(-|x - m|_2 / s) on vectors of n entries.

    With Gamma the gamma function, p(x) = Gamma(n/2) / (2 pi^(n/2) Gamma(n) s^n) exp(-|x - m| / s):
    the length is Gamma(n, 1/s) and the direction uniform. For n = 1 it is the Laplace law. As a
    prior it is that of the group lasso: Casella, Ghosh, Gill and Kyung (2010), Penalized
    regression, standard errors, and Bayesian lassos, Bayesian Analysis 5:369.

    Args:
        loc: m, of shape `(*batch, n)`.
        scale: s, of shape `batch`.
    """

    arg_constraints = {"loc": constraints.real_vector, "scale": constraints.positive}
    support = constraints.real_vector  # pyright: ignore[reportAssignmentType]
    reparametrized_params = ["loc", "scale"]

    def __init__(self, loc: Any, scale: Any = 1.0, *, validate_args: bool | None = None) -> None:
        if jnp.ndim(loc) < 1:
            raise ValueError("`GroupLaplace(loc=...)` must be a vector: one entry for each member.")
        batch = jnp.broadcast_shapes(jnp.shape(loc)[:-1], jnp.shape(scale))
        event = jnp.shape(loc)[-1:]
        self.loc = jnp.broadcast_to(loc, batch + event)
        self.scale = jnp.broadcast_to(scale, batch)
        super().__init__(batch, event, validate_args=validate_args)

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> Any:
        """A gamma-distributed length along a uniform direction."""
        assert key is not None
        first, second = jax.random.split(key)
        shape = sample_shape + self.batch_shape
        direction = jax.random.normal(first, shape + self.event_shape)
        length = jax.random.gamma(second, float(self.event_shape[0]), shape)
        length = jnp.broadcast_to(self.scale, shape) * length
        along = direction * (length / jnp.linalg.norm(direction, axis=-1))[..., None]
        return jnp.broadcast_to(self.loc, along.shape) + along

    def log_prob(self, value: Any, intermediates: Any = None) -> Any:
        """Log density."""
        del intermediates
        n = self.event_shape[0]
        constant = gammaln(n / 2) - jnp.log(2.0) - n / 2 * jnp.log(jnp.pi) - gammaln(float(n))
        shape = jnp.shape(value)
        far = length(value - jnp.broadcast_to(self.loc, shape))
        scale = jnp.broadcast_to(self.scale, shape[:-1])
        return constant - n * jnp.log(scale) - far / scale

    @property
    def mean(self) -> Any:
        """The centre."""
        return self.loc

    @property
    def variance(self) -> Any:
        """(n + 1) s^2 in each coordinate."""
        each = (self.event_shape[0] + 1) * jnp.broadcast_to(self.scale, self.batch_shape) ** 2
        return jnp.broadcast_to(each[..., None], self.batch_shape + self.event_shape)


def length(x: Any) -> Any:
    """|x|_2 over the last axis, with derivative zero where it vanishes."""
    square = jnp.sum(x**2, axis=-1)
    moved = square > 0
    return jnp.where(moved, jnp.sqrt(jnp.where(moved, square, 1.0)), 0.0)
