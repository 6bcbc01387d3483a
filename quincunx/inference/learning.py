"""A sampler's training from its first checkpoint to its fit: saving, stopping and interruption."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import jax
from jaxtyping import Array

from quincunx.engine.density import Density
from quincunx.engine.errors import QuincunxError
from quincunx.inference.approximate import Trained
from quincunx.inference.archive import Saved, restored
from quincunx.inference.checkpoint import Checkpoint, identity_of_work
from quincunx.inference.compilation import compiling
from quincunx.inference.distributed.processes import of_first
from quincunx.inference.fit import Fit
from quincunx.inference.method import Approximation, Sampler
from quincunx.inference.progress import Report
from quincunx.inference.stopping import INTERRUPTED, Until, interruptible
from quincunx.inference.training import Budget


class Learning:
    """A training that has been prepared, and holds its checkpoint until it has ended.

    Attributes:
        method: what learns.
        density: the target.
        shape: numbers of independent batches and of draws in each.
    """

    unit = "steps"

    def __init__(
        self,
        method: Approximation,
        density: Density,
        key: Array,
        shape: tuple[int, int],
        until: Until | None,
        saver: Checkpoint | None,
        *,
        resume: bool,
    ) -> None:
        """Take hold of the checkpoint, and read the training that is saved there.

        Raises:
            CheckpointError: the checkpoint cannot be written, is in use, or is of another run.
        """
        self.method = method
        self.density = density
        self.shape = shape
        self._learning_key, self._drawing_key = jax.random.split(key)
        self._seconds = None if until is None else float(until.seconds or 0)
        self._saver = saver
        self._saved: Saved | None = None
        self._identity = {} if saver is None else identity_of_work(method, density, key)
        self._budget = Budget()
        self._now: Callable[[], Sampler] | None = None
        self._finished = False
        with ExitStack() as held:
            if saver is not None:
                saver.archive.prepare(resume=resume)
                held.callback(saver.archive.release)
                if of_first(saver.archive.exists):
                    self._saved = saver.archive.read(self._identity)
            self._held = held.pop_all()

    def run(
        self,
        report: Report,
        *,
        stop: Callable[[], str | None] = lambda: None,
        visit: Callable[[], None] = lambda: None,
    ) -> Fit:
        """Train to the end, draw, and give back what was held.

        Args:
            report: called with the progress after each chunk.
            stop: called after each chunk; returns why the training should stop, or `None`.
            visit: called after each chunk, when draws may be made from the sampler as it is.
        """
        with self._held, interruptible() as interrupted, compiling() as compilation:
            budget = self._budget = Budget(
                seconds=self._seconds,
                report=report,
                stop=lambda: INTERRUPTED if interrupted() else stop(),
                keep=self._keep,
                look=lambda now: self._look(now, visit),
                saved=self._saved,
                compilation=compilation,
            )
            sampler = self._learned(budget)
            self._finished = budget.outcome is None or budget.fulfilled
            return self._fit(sampler)

    @property
    def finished(self) -> bool:
        """Whether the training came to its planned end, or to that of its budget."""
        return self._finished

    def look(self) -> Fit:
        """Draws from the sampler as it is.

        Raises:
            QuincunxError: nothing has been learned yet.
        """
        if self._now is None:
            message = f"`{type(self.method).__name__}` has not learned a sampler yet, from which "
            raise QuincunxError(message + "draws could be made: `wait()` for it.")
        return self._fit(self._now())

    def _learned(self, budget: Budget) -> Sampler:
        if self._saved is not None and self._saved.told["learned"]:
            sampler = restored(self._saved.state, self.method.skeleton(self.density))
            budget.restore_costs()
            return sampler
        sampler = self.method.fit(self.density, self._learning_key, budget)
        if self._saver is not None and budget.outcome is None:
            budget.outcome = self._write(sampler, learned=True)
        elif self._saver is not None and budget.state is not None:
            budget.outcome = self._write(budget.state, learned=False) or budget.outcome
        return sampler

    def _look(self, now: Callable[[], Sampler] | None, visit: Callable[[], None]) -> None:
        self._now = now
        visit()

    def _fit(self, sampler: Sampler) -> Fit:
        trained = Trained(self.method, sampler, self.density)
        return trained.first(self._drawing_key, self.shape, self._budget)

    def _keep(self, state: Any) -> str | None:
        """Write a checkpoint, if one is due; say what went wrong."""
        if self._saver is None or not self._saver.elapsed:
            return None
        return self._write(state, learned=False)

    def _write(self, state: Any, *, learned: bool) -> str | None:
        assert self._saver is not None
        try:
            told = {"learned": learned, **self._budget.told()}
            self._saver.keep(self._identity, told, state)
        except OSError as error:
            folder = self._saver.archive.folder
            return f"no checkpoint could be written to '{folder}' ({error.strerror})"
        return None
