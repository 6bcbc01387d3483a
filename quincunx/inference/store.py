"""Draws on disk while they are made: a Zarr store that ArviZ and xarray read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from quincunx.engine.errors import QuincunxError
from quincunx.inference.locks import WriteLock
from quincunx.inference.sinks import Block, Draws, Sink, draws_length

_CHUNK_BYTES = 8 * 2**20
_GROUPS = {
    "posterior": ("posterior", "sample_stats"),
    "warmup": ("warmup_posterior", "warmup_sample_stats"),
}


class StoreError(QuincunxError):
    """A store cannot be made, or cannot be written to."""


@contextmanager
def plain_strings() -> Iterator[None]:
    """Write text labels without Zarr's warning that their type is young."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have a Zarr V3 specification")
        yield


class ZarrStore(Sink):
    """Append draws to a Zarr store; memory holds at most one chunk of them.

    The store is a tree of ArviZ's groups. Each array's chunks are written once they are full, and
    when the run is saved or ends; every file of the store is replaced as a whole.

    Attributes:
        path: the folder of the store.
        sizes: number of chains in each group of chains.
        stored: draws written, by phase, for each group of chains.
    """

    def __init__(
        self,
        path: str | Path,
        sizes: Sequence[int],
        dims: Mapping[str, Sequence[str]],
        coords: Mapping[str, Any],
        phases: Sequence[str],
    ) -> None:
        self.path = Path(path)
        self.sizes = list(sizes)
        self.dims = dict(dims)
        self.coords = dict(coords)
        self.phases = tuple(phases)
        self.stored = {phase: [0] * len(self.sizes) for phase in self.phases}
        self._pending: dict[tuple[str, int], list[tuple[Draws, Draws]]] = {}
        self._arrays: dict[str, dict[str, Any]] = {}
        self._lock = WriteLock(self.path.with_name(f".{self.path.name}.lock"))

    @property
    def label(self) -> str:
        """The path."""
        return str(self.path)

    def acquire(self) -> None:
        """Lock the store, by a file beside it.

        Raises:
            StoreError: another run is writing to it, or nothing can be written there.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(self.path, StoreError)
        except OSError as error:
            raise self._impossible(error) from error

    def release(self) -> None:
        """Unlock the store."""
        self._lock.release()

    def check(self) -> None:
        """Refuse a path where there is something already.

        Raises:
            StoreError: there is.
        """
        if self.path.exists():
            message = f"There is something at '{self.path}' already. "
            raise StoreError(message + "Remove it, or name another store.")

    def create(self) -> None:
        """Make the store.

        Raises:
            StoreError: it cannot be written to.
        """
        try:
            zarr.create_group(str(self.path))
        except OSError as error:
            raise self._impossible(error) from error

    def append(self, phase: str, group: int, draws: Draws, stats: Draws) -> None:
        """Take the draws of one chunk, `(chains of the group, draws, ...)`.

        Raises:
            OSError: the disk is full or gone; the draws stay in memory.
        """
        if phase not in self.phases:
            return
        for name, values in zip(_GROUPS[phase], (draws, stats), strict=True):
            if name not in self._arrays:
                self._arrays[name] = self._open(name, values)
        waiting = self._pending.setdefault((phase, group), [])
        waiting.append((draws, stats))
        if sum(draws_length(block[0]) for block in waiting) >= self._chunk(draws, stats):
            self._write(phase, group)

    def flush(self) -> None:
        """Write what is in memory.

        Raises:
            OSError: the disk is full or gone; the draws stay in memory.
        """
        for phase, group in list(self._pending):
            self._write(phase, group)

    def length(self, phase: str) -> int:
        """Draws that every chain has, in memory or on disk."""
        waiting = [
            sum(draws_length(block[0]) for block in self._pending.get((phase, group), []))
            for group in range(len(self.sizes))
        ]
        return min(a + b for a, b in zip(self.stored[phase], waiting, strict=True))

    def position(self) -> dict[str, list[int]]:
        """How much is stored, for a checkpoint."""
        return {phase: list(counts) for phase, counts in self.stored.items()}

    def arrays(self) -> Draws:
        """Nothing: the draws are on disk."""
        return {}

    def restore(
        self, position: Mapping[str, list[int]], arrays: Draws, blocks: Sequence[Block]
    ) -> None:
        """Go on after the first draws that a checkpoint counts; later ones are written anew."""
        del arrays, blocks
        if not self.path.exists():
            self.create()
        self.stored = {phase: list(position[phase]) for phase in self.phases}
        root = zarr.open_group(str(self.path), mode="r+")
        for phase in self.phases:
            for name in _GROUPS[phase]:
                if name not in root:
                    continue
                group: Any = root[name]
                if "draw" in group:  # its length is known again when the run ends
                    del group["draw"]
                self._arrays[name] = dict(group.arrays())

    def draws(self, phase: str) -> dict[str, Any]:
        """Draws of a phase by site, loaded as they are indexed."""
        self.flush()
        dataset = self._dataset(_GROUPS[phase][0], self.length(phase))
        return {str(name): dataset[name] for name in dataset.data_vars}

    def copy(self) -> ZarrStore:
        """Refused: a store has one writer.

        Raises:
            QuincunxError: always.
        """
        message = "The draws are in a store, which has one writer. Go on with "
        raise QuincunxError(message + "`infer(store=..., checkpoint=..., resume=True)`.")

    def groups(self) -> dict[str, Draws]:
        """None: the draws are on disk."""
        return {}

    def complete(self, tree: xr.DataTree, attributes: Mapping[str, Any], *, ended: bool) -> None:
        """Give the tree the stored draws; once the run has ended, give the store the rest."""
        if ended:
            others = {str(name): node.to_dataset() for name, node in tree.children.items()}
            self.annotate(attributes, others)
        else:
            self.flush()
        for name, node in self.tree().children.items():
            tree[name] = xr.DataTree(node.to_dataset())

    def tree(self) -> xr.DataTree:
        """The tree of what is stored, loaded as it is used; draws that could not be written too."""
        datasets = {}
        for phase in self.phases:
            for which, name in enumerate(_GROUPS[phase]):
                stored = min(self.stored[phase])
                dataset = self._dataset(name, stored)
                if self.length(phase) > stored:
                    dataset = self._with_pending(dataset, phase, which, stored)
                datasets[name] = dataset
        return xr.DataTree.from_dict(datasets)

    def annotate(self, attributes: Mapping[str, Any], others: Mapping[str, xr.Dataset]) -> None:
        """Write the attributes of the groups of draws, and other groups whole."""
        for phase in self.phases:
            draws = xr.Dataset(coords={"draw": np.arange(min(self.stored[phase]))})
            for name in _GROUPS[phase]:
                draws.to_zarr(self.path, group=name, mode="a", consolidated=False)
        for name, dataset in others.items():
            self.add(name, dataset)
        root = zarr.open_group(str(self.path), mode="r+")
        for name in _GROUPS["posterior"]:
            root[name].attrs.update(dict(attributes))

    def add(self, name: str, dataset: xr.Dataset) -> None:
        """Write a group whole."""
        with plain_strings():
            dataset.to_zarr(self.path, group=name, mode="w", consolidated=False)

    def _impossible(self, error: OSError) -> StoreError:
        message = f"The store '{self.path}' cannot be made: {error.strerror}. "
        return StoreError(message + "Name a path in a folder that you may write.")

    def _dataset(self, name: str, length: int) -> xr.Dataset:
        opened = xr.open_zarr(self.path, group=name, consolidated=False, chunks=None)
        opened = opened.drop_vars("draw", errors="ignore")
        return opened.isel(draw=slice(length)).assign_coords(draw=np.arange(length))

    def _with_pending(self, dataset: xr.Dataset, phase: str, which: int, stored: int) -> xr.Dataset:
        length = self.length(phase)
        whole = {}
        for name in dataset.data_vars:
            parts = []
            for group, size in enumerate(self.sizes):
                first = sum(self.sizes[:group])
                old = dataset[name].values[first : first + size]
                new = [block[which][str(name)] for block in self._pending.get((phase, group), [])]
                skipped = self.stored[phase][group] - stored
                if skipped:
                    array = self._arrays[_GROUPS[phase][which]][str(name)]
                    new = [array[first : first + size, stored : stored + skipped], *new]
                parts.append(np.concatenate([old, *new], axis=1)[:, :length])
            whole[name] = (dataset[name].dims, np.concatenate(parts))
        coords = {key: value for key, value in dataset.coords.items() if key != "draw"}
        return xr.Dataset(whole, coords | {"draw": np.arange(length)}, dataset.attrs)

    def _chunk(self, *values: Draws) -> int:
        arrays = [array for part in values for array in part.values()]
        size = sum(array.itemsize * int(np.prod(array.shape[2:], dtype=int)) for array in arrays)
        return int(np.clip(_CHUNK_BYTES // max(size * max(self.sizes), 1), 1, 10_000))

    def _open(self, name: str, values: Draws) -> dict[str, Any]:
        root = zarr.open_group(str(self.path), mode="r+")
        if name in root:
            return dict(root[name].arrays())  # pyright: ignore
        group = root.create_group(name)
        chains, length = sum(self.sizes), self._chunk(values)
        made = {}
        axes: dict[str, int] = {"chain": chains}
        for site, value in values.items():
            default = [f"{site}_dim_{axis}" for axis in range(value.ndim - 2)]
            dims = ["chain", "draw", *self.dims.get(site, default)]
            axes |= dict(zip(dims[2:], value.shape[2:], strict=True))
            made[site] = group.create_array(
                site,
                shape=(chains, 0, *value.shape[2:]),
                chunks=(max(self.sizes), length, *(max(size, 1) for size in value.shape[2:])),
                dtype=value.dtype,
                compressors=None,
                dimension_names=dims,
            )
        for dim, size in axes.items():
            labels = np.asarray(self.coords.get(dim, np.arange(size)))
            coordinate = xr.Dataset(coords={dim: labels})
            with plain_strings():
                coordinate.to_zarr(self.path, group=name, mode="a", consolidated=False)
        return made

    def _write(self, phase: str, group: int) -> None:
        waiting = self._pending.get((phase, group), [])
        length = sum(draws_length(block[0]) for block in waiting)
        if not length:
            return
        start = self.stored[phase][group]
        first = sum(self.sizes[:group])
        chains = slice(first, first + self.sizes[group])
        for which, name in enumerate(_GROUPS[phase]):
            for site, array in self._arrays[name].items():
                if site not in waiting[0][which]:
                    continue
                values = np.concatenate([block[which][site] for block in waiting], axis=1)
                if array.shape[1] < start + length:
                    array.resize((array.shape[0], start + length, *array.shape[2:]))
                array[chains, start : start + length] = values
        self.stored[phase][group] = start + length
        self._pending[phase, group] = []
