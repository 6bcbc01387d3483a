"""The table of a fit, by arviz_stats, where that cannot be fooled."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from quincunx.inference.diagnostics.convergence import flatten
from quincunx.inference.weighted import is_weighted

if TYPE_CHECKING:
    from quincunx.inference.fit import Fit


def summary_of(fit: Fit, options: Mapping[str, Any]) -> Any:
    """`arviz_stats.summary` of a fit's tree with our effective sizes and R-hat where they differ.

    That is for all parameters of weighted draws, which have no Monte Carlo errors of chains, and
    for chains that are stuck or not finite. Elements to which the support leaves no choice have
    neither figure.

    Args:
        fit: the fit, which has draws.
        options: as in `arviz_stats.summary`.
    """
    from arviz_stats import summary  # slow to import

    found, weighted = fit.convergence, is_weighted(fit.tree)
    bad = found.stuck | ~found.finite
    with warnings.catch_warnings():
        if weighted or bad.any():
            warnings.simplefilter("ignore", RuntimeWarning)  # 0/0 where nothing moves
        table: Any = summary(fit.tree, **options)
    rows = _rows(fit, options.get("var_names"))
    if not isinstance(table, pd.DataFrame) or len(table) != len(rows):
        return table
    table, ours = table.copy(), found.table()
    replaced = bad[rows] | weighted
    constant = fit.constant()[rows]
    for column in ours:
        if column in table:
            right = np.where(replaced, ours[column].to_numpy()[rows], table[column])
            table[column] = np.where(constant, np.nan, right)
    errors = [name for name in table if str(name).startswith("mcse")]
    return table.drop(columns=errors if weighted else [])


def _rows(fit: Fit, names: Any) -> np.ndarray:
    """Places of the chosen variables' parameters among all; empty where a name is a pattern."""
    posterior = fit.posterior
    chosen = list(posterior) if names is None else [str(name) for name in np.atleast_1d(names)]
    if any(name not in posterior for name in chosen):
        return np.zeros(0, int)
    place = {name: index for index, name in enumerate(fit.convergence.names)}
    first = {str(name): posterior[name].values[:1, :1] for name in chosen}
    return np.array([place[name] for name in flatten(first)[0]], int)
