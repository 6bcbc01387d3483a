"""A run in the background: how far it is, its draws so far, and its end."""

from __future__ import annotations

import atexit
import functools
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple

import jax

from quincunx.engine.errors import QuincunxError
from quincunx.inference.fit import Fit
from quincunx.inference.job import Job
from quincunx.inference.learning import Learning
from quincunx.inference.progress import Report
from quincunx.inference.session import Progress
from quincunx.inference.stopping import INTERRUPTED, interruptible

CANCELLED = "it was cancelled"
_SIGNAL_SECONDS = 0.1


class Status(NamedTuple):
    """How far a run in the background is.

    Attributes:
        state: `compiling` until the first chunk has run, `warm-up` and `sampling`, or `training`
            for methods that learn a sampler; then `finished`
            at the end of the plan or of `until`, `interrupted` before it, or `failed`.
        progress: what was known after the last chunk; `None` before the first.
        seconds: since the start, up to the end.
    """

    state: str
    progress: Progress | None
    seconds: float


class Run:
    """A run in the background, made by `infer(..., blocking=False)`.

    The work is done in a thread of this process. When the interpreter exits, the current chunk
    ends, the checkpoint is written, and the rest of the run is given up.
    """

    def __init__(self, job: Job | Learning, report: Report, label: str) -> None:
        self._job = job
        self._report = report
        self._label = label
        self._progress: Progress | None = None
        self._reason: str | None = None
        self._result: Future[Fit] = Future()
        self._requests: list[Future[Fit]] = []
        self._asking = threading.Lock()
        self._ended = threading.Event()
        self._began = time.monotonic()
        self._seconds: float | None = None
        self._settings = _thread_settings()
        self._thread = threading.Thread(target=self._main, name=label, daemon=True)
        _join_at_exit()
        _RUNNING.add(self)
        self._thread.start()

    def status(self) -> Status:
        """How far the run is; returns at once."""
        seconds = self._seconds or time.monotonic() - self._began
        return Status(self._state(), self._progress, seconds)

    def inspect(self) -> Fit:
        """The draws so far, as a fit; of a sampler in training, draws from it as it is.

        It waits for the end of the current chunk, about half a second; while the run is compiling
        for its first chunk. The fit stays as it is while the run goes on. After the end it is the
        final fit, as `wait` returns it.

        Raises:
            Exception: what the run failed with.
        """
        if threading.current_thread() is self._thread:
            return self._look()
        request: Future[Fit] = Future()
        with self._asking:
            if self._ended.is_set():
                return self._result.result()
            self._requests.append(request)
        return request.result()

    def cancel(self) -> None:
        """End the run after the current chunk, with a checkpoint; returns at once.

        The fit has the draws so far, and its outcome says that the run was cancelled.
        """
        self._reason = self._reason or CANCELLED

    def wait(self, timeout: int | float | None = None) -> Fit:
        """Wait for the end of the run.

        In the main thread, Ctrl-C or SIGTERM ends the run after the current chunk, as it does a
        blocking one; a second Ctrl-C leaves at once.

        Args:
            timeout: seconds to wait at most; without end by default.

        Returns:
            The fit.

        Raises:
            TimeoutError: the run goes on after so many seconds.
            Exception: what the run failed with.
        """
        if threading.current_thread() is self._thread:
            raise QuincunxError("A run cannot wait for itself: call `wait` outside `progress`.")
        end = None if timeout is None else time.monotonic() + timeout
        with interruptible() as interrupted:
            while not self._ended.wait(_step(end)):
                if interrupted():
                    self._reason = self._reason or INTERRUPTED
                if end is not None and time.monotonic() >= end:
                    message = f"The run has not ended within {timeout:g} seconds ({self._told()}). "
                    raise TimeoutError(message + "It goes on: wait again, or `cancel()` it.")
        return self._result.result()

    def __repr__(self) -> str:
        return f"<Run of {self._label}: {self._told()}>"

    def _told(self) -> str:
        state, progress, _ = self.status()
        if progress is None:
            return state
        return f"{state}, {progress.done} of {progress.total} {self._job.unit}"

    def _state(self) -> str:
        if not self._ended.is_set():
            return "compiling" if self._progress is None else self._progress.phase
        if self._result.exception() is not None:
            return "failed"
        return "finished" if self._job.finished else "interrupted"

    def _main(self) -> None:
        try:
            with self._settings:
                fit = self._job.run(self._note, stop=lambda: self._reason, visit=self._serve)
            self._result.set_result(fit)
        except BaseException as error:  # for the thread that waits
            self._result.set_exception(error)
        self._seconds = time.monotonic() - self._began
        with self._asking:
            self._ended.set()
        self._serve()

    def _note(self, progress: Progress) -> None:
        self._progress = progress
        self._report(progress)

    def _serve(self) -> None:
        """Answer those who asked for the draws so far."""
        with self._asking:
            requests, self._requests = self._requests, []
        if not requests:
            return
        try:
            fit = self._result.result() if self._ended.is_set() else self._look()
        except BaseException as error:  # for the threads that asked
            for request in requests:
                request.set_exception(error)
        else:
            for request in requests:
                request.set_result(fit)

    def _look(self) -> Fit:
        return self._job.look()


def _step(end: float | None) -> float:
    left = _SIGNAL_SECONDS if end is None else end - time.monotonic()
    return min(max(left, 0.0), _SIGNAL_SECONDS)


@contextmanager
def _entered(*, x64: bool, device: Any) -> Iterator[None]:
    """The given settings of JAX, in a thread that may have others."""
    with ExitStack() as settings:
        config: Any = jax.config
        if config.jax_enable_x64 != x64:
            settings.enter_context(jax.enable_x64(x64))
        if config.jax_default_device is not device:
            settings.enter_context(jax.default_device(device))
        yield


def _thread_settings() -> AbstractContextManager[None]:
    """Precision and device that this thread may have set for itself alone."""
    config: Any = jax.config
    return _entered(x64=config.jax_enable_x64, device=config.jax_default_device)


_RUNNING: weakref.WeakSet[Run] = weakref.WeakSet()


@functools.cache
def _join_at_exit() -> None:
    """See that runs end before the interpreter does.

    That must be before its thread pools are closed, which storing needs, and so before `atexit`.
    """
    register = getattr(threading, "_register_atexit", atexit.register)
    register(_end_all)


def _end_all() -> None:
    running = list(_RUNNING)
    for run in running:
        run.cancel()
    for run in running:
        run._ended.wait()
