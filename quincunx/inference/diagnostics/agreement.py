r"""Errors of means and standard deviations against a reference, in Monte Carlo standard errors.

    z = (m - m_ref) / sqrt(mcse^2 + mcse_ref^2),    mcse = s / sqrt(n_eff),

for means and, alike, for logarithms of standard deviations, whose error is that of the mean square
deviation over twice its value. If both sides are of one law they have one s and one kurtosis. A
chain that is short has too small ones, since it has not seen the tails; so both errors are computed
with the larger ones.

The logarithm of the variance of a few draws falls far below more often than its error says. Where
the smaller sd is not the one of more degrees of freedom, z is of 1 - s_small^2 / s_large^2 in place
of the logarithm of the squared ratio.

p-values are of Student's law, since standard errors are estimated, and times the number of
parameters. Each side has a third of its effective draws as degrees of freedom, and 50 at most; the
law has the fewer ones.

Chains of a few draws do not tell their autocorrelation. Where there are several, n_eff is then from
the variance between them, with one degree of freedom less than there are chains.

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
_FREEDOM = 50.0
_PER_FREEDOM = 3  # effective draws
_SHORT = 16, 64  # draws of a chain, from few chains to many
_ROUNDING = 8  # machine precisions
WHATS = ("mean", "log_sd")


class Moments(NamedTuple):
    """Means and logarithms of sds with standard errors, each `(parameter,)`.

    Attributes:
        mean: the means.
        sd: the standard deviations.
        mean_error: standard errors of means.
        log_sd_error: of logarithms of sds.
        roughness: sd of the squared deviation over its mean; sqrt(2) for a normal law.
        freedom: degrees of freedom of the errors.
    """

    mean: np.ndarray
    sd: np.ndarray
    mean_error: np.ndarray
    log_sd_error: np.ndarray
    roughness: np.ndarray
    freedom: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, ess: float | None = None) -> Moments:
        """From draws `(chain, draw, parameter)`.

        A parameter that varies by rounding only is a constant, without errors.

        Args:
            values: the draws.
            ess: effective sample size of draws that are of no chain; found in them otherwise.
                Where a chain never moves it is zero, and errors are infinite.
        """
        constant = _constant(values)
        mean = np.where(constant, values[0, 0], values.mean(axis=(0, 1)))
        squares = (values - mean) ** 2
        variance = np.where(constant, 0.0, squares.mean(axis=(0, 1)))
        still = (np.ptp(values, axis=1) == 0).any(axis=0)
        of_mean, of_square = (_sizes(entries, ess, still) for entries in (values, squares))
        freedom = np.clip(np.minimum(of_mean, of_square) / _PER_FREEDOM, 1.0, _FREEDOM)
        if ess is None and _too_short(values):
            freedom = np.full_like(freedom, min(len(values) - 1, _FREEDOM))
        sd = np.sqrt(variance)
        with np.errstate(divide="ignore", invalid="ignore"):
            roughness = np.where(constant, 0.0, squares.std(axis=(0, 1)) / variance)
            mean_error = np.where(constant, 0.0, sd / np.sqrt(of_mean))
            log_sd_error = np.where(constant, 0.0, roughness / np.sqrt(of_square) / 2)
        return cls(mean, sd, mean_error, log_sd_error, roughness, freedom)

    @classmethod
    def trusted(cls, mean: np.ndarray, sd: np.ndarray, size: int | float) -> Moments:
        """Of normal laws, from so many independent draws."""
        one = np.ones(len(sd))
        freedom = np.clip(size / _PER_FREEDOM, 1.0, _FREEDOM)
        errors = sd / np.sqrt(size), one / np.sqrt(2 * size)
        return cls(mean, sd, *errors, np.sqrt(2) * one, freedom * one)

    def under(self, other: Moments) -> tuple[np.ndarray, np.ndarray]:
        """Standard errors of means and log sds if another's law is the same."""
        with np.errstate(divide="ignore", invalid="ignore"):
            wider = np.where(self.sd > 0, np.maximum(1.0, other.sd / self.sd), 1.0)
            known = self.roughness > 0
            rougher = np.where(known, np.maximum(1.0, other.roughness / self.roughness), 1.0)
        return self.mean_error * wider, self.log_sd_error * rougher


def _constant(values: np.ndarray) -> np.ndarray:
    """Which parameters of `(chain, draw, parameter)` vary by rounding only."""
    apart = np.ptp(values, axis=(0, 1))
    with np.errstate(over="ignore"):
        single = (values == values.astype(np.float32)).all(axis=(0, 1))
    precision = np.where(single, np.finfo(np.float32).eps, np.finfo(float).eps)
    return apart <= _ROUNDING * precision * np.abs(values).max(axis=(0, 1), initial=0.0)


def _too_short(values: np.ndarray) -> bool:
    chains, length = values.shape[:2]
    few, many = _SHORT
    return chains > 1 and length < min(max(2 * chains, few), many)


def _sizes(entries: np.ndarray, ess: float | None, still: np.ndarray) -> np.ndarray:
    from arviz_stats.base import array_stats  # slow to import

    if ess is not None:
        return np.full(entries.shape[-1], ess)
    sizes = np.zeros(entries.shape[-1])
    moving = entries[..., ~still]
    if _too_short(entries):
        between = moving.mean(axis=1).var(axis=0, ddof=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            sizes[~still] = np.nan_to_num(len(entries) * moving.var(axis=(0, 1)) / between)
    elif not still.all():
        sizes[~still] = array_stats.ess(np.moveaxis(moving, -1, 0), method="mean")
    return sizes


class Agreement(NamedTuple):
    """How one method's moments lie to the reference's.

    Attributes:
        table: one row for each parameter that varies: `mean_difference` in reference sds,
            `mean_z`, `log_sd_difference`, `log_sd_z`, what could have been seen, the degrees of
            freedom, and whether normal scores were compared.
        mean_p: p-value of the means' errors together; NaN where there is no parameter.
        log_sd_p: of log sds.
    """

    table: pd.DataFrame
    mean_p: float
    log_sd_p: float

    def worst(self, what: str) -> tuple[float, str]:
        """The error that is least by chance, and its parameter; `what` is `mean` or `log_sd`."""
        z = self.table[f"{what}_z"].to_numpy()
        if np.isnan(z).all():
            return np.nan, ""
        chance = stats.t.logsf(np.abs(z), self.table["freedom"].to_numpy())
        at = int(np.nanargmin(np.where(np.isnan(z), np.nan, chance)))
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
    freedom = np.minimum(found.freedom, reference.freedom)
    errors = zip(found.under(reference), reference.under(found), strict=True)
    error, spread = (np.hypot(mine, theirs) for mine, theirs in errors)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(reference.sd > 0, reference.sd, found.sd)
        apart = found.mean - reference.mean
        mean_z = np.where(apart == 0, 0.0, apart / error)
        ratio = np.log(found.sd) - np.log(reference.sd)
        log_sd_z = np.where(np.isinf(spread), 0.0, _sided(ratio, found, reference) / spread)
    one_is_constant = np.isinf(ratio)
    log_sd_z[one_is_constant] = ratio[one_is_constant]
    columns = {
        "mean_difference": apart / scale,
        "mean_error": error / scale,
        "mean_z": mean_z,
        "log_sd_difference": ratio,
        "log_sd_error": spread,
        "log_sd_z": log_sd_z,
        "freedom": freedom,
        "ranks": heavy[varies],
    }
    table = pd.DataFrame(columns, index=pd.Index(names, name="parameter"))
    return Agreement(table, *(_p_value(columns[f"{what}_z"], freedom) for what in WHATS))


def _sided(ratio: np.ndarray, found: Moments, reference: Moments) -> np.ndarray:
    """Log ratios of sds, or half of 1 - ratio^2 where the sd that is known less is smaller."""
    shrunk = -np.sign(ratio) * np.expm1(-2 * np.abs(ratio)) / 2
    lesser = np.where(found.freedom < reference.freedom, ratio < 0, ratio > 0)
    return np.where(lesser | (found.freedom == reference.freedom), shrunk, ratio)


def _p_value(z: np.ndarray, freedom: np.ndarray) -> float:
    if np.isnan(z).all():
        return np.nan
    return float(min(1.0, np.nanmin(2 * stats.t.sf(np.abs(z), freedom)) * len(z)))


def critical(freedom: np.ndarray, level: float) -> np.ndarray:
    """Errors in standard errors beyond which one parameter has a p-value below the level."""
    return stats.t.isf(level / 2 / max(len(freedom), 1), freedom)


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
