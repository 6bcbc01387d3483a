"""What learning a sampler may cost, and who is told how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from quincunx.inference.compilation import Compilation
from quincunx.inference.session import Progress
from quincunx.inference.stopping import INTERRUPTED


class Budget:
    """Limits of a training, its costs so far, and its observers.

    A method calls `note` between compiled chunks, and stops when that says so.

    Attributes:
        seconds: time that training may take, compilation not counted.
        evaluations: log-density evaluations that it may take.
        gradients: gradients so far.
        spent: log-density evaluations so far, those with a gradient included.
        compilation: what is told how long JAX compiles.
        outcome: why training ended before its plan, or `None`.
    """

    def __init__(
        self,
        *,
        seconds: float | None = None,
        evaluations: int | None = None,
        report: Callable[[Progress], None] = lambda progress: None,
        interrupted: Callable[[], bool] = lambda: False,
        compilation: Compilation | None = None,
    ) -> None:
        self.seconds = seconds
        self.evaluations = evaluations
        self.gradients = 0
        self.spent = 0
        self.compilation = Compilation() if compilation is None else compilation
        self.outcome: str | None = None
        self.skipped = 0
        self._report = report
        self._interrupted = interrupted
        self._began = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since the start, compilation left out."""
        return time.perf_counter() - self._began - self.compilation.seconds

    def count(self, *, gradients: int = 0, evaluations: int = 0) -> None:
        """Add to the costs."""
        self.gradients += gradients
        self.spent += evaluations

    def note(self, done: int, total: int, *, loss: float = float("nan"), skipped: int = 0) -> bool:
        """Report after a part of the work; whether it must stop now.

        Args:
            done: steps of training so far.
            total: steps to be done.
            loss: the training loss, for display.
            skipped: steps that were left out because nothing about them was finite.
        """
        self.skipped += skipped
        shown = float(np.asarray(loss))
        self._report(Progress("training", done, total, self.skipped, shown))
        if done < total:
            self.outcome = self.outcome or self._limit()
        return self.outcome is not None

    def _limit(self) -> str | None:
        if self._interrupted():
            return INTERRUPTED
        if self.seconds is not None and self.elapsed >= self.seconds:
            return f"the budget of {self.seconds:g} seconds is spent"
        if self.evaluations is not None and self.spent >= self.evaluations:
            return f"the budget of {self.evaluations} evaluations is spent"
        return None
