"""A folder in which the state of some work is kept, so that it survives the process.

It holds numbered state files, numbered segments of what was added since, and a manifest that names
them with their SHA-256. Every file is written beside its place, flushed to disk and renamed; the
manifest comes last, and the previous one is kept with its files. Whatever moment a process is
killed at, one of the two manifests describes a whole state.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from quincunx.engine.errors import QuincunxError
from quincunx.inference.distributed.mesh import on_host, place
from quincunx.inference.distributed.processes import is_first
from quincunx.inference.locks import WriteLock

_FORMAT = 3
_MANIFEST, _PREVIOUS = "manifest.json", "manifest.previous.json"


class CheckpointError(QuincunxError):
    """A checkpoint cannot be written, is damaged, or belongs to another run."""


@dataclass(frozen=True)
class Saved:
    """What an archive holds.

    Attributes:
        identity: of the work.
        told: what was said of its state.
        state: arrays by name.
        segments: arrays by name, of each segment in the order in which they were added.
    """

    identity: dict[str, Any]
    told: dict[str, Any]
    state: dict[str, np.ndarray]
    segments: list[dict[str, np.ndarray]]


class Archive:
    """The folder of one piece of work, held by one process at a time.

    Attributes:
        folder: the folder, made if it does not exist.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._number = 0
        self._segments: list[dict[str, Any]] = []
        self._lock = WriteLock(self.folder / "lock")
        self._whole: bytes | None = None  # the last manifest known to be whole

    @property
    def exists(self) -> bool:
        """Whether the folder holds a state."""
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

    def write(
        self,
        identity: Mapping[str, Any],
        told: Mapping[str, Any],
        state: Mapping[str, Any],
        segment: Mapping[str, Any] | None = None,
    ) -> None:
        """Save a state; what was saved before stays valid until this is whole.

        Args:
            identity: of the work.
            told: what is to be said of the state.
            state: arrays by name, in place of those before.
            segment: arrays by name, beside those before.

        Raises:
            OSError: the disk is full or gone.
        """
        self._number += 1
        segments = list(self._segments)
        if segment:
            segments.append(self._save(f"draws-{self._number:06d}.npz", _pack(segment)))
        named = self._save(f"state-{self._number:06d}.npz", _pack(state))
        manifest = {
            "format": _FORMAT,
            "number": self._number,
            "identity": dict(identity),
            "told": dict(told),
            "state": named,
            "segments": segments,
        }
        body = json.dumps(manifest, sort_keys=True)
        sealed = json.dumps({"sha256": digest(body.encode()), "body": body}).encode()
        if self._whole is not None:
            _write(self.folder / _PREVIOUS, self._whole)
        _write(self.folder / _MANIFEST, sealed)
        self._whole = sealed
        self._segments = segments
        self._sweep()

    def read(self, identity: Mapping[str, Any]) -> Saved:
        """The last whole state.

        Raises:
            CheckpointError: none is left, or it is of other work.
        """
        reasons = []
        for name in (_MANIFEST, _PREVIOUS):
            try:
                manifest = self._manifest(name)
                state = _unpack(self._load(manifest["state"]))
                segments = [_unpack(self._load(segment)) for segment in manifest["segments"]]
            except _Damaged as damage:
                reasons.append(str(damage))
                continue
            self._compare(manifest["identity"], identity)
            self._number = max(manifest["number"], self._newest())
            self._segments = manifest["segments"]
            self._whole = (self.folder / name).read_bytes()
            return Saved(manifest["identity"], manifest["told"], state, segments)
        message = f"No whole checkpoint is left in '{self.folder}': {'; '.join(reasons)}. "
        raise CheckpointError(message + "Nothing was changed; start again in another folder.")

    def _compare(self, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
        different = [name for name in {**saved, **asked} if saved.get(name) != asked.get(name)]
        if not different:
            return
        both = [f"{name} ({saved.get(name)}, now {asked.get(name)})" for name in different]
        message = f"The checkpoint in '{self.folder}' is of another run; different are: "
        message += f"{', '.join(both)}. "
        raise CheckpointError(
            message + "Nothing was changed; ask for the same run or another folder."
        )

    def _unwritable(self, error: OSError) -> CheckpointError:
        message = f"Checkpoints cannot be written to '{self.folder}': {error.strerror}. "
        return CheckpointError(message + "Name a folder with room that you may write.")

    def _manifest(self, name: str) -> dict[str, Any]:
        try:
            sealed = json.loads((self.folder / name).read_bytes())
            body = sealed["body"]
            if digest(body.encode()) != sealed["sha256"]:
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
        return {"file": name, "sha256": digest(data)}

    def _load(self, entry: Mapping[str, Any]) -> bytes:
        try:
            data = (self.folder / entry["file"]).read_bytes()
        except OSError as error:
            raise _Damaged(f"{entry['file']} is missing") from error
        if digest(data) != entry["sha256"]:
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


def plain(leaf: Any) -> np.ndarray:
    """An array of numbers on the host, also of keys."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(on_host(leaf))


def like(data: np.ndarray, leaf: Any) -> Any:
    """What `plain` was given, of the type and in the place of `leaf`."""
    lies, is_key = leaf.sharding, jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    data = data if is_key else data.astype(leaf.dtype)
    if isinstance(lies, NamedSharding):
        on: Any = lies.mesh
        placed = place(data, lies.spec, on)
    else:
        plainly = is_key or not leaf.committed
        placed = jnp.asarray(data) if plainly else jax.device_put(data, lies)
    return jax.random.wrap_key_data(placed, impl=jax.random.key_impl(leaf)) if is_key else placed


def restored(arrays: Mapping[str, np.ndarray], state: Any) -> Any:
    """A pytree in the form of `state`, with the arrays that `numbered` made of another."""
    dynamic, static = eqx.partition(state, eqx.is_array)
    leaves, treedef = jax.tree.flatten(dynamic)
    found = [like(arrays[str(index)], leaf) for index, leaf in enumerate(leaves)]
    return eqx.combine(jax.tree.unflatten(treedef, found), static)


def numbered(state: Any) -> dict[str, np.ndarray]:
    """The arrays of a pytree, by their numbers."""
    leaves = jax.tree.leaves(eqx.filter(state, eqx.is_array))
    return {str(index): plain(leaf) for index, leaf in enumerate(leaves)}


def _pack(arrays: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _unpack(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def digest(data: bytes) -> str:
    """SHA-256, in hexadecimal digits."""
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
