"""Which methods to try on a model, in which order, and why: from the model's structure alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pandas as pd

from quincunx.engine.density import Density, compile
from quincunx.engine.errors import ModelError
from quincunx.inference import registry
from quincunx.inference.amortized.sources import check_simulable
from quincunx.inference.method import Kind, Method

_MANY_ROWS, _MANY_DIMS, _SLICED_DIMS, _ENSEMBLE_DIMS = 50_000, 1000, 50, 10
_LAST = 90


class Facts(NamedTuple):
    """What a method's fitness is judged by.

    Attributes:
        dim: unconstrained dimensions.
        rows: rows of the largest data plate, 0 without one.
        gradient: whether the density has a gradient.
        kinks: sites with a nonsmooth term, such as a Laplace prior, that is no mere support.
        bounded: sites on half-lines, boxes and simplexes.
        gaussian_prior: whether the prior is jointly Gaussian.
        on_disk: whether rows are on disk.
    """

    dim: int
    rows: int
    gradient: bool
    kinks: tuple[str, ...]
    bounded: tuple[str, ...]
    gaussian_prior: bool
    on_disk: bool

    @classmethod
    def of(cls, density: Density) -> Facts:
        """Of a compiled model."""
        structure = density.structure
        supports = ("half-line", "box", "simplex")
        terms = structure.composite.terms
        return cls(
            density.dim,
            max((plate.size for plate in structure.data_plates), default=0),
            structure.has_gradient,
            structure.composite.kinked(),
            tuple(term.site for term in terms if term.kind in supports),
            structure.has_gaussian_prior,
            density.is_on_disk,
        )


Rule = Callable[[Facts], tuple[int, str]]


def _nuts(facts: Facts) -> tuple[int, str]:
    if facts.rows >= _MANY_ROWS or facts.on_disk:
        return 20, f"Exact, but each gradient goes through all {facts.rows:,} rows."
    if facts.kinks:
        return 11, f"Exact; kinks of '{facts.kinks[0]}' cost it smaller steps."
    if facts.dim > _MANY_DIMS:
        return 10, f"Exact and the best of the exact ones in {facts.dim:,} dimensions, if not fast."
    return 10, f"Exact, and the most effective draws per gradient in {facts.dim} smooth dimensions."


def _bregman(facts: Facts) -> tuple[int, str]:
    if facts.kinks:
        return 10, f"Exact, and takes the kinks of '{facts.kinks[0]}' by their proximal operator."
    if facts.bounded:
        return 30, f"Exact; moves '{facts.bounded[0]}' within its support, without a transform."
    return 60, "Exact, but the model has no kinks or supports that it could make use of."


def _proximal(facts: Facts) -> tuple[int, str]:
    return (31 if facts.kinks else 65), "A plain baseline for `bregman_langevin`."


def _elliptical(facts: Facts) -> tuple[int, str]:
    if not facts.gradient and facts.gaussian_prior:
        return 10, "Exact without gradients or step size, and made for a Gaussian prior."
    if facts.gaussian_prior:
        return 22, "Exact; needs no gradient, and the prior is jointly Gaussian."
    return (12 if not facts.gradient else 42), "Exact without gradients, best close to Gaussian."


def _polar(facts: Facts) -> tuple[int, str]:
    if facts.dim > _SLICED_DIMS:
        return 55, f"Exact, but slow to mix in more than {_SLICED_DIMS} dimensions."
    if not facts.gradient:
        return 11, "Exact without gradients or step size; heavy tails and jumps do no harm."
    return 25, "Exact by other means than NUTS, so a check on it; heavy tails do no harm."


def _hit_and_run(facts: Facts) -> tuple[int, str]:
    return (35 if facts.dim <= _SLICED_DIMS else 70), "A plain baseline for the slice samplers."


def _annealed(facts: Facts) -> tuple[int, str]:
    if facts.rows >= _MANY_ROWS or facts.on_disk:
        return 48, f"Weighted; gives the evidence, at hundreds of passes over {facts.rows:,} rows."
    words = "shows separate modes that its start covers, which chains may miss, and the evidence."
    return (21 if facts.dim <= _SLICED_DIMS else 47), f"Weighted, nothing is trained; {words}"


def _learned(place: int, words: str) -> Rule:
    def rule(facts: Facts) -> tuple[int, str]:
        del facts
        reason = "worth its training where it beats `annealed_smc`, or draws are wanted repeatedly."
        return place, f"Weighted, {words}; {reason}"

    return rule


def _ensemble(facts: Facts) -> tuple[int, str]:
    if facts.dim > _ENSEMBLE_DIMS:
        return 85, f"Weighted; in more than {_ENSEMBLE_DIMS} dimensions few draws carry the weight."
    if not facts.gradient:
        return 13, "Weighted; gives the evidence without gradients."
    return 66, "Weighted; made for densities without gradients, and this one has them."


def _minibatch(first: int, words: str) -> Rule:
    def rule(facts: Facts) -> tuple[int, str]:
        if facts.rows >= _MANY_ROWS or facts.on_disk:
            return first, f"Biased, with a report; takes minibatches of {facts.rows:,} rows{words}."
        return 50 + first, f"Biased; {facts.rows:,} rows are few enough for exact methods."

    return rule


def _parties(facts: Facts) -> tuple[int, str]:
    del facts
    return 80, "For rows that may not leave their owners; otherwise exact methods are better."


_RULES: Mapping[str, Rule] = {
    "nuts": _nuts,
    "bregman_langevin": _bregman,
    "proximal_mala": _proximal,
    "elliptical_slice": _elliptical,
    "polar_slice": _polar,
    "hit_and_run_slice": _hit_and_run,
    "annealed_smc": _annealed,
    "cmcd": _learned(61, "a learned control of annealed Langevin steps"),
    "scld": _learned(62, "the same in segments with resampling"),
    "trajectory_balance": _learned(63, "explores on paths of its own and from a buffer"),
    "dds": _learned(67, "a learned time reversal"),
    "dis": _learned(67, "a learned time reversal, by the log variance"),
    "pis": _learned(68, "a learned drift of Brownian motion"),
    "dgfs": _learned(68, "a learned drift of Brownian motion, by subtrajectories"),
    "diffusion": _learned(69, "any of these kernels and losses, to be set"),
    "ensemble": _ensemble,
    "sgld": _minibatch(11, ""),
    "sghmc": _minibatch(12, ", with momentum"),
    "sgnht": _minibatch(13, ", and its friction absorbs their noise"),
    "structured_sgld": _minibatch(40, ", with groups taken as independent"),
    "admm": _parties,
    "consensus": _parties,
    "decentralized_sgld": _parties,
    "federated_sgld": _parties,
}
_BY_KIND = {
    Kind.EXACT: (45, "Exact"),
    Kind.WEIGHTED: (46, "Weighted: shows modes that chains may miss, and gives the evidence"),
    Kind.BIASED: (70, "Biased"),
    Kind.APPROXIMATE: (75, "Approximate: a quick look, to be checked"),
}


class Choice:
    """Methods in the order in which to try them; print it, or look at `table`.

    Attributes:
        table: one row for each method: `applies`, `kind`, and `why`.
        hints: what no structure tells, one sentence each.
    """

    def __init__(self, table: pd.DataFrame, hints: tuple[str, ...]) -> None:
        self.table = table
        self.hints = hints

    def __str__(self) -> str:
        entries: Any = self.table.to_dict("index")
        lines = [
            f"{number}. {name} ({row['kind']}): {row['why']}"
            for number, (name, row) in enumerate(entries.items(), 1)
            if row["applies"]
        ]
        lines += [f"-  {name}: {row['why']}" for name, row in entries.items() if not row["applies"]]
        return "\n".join([*lines, *self.hints])

    def __repr__(self) -> str:
        return str(self)


def choose(model: Callable[..., Any], data: Mapping[str, Any] | None = None) -> Choice:
    """Which methods apply to a model, in which order to try them, and why.

    The order is from structure: rows, dimension, gradient, kinks, supports, prior. Nothing is run.

    Args:
        model: as in `infer`.
        data: the model's arguments.
    """
    density = compile(model, data)
    facts = Facts.of(density)
    rows = []
    for name in registry.methods().index:
        method = registry.resolve(name)
        missing = method.missing(density)
        place, why = (_LAST + 9, missing) if missing else _judged(method, facts)
        rows.append((place, name, missing is None, method.promise.value, why))
    rows.sort(key=lambda row: row[:2])
    columns = ["place", "method", "applies", "kind", "why"]
    table = pd.DataFrame(rows, columns=columns).set_index("method").drop(columns="place")
    return Choice(table, _hints(facts, simulable=_simulable(density)))


def _judged(method: Method, facts: Facts) -> tuple[int, str]:
    rule = _RULES.get(method.name)
    if rule is not None:
        return rule(facts)
    place, word = _BY_KIND[method.promise]
    return place, f"{word}. {method.summary}"


def _simulable(density: Density) -> bool:
    """Whether data sets can be drawn from the model, as `amortize` does."""
    try:
        check_simulable(density)
    except ModelError:
        return False
    return True


def _hints(facts: Facts, *, simulable: bool) -> tuple[str, ...]:
    hints = [
        "Whether there are several modes cannot be seen from the model: run chains from "
        "overdispersed starts, and compare with a method of another family."
    ]
    if simulable:
        hints.append("For many data sets of one form, `qx.amortize` trains a sampler once for all.")
    if facts.gradient and not facts.rows:
        hints.append("Without a data plate no method can take minibatches or share out rows.")
    return tuple(hints)
