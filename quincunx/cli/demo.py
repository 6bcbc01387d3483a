"""The demonstration: two worked models from data to draws, verdict and plot."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from quincunx.cli import inputs, report
from quincunx.inference import Fit, infer

_SHOWS = {
    "breast_cancer": ("Bayesian logistic regression on the breast-cancer data", 6, ["beta"]),
    "eight_schools": ("Hierarchical model of eight schools", 12, ["mu", "tau", "theta"]),
}


def run(out: Path, **settings: Any) -> dict[str, Fit]:
    """Fit the worked models with NUTS; print what was found, and save draws and forest plots.

    Args:
        out: folder for a netCDF and a PNG of each model.
        **settings: of `infer`.

    Returns:
        The fits by name.

    Raises:
        QuincunxError: the folder cannot be written to, or a data set's package is missing.
    """
    began = time.perf_counter()
    report.folder(out)
    fits = {}
    for name, (title, rows, shown) in _SHOWS.items():
        worked = inputs.read_worked(name)
        print(f"{title} (`quincunx infer {name}`)\n", flush=True)
        fit = infer(worked.model, worked.data, progress=False, **settings)
        print(report.table(fit, rows, shown) + "\n")
        print(fit.verdict)
        print(report.costs(fit))
        print(report.deviation(fit, worked.reference))
        fit.save(out / f"{name}.nc")
        plot = _plot(fit, out / f"{name}_forest.png", shown)
        print(f"written: {out / name}.nc, {plot}\n", flush=True)
        fits[name] = fit
    print(f"The demonstration took {time.perf_counter() - began:.0f} s.")
    return fits


def _plot(fit: Fit, path: Path, shown: list[str]) -> Path:
    """A forest plot of some variables, without a display."""
    import matplotlib

    matplotlib.use("Agg")
    from arviz_plots import plot_forest

    plot_forest(fit.tree, var_names=shown, combined=True).savefig(path)
    return path
