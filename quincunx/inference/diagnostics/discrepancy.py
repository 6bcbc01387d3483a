r"""Kernel Stein discrepancy: how far draws are from a density whose score is known.

    KSD^2 = E k_p(x, x'),
    k_p = s.s' k + s.grad' k + s'.grad k + tr grad grad' k,    k = (c^2 + |x - x'|^2)^(-1/2),

with s = grad log p, x and x' independent draws, in whitened coordinates. It needs no normalising
constant and no other draws. The mean over all pairs is never negative and too large by the
diagonal's share; the mean over pairs of different draws (the U-statistic) has mean zero under exact
draws.

Whether the latter is too large is told by the wild bootstrap: with a sign for each block of
successive draws, the same in all of the block,

    B = 1 / (n (n - 1)) sum_(i != j) W_i W_j k_p(i, j),    W = -1 or 1,

has the law of the statistic under exact draws, as far as blocks are independent of each other.
A pair of weighted draws counts by the product of both weights. Draws that descend from one
particle are a block, and only pairs of different blocks count.

Two caveats: the discrepancy is blind to the weights of modes far from each other, since the score
sees only one of them at a time; and its power falls with the dimension.

Gorham and Mackey (2017), Measuring sample quality with kernels, ICML; Chwialkowski, Strathmann and
Gretton (2016), A kernel test of goodness of fit, ICML.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

CAVEAT = "The kernel Stein discrepancy is blind to the weights of modes far from each other."
_RESAMPLED = 1999


class Whitening(NamedTuple):
    """An affine map to coordinates of mean zero and unit covariance.

    Attributes:
        centre: the mean, `(dim,)`.
        factor: lower-triangular factor of the covariance, `(dim, dim)`; `(dim,)`, scales alone,
            where draws are few.
    """

    centre: np.ndarray
    factor: np.ndarray

    @classmethod
    def of(cls, z: np.ndarray) -> Whitening:
        """From positions `(n, dim)`; of their scales alone where they are few."""
        count, dim = z.shape
        variance = z.var(axis=0)
        variance = np.where(variance > 0, variance, 1.0)
        if count <= 4 * dim:
            return cls(z.mean(axis=0), np.sqrt(variance))
        covariance = np.atleast_2d(np.cov(z, rowvar=False))
        factor = np.linalg.cholesky(covariance + np.diag(1e-10 * variance))
        return cls(z.mean(axis=0), factor)

    def positions(self, z: np.ndarray) -> np.ndarray:
        """Positions `(..., dim)` in the new coordinates."""
        if self.factor.ndim == 1:
            return (z - self.centre) / self.factor
        flat = (z - self.centre).reshape(-1, len(self.centre))
        return np.linalg.solve(self.factor, flat.T).T.reshape(z.shape)

    def scores(self, score: np.ndarray) -> np.ndarray:
        """Gradients `(n, dim)` of the log density in the new coordinates."""
        return score * self.factor if self.factor.ndim == 1 else score @ self.factor


class SteinTest(NamedTuple):
    """Whether draws are of a density.

    Attributes:
        squared: the U-statistic; zero on average under exact draws, and below zero at times.
        p_value: how often exact draws have a larger one.
    """

    squared: float
    p_value: float

    @property
    def ksd(self) -> float:
        """The discrepancy, zero where its square is estimated to be negative."""
        return float(np.sqrt(max(self.squared, 0.0)))


def stein_kernel(x: np.ndarray, s: np.ndarray, square: float) -> np.ndarray:
    """k_p of all pairs, `(n, n)`.

    Args:
        x: positions, `(n, dim)`, whitened.
        s: gradients of the log density there, `(n, dim)`.
        square: c^2; the dimension, for a kernel as wide as draws are apart, or less.
    """
    dim = x.shape[1]
    squares = np.sum(x**2, axis=1)
    distance = np.maximum(squares[:, None] + squares[None, :] - 2 * x @ x.T, 0.0)
    base = square + distance
    s_x = s @ x.T  # s_i . x_j
    own = np.sum(s * x, axis=1)
    towards = own[:, None] - s_x  # s_i . (x_i - x_j)
    slopes = (towards + towards.T) * base**-1.5
    trace = dim * base**-1.5 - 3 * distance * base**-2.5
    return (s @ s.T) * base**-0.5 + slopes + trace


def kernel_stein_discrepancy(z: np.ndarray, score: np.ndarray) -> tuple[float, float]:
    """The discrepancy of draws, and the one to be expected of as many independent exact draws.

    Over all pairs, so that it is positive; coordinates are whitened by the draws themselves.

    Args:
        z: positions, `(n, dim)`.
        score: gradients of the log density there, `(n, dim)`.
    """
    white = Whitening.of(z)
    kernel = stein_kernel(white.positions(z), white.scores(score), 1.0)
    level = np.mean(np.diag(kernel)) / len(z)
    return float(np.sqrt(max(kernel.mean(), 0.0))), float(np.sqrt(level))


def stein_test(
    x: np.ndarray,
    s: np.ndarray,
    block: np.ndarray,
    level: float,
    rng: np.random.Generator,
    weight: np.ndarray | None = None,
) -> SteinTest:
    """The U-statistic and its p-value.

    Args:
        x: positions, `(n, dim)`, whitened by what does not depend on these draws.
        s: gradients of the log density there, `(n, dim)`.
        block: for each draw the number of its block, `(n,)`.
        level: the smallest p-value that has to be told from smaller ones.
        rng: for the bootstrap's signs.
        weight: of weighted draws, `(n,)`; pairs of one block, which descend from one particle,
            then do not count.
    """
    count, blocks = len(x), int(block.max()) + 1
    kernel = stein_kernel(x, s, float(x.shape[1]))
    left_out = np.eye(count, dtype=bool)
    mass = np.ones((count, count))
    if weight is not None:
        left_out = block[:, None] == block
        mass = weight[:, None] * weight
    mass[left_out] = 0.0
    kernel *= mass
    member = np.zeros((blocks, count))
    member[block, np.arange(count)] = 1.0
    between = member @ kernel @ member.T
    number = max(_RESAMPLED, math.ceil(2 / level))
    signs = rng.choice((-1.0, 1.0), size=(number, blocks))
    pairs = max(float(mass.sum()), np.finfo(float).tiny)
    found = float(between.sum()) / pairs
    resampled = np.einsum("rb,rb->r", signs @ between, signs) / pairs
    return SteinTest(found, float(1 + np.sum(resampled >= found)) / (1 + number))
