"""What learning a sampler may cost, and who is told how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from quincunx.inference.archive import Saved, restored
from quincunx.inference.compilation import Compilation
from quincunx.inference.session import Progress


class Budget:
    """Limits of a training, its costs so far, its observers, and where it was left.

    A method asks `restored` for the state to begin with, calls `note` between compiled chunks, and
    stops when that says so.

    Attributes:
        seconds: time that training may take, compilation not counted.
        evaluations: log-density evaluations that it may take.
        gradients: gradients so far.
        spent: log-density evaluations so far, those with a gradient included.
        skipped: steps that were left out because nothing about them was finite.
        outcome: why training ended before its plan, or `None`.
        fulfilled: whether that is one of these limits.
        state: what `note` was last told of, from which training could go on.
    """

    def __init__(
        self,
        *,
        seconds: float | None = None,
        evaluations: int | None = None,
        report: Callable[[Progress], None] = lambda progress: None,
        stop: Callable[[], str | None] = lambda: None,
        keep: Callable[[Any], str | None] = lambda state: None,
        look: Callable[[Callable[[], Any] | None], None] = lambda now: None,
        saved: Saved | None = None,
        compilation: Compilation | None = None,
    ) -> None:
        self.seconds = seconds
        self.evaluations = evaluations
        self.gradients = 0
        self.spent = 0
        self.outcome: str | None = None
        self.fulfilled = False
        self.skipped = 0
        self.state: Any = None
        self._report = report
        self._stop = stop
        self._keep = keep
        self._look = look
        self._saved = saved
        self._compilation = Compilation() if compilation is None else compilation
        self._before = 0.0
        self._began = time.perf_counter()

    @property
    def compile_seconds(self) -> float:
        """Time that went to tracing and compiling, in the runs before this one too."""
        return self._before + self._compilation.seconds

    @property
    def elapsed(self) -> float:
        """Seconds since the start, compilation left out."""
        return time.perf_counter() - self._began - self.compile_seconds

    def count(self, *, gradients: int = 0, evaluations: int = 0) -> None:
        """Add to the costs."""
        self.gradients += gradients
        self.spent += evaluations

    def restored(self, state: Any) -> Any:
        """The state to begin with: the one given, or where a checkpoint has one, that.

        The costs are then those of the training up to there, what led to `state` included.
        """
        if self._saved is None:
            return state
        self.restore_costs()
        return restored(self._saved.state, state)

    def restore_costs(self) -> None:
        """Have the costs that are saved."""
        assert self._saved is not None
        told = self._saved.told
        self.gradients, self.spent = told["gradients"], told["spent"]
        self.skipped = told["skipped"]
        self._before = told["compile_seconds"] - self._compilation.seconds
        self._began = time.perf_counter() - told["seconds"] - told["compile_seconds"]

    def told(self) -> dict[str, Any]:
        """The costs, to be saved."""
        return {
            "gradients": self.gradients,
            "spent": self.spent,
            "skipped": self.skipped,
            "compile_seconds": self.compile_seconds,
            "seconds": self.elapsed,
        }

    def note(
        self,
        done: int,
        total: int,
        *,
        loss: float = float("nan"),
        skipped: int = 0,
        state: Any = None,
        now: Callable[[], Any] | None = None,
    ) -> bool:
        """Report after a part of the work; whether it must stop now.

        Args:
            done: steps of training so far.
            total: steps to be done.
            loss: the training loss, for display.
            skipped: steps that were left out because nothing about them was finite.
            state: a pytree from which training could go on.
            now: makes the sampler that has been learned so far.
        """
        self.skipped += skipped
        self.state = state
        shown = float(np.asarray(loss))
        self._report(Progress("training", done, total, self.skipped, shown))
        self._look(now)
        if done < total:
            failed = None if state is None else self._keep(state)
            self.outcome = self.outcome or failed or self._limit() or self._stop()
        return self.outcome is not None

    def _limit(self) -> str | None:
        late = self.seconds is not None and self.elapsed >= self.seconds
        dear = self.evaluations is not None and self.spent >= self.evaluations
        self.fulfilled = late or dear
        if late:
            return f"the budget of {self.seconds:g} seconds is spent"
        return f"the budget of {self.evaluations} evaluations is spent" if dear else None
