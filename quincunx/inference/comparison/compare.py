"""The same model under several methods, judged side by side."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from quincunx.engine.density import Density, compile
from quincunx.engine.errors import MethodError, QuincunxError, listing
from quincunx.inference import registry
from quincunx.inference.comparison.measure import Measures, measure, predictive
from quincunx.inference.comparison.result import NUMBERS, Comparison
from quincunx.inference.comparison.standard import Answers, Standard
from quincunx.inference.fit import Fit
from quincunx.inference.memory import watched
from quincunx.inference.method import Approximation, Kind, Method, as_key
from quincunx.inference.run import infer
from quincunx.inference.stopping import Until

_LONGER = 4
_FROM = ("ok", "suspect")
_FOR_ALL = ("num_samples", "num_chains", "key", "coords", "until", "progress")


def compare(
    model: Callable[..., Any] | Mapping[str, Fit],
    data: Mapping[str, Any] | None = None,
    methods: Sequence[str | Method | type[Method]] | None = None,
    *,
    reference: Any = None,
    budget: Until | None = None,
    key: int | Any = 0,
    progress: bool = True,
    **settings: Any,
) -> Comparison:
    """Judge methods side by side on one model.

    Args:
        model: as in `infer`, or a dict of fits by name that are there already.
        data: the model's arguments.
        methods: method objects or registered names; all that can run on the model by default.
        reference: what to judge by: a `Fit`; a method, which is run four times as long with
            another key; the name of a worked model, or its `Reference`, for trusted answers; or,
            in a dict of fits, the name of one of them. By default the exact method's fit that is
            worth most draws, among those whose verdict is not `failed`.
        budget: where each method stops earlier, as `infer(until=...)`.
        key: an integer seed or a JAX key.
        progress: show progress on a terminal.
        **settings: of `infer`, the same for all methods; those about chains are left out for
            methods that have none.

    Returns:
        The comparison, one row for each method.

    Raises:
        QuincunxError: fits of different models, an unknown method or reference, or settings that
            are of no use for fits that are there already.
    """
    if isinstance(model, Mapping):
        given = {"data": data, "methods": methods, "budget": budget, **settings}
        useless = [name for name, value in given.items() if value is not None]
        if useless:
            message = f"The fits are there already: leave out {listing(useless)}."
            raise QuincunxError(message)
        return _compared(dict(model), reference, {}, {})
    fits, peaks, left_out = {}, {}, {}
    density = compile(model, data)
    settings = {"until": budget, "key": as_key(key), "progress": progress, **settings}
    for name, method in _named(methods, density).items():
        try:
            registry.require(method, density.program.name, density)
            own = _fitting(method, settings)
            work = functools.partial(infer, model, data, method, **own)
            fits[name], peaks[name] = watched(work)
        except MethodError as error:
            if methods is not None:
                raise
            left_out[name] = str(error)
    if methods is None:
        table = registry.applicable(model, data)
        left_out = dict(table["missing"][~table["applies"]]) | left_out
    reference = _as_method(reference)
    if isinstance(reference, Method):
        longer = dict(settings, num_samples=_LONGER * settings.get("num_samples", 1000), until=None)
        longer["key"] = np.random.default_rng(_seed(key)).integers(2**31).item()
        reference = infer(model, data, reference, **longer)
    return _compared(fits, reference, peaks, left_out)


def _fitting(method: Method, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `infer` without those about chains, for a method that has none."""
    if not isinstance(method, Approximation):
        return dict(settings)
    return {name: value for name, value in settings.items() if name in _FOR_ALL}


def _seed(key: Any) -> Any:
    import jax

    return np.asarray(jax.random.key_data(as_key(key))).tolist()


def _named(
    methods: Sequence[str | Method | type[Method]] | None, density: Density
) -> dict[str, Method]:
    """Method objects under names of their own."""
    if methods is None:
        table = registry.methods()
        every = [registry.resolve(name) for name in table.index]
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


def _as_method(reference: Any) -> Any:
    """A reference that is a method, or its name, as an object; anything else as it is."""
    if isinstance(reference, type) and issubclass(reference, Method):
        return reference()
    if isinstance(reference, str) and reference in registry.methods().index:
        return registry.resolve(reference)
    return reference


def _compared(
    fits: dict[str, Fit], reference: Any, peaks: Mapping[str, float], left_out: Mapping[str, str]
) -> Comparison:
    if not fits:
        raise QuincunxError("There is no fit to compare.")
    for name, fit in fits.items():
        if not isinstance(fit, Fit):
            raise QuincunxError(f"'{name}' must be a `Fit`, not {type(fit).__name__}.")
    density = next((f.density.unconstrained for f in fits.values() if f.density is not None), None)
    _check_alike(fits)
    standard = _standard(reference, fits, density)
    white = None if standard is None else standard.whitening()
    accuracy = None
    if standard is not None and standard.fit is not None:
        accuracy = predictive(standard.fit, density)
    found = {
        name: measure(fit, density, standard, white, accuracy, name) for name, fit in fits.items()
    }
    reasons = {name: measures.reasons for name, measures in found.items()}
    errors = {name: measures.errors for name, measures in found.items()}
    label = "" if standard is None else standard.label
    return Comparison(_table(found, peaks), reasons, errors, label, left_out, fits)


def _table(found: Mapping[str, Measures], peaks: Mapping[str, float]) -> pd.DataFrame:
    rows = [
        {"method": name, **measures.row, "result": measures.word, "peak_mib": peaks.get(name)}
        for name, measures in found.items()
    ]
    first = ["kind", "verdict", "result"]
    columns = [*first, *NUMBERS, "mean_parameter", "log_sd_parameter"]
    table = pd.DataFrame(rows, columns=["method", *columns]).set_index("method")
    return table.astype({name: float for name in NUMBERS})


def _check_alike(fits: Mapping[str, Fit]) -> None:
    """Refuse fits that share no variable."""
    first = next(iter(fits))
    shapes = {str(n): v.shape[2:] for n, v in fits[first].posterior.items()}
    for name, fit in fits.items():
        own = {str(n): v.shape[2:] for n, v in fit.posterior.items()}
        if own != shapes:
            message = f"'{name}' and '{first}' are fits of different models or data: their "
            raise QuincunxError(message + "variables differ in name or shape.")


def _standard(reference: Any, fits: Mapping[str, Fit], density: Density | None) -> Standard | None:
    """What to judge by.

    Raises:
        QuincunxError: an unknown reference.
    """
    if reference is None:
        return _best(fits, density)
    if isinstance(reference, Fit):
        name = next((name for name, fit in fits.items() if fit is reference), "")
        method = reference.tree["posterior"].attrs["method"]
        return Standard.of_fit(reference, name or f"a fit by {method}", density, name)
    if isinstance(reference, str):
        if reference in fits:
            return Standard.of_fit(fits[reference], reference, density, reference)
        from quincunx import models  # data sets, which comparisons do not need otherwise

        if reference in models.names():
            reference = models.load(reference).reference
        else:
            message = f"Unknown reference '{reference}': it is no compared fit, no method and no "
            raise QuincunxError(message + "worked model (`quincunx.models.names()`).")
    if not isinstance(reference, Answers):
        message = "`reference` must be a fit, a method, a name or a worked model's `Reference`, "
        raise QuincunxError(message + f"not {type(reference).__name__}.")
    standard = Standard.of_answers(reference, density)
    if not standard.names:
        raise QuincunxError(f"The reference has no answers: {standard.label}.")
    return standard


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
