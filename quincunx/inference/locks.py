"""One writer at a time for what a run writes to."""

from __future__ import annotations

from pathlib import Path

import filelock

from quincunx.engine.errors import QuincunxError


class WriteLock:
    """A lock file that one run of one process can hold; the system frees it if the process dies.

    The file stays when the lock is released, which does no harm.

    Attributes:
        path: the lock file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = filelock.FileLock(path, thread_local=False)

    def acquire(self, target: Path, error: type[QuincunxError]) -> None:
        """Take the lock, or raise `error` if another run writes to `target`.

        Raises:
            OSError: there can be no lock file there.
        """
        try:
            self._lock.acquire(blocking=False)
        except filelock.Timeout as busy:
            message = f"Another run is writing to '{target}'. "
            raise error(message + "Wait until it ends, or name another place.") from busy

    def release(self) -> None:
        """Give the lock back, if it is held."""
        self._lock.release()
