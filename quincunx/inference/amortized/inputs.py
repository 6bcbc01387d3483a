"""What an encoder sees of a data set: rows of plates as sets, everything else as it stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from quincunx.engine.density import Density
from quincunx.engine.errors import MethodError, ModelError, unknown
from quincunx.engine.program import Program
from quincunx.engine.sharding import Shard, obstacle


class Rows(NamedTuple):
    """A data plate whose rows are seen as a set.

    Attributes:
        plate: its name.
        leaves: which of the data's arrays run over it.
        least: the fewest rows that a data set may have.
        most: the most rows, to which all data sets are padded.
    """

    plate: str
    leaves: tuple[int, ...]
    least: int
    most: int


class Layout(NamedTuple):
    """Where the parts of a data set go.

    Attributes:
        sets: the plates seen as sets.
        fixed: the arrays that are seen as they stand.
    """

    sets: tuple[Rows, ...]
    fixed: tuple[int, ...]

    @property
    def varies(self) -> bool:
        """Whether data sets may differ in their number of rows."""
        return any(rows.least < rows.most for rows in self.sets)


class Inputs(NamedTuple):
    """A data set for the encoder.

    Attributes:
        sets: for each plate seen as a set its rows, `(most, features)`, padded.
        counts: for each of them how many rows are real.
        fixed: all other numbers.
    """

    sets: tuple[Float[Array, "most features"], ...]
    counts: tuple[Int[Array, ""], ...]
    fixed: Float[Array, " numbers"]


def as_range(rows: Any, size: int, plate: str) -> tuple[int, int]:
    """Least and most rows of a plate from what the user gave.

    Raises:
        MethodError: it is no range of positive integers.
    """
    if rows is None:
        return size, size
    if hasattr(rows, "__index__") and not isinstance(rows, bool):
        rows = (rows, rows)
    if (
        not isinstance(rows, Sequence)
        or len(rows) != 2
        or not all(hasattr(row, "__index__") and not isinstance(row, bool) for row in rows)
        or not 1 <= int(rows[0]) <= int(rows[1])
    ):
        message = f"`rows={rows!r}` for plate '{plate}' must be the least and the most rows of a "
        raise MethodError(message + "data set, such as `rows=(5, 40)`.")
    return int(rows[0]), int(rows[1])


def layout_of(density: Density, rows: Any) -> Layout:
    """The layout of a model's data.

    A data plate is a set unless a latent site lies in it: then its rows are in an order that
    matters, and their number cannot vary.

    Args:
        density: the model with data of any size.
        rows: least and most rows of a data set, by plate name where there are several plates;
            `None` for as many as there are.

    Raises:
        ModelError: rows vary that cannot.
        MethodError: a wrong `rows`.
    """
    program = density.program
    plates = {plate.name: plate for plate in program.data_plates}
    if isinstance(rows, Mapping):
        for name in rows:
            if name not in plates:
                raise MethodError(unknown("data plate", name, plates, " in `rows`"))
        ranges = dict(rows)
    elif rows is not None and len(plates) > 1:
        message = f"Model `{program.name}` has {len(plates)} data plates: give `rows` as a dict "
        raise MethodError(
            message + f"by plate name, such as `rows={{'{next(iter(plates))}': ...}}`."
        )
    else:
        ranges = dict.fromkeys(plates, rows)
    names = program.signature.array_names
    local = {plate for site in program.latents for plate in site.plates}
    sets, taken = [], set()
    for name, plate in plates.items():
        least, most = as_range(ranges.get(name), plate.size, name)
        leaves = tuple(names.index(array) for array in dict.fromkeys(plate.arrays))
        if plate.as_given and leaves and name not in local and not taken & set(leaves):
            sets.append(Rows(name, leaves, least, most))
            taken |= set(leaves)
        elif (least, most) != (plate.size, plate.size):
            reason = obstacle(density) or f"Plate '{name}' shares an array with another plate."
            raise ModelError(f"{reason} Leave out `rows`: all data sets then have as many.")
    layout = Layout(tuple(sets), tuple(i for i in range(len(names)) if i not in taken))
    if rows is not None and not plates:
        raise ModelError(f"{obstacle(density)} Leave out `rows`, or do that.")
    if layout.varies and (reason := obstacle(density)):
        raise ModelError(f"{reason} Leave out `rows`: all data sets then have as many.")
    return layout


def padded(layout: Layout, leaves: Sequence[Any]) -> list[Any]:
    """Arrays on the host with the rows of every set padded, by repeating the first row."""
    made = list(leaves)
    for rows in layout.sets:
        for index in rows.leaves:
            array = np.asarray(made[index])
            short = rows.most - array.shape[0]
            if short:
                made[index] = np.concatenate([array, np.repeat(array[:1], short, axis=0)])
    return made


def with_rows(density: Density, layout: Layout, counts: Sequence[Any]) -> Density:
    """The density of padded data in which only real rows count."""
    if not layout.varies:
        return density
    number = {rows.plate: jnp.asarray(n) for rows, n in zip(layout.sets, counts, strict=True)}
    starts = {rows.plate: jnp.zeros((), jnp.int32) for rows in layout.sets}
    shard = Shard(starts, number, 1, 1.0, None)
    return Density(
        density.leaves, density.temperature, density.program, density.labels, shard=shard
    )


def inputs_of(layout: Layout, leaves: Sequence[Any], counts: Sequence[Any]) -> Inputs:
    """What the encoder sees; traceable."""

    def number(array: Any) -> Array:
        return jnp.asarray(array, jnp.result_type(float))

    sets = tuple(
        jnp.concatenate([number(leaves[i]).reshape(rows.most, -1) for i in rows.leaves], axis=1)
        for rows in layout.sets
    )
    fixed = [number(leaves[index]).reshape(-1) for index in layout.fixed]
    counts = tuple(jnp.asarray(count, jnp.int32) for count in counts)
    return Inputs(sets, counts, jnp.concatenate([jnp.zeros(0), *fixed]))


def sizes_of(program: Program, layout: Layout, leaves: Sequence[Any]) -> list[int]:
    """How many rows each set of a data set has, checked.

    Raises:
        ModelError: too few or too many.
    """
    names, found = program.signature.array_names, []
    for rows in layout.sets:
        size = int(np.shape(leaves[rows.leaves[0]])[0])
        if not rows.least <= size <= rows.most:
            wanted = f"{rows.least} to {rows.most}" if rows.least < rows.most else f"{rows.most}"
            message = f"'{names[rows.leaves[0]]}' has {size} rows, but the sampler was trained on "
            message += f"data sets of {wanted}. Train another one with `rows=(least, most)` that "
            raise ModelError(message + "include it.")
        found.append(size)
    return found
