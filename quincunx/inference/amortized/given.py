"""A data set of the user's in the form that a sampler was trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from quincunx.engine.density import Density, compile
from quincunx.engine.errors import ModelError
from quincunx.inference.amortized.inputs import padded, sizes_of
from quincunx.inference.amortized.sources import Source, with_leaves


class Given(NamedTuple):
    """A data set.

    Attributes:
        density: the model given the data.
        held: a source that holds the data, padded.
        counts: rows of each set.
    """

    density: Density
    held: Source
    counts: tuple[np.int32, ...]


def given(
    model: Callable[..., Any],
    source: Source,
    data: Mapping[str, Any],
    coords: Mapping[str, Any] | None,
) -> Given:
    """A data set in the form of those that a source makes.

    Raises:
        ModelError: it has another form.
    """
    density = compile(model, data, coords)
    leaves = _conforming(source, density)
    for name, leaf in zip(density.program.signature.array_names, leaves, strict=True):
        if bad := int(np.sum(~np.isfinite(leaf))):
            message = f"'{name}' has {bad} entries that are NaN or infinite, which the sampler of "
            message += f"model `{density.program.name}` cannot read. It was trained on data sets "
            raise ModelError(message + "that are finite; use `infer`.")
    counts = tuple(map(np.int32, sizes_of(source.density.program, source.layout, leaves)))
    held = with_leaves(source.density, padded(source.layout, leaves))
    return Given(density, Source(held, source.layout, None, None), counts)


def _conforming(source: Source, density: Density) -> list[np.ndarray]:
    """The arrays of a data set, in the types that the sampler was trained on.

    Raises:
        ModelError: they have another form.
    """
    trained, given = source.density.program, density.program
    signature = trained.signature
    if given.signature == signature:
        return [np.asarray(leaf) for leaf in density.leaves]
    name, other = trained.name, given.signature
    if (signature.treedef, signature.names) != (other.treedef, other.names):
        message = f"The sampler of model `{name}` was trained on the arguments "
        raise ModelError(message + f"{list(signature.names)}, not {list(other.names)}.")
    varying = {index for rows in source.layout.sets for index in rows.leaves}
    leaves, place = [], 0
    for argument, constant, array, value, found in zip(
        signature.names, signature.constants, signature.arrays, other.constants, other.arrays,
        strict=True,
    ):  # fmt: skip
        message = f"The sampler of model `{name}` was trained with '{argument}' "
        if (array is None) != (found is None) or constant != value:
            was = f"= {constant!r}" if array is None else f"an array of shape {array[0]}"
            raise ModelError(message + f"{was}; train another one for other values.")
        if array is None or found is None:
            continue
        free = place in varying
        if array[0][free:] != found[0][free:]:
            message += f"of shape {('any', *array[0][1:]) if free else array[0]}, "
            raise ModelError(message + f"not {found[0]}.")
        leaf = np.asarray(density.leaves[place])
        if array[1] != found[1] and not np.can_cast(leaf.dtype, array[1], "same_kind"):
            raise ModelError(message + f"of type {array[1]}, not {found[1]}: convert it.")
        leaves.append(leaf.astype(array[1], copy=False))
        place += 1
    return leaves
