"""Dimension names and coordinate labels of a model's sites."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from quincunx.engine.errors import ModelError, unknown
from quincunx.engine.program import Site


class Labels:
    """Names of dimensions by site and coordinate values by dimension.

    Labels change what is printed, never what is computed, so all of them are equal for the
    purpose of reusing compiled code.
    """

    def __init__(self, dims: Mapping[str, list[str]], coords: Mapping[str, np.ndarray]) -> None:
        self.dims = dict(dims)
        self.coords = dict(coords)

    def adopt(self, sites: Iterable[Site], coords: Mapping[str, np.ndarray]) -> None:
        """Take over those labels of other data whose dimensions have the same length here."""
        sizes = {dim: n for site in sites for dim, n in zip(site.dims, site.shape, strict=False)}
        fitting = {dim: labels for dim, labels in coords.items() if sizes.get(dim) == len(labels)}
        self.coords.update(fitting)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Labels)

    def __hash__(self) -> int:
        return hash(Labels)

    @classmethod
    def of(cls, sites: Iterable[Site], coords: Mapping[str, Any] | None) -> Labels:
        """Labels of a model's sites.

        Raises:
            ModelError: an unknown dimension, or as many labels as the dimension has not.
        """
        sites = tuple(sites)
        dims = {site.name: list(site.dims) for site in sites if site.role != "factor"}
        sizes: dict[str, tuple[int, str]] = {}
        for site in sites:
            for dim in site.dims:
                if dim in ("chain", "draw") or dim in dims or site.dims.count(dim) > 1:
                    message = f"{site} has a dimension named '{dim}', which is taken: by ArviZ, by "
                    message += "a site or by another of its dimensions. Rename it or the plate."
                    raise ModelError(message)
            for dim, size in zip(site.dims, site.shape, strict=False):
                known = sizes.setdefault(dim, (size, site.name))
                if known[0] != size:
                    message = f"Dimension '{dim}' has length {known[0]} in site '{known[1]}' but "
                    message += f"{size} in {site}. Give them different names."
                    raise ModelError(message)
        checked = {}
        for dim, labels in (coords or {}).items():
            if dim not in sizes:
                raise ModelError(unknown("dimension", dim, sizes, " in `coords`"))
            values = np.asarray(labels)
            if values.shape != (sizes[dim][0],):
                message = f"`coords['{dim}']` has shape {values.shape}, but dimension '{dim}' has "
                raise ModelError(message + f"length {sizes[dim][0]}.")
            checked[dim] = values
        return cls(dims, checked)
