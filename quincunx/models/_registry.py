"""The catalogue of worked models: what an entry is, how one is registered, found and loaded."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array

from quincunx.engine.errors import ModelError, unknown

Draws = Callable[[Array, int], dict[str, Array]]


@dataclass(frozen=True)
class Reference:
    """Answers against which an inference result can be judged.

    Attributes:
        source: Where the answers come from: mathematics, a published reference, or a long run.
        mean: Posterior mean by name of a latent or deterministic site, in the site's shape. Empty
            where it is unknown or does not exist.
        sd: Posterior standard deviation, laid out like `mean`.
        log_evidence: Logarithm of the integral of the joint density as the model codes it; 0 for a
            normalised density without observations. `None` where it is unknown.
        effective_size: How many independent draws `mean` and `sd` are worth: the mean's own
            standard error is `sd / sqrt(effective_size)`. Infinite where they are exact.
        draws: `draws(key, n)` gives `n` independent exact draws by site name, on a leading axis.
    """

    source: str
    mean: Mapping[str, np.ndarray] = field(default_factory=dict)
    sd: Mapping[str, np.ndarray] = field(default_factory=dict)
    log_evidence: float | None = None
    effective_size: float = math.inf
    draws: Draws | None = None


class Worked(NamedTuple):
    """A model, the arguments it is called with, and the answers."""

    model: Callable[..., Any]
    data: dict[str, Any]
    reference: Reference


Build = Callable[..., Worked]
_CATALOGUE: dict[str, Build] = {}


def register(build: Build) -> Build:
    """Enters a builder into the catalogue under its own name.

    The builder's keyword arguments are the entry's options; the first line of its docstring is
    what `describe` says.
    """
    if build.__name__ in _CATALOGUE:
        raise ValueError(f"a worked model named {build.__name__!r} is registered already")
    _CATALOGUE[build.__name__] = build
    return build


def _find(name: str) -> Build:
    if name in _CATALOGUE:
        return _CATALOGUE[name]
    raise ModelError(unknown("worked model", str(name), _CATALOGUE))


def names() -> list[str]:
    """Every name that `load` accepts, in alphabetical order."""
    return sorted(_CATALOGUE)


def describe(name: str) -> str:
    """One line saying what a worked model is.

    Raises:
        ModelError: If the name is unknown.
    """
    return (inspect.getdoc(_find(name)) or "").partition("\n")[0]


def load(name: str, **options: Any) -> Worked:
    """Builds a worked model: the model, its data and the answers.

    Args:
        name: One of `names()`.
        **options: The entry's own options, for instance `dim` for most of the analytic targets.

    Raises:
        ModelError: If the name is unknown.
        ValueError: If an option's value makes no sense.
        TypeError: If an option is unknown.
        ImportError: If the data set is in a package that is not installed.
    """
    build = _find(name)
    valid = list(inspect.signature(build).parameters)
    for option in options:
        if option not in valid:
            raise TypeError(unknown("option", option, valid, f" of '{name}'"))
    return build(**options)
