r"""Errors of particles that were resampled, from the particles of the start that they descend from.

Descendants of one particle share its luck, and each other's. With normalised weights w_i of draws
i, of which those in D_e descend from the particle e of the start,

    var(sum w_i f_i) ~ sum_e (sum_{i in D_e} w_i (f_i - m))^2,    m = sum w_i f_i,
    var(Z) / Z^2 ~ N / (N - 1) sum_e (sum_{i in D_e} w_i - 1 / N)^2,

where a particle that has died out counts in the second sum alone. The effective size of f is its
variance over the first. Weights after resampling are even however few of the particles they all
descend from, so (sum w)^2 / sum w^2 says nothing of it. Both are too small where next to all draws
have the same ancestor.

Chan and Lai (2013), A general theory of particle filters in hidden Markov models and some
applications, Annals of Statistics 41:2877; Lee and Whiteley (2018), Variance estimation in the
particle filter, Biometrika 105:609.
"""

from __future__ import annotations

import numpy as np
from scipy import special


def descents(origin: np.ndarray) -> np.ndarray:
    """Numbers 0, 1, ... of the particles of the start that still have descendants, `(batch * n,)`.

    Args:
        origin: the particle of its own batch that each draw descends from, `(batch, n)`.
    """
    batches, count = origin.shape
    every = origin + count * np.arange(batches)[:, None]
    return np.unique(every, return_inverse=True)[1].reshape(-1)


def relative_variances(log_weight: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """var(Z) / Z^2 of each batch, `(batch,)`; of one without a finite weight it is zero.

    Args:
        log_weight: `(batch, n)`, some of them finite.
        origin: as in `descents`.
    """
    batches, count = log_weight.shape
    top = log_weight.max(axis=1, keepdims=True)
    weight = np.exp(log_weight - np.where(np.isfinite(top), top, 0.0))
    total = weight.sum(axis=1, keepdims=True)
    share = np.zeros((batches, count))
    np.add.at(share, (np.arange(batches)[:, None], origin), weight / np.where(total > 0, total, 1))
    found = np.sum((share - 1 / count) ** 2, axis=1) * count / max(count - 1, 1)
    return np.where(total[:, 0] > 0, found, 0.0)


def effective_sizes(
    values: np.ndarray, log_weight: np.ndarray, origin: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Effective sizes of the centre and of the tails of each quantity, each `(quantity,)`.

    As of chains, the centre is judged by normal scores of ranks, and the tails by the share of
    draws below the 5 % and the 95 % quantile, whichever is worse.

    Args:
        values: `(batch, n, quantity)`.
        log_weight: `(batch, n)`, some of them finite.
        origin: as in `descents`.
    """
    flat = values.reshape(-1, values.shape[-1])
    weight = np.exp(log_weight.reshape(-1) - log_weight.max())
    weight /= weight.sum()
    group = descents(origin)
    most = 1 / np.sum(weight**2)
    order = np.argsort(flat, axis=0, kind="stable")
    own = weight[order]
    level = np.empty_like(own)
    np.put_along_axis(level, order, np.cumsum(own, axis=0) - 0.5 * own, axis=0)
    scores = special.ndtri(np.clip(level, 1e-12, 1 - 1e-12))
    centre = _effective(scores, weight, group, most)
    low, high = (_effective((level <= p) * 1.0, weight, group, most) for p in (0.05, 0.95))
    return centre, np.minimum(low, high)


def _effective(f: np.ndarray, weight: np.ndarray, group: np.ndarray, most: float) -> np.ndarray:
    """Var(f) over the variance of its mean, at most what the weights leave."""
    rest = f - weight @ f
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    sums = np.add.reduceat((weight[:, None] * rest)[order], starts, axis=0)
    noise = np.sum(sums**2, axis=0) * len(starts) / max(len(starts) - 1, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = weight @ rest**2 / noise
    return np.where(noise > 0, np.minimum(found, most), most)
