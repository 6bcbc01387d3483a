"""How much memory a piece of work takes."""

from __future__ import annotations

import resource
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_T = TypeVar("_T")
_STATM = Path("/proc/self/statm")
_EVERY = 0.02


def _resident() -> int:
    return int(_STATM.read_text().split()[1]) * resource.getpagesize()


def watched(work: Callable[[], _T]) -> tuple[_T, float]:
    """Do some work, and tell by how many MiB the process grew at most while it went on.

    It is the growth over what the process held before, of everything in it, on the host; NaN where
    the system does not tell.
    """
    if not _STATM.exists():
        return work(), float("nan")
    before = peak = _resident()
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(_EVERY):
            peak = max(peak, _resident())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        result = work()
    finally:
        ended.set()
        thread.join()
    return result, max(peak, _resident()) / 2**20 - before / 2**20
