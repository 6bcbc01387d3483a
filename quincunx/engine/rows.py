"""Which rows of a data plate are in use: chosen ones, or a contiguous block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array

from quincunx.engine.storage import Stored, fetch

_UNROLLED = 16


class Block(eqx.Module):
    """Contiguous rows of a data plate: `size` of them, from `start` on.

    Cutting a block out of an array moves memory in one piece; chosen rows are gathered one by
    one, which costs several times as much.

    Attributes:
        start: the first row, traced; `start + size` must not go beyond the plate.
        size: number of rows, static.
        count: how many of them, from the first on, count; the others are masked out. `None` for
            all.
        order: the row that stands in each place, where rows are in an order that their arrays do
            not have; they are then gathered.
        weight: a further factor of the plate's terms, `None` for one.
        ahead: where the block starts that will be asked for next, `None` if that is not known.
        index: which of the blocks that the rows are cut into evenly, `None` for another block.
        number: how many those are.
    """

    start: Any
    size: int = eqx.field(static=True)
    count: Any = None
    order: Any = None
    weight: Any = None
    ahead: Any = None
    index: Any = None
    number: int | None = eqx.field(static=True, default=None)

    @property
    def indices(self) -> Array:
        """The rows as a vector."""
        return self._from(self.start)

    def _from(self, start: Any) -> Array:
        places = jnp.asarray(start) + jnp.arange(self.size)
        return places if self.order is None else jnp.asarray(self.order)[places]

    @property
    def following(self) -> Array | None:
        """The rows that will be asked for next."""
        return None if self.ahead is None else self._from(self.ahead)

    @property
    def shape(self) -> tuple[int]:
        """As the vector of rows has it."""
        return (self.size,)

    def take(self, array: Any) -> Array:
        """The block's rows of an array."""
        if self.order is not None:
            return jnp.asarray(array)[self.indices]
        return _cut(self.size)(jnp.asarray(array), jnp.asarray(self.start))

    def only(self, terms: Array, axis: int) -> Array:
        """Terms with the block on one axis: masked, and rescaled from `size` to `count` rows."""
        if self.weight is not None:
            terms = self.weight * terms
        if self.count is None:
            return terms
        shape = [1] * terms.ndim
        shape[axis] = self.size
        counted = (jnp.arange(self.size) < self.count).reshape(shape)
        return jnp.where(counted, terms, 0.0) * (self.size / self.count)


class Part(Block):
    """The rows that a density has of its own, where each part of the rows is a density.

    Attributes:
        parts: number of parts.
    """

    parts: int = eqx.field(static=True, default=1)

    def take(self, array: Any) -> Array:
        """The array as it stands: it has the part's rows alone."""
        return array

    def only(self, terms: Array, axis: int) -> Array:
        """Terms with the part on one axis, masked."""
        shape = [1] * terms.ndim
        shape[axis] = self.size
        return jnp.where((jnp.arange(self.size) < self.count).reshape(shape), terms, 0.0)


class Piece(Part):
    """A block of the rows that a density has of its own.

    Attributes:
        begin: the first of them, traced, counted from the part's first.
        factor: of the plate's terms.
    """

    begin: Any = 0
    factor: Any = 1.0

    @property
    def indices(self) -> Array:
        """The rows as a vector, counted from the first of all."""
        return self._from(self.start + self.begin)

    def take(self, array: Any) -> Array:
        """The block's rows of the part's array."""
        return _cut(self.size)(jnp.asarray(array), jnp.asarray(self.begin))

    def only(self, terms: Array, axis: int) -> Array:
        """Terms with the block on one axis, masked, times the factor."""
        return self.factor * super().only(terms, axis)


def cut_evenly(rows: int, number: int, index: Any, ahead: Any = None) -> Block:
    """One of `number` blocks whose sizes differ by one row at most.

    Args:
        rows: rows of the plate.
        number: of blocks.
        index: which, traced.
        ahead: which will be asked for next.
    """
    later = None if ahead is None else even_block(rows, number, ahead)[0]
    kept = {"ahead": later, "index": index, "number": number}
    start, count = even_block(rows, number, index)
    if rows % number == 0:
        return Block(start, rows // number, **kept)
    return Block(start, rows // number + 1, count, **kept)


def even_block(rows: Any, number: int, index: Any) -> tuple[Any, Any]:
    """The first row, and how many there are, of one of `number` blocks; smaller ones come first.

    Args:
        rows: rows that are cut, possibly traced.
        number: of blocks.
        index: which, possibly traced.
    """
    least, larger = rows // number, rows % number
    if isinstance(larger, int) and larger == 0:
        return index * least, least
    beyond = index - (number - larger)
    return index * least + jnp.maximum(beyond, 0), least + (beyond >= 0)


def take(arrays: Sequence[Any], rows: Any) -> list[Any]:
    """The rows of arrays that a `Block` or a vector of indices names; all of them for `None`."""
    stored = [array for array in arrays if isinstance(array, Stored)]
    if stored:
        every = jnp.arange(len(stored[0])) if rows is None else indices(rows)
        read = iter(fetch(stored, every, rows.following if isinstance(rows, Block) else None))
    return [next(read) if isinstance(array, Stored) else _taken(array, rows) for array in arrays]


def _taken(array: Any, rows: Any) -> Any:
    if array is None or rows is None:
        return array
    return rows.take(array) if isinstance(rows, Block) else jnp.asarray(array)[rows]


def indices(rows: Any) -> Array:
    """The rows that a `Block` or a vector names, as a vector."""
    return rows.indices if isinstance(rows, Block) else rows


def _cut(size: int) -> Any:
    """`array[start : start + size]`, cut in one piece under `vmap` over starts too.

    The general rule makes a gather of several slices, which XLA copies element by element.
    """

    @custom_vmap
    def cut(array: Array, start: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(array, start, size)

    @cut.def_vmap
    def _(axis_size: int, in_batched: list[bool], array: Array, start: Array) -> tuple:
        array_batched, start_batched = in_batched
        if array_batched or not start_batched or axis_size > _UNROLLED:
            axes = (0 if array_batched else None, 0 if start_batched else None)
            slice_of = lambda array, start: jax.lax.dynamic_slice_in_dim(array, start, size)  # noqa: E731
            return jax.vmap(slice_of, axes)(array, start), True
        return jnp.stack([cut(array, start[index]) for index in range(axis_size)]), True

    return cut
