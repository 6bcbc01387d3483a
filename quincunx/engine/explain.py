"""A model as the compiler sees it, printed for its author."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from quincunx.engine.composite import ProximalTerm
from quincunx.engine.density import Density, compile


def _term(term: ProximalTerm) -> str:
    if term.factor:
        return f"Factor '{term.factor}' is a nonsmooth term of '{term.site}' with a known prox."
    if term.kind in ("half-line", "box", "simplex"):
        return f"'{term.site}' has the indicator of a {term.kind}, with a known prox."
    return f"'{term.site}' has a nonsmooth {term.kind} term with a known prox."


class Explanation:
    """Sites, plates and structure of a compiled model; print it, or show it in a notebook."""

    def __init__(self, density: Density) -> None:
        self.density = density

    def rows(self) -> list[tuple[str, ...]]:
        """One row for each site: name, role, distribution, support, shape, dims, plates."""
        table = []
        for site in self.density.program.sites:
            shape = "x".join(map(str, site.shape)) or "scalar"
            dims = ", ".join(site.dims)
            plates = ", ".join(site.plates)
            row = (site.name, site.role, site.distribution, site.support, shape, dims, plates)
            table.append(row)
        return table

    def findings(self) -> list[str]:
        """What structure was found, one sentence each."""
        program, structure = self.density.program, self.density.structure
        lines = [f"{program.dim} unconstrained dimensions."]
        for plate in program.plates.values():
            kind = "data plate" if plate.is_data else "plate"
            over = f" over {', '.join(plate.arrays)}" if plate.arrays else ""
            lines.append(f"{kind} '{plate.name}' of size {plate.size}{over}.")
        if not structure.data_plates:
            lines.append("No data plate: minibatches and row sharding are not possible.")
        lines += [_term(term) for term in structure.composite.terms]
        if not structure.composite.terms:
            lines.append("No nonsmooth term with a known prox: all counts as smooth.")
        joint = "is" if structure.has_gaussian_prior else "is not"
        lines.append(f"The prior {joint} jointly Gaussian.")
        vectors = int(structure.unit_vectors.max(initial=-1)) + 1
        if vectors:
            lines.append(f"{vectors} unit vectors keep their own coordinates.")
        if not structure.has_gradient:
            lines.append("It calls back to Python, so it has no gradient.")
        return lines

    def told(self) -> dict[str, Any]:
        """The model's name, `rows` and `findings` as a JSON-able dict."""
        rows = [list(row) for row in self.rows()]
        return {"name": self.density.program.name, "rows": rows, "findings": self.findings()}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        title = Text(f"model {self.density.program.name}", "table.title")
        table = Table(title=title, title_justify="left")
        for column in ("site", "role", "distribution", "support", "shape", "dims", "plates"):
            table.add_column(column)
        for row in self.rows():
            table.add_row(*map(Text, row))
        yield table
        yield from map(Text, self.findings())

    def __str__(self) -> str:
        console = Console(width=110)
        with console.capture() as capture:
            console.print(self)
        return capture.get()

    def __repr__(self) -> str:
        return str(self)


def explain(
    model: Callable[..., Any],
    data: Mapping[str, Any] | None = None,
    coords: Mapping[str, Any] | None = None,
) -> Explanation:
    """Show a model's sites, shapes, dims, supports, plates and the structure found in it.

    Args:
        model: as in `infer`.
        data: the model's arguments.
        coords: labels by dimension.
    """
    return Explanation(compile(model, data, coords))
