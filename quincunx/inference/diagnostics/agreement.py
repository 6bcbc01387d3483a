r"""Errors of means and standard deviations against a reference, in Monte Carlo standard errors.

    z = (m - m_ref) / sqrt(mcse^2 + mcse_ref^2),

for means and, alike, for logarithms of standard deviations, whose error is that of the mean square
deviation over twice its value. The largest of them has its p-value from Student's law with 50
degrees of freedom, since standard errors are estimated, times the number of parameters.

A parameter whose tails are so heavy that its variance has no finite error (Pareto k of the pooled
draws above 0.35) is compared by its normal scores: draws are replaced by normal quantiles of their
ranks in both sets together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import special, stats

_HEAVY = 0.35
_FREEDOM = 50


class Moments(NamedTuple):
    """Means and logarithms of sds with standard errors, each `(parameter,)`."""

    mean: np.ndarray
    sd: np.ndarray
    mean_error: np.ndarray
    log_sd_error: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, ess: float | None = None) -> Moments:
        """From draws `(chain, draw, parameter)`.

        Args:
            values: the draws.
            ess: effective sample size of draws that are of no chain; found in them otherwise.
                Where a chain never moves it is zero, and errors are infinite.
        """
        mean = values.mean(axis=(0, 1))
        centred = values - mean
        squares = centred**2
        variance = squares.mean(axis=(0, 1))
        sd = np.sqrt(variance)
        still = (np.ptp(values, axis=1) == 0).any(axis=0)

        def error(entries: np.ndarray) -> np.ndarray:
            with np.errstate(divide="ignore"):
                return entries.std(axis=(0, 1)) / np.sqrt(_sizes(entries, ess, still))

        constant = sd == 0
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = error(squares) / (2 * variance)
        zero = np.zeros_like(sd)
        return cls(mean, sd, np.where(constant, zero, error(values)), spread)


def _sizes(entries: np.ndarray, ess: float | None, still: np.ndarray) -> np.ndarray:
    from arviz_stats.base import array_stats  # slow to import

    if ess is not None:
        return np.full(entries.shape[-1], ess)
    sizes = np.zeros(entries.shape[-1])
    if not still.all():
        moving = np.moveaxis(entries[..., ~still], -1, 0)
        sizes[~still] = array_stats.ess(moving, method="mean")
    return sizes


class Agreement(NamedTuple):
    """How one method's moments lie to the reference's.

    Attributes:
        table: one row for each parameter that varies: `mean_difference` in reference sds,
            `mean_z`, `log_sd_difference`, `log_sd_z`, what could have been seen, and whether
            normal scores were compared.
        mean_p: p-value of the largest error of means; NaN where there is no parameter.
        log_sd_p: of log sds.
    """

    table: pd.DataFrame
    mean_p: float
    log_sd_p: float

    def worst(self, what: str) -> tuple[float, str]:
        """The largest error, signed, and its parameter; `what` is `mean` or `log_sd`."""
        z = self.table[f"{what}_z"].to_numpy()
        if not (~np.isnan(z)).any():
            return np.nan, ""
        at = int(np.nanargmax(np.abs(z)))
        return float(z[at]), str(self.table.index[at])


def agreement(names: list[str], found: Moments, reference: Moments, heavy: np.ndarray) -> Agreement:
    """Compare moments.

    Args:
        names: the parameters.
        found: the moments to be judged.
        reference: those to judge by.
        heavy: parameters whose moments are of normal scores.
    """
    varies = (found.sd > 0) | (reference.sd > 0)
    names = [name for name, keep in zip(names, varies, strict=True) if keep]
    found, reference = (Moments(*(part[varies] for part in m)) for m in (found, reference))
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(reference.sd > 0, reference.sd, found.sd)
        error = np.hypot(found.mean_error, reference.mean_error)
        apart = found.mean - reference.mean
        mean_z = np.where(apart == 0, 0.0, apart / error)
        ratio = np.log(found.sd) - np.log(reference.sd)
        spread = np.hypot(found.log_sd_error, reference.log_sd_error)
        log_sd_z = np.where(np.isinf(spread), 0.0, ratio / spread)
        one_is_constant = np.isnan(log_sd_z)
        log_sd_z[one_is_constant] = np.copysign(np.inf, ratio[one_is_constant])
    columns = {
        "mean_difference": apart / scale,
        "mean_error": error / scale,
        "mean_z": mean_z,
        "log_sd_difference": ratio,
        "log_sd_error": spread,
        "log_sd_z": log_sd_z,
        "ranks": heavy[varies],
    }
    table = pd.DataFrame(columns, index=pd.Index(names, name="parameter"))
    return Agreement(table, _p_value(columns["mean_z"]), _p_value(columns["log_sd_z"]))


def _p_value(z: np.ndarray) -> float:
    if np.isnan(z).all():
        return np.nan
    return float(min(1.0, 2 * stats.t.sf(np.nanmax(np.abs(z)), _FREEDOM) * len(z)))


def heavy_tailed(values: np.ndarray) -> np.ndarray:
    """Which parameters of `(draw, parameter)` have no finite error of their variance."""
    return np.array([max(map(_shape, (column, -column))) > _HEAVY for column in values.T], bool)


def _shape(values: np.ndarray) -> float:
    """Pareto k of the upper tail; minus infinity where there is none, as of an indicator."""
    from arviz_stats.base import array_stats  # slow to import

    if np.ptp(values) == 0:
        return -np.inf
    try:
        with np.errstate(all="ignore"):  # a fit that comes to nothing gives k = NaN
            k: Any = array_stats.pareto_khat(values[None], tail="right")
    except ValueError:  # all draws of the tail are the same
        return -np.inf
    return -np.inf if np.isnan(k) else float(k)


def normal_scores(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draws of one parameter as normal quantiles of their ranks in both sets.

    Each set has half of the weight, however many draws it has. Equal draws share their rank.
    """
    pooled = np.concatenate([first.ravel(), second.ravel()])
    weight = np.concatenate(
        [np.full(first.size, 0.5 / first.size), np.full(second.size, 0.5 / second.size)]
    )
    values, place = np.unique(pooled, return_inverse=True)
    total = np.bincount(place, weight, len(values))
    scores = special.ndtri(np.cumsum(total) - 0.5 * total)[place]
    return scores[: first.size].reshape(first.shape), scores[first.size :].reshape(second.shape)
