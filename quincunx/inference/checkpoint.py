"""Checkpoints of chains: what of a session goes into an archive, and how it comes back."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from quincunx.engine.density import Density
from quincunx.engine.storage import Stored
from quincunx.inference.archive import Archive, digest, like, numbered, plain
from quincunx.inference.distributed.processes import is_first, of_first
from quincunx.inference.method import Method
from quincunx.inference.output import versions
from quincunx.inference.session import Group, Session
from quincunx.inference.sinks import Block, Draws

_SINK = "sink|"


class Checkpoint:
    """Where and how often a run is saved.

    Attributes:
        archive: the folder.
        every: seconds between checkpoints; there is always one at the end of warm-up and of the
            run.
    """

    def __init__(self, folder: str | Path, *, every: float = 30.0) -> None:
        self.archive = Archive(folder)
        self.every = every
        self._saved_blocks = 0
        self._written = time.monotonic()
        self._warm = False

    def due(self, session: Session) -> bool:
        """Whether it is time for a checkpoint."""
        warm = session.done >= session.plan.num_warmup
        crossed, self._warm = warm and not self._warm, warm
        return crossed or self.elapsed

    @property
    def elapsed(self) -> bool:
        """Whether so much time has gone by that there is to be another."""
        return of_first(time.monotonic() - self._written) >= self.every

    def write(self, session: Session, identity: Mapping[str, Any]) -> None:
        """Save the session; what was saved before stays valid until this is whole.

        Raises:
            OSError: the disk is full or gone.
        """
        session.sink.flush()
        state = _state(session)  # all processes together
        if is_first():
            blocks = session.sink.blocks[self._saved_blocks :]
            told = {
                "stored": session.sink.position(),
                "done": [group.done for group in session.groups],
                "free": session.free,
                "compile_seconds": session.compile_seconds,
                "sample_seconds": session.sample_seconds,
            }
            self.archive.write(identity, told, state, _named(blocks))
            self._saved_blocks += len(blocks)
        self._written = time.monotonic()

    def read(self, session: Session, identity: Mapping[str, Any]) -> None:
        """Put the session where the last whole checkpoint was.

        Raises:
            CheckpointError: no whole checkpoint is left, or it is of another run.
        """
        saved = self.archive.read(identity)
        told = saved.told
        _restore_groups(session.groups, saved.state, told["done"])
        blocks = [block for segment in saved.segments for block in _blocks(segment)]
        session.sink.restore(told["stored"], _sink_arrays(saved.state), blocks)
        session.compile_seconds += told["compile_seconds"]
        session.sample_seconds = told["sample_seconds"]
        session.free = told["free"]
        self._saved_blocks = len(blocks)
        self._warm = session.done >= session.plan.num_warmup

    def keep(self, identity: Mapping[str, Any], told: Mapping[str, Any], state: Any) -> None:
        """Save a pytree of arrays, and what is said of it.

        Raises:
            OSError: the disk is full or gone.
        """
        arrays = numbered(state)
        if is_first():
            self.archive.write(identity, told, arrays)
        self._written = time.monotonic()


def identity_of_work(method: Method, density: Density, key: jax.Array) -> dict[str, Any]:
    """What must be the same for work to be continued: values by a name users know."""
    found = versions()
    return {
        "model": _model_digest(density),
        "data": _data_digest(density),
        "method": method.name,
        "settings": json.loads(json.dumps(method.settings())),
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "precision": str(np.dtype(jax.dtypes.canonicalize_dtype(float))),
        "version of quincunx": found["quincunx"],
        "version of jax": found["jax"],
        "version of blackjax": found["blackjax"],
    }


def identity(session: Session) -> dict[str, Any]:
    """What must be the same for a checkpoint to be continued: values by a name users know."""
    plan = session.plan
    return identity_of_work(session.method, session.density, session.key) | {
        "num_chains": sum(group.size for group in session.groups),
        "num_warmup": plan.num_warmup,
        "thinning": plan.thinning,
        "keep_warmup": plan.keep_warmup,
        "chain_method": session.layout,
        "store": session.sink.label,
    }


def _state(session: Session) -> dict[str, Any]:
    arrays = {f"{_SINK}{name}": array for name, array in session.sink.arrays().items()}
    for number, group in enumerate(session.groups):
        for index, leaf in enumerate(jax.tree.leaves((group.keys, group.carry))):
            arrays[f"{number}|leaf|{index}"] = plain(leaf)
        for phase, totals in group.totals.items():
            for name, total in totals.items():
                arrays[f"{number}|total|{phase}|{name}"] = total
        arrays[f"{number}|step_size"] = np.asarray(group.step_size)
    return arrays


def _sink_arrays(state: Mapping[str, np.ndarray]) -> Draws:
    return {
        name.removeprefix(_SINK): array for name, array in state.items() if name.startswith(_SINK)
    }


def _restore_groups(groups: list[Group], state: Mapping[str, np.ndarray], done: list[int]) -> None:
    for number, group in enumerate(groups):
        leaves, treedef = jax.tree.flatten((group.keys, group.carry))
        restored = [
            like(state[f"{number}|leaf|{index}"], leaf) for index, leaf in enumerate(leaves)
        ]
        group.keys, group.carry = jax.tree.unflatten(treedef, restored)
        for phase, totals in group.totals.items():
            for name in totals:
                totals[name] = state[f"{number}|total|{phase}|{name}"]
        group.step_size = float(state[f"{number}|step_size"])
        group.done = done[number]


def _named(blocks: Sequence[Block]) -> dict[str, np.ndarray]:
    arrays = {}
    for number, (phase, group, draws, stats) in enumerate(blocks):
        for kind, values in (("draw", draws), ("stat", stats)):
            for name, value in values.items():
                arrays[f"{number}|{phase}|{group}|{kind}|{name}"] = value
    return arrays


def _blocks(arrays: Mapping[str, np.ndarray]) -> list[Block]:
    blocks: dict[int, tuple] = {}
    for label, value in arrays.items():
        number, phase, group, kind, name = label.split("|", 4)
        block = blocks.setdefault(int(number), (phase, int(group), {}, {}))
        block[2 if kind == "draw" else 3][name] = value
    return [blocks[number] for number in sorted(blocks)]


def _model_digest(density: Density) -> str:
    """Digest of the traced computation: it changes with the model's text, not with its data."""
    z = jax.ShapeDtypeStruct((density.dim,), jax.dtypes.canonicalize_dtype(float))
    traced = jax.make_jaxpr(lambda d, z: (d.log_density(z), d.constrain(z)))(density, z)
    text = re.sub(r"0x[0-9a-f]+", "0x", str(traced))
    return density.program.name + ":" + digest(text.encode())[:16]


def _data_digest(density: Density) -> str:
    digest = hashlib.sha256(repr(density.program.signature.constants).encode())
    for leaf in density.leaves:
        if isinstance(leaf, Stored):
            digest.update(leaf.digest().encode())
            continue
        array = np.ascontiguousarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]
