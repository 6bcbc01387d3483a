"""Several processes that run one script together, and what they must agree on.

Every process runs the same script. Arrays lie on devices of all of them, so each must make the same
computations in the same order: what depends on clocks, signals and files is decided by one for all.
"""

from __future__ import annotations

import os

import jax
import numpy as np
from jax.experimental import multihost_utils

from quincunx.engine.errors import MethodError

COORDINATOR = "QUINCUNX_COORDINATOR"
COUNT, RANK = "QUINCUNX_PROCESSES", "QUINCUNX_RANK"
_CLUSTERS = ("SLURM_JOB_ID", "OMPI_COMM_WORLD_SIZE", "KUBERNETES_SERVICE_HOST")
_HEARTBEAT, _START = 30, 120  # seconds


def initialize(
    coordinator: str | None = None, num_processes: int | None = None, rank: int | None = None
) -> None:
    """Join the other processes that run this script; the first call in it.

    Under `quincunx launch`, SLURM, Open MPI or Kubernetes no argument is needed. Where there is
    none and nothing of the kind, the script runs by itself as one process.

    A process that dies is missed after 30 seconds; the others then end with JAX's message, which
    names its rank.

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
