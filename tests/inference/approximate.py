"""Methods that are wrong in a known way."""

from typing import ClassVar

import jax
import jax.numpy as jnp

import quincunx as qx


class Gaussian(qx.Kernel):
    """Independent draws from the Gaussian at the mode, its sds times a factor.

    On a Gaussian posterior it is exact with factor one. With `rows` it uses so many of the rows,
    so that it returns the prior with none; with `site` the observations of that site alone.
    """

    name: ClassVar[str] = "test_gaussian"
    kind: ClassVar[qx.Kind] = qx.Kind.APPROXIMATE
    summary: ClassVar[str] = "Independent draws from a Gaussian."
    citation: ClassVar[str] = "none"

    factor: float = 1.0
    rows: int | None = None
    site: str | None = None
    newton: int = 1

    def init(self, density, position, key):
        def target(z):
            if self.site is not None:
                own = density.pointwise_log_likelihood(z)[self.site]
                return density.log_prior(z) + jnp.sum(own)
            if self.rows is None:
                return density.log_density(z)
            if not self.rows:
                return density.log_prior(z)
            share = self.rows / density.structure.data_plates[0].size
            likelihood = density.log_likelihood(z, rows=jnp.arange(self.rows))
            return density.log_prior(z) + share * likelihood

        def towards(z, _):
            step = jnp.linalg.solve(jax.hessian(target)(z), jax.grad(target)(z))
            return z - step, None

        mode, _ = jax.lax.scan(towards, jnp.zeros_like(position), length=self.newton)
        covariance = jnp.linalg.inv(-jax.hessian(target)(mode))
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


class Particles(qx.Sampler):
    """Standard normal draws, which are those of the prior where it is standard normal."""

    dropped: bool
    copies: int

    def draw(self, density, key, n):
        origin = jnp.arange(n) // self.copies
        z = jax.random.normal(key, (n, density.dim))[origin]
        log_weight = jnp.zeros(n) if self.dropped else jax.vmap(density.log_likelihood)(z)
        return qx.Weighted(z, log_weight, origin=origin if self.copies > 1 else None)


class Weigher(qx.Approximation):
    """The prior's draws, weighted by the likelihood.

    With `dropped` all weigh the same, so that it returns the prior. Each draw is made so many times
    as `copies` says.
    """

    name: ClassVar[str] = "test_weigher"
    summary: ClassVar[str] = "Weighted draws of the prior."
    citation: ClassVar[str] = "none"

    dropped: bool = False
    copies: int = 1

    def fit(self, density, key, budget):
        del key
        budget.note(1, 1)
        return self.skeleton(density)

    def skeleton(self, density):
        return Particles(self.dropped, self.copies)
