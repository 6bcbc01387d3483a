"""The plots of a report, drawn by `arviz_plots` on matplotlib as SVG."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import arviz_base
import numpy as np
import xarray as xr

from quincunx.engine.errors import listing
from quincunx.inference.fit import Fit
from quincunx.inference.report.html import Drawing
from quincunx.inference.weighted import is_weighted

_FEWEST = 4
_LONG = re.compile(rb"(\d\.\d\d)\d{3,}")  # coordinates to a hundredth of a point
_FEWFOLD = 20  # ratio of figures up to which bars are from zero
_TRACED, _PAIRED = 250, 150  # draws of a chain
_SETTINGS = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "figure.dpi": 72,
    "font.size": 9,
}


def some(fit: Fit, names: Sequence[str], most: int | None = None) -> xr.DataTree:
    """A tree with some scalar parameters, each a variable of its own.

    Args:
        fit: the fit.
        names: such as `theta[3]`.
        most: draws of each chain at most.
    """
    posterior = fit.posterior
    stride = 1 if most is None else -(-posterior.sizes["draw"] // most)
    groups: dict[str, Any] = {
        "posterior": {name: _scalar(posterior, name, stride) for name in names}
    }
    stats = fit.tree["sample_stats"]
    if "diverging" in stats:
        groups["sample_stats"] = {"diverging": stats.to_dataset()["diverging"].values[:, ::stride]}
    return arviz_base.from_dict(groups)


def _scalar(posterior: xr.Dataset, name: str, stride: int) -> np.ndarray:
    """Draws of one scalar parameter, `(chain, draw)`, by its name such as `theta[3]`."""
    site, _, inside = (name, "", "") if name in posterior else name.rpartition("[")
    index = tuple(int(part) for part in inside.rstrip("]").split(",") if part)
    return np.asarray(posterior[site][(slice(None), slice(None, None, stride), *index)], float)


def drawable(fit: Fit) -> bool:
    """Whether there are draws enough for intervals."""
    return fit.posterior.sizes["draw"] >= _FEWEST


def undrawable(fit: Fit, names: Sequence[str]) -> str:
    """Why a fit is not among the intervals of some parameters; empty where it can be."""
    if not drawable(fit):
        return "it has too few draws."
    found = fit.convergence
    bad = {name for name, finite in zip(found.names, found.finite, strict=True) if not finite}
    lost = [name for name in names or found.names if name in bad]
    return f"its draws of {listing(lost)} are not all finite." if lost else ""


def worst(fit: Fit, count: int) -> list[str]:
    """The parameters with the fewest effective draws, stuck ones first; none without draws."""
    if not drawable(fit):
        return []
    found = fit.convergence
    usable = fit.free() & found.finite
    order = np.argsort(np.where(usable, found.ess_bulk, np.inf), kind="stable")
    return [found.names[index] for index in order if usable[index]][:count]


def forest(fits: Mapping[str, Fit], names: Sequence[str]) -> Drawing:
    """Intervals of all methods."""
    from arviz_plots import plot_forest

    trees: Any = {name: some(fit, names) for name, fit in fits.items()}
    if len(fits) == 1:
        trees = next(iter(trees.values()))
    height = 1.0 + len(names) * max(0.3, 0.12 * len(fits))
    size = {"figsize": (9, height), "figsize_units": "inches"}
    caption = "Points are means or medians, thick and thin lines intervals of half and of most of "
    return _drawn(
        lambda: plot_forest(trees, combined=True, backend="matplotlib", figure_kwargs=size),
        "Intervals of the parameters",
        caption + "the draws. Methods that agree overlap.",
    )


def ranks(fit: Fit, names: Sequence[str]) -> Drawing:
    """Ranks by chain; their band is simulated, which takes long for many draws."""
    return _of_draws(
        "plot_rank",
        some(fit, names, _TRACED),
        "Ranks of each chain's draws among all",
        "Differences between the distribution of ranks and a uniform one; lines within the band "
        "mean that chains agree.",
    )


def traces(fit: Fit, names: Sequence[str]) -> Drawing:
    """Draws in their order."""
    return _of_draws(
        "plot_trace",
        some(fit, names, _TRACED),
        "Traces",
        "Draws in their order, one colour for each chain; long chains are thinned.",
    )


def evolution(fit: Fit, names: Sequence[str]) -> Drawing:
    """Effective sample size as draws accumulate."""
    return _of_draws(
        "plot_ess_evolution",
        some(fit, names),
        "Effective sample size as draws accumulate",
        "It should grow in proportion to the number of draws.",
    )


def pairs(fit: Fit, names: Sequence[str]) -> Drawing:
    """Joint draws of the worst parameters."""
    return _of_draws(
        "plot_pair",
        some(fit, names, _PAIRED),
        "Pairs of the parameters that mix worst",
        "Curved or funnel-shaped clouds are hard to sample; divergences, if any, are marked.",
    )


def bars(columns: Mapping[str, Mapping[str, float]]) -> Drawing:
    """Costs of all methods.

    Args:
        columns: by title, figures by method; those that are NaN or zero have no bar.
    """
    return _drawn(
        lambda: _bars(columns),
        "Costs",
        "Warm-up included. Scales are logarithmic where figures differ by more than 20 times; "
        "a missing bar is nought, or a figure that would mean nothing.",
    )


def _bars(columns: Mapping[str, Mapping[str, float]]) -> Any:
    from matplotlib.figure import Figure

    names = list(next(iter(columns.values())))
    figure = Figure(figsize=(9, 0.8 + 0.3 * len(names)), layout="constrained")
    axes: Any = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axis, (title, values) in zip(axes, columns.items(), strict=True):
        heights = [values[name] if values[name] > 0 else np.nan for name in names]
        axis.barh(names, heights, color="#00796b")
        axis.set_title(title)
        found = [height for height in heights if not np.isnan(height)]
        if found and max(found) > _FEWFOLD * min(found):
            axis.set_xscale("log")
            axis.set_xlim(left=min(found) / 3)
    axes[0].invert_yaxis()
    return figure


def of_chains(fit: Fit, most: int = 4) -> list[Drawing]:
    """What shows how chains mix; nothing for draws that are of no chain, or too few.

    Args:
        fit: the fit.
        most: parameters, those that mix worst.
    """
    names = worst(fit, most)
    if is_weighted(fit.tree) or not names or fit.posterior.sizes["draw"] < 20:
        return []
    moving = [n for n in names if not fit.convergence.stuck[fit.convergence.names.index(n)]]
    drawings = [traces(fit, names)]
    if moving:
        drawings = [ranks(fit, moving), *drawings, evolution(fit, moving)]
    if len(moving) > 1:
        drawings.append(pairs(fit, moving[:3]))
    return drawings


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # layouts, too many panels
        yield


def _of_draws(plot: str, tree: xr.DataTree, title: str, caption: str) -> Drawing:
    """A plot of `arviz_plots`, by its name, of one tree."""
    import arviz_plots  # slow to import

    return _drawn(lambda: getattr(arviz_plots, plot)(tree, backend="matplotlib"), title, caption)


def _drawn(draw: Callable[[], Any], title: str, caption: str) -> Drawing:
    import matplotlib.pyplot as plt

    with _style():
        made = draw()
        figure = made.viz["figure"].item() if hasattr(made, "viz") else made
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)
    return Drawing(_LONG.sub(rb"\1", buffer.getvalue()), title, caption)
