"""Files of learned samplers: a line of JSON that says what was learned on what, then the arrays."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from quincunx.engine.errors import ModelError, QuincunxError
from quincunx.engine.program import Program
from quincunx.inference.output import versions


def write(
    path: str | Path, form: str, program: Program, told: Mapping[str, Any], arrays: PyTree
) -> None:
    """Write a sampler.

    Args:
        path: the file.
        form: name and version of what is written.
        program: the model that it was learned on.
        told: further entries of the header.
        arrays: what was learned.
    """
    header = {"format": form, **told, "sites": _sites(program)}
    header |= {"precision": _precision(), "versions": versions()}
    with Path(path).open("wb") as file:
        file.write((json.dumps(header) + "\n").encode())
        eqx.tree_serialise_leaves(file, arrays)


@contextmanager
def opened(path: str | Path, form: str, writer: str) -> Iterator[tuple[IO[bytes], dict[str, Any]]]:
    """A file that `write` wrote, at its arrays, and its header.

    Args:
        path: the file.
        form: as it was written.
        writer: what a user calls to write one.

    Raises:
        QuincunxError: no such file, another form, or another precision than JAX's now.
    """
    path = Path(path)
    if not path.exists():
        raise QuincunxError(f"There is no '{path}'.")
    with path.open("rb") as file:
        try:
            header = json.loads(file.readline())
        except ValueError:
            header = None
        if not isinstance(header, dict) or header.get("format") != form:
            raise QuincunxError(f"'{path}' was not written by `{writer}`.")
        if header["precision"] != _precision():
            message = f"The sampler in '{path}' was learned in {header['precision']}, and JAX runs "
            message += f"in {_precision()}: set `qx.configure(x64=...)` to match."
            raise QuincunxError(message)
        yield file, header


def check_sites(header: Mapping[str, Any], program: Program, path: str | Path) -> None:
    """Refuse a model with other latent sites than the one that a sampler was learned on.

    Raises:
        ModelError: with both.
    """
    sites = _sites(program)
    if sites != header["sites"]:
        message = f"The sampler in '{path}' is of a model with latent sites {header['sites']}, "
        raise ModelError(message + f"and `{program.name}` has {sites}.")


def _sites(program: Program) -> dict[str, list[int]]:
    return {site.name: list(site.shape) for site in program.latents}


def _precision() -> str:
    return str(np.dtype(jax.dtypes.canonicalize_dtype(float)))
