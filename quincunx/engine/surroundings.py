"""What a model function reads beside its arguments: globals, closures and bound objects.

A traced program is used again for the same model only while these are the same, so that a constant
changed in a notebook is seen. Arrays that are changed in place are not.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Hashable
from typing import Any

_SCALARS = (bool, int, float, complex, str, bytes, type(None))


class _Same:
    """An object that equals only itself, kept alive while it serves as a key."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def surroundings(model: Any) -> tuple[Hashable, ...]:
    """A hashable account of what a model reads beside its arguments."""
    seen: set[int] = set()
    return tuple(_function(model, seen))


def _function(value: Any, seen: set[int]) -> list[Hashable]:
    if id(value) in seen:
        return []
    seen.add(id(value))
    if isinstance(value, functools.partial):
        parts = [_token(entry, seen) for entry in (*value.args, *value.keywords.values())]
        return _function(value.func, seen) + parts
    if isinstance(value, types.MethodType):
        attributes = getattr(value.__self__, "__dict__", {}).values()
        return _function(value.__func__, seen) + [_token(entry, seen) for entry in attributes]
    if isinstance(value, types.FunctionType):
        names = _names(value.__code__)
        read = [value.__globals__[name] for name in names if name in value.__globals__]
        for cell in value.__closure__ or ():
            try:
                read.append(cell.cell_contents)
            except ValueError:  # a name that is not bound yet
                continue
        return [_token(entry, seen) for entry in read]
    inner = getattr(value, "fn", None)
    return _function(inner, seen) if callable(inner) else []


def _names(code: types.CodeType) -> list[str]:
    """Global names that the code, or a function defined inside it, may read."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return list(code.co_names) + [name for const in inner for name in _names(const)]


def _token(value: Any, seen: set[int]) -> Hashable:
    if isinstance(value, _SCALARS):
        return (type(value), value)
    if isinstance(value, tuple):
        return tuple(_token(entry, seen) for entry in value)
    if isinstance(value, dict):
        return tuple((_Same(key), _token(entry, seen)) for key, entry in value.items())
    if isinstance(value, types.FunctionType):
        return (_Same(value), *_function(value, seen))
    return _Same(value)
