"""The report of a fit or a comparison: one page that needs nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from quincunx.engine.errors import QuincunxError, listing
from quincunx.engine.explain import Explanation
from quincunx.inference.comparison.result import JUDGED, MEANINGS, NUMBERS, SPENT, Comparison, cell
from quincunx.inference.diagnostics.discrepancy import CAVEAT
from quincunx.inference.fit import Fit
from quincunx.inference.method import Kind
from quincunx.inference.report import html, plots

_ROWS = 200
_SHOWN, _FEW = 12, 3
_TOGETHER = 12  # parameters in the plots of all compared methods together, so that pages stay small
_BARS = ("evaluations", "sample_seconds", "ess_per_evaluation", "ess_per_second")


def write_fit(fit: Fit, path: str | Path) -> Path:
    """The page of a fit; `Fit.report` says the rest."""
    name = fit.tree["posterior"].attrs["method"]
    model = _model(fit)
    title = f"{model['name']} by {name}" if model else f"A fit by {name}"
    names = plots.worst(fit, _SHOWN)
    drawings = [plots.forest({name: fit}, names)] if names else []
    sections = [
        html.verdict(fit.verdict),
        html.paragraph(f"The method is {fit.kind.value}. {fit.kind.meaning}"),
        _explained(model),
        html.section("Parameters", *_summary(fit)),
        _weights(fit),
        html.section("Plots", *map(html.figure, [*drawings, *plots.of_chains(fit)])),
        _bias(fit),
        html.section("Costs", html.plain(_costs(fit.costs))),
        html.section("To make it again", html.plain(_settings(fit))),
    ]
    return _write(path, html.page(title, *sections))


def write_comparison(comparison: Comparison, path: str | Path) -> Path:
    """The page of a comparison; `Comparison.report` says the rest."""
    fits = comparison.fits
    first = next(iter(fits.values()))
    model = _model(first)
    title = f"{model['name']}: methods side by side" if model else "Methods side by side"
    judged = f"Judged by {comparison.reference}." if comparison.reference else "No reference."
    drawings = []
    names = _interesting(comparison)
    absent = {name: why for name, fit in fits.items() if (why := plots.undrawable(fit, names))}
    drawn = {name: fit for name, fit in fits.items() if name not in absent}
    if names and drawn:
        drawings.append(plots.forest(drawn, names))
    rows = comparison.rows()
    columns = {
        NUMBERS[column]: {name: row[column] for name, row in rows.items()}
        for column in comparison.shown(_BARS)
    }
    sections = [
        html.paragraph(judged),
        _judgement(comparison),
        html.section("What was found", *_reasons(comparison)),
        _explained(model),
        html.section("Costs", _table(comparison, SPENT), *_figure(columns)),
        html.section("Parameters", *map(html.figure, drawings), _absent(absent)),
        *(_method(name, fit, comparison) for name, fit in fits.items()),
        html.section("Left out", html.listed(_left_out(comparison))),
        html.section("What the columns mean", html.plain(_meanings(comparison))),
    ]
    return _write(path, html.page(title, *sections))


def _absent(absent: Mapping[str, str]) -> str:
    """Which methods are not among the intervals, and why."""
    return html.listed(f"{name} is not drawn: {why}" for name, why in absent.items())


def _write(path: str | Path, text: str) -> Path:
    path = Path(path)
    if path.suffix not in (".html", ".htm"):
        raise QuincunxError(f"Cannot write the report to '{path}': the suffix must be .html.")
    path.write_text(text, "utf-8")
    return path


def _figure(columns: Mapping[str, Mapping[str, float]]) -> list[str]:
    return [html.figure(plots.bars(columns))] if columns else []


def _model(fit: Fit) -> dict[str, Any] | None:
    """What the compiler found in the model, now or when the fit was saved."""
    if fit.density is not None:
        return Explanation(fit.density.unconstrained).told()
    told = fit.tree["posterior"].attrs.get("explanation")
    return None if told is None else json.loads(told)


def _explained(model: dict[str, Any] | None) -> str:
    if model is None:
        return ""
    headings = ("site", "role", "distribution", "support", "shape", "dims", "plates")
    rows = [[html.Cell(entry) for entry in row] for row in model["rows"]]
    sites = html.table(headings, rows, text=range(len(headings)))
    return html.section("The model, as compiled", sites, html.listed(model["findings"]))


def _summary(fit: Fit) -> list[str]:
    if not plots.drawable(fit):
        return [html.paragraph("There are too few draws to say anything of parameters.")]
    table: Any = fit.summary(round_to="none")
    found, free = fit.convergence, fit.free()
    shown: Any = table.head(_ROWS)
    rows = []
    for name, row in shown.iterrows():
        rows.append([html.Cell(str(name)), *(html.number(float(value)) for value in row)])
    parts = [html.table(["parameter", *map(str, table.columns)], rows)]
    if len(table) > _ROWS:
        parts.append(html.paragraph(f"The first {_ROWS} of {len(table)} parameters.", soft=True))
    lost = [name for name, bad in zip(found.names, ~found.finite & free, strict=True) if bad]
    if lost:
        told = (
            f"Some draws of {listing(lost)} are not finite: their figures mean nothing, and they "
        )
        parts.append(html.paragraph(told + "are not plotted."))
    return parts


def _weights(fit: Fit) -> str:
    if fit.kind is not Kind.WEIGHTED:
        return ""
    found = fit.importance
    value, error = found.log_evidence
    rows = [
        (
            "log evidence",
            cell({"log_evidence": value, "log_evidence_error": error}, "log_evidence"),
        ),
        ("Pareto k", f"{found.pareto_k:.2f}"),
        ("effective draws", f"{found.ess:,.0f}, {100 * found.share:.1f} % of all"),
        ("largest weight", f"{100 * found.largest:.2g} % of all"),
    ]
    return html.section("Weights", html.plain(rows))


def _bias(fit: Fit) -> str:
    if fit.kind is not Kind.BIASED:
        return ""
    try:
        report = fit.bias
    except QuincunxError as error:
        return html.section("Bias report", html.paragraph(str(error)))
    rows = [
        [html.Cell(str(name)), *(html.number(float(value)) for value in row)]
        for name, row in report.head(_ROWS).iterrows()
    ]
    told = [(str(name), html.number(float(value)).shown) for name, value in report.attrs.items()]
    meaning = "Bias of means, in posterior sds, and of sds, relative, with standard errors."
    table = html.table(["parameter", *map(str, report.columns)], rows)
    return html.section("Bias report", html.paragraph(meaning), table, html.plain(told))


def _costs(costs: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name.replace("_", " "), html.number(value).shown) for name, value in costs.items()]


def _settings(fit: Fit) -> list[tuple[str, str]]:
    told = dict(fit.tree["posterior"].attrs)
    for skipped in ("explanation", "costs", "kind", "inference_library", "deterministic"):
        told.pop(skipped, None)
    rows = []
    for key, value in told.items():
        name = str(key)
        if name == "versions":
            value = ", ".join(f"{package} {found}" for package, found in json.loads(value).items())
        if value not in ("", None):
            rows.append((name.replace("_", " "), str(value)))
    return rows


def _judgement(comparison: Comparison) -> str:
    return _table(comparison, JUDGED, words=True)


def _table(comparison: Comparison, columns: tuple[str, ...], *, words: bool = False) -> str:
    shown = comparison.shown(columns)
    headings = ["method", *(["result", "verdict", "kind"] if words else [])]
    rows = []
    for name, row in comparison.rows().items():
        cells = [html.Cell(name)]
        if words:
            cells += [html.word(row["result"]), html.word(row["verdict"]), html.Cell(row["kind"])]
        for column in shown:
            value = html.number(row[column])
            cells.append(value._replace(shown=cell(row, column)))
        rows.append(cells)
    text = range(len(headings))
    meanings = {NUMBERS[column]: MEANINGS[column] for column in shown}
    return html.table([*headings, *meanings], rows, text=text, meanings=meanings)


def _reasons(comparison: Comparison) -> list[str]:
    parts = [
        html.listed(comparison.told()) or html.paragraph("No method differs from the reference.")
    ]
    told = (
        "A method differs where a test rejects at the 1 % level of all that are made here "
        "together, and agrees only where a difference that matters would have been seen. Figures "
        "that would mean nothing are n/a; what the columns mean is told at the end."
    )
    parts.append(html.paragraph(told, soft=True))
    if comparison.shown(["ksd"]):
        parts.append(html.paragraph(CAVEAT, soft=True))
    return parts


def _interesting(comparison: Comparison) -> list[str]:
    """Parameters that methods disagree on most, or that mix worst."""
    sizes: dict[str, float] = {}
    for table in comparison.errors.values():
        if table.empty:
            continue
        worst = np.fmax(np.abs(table["mean_z"].to_numpy()), np.abs(table["log_sd_z"].to_numpy()))
        for name, size in zip(table.index, worst, strict=True):
            sizes[str(name)] = max(sizes.get(str(name), 0.0), float(np.nan_to_num(size)))
    first = next(iter(comparison.fits.values()))
    names = sorted(sizes, key=lambda name: -sizes[name]) or plots.worst(first, _SHOWN)
    return [name for name in names if name in first.convergence.names][:_SHOWN]


def _method(name: str, fit: Fit, comparison: Comparison) -> str:
    parts = [html.verdict(fit.verdict)]
    errors = comparison.errors[name]
    if not errors.empty:
        parts.append(_errors(errors))
    few = int(np.clip(_TOGETHER // len(comparison.fits), 1, _FEW))
    parts += map(html.figure, plots.of_chains(fit, few))
    parts += [_weights(fit), _bias(fit), html.plain(_settings(fit))]
    return html.section(name, *parts)


def _errors(errors: pd.DataFrame) -> str:
    headings = {
        "mean_difference": "mean - reference (sds)",
        "mean_z": "in standard errors",
        "log_sd_difference": "log sd - reference",
        "log_sd_z": "in standard errors",
    }
    size = np.fmax(np.abs(errors["mean_z"].to_numpy()), np.abs(errors["log_sd_z"].to_numpy()))
    order = np.argsort(-np.nan_to_num(size, posinf=math.inf), kind="stable")[:_SHOWN]
    rows = []
    for index in order:
        cells = [html.number(float(errors[column].to_numpy()[index])) for column in headings]
        rows.append([html.Cell(str(errors.index[index])), *cells])
    return html.table(["parameter", *headings.values()], rows)


def _meanings(comparison: Comparison) -> list[tuple[str, str]]:
    shown = comparison.shown((*JUDGED, *SPENT))
    return [(NUMBERS[column], MEANINGS[column]) for column in shown]


def _left_out(comparison: Comparison) -> list[str]:
    return [f"{name}: {missing}" for name, missing in comparison.left_out.items()]
