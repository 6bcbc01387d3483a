"""What `compare` refuses before it runs or judges anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from quincunx.engine.density import Density
from quincunx.engine.errors import MethodError, QuincunxError, listing, unknown
from quincunx.inference.comparison.standard import Answers
from quincunx.inference.fit import Fit
from quincunx.inference.run import Settings

_OF_ONE_RUN = {
    "store": "A store holds the draws of one run",
    "checkpoint": "A checkpoint is of one run",
    "resume": "A checkpoint is of one run",
    "blocking": "Methods are run one after the other",
    "until": "The rule for all methods is `budget`",
}
_CLOSE = 1e-5  # relative; data may have been given in single and in double precision

Shapes = Mapping[str, tuple[int, ...]]


def check_settings(settings: Iterable[str], own: Iterable[str]) -> None:
    """Refuse settings that `infer` does not have, or that several methods cannot share.

    Args:
        settings: names of those that are for `infer`.
        own: names of the arguments of `compare`.

    Raises:
        MethodError: a setting that is of one run.
        TypeError: an unknown name.
    """
    for name in settings:
        if name in _OF_ONE_RUN:
            message = f"{_OF_ONE_RUN[name]}, so `{name}` cannot be given to several methods: "
            raise MethodError(message + "leave it out, or compare fits made by `infer`.")
    valid = list(dict.fromkeys([*own, *Settings.__annotations__]))
    valid = [name for name in valid if name not in _OF_ONE_RUN]
    for name in settings:
        if name not in valid:
            raise TypeError(unknown("argument", name, valid, " of `compare`"))


def check_fits(fits: Mapping[Any, Any]) -> None:
    """Refuse what is no dict of fits of one model and one data set, by name.

    Raises:
        QuincunxError: names the two that differ, and in what.
    """
    if not fits:
        raise QuincunxError("There is no fit to compare.")
    for name, fit in fits.items():
        if not isinstance(name, str):
            message = f"Fits are compared by name, and a key of the dict is {name!r}: "
            raise QuincunxError(message + f"write {str(name)!r}, or a name that says more.")
        if not isinstance(fit, Fit):
            raise QuincunxError(f"'{name}' must be a `Fit`, not {type(fit).__name__}.")
    first = next(iter(fits))
    shapes = shapes_of(fits[first])
    for name, fit in fits.items():
        if shapes_of(fit) != shapes:
            message = f"'{name}' and '{first}' are fits of different models or data: their "
            raise QuincunxError(message + "variables differ in name or shape.")
    with_data = [name for name, fit in fits.items() if fit.density is not None]
    for name in with_data[1:]:
        other = with_data[0]
        _check_data(f"'{name}'", fits[name].density, f"'{other}'", fits[other].density)


def shapes_of(fit: Fit) -> Shapes:
    """Shapes of a fit's variables."""
    return {str(name): array.shape[2:] for name, array in fit.posterior.items()}


def check_reference(reference: Any, shapes: Shapes, density: Density | None) -> None:
    """Refuse a fit or answers that are of another model.

    Args:
        reference: a fit or trusted answers; anything else is let through.
        shapes: of the sites of the compared model.
        density: the model, where there is one.

    Raises:
        QuincunxError: no site in common, a site of another shape, or other data.
    """
    if isinstance(reference, Fit):
        theirs = shapes_of(reference)
    elif isinstance(reference, Answers):
        theirs = _shapes_of_answers(reference)
    else:
        return
    common = [name for name in theirs if name in shapes]
    if not common:
        message = f"The reference is of another model: it has {listing(theirs)}, and the compared "
        raise QuincunxError(message + f"model {listing(shapes)}.")
    for name in common:
        if theirs[name] != shapes[name]:
            message = f"The reference has '{name}' of shape {theirs[name]}, the compared model of "
            raise QuincunxError(message + f"{shapes[name]}: give one of this model and its data.")
    if isinstance(reference, Fit):
        _check_data("The reference", reference.density, "the compared fits", density)


def _shapes_of_answers(answers: Answers) -> Shapes:
    found = {name: np.shape(mean) for name, mean in answers.mean.items()}
    if answers.draws is not None:
        one = answers.draws(jax.random.key(0), 1)
        found |= {name: np.shape(values)[1:] for name, values in one.items()}
    if not found:
        raise QuincunxError(f"The reference has no answers: {answers.source}.")
    return found


def _check_data(name: str, mine: Density | None, other: str, theirs: Density | None) -> None:
    """Refuse two models whose arrays of the same name differ; rows on disk are not read.

    Raises:
        QuincunxError: names both and the arrays.
    """
    if mine is None or theirs is None:
        return
    found, expected = _arrays(mine), _arrays(theirs)
    differing = [
        argument
        for argument in found
        if argument in expected and not _same(found[argument], expected[argument])
    ]
    if differing:
        message = f"{name} and {other} are of different data: {listing(differing)} "
        message += "differs." if len(differing) == 1 else "differ."
        raise QuincunxError(message)


def _arrays(density: Density) -> dict[str, Any]:
    """Arrays in memory by argument."""
    signature = density.program.signature
    pairs = zip(signature.array_names, density.leaves, strict=True)
    return {name: leaf for name, leaf in pairs if name not in signature.stored}


def _same(mine: Any, theirs: Any) -> bool:
    mine, theirs = np.asarray(mine), np.asarray(theirs)
    if mine.shape != theirs.shape:
        return False
    return bool(np.allclose(mine, theirs, rtol=_CLOSE, atol=0.0, equal_nan=True))
