"""One row of a comparison: what can be said of one method's draws."""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import arviz_base
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array

from quincunx.engine.density import Density
from quincunx.engine.errors import listing
from quincunx.inference.comparison.standard import Sample, Standard
from quincunx.inference.diagnostics.agreement import (
    Agreement,
    Moments,
    agreement,
    heavy_tailed,
    normal_scores,
)
from quincunx.inference.diagnostics.discrepancy import SteinTest, Whitening, stein_test
from quincunx.inference.diagnostics.independence import BLOCK
from quincunx.inference.diagnostics.scores import log_density_and_scores
from quincunx.inference.diagnostics.transport import TransportTest, transport_test
from quincunx.inference.fit import Fit
from quincunx.inference.method import lacks_gradient
from quincunx.inference.weighted import is_weighted

LEVEL = 0.01
MOST_TESTS = 4  # of one method
_RESOLVED = 0.5  # posterior sds in which a mean must be known, and alike of log sds
_LEAST = 16 * BLOCK
_MOST_SCORES = 500
_MOST_ROWS, _MOST_DRAWS = 2000, 1000
AGREES, DIFFERS, UNSURE, REFERENCE = "agrees", "differs", "cannot tell", "reference"


class Predictive(NamedTuple):
    """Expected log predictive density by observation, from leave-one-out cross-validation."""

    values: np.ndarray

    def minus(self, other: Predictive) -> tuple[float, float]:
        """The difference of the sums and its standard error."""
        apart = self.values - other.values
        return float(apart.sum()), float(apart.std() * np.sqrt(apart.size))


class Measures(NamedTuple):
    """What was found of one method.

    Attributes:
        row: figures by column, NaN where one would mean nothing.
        agreed: errors of parameters against the reference; `None` where none could be compared.
        moved: the distance to the reference; `None` where it could not be had.
        found: the kernel Stein discrepancy; `None` where it could not be had.
        is_reference: whether the method is the one to judge by.
    """

    row: dict[str, Any]
    agreed: Agreement | None
    moved: TransportTest | None
    found: SteinTest | None
    is_reference: bool

    @property
    def p_values(self) -> dict[str, float]:
        """By test, of those that could be made."""
        p_values = {}
        if self.agreed is not None:
            p_values |= {"mean": self.agreed.mean_p, "log_sd": self.agreed.log_sd_p}
        if self.moved is not None:
            p_values["transport"] = self.moved.p_value
        if self.found is not None:
            p_values["stein"] = self.found.p_value
        return {name: p for name, p in p_values.items() if not np.isnan(p)}

    @property
    def errors(self) -> pd.DataFrame:
        """By parameter, against the reference; empty where there is none."""
        return pd.DataFrame() if self.agreed is None else self.agreed.table


def against(sample: Sample, standard: Standard) -> Agreement | None:
    """Errors of the parameters that both have; `None` where there is none."""
    known = set(standard.names)
    names = [name for name in sample.names if name in known]
    if not names or sample.values is None:
        return None
    mine = sample.values[..., [sample.names.index(name) for name in names]]
    if not np.isfinite(mine).all():
        return None
    if standard.sample is None:
        found, heavy = Moments.of(mine, sample.ess), np.zeros(len(names), bool)
        return agreement(names, found, standard.moments(names), heavy)
    if standard.sample.values is None:
        return None
    theirs = standard.sample.values[..., [standard.sample.names.index(name) for name in names]]
    pooled = np.concatenate([v.reshape(-1, len(names)) for v in (mine, theirs)])
    heavy = heavy_tailed(pooled)
    if heavy.any():
        mine, theirs = mine.copy(), theirs.copy()
        for column in np.flatnonzero(heavy):
            mine[..., column], theirs[..., column] = normal_scores(
                mine[..., column], theirs[..., column]
            )
    found, reference = Moments.of(mine, sample.ess), Moments.of(theirs, standard.sample.ess)
    return agreement(names, found, reference, heavy)


def stein(
    sample: Sample,
    density: Density | None,
    white: Whitening | None,
    level: float,
    rng: np.random.Generator,
) -> SteinTest | None:
    """Kernel Stein discrepancy; `None` where it cannot be had."""
    if density is None or sample.z is None or lacks_gradient(density) is not None:
        return None
    weight = None
    if sample.particles is not None and sample.ess is not None:
        found = sample.particles.some(_MOST_SCORES, rng)
        z, weight, block = found.z, found.weight, np.unique(found.descent, return_inverse=True)[1]
        enough = min(sample.ess, len(np.unique(block))) >= _LEAST
    else:
        enough = len(sample.kept) >= _LEAST
        z = _part(sample) if enough else np.zeros((0, 0))
        block = np.arange(len(z)) // BLOCK
    if not enough:
        return None
    white = Whitening.of(sample.z.reshape(-1, z.shape[-1])) if white is None else white
    score = np.asarray(
        jax.device_get(log_density_and_scores(density.unconstrained, jnp.asarray(z))[1])
    )
    if not np.isfinite(score).all():
        return None
    return stein_test(white.positions(z), white.scores(score), block, level, rng, weight)


def _part(sample: Sample) -> np.ndarray:
    """Thinned positions, whole blocks of all chains, as many as scores are computed for."""
    z = sample.independent
    blocks = z.reshape(-1, BLOCK, z.shape[-1])
    most = _MOST_SCORES // BLOCK
    chosen = np.unique(np.linspace(0, len(blocks) - 1, min(len(blocks), most)).astype(int))
    return blocks[chosen].reshape(-1, z.shape[-1])


def transport(
    sample: Sample,
    standard: Standard,
    white: Whitening | None,
    level: float,
    rng: np.random.Generator,
) -> TransportTest | None:
    """Sliced Wasserstein distance to the reference; `None` where it cannot be had."""
    theirs = standard.sample
    if white is None or theirs is None or theirs.z is None or sample.z is None:
        return None
    if sample.z.shape[-1] != theirs.z.shape[-1]:
        return None
    count = min(len(sample.kept), len(theirs.kept), _MOST_SCORES) // BLOCK * BLOCK
    if count < _LEAST:
        return None

    def chosen(sample: Sample) -> np.ndarray:
        blocks = white.positions(sample.independent).reshape(-1, BLOCK, len(white.centre))
        picked = np.linspace(0, len(blocks) - 1, count // BLOCK).astype(int)
        return blocks[picked].reshape(-1, len(white.centre))

    return transport_test(chosen(sample), chosen(theirs), BLOCK, level, rng)


@eqx.filter_jit
def _pointwise(density: Density, values: Mapping[str, Any]) -> dict[str, Array]:
    return jax.lax.map(density.pointwise_at, values, batch_size=64)


def predictive(fit: Fit, density: Density | None) -> Predictive | None:
    """Predictive accuracy; `None` without observations, with too many, or where LOO is no use.

    Weighted draws are taken as they were resampled to equal weights, worth their effective size.
    """
    from arviz_stats import loo  # slow to import

    if density is None or density.is_on_disk:
        return None
    observed = density.program.role("observed")
    rows = sum(int(np.prod(site.shape[: len(site.shape) - site.event_dim])) for site in observed)
    posterior = fit.posterior
    size = fit.worth()[0] if is_weighted(fit.tree) else None
    if size is not None and not size >= _LEAST:
        return None
    if not 1 < rows <= _MOST_ROWS or posterior.sizes["draw"] < 4:
        return None
    if any(site.name not in posterior for site in density.program.latents):
        return None
    stride = -(-posterior.sizes["chain"] * posterior.sizes["draw"] // _MOST_DRAWS)
    draws = {
        site.name: posterior[site.name].values[:, ::stride] for site in density.program.latents
    }
    shape = next(iter(draws.values())).shape[:2]
    flat = {name: value.reshape(-1, *value.shape[2:]) for name, value in draws.items()}
    found = jax.device_get(_pointwise(density, flat))
    every = np.concatenate([np.asarray(v).reshape(*shape, -1) for v in found.values()], axis=-1)
    if not np.isfinite(every).all():
        return None
    tree = arviz_base.from_dict({"posterior": draws, "log_likelihood": {"observed": every}})
    worth = None if size is None else min(size / math.prod(shape), 1.0)
    with warnings.catch_warnings():
        for kind in (UserWarning, RuntimeWarning):  # told by `None`
            warnings.simplefilter("ignore", kind)
        result: Any = loo(tree, pointwise=True, reff=worth)
    values = np.asarray(result.elpd_i).reshape(-1)
    return None if result.warning or not np.isfinite(values).all() else Predictive(values)


def figures(fit: Fit) -> dict[str, Any]:
    """Figures that need no reference: mixing, weights and costs."""
    found, free = fit.convergence, fit.free()
    bulk, tail = (part[free].min(initial=np.inf) for part in (found.ess_bulk, found.ess_tail))
    bulk, tail = (float(x) if np.isfinite(x) else np.nan for x in (bulk, tail))
    weighted = is_weighted(fit.tree)
    row: dict[str, Any] = {
        "kind": fit.kind.value,
        "verdict": fit.verdict.status,
        "ess_bulk": bulk,
        "ess_tail": tail,
        "r_hat": np.nan if weighted else float(found.r_hat[free].max(initial=-np.inf)),
        "pareto_k": np.nan,
        "log_evidence": np.nan,
        "log_evidence_error": np.nan,
    }
    if not fit.posterior.sizes["draw"] or row["r_hat"] == -np.inf:
        row["r_hat"] = np.nan
    if weighted:
        found = fit.importance
        row["pareto_k"] = found.pareto_k
        row["log_evidence"], row["log_evidence_error"] = found.log_evidence
    costs = fit.costs
    for name, cost in (
        ("gradient", costs.get("gradients", 0)),
        ("evaluation", costs.get("evaluations", 0)),
        ("pass", costs.get("data_passes", 0)),
        ("second", costs.get("sample_seconds", 0)),
    ):
        row[f"ess_per_{name}"] = bulk / cost if cost else np.nan
    row["gradients"] = costs.get("gradients", np.nan)
    row["evaluations"] = costs.get("evaluations", np.nan)
    row["data_passes"] = costs.get("data_passes", np.nan)
    row["compile_seconds"] = costs.get("compile_seconds", np.nan)
    row["sample_seconds"] = costs.get("sample_seconds", np.nan)
    row["bytes"] = costs.get("bytes", np.nan)
    return row


def measure(
    fit: Fit,
    density: Density | None,
    standard: Standard | None,
    white: Whitening | None,
    accuracy: Predictive | None,
    name: str,
    level: float,
) -> Measures:
    """Everything that is found of one method.

    Args:
        fit: its fit.
        density: the model, where there is one.
        standard: the reference, if any.
        white: coordinates for distances.
        accuracy: the reference's predictive accuracy.
        name: the method's name among the compared.
        level: the smallest p-value that has to be told from smaller ones.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    row, is_reference = figures(fit), standard is not None and standard.name == name
    sample = Sample.of_fit(fit, density)
    agreed = None if standard is None or is_reference else against(sample, standard)
    moved = None
    if standard is not None and not is_reference:
        moved = transport(sample, standard, white, level, rng)
    found = stein(sample, density, white, level, rng)
    mean, at_mean = (np.nan, "") if agreed is None else agreed.worst("mean")
    spread, at_sd = (np.nan, "") if agreed is None else agreed.worst("log_sd")
    row |= {
        "mean_error": mean,
        "mean_parameter": at_mean,
        "log_sd_error": spread,
        "log_sd_parameter": at_sd,
        "wasserstein_ratio": np.nan if moved is None else moved.ratio,
        "wasserstein_p": np.nan if moved is None else moved.p_value,
        "ksd": np.nan if found is None else found.ksd,
        "ksd_p": np.nan if found is None else found.p_value,
        "elpd_difference": np.nan,
        "elpd_error": np.nan,
    }
    if accuracy is not None and not is_reference:
        own = predictive(fit, density)
        if own is not None and own.values.shape == accuracy.values.shape:
            row["elpd_difference"], row["elpd_error"] = own.minus(accuracy)
    return Measures(row, agreed, moved, found, is_reference)


def decide(
    fit: Fit, standard: Standard | None, measures: Measures, tests: int
) -> tuple[str, tuple[str, ...]]:
    """The one word, and why.

    It is *differs* where one of the tests rejects at the 1 % level of all that are made in the
    comparison together, and *agrees* only where a difference that matters would have been seen.

    Args:
        fit: the method's fit.
        standard: the reference, if any.
        measures: what was found.
        tests: how many p-values there are in the comparison, of all methods.
    """
    agreed, moved, found = measures.agreed, measures.moved, measures.found
    rejected = {name for name, p in measures.p_values.items() if p * tests < LEVEL}
    if standard is not None and standard.status == "failed":
        rejected &= {"stein"}
    reasons = []
    for what, label in (("mean", "mean"), ("log_sd", "log sd")):
        if what in rejected and agreed is not None:
            z, name = agreed.worst(what)
            index = list(agreed.table.index).index(name)
            size = agreed.table[f"{what}_difference"].to_numpy()[index]
            unit = " posterior sds" if what == "mean" else ""
            reasons.append(
                f"The {label} of '{name}' is off by {size:+.2g}{unit} ({z:+.1f} standard errors)."
            )
    if "transport" in rejected and moved is not None:
        reasons.append(
            f"The squared sliced Wasserstein distance to the reference is {moved.ratio:.1f} times "
            f"what chance gives (p = {moved.p_value:.1g})."
        )
    if "stein" in rejected and found is not None:
        reasons.append(
            f"The kernel Stein discrepancy is {found.ksd:.2g}, beyond chance "
            f"(p = {found.p_value:.1g}): the draws are not of this density."
        )
    if reasons:
        return DIFFERS, tuple(reasons)
    if measures.is_reference:
        return REFERENCE, ()
    if fit.verdict.status == "failed":
        ended = f" It ended early: {fit.verdict.outcome}." if fit.verdict.outcome else ""
        return UNSURE, (f"The fit has failed: {fit.verdict.reasons[0]}{ended}",)
    if standard is None:
        return UNSURE, ("There is no reference to compare with.",)
    if standard.status == "failed":
        return UNSURE, (f"The reference itself has failed.{_advice(standard.others)}",)
    if agreed is None or agreed.table.empty:
        return UNSURE, ("No parameter of the reference could be compared.",)
    return _resolved(agreed, tests)


def _advice(others: tuple[str, ...]) -> str:
    """What to judge by where the reference has failed."""
    if not others:
        return ""
    call = f"`qx.compare(compared.fits, reference={others[0]!r})`"
    rest = f" Others are {listing(others[1:])}; where they differ, some have missed a mode."
    return f" Judge by a fit that has not: {call}.{rest if len(others) > 1 else ''}"


def _resolved(agreed: Agreement, tests: int) -> tuple[str, tuple[str, ...]]:
    """Whether a difference that matters would have been seen."""
    from scipy import stats

    names = list(agreed.table.index)
    critical = float(stats.t.isf(LEVEL / tests / 2 / len(names), 50))
    for what, label in (("mean", "mean"), ("log_sd", "log sd")):
        visible = critical * np.nan_to_num(agreed.table[f"{what}_error"].to_numpy(), nan=np.inf)
        at = int(np.argmax(visible))
        if visible[at] > _RESOLVED:
            unit = " posterior sds" if what == "mean" else ""
            reason = "Too few effective draws, of the fit or of the reference: the "
            reason += f"{label} of '{names[at]}' could be off by {visible[at]:.2g}{unit} and it "
            return UNSURE, (reason + "would not show.",)
    return AGREES, ()
