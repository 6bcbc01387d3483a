"""The methods that exist, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import pandas as pd

from quincunx.engine.density import compile
from quincunx.engine.errors import MethodError, unknown
from quincunx.inference.method import Method

_REGISTRY: dict[str, type[Method]] = {}
_M = TypeVar("_M", bound=type[Method])


def register(cls: _M) -> _M:
    """Class decorator: make a method available under its name."""
    _REGISTRY[cls.name] = cls
    return cls


def resolve(method: Any) -> Method:
    """A method object from an object, a class or a registered name.

    Raises:
        MethodError: an unknown name, or something that is not a method.
    """
    if isinstance(method, str):
        if method not in _REGISTRY:
            raise MethodError(unknown("method", method, _REGISTRY))
        return _REGISTRY[method]()
    if isinstance(method, type) and issubclass(method, Method):
        return method()
    if isinstance(method, Method):
        return method
    message = f"`method` must be a method object or its name, not {type(method).__name__}. "
    raise MethodError(message + "Write e.g. `qx.NUTS()` or 'nuts'.")


def methods() -> pd.DataFrame:
    """A table of all registered methods: kind, what the draws are, summary and citation."""
    rows = [
        {
            "method": name,
            "class": cls.__name__,
            "kind": cls.kind.value,
            "summary": cls.summary,
            "citation": cls.citation,
        }
        for name, cls in sorted(_REGISTRY.items())
    ]
    return pd.DataFrame(rows).set_index("method")


def applicable(model: Callable[..., Any], data: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """Which methods can run on a model, and what the others lack.

    Args:
        model: as in `infer`.
        data: the model's arguments.

    Returns:
        One row for each method: whether it applies, its kind, and what is missing.
    """
    density = compile(model, data)
    rows = []
    for name, cls in sorted(_REGISTRY.items()):
        missing = cls().missing(density)
        rows.append(
            {
                "method": name,
                "applies": missing is None,
                "kind": cls.kind.value,
                "missing": missing or "",
            }
        )
    return pd.DataFrame(rows).set_index("method")


def require(method: Method, model_name: str, density: Any) -> None:
    """Refuse a method that lacks something, naming those that would do."""
    missing = method.missing(density)
    if missing is None:
        return
    others = [name for name, cls in sorted(_REGISTRY.items()) if not cls().missing(density)]
    message = f"Method '{method.name}' cannot run on model `{model_name}`: {missing} "
    raise MethodError(message + f"Methods that can: {', '.join(others) or 'none'}.")
