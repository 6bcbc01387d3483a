r"""Affine tuning from pooled chains: centre and scales of a posterior, learnt without gradients.

A sampler runs on latent coordinates y with x = m + B y (the constant Jacobian drops out). In
warm-up all chains share m and B, which are renewed at the end of windows of growing length from
the draws x_i of all chains in the window,

    w_i = (d + nu) / (nu + |y_i|^2),
    m   = sum w_i x_i / sum w_i,
    S   = kappa sum w_i (x_i - m)(x_i - m)^T / sum w_i,
    B B^T = (1 - a) S + a diag(S),    a = d / (d + n_eff),

with n_eff the number of draws in the window times (1 - rho) / (1 + rho), rho the lag-1
autocorrelation: few or slowly mixing draws give a diagonal B. The weights are those of a Student-t
law with nu = 4 degrees of freedom: draws far out in a heavy tail do not carry the estimate away.
kappa makes S the covariance where the law is Gaussian. A window forgets: what it learnt before a
renewal counts 0.7 after it. After warm-up m and B stay as they are, so that the chains are Markov
chains.

Pooling, schedule and the need for both centre and covariance: Schaer, Habeck and Rudolf (2024),
Parallel affine transformation tuning of Markov chain Monte Carlo, ICML; the weights: Kent, Tyler
and Vardi (1994), A curious likelihood identity for the multivariate t-distribution,
Communications in Statistics 23:441.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from scipy import stats

from quincunx.inference.method import Pool

KINDS = ("covariance", "variance", "none")
_NU = 4.0
_LAST = 0.95  # share of warm-up after which m and B stay
_GROWTH = 0.8  # each renewal comes at this share of the next one's time
_FIRST = 10  # transitions before the first
_KEPT = 0.7  # share of what was learnt before that counts after a renewal


class Window(NamedTuple):
    """Sums over the draws of a window.

    Attributes:
        count: number of draws.
        weight: sum of weights.
        first: weighted sum of x - m, `(dim,)`.
        second: weighted sum of (x - m)(x - m)^T, `(dim, dim)`, or of its diagonal, `(dim,)`.
        jumps: as `second`, of what the transitions added to x.
        steps: number of transitions.
    """

    count: Array
    weight: Array
    first: Array
    second: Array
    jumps: Array
    steps: Array


class Affine(NamedTuple):
    """The map x = m + B y that all chains share.

    Attributes:
        centre: m, `(dim,)`.
        factor: B, `(dim, dim)`; its diagonal, `(dim,)`; or `()` for the identity.
        window: what is being learnt.
    """

    centre: Array
    factor: PyTree
    window: PyTree

    @property
    def learns(self) -> bool:
        """Whether there is anything to learn."""
        return isinstance(self.window, Window)

    def apply(self, y: Array) -> Array:
        """B y, for the rows of `(n, dim)`."""
        if isinstance(self.factor, tuple):
            return y
        return y * self.factor[None] if self.factor.ndim == 1 else y @ self.factor.T

    def solve(self, x: Array) -> Array:
        """The latent coordinates of positions `(n, dim)`."""
        offset = x - self.centre[None]
        if isinstance(self.factor, tuple):
            return offset
        if self.factor.ndim == 1:
            return offset / self.factor[None]
        return jax.scipy.linalg.solve_triangular(self.factor, offset.T, lower=True).T


class Stage(NamedTuple):
    """What a warm-up step does: end a window or not, and how fast scalars follow."""

    renew: Any
    gain: Any


def start(kind: str, dim: int, dtype: Any) -> Affine:
    """The identity, ready to learn."""
    zeros, zero = jnp.zeros(dim, dtype), jnp.zeros((), dtype)
    if kind == "none":
        return Affine(zeros, (), ())
    if kind == "variance":
        return Affine(zeros, jnp.ones(dim, dtype), Window(zero, zero, zeros, zeros, zeros, zero))
    square = jnp.zeros((dim, dim), dtype)
    return Affine(zeros, jnp.eye(dim, dtype=dtype), Window(zero, zero, zeros, square, square, zero))


def schedule(num_warmup: int) -> Stage:
    """Windows that end at 0.9 of warm-up, at 0.6 of that, and so on."""
    ends, end = [], _LAST * num_warmup
    while end >= _FIRST:
        ends.append(int(end) - 1)
        end *= _GROWTH
    renew = np.zeros(num_warmup, bool)
    renew[ends] = True
    gain = 0.5 * (1.0 + np.arange(num_warmup)) ** -0.5
    return Stage(renew, gain.astype(jax.dtypes.canonicalize_dtype(float)))


def learn(affine: Affine, x: Array, y: Array, jump: Array, dim: int, pool: Pool) -> Affine:
    """Take in the draws of all chains.

    Args:
        affine: the map.
        x: positions, `(chains, dim)`; coordinates that are not tuned are to equal the centre.
        y: the same in latent coordinates.
        jump: what the last transition added to the positions.
        dim: number of coordinates that are tuned.
        pool: sums over devices.
    """
    if not isinstance(affine.window, Window):
        return affine
    window, offset = affine.window, x - affine.centre[None]
    weight = (dim + _NU) / (_NU + jnp.sum(y**2, axis=1))

    def second(values: Array) -> Array:
        weighted = weight[:, None] * values
        return (
            weighted.T @ values if window.second.ndim == 2 else jnp.sum(weighted * values, axis=0)
        )

    added = Window(
        jnp.asarray(x.shape[0], x.dtype),
        jnp.sum(weight),
        jnp.sum(weight[:, None] * offset, axis=0),
        second(offset),
        second(jump),
        jnp.zeros((), x.dtype),
    )
    grown = jax.tree.map(lambda a, b: a + pool(b), window, added)
    return affine._replace(window=grown._replace(steps=window.steps + 1))


def renew(affine: Affine, dim: int) -> Affine:
    """Put to use what a window taught, and open the next one."""
    if not isinstance(affine.window, Window):
        return affine
    window = affine.window
    shift = window.first / window.weight
    moment = window.second / window.weight
    kappa = _consistency(dim)
    if window.second.ndim == 1:
        factor: Array = _scales(kappa * (moment - shift**2), affine.factor)
    else:
        covariance = kappa * (moment - shift[:, None] * shift[None, :])
        old = jnp.sqrt(jnp.sum(affine.factor**2, axis=1))
        scales = _scales(jnp.diagonal(covariance), old)
        factor = scales[:, None] * _correlated(covariance, scales, window, dim)
    shift = jnp.where(jnp.isfinite(shift), shift, 0.0)
    return Affine(affine.centre + shift, factor, _recentred(affine.window, shift))


def _recentred(window: Window, shift: Array) -> Window:
    """The sums about the new centre, of less weight than what is to come."""
    if window.second.ndim == 1:
        crossed = 2 * shift * window.first - window.weight * shift**2
    else:
        outer = shift[:, None] * window.first[None, :]
        crossed = outer + outer.T - window.weight * shift[:, None] * shift[None, :]
    first, second = window.first - window.weight * shift, window.second - crossed
    kept = window._replace(first=first, second=second)
    return jax.tree.map(lambda total: _KEPT * total, kept)


def _correlated(covariance: Array, scales: Array, window: Window, dim: int) -> Array:
    """Cholesky factor of the correlations, drawn towards 0 where few draws tell of them."""
    products = scales[:, None] * scales[None, :]
    values, vectors = jnp.linalg.eigh(covariance / products)
    jumps = window.jumps / window.weight / products
    jumps = jnp.sum(vectors * (jumps @ vectors), axis=0)
    independent = window.count * _efficiency(values, jumps, window.steps, dim)
    share = independent / (independent + dim)
    one = jnp.eye(len(scales), dtype=scales.dtype)
    cholesky = jnp.linalg.cholesky(jnp.where(one > 0, one, share * covariance / products))
    return jnp.where(jnp.all(jnp.isfinite(cholesky)), cholesky, one)


def _efficiency(variance: Array, jumps: Array, steps: Array, dim: int) -> Array:
    """Effective draws per draw, (1 - rho) / (1 + rho).

    The lag-1 autocorrelation rho is 1 - (sum of squared jumps) / (2 sum of variances) where all
    directions mix alike. Where some are slow, rho is a mean over principal directions, of which a
    random walk would have 1 - rho = (pi dim / steps)^2 / 6.
    """
    overall = jnp.sum(jumps) / (2 * jnp.sum(variance))
    each = jnp.where(variance > 0, jumps / (2 * jnp.where(variance > 0, variance, 1.0)), 0.0)
    each = jnp.sum(jnp.clip(each, 0.0, 1.0)) / dim - (np.pi * dim / steps) ** 2 / 6
    ratio = jnp.clip(jnp.maximum(overall, each), 0.0, 1.0)
    return ratio / (2 - ratio)


def _scales(variance: Array, old: Array) -> Array:
    """Standard deviations; the old ones where the draws show none."""
    sound = jnp.isfinite(variance) & (variance > 0)
    return jnp.where(sound, jnp.sqrt(jnp.where(sound, variance, 1.0)), old)


@functools.lru_cache
def _consistency(dim: int) -> float:
    """Kappa = E w / E(w |y|^2 / d) for y ~ N(0, I_d)."""
    radius = stats.chi2.ppf((np.arange(2000) + 0.5) / 2000, dim)
    weight = (dim + _NU) / (_NU + radius)
    return float(weight.mean() / (weight * radius / dim).mean())
