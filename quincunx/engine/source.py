"""Where in the user's model something happened: file, line and source text."""

from __future__ import annotations

import linecache
import sys
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple

import jax
import numpyro

_FOREIGN = tuple(
    str(Path(package).parent)
    for package in (str(jax.__file__), str(numpyro.__file__), __file__, linecache.__file__)
)


class Location(NamedTuple):
    """A line of the model's source."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        where = f"{Path(self.file).name}, line {self.line}"
        return f"{where}: `{self.text}`" if self.text else where


def _is_users(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    return not file.startswith(_FOREIGN) and not file.startswith("<frozen")


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
