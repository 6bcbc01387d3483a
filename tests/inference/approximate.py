"""Methods that are wrong in a known way."""

from typing import ClassVar

import jax
import jax.numpy as jnp

import quincunx as qx


class Gaussian(qx.Kernel):
    """Independent draws from the Gaussian at the mode, its sds times a factor.

    On a Gaussian posterior it is exact with factor one; with `temperature` 0 it returns the prior.
    """

    name: ClassVar[str] = "test_gaussian"
    kind: ClassVar[qx.Kind] = qx.Kind.APPROXIMATE
    summary: ClassVar[str] = "Independent draws from a Gaussian."
    citation: ClassVar[str] = "none"

    factor: float = 1.0
    temperature: float = 1.0
    newton: int = 1

    def init(self, density, position, key):
        target = density.tempered(self.temperature)

        def towards(z, _):
            step = jnp.linalg.solve(
                jax.hessian(target.log_density)(z), jax.grad(target.log_density)(z)
            )
            return z - step, None

        mode, _ = jax.lax.scan(towards, jnp.zeros_like(position), length=self.newton)
        covariance = jnp.linalg.inv(-jax.hessian(target.log_density)(mode))
        return mode, mode, self.factor * jnp.linalg.cholesky(covariance)

    def step(self, density, state, key):
        _, mode, factor = state
        z = mode + factor @ jax.random.normal(key, mode.shape)
        info = qx.Info(
            log_density=density.log_density(z),
            acceptance=jnp.ones(()),
            diverging=jnp.zeros((), bool),
            step_size=jnp.full((), jnp.nan),
            gradients=jnp.zeros((), int),
            evaluations=jnp.ones((), int),
            extra={},
        )
        return (z, mode, factor), info

    def position(self, state):
        return state[0]
