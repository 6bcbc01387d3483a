"""A run from its first checkpoint to its fit: saving, stopping and interruption."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from quincunx.inference.archive import CheckpointError
from quincunx.inference.checkpoint import Checkpoint, identity
from quincunx.inference.distributed.processes import of_any, of_first
from quincunx.inference.fit import Fit
from quincunx.inference.progress import Report
from quincunx.inference.session import Session
from quincunx.inference.stopping import ELSEWHERE, INTERRUPTED, Until, Watch, interruptible


class Job:
    """A run that has been prepared, and holds what it writes to until it has ended.

    Attributes:
        session: the chains.
        unit: what its progress counts.
    """

    unit = "transitions"

    def __init__(
        self, session: Session, saver: Checkpoint | None, until: Until | None, *, resume: bool
    ) -> None:
        """Take hold of the checkpoint and the store, and continue the run that is saved there.

        Raises:
            CheckpointError: the checkpoint cannot be written, is in use, or is of another run.
            StoreError: the store cannot be made, is in use, or exists already.
        """
        self.session = session
        self._satisfied = False
        self._saver = saver
        self._watch = None if until is None else Watch(until)
        self._identity = {} if saver is None else identity(session)
        with ExitStack() as held:
            if saver is not None:
                saver.archive.prepare(resume=resume)
                held.callback(saver.archive.release)
            session.sink.acquire()
            held.callback(session.sink.release)
            if saver is not None and of_first(saver.archive.exists):
                self._resume(saver)
            else:
                self._begin()
            self._held = held.pop_all()

    def run(
        self,
        report: Report,
        *,
        stop: Callable[[], str | None] = lambda: None,
        visit: Callable[[], None] = lambda: None,
    ) -> Fit:
        """Run to the end, and give back what was held.

        Args:
            report: called with the progress after each chunk.
            stop: called after each chunk; returns why the run should stop, or `None`.
            visit: called after each chunk, when the draws so far may be looked at.
        """
        session, saver = self.session, self._saver

        def save() -> str | None:
            visit()
            return self._save() if saver is not None and saver.due(session) else None

        def ended() -> str | None:
            if of_any(interrupted()):
                return INTERRUPTED
            reached = self._watch and self._watch.reached(session.sink, session.sample_seconds)
            self._satisfied = of_any(bool(reached))
            return reached or (ELSEWHERE if self._satisfied else stop())

        with self._held:
            with interruptible() as interrupted:
                session.run(report, save=save, stop=ended)
                session.outcome = self._flush() or self._save() or session.outcome
            return Fit.of(session)

    @property
    def finished(self) -> bool:
        """Whether the plan or `until` was fulfilled."""
        return self.session.finished or self._satisfied

    def look(self) -> Fit:
        """The draws so far."""
        return Fit.of(self.session, ended=False)

    def _resume(self, saver: Checkpoint) -> None:
        saver.read(self.session, self._identity)
        if self.session.done > self.session.plan.total:
            message = (
                f"The checkpoint in '{saver.archive.folder}' is beyond `num_samples`; ask for more."
            )
            raise CheckpointError(message)

    def _begin(self) -> None:
        """Make the store; the checkpoint comes first, so that a run killed here has its store."""
        self.session.sink.check()
        failure = self._save()
        if failure:
            message = f"The run cannot be saved: {failure}. "
            raise CheckpointError(message + "Name a folder with room that you may write.")
        self.session.sink.create()

    def _save(self) -> str | None:
        """Write a checkpoint, if there is to be one; say what went wrong."""
        if self._saver is None:
            return None
        try:
            self._saver.write(self.session, self._identity)
        except OSError as error:
            folder = self._saver.archive.folder
            return f"no checkpoint could be written to '{folder}' ({error.strerror})"
        return None

    def _flush(self) -> str | None:
        try:
            self.session.sink.flush()
        except OSError as error:
            return f"draws could not be written ({error.strerror})"
        return None
