"""Draws that are near enough to independent for tests that assume it.

Chains are thinned to one draw in two effective ones: a chain with autocorrelation rho^t is left
with about rho^(2 (1 + rho) / (1 - rho)), below 0.02. What is left of dependence is within blocks of
successive draws, which the tests keep together. Where there are more chains than blocks can be
kept, some whole chains are left out.
"""

from __future__ import annotations

import math

import numpy as np

BLOCK = 4  # thinned draws
_MOST = 1000
_SHORT = 100  # draws below which a chain is not shortened


def shortened(values: np.ndarray, most: int) -> np.ndarray:
    """At most that many draws `(chain, draw, ...)`, of chains that are not made too short.

    Chains are thinned where few of them are long, and left out, evenly, where many are short.
    """
    chains, number = values.shape[:2]
    kept = spread(chains, max(1, most // max(1, min(number, _SHORT))))
    return values[kept, :: max(1, math.ceil(len(kept) * number / most))]


def spread(number: int, most: int) -> np.ndarray:
    """At most `most` of `number` indices, evenly spread."""
    return np.linspace(0, number - 1, min(number, most)).astype(int)


def slowest(values: np.ndarray) -> float:
    """Smallest effective sample size of the coordinates and their squares.

    Args:
        values: `(chain, draw, dim)`; a coordinate that is constant somewhere makes it zero.
    """
    from arviz_stats.base import array_stats  # slow to import

    if (np.ptp(values, axis=1) == 0).any() or not np.isfinite(values).all() or len(values[0]) < 4:
        return 0.0
    centred = values - values.mean(axis=(0, 1))
    both = np.moveaxis(np.concatenate([centred, centred**2], axis=-1), -1, 0)
    found = np.asarray(array_stats.ess(both, method="bulk"))
    return float(min(found.min(), values.shape[0] * values.shape[1]))


def thinned(number: int, chains: int, ess: float, most: int = _MOST) -> np.ndarray:
    """Which draws to keep, in whole blocks.

    Args:
        number: draws of each chain.
        chains: their number.
        ess: effective sample size of all.
        most: how many to keep at most.

    Returns:
        Indices into the draws of all chains one after the other, `(n,)`; each `BLOCK` successive
        ones are of one chain. Empty where there are too few.
    """
    if ess <= 0:
        return np.zeros(0, int)
    members = spread(chains, most // BLOCK)
    stride = max(2 * number * chains / ess, number * len(members) / most, 1.0)
    kept = np.floor(np.arange(int(number / stride)) * stride).astype(int)
    kept = kept[: len(kept) // BLOCK * BLOCK]
    return (members[:, None] * number + kept).reshape(-1)
