"""Turn the errors that a model raises while it is traced into messages a modeller can use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import jax
from numpyro.primitives import plate as numpyro_plate

from quincunx.engine import source
from quincunx.engine.errors import ModelError, QuincunxError, listing

_NEEDS_VALUE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


@runtime_checkable
class Recorded(Protocol):
    """What is known of the sites and arguments when the model fails."""

    values: dict[str, Any]

    def argument(self, value: Any) -> str | None:
        """Name of the argument that a value is."""
        ...


def _user_frame(frames: list[FrameType], location: source.Location | None) -> FrameType | None:
    users = [frame for frame in frames if location and frame.f_code.co_filename == location.file]
    return users[-1] if users else None


def _suspects(frame: FrameType | None, text: str, recorded: Recorded) -> tuple[list, list]:
    """Sites and arguments that the failing line of source mentions."""
    if frame is None:
        return [], []
    sites, arguments = [], []
    for variable, value in frame.f_locals.items():
        if variable not in text:
            continue
        argument = recorded.argument(value)
        if argument is not None:
            arguments.append(argument)
        sites += [name for name, known in recorded.values.items() if known is value]
    return sites, arguments


def _active_site(frames: list[FrameType], text: str) -> str:
    for frame in reversed(frames):
        is_sample = frame.f_code.co_name in ("sample", "_masked_observe")
        if is_sample and isinstance(frame.f_locals.get("name"), str):
            return f"site '{frame.f_locals['name']}'"
    named = re.search(r"""\b(?:sample|factor|deterministic)\(\s*["']([^"']+)["']""", text)
    return f"site '{named.group(1)}'" if named else ""


def _active_plate(frames: list[FrameType]) -> str:
    for frame in reversed(frames):
        entity = frame.f_locals.get("self")
        if frame.f_code.co_name == "process_message" and isinstance(entity, numpyro_plate):
            fn = frame.f_locals["msg"]["fn"]
            return f"plate '{entity.name}' of size {entity.size} does not fit batch shape " + str(
                tuple(fn.batch_shape)
            )
    return ""


def _observed_shape(frames: list[FrameType]) -> str:
    for frame in reversed(frames):
        shape = getattr(frame.f_locals.get("obs"), "shape", None)
        if frame.f_code.co_name == "sample" and shape is not None:
            return f" (the observation has shape {tuple(shape)})"
    return ""


def _shape_message(frames: list[FrameType], error: Exception) -> str:
    plate = _active_plate(frames)
    if not plate:
        return f"{str(error).rstrip('.')}. Check the shapes that meet here."
    return (
        f"{plate}{_observed_shape(frames)}. "
        "Make the plate's size equal the length of what is inside it."
    )


def describe(error: Exception, name: str, recorded: Recorded) -> str:
    """One message for an error raised while model `name` was traced."""
    location, frames = source.raised(error.__traceback__)
    frame = _user_frame(frames, location)
    text = location.text if location else ""
    where = f"Model `{name}`" + (f", {location}" if location else "")
    sites, arguments = _suspects(frame, text, recorded)
    if isinstance(error, jax.errors.TracerBoolConversionError) and not arguments:
        subject = f"of site {listing(sites)}" if sites else "that depends on a latent site"
        return (
            f"{where}: a Python `if`, `while` or `and` needs the value {subject}, which is not "
            "known while the model is traced. Use `jnp.where` or `jax.lax.cond`."
        )
    if isinstance(error, (*_NEEDS_VALUE, jax.errors.TracerBoolConversionError)):
        subject = f"argument {listing(arguments)}" if arguments else "an array"
        return (
            f"{where}: the model needs the values of {subject} while it is traced, but arrays are "
            "traced. Compute it before the model, pass sizes as Python integers, or use "
            "`jnp.where` for a choice."
        )
    site = _active_site(frames, text)
    where = (
        f"Model `{name}`" + (f", {site}" if site else "") + (f" ({location})" if location else "")
    )
    if isinstance(error, (ValueError, TypeError)) and "roadcast" in str(error):
        return f"{where}: {_shape_message(frames, error)}"
    return f"{where}: {type(error).__name__}: {error}"


@contextmanager
def explained(name: str, recorded: Recorded) -> Iterator[None]:
    """Re-raise whatever the model raises as a `ModelError` that names the line."""
    try:
        yield
    except QuincunxError:
        raise
    except Exception as error:
        raise ModelError(describe(error, name, recorded)) from error
