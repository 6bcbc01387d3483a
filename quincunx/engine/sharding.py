"""A density cut into parts by the rows of its data plates, for several devices or owners.

The rows of every data plate are cut into k contiguous parts. Parts are padded to one length by
repeating a row, and the padding is masked out. All parts lie in one `Density` whose row arrays have
a further leading axis over parts; `local` takes one part out of it.

With l_i(z) the log likelihood of part i and p(z) the prior, a part is one of two things:

    sum over devices   log p(z) + psum_i l_i(z), the whole density, each device with its own rows;
    alone              w log p(z) + l_i(z), with w the share of the prior.

Observations outside the data plates count 1/k in every part.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from quincunx.engine.errors import ModelError
from quincunx.engine.rows import Block, Part, Piece, even_block

if TYPE_CHECKING:
    from quincunx.engine.density import Density

_COMPARED = 32  # rows of each part that the parts are compared with the whole on


class Shard(eqx.Module):
    """Which part of the rows a density has.

    Attributes:
        starts: by data plate the first row of the part, of each part where there are several.
        counts: by data plate how many rows of the part are real.
        parts: number of parts.
        prior: share of the log prior that counts.
        axis: axis of the mesh over which likelihoods are summed; `None` for a part alone.
    """

    starts: dict[str, Any]
    counts: dict[str, Any]
    parts: int = eqx.field(static=True)
    prior: float = eqx.field(static=True)
    axis: str | None = eqx.field(static=True)

    def rows(self, density: Density) -> dict[str, Part]:
        """By plate, the rows of the part."""
        arrays = dict(zip(density.program.signature.array_names, density.leaves, strict=True))
        found = {}
        for plate in density.program.data_plates:
            size = jnp.shape(arrays[plate.arrays[0]])[0]
            start, count = self.starts[plate.name], self.counts[plate.name]
            found[plate.name] = Part(start, size, count, parts=self.parts)
        return found

    def pieces(self, density: Density, blocks: Mapping[str, Any]) -> dict[str, Part]:
        """By plate, the part's share of an even block, or all rows of the part.

        The part's rows are cut into as many blocks as all rows are, and count so many times.

        Raises:
            ModelError: rows that are not one of such blocks.
        """
        found = self.rows(density)
        for name, block in blocks.items():
            if isinstance(block, Piece):
                found[name] = block
                continue
            if not isinstance(block, Block) or block.number is None:
                message = "Rows cannot be chosen where each device has a part of them: take blocks "
                raise ModelError(message + "that they are cut into evenly.")
            own, number = found[name], block.number
            begin, count = even_block(own.count, number, block.index)
            size = -(-own.size // number)
            factor = number * size / own.size  # a block counts own.size / size times as it is
            kept = {"parts": self.parts, "begin": begin, "factor": factor}
            found[name] = Piece(own.start, size, count, **kept)
        return found

    def row(self, density: Density, index: Any) -> Piece:
        """One row of the part of the only data plate, scaled to all rows of all parts."""
        (plate,) = density.program.data_plates
        own = self.rows(density)[plate.name]
        kept = {"parts": self.parts, "begin": index, "factor": plate.size / own.size}
        return Piece(own.start, 1, 1, **kept)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def spread(axis: str, value: Array) -> Array:
    """A value that all devices have, for each to use; its gradients are summed over them."""
    del axis
    return value


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def total(axis: str, value: Array) -> Array:
    """The sum over devices; each has the gradient of its own term."""
    return jax.lax.psum(value, axis)


def alone(density: Density) -> Density:
    """The part of a device by itself, without the sum over devices."""
    shard = density.shard
    if shard is None or shard.axis is None:
        return density
    own = Shard(shard.starts, shard.counts, shard.parts, shard.prior, None)
    return eqx.tree_at(lambda density: density.shard, density, own)


def over_devices(density: Density, value: Array) -> Array:
    """The sum of an array over the devices that have parts of a density's rows."""
    axis = None if density.shard is None else density.shard.axis
    return value if axis is None else jax.lax.psum(value, axis)


def from_devices(density: Density, rows: Array) -> Array:
    """The rows of an array of all devices that have parts of a density's rows, together."""
    axis = None if density.shard is None else density.shard.axis
    return rows if axis is None else jax.lax.all_gather(rows, axis, tiled=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def alike(axis: str, values: PyTree) -> PyTree:
    """What every device made of a value that was spread, for use alike: it counts once."""
    del axis
    return values


def _shares(axis: str, _: None, slopes: PyTree) -> tuple[PyTree]:
    return (jax.tree.map(lambda slope: slope / jax.lax.axis_size(axis), slopes),)


alike.defvjp(lambda axis, values: (values, None), _shares)
# Each is the other's transpose; being written so, they can be differentiated backwards twice.
spread.defvjp(
    lambda axis, value: (spread(axis, value), None), lambda axis, _, slope: (total(axis, slope),)
)
total.defvjp(
    lambda axis, value: (total(axis, value), None), lambda axis, _, slope: (spread(axis, slope),)
)


def obstacle(density: Density) -> str | None:
    """Why the rows of a model cannot be cut into parts, as one sentence; `None` if they can."""
    program = density.program
    if not program.data_plates:
        message = f"Model `{program.name}` has no data plate whose rows could be shared out."
        for site in program.role("observed"):
            message += f" Put {site} inside `with qx.plate('row', X, y) as (x, t):`."
            break
        return message
    for plate in program.data_plates:
        if plate.on_disk:
            return f"The rows of plate '{plate.name}' are on disk, where they are not shared out."
        if not plate.as_given or not plate.arrays:
            message = f"Plate '{plate.name}' does not run over arguments of the model as they "
            return message + "stand, so its rows cannot be shared out: `qx.plate('row', X, y)`."
        for site in program.role("latent", "deterministic"):
            if plate.name in site.plates:
                return f"{site} lies in plate '{plate.name}', whose rows are to be shared out."
    return None


def cut(
    density: Density,
    parts: int,
    *,
    sizes: Sequence[int] | None = None,
    prior: float = 1.0,
    axis: str | None = None,
) -> Density:
    """The density with its rows in parts, along a new leading axis of its row arrays.

    Args:
        density: the whole.
        parts: how many.
        sizes: rows of each part, where the model has one data plate; as even as can be by default.
        prior: share of the log prior that counts in each part.
        axis: axis of the mesh over which the parts' likelihoods are to be summed, `None` for none.

    Raises:
        ModelError: the rows cannot be cut so.
    """
    from quincunx.engine.density import Density

    if reason := obstacle(density):
        raise ModelError(reason)
    program, plates = density.program, density.program.data_plates
    if sizes is not None and len(plates) > 1:
        message = f"Model `{program.name}` has {len(plates)} data plates, whose rows can only be "
        raise ModelError(message + "shared out evenly: give a number of parts, not their sizes.")
    starts, counts, taken = {}, {}, {}
    names = program.signature.array_names
    for plate in plates:
        rows = jnp.shape(density.leaves[names.index(plate.arrays[0])])[0]
        number = np.asarray(_sizes(plate.name, rows, parts, sizes), np.int32)
        start = (np.cumsum(number) - number).astype(np.int32)
        starts[plate.name], counts[plate.name] = start, number
        within = np.minimum(np.arange(max(number))[None], number[:, None] - 1)
        taken |= {name: start[:, None] + within for name in plate.arrays}
    leaves = [
        np.asarray(leaf)[taken[name]] if name in taken else leaf
        for name, leaf in zip(names, density.leaves, strict=True)
    ]
    shard = Shard(starts, counts, parts, prior, axis)
    return Density(leaves, density.temperature, program, density.labels, shard=shard)


def _sizes(name: str, rows: int, parts: int, sizes: Sequence[int] | None) -> list[int]:
    if sizes is None:
        if rows < parts:
            raise ModelError(f"Plate '{name}' has {rows} rows, too few for {parts} parts.")
        least, larger = divmod(rows, parts)
        return [least + (part < larger) for part in range(parts)]
    if len(sizes) != parts or min(sizes) < 1 or sum(sizes) != rows:
        message = f"The parts {tuple(sizes)} of plate '{name}' must be {parts} positive numbers "
        raise ModelError(message + f"with the sum {rows}, its number of rows.")
    return list(sizes)


def axes(density: Density, along: Any, elsewhere: Any) -> Density:
    """A tree of a cut density's form: `along` for what has an axis over parts, else `elsewhere`."""
    in_plates = {name for plate in density.program.data_plates for name in plate.arrays}
    names = density.program.signature.array_names
    tree = jax.tree.map(lambda _: elsewhere, density)
    leaves = [along if name in in_plates else elsewhere for name in names]
    shard = jax.tree.map(lambda _: along, density.shard)
    return eqx.tree_at(lambda density: (density.leaves, density.shard), tree, (leaves, shard))


def local(density: Density, index: Any = 0) -> Density:
    """One part of a cut density."""
    return jax.tree.map(
        lambda axis, leaf: leaf[index] if axis == 0 else leaf, axes(density, 0, -1), density
    )


def check_separable(density: Density, parts: int, key: Array) -> None:
    """Refuse a model whose parts do not add up to the whole, as seen on some of its rows.

    Raises:
        ModelError: what differs.
    """
    name = density.program.name
    advice = "Inside the plate use the rows that entering it yields, and nothing that depends on "
    advice += "their number or on other rows."
    some = _some(density, parts * _COMPARED)
    pair = cut(some, 1), cut(some, parts)
    try:
        whole, cut_up, same = jax.device_get(_compared(pair, key))
    except (TypeError, ValueError) as error:
        message = f"Model `{name}` cannot be run on some of its rows ({error}). "
        raise ModelError(message + advice) from error
    if not same:
        message = f"A deterministic site of model `{name}` depends on the rows of a data plate, "
        raise ModelError(message + "which are to be shared out. Compute it from the fit instead.")
    tolerance = np.sqrt(np.finfo(np.result_type(whole)).eps)
    if not abs(whole - cut_up) <= tolerance * (1.0 + abs(whole)):
        message = f"The log likelihood of model `{name}` is not a sum over rows: it is {whole:.6g} "
        message += f"for some rows and {cut_up:.6g} for the sum over {parts} parts of them. "
        raise ModelError(message + advice)


def _some(density: Density, most: int) -> Density:
    """The density's first rows; only fit to be cut."""
    firsts = {name: most for plate in density.program.data_plates for name in plate.arrays}
    names = density.program.signature.array_names
    leaves = [
        leaf[: firsts[name]] if name in firsts else leaf
        for name, leaf in zip(names, density.leaves, strict=True)
    ]
    return eqx.tree_at(lambda density: density.leaves, density, leaves)


@eqx.filter_jit
def _compared(pair: tuple[Density, Density], key: Array) -> tuple[Array, Array, Array]:
    """Log likelihood of all rows and by parts, and whether constrained values are the same."""
    z = 0.5 * pair[0].initial(key)
    sums, values = [], []
    for cut_up in pair:
        assert cut_up.shard is not None
        each = [local(cut_up, index) for index in range(cut_up.shard.parts)]
        sums.append(sum(part.log_likelihood(z) for part in each))
        values += [part.constrain(z) for part in each]
    shapes = [jax.tree.map(jnp.shape, value) for value in values]
    if any(shape != shapes[0] for shape in shapes):
        return *sums, jnp.zeros((), bool)
    close = jax.tree.map(lambda *all_: [jnp.allclose(all_[0], one) for one in all_], *values)
    return *sums, jnp.all(jnp.stack(jax.tree.leaves(close) or [jnp.ones((), bool)]))
