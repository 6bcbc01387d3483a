"""One word on whether draws can be trusted, with reasons and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import numpy as np
from rich.text import Text

from quincunx.inference.diagnostics.convergence import Convergence
from quincunx.inference.method import Kind

Status = Literal["ok", "suspect", "failed"]
_ORDER: tuple[Status, ...] = ("ok", "suspect", "failed")
_OVERFLOW = 0.05  # share of the steps
_COMPARE = "Compare with an exact method: `qx.compare({'this': fit}, reference=another_fit)`."
_HEAD = "verdict: "
_STYLE = {"ok": "green", "suspect": "yellow", "failed": "red"}


class Finding(NamedTuple):
    """One thing that is wrong, how bad it is and what to do about it."""

    status: Status
    reason: str
    advice: str


class Verdict(NamedTuple):
    """Whether draws can be trusted.

    Attributes:
        status: `ok`, `suspect` (use with care, after reading the reasons) or `failed`.
        reasons: what was found, worst first.
        advice: what to do, in the order of the reasons.
        outcome: why the run ended before its plan, empty where it did not.
    """

    status: Status
    reasons: tuple[str, ...]
    advice: tuple[str, ...]
    outcome: str = ""

    @classmethod
    def of(cls, findings: Iterable[Finding], outcome: str = "") -> Verdict:
        """The verdict that some findings amount to."""
        ranked = sorted(findings, key=lambda finding: -_ORDER.index(finding.status))
        status = ranked[0].status if ranked else "ok"
        advice = tuple(dict.fromkeys(finding.advice for finding in ranked))
        return cls(status, tuple(finding.reason for finding in ranked), advice, outcome)

    def __str__(self) -> str:
        lines = [f"{_HEAD}{self.status}"]
        if self.outcome:
            lines.append(f"  . The run stopped early: {self.outcome}.")
        lines += [f"  - {reason}" for reason in self.reasons]
        lines += [f"  > {advice}" for advice in self.advice]
        return "\n".join(lines)

    def __rich__(self) -> Text:
        text, start = Text(str(self)), len(_HEAD)
        text.stylize(f"bold {_STYLE[self.status]}", start, start + len(self.status))
        return text


def worst(values: np.ndarray, names: list[str], *, largest: bool) -> tuple[float, str]:
    """The extreme value and the parameter that has it."""
    index = int(np.argmax(values) if largest else np.argmin(values))
    return float(values[index]), names[index]


def _movement(found: Convergence, free: np.ndarray) -> list[Finding]:
    findings = []
    if not found.finite.all():
        name = found.names[int(np.argmin(found.finite))]
        reason = f"'{name}' has draws that are NaN or infinite."
        advice = "Look for overflow or division by zero in the model near its extremes."
        findings.append(Finding("failed", reason, advice))
    stuck = found.stuck & free
    if stuck.any():
        name = found.names[int(np.argmax(stuck))]
        reason = f"A chain never moved: '{name}' is constant in it, so its ESS is 0."
        advice = "Check that the log density is finite and proper; try another `init` or method."
        findings.append(Finding("failed", reason, advice))
    return findings


def _mixing(found: Convergence, free: np.ndarray, chains: int) -> list[Finding]:
    findings = []
    moving = free & found.finite & ~found.stuck
    if not moving.any():
        return findings
    names = [name for name, keep in zip(found.names, moving, strict=True) if keep]
    r_hat, at = worst(found.r_hat[moving], names, largest=True)
    more = "Run longer (`num_warmup`, `num_samples`), or reparametrise the model."
    if chains > 1 and (r_hat > 1.05 or not np.isfinite(r_hat)):
        reason = f"The chains disagree: R-hat is {r_hat:.3g} for '{at}' (above 1.05)."
        findings.append(Finding("failed", reason, more))
    elif chains > 1 and r_hat > 1.01:
        reason = f"R-hat is {r_hat:.3f} for '{at}' (above 1.01)."
        findings.append(Finding("suspect", reason, more))
    for label, values in (("Bulk", found.ess_bulk), ("Tail", found.ess_tail)):
        ess, at = worst(values[moving], names, largest=False)
        if ess < 100 * chains:
            status: Status = "failed" if ess < 10 * chains else "suspect"
            reason = f"{label} ESS is {ess:.0f} for '{at}' (below {100 * chains}, 100 a chain)."
            findings.append(Finding(status, reason, more))
    if chains < 2:
        reason = "One chain cannot show whether chains agree."
        findings.append(Finding("suspect", reason, "Run at least 4 chains."))
    return findings


def _hamiltonian(
    stats: Mapping[str, np.ndarray], diverged: tuple[int, int] | None, kind: Kind
) -> list[Finding]:
    findings = []
    count, total = diverged or (int(np.sum(stats["diverging"])), stats["diverging"].size)
    if count:
        status: Status = "suspect" if count < 0.1 * total else "failed"
        reason = f"{count} of {total} transitions diverged: parts of the posterior are missed."
        advice = "Raise `target_accept` (0.95, 0.99), or reparametrise (non-centre) the model."
        if kind is not Kind.EXACT:
            reason = f"The step of {count} of {total} transitions was not finite and left out."
            advice = "Use a smaller `step_size`, or leave it out to have it tuned."
        findings.append(Finding(status, reason, advice))
    deep = stats.get("reached_max_tree_depth")
    if deep is not None and np.mean(deep) > 0.05:
        share = 100 * float(np.mean(deep))
        reason = f"{share:.0f} % of the trajectories were cut at the maximal tree depth."
        advice = "Try `mass_matrix='dense'`, rescale the parameters, or raise `max_tree_depth`."
        findings.append(Finding("suspect", reason, advice))
    energy = stats.get("energy")
    if energy is not None and energy.shape[1] > 3:
        jumps = np.mean(np.diff(energy, axis=1) ** 2, axis=1)
        bfmi = float(np.min(jumps / np.maximum(np.var(energy, axis=1), 1e-300)))
        if bfmi < 0.3:
            reason = f"E-BFMI is {bfmi:.2f} (below 0.3): the energy is explored slowly."
            advice = "Reparametrise (non-centre) the model; heavy tails need another method."
            findings.append(Finding("suspect", reason, advice))
    return findings


def _slicing(stats: Mapping[str, np.ndarray]) -> list[Finding]:
    capped = stats.get("shrink_capped")
    if capped is None or not np.mean(capped) > 1e-3:
        return []
    share = 100 * float(np.mean(capped))
    reason = f"In {share:.2g} % of the transitions no point of the slice was found (above 0.1 %)."
    advice = "Look for a density that is not finite nearly everywhere, or raise `max_shrinks`."
    return [Finding("failed", reason, advice)]


def _mirrored(stats: Mapping[str, np.ndarray]) -> list[Finding]:
    overflow = stats.get("dual_overflow")
    if overflow is None or not np.mean(overflow) > _OVERFLOW:
        return []
    share = 100 * float(np.mean(overflow))
    reason = f"In {share:.2g} % of the steps the dual point had no position that can be computed."
    advice = "Use a smaller `step_size`, or a `geometry` whose dual is the whole line ('barrier')."
    return [Finding("suspect", reason, advice)]


def judge(
    found: Convergence,
    stats: Mapping[str, np.ndarray],
    free: np.ndarray,
    kind: Kind,
    outcome: str = "",
    diverged: tuple[int, int] | None = None,
    bias: Iterable[Finding] | None = None,
) -> Verdict:
    """Judge the draws of Markov chains.

    Args:
        found: diagnostics of the parameters.
        stats: sample statistics by name, each `(chain, draw)`.
        free: which parameters are random; a deterministic quantity may rightly be constant.
        kind: what the method promises; only an exact method can be `ok` from these alone.
        outcome: why the run ended before its plan, if it did.
        diverged: how many of how many draws diverged, where `stats` are of some draws only.
        bias: what the bias report says, for a biased method that has one.
    """
    chains, length = stats["lp"].shape
    if not length:
        advice = "Let the run get beyond its warm-up."
        return Verdict.of([Finding("failed", "There are no draws yet.", advice)], outcome)
    findings = _movement(found, free) + _mixing(found, free, chains)
    findings += _hamiltonian(stats, diverged, kind) + _slicing(stats) + _mirrored(stats)
    if not np.isfinite(stats["lp"]).all():
        reason = "The log density was not finite at some draws."
        findings.append(Finding("failed", reason, "Look for NaN in the model's terms."))
    if kind is Kind.BIASED and bias is not None:
        findings += bias
    elif kind is not Kind.EXACT:
        reason = f"The method is {kind.value}: chains that agree may agree on the wrong law."
        findings.append(Finding("suspect", reason, _COMPARE))
    return Verdict.of(findings, outcome)
