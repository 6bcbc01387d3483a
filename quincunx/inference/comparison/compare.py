"""The same model under several methods, judged side by side."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd
from jaxtyping import Array
from rich.console import Console
from rich.text import Text

from quincunx.engine.density import Density, compile
from quincunx.engine.errors import MethodError, QuincunxError, listing
from quincunx.inference import registry
from quincunx.inference.comparison.alike import (
    check_fits,
    check_reference,
    check_settings,
    shapes_of,
)
from quincunx.inference.comparison.measure import (
    DIFFERS,
    LEVEL,
    MOST_TESTS,
    Measures,
    decide,
    measure,
    predictive,
)
from quincunx.inference.comparison.result import NUMBERS, Comparison
from quincunx.inference.comparison.standard import Answers, Standard
from quincunx.inference.distributed.processes import is_first
from quincunx.inference.fit import Fit
from quincunx.inference.memory import watched
from quincunx.inference.method import Approximation, Kind, Method, as_key
from quincunx.inference.progress import Report, reporting
from quincunx.inference.run import infer
from quincunx.inference.stopping import INTERRUPTED, Until

_LONGER = 4
_NO_TURN = "The comparison was interrupted before its turn."
_BREAKDOWNS = (QuincunxError, jax.errors.JaxRuntimeError)
_FROM = ("ok", "suspect")
_FOR_ALL = ("num_samples", "num_chains", "key", "coords", "until", "progress")


def compare(
    model: Callable[..., Any] | Mapping[str, Fit],
    data: Mapping[str, Any] | None = None,
    methods: Sequence[str | Method | type[Method]] | None = None,
    *,
    reference: Any = None,
    budget: Until | None = None,
    key: int | Array | None = None,
    progress: bool | Report | None = None,
    **settings: Any,
) -> Comparison:
    """Judge methods side by side on one model.

    Args:
        model: as in `infer`, or a dict of fits by name that are there already.
        data: the model's arguments.
        methods: method objects or registered names; all that can run on the model by default.
        reference: what to judge by: a `Fit`; a method, which is run four times as long with
            another key; the name of a worked model, or its `Reference`, for trusted answers; or,
            in a dict of fits, the name of one of them. By default, and where the method breaks
            down or is not reached, the exact method's fit that is worth most draws, among those
            whose verdict is not `failed`.
        budget: where each method stops earlier, as `infer(until=...)`. A method that is the
            reference has four times the seconds and the effective draws.
        key: an integer seed, 0 by default, or a JAX key. The first method has it as it is, so
            that its fit is that of `infer`; the others have `jax.random.fold_in(key, place)`,
            `place` counting from zero.
        progress: show progress on a terminal, as by default; or as in `infer`.
        **settings: of `infer`, the same for all methods; those about chains are left out for
            methods that have none. Those that are of one run cannot be given: `store`,
            `checkpoint`, `resume`, `blocking`, and `until`, in whose place is `budget`.

    Returns:
        The comparison, one row for each method.

    Raises:
        QuincunxError: fits of different models or data, an unknown method or reference, a
            reference of another model, arguments that are of no use for fits that are there
            already, or no method that made a fit.
        MethodError: a named method, or the reference, cannot run on the model; or a setting
            that several methods cannot share.
        TypeError: an unknown argument.
    """
    if isinstance(model, Mapping):
        given = {"data": data, "methods": methods, "budget": budget, "key": key}
        given["progress"] = progress
        useless = [name for name, value in given.items() if value is not None]
        if useless or settings:
            message = f"The fits are there already: leave out {listing([*useless, *settings])}."
            raise QuincunxError(message)
        check_fits(model)
        reference = _resolved(reference, list(model), may_run=False)
        shapes = shapes_of(next(iter(model.values())))
        check_reference(reference, shapes, _density(model))
        return _compared(dict(model), reference, {}, {})
    check_settings(settings, inspect.signature(compare).parameters)
    density = compile(model, data)
    named = _named(methods, density)
    reference = _resolved(reference, list(named), may_run=True)
    longer = reference if isinstance(reference, Method) else None
    for method in [*named.values(), *([] if longer is None else [longer])]:
        registry.require(method, density.program.name, density)
    sites = density.program.role("latent", "deterministic")
    check_reference(reference, {site.name: site.shape for site in sites}, density)
    key, progress = as_key(0 if key is None else key), True if progress is None else progress
    settings = {"until": budget, "key": key, "progress": progress, **settings}
    fits, peaks, left_out = _run(model, data, named, settings)
    if methods is None:
        table = registry.applicable(model, data)
        left_out = dict(table["missing"][~table["applies"]]) | left_out
    if longer is not None:
        reference, why = _reference(model, data, longer, settings, fits)
        left_out |= {f"the reference ({longer.name})": why} if why else {}
    elif isinstance(reference, str) and reference in left_out:
        reference = None
    return _compared(fits, reference, peaks, left_out)


def _density(fits: Mapping[str, Fit]) -> Density | None:
    """The model of the compared fits, where one of them has it."""
    return next((f.density.unconstrained for f in fits.values() if f.density is not None), None)


def _interrupted(fits: Mapping[str, Fit]) -> bool:
    return any(fit.verdict.outcome == INTERRUPTED for fit in fits.values())


def _reference(
    model: Callable[..., Any],
    data: Mapping[str, Any] | None,
    method: Method,
    settings: Mapping[str, Any],
    fits: Mapping[str, Fit],
) -> tuple[Fit | None, str]:
    """A longer fit to judge by, or why there is none.

    Args:
        model: as in `compare`.
        data: as in `compare`.
        method: what is to make it.
        settings: of the methods.
        fits: what they made.
    """
    if _interrupted(fits):
        return None, _NO_TURN
    own = dict(settings, num_samples=_LONGER * settings.get("num_samples", 1000))
    own["until"] = _longer(settings["until"])
    own["key"] = np.random.default_rng(_seed(settings["key"])).integers(2**31).item()
    try:
        return _one("the reference", model, data, method, own)[0], ""
    except _BREAKDOWNS as error:
        return None, f"It broke down. {error}"


def _longer(budget: Until | None) -> Until | None:
    """A reference's budget."""
    if budget is None:
        return None
    ess, seconds = (None if x is None else _LONGER * x for x in (budget.ess, budget.seconds))
    return Until(ess=ess, r_hat=budget.r_hat, seconds=seconds)


def _run(
    model: Callable[..., Any],
    data: Mapping[str, Any] | None,
    named: Mapping[str, Method],
    settings: Mapping[str, Any],
) -> tuple[dict[str, Fit], dict[str, float], dict[str, str]]:
    """Fits, MiB of memory that they took, and what became of methods that made none.

    A method that breaks down leaves the others alone. After an interruption no more are run.

    Raises:
        QuincunxError: no method made a fit.
    """
    fits, peaks, left_out = {}, {}, {}
    for place, (name, method) in enumerate(named.items()):
        if _interrupted(fits):
            left_out[name] = _NO_TURN
            continue
        own = dict(settings)
        if place:
            own["key"] = jax.random.fold_in(settings["key"], place)
        try:
            fits[name], peaks[name] = _one(name, model, data, method, own)
        except _BREAKDOWNS as error:
            left_out[name] = f"It broke down. {error}"
    if not fits:
        told = " ".join(f"{name}: {why}" for name, why in left_out.items())
        raise QuincunxError(f"No method made a fit. {told}")
    return fits, peaks, left_out


def _one(
    name: str,
    model: Callable[..., Any],
    data: Mapping[str, Any] | None,
    method: Method,
    settings: Mapping[str, Any],
) -> tuple[Fit, float]:
    """A fit and the MiB that it took, with progress and verdict under the method's name."""
    with reporting(name, progress=settings["progress"]) as report:
        own = {**_fitting(method, settings), "progress": report}
        fit, peak = watched(functools.partial(infer, model, data, method, **own))
    if settings["progress"] is True and is_first():
        Console(stderr=True, soft_wrap=True).print(Text(f"{name}: {fit.verdict.status}"))
    return fit, peak


def _fitting(method: Method, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `infer` without those about chains, for a method that has none."""
    if not isinstance(method, Approximation):
        return dict(settings)
    own = {name: value for name, value in settings.items() if name in _FOR_ALL}
    until = own["until"]
    if until is not None:
        own["until"] = None if until.seconds is None else Until(seconds=until.seconds)
    return own


def _seed(key: Any) -> Any:
    return np.asarray(jax.random.key_data(as_key(key))).tolist()


def _named(
    methods: Sequence[str | Method | type[Method]] | None, density: Density
) -> dict[str, Method]:
    """Method objects under names of their own."""
    if methods is None:
        every = [registry.resolve(name) for name in registry.methods().index]
        return {m.name: m for m in every if m.missing(density) is None}
    if isinstance(methods, (str, Method, type)):
        raise MethodError("`methods` must be a list, such as ['nuts', qx.PolarSlice()].")
    named: dict[str, Method] = {}
    for method in map(registry.resolve, methods):
        count = sum(other.name == method.name for other in named.values())
        named[f"{method.name} ({count + 1})" if count else method.name] = method
    if not named:
        raise MethodError("`methods` is empty: name at least one method.")
    return named


def _resolved(reference: Any, names: Sequence[str], *, may_run: bool) -> Any:
    """A reference as a fit, a method, trusted answers or the name of a compared fit.

    Args:
        reference: as it was given.
        names: of the compared fits.
        may_run: whether a method may be run for it, which then goes before a fit of its name.

    Raises:
        QuincunxError: it is nothing of that.
    """
    if isinstance(reference, type) and issubclass(reference, Method):
        reference = reference()
    valid = (Fit, Answers, Method) if may_run else (Fit, Answers)
    if reference is None or isinstance(reference, valid):
        return reference
    if not isinstance(reference, str):
        message = "`reference` must be a fit, a method, a name or a worked model's `Reference`, "
        if isinstance(reference, Method):
            message = "A method can be the `reference` only of a model; of fits give one of them, "
        raise QuincunxError(message + f"not {type(reference).__name__}.")
    if may_run and reference in registry.methods().index:
        return registry.resolve(reference)
    if reference in names:
        return reference
    from quincunx import models  # data sets, which comparisons do not need otherwise

    if reference in models.names():
        return models.load(reference).reference
    message = f"Unknown reference '{reference}': it is no compared fit"
    message += ", no method" if may_run else ""
    raise QuincunxError(message + " and no worked model (`quincunx.models.names()`).")


def _compared(
    fits: dict[str, Fit], reference: Any, peaks: Mapping[str, float], left_out: Mapping[str, str]
) -> Comparison:
    density = _density(fits)
    standard = _standard(reference, fits, density)
    if standard is not None:
        standard = dataclasses.replace(standard, others=_sound(fits))
    white = None if standard is None else standard.whitening()
    accuracy = None
    if standard is not None and standard.fit is not None:
        accuracy = predictive(standard.fit, density)
    level = LEVEL / (MOST_TESTS * len(fits))
    found = {
        name: measure(fit, density, standard, white, accuracy, name, level)
        for name, fit in fits.items()
    }
    tests = sum(len(measures.p_values) for measures in found.values())
    words, reasons = {}, {}
    for name in sorted(found, key=lambda name: not found[name].is_reference):
        words[name], reasons[name] = decide(fits[name], standard, found[name], tests)
        if standard is not None and found[name].is_reference and words[name] == DIFFERS:
            standard = dataclasses.replace(standard, status="failed")
    reasons = {name: reasons[name] for name in found}
    errors = {name: measures.errors for name, measures in found.items()}
    label = "" if standard is None else standard.label
    return Comparison(_table(found, words, peaks), reasons, errors, label, left_out, fits)


def _table(
    found: Mapping[str, Measures], words: Mapping[str, str], peaks: Mapping[str, float]
) -> pd.DataFrame:
    rows = [
        {"method": name, **measures.row, "result": words[name], "peak_mib": peaks.get(name)}
        for name, measures in found.items()
    ]
    first = ["kind", "verdict", "result"]
    columns = [*first, *NUMBERS, "mean_parameter", "log_sd_parameter"]
    table = pd.DataFrame(rows, columns=["method", *columns]).set_index("method")
    return table.astype({name: float for name in NUMBERS})


def _standard(reference: Any, fits: Mapping[str, Fit], density: Density | None) -> Standard | None:
    """What to judge by."""
    if reference is None:
        return _best(fits, density)
    if isinstance(reference, Fit):
        name = next((name for name, fit in fits.items() if fit is reference), "")
        label = name or f"a fit by {reference.tree['posterior'].attrs['method']}"
        if not name and reference.verdict.outcome:
            label += f", which ended early: {reference.verdict.outcome}"
        return Standard.of_fit(reference, label, density, name)
    if isinstance(reference, str):
        return Standard.of_fit(fits[reference], reference, density, reference)
    return Standard.of_answers(reference, density)


def _sound(fits: Mapping[str, Fit]) -> tuple[str, ...]:
    """Names of fits that can be right and say that they are.

    Weighted ones come first: most of them anneal, so that they are likelier to find all modes.
    """
    sound = [
        name
        for kind in (Kind.WEIGHTED, Kind.EXACT)
        for name, fit in fits.items()
        if fit.kind is kind and fit.verdict.status == "ok"
    ]
    return tuple(sound)


def _best(fits: Mapping[str, Fit], density: Density | None) -> Standard | None:
    """The exact method's fit that is worth most draws; better a good one than a long one."""
    for status in _FROM:
        sizes = {
            name: fit.convergence.ess_bulk[fit.free()].min(initial=np.inf)
            for name, fit in fits.items()
            if fit.kind is Kind.EXACT and fit.verdict.status == status
        }
        if sizes:
            name = max(sizes, key=lambda name: sizes[name])
            return Standard.of_fit(fits[name], f"{name}, one of them", density, name)
    return None
