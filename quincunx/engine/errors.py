"""What can go wrong, said so that a user can act on it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class QuincunxError(Exception):
    """Base class of every error that Quincunx raises on purpose."""


class ModelError(QuincunxError, ValueError):
    """The model, its data or its labels are wrong; the message names the site or argument."""


class MethodError(QuincunxError, ValueError):
    """A method does not exist, cannot run on this model, or was given a wrong setting."""


class ModelWarning(UserWarning):
    """The model can run, but something about it deserves a look."""


def listing(names: Iterable[object], limit: int = 12) -> str:
    """Format names as ``'a', 'b', 'c'``, cut after `limit`."""
    quoted = [f"'{name}'" for name in names]
    more = f" and {len(quoted) - limit} more" if len(quoted) > limit else ""
    return (", ".join(quoted[:limit]) + more) if quoted else "(none)"


def unknown(kind: str, name: str, valid: Iterable[str], where: str = "") -> str:
    """Say that `name` is not one of `valid`, with the nearest valid name."""
    valid = list(valid)
    folded = {entry.lower(): entry for entry in valid}
    near = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    hint = f" Did you mean '{folded[near[0]]}'?" if near else ""
    return f"Unknown {kind} '{name}'{where}.{hint} Valid: {listing(valid)}."
