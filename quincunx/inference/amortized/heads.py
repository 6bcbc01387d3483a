r"""Conditional densities of standardised parameters, given a context c.

Mixture of K Gaussians with precisions in Cholesky form, all parameters affine in c:

    log q(z | c) = log sum_k pi_k exp( log |P_k| - |P_k (z - m_k)|^2 / 2 - (d/2) log 2 pi ),

P_k lower triangular with a positive diagonal. Draws are m_k + P_k^{-1} e with e standard normal.

Coupling flow: z = T(e; c), with T rational quadratic splines of one half of the coordinates whose
knots are a function of the other half and c:

    log q(z | c) = log N(e; 0, I) - log |det dT/de|.

Bishop (1994), Mixture density networks; Durkan, Bekasov, Murray and Papamakarios (2019), Neural
spline flows, NeurIPS.
"""

from __future__ import annotations

import abc
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_WIDEST = 6.0  # |log of a scale|, in prior standard deviations, beyond which it hardly goes
_COMPONENTS, _LAYERS, _KNOTS, _INTERVAL = 8, 5, 8, 5.0


class Head(eqx.Module):
    """A conditional density."""

    @abc.abstractmethod
    def log_prob(self, z: Float[Array, " dim"], context: Float[Array, " width"]) -> Array:
        """Log density at a point."""

    @abc.abstractmethod
    def draw(
        self, key: Array, context: Float[Array, " width"], n: int
    ) -> tuple[Float[Array, "n dim"], Float[Array, " n"]]:
        """Independent draws and their log density."""


class Mixture(Head):
    """A mixture of Gaussians."""

    affine: eqx.nn.Linear
    dim: int = eqx.field(static=True)
    components: int = eqx.field(static=True)

    def __init__(self, dim: int, width: int, key: Array, components: int = _COMPONENTS) -> None:
        self.dim, self.components = dim, components
        first, second = jax.random.split(key)
        size = components * (1 + dim + dim * (dim + 1) // 2)
        affine = eqx.nn.Linear(width, size, dtype=jnp.float32, key=first)
        means = jax.random.normal(second, (components, dim), jnp.float32)
        start = components
        bias = jnp.zeros(size, jnp.float32).at[start : start + components * dim].set(means.ravel())
        self.affine = eqx.tree_at(lambda layer: layer.bias, affine, bias)

    def _parts(self, context: Array) -> tuple[Array, Array, Array, Array]:
        """Log weights, means, triangular factors of the precisions and their log determinants."""
        count, dim = self.components, self.dim
        raw = self.affine(context)
        logits, means, scales, rest = jnp.split(
            raw, [count, count * (1 + dim), count * (1 + 2 * dim)]
        )
        log_diagonal = _WIDEST * jnp.tanh(scales.reshape(count, dim) / _WIDEST)
        lower = jnp.tril_indices(dim, -1)
        factor = jax.vmap(jnp.diag)(jnp.exp(log_diagonal))
        if dim > 1:
            factor = factor.at[:, lower[0], lower[1]].set(rest.reshape(count, -1))
        determinant = jnp.sum(log_diagonal, axis=1)
        return jax.nn.log_softmax(logits), means.reshape(count, dim), factor, determinant

    def log_prob(self, z: Array, context: Array) -> Array:
        """Log density at a point."""
        return self._at(z, *self._parts(context))

    def _at(self, z: Array, weights: Array, means: Array, factor: Array, volume: Array) -> Array:
        whitened = jnp.einsum("kij,kj->ki", factor, z[None] - means)
        constant = 0.5 * self.dim * math.log(2 * math.pi)
        terms = weights + volume - 0.5 * jnp.sum(whitened**2, axis=1) - constant
        return jax.nn.logsumexp(terms)

    def draw(self, key: Array, context: Array, n: int) -> tuple[Array, Array]:
        """Independent draws and their log density."""
        which, noise = jax.random.split(key)
        parts = weights, means, factor, _ = self._parts(context)
        eye = jnp.broadcast_to(jnp.eye(self.dim, dtype=means.dtype), factor.shape)
        spread = jax.lax.linalg.triangular_solve(factor, eye, left_side=True, lower=True)
        chosen = jax.random.categorical(which, weights, shape=(n,))
        e = jax.random.normal(noise, (n, self.dim), means.dtype)
        z = means[chosen] + jnp.einsum("nij,nj->ni", spread[chosen], e)
        return z, jax.vmap(lambda z: self._at(z, *parts))(z)


class Flow(Head):
    """A coupling flow of FlowJAX with rational quadratic splines, in the precision JAX runs in."""

    bijection: Any
    dim: int = eqx.field(static=True)

    def __init__(self, dim: int, width: int, key: Array, layers: int = _LAYERS) -> None:
        from flowjax.bijections import RationalQuadraticSpline  # slow to import
        from flowjax.distributions import StandardNormal
        from flowjax.flows import coupling_flow

        flow = coupling_flow(
            key,
            base_dist=StandardNormal((dim,)),
            transformer=RationalQuadraticSpline(knots=_KNOTS, interval=_INTERVAL),
            cond_dim=width,
            flow_layers=layers,
            nn_width=width,
            nn_activation=jax.nn.silu,
        )
        self.dim, self.bijection = dim, flow.bijection

    def log_prob(self, z: Array, context: Array) -> Array:
        """Log density at a point."""
        z, context = _wide(z), _wide(context)
        e, log_jacobian = self.bijection.inverse_and_log_det(z, context)
        return _standard(e) + log_jacobian

    def draw(self, key: Array, context: Array, n: int) -> tuple[Array, Array]:
        """Independent draws and their log density."""
        context = _wide(context)
        e = jax.random.normal(key, (n, self.dim), context.dtype)

        def one(e: Array) -> tuple[Array, Array]:
            z, log_jacobian = self.bijection.transform_and_log_det(e, context)
            return z, _standard(e) - log_jacobian

        return jax.vmap(one)(e)


def _wide(values: Array) -> Array:
    return values.astype(jnp.result_type(float))


def _standard(e: Array) -> Array:
    return -0.5 * jnp.sum(e**2) - 0.5 * e.shape[0] * math.log(2 * math.pi)
