"""How long JAX traces and compiles while some work is done."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

_COMPILING = "/jax/core/compile/"


class Compilation:
    """Time that went to tracing, lowering and compiling, each moment counted once.

    JAX tells of each part at its end, with how long it took; parts are within others where one
    traced function calls another.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[float, float]] = []

    @property
    def seconds(self) -> float:
        """So far."""
        return sum((end - start for start, end in self._parts), 0.0)

    def add(self, start: float, end: float) -> None:
        """A part that ended last of all so far; those within it count no longer."""
        while self._parts and self._parts[-1][0] >= start:
            self._parts.pop()
        if self._parts:
            start = max(start, self._parts[-1][1])
        self._parts.append((start, end))


@contextmanager
def compiling() -> Iterator[Compilation]:
    """Watch how long this thread compiles."""
    spent, thread = Compilation(), threading.get_ident()

    def told(event: str, duration_secs: float, **details: Any) -> None:
        del details
        if event.startswith(_COMPILING) and threading.get_ident() == thread:
            end = time.perf_counter()
            spent.add(end - duration_secs, end)

    jax.monitoring.register_event_duration_secs_listener(told)
    try:
        yield spent
    finally:
        jax.monitoring.unregister_event_duration_listener(told)
