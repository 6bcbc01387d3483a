"""How much memory a piece of work takes."""

from __future__ import annotations

import resource
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax

_T = TypeVar("_T")
_STATM = Path("/proc/self/statm")
_EVERY = 0.02


class _Level(NamedTuple):
    """Bytes in use now, and the most since the process began, 0 where that is not told."""

    now: int
    most: int = 0


def _on_host() -> _Level | None:
    if not _STATM.exists():
        return None
    return _Level(int(_STATM.read_text().split()[1]) * resource.getpagesize())


def _on_devices(devices: Sequence[Any]) -> _Level | None:
    found = [device.memory_stats() for device in devices]
    if not all(found):
        return None
    now, most = (
        sum(stats.get(name, 0) for stats in found) for name in ("bytes_in_use", "peak_bytes_in_use")
    )
    return _Level(now, most)


def watched(work: Callable[[], _T], devices: Sequence[Any] | None = None) -> tuple[_T, float]:
    """Do some work, and tell by how many MiB memory grew at most while it went on.

    It is the growth over what was in use before, of all devices together, or of the process where
    the devices are the host's processors; NaN where that is not told.

    Args:
        work: what to do.
        devices: of JAX; all of this process by default.
    """
    devices = jax.local_devices() if devices is None else devices
    on_host = all(device.platform == "cpu" for device in devices)

    def level() -> _Level | None:
        return _on_host() if on_host else _on_devices(devices)

    before = level()
    if before is None:
        return work(), float("nan")
    peak = before.now
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(_EVERY):
            peak = max(peak, (level() or before).now)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        result = work()
    finally:
        ended.set()
        thread.join()
    after = level() or before
    peak = max(peak, after.now, after.most if after.most > before.most else 0)
    return result, (peak - before.now) / 2**20
