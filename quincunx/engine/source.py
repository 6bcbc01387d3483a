"""Where in the user's model something happened: file, line and source text."""

from __future__ import annotations

import linecache
import sys
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple

_OURS = Path(__file__).parents[1]
_LIBRARIES = ("jax", "jaxlib", "numpyro", "equinox", "jaxtyping", "beartype", "blackjax")
_STANDARD = str(Path(linecache.__file__).parent)


class Location(NamedTuple):
    """A line of the model's source."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        where = f"{Path(self.file).name}, line {self.line}"
        return f"{where}: `{self.text}`" if self.text else where


def _is_users(frame: FrameType) -> bool:
    file = Path(frame.f_code.co_filename)
    if file.is_relative_to(_OURS):
        return file.is_relative_to(_OURS / "models")
    if "site-packages" in file.parts:
        package = file.parts[file.parts.index("site-packages") + 1]
        return package.removesuffix(".py") not in _LIBRARIES
    return not str(file).startswith((_STANDARD, "<frozen", "<@beartype"))


def _locate(frame: FrameType, line: int) -> Location:
    file = frame.f_code.co_filename
    return Location(file, line, linecache.getline(file, line).strip())


def caller() -> Location | None:
    """The innermost line of user code on the current stack."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if _is_users(frame):
            return _locate(frame, frame.f_lineno)
        frame = frame.f_back
    return None


def raised(traceback: TracebackType | None) -> tuple[Location | None, list[FrameType]]:
    """The innermost user line of a traceback, and all its frames from outside in."""
    location, frames = None, []
    while traceback is not None:
        frame = traceback.tb_frame
        frames.append(frame)
        if _is_users(frame):
            location = _locate(frame, traceback.tb_lineno)
        traceback = traceback.tb_next
    return location, frames
