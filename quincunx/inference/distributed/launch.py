"""Local processes that run one script together, started and ended as one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from quincunx.engine.errors import QuincunxError
from quincunx.inference.distributed.processes import COORDINATOR, COUNT, RANK

_GRACE, _POLL = 5.0, 0.1  # seconds
_FORCED = "--xla_force_host_platform_device_count"


class LaunchError(QuincunxError):
    """A process of a launched script failed."""


def launch(
    script: Path, arguments: Sequence[str], processes: int, devices: int | None, logs: Path
) -> None:
    """Run a script in several processes and wait for all of them.

    What rank 0 writes appears here as well as in its log. When one ends with an error, the others
    are ended too.

    Args:
        script: the script, which calls `distributed.initialize` first.
        arguments: its arguments.
        processes: how many.
        devices: devices that each has on a processor; those that there are by default.
        logs: folder for `rank-0.log`, `rank-1.log`, ...

    Raises:
        LaunchError: a process failed; names the first one that did.
    """
    logs.mkdir(parents=True, exist_ok=True)
    paths = [logs / f"rank-{rank}.log" for rank in range(processes)]
    command = [sys.executable, "-u", str(script), *arguments]
    shared = {COORDINATOR: f"127.0.0.1:{_free_port()}", COUNT: str(processes)}
    started: list[subprocess.Popen] = []
    shown = 0
    try:
        for rank, path in enumerate(paths):
            environment = {**_environment(devices), **shared, RANK: str(rank)}
            with open(path, "wb") as log:
                started.append(
                    subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
                )
        while any(process.poll() is None for process in started):
            shown = _show(paths[0], shown)
            failed = [process.poll() not in (None, 0) for process in started]
            if any(failed):
                raise LaunchError(_failure(started, failed.index(True), paths))
            time.sleep(_POLL)
        failed = [process.returncode != 0 for process in started]
        if any(failed):
            raise LaunchError(_failure(started, failed.index(True), paths))
    finally:
        _end(started)
        _show(paths[0], shown)


def _environment(devices: int | None) -> dict[str, str]:
    environment = dict(os.environ)
    if devices is not None:
        kept = [flag for flag in environment.get("XLA_FLAGS", "").split() if _FORCED not in flag]
        environment["XLA_FLAGS"] = " ".join([*kept, f"{_FORCED}={devices}"])
        environment["JAX_PLATFORMS"] = "cpu"
    return environment


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _show(path: Path, shown: int) -> int:
    """Write on what a log has gained; returns how much was shown."""
    with open(path, "rb") as log:
        log.seek(shown)
        gained = log.read()
    sys.stdout.write(gained.decode(errors="replace"))
    sys.stdout.flush()
    return shown + len(gained)


def _failure(started: Sequence[subprocess.Popen], rank: int, paths: Sequence[Path]) -> str:
    code = started[rank].returncode
    how = f"ended with status {code}" if code > 0 else f"was killed by {_name(-code)}"
    message = f"Rank {rank} of {len(started)} {how}, and the others were ended. Its output is in "
    message += f"'{paths[rank]}'. A run with `checkpoint=` goes on from its last checkpoint with "
    return message + "`resume=True`, with this or another number of processes."


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _end(started: Sequence[subprocess.Popen]) -> None:
    """End what still runs: first gently, then for good."""
    running = [process for process in started if process.poll() is None]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + _GRACE
    for process in running:
        try:
            process.wait(max(deadline - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
