"""Rows that stay on disk: read block by block as they are needed, ahead of the device.

Inside a compiled function the rows of a block come from a callback to the host. It is told which
block will be asked for next, and where reads take time it reads that one in a thread while the
device computes.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import tempfile
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from quincunx.engine.errors import ModelError

_AHEAD = 64  # blocks that may lie ready
_BYTES = 1 << 24  # copied at once
_DIGESTED = 4096  # rows
_SLOW = 1e-3  # seconds that a read takes when it is worth a thread
_NUMBERS = itertools.count()


class _Reader:
    """Reads rows of one array; all readers are equal, so that none is part of a program."""

    def __init__(self, array: np.ndarray, dtype: np.dtype, folder: Any) -> None:
        self.array, self.dtype = array, dtype
        self.folder = folder  # deleted with the reader
        self.number = next(_NUMBERS)
        self._ready: OrderedDict[bytes, Future] = OrderedDict()
        self._seconds = 0.0  # of a read, on average of late
        _READERS[self.number] = self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Reader)

    def __hash__(self) -> int:
        return 0

    def read(self, rows: np.ndarray, ahead: np.ndarray) -> np.ndarray:
        """Rows now; those that will be asked for next are read in a thread where reads are slow."""
        name = rows.tobytes()
        known = self._ready.pop(name, None)
        if self._seconds >= _SLOW:
            following = ahead.tobytes()
            if following != name and following not in self._ready:
                self._ready[following] = _threads().submit(self._timed, ahead)
            while len(self._ready) > _AHEAD:
                self._ready.popitem(last=False)
        return self._timed(rows) if known is None else known.result()

    def _timed(self, rows: np.ndarray) -> np.ndarray:
        began = time.perf_counter()
        found = self.gather(rows)
        self._seconds = 0.9 * self._seconds + 0.1 * (time.perf_counter() - began)
        return found

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Rows of the array, in the precision of the device."""
        first, last = int(rows[0]), int(rows[-1])
        contiguous = last - first == len(rows) - 1 and bool((np.diff(rows) == 1).all())
        found = self.array[first : last + 1] if contiguous else np.take(self.array, rows, axis=0)
        return np.asarray(found, self.dtype)


_READERS: weakref.WeakValueDictionary[int, _Reader] = weakref.WeakValueDictionary()


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2, thread_name_prefix="rows")


class Stored(eqx.Module):
    """An array whose rows stay on disk; made by `on_disk`.

    Inside a model it stands for the array: `shape` and `len` are known, and entering its plate
    yields rows.

    Attributes:
        number: which array, traced, so that other data of the same shape compile nothing again.
        shape: of the array.
        dtype: in which rows reach the device.
        reader: keeps the array open.
    """

    number: Any
    shape: tuple[int, ...] = eqx.field(static=True)
    dtype: str = eqx.field(static=True)
    reader: Any = eqx.field(static=True, repr=False)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __jax_array__(self) -> Array:
        raise ModelError(_whole(self.shape))

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise ModelError(_whole(self.shape))

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Starts and ends of blocks of rows small enough for the host's memory."""
        size = max(_BYTES // max(self._row_bytes, 1), 1)
        for start in range(0, len(self), size):
            yield start, min(start + size, len(self))

    def digest(self) -> str:
        """A digest of the shape and of rows evenly over the array."""
        chosen = np.unique(np.linspace(0, len(self) - 1, _DIGESTED).astype(np.int64))
        content = np.ascontiguousarray(self.reader.gather(chosen)).tobytes()
        return hashlib.sha256(f"{self.dtype}{self.shape}".encode() + content).hexdigest()

    @property
    def _row_bytes(self) -> int:
        return int(np.prod(self.shape[1:], dtype=int)) * self.reader.array.dtype.itemsize


def fetch(
    arrays: Sequence[Stored], indices: Int[Array, " n"], ahead: Int[Array, " n"] | None = None
) -> tuple[Array, ...]:
    """The rows of given indices of each array, `(n, ...)`, from one call to the host.

    Args:
        arrays: which have the same rows.
        indices: which rows.
        ahead: which will be asked for next.
    """
    count = indices.shape[0]
    specs = tuple(jax.ShapeDtypeStruct((count, *a.shape[1:]), a.dtype) for a in arrays)
    numbers = tuple(jnp.asarray(array.number) for array in arrays)
    return _fetch(specs, numbers, indices, indices if ahead is None else ahead)


def on_disk(array: Any) -> Stored:
    """Let the rows of an array stay on disk, to be read as they are needed.

    The array is given to a model as any other, and taken by a data plate, whose rows are then read
    block by block. Memory-mapped arrays and Zarr arrays in `data` are treated so by themselves;
    `np.asarray(array)` reads one into memory instead.

    Single rows are read in random order. Those of a Zarr array lie in compressed chunks, so it is
    unpacked once to a temporary file, which is deleted when nothing uses it any longer: call this
    function once and keep the result for several runs.

    Args:
        array: what `np.load(path, mmap_mode="r")` or `zarr.open_array(path)` returns.

    Returns:
        The array, for the model's arguments.

    Raises:
        ModelError: something else, no axis, no rows, or values that are not real numbers.
    """
    if isinstance(array, Stored):
        return array
    kind = type(array).__name__
    if not is_stored(array):
        message = f"`on_disk` takes a memory-mapped array or a Zarr array, not a {kind}. "
        raise ModelError(message + "Save it with `np.save` and load it with `mmap_mode='r'`.")
    if not array.shape or not array.shape[0]:
        raise ModelError(f"The {kind} on disk has shape {array.shape}: it needs rows.")
    if array.dtype.kind not in "biuf":
        message = f"The {kind} on disk holds {array.dtype} values. "
        raise ModelError(message + "Encode it as integers (categories) or floats first.")
    folder = None
    if not isinstance(array, np.memmap):
        folder = tempfile.TemporaryDirectory(prefix="quincunx-rows-")
        array = _unpacked(array, Path(folder.name) / "rows.npy")
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    reader = _Reader(array, dtype, folder)
    return Stored(np.int32(reader.number), tuple(array.shape), str(dtype), reader)


def is_stored(value: Any) -> bool:
    """Whether a value's rows can stay on disk."""
    kind = type(value)
    zarr = kind.__module__.partition(".")[0] == "zarr" and kind.__name__ == "Array"
    return isinstance(value, (Stored, np.memmap)) or zarr


def abstract(shape: tuple[int, ...], dtype: str) -> Stored:
    """What stands for a stored array while a model is traced for its shapes."""
    return Stored(jax.ShapeDtypeStruct((), np.int32), shape, dtype, None)


def _unpacked(array: Any, path: Path) -> np.ndarray:
    """A Zarr array as a memory-mapped file, copied chunk by chunk."""
    copy = np.lib.format.open_memmap(path, "w+", array.dtype, array.shape)
    row = max(copy.nbytes // len(copy), 1)
    along = array.chunks[0]
    step = max(_BYTES // (row * along), 1) * along
    for start in range(0, len(copy), step):
        copy[start : start + step] = array[start : start + step]
    copy.flush()
    return np.load(path, mmap_mode="r")


def _whole(shape: tuple[int, ...]) -> str:
    message = f"An array of shape {shape} is on disk, and is read row by row. Enter its plate, "
    return message + "`with qx.plate('row', X, y) as (x, t):`, and use the rows that it yields."


def _read(numbers: tuple[Any, ...], indices: Any, ahead: Any) -> tuple[np.ndarray, ...]:
    """On the host: rows for one block, or for each of several."""
    indices, ahead = np.asarray(indices), np.asarray(ahead)
    readers = [_READERS[int(np.asarray(number).reshape(-1)[0])] for number in numbers]
    if indices.ndim == 1:
        return tuple(reader.read(indices, ahead) for reader in readers)
    lead, count = np.broadcast_shapes(indices.shape[:-1], ahead.shape[:-1]), indices.shape[-1]
    each = np.broadcast_to(indices, (*lead, count)).reshape(-1, count)
    later = np.broadcast_to(ahead, (*lead, count)).reshape(-1, count)
    found = [[reader.read(*pair) for pair in zip(each, later, strict=True)] for reader in readers]
    return tuple(np.reshape(rows, (*lead, count, *rows[0].shape[1:])) for rows in found)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _fetch(specs: Any, numbers: Any, indices: Array, ahead: Array) -> tuple[Array, ...]:
    """Rows as constants of whatever is differentiated."""
    return jax.pure_callback(_read, specs, numbers, indices, ahead, vmap_method="expand_dims")


@_fetch.defjvp
def _(specs: Any, primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    del tangents
    rows = _fetch(specs, *primals)
    return rows, tuple(_no_tangent(entry) for entry in rows)


def _no_tangent(rows: Array) -> Any:
    if jnp.issubdtype(rows.dtype, jnp.floating):
        return jnp.zeros_like(rows)
    return np.zeros(rows.shape, jax.dtypes.float0)
