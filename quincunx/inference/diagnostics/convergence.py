"""Effective sample size and R-hat that a stuck chain cannot fool.

The figures are those of arviz_stats (Vehtari, Gelman, Simpson, Carpenter and Buerkner, 2021,
Rank-normalization, folding, and localization: an improved R-hat, Bayesian Analysis 16:667)
wherever all chains move; a constant or non-finite chain has effective sample size 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

_TAIL = (0.05, 0.95)
_VALUES = 1_000_000


class Convergence(NamedTuple):
    """Diagnostics of all scalar parameters.

    Attributes:
        names: `theta[3]` and so on.
        ess_bulk: effective sample size of the centre.
        ess_tail: smaller effective sample size of the 5 % and 95 % quantiles.
        r_hat: rank-normalised split R-hat; infinite where a chain is stuck.
        finite: whether all draws are finite.
        stuck: chains, at least one of them, that never move.
        constant: whether the quantity is the same in every draw of every chain.
    """

    names: list[str]
    ess_bulk: np.ndarray
    ess_tail: np.ndarray
    r_hat: np.ndarray
    finite: np.ndarray
    stuck: np.ndarray
    constant: np.ndarray

    def table(self) -> pd.DataFrame:
        """One row for each parameter."""
        columns = {"ess_bulk": self.ess_bulk, "ess_tail": self.ess_tail, "r_hat": self.r_hat}
        return pd.DataFrame(columns, index=pd.Index(self.names, name="parameter"))


def flatten(draws: Mapping[str, Any]) -> tuple[list[str], np.ndarray]:
    """Scalar parameters as columns: names and an array `(chain, draw, parameter)`."""
    names, parts = [], []
    for found, values in columns(draws):
        names += found
        parts.append(values)
    stacked = np.concatenate(parts, axis=-1) if parts else np.zeros((1, 0, 0))
    return names, stacked


def columns(draws: Mapping[str, Any]) -> Iterator[tuple[list[str], np.ndarray]]:
    """Scalar parameters a few at a time, so that draws on disk need not fit in memory."""
    for name, values in draws.items():
        if values.dtype.kind not in "biuf":
            continue
        shape = values.shape[2:]
        labels = [
            name + (f"[{', '.join(map(str, index))}]" if index else "")
            for index in np.ndindex(*shape)
        ]
        width = max(1, _VALUES // max(1, math.prod(values.shape[:2])))
        inner = math.prod(shape[1:])
        step = max(1, width // max(inner, 1)) if shape else 1
        for start in range(0, shape[0] if shape else 1, step):
            part = values[:, :, start : start + step] if shape else values
            size = min(step, shape[0] - start) * inner if shape else 1
            flat = np.asarray(part, float).reshape(*values.shape[:2], size)
            yield labels[start * inner : start * inner + size], flat


def convergence(draws: Mapping[str, Any], *, of_chains: bool = True) -> Convergence:
    """Diagnose draws by site, each of shape `(chain, draw, ...)`, in memory or on disk.

    Args:
        draws: by site.
        of_chains: whether they are of chains; if not, sizes are zero and R-hat is infinite.
    """
    parts = [_diagnose(names, values, of_chains=of_chains) for names, values in columns(draws)]
    if not parts:
        parts = [_diagnose([], np.zeros((1, 0, 0)), of_chains=of_chains)]
    names = [name for part in parts for name in part.names]
    return Convergence(
        names, *(np.concatenate(arrays) for arrays in list(zip(*parts, strict=True))[1:])
    )


def _diagnose(names: list[str], values: np.ndarray, *, of_chains: bool) -> Convergence:
    from arviz_stats.base import array_stats  # slow to import

    if not values.shape[1]:
        zero, no = np.zeros(len(names)), np.zeros(len(names), bool)
        return Convergence(names, zero, zero, np.full(len(names), np.inf), ~no, no, no)
    finite = np.asarray(np.isfinite(values).all(axis=(0, 1)))
    spread = np.ptp(np.where(np.isfinite(values), values, 0.0), axis=1)
    still = spread == 0
    stuck, constant = still.any(axis=0), still.all(axis=0)
    fixed = constant & (np.ptp(values[:, 0], axis=0) == 0)
    good = finite & ~stuck
    count = values.shape[-1]
    bulk, tail, r_hat = np.zeros(count), np.zeros(count), np.full(count, np.inf)
    if of_chains and good.any() and values.shape[1] >= 4:
        moving = np.moveaxis(values[..., good], -1, 0)
        bulk[good] = array_stats.ess(moving, method="bulk")
        tail[good] = array_stats.ess(moving, method="tail", prob=_TAIL)
        r_hat[good] = array_stats.rhat(moving, method="rank")
    return Convergence(names, bulk, tail, r_hat, finite, stuck, fixed)
