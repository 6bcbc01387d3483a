"""When a run ends before its plan: a target reached, a budget spent, an interruption."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np

from quincunx.engine.errors import MethodError
from quincunx.inference.diagnostics.convergence import convergence
from quincunx.inference.sinks import Sink

_GROWTH = 1.25
ELSEWHERE = "another process found the target reached"
INTERRUPTED = "it was interrupted"


@dataclass(frozen=True)
class Until:
    """Stop once the draws are good enough, or a budget is spent, whichever comes first.

    `num_samples` of `infer` stays the upper limit. The target is checked between chunks, on all
    draws so far, each time their number has grown by a quarter.

    Attributes:
        ess: bulk and tail effective sample size that every parameter must reach.
        r_hat: rank-normalised R-hat that no parameter may exceed.
        seconds: time that sampling may take, warm-up included and compilation not.
    """

    ess: int | float | None = None
    r_hat: int | float | None = None
    seconds: int | float | None = None

    def __post_init__(self) -> None:
        """Refuse a rule that can never end a run, or that ends all at once."""
        if self.ess is None and self.r_hat is None and self.seconds is None:
            raise MethodError("`Until()` needs a target: `ess`, `r_hat` or `seconds`.")
        for name in ("ess", "seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise MethodError(f"`Until({name}={value!r})` must be positive.")
        if self.r_hat is not None and not self.r_hat > 1:
            raise MethodError(f"`Until(r_hat={self.r_hat!r})` must be above 1.")


class Watch:
    """Tells between chunks whether an `Until` is fulfilled."""

    def __init__(self, until: Until) -> None:
        self.until = until
        self._next = 50

    def reached(self, sink: Sink, seconds: float) -> str | None:
        """Why the run should stop now, or `None`."""
        until = self.until
        if until.seconds is not None and seconds >= until.seconds:
            return f"the budget of {until.seconds:g} seconds is spent"
        if until.ess is None and until.r_hat is None:
            return None
        length = sink.length("posterior")
        if length < self._next:
            return None
        self._next = int(np.ceil(_GROWTH * length))
        return self._target(sink.draws("posterior"), length)

    def _target(self, draws: dict[str, Any], length: int) -> str | None:
        found = convergence(draws)
        free = ~found.constant
        ess = np.minimum(found.ess_bulk, found.ess_tail)[free].min(initial=np.inf)
        r_hat = found.r_hat[free].max(initial=1.0)
        if self.until.ess is not None and not ess >= self.until.ess:
            return None
        if self.until.r_hat is not None and not r_hat <= self.until.r_hat:
            return None
        return (
            f"the target is reached after {length} draws a chain (ESS {ess:.0f}, R-hat {r_hat:.3f})"
        )


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a flag; a second acts as it would without this.

    Yields:
        A function that tells whether a signal came. Only the main thread can receive one.
    """
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        del number, frame
        came.set()
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield came.is_set
    finally:
        restore()
