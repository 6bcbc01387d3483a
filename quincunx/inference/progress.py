"""Show how far a run is: phase, divergences, step size and time left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from quincunx.inference.session import Progress

Report = Callable[[Progress], None]


def _figures(state: Progress) -> str:
    if state.phase == "simulations":
        return ""
    if state.phase == "training":
        return f"loss {state.step_size:.4g}, left out {state.diverging}"
    return f"divergences {state.diverging}, step {state.step_size:.3g}"


def _silent(progress: Progress) -> None:
    del progress


@contextmanager
def reporting(label: str, *, progress: bool | Report) -> Iterator[Report]:
    """A function that shows progress while the context lasts.

    Args:
        progress: a callable of one's own; `True` for a bar where the output is a terminal;
            `False` for none.
        label: what is running.
    """
    if callable(progress):
        yield progress
        return
    if not progress or not sys.stderr.isatty():
        yield _silent
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"{label}: compiling", total=None, figures="")

        def report(state: Progress) -> None:
            bar.update(
                task,
                description=f"{label}: {state.phase}",
                completed=state.done,
                total=state.total,
                figures=_figures(state),
            )

        yield report
