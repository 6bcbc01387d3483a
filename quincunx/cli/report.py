"""What the command line prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from quincunx import models
from quincunx.engine.errors import QuincunxError
from quincunx.inference.comparison.result import Comparison
from quincunx.inference.fit import Fit


def prepare(out: Path, suffixes: Sequence[str] = (".nc", ".zarr")) -> None:
    """Make sure, before anything is computed, that a file can be written to `out`.

    Raises:
        QuincunxError: another suffix, or a folder that cannot be written to.
    """
    if out.suffix not in suffixes:
        raise QuincunxError(f"Cannot write to '{out}': the suffix must be {' or '.join(suffixes)}.")
    folder(out.parent)


def folder(path: Path) -> None:
    """Make a folder unless it exists.

    Raises:
        QuincunxError: it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QuincunxError(f"Cannot make the folder '{path}': {error.strerror}.") from error
    if not os.access(path, os.W_OK):
        raise QuincunxError(f"The folder '{path}' cannot be written to.")


def show(compared: Comparison) -> None:
    """Print a comparison, in colours and at its width where there is a terminal."""
    if sys.stdout.isatty():
        Console().print(compared)
    else:
        print(str(compared).rstrip())


def table(fit: Fit, rows: int, names: Sequence[str] | None = None) -> str:
    """The summary of some variables, or of all, cut after so many rows."""
    return _cut(fit.summary(var_names=names if names is None else list(names)), rows)


def moments(fit: Fit, rows: int) -> str:
    """The figures of all draws of a run that kept few, cut after so many rows."""
    return _cut(fit.moments.round(3), rows)


def _cut(table: pd.DataFrame, rows: int) -> str:
    text = table.head(rows).to_string()
    if len(table) > rows:
        text += f"\n(the first {rows} of {len(table)} rows)"
    return text


def costs(fit: Fit) -> str:
    """Gradients, evaluations and seconds in one line."""
    found = fit.costs
    return (
        f"costs: {found['gradients']:,} gradients ({found['warmup_gradients']:,} in warm-up), "
        f"{found['evaluations']:,} density evaluations, "
        f"{found['compile_seconds']:.1f} s to compile, {found['sample_seconds']:.1f} s to sample"
    )


def evidence(fit: Fit) -> str:
    """What the weights of weighted draws say, in one line."""
    found = fit.importance
    value, error = found.log_evidence
    return (
        f"log evidence: {value:.3f} +- {error:.3f}, {found.ess:.0f} effective draws, "
        f"Pareto k {found.pareto_k:.2f}"
    )


def deviation(fit: Fit, reference: models.Reference) -> str:
    """How far the posterior means are from trusted ones."""
    means = fit.posterior.mean(("chain", "draw"))
    worst, at = 0.0, ""
    for name, expected in reference.mean.items():
        off = np.abs(means[name].values - expected) / reference.sd[name]
        if off.max() >= worst:
            worst, at = float(off.max()), name
    return (
        f"reference: the means are within {worst:.2f} posterior sd (worst: '{at}') of those of\n"
        f"  {reference.source}"
    )


def worked(name: str, entry: models.Worked) -> str:
    """A worked model's description, arguments and reference."""
    lines = [f"{name}: {models.describe(name)}", "data:"]
    for argument, value in entry.data.items():
        shape = np.shape(value)
        shown = f"array of shape {shape}" if shape else repr(value)
        lines.append(f"  {argument}: {shown}")
    if not entry.data:
        lines[-1] += " none"
    lines.append(f"reference: {entry.reference.source}")
    if entry.reference.log_evidence is not None:
        lines.append(f"log evidence: {float(entry.reference.log_evidence):.6g}")
    lines.append(f"try: quincunx infer {name} --out {name}.nc")
    return "\n".join(lines)
