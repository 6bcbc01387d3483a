r"""Affine tuning from pooled chains: centre and scales of a posterior, learnt without gradients.

A sampler runs on latent coordinates y with x = m + B y (the constant Jacobian drops out). In
warm-up all chains share m and B, which are renewed at the end of windows of growing length from
the draws x_i of all chains in the window,

    w_i = (d + nu) / (nu + |y_i|^2),
    m   = sum w_i x_i / sum w_i,
    S   = kappa sum w_i (x_i - m)(x_i - m)^T / sum w_i = D R D,    R = V diag(l) V^T,
    B B^T = D' V diag(l') V^T D',
    log l'_k = (1 - c) n_k / (n_k + d) log l_k,    c = min(1, d^2 / (n sum_k (l_k - 1)^2)).

D holds the standard deviations and R the correlations. Chance alone gives sum (l_k - 1)^2 near
d^2 / n; so c is the share of the correlations that it explains (Ledoit and Wolf 2004). n is the
number of draws times (1 - rho) / (1 + rho), rho the lag-1 autocorrelation of all directions
together; n_k is the same in the direction k alone if that is more, less what a random walk would
show. Narrow directions mix before wide ones do and are learnt from few draws; what slow chains seem
to tell of the rest is not believed. The log scales log D' are drawn towards their mean by the share
of their variance that chance explains, 1 / (2 n).

The weights are those of a Student-t law with nu = 4 degrees of freedom: draws far out in a heavy
tail do not carry the estimate away. kappa makes S the covariance where the law is Gaussian. What a
window learnt before a renewal counts 0.7 after it. After warm-up m and B stay as they are, so that
the chains are Markov chains.

Pooling and the need for both centre and covariance: Schaer, Habeck and Rudolf (2024), Parallel
affine transformation tuning of Markov chain Monte Carlo, ICML; the weights: Kent, Tyler and Vardi
(1994), A curious likelihood identity for the multivariate t-distribution, Communications in
Statistics 23:441; shrinkage: Ledoit and Wolf (2004), A well-conditioned estimator for
large-dimensional covariance matrices, Journal of Multivariate Analysis 88:365.
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
        jumps: as `second`, of what the transitions added to sqrt(w) (x - m).
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


Places = tuple[Array, Array]


def learn(affine: Affine, now: Places, before: Places, dim: int, pool: Pool) -> Affine:
    """Take in the draws of all chains.

    Args:
        affine: the map.
        now: positions, `(chains, dim)`, and the same in latent coordinates; coordinates that are
            not tuned are to equal the centre.
        before: the same before the last transition.
        dim: number of coordinates that are tuned.
        pool: sums over devices.
    """
    if not isinstance(affine.window, Window):
        return affine
    window = affine.window

    def tapered(places: Places) -> tuple[Array, Array]:
        x, y = places
        weight = (dim + _NU) / (_NU + jnp.sum(y**2, axis=1))
        return weight, jnp.sqrt(weight)[:, None] * (x - affine.centre[None])

    def second(values: Array) -> Array:
        return values.T @ values if window.second.ndim == 2 else jnp.sum(values**2, axis=0)

    weight, offset = tapered(now)
    added = Window(
        jnp.asarray(len(weight), weight.dtype),
        jnp.sum(weight),
        jnp.sum(jnp.sqrt(weight)[:, None] * offset, axis=0),
        second(offset),
        second(offset - tapered(before)[1]),
        jnp.zeros((), weight.dtype),
    )
    grown = jax.tree.map(lambda a, b: a + pool(b), window, added)
    return affine._replace(window=grown._replace(steps=window.steps + 1))


def renew(affine: Affine, dim: int) -> Affine:
    """Put to use what a window taught, and open the next one."""
    if not isinstance(affine.window, Window):
        return affine
    window = affine.window
    shift = window.first / window.weight
    second, jumps = window.second / window.weight, window.jumps / window.weight
    kappa = _consistency(dim)
    if window.second.ndim == 1:
        scales = _scales(kappa * (second - shift**2), affine.factor)
        values = jnp.where(second > 0, 1.0, 0.0)
        independent = window.count * _overall(values, jumps / scales**2)
        factor: Array = _evened(scales, second > 0, independent, dim)
    else:
        covariance = kappa * (second - shift[:, None] * shift[None, :])
        scales = _scales(jnp.diagonal(covariance), jnp.sqrt(jnp.sum(affine.factor**2, axis=1)))
        products = scales[:, None] * scales[None, :]
        correlation = covariance / products
        values, vectors = jnp.linalg.eigh(correlation)
        jumps = jnp.sum(vectors * (jumps / products @ vectors), axis=0)
        independent = window.count * _overall(values, jumps)
        moved = jnp.diagonal(correlation) > 0
        scales = _evened(scales, moved, independent, dim)
        each = jnp.maximum(window.count * _each(values, jumps, window.steps), independent)
        factor = scales[:, None] * _correlated(values, vectors, independent, each, dim)
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


def _evened(scales: Array, moved: Array, independent: Array, dim: int) -> Array:
    """Scales whose logarithms are drawn towards their mean as far as chance explains them."""
    if dim < 2:
        return scales
    logs = jnp.where(moved, jnp.log(scales), 0.0)
    mean = jnp.sum(logs) / dim
    spread = jnp.sum(jnp.where(moved, (logs - mean) ** 2, 0.0)) / dim
    chance = 0.5 / jnp.maximum(independent, 1.0)
    share = jnp.clip(chance / jnp.maximum(spread, 1e-12), 0.0, 1.0)
    return jnp.where(moved, jnp.exp(logs + share * (mean - logs)), scales)


def _correlated(values: Array, vectors: Array, independent: Array, each: Array, dim: int) -> Array:
    """Cholesky factor of the correlations, drawn towards 0 as far as chance explains them."""
    spread = jnp.sum(jnp.where(values > 0, (values - 1) ** 2, 0.0))
    chance = dim**2 / jnp.maximum(independent, 1.0)
    explained = jnp.clip(chance / jnp.maximum(spread, 1e-12), 0.0, 1.0)
    logs = jnp.log(jnp.where(values > _least(values), values, 1.0))
    logs = logs * (1 - explained) * (each / (each + dim))
    cholesky = jnp.linalg.cholesky((vectors * jnp.exp(logs)[None, :]) @ vectors.T)
    one = jnp.eye(len(values), dtype=values.dtype)
    return jnp.where(jnp.all(jnp.isfinite(cholesky)), cholesky, one)


def _each(variance: Array, jumps: Array, steps: Array) -> Array:
    """Effective draws per draw in each principal direction, in ascending order of variance.

    The k-th largest of a random walk would have 1 - rho = 1 - cos(pi k / steps); no more than that
    counts for nothing.
    """
    moved = variance > _least(variance)
    found = jnp.where(moved, jumps / (2 * jnp.where(moved, variance, 1.0)), 0.0)
    order = jnp.arange(len(variance), 0, -1)
    walk = 1 - jnp.cos(np.pi * jnp.minimum(order / steps, 1.0))
    ratio = jnp.clip(found - walk, 0.0, 1.0)
    return ratio / (2 - ratio)


def _least(values: Array) -> float:
    """What rounding makes of a variance of 0 among correlations."""
    return 10 * len(values) * float(jnp.finfo(values.dtype).eps)


def _overall(variance: Array, jumps: Array) -> Array:
    """Effective draws per draw, (1 - rho) / (1 + rho), rho that of all directions together."""
    ratio = jnp.clip(jnp.sum(jumps) / (2 * jnp.sum(variance)), 0.0, 1.0)
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
