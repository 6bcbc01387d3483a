"""Several processes that run one script together, and what they must agree on.

Every process runs the same script. Arrays lie on devices of all of them, so each must make the same
computations in the same order: what depends on clocks, signals and files is decided by one for all.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from typing import Any

import jax
import numpy as np
from jax._src.distributed import global_state
from jax.experimental import multihost_utils

from quincunx.engine.errors import MethodError

COORDINATOR = "QUINCUNX_COORDINATOR"
COUNT, RANK = "QUINCUNX_PROCESSES", "QUINCUNX_RANK"
_CLUSTERS = ("SLURM_JOB_ID", "OMPI_COMM_WORLD_SIZE", "KUBERNETES_SERVICE_HOST")
_HEARTBEAT, _START = 60, 120  # seconds
_PULSE, _SILENCE = 2.0, 20.0  # seconds
_PULSES, _ENDED = "quincunx/pulse", "ended"


def initialize(
    coordinator: str | None = None, num_processes: int | None = None, rank: int | None = None
) -> None:
    """Join the other processes that run this script; the first call in it.

    Under `quincunx launch`, SLURM, Open MPI or Kubernetes no argument is needed. Where there is
    none and nothing of the kind, the script runs by itself as one process.

    A process that dies is missed after 20 seconds; the others then end with status 2 and one line
    that names its rank. When the first one dies, which the others are connected to, JAX ends them
    at once, with a message of its own that names the leader, task 0.

    Args:
        coordinator: `host:port` of the process with rank 0.
        num_processes: how many there are.
        rank: which this is, from 0.

    Raises:
        MethodError: only some of the arguments were given.
    """
    given = (coordinator, num_processes, rank)
    if coordinator is None and COORDINATOR in os.environ:
        coordinator = os.environ[COORDINATOR]
        num_processes, rank = int(os.environ[COUNT]), int(os.environ[RANK])
    elif any(value is None for value in given) and any(value is not None for value in given):
        message = "`distributed.initialize` takes coordinator, num_processes and rank, or none of "
        raise MethodError(message + "them: leave them to `quincunx launch` or the cluster.")
    elif coordinator is None and not any(name in os.environ for name in _CLUSTERS):
        return
    jax.distributed.initialize(
        coordinator_address=coordinator,
        num_processes=num_processes,
        process_id=rank,
        initialization_timeout=_START,
        heartbeat_timeout_seconds=_HEARTBEAT,
    )
    if global_state.client is not None and jax.process_count() > 1:
        _watch(global_state.client, jax.process_index(), jax.process_count())


def _watch(client: Any, rank: int, count: int) -> None:
    """Show the others that this process lives, and end it when one of them has died."""
    ended = threading.Event()

    def tell(value: str) -> None:
        client.key_value_set(f"{_PULSES}/{rank}", value, allow_overwrite=True)

    def watch() -> None:
        seen, beat = dict.fromkeys(map(str, range(count)), ("", time.monotonic())), 0
        while True:
            time.sleep(_PULSE)
            try:
                if not ended.is_set():
                    tell(str(beat := beat + 1))
                pulses = client.key_value_dir_get(_PULSES)
            except jax.errors.JaxRuntimeError:
                if ended.is_set():
                    return
                _die("0", count)
            now = time.monotonic()
            for key, value in pulses:
                other = key.rpartition("/")[2]
                if value != seen[other][0]:
                    seen[other] = (value, now)
            for other, (value, when) in seen.items():
                if value != _ENDED and now - when > _SILENCE:
                    _die(other, count)

    def end() -> None:
        """JAX now waits for the others to end, who may yet die."""
        ended.set()
        tell(_ENDED)

    threading.Thread(target=watch, name="quincunx-watch", daemon=True).start()
    atexit.register(end)


def _die(other: str, count: int) -> None:
    message = f"Rank {other} of {count} has not answered for {_SILENCE:.0f} s, and this process "
    message += (
        "ends. A run with `checkpoint=` goes on from its last checkpoint with `resume=True`, "
    )
    sys.stderr.write(message + "with this or another number of processes.\n")
    sys.stderr.flush()
    os._exit(2)


def is_first() -> bool:
    """Whether this process is the one that writes files and prints."""
    return jax.process_index() == 0


def of_first(value: float | bool) -> float:  # noqa: FBT001
    """A number as the first process has it, for all."""
    if jax.process_count() == 1:
        return float(value)
    return float(multihost_utils.broadcast_one_to_all(np.float64(value)))


def of_any(flag: bool) -> bool:  # noqa: FBT001
    """Whether a flag is up in any process, for all."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
