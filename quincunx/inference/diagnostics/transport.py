r"""Sliced Wasserstein distance between two sets of draws, with what chance alone would give.

    SW^2 = mean over directions u on the sphere of W(u.x, u.y)^2,
    W^2 = integral over q in (0, 1) of (F_x^-1(q) - F_y^-1(q))^2,

the squared 2-Wasserstein distance of projections, from sorted draws. Directions come in orthogonal
sets. Two finite sets of exact draws are never at distance zero, so the figure means something only
beside that of exact draws: blocks of successive draws of both sets are shuffled between them, which
under equal laws changes nothing, and the distance is computed again. The *ratio* is the distance
squared over the median of those. Shuffling ends early where chance is clearly enough.

Besag and Clifford (1991), Sequential Monte Carlo p-values, Biometrika 78:301;
Bonneel, Rabin, Peyre and Pfister (2015), Sliced and Radon Wasserstein barycenters of measures,
Journal of Mathematical Imaging and Vision 51:22.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

_SHUFFLES, _LEAST_SHUFFLES = 999, 99
_EXCEEDANCES = 20
_DIRECTIONS = 64


class TransportTest(NamedTuple):
    """How far two sets of draws are from each other, and how far exact ones would be.

    Attributes:
        squared: the squared sliced distance.
        median: of the squared distances of shuffled sets.
        upper: their 99 % quantile.
        p_value: how often shuffled sets are farther from each other.
        draws: how many draws of each set were used.
    """

    squared: float
    median: float
    upper: float
    p_value: float
    draws: int

    @property
    def ratio(self) -> float:
        """The squared distance in units of what chance gives."""
        return self.squared / self.median


def directions(dim: int, number: int, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors `(number, dim)`, orthogonal in sets of `dim`, each uniform on the sphere."""
    if dim == 1:
        return np.ones((1, 1))
    sets, each = -(-number // dim), min(dim, number)
    q, r = np.linalg.qr(rng.standard_normal((sets, dim, each)))
    q = q * np.sign(np.einsum("sii->si", r))[:, None, :]
    return np.swapaxes(q, 1, 2).reshape(-1, dim)[:number]


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """W^2 of each row of two arrays of projections, `(line, n)` and `(line, m)`."""
    x, y = np.sort(x, axis=1), np.sort(y, axis=1)
    n, m = x.shape[1], y.shape[1]
    if n == m:
        return np.mean((x - y) ** 2, axis=1)
    steps = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)  # quantiles times n m
    widths = np.diff(steps, prepend=0) / (n * m)
    return (x[:, (steps - 1) // m] - y[:, (steps - 1) // n]) ** 2 @ widths


def sliced_wasserstein(x: np.ndarray, y: np.ndarray, lines: np.ndarray) -> float:
    """The squared sliced distance of two sets of draws.

    Args:
        x: `(n, dim)`.
        y: `(m, dim)`.
        lines: unit vectors, `(number, dim)`.
    """
    return float(np.mean(squared_distances(lines @ x.T, lines @ y.T)))


def transport_test(
    x: np.ndarray, y: np.ndarray, length: int, level: float, rng: np.random.Generator
) -> TransportTest:
    """The distance of two sets of draws beside that of their shuffled blocks.

    Args:
        x: draws, `(n, dim)`, of which each `length` successive ones are a block.
        y: as many others.
        length: draws of a block, a divisor of n.
        level: the smallest p-value that has to be told from smaller ones.
        rng: for directions and shuffles.
    """
    count, blocks = len(x), 2 * len(x) // length
    lines = directions(x.shape[1], _DIRECTIONS, rng)
    pooled = np.concatenate([x, y]) @ lines.T
    order = np.argsort(pooled, axis=0).T
    ordered = np.take_along_axis(pooled.T, order, axis=1).ravel()
    block = (order // length).ravel()

    def distance(first: np.ndarray) -> float:
        """Where `first` says which blocks are in the first set: as many on each line."""
        mine = first.take(block)
        apart = ordered.take(np.flatnonzero(mine)) - ordered.take(np.flatnonzero(~mine))
        return float(apart @ apart) / len(apart)

    first = np.arange(blocks) < blocks // 2
    found = distance(first)
    chance: list[float] = []
    larger, most = 0, max(_SHUFFLES, math.ceil(2 / level))
    while len(chance) < most and (larger < _EXCEEDANCES or len(chance) < _LEAST_SHUFFLES):
        chance.append(distance(rng.permutation(first)))
        larger += chance[-1] >= found
    p_value = (1 + larger) / (1 + len(chance))
    median, upper = np.quantile(chance, (0.5, 0.99))
    return TransportTest(found, float(median), float(upper), p_value, count)
