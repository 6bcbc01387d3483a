"""What `compare` returns: a table, and one word for each method."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from quincunx.engine.errors import QuincunxError
from quincunx.inference.diagnostics.discrepancy import CAVEAT
from quincunx.inference.fit import Fit
from quincunx.inference.output import opened
from quincunx.inference.stopping import INTERRUPTED

NUMBERS = {
    "ess_bulk": "ESS bulk",
    "ess_tail": "ESS tail",
    "r_hat": "R-hat",
    "mean_error": "mean error",
    "log_sd_error": "log sd error",
    "wasserstein_ratio": "SW2 ratio",
    "wasserstein_p": "SW2 p",
    "ksd": "KSD",
    "ksd_p": "KSD p",
    "pareto_k": "Pareto k",
    "log_evidence": "log evidence",
    "log_evidence_error": "its error",
    "elpd_difference": "elpd diff.",
    "elpd_error": "its error ",
    "ess_per_gradient": "ESS / gradient",
    "ess_per_evaluation": "ESS / evaluation",
    "ess_per_pass": "ESS / data pass",
    "ess_per_second": "ESS / second",
    "gradients": "gradients",
    "evaluations": "evaluations",
    "data_passes": "data passes",
    "compile_seconds": "compile s",
    "sample_seconds": "sample s",
    "peak_mib": "peak MiB",
    "bytes": "bytes sent",
}
MEANINGS = {
    "ess_bulk": "effective draws for means, of the worst parameter; of weighted draws by weights",
    "ess_tail": "effective draws for 5 % and 95 % quantiles, of the worst parameter",
    "r_hat": "how far chains disagree, of the worst parameter; 1 where they agree",
    "mean_error": "largest error of a mean against the reference, in combined standard errors",
    "log_sd_error": "largest error of a log sd against the reference, in combined standard errors",
    "wasserstein_ratio": "squared sliced Wasserstein distance to the reference over that of chance",
    "ksd_p": "how often exact draws have a larger kernel Stein discrepancy; needs no reference",
    "pareto_k": "tail of the weights: good below 0.5, unreliable above 0.7",
    "log_evidence": "logarithm of the density's integral, from weights",
    "elpd_difference": "expected log predictive density (leave-one-out) less the reference's",
    "ess_per_gradient": "effective draws for a gradient",
    "ess_per_evaluation": "effective draws for an evaluation of the density",
    "ess_per_pass": "effective draws for a pass over all rows",
    "ess_per_second": "effective draws for a second, compilation left out",
    "gradients": "gradients of all chains or batches, with those of warm-up and training",
    "evaluations": "evaluations of the density, those with a gradient included",
    "data_passes": "how often all rows were gone through",
    "compile_seconds": "seconds of tracing and compiling",
    "sample_seconds": "seconds of all else: training, warm-up, sampling",
    "peak_mib": "growth of memory while the method ran",
    "bytes": "bytes that agents sent each other",
}
_PARAMETERS = {"mean_error": "mean_parameter", "log_sd_error": "log_sd_parameter"}
WORDS = ("kind", "verdict", "result")
_WIDE = 200  # columns of text that is for no terminal
_RULE = 3  # columns of a terminal between two of a table
_ATTRIBUTE = "quincunx_comparison"
_STYLES = {"agrees": "green", "differs": "red", "cannot tell": "yellow", "reference": "bold"}
JUDGED = (
    "ess_bulk",
    "ess_tail",
    "r_hat",
    "mean_error",
    "log_sd_error",
    "wasserstein_ratio",
    "ksd_p",
    "pareto_k",
    "log_evidence",
    "elpd_difference",
)
SPENT = (
    "ess_per_gradient",
    "ess_per_evaluation",
    "ess_per_pass",
    "ess_per_second",
    "gradients",
    "evaluations",
    "data_passes",
    "compile_seconds",
    "sample_seconds",
    "peak_mib",
    "bytes",
)


def rounded(value: float) -> str:
    """A figure with three digits; `n/a` where there is none."""
    if np.isnan(value):
        return "n/a"
    if abs(value) >= 1000 and np.isfinite(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def cell(row: Mapping[str, Any], column: str) -> str:
    """What a table shows of a column in a row, with the parameter that is worst."""
    value = float(row[column])
    if column == "log_evidence" and np.isfinite(value):
        return f"{value:.2f} ± {float(row['log_evidence_error']):.1g}"
    shown = rounded(value)
    parameter = row[_PARAMETERS[column]] if column in _PARAMETERS else ""
    return f"{shown} ({parameter})" if parameter else shown


class _Column(NamedTuple):
    """A column of a printed table."""

    heading: str
    cells: list[str]
    justify: Literal["left", "right"] = "right"

    @property
    def width(self) -> int:
        """Of the longest cell, or of the heading."""
        return max(map(cell_len, (self.heading, *self.cells)))


class Comparison:
    """Methods side by side; print it, or look at `table`.

    Attributes:
        table: one row for each method; NaN where a figure would mean nothing.
        reasons: by method, sentences that say why its result is what it is.
        errors: by method, one row for each parameter, against the reference.
        reference: what methods were judged by, in words; empty where there was nothing.
        left_out: methods that could not run, with what they lack.
        fits: by method.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        reasons: Mapping[str, tuple[str, ...]],
        errors: Mapping[str, pd.DataFrame],
        reference: str,
        left_out: Mapping[str, str],
        fits: Mapping[str, Fit],
    ) -> None:
        self.table = table
        self.reasons = dict(reasons)
        self.errors = dict(errors)
        self.reference = reference
        self.left_out = dict(left_out)
        self.fits = dict(fits)

    def plot(self, **options: Any) -> Any:
        """Intervals of all methods, parameter by parameter, by `arviz_plots.plot_forest`.

        Args:
            **options: as in `arviz_plots.plot_forest`, such as `var_names` or `backend`.

        Returns:
            ArviZ's `PlotCollection`.
        """
        from arviz_plots import plot_forest  # slow to import

        return plot_forest({name: fit.tree for name, fit in self.fits.items()}, **options)

    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML page.

        Args:
            path: ending in `.html`.
        """
        from quincunx.inference.report.page import write_comparison  # imports matplotlib

        return write_comparison(self, path)

    def save(self, path: str | Path) -> None:
        """Write table and fits to one netCDF file, for `Comparison.load`.

        Raises:
            QuincunxError: another suffix than .nc.
        """
        path = Path(path)
        if path.suffix != ".nc":
            raise QuincunxError(f"Cannot save to '{path}': the suffix must be .nc.")
        told = {
            "table": self.table.to_dict(orient="split"),
            "reasons": self.reasons,
            "errors": {name: table.to_dict(orient="split") for name, table in self.errors.items()},
            "reference": self.reference,
            "left_out": self.left_out,
            "fits": list(self.fits),
        }
        tree = xr.DataTree.from_dict(
            {f"fit_{index}": fit.whole_tree() for index, fit in enumerate(self.fits.values())}
        )
        tree.attrs[_ATTRIBUTE] = json.dumps(told)
        tree.to_netcdf(path, engine="h5netcdf")

    @classmethod
    def load(cls, path: str | Path) -> Comparison:
        """Read what `save` wrote; the fits come without their model.

        Raises:
            QuincunxError: no such file, one that is damaged, or not a comparison.
        """
        path = Path(path)
        with opened(path) as stored:
            tree = stored.load()
        if _ATTRIBUTE not in tree.attrs:
            raise QuincunxError(f"'{path}' was not written by `Comparison.save`.")
        told = json.loads(tree.attrs[_ATTRIBUTE])
        fits = {}
        for index, name in enumerate(told["fits"]):
            part = xr.DataTree.from_dict(
                {n: child.to_dataset() for n, child in tree[f"fit_{index}"].children.items()}
            )
            costs = json.loads(part["posterior"].attrs["costs"])
            fits[name] = Fit(part, method=None, costs=costs, density=None)
        reasons = {name: tuple(found) for name, found in told["reasons"].items()}
        errors = {name: _read(found, "parameter") for name, found in told["errors"].items()}
        table = _read(told["table"], "method")
        for column in NUMBERS:
            table[column] = table[column].astype(float)
        return cls(table, reasons, errors, told["reference"], told["left_out"], fits)

    @property
    def interrupted(self) -> bool:
        """Whether a run, the reference's included, was ended by Ctrl-C or SIGTERM."""
        outcomes = [fit.verdict.outcome for fit in self.fits.values()]
        return INTERRUPTED in outcomes or self.reference.endswith(INTERRUPTED)

    def rows(self) -> dict[str, dict[str, Any]]:
        """The table as a dict of columns for each method."""
        found: Any = self.table.to_dict("index")
        return {str(name): row for name, row in found.items()}

    def shown(self, columns: Iterable[str]) -> list[str]:
        """Those of some columns that have a figure for at least one method."""
        return [name for name in columns if self.table[name].notna().to_numpy().any()]

    def told(self) -> list[str]:
        """Reasons, each with the methods that it is said of."""
        methods: dict[str, list[str]] = {}
        for name, found in self.reasons.items():
            for reason in found:
                methods.setdefault(reason, []).append(name)
        return [f"{', '.join(names)}: {reason}" for reason, names in methods.items()]

    def _judgement(self) -> list[_Column]:
        rows = self.rows().values()
        words = [_Column(name, [row[name] for row in rows], "left") for name in WORDS]
        return [*words, *self._figures(JUDGED)]

    def _figures(self, columns: Iterable[str]) -> list[_Column]:
        rows = self.rows().values()
        return [
            _Column(NUMBERS[name], [cell(row, name) for row in rows])
            for name in self.shown(columns)
        ]

    def _printed(self, title: str, columns: list[_Column], width: int) -> Iterator[Table]:
        """One table, or several one after the other where the terminal is narrow."""
        names = _Column("method", list(self.rows()), "left")
        while columns:
            ends = names.width + _RULE + 1 + np.cumsum([column.width + _RULE for column in columns])
            number = max(int(np.sum(ends <= width)), 1)
            shown = [names, *columns[:number]]
            table = Table(title=Text(title, "table.title"), title_justify="left")
            for column in shown:
                table.add_column(column.heading, justify=column.justify, no_wrap=True)
            for row in zip(*(column.cells for column in shown), strict=True):
                table.add_row(*(Text(entry, _STYLES.get(entry, "")) for entry in row))
            yield table
            title, columns = "", columns[number:]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        label = f"judged by {self.reference}" if self.reference else "judged without a reference"
        yield from self._printed(label, self._judgement(), options.max_width)
        costs = self._figures(SPENT)
        yield from self._printed("costs, warm-up included", costs, options.max_width)
        yield from map(Text, self.told())
        for name, missing in self.left_out.items():
            yield Text(f"{name} did not run: {missing}")
        if self.shown(["ksd"]):
            yield Text(CAVEAT)

    def __str__(self) -> str:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDE
        console = Console(width=width, file=io.StringIO())
        with console.capture() as capture:
            console.print(self)
        return capture.get()

    def __repr__(self) -> str:
        return str(self)


def is_comparison(path: Path) -> bool:
    """Whether a netCDF file holds a comparison.

    Raises:
        QuincunxError: no such file, or one that is damaged.
    """
    with opened(path) as stored:
        return _ATTRIBUTE in stored.attrs


def _read(told: Mapping[str, Any], index: str) -> pd.DataFrame:
    return pd.DataFrame(**told).rename_axis(index)
