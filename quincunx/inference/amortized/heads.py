r"""Conditional densities of standardised parameters, given a context c.

Mixture of K Gaussians with precisions in Cholesky form, all parameters affine in c:

    log q(z | c) = log sum_k pi_k exp( log |P_k| - |P_k (z - m_k)|^2 / 2 - (d/2) log 2 pi ),

P_k lower triangular with a positive diagonal. Draws are m_k + P_k^{-1} e with e standard normal.

Coupling flow: z = T(e; c), with T rational quadratic splines of one half of the coordinates whose
knots are a function of the other half and c:

    log q(z | c) = log N(e; 0, I) - log |det dT/de|.

Paths: z = m + P^{-1} x_K, with m and P as above for K = 1, and x_0 ... x_K a path of the kernels
F_k and B_k of `dds` in `quincunx.inference.paths.process`, whose control sees c:

    log q(z, x_0 ... x_{K-1} | c) = log N(x_0; 0, I) + sum_k log F_k(x_{k+1} | x_k, c) + log |P|.

The density of z alone has no closed form. Of a path, q over the law of the path back from z,

    r = N(x_0; 0, I) |P| prod_k F_k(x_{k+1} | x_k, c) / B_k(x_k | x_{k+1}),

is known, and that is all that weights need: for x_0 ... x_K drawn forwards, the mean of p(z) / r is
the integral of p whatever the networks are; for paths drawn backwards from z, the mean of r is
q(z | c), so that E log r <= log q(z | c), which is what training raises.

Bishop (1994), Mixture density networks; Durkan, Bekasov, Murray and Papamakarios (2019), Neural
spline flows, NeurIPS; Vargas, Grathwohl and Doucet (2023), Denoising diffusion samplers, ICLR.
"""

from __future__ import annotations

import abc
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from quincunx.inference.paths.process import Process, back_from, make, simulate

_WIDEST = 6.0  # |log of a scale|, in prior standard deviations, beyond which it hardly goes
_COMPONENTS, _LAYERS, _KNOTS, _INTERVAL = 8, 5, 8, 5.0
_STEPS = 16  # of a path


class Head(eqx.Module):
    """A conditional density."""

    @abc.abstractmethod
    def log_prob(
        self, z: Float[Array, " dim"], context: Float[Array, " width"], key: Array
    ) -> Array:
        """Log density at a point, or that of a path to it that the key fixes."""

    @abc.abstractmethod
    def draw(
        self, key: Array, context: Float[Array, " width"], n: int
    ) -> tuple[Float[Array, "n dim"], Float[Array, " n"]]:
        """Independent draws and their log density, or that of the paths to them."""


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

    def parts(self, context: Array) -> tuple[Array, Array, Array, Array]:
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

    def log_prob(self, z: Array, context: Array, key: Array) -> Array:
        """Log density at a point."""
        del key
        return self._at(z, *self.parts(context))

    def _at(self, z: Array, weights: Array, means: Array, factor: Array, volume: Array) -> Array:
        whitened = jnp.einsum("kij,kj->ki", factor, z[None] - means)
        constant = 0.5 * self.dim * math.log(2 * math.pi)
        terms = weights + volume - 0.5 * jnp.sum(whitened**2, axis=1) - constant
        return jax.nn.logsumexp(terms)

    def draw(self, key: Array, context: Array, n: int) -> tuple[Array, Array]:
        """Independent draws and their log density."""
        which, noise = jax.random.split(key)
        parts = weights, means, factor, _ = self.parts(context)
        spread = _inverse(factor)
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

    def log_prob(self, z: Array, context: Array, key: Array) -> Array:
        """Log density at a point."""
        del key
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


class Paths(Head):
    """Paths of a diffusion, in coordinates in which a Gaussian approximation is standard.

    Attributes:
        base: the Gaussian approximation.
        process: the kernels.
        shifts: maps the context into both hidden layers of the control.
    """

    base: Mixture
    process: Process
    shifts: eqx.nn.Linear

    def __init__(self, dim: int, width: int, key: Array, steps: int = _STEPS) -> None:
        first, second, third = jax.random.split(key, 3)
        self.base = Mixture(dim, width, first, components=1)
        made = make("dds", dim, steps, width, second, gate=0.0)
        unused = jax.tree.map(_zeros, made.backward)
        made = eqx.tree_at(lambda process: process.backward, made, unused)
        self.process = jax.tree.map(
            lambda leaf: leaf.astype(jnp.float32) if eqx.is_inexact_array(leaf) else leaf, made
        )
        self.shifts = eqx.nn.Linear(width, 2 * width, dtype=jnp.float32, key=third)

    def log_prob(self, z: Array, context: Array, key: Array) -> Array:
        """Log r of a path back from a point; the key fixes the path."""
        process, mean, factor, log_volume = self._at(context)
        x = factor @ (z - mean)
        paths = back_from(process, Unscored(), key, x[None], differentiable=True)
        return log_volume - process.log_weights(paths)[0]

    def draw(self, key: Array, context: Array, n: int) -> tuple[Array, Array]:
        """Ends of independent paths and their log r."""
        process, mean, factor, log_volume = self._at(context)
        paths = simulate(process, Unscored(), key, n)
        z = mean[None] + paths.x[-1] @ _inverse(factor).T
        return z, log_volume - process.log_weights(paths)

    def _at(self, context: Array) -> tuple[Process, Array, Array, Array]:
        """The kernels, m, P and log |P| of a data set."""
        _, means, factor, log_volume = self.base.parts(context)
        place, hidden = jnp.split(self.shifts(context), 2)
        fixed = lambda process: (process.mean, process.log_sd, process.control.gates)  # noqa: E731
        process = eqx.tree_at(
            fixed, self.process, replace_fn=lambda part: jax.tree.map(_constant, part)
        )
        biases = lambda process: (process.control.place.bias, process.control.hidden.bias)  # noqa: E731
        shifted = [
            bias + shift for bias, shift in zip(biases(process), (place, hidden), strict=True)
        ]
        return eqx.tree_at(biases, process, shifted), means[0], factor[0], log_volume[0]


class Unscored(eqx.Module):
    """No density: kernels that learn from draws know nothing of one."""

    def with_score(
        self, y: Float[Array, "n dim"]
    ) -> tuple[Float[Array, " n"], Float[Array, "n dim"]]:
        """Zeros."""
        return jnp.zeros(y.shape[0], y.dtype), jnp.zeros_like(y)


def _zeros(leaf: Any) -> Any:
    return jnp.zeros_like(leaf) if eqx.is_array(leaf) else leaf


def _constant(leaf: Any) -> Any:
    return jax.lax.stop_gradient(leaf) if eqx.is_inexact_array(leaf) else leaf


def _inverse(factor: Array) -> Array:
    """Inverses of lower triangular matrices."""
    eye = jnp.broadcast_to(jnp.eye(factor.shape[-1], dtype=factor.dtype), factor.shape)
    return jax.lax.linalg.triangular_solve(factor, eye, left_side=True, lower=True)


def _wide(values: Array) -> Array:
    return values.astype(jnp.result_type(float))


def _standard(e: Array) -> Array:
    return -0.5 * jnp.sum(e**2) - 0.5 * e.shape[0] * math.log(2 * math.pi)
