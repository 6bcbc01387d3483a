"""Checkpoints: a run's whole state on disk, so that it survives the process.

A folder holds numbered state files, numbered segments of draws and a manifest that names them with
their SHA-256. Every file is written beside its place, flushed to disk and renamed; the manifest
comes last, and the previous one is kept with its files. Whatever moment a process is killed at, one
of the two manifests describes a whole checkpoint.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from quincunx.engine.density import Density
from quincunx.engine.errors import QuincunxError
from quincunx.engine.storage import Stored
from quincunx.inference.distributed.mesh import on_host, place
from quincunx.inference.distributed.processes import is_first, of_first
from quincunx.inference.locks import WriteLock
from quincunx.inference.output import versions
from quincunx.inference.session import Group, Session
from quincunx.inference.sinks import Block, Draws

_FORMAT = 2
_SINK = "sink|"
_MANIFEST, _PREVIOUS = "manifest.json", "manifest.previous.json"


class CheckpointError(QuincunxError):
    """A checkpoint cannot be written, is damaged, or belongs to another run."""


class Checkpoint:
    """Where and how often a run is saved.

    Attributes:
        folder: the folder, made if it does not exist.
        every: seconds between checkpoints; there is always one at the end of warm-up and of the
            run.
    """

    def __init__(self, folder: str | Path, *, every: float = 30.0) -> None:
        self.folder = Path(folder)
        self.every = every
        self._number = 0
        self._saved_blocks = 0
        self._segments: list[dict[str, Any]] = []
        self._written = time.monotonic()
        self._warm = False
        self._lock = WriteLock(self.folder / "lock")
        self._whole: bytes | None = None  # the manifest of the last checkpoint known to be whole

    @property
    def exists(self) -> bool:
        """Whether the folder holds a checkpoint."""
        return any((self.folder / name).exists() for name in (_MANIFEST, _PREVIOUS))

    def prepare(self, *, resume: bool) -> None:
        """Make the folder, see that it can be written to, and lock it for this run.

        Raises:
            CheckpointError: it cannot, another run is writing to it, or it holds a checkpoint that
                is not to be resumed.
        """
        if not is_first():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(self.folder, CheckpointError)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            if self.exists and not resume:
                message = f"'{self.folder}' holds a checkpoint already. Continue it with "
                raise CheckpointError(message + "`resume=True`, or name another folder.")
            _write(self.folder / "probe", b"")
            (self.folder / "probe").unlink()
        except OSError as error:
            self.release()
            raise self._unwritable(error) from error
        except CheckpointError:
            self.release()
            raise

    def release(self) -> None:
        """Unlock the folder."""
        self._lock.release()

    def due(self, session: Session) -> bool:
        """Whether it is time for a checkpoint."""
        warm = session.done >= session.plan.num_warmup
        crossed, self._warm = warm and not self._warm, warm
        return crossed or of_first(time.monotonic() - self._written) >= self.every

    def write(self, session: Session, identity: Mapping[str, Any]) -> None:
        """Save the session; what was saved before stays valid until this is whole.

        Raises:
            OSError: the disk is full or gone.
        """
        session.sink.flush()
        packed = _pack_state(session)  # all processes together
        if not is_first():
            self._written = time.monotonic()
            return
        self._number += 1
        blocks = session.sink.blocks[self._saved_blocks :]
        segments = list(self._segments)
        if blocks:
            name = f"draws-{self._number:06d}.npz"
            segments.append(self._save(name, _pack_blocks(blocks)))
        state = self._save(f"state-{self._number:06d}.npz", packed)
        manifest = {
            "format": _FORMAT,
            "number": self._number,
            "identity": dict(identity),
            "state": state,
            "segments": segments,
            "stored": session.sink.position(),
            "done": [group.done for group in session.groups],
            "free": session.free,
            "compile_seconds": session.compile_seconds,
            "sample_seconds": session.sample_seconds,
        }
        body = json.dumps(manifest, sort_keys=True)
        sealed = json.dumps({"sha256": _digest(body.encode()), "body": body}).encode()
        if self._whole is not None:
            _write(self.folder / _PREVIOUS, self._whole)
        _write(self.folder / _MANIFEST, sealed)
        self._whole = sealed
        self._segments, self._saved_blocks = segments, self._saved_blocks + len(blocks)
        self._written = time.monotonic()
        self._sweep()

    def read(self, session: Session, identity: Mapping[str, Any]) -> None:
        """Put the session where the last whole checkpoint was.

        Raises:
            CheckpointError: no whole checkpoint is left, or it is of another run.
        """
        reasons = []
        for name in (_MANIFEST, _PREVIOUS):
            try:
                manifest = self._manifest(name)
                state = _unpack(self._load(manifest["state"]))
                blocks = [self._load(segment) for segment in manifest["segments"]]
            except _Damaged as damage:
                reasons.append(str(damage))
                continue
            _compare(self.folder, manifest["identity"], identity)
            _restore_groups(session.groups, state, manifest["done"])
            saved = [block for data in blocks for block in _unpack_blocks(data)]
            session.sink.restore(manifest["stored"], _sink_arrays(state), saved)
            session.compile_seconds += manifest["compile_seconds"]
            session.sample_seconds = manifest["sample_seconds"]
            session.free = manifest["free"]
            self._number = max(manifest["number"], self._newest())
            self._segments, self._saved_blocks = manifest["segments"], len(saved)
            self._warm = session.done >= session.plan.num_warmup
            self._whole = (self.folder / name).read_bytes()
            return
        message = f"No whole checkpoint is left in '{self.folder}': {'; '.join(reasons)}. "
        raise CheckpointError(message + "Nothing was changed; start again in another folder.")

    def _unwritable(self, error: OSError) -> CheckpointError:
        message = f"Checkpoints cannot be written to '{self.folder}': {error.strerror}. "
        return CheckpointError(message + "Name a folder with room that you may write.")

    def _manifest(self, name: str) -> dict[str, Any]:
        try:
            sealed = json.loads((self.folder / name).read_bytes())
            body = sealed["body"]
            if _digest(body.encode()) != sealed["sha256"]:
                raise _Damaged(f"{name} is damaged")
            manifest = json.loads(body)
        except OSError as error:
            raise _Damaged(f"{name} is missing") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _Damaged(f"{name} is damaged") from error
        if manifest["format"] != _FORMAT:
            raise CheckpointError(f"'{self.folder}' has checkpoint format {manifest['format']}.")
        return manifest

    def _save(self, name: str, data: bytes) -> dict[str, Any]:
        _write(self.folder / name, data)
        return {"file": name, "sha256": _digest(data)}

    def _load(self, entry: Mapping[str, Any]) -> bytes:
        try:
            data = (self.folder / entry["file"]).read_bytes()
        except OSError as error:
            raise _Damaged(f"{entry['file']} is missing") from error
        if _digest(data) != entry["sha256"]:
            raise _Damaged(f"{entry['file']} is damaged")
        return data

    def _newest(self) -> int:
        numbers = [int(re.sub(r"\D", "", path.stem)) for path in self.folder.glob("*-*.npz")]
        return max(numbers, default=0)

    def _sweep(self) -> None:
        """Remove files that neither manifest names, and what killed processes left half written."""
        named = set()
        for name in (_MANIFEST, _PREVIOUS):
            try:
                manifest = self._manifest(name)
            except _Damaged:
                continue
            named |= {entry["file"] for entry in (manifest["state"], *manifest["segments"])}
        left = [path for path in self.folder.glob("*-*.npz") if path.name not in named]
        for path in (*left, *self.folder.glob(".*.npz.*"), *self.folder.glob(".manifest*.json.*")):
            path.unlink(missing_ok=True)


class _Damaged(Exception):
    """A file of a checkpoint is missing or not what it was."""


def identity(session: Session) -> dict[str, Any]:
    """What must be the same for a checkpoint to be continued: values by a name users know."""
    density, plan = session.density, session.plan
    found = versions()
    return {
        "model": _model_digest(density),
        "data": _data_digest(density),
        "method": session.method.name,
        "settings": json.loads(json.dumps(session.method.settings())),
        "key": np.asarray(jax.random.key_data(session.key)).tolist(),
        "num_chains": sum(group.size for group in session.groups),
        "num_warmup": plan.num_warmup,
        "thinning": plan.thinning,
        "keep_warmup": plan.keep_warmup,
        "chain_method": session.layout,
        "store": session.sink.label,
        "precision": str(np.dtype(jax.dtypes.canonicalize_dtype(float))),
        "version of quincunx": found["quincunx"],
        "version of jax": found["jax"],
        "version of blackjax": found["blackjax"],
    }


def _model_digest(density: Density) -> str:
    """Digest of the traced computation: it changes with the model's text, not with its data."""
    z = jax.ShapeDtypeStruct((density.dim,), jax.dtypes.canonicalize_dtype(float))
    traced = jax.make_jaxpr(lambda d, z: (d.log_density(z), d.constrain(z)))(density, z)
    text = re.sub(r"0x[0-9a-f]+", "0x", str(traced))
    return density.program.name + ":" + _digest(text.encode())[:16]


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


def _compare(folder: Path, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    different = [name for name in asked if saved.get(name) != asked[name]]
    if not different:
        return
    details = ", ".join(f"{name} ({saved.get(name)}, now {asked[name]})" for name in different)
    message = f"The checkpoint in '{folder}' is of another run; different are: {details}. "
    raise CheckpointError(message + "Nothing was changed; ask for the same run or another folder.")


def _plain(leaf: Any) -> np.ndarray:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(on_host(leaf))


def _like(data: np.ndarray, leaf: Any) -> Any:
    """An array of the type and place of `leaf`."""
    lies, is_key = leaf.sharding, jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    data = data if is_key else data.astype(leaf.dtype)
    if isinstance(lies, NamedSharding):
        on: Any = lies.mesh
        placed = place(data, lies.spec, on)
    else:
        placed = jnp.asarray(data) if is_key else jax.device_put(data, lies)
    return jax.random.wrap_key_data(placed, impl=jax.random.key_impl(leaf)) if is_key else placed


def _pack(arrays: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _unpack(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _pack_state(session: Session) -> bytes:
    arrays = {f"{_SINK}{name}": array for name, array in session.sink.arrays().items()}
    for number, group in enumerate(session.groups):
        for index, leaf in enumerate(jax.tree.leaves((group.keys, group.carry))):
            arrays[f"{number}|leaf|{index}"] = _plain(leaf)
        for phase, totals in group.totals.items():
            for name, total in totals.items():
                arrays[f"{number}|total|{phase}|{name}"] = total
        arrays[f"{number}|step_size"] = np.asarray(group.step_size)
    return _pack(arrays)


def _sink_arrays(state: Mapping[str, np.ndarray]) -> Draws:
    return {
        name.removeprefix(_SINK): array for name, array in state.items() if name.startswith(_SINK)
    }


def _restore_groups(groups: list[Group], state: Mapping[str, np.ndarray], done: list[int]) -> None:
    for number, group in enumerate(groups):
        leaves, treedef = jax.tree.flatten((group.keys, group.carry))
        restored = [
            _like(state[f"{number}|leaf|{index}"], leaf) for index, leaf in enumerate(leaves)
        ]
        group.keys, group.carry = jax.tree.unflatten(treedef, restored)
        for phase, totals in group.totals.items():
            for name in totals:
                totals[name] = state[f"{number}|total|{phase}|{name}"]
        group.step_size = float(state[f"{number}|step_size"])
        group.done = done[number]


def _pack_blocks(blocks: Sequence[Block]) -> bytes:
    arrays = {}
    for number, (phase, group, draws, stats) in enumerate(blocks):
        for kind, values in (("draw", draws), ("stat", stats)):
            for name, value in values.items():
                arrays[f"{number}|{phase}|{group}|{kind}|{name}"] = value
    return _pack(arrays)


def _unpack_blocks(data: bytes) -> list[Block]:
    blocks: dict[int, tuple] = {}
    for label, value in _unpack(data).items():
        number, phase, group, kind, name = label.split("|", 4)
        block = blocks.setdefault(int(number), (phase, int(group), {}, {}))
        block[2 if kind == "draw" else 3][name] = value
    return [blocks[number] for number in sorted(blocks)]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write(path: Path, data: bytes) -> None:
    """Write a file so that it is whole or not there, also after a crash."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
