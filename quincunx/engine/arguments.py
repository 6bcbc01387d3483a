"""The model's arguments: which are traced arrays and which are constants of the program."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import tree_flatten_with_path, tree_unflatten

from quincunx.engine.errors import ModelError, unknown
from quincunx.engine.storage import Stored, abstract, is_stored, on_disk


class Signature(NamedTuple):
    """Everything about the arguments that a program depends on; hashable.

    Attributes:
        treedef: the nesting of the arguments.
        names: a readable path for each leaf, such as `X` or `group.size`.
        constants: for each leaf its value if it is a constant of the program, else `None`.
        arrays: for each leaf `(shape, dtype)` if it is a traced array, else `None`.
        stored: names of the arrays whose rows are on disk.
    """

    treedef: Any
    names: tuple[str, ...]
    constants: tuple[Hashable, ...]
    arrays: tuple[tuple[tuple[int, ...], str] | None, ...]
    stored: tuple[str, ...] = ()

    def rebuild(self, leaves: Sequence[Any]) -> dict[str, Any]:
        """Put traced arrays, in order, back among the constants."""
        remaining = iter(leaves)
        merged = [
            constant if array is None else next(remaining)
            for constant, array in zip(self.constants, self.arrays, strict=True)
        ]
        return tree_unflatten(self.treedef, merged)

    def specs(self) -> list[Any]:
        """The traced arrays, in order, as shapes and types without values."""
        return [
            abstract(*array) if name in self.stored else jax.ShapeDtypeStruct(*array)
            for name, array in zip(self.names, self.arrays, strict=True)
            if array is not None
        ]

    @property
    def array_names(self) -> tuple[str, ...]:
        """Names of the traced leaves, in order."""
        pairs = zip(self.names, self.arrays, strict=True)
        return tuple(name for name, array in pairs if array is not None)


def _is_numeric_list(value: Any) -> bool:
    if not isinstance(value, (list, tuple)):
        return False
    if not value:
        return False
    return all(
        _is_numeric_list(item)
        or (isinstance(item, numbers.Number) and not isinstance(item, complex))
        or (isinstance(item, (np.ndarray, jax.Array)) and item.ndim == 0)
        for item in value
    )


def _as_array(name: str, value: Any) -> np.ndarray | jax.Array:
    if isinstance(value, jax.Array):
        return value
    try:
        array = np.asarray(value)
    except ValueError as error:
        message = f"Argument '{name}' is a ragged list: its rows have different lengths. "
        raise ModelError(message + "Pad it, or pass one flat array and an index.") from error
    if array.dtype.kind not in "biufc":
        message = f"Argument '{name}' holds {array.dtype} values, not numbers. "
        raise ModelError(message + "Encode it as integers (categories) or floats first.")
    target = jax.dtypes.canonicalize_dtype(array.dtype)
    if array.dtype.kind in "iu" and array.size and target != array.dtype:
        limits = np.iinfo(target)
        if array.min() < limits.min or array.max() > limits.max:
            message = f"Argument '{name}' holds integers beyond {target}. "
            raise ModelError(message + "Re-code them, or call `qx.configure(x64=True)` first.")
    return array.astype(target, copy=False)


def _is_leaf(value: Any) -> bool:
    if isinstance(value, Stored):
        return True
    return value is None or _is_numeric_list(value) or not isinstance(value, (dict, list, tuple))


def normalise(data: Mapping[str, Any] | None) -> tuple[Signature, list[Any]]:
    """Split the model's arguments into a hashable signature and the traced arrays.

    Arrays, data-frame columns and (nested) lists of numbers are traced; Python and NumPy
    scalars, strings and `None` are constants. Rows of memory-mapped and Zarr arrays stay on disk.

    Raises:
        ModelError: an argument is not a mapping, or a leaf is neither numeric nor hashable.
    """
    if data is None:
        data = {}
    if not isinstance(data, Mapping):
        message = f"`data` must be a dict of the model's arguments, not {type(data).__name__}. "
        raise ModelError(message + "Write `dict(x=x, y=y)`.")
    paths, treedef = tree_flatten_with_path(dict(data), is_leaf=_is_leaf)
    names, constants, arrays, leaves, stored = [], [], [], [], []
    for path, value in paths:
        name = ".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)
        names.append(name)
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, (bool, int, float, complex, str)):
            constants.append(value)
            arrays.append(None)
        elif is_stored(value):
            leaves.append(on_disk(value))
            stored.append(name)
            constants.append(None)
            arrays.append((leaves[-1].shape, leaves[-1].dtype))
        elif hasattr(value, "__array__") or _is_numeric_list(value):
            array = _as_array(name, value)
            leaves.append(array)
            constants.append(None)
            arrays.append((tuple(array.shape), str(array.dtype)))
        elif isinstance(value, Hashable):
            constants.append(value)
            arrays.append(None)
        else:
            message = f"Argument '{name}' is a {type(value).__name__}, "
            raise ModelError(message + "neither an array nor a hashable constant.")
    parts = (names, constants, arrays, stored)
    return Signature(treedef, *map(tuple, parts)), leaves


def check_names(model: Callable[..., Any], data: Mapping[str, Any], name: str) -> None:
    """Refuse arguments that the model does not have and missing ones that it needs."""
    try:
        parameters = inspect.signature(model).parameters
    except (TypeError, ValueError):
        return
    kinds = {parameter.kind for parameter in parameters.values()}
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        for key in data:
            if key not in parameters:
                raise ModelError(unknown("argument", key, parameters, f" of model `{name}`"))
    missing = [
        key
        for key, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind
        in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        and key not in data
    ]
    if missing:
        message = f"Model `{name}` needs the argument '{missing[0]}', which `data` lacks. "
        raise ModelError(message + f"Pass `data=dict({missing[0]}=..., ...)`.")
