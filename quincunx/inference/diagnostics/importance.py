r"""What weights say of weighted draws.

For draws x_i with weights w_i = p(x_i) / q(x_i), p not normalised,

    Z ~ mean w,    error of log Z ~ sd(w) / (sqrt(n) mean w),    ESS = (sum w)^2 / sum w^2,
    ELBO = mean log w <= log Z.

Averages are taken with weights whose largest are smoothed by a generalised Pareto law fitted to
them; its shape k says how many moments the weights have. Up to min(1 - 1 / log10 n, 0.7) they can
be relied on; above 1 the mean weight itself has no finite error.

None of these figures sees what q never reaches. From exact draws x of p,

    EUBO = mean log w >= log Z,

which does: it is large where q misses a part of p.

Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling, JMLR 25:72.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quincunx.inference.diagnostics.lineages import relative_variances
from quincunx.inference.diagnostics.verdict import Finding, Verdict

_RELIABLE, _USELESS = 0.7, 1.0
_LEAST = 5  # weights of a tail that a Pareto law is fitted to
CAVEAT = (
    "Modes may be missing: weights are blind to what the sampler never reaches. "
    "Nothing here can see them."
)
_COMPARE = "Compare with another method, from overdispersed starts."


class Evidence(NamedTuple):
    """Logarithm of the normalising constant.

    Attributes:
        value: the estimate.
        error: its standard error.
    """

    value: float
    error: float


class Importance(NamedTuple):
    """What weights say.

    Attributes:
        log_evidence: the evidence.
        ess: effective sample size, as if draws were independent.
        share: effective sample size, as a share of the draws.
        pareto_k: shape of the law of the largest weights; the worst of all stages for a method
            that resamples.
        largest: the largest weight's share of all.
        elbo: lower bound of the log evidence; NaN for dependent draws.
        nonfinite: draws whose weight is NaN or infinite.
    """

    log_evidence: Evidence
    ess: float
    share: float
    pareto_k: float
    largest: float
    elbo: float
    nonfinite: int


class Bounds(NamedTuple):
    """What weights of paths both ways say of the log evidence.

    Attributes:
        lower: the ELBO with its standard error.
        upper: the EUBO with its standard error.
        share: effective sample size of the sampler's draws, as a share of them, from paths back
            from the posterior; one where its weights are even.
    """

    lower: Evidence
    upper: Evidence
    share: float


def bounds(forwards: np.ndarray, backwards: np.ndarray) -> Bounds:
    """Bounds from log weights of paths, and of paths back from draws of the posterior."""

    def mean(log_weight: np.ndarray) -> Evidence:
        values = np.asarray(log_weight, float)
        return Evidence(float(values.mean()), float(values.std(ddof=1) / values.size**0.5))

    values = np.asarray(backwards, float)
    log_share = 2 * np.log(values.size) - _log_sum(values) - _log_sum(-values)
    return Bounds(mean(forwards), mean(backwards), float(np.exp(log_share)))


def pareto_smoothed(log_weight: np.ndarray) -> tuple[np.ndarray, float]:
    """Normalised log weights with a smoothed tail, and the shape of the tail.

    Args:
        log_weight: `(n,)`; draws with log weight -inf keep it, those with NaN get it.

    Returns:
        Log weights whose exponentials sum to one, and k; k is infinite where fewer than five
        draws have a weight, and minus infinity where all weights are the same.
    """
    flat = np.asarray(log_weight, float).reshape(-1)
    kept = np.isfinite(flat)
    smoothed = np.full(flat.shape, -np.inf)
    if not kept.any():
        return smoothed, np.inf
    values = flat[kept]
    k = np.inf
    if np.ptp(values) < 1e-12:
        values, k = np.zeros_like(values), -np.inf
    elif min(0.2 * values.size, 3 * values.size**0.5) >= _LEAST:
        from arviz_stats.base import array_stats  # slow to import

        try:
            with np.errstate(all="ignore"):  # a fit that comes to nothing gives k = NaN
                fitted, found = array_stats.psislw(-values)
            k = float(found)
            if np.isfinite(fitted).all():  # it is not where many weights are the tail's least one
                values = fitted
        except ValueError:  # all weights of the tail are the same, or nothing beside the largest
            k = np.inf if effective_size(values) < _LEAST else -np.inf
    smoothed[kept] = values - _log_sum(values)
    return smoothed.reshape(np.shape(log_weight)), k


def effective_size(log_weight: np.ndarray) -> float:
    """(sum w)^2 / sum w^2; zero where no weight is finite."""
    flat = _finite(log_weight)
    return float(np.exp(2 * _log_sum(flat) - _log_sum(2 * flat))) if flat.size else 0.0


def log_evidence(log_weight: np.ndarray, origin: np.ndarray | None = None) -> Evidence:
    """Log of the mean weight, with the error of the delta method.

    Args:
        log_weight: `(batch, n)`.
        origin: as in `diagnose`; the error is then from lineages.
    """
    values = np.where(np.isfinite(log_weight), log_weight, -np.inf).astype(float)
    if not np.isfinite(values).any():
        return Evidence(-np.inf, np.nan)
    value = _log_sum(values.reshape(-1)) - np.log(values.size)
    if values.size < 2:
        return Evidence(float(value), np.nan)
    if origin is None:
        relative = np.std(np.exp(values - value), ddof=1) / values.size**0.5
        return Evidence(float(value), float(relative))
    share = np.exp([_log_sum(batch) for batch in values] - value) / values.size
    variance = float(share**2 @ relative_variances(values, origin))
    return Evidence(float(value), variance**0.5)


def diagnose(
    log_weight: np.ndarray, tempered: np.ndarray | None = None, origin: np.ndarray | None = None
) -> Importance:
    """All figures.

    Args:
        log_weight: `(batch, n)`.
        tempered: log weights before each resampling, `(batch, stage, n)`, NaN where there was
            none.
        origin: the particle of the start of its batch that each draw descends from, `(batch, n)`;
            `None` where draws are independent.
    """
    smoothed, k = pareto_smoothed(log_weight)
    if tempered is not None:
        stages = tempered.reshape(-1, tempered.shape[-1])
        shapes = [pareto_smoothed(stage)[1] for stage in stages if np.isfinite(stage).any()]
        k = float(np.max([k, *shapes]))
    ess = effective_size(log_weight)
    finite = np.isfinite(log_weight)
    return Importance(
        log_evidence(log_weight, origin),
        ess,
        ess / log_weight.size,
        k,
        float(np.exp(smoothed.max())) if finite.any() else 1.0,
        float(np.mean(log_weight)) if origin is None and finite.all() else np.nan,
        int(np.sum(np.isnan(log_weight) | (log_weight == np.inf))),
    )


def equal_weights(log_weight: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices of as many draws with equal weights, by systematic resampling, in random order."""
    flat = np.asarray(log_weight, float).reshape(-1)
    cumulative = np.cumsum(np.exp(flat - flat.max()))
    points = (np.arange(flat.size) + rng.uniform()) / flat.size * cumulative[-1]
    return rng.permutation(np.minimum(np.searchsorted(cumulative, points), flat.size - 1))


def judge_weights(
    found: Importance,
    size: int,
    outcome: str = "",
    skipped: int = 0,
    least: tuple[float, str] = (np.inf, ""),
) -> Verdict:
    """Judge weighted draws.

    Args:
        found: what their weights say.
        size: their number.
        least: of draws that were resampled, the smallest effective size, and its parameter.
        outcome: why the work ended before its plan, if it did.
        skipped: paths that were left out of training because they were not finite.
    """
    findings = [Finding("ok", CAVEAT, _COMPARE)]
    if not np.isfinite(found.log_evidence.value):
        reason = "No draw has a finite weight."
        advice = "Check that the log density is finite; give the sampler a wider start."
        return Verdict.of([Finding("failed", reason, advice)], outcome)
    more = "Train longer, let it resample and move (`smc`), or use another method."
    reliable = min(1 - 1 / np.log10(max(size, 11)), _RELIABLE)
    if found.pareto_k > _USELESS or np.isnan(found.pareto_k):
        reason = f"Pareto k is {found.pareto_k:.2f} (above 1): the weights have no finite mean."
        findings.append(Finding("failed", reason, more))
    elif found.pareto_k > reliable:
        reason = f"Pareto k is {found.pareto_k:.2f} (above {reliable:.2f}): few draws weigh most."
        findings.append(Finding("suspect", reason, more))
    if found.ess < 100:
        status = "failed" if found.ess < 10 else "suspect"
        reason = f"The weights leave {found.ess:.0f} effective draws (below 100)."
        findings.append(Finding(status, reason, "Draw more, or train longer."))
    elif least[0] < 100:
        status = "failed" if least[0] < 10 else "suspect"
        reason = f"Draws descend from few particles: for '{least[1]}' they are worth "
        reason += f"{least[0]:.0f} independent ones (below 100)."
        findings.append(Finding(status, reason, "Draw more, or raise `moves`."))
    if found.nonfinite:
        reason = f"The log density was NaN or infinite at {found.nonfinite} draws, which count 0."
        findings.append(Finding("suspect", reason, "Look for NaN in the model's terms."))
    if skipped:
        reason = f"{skipped} paths in training were not finite and left out."
        findings.append(Finding("suspect", reason, "Look for NaN in the model's terms."))
    return Verdict.of(findings, outcome)


def _finite(log_weight: np.ndarray) -> np.ndarray:
    flat = np.asarray(log_weight, float).reshape(-1)
    return flat[np.isfinite(flat)]


def _log_sum(values: np.ndarray) -> float:
    top = values.max()
    if not np.isfinite(top):
        return float(top)
    return float(top + np.log(np.sum(np.exp(values - top))))
