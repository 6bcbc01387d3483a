"""The native-space potential as a smooth part plus terms with known proximal operators.

In the model's own coordinates x (no transform, no Jacobian) the posterior density is
exp(-f(x) - sum_k g_k(x)) with f smooth and each g_k a kinked prior or the indicator of a support.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from quincunx.engine import proximal, tracing

if TYPE_CHECKING:
    from quincunx.engine.density import Density

_HALF_LINES = ("Positive", "NonNegative", "GreaterThan", "GreaterThanEq", "SoftplusPositive")
_BOXES = ("UnitInterval", "Interval", "OpenInterval", "CircularConstraint")


@dataclass(frozen=True)
class ProximalTerm:
    """One nonsmooth term of the potential.

    Attributes:
        site: the latent site that it belongs to.
        kind: `l1`, `asymmetric l1`, `half-line`, `box` or `simplex`.
        prox: `prox(v, step, parameters)`, the proximal operator of `step` times the term.
    """

    site: str
    kind: str
    prox: Callable[[Any, Any, Mapping[str, Any]], Any]


def _l1(v: Any, step: Any, p: Mapping[str, Any]) -> Any:
    return proximal.soft_threshold(v, p["loc"], step / p["scale"])


def _asymmetric(v: Any, step: Any, p: Mapping[str, Any]) -> Any:
    return proximal.asymmetric_soft_threshold(v, p["loc"], step * p["left"], step * p["right"])


def _box(v: Any, step: Any, p: Mapping[str, Any]) -> Any:
    del step
    return proximal.project_box(v, p["lower"], p["upper"])


def _simplex(v: Any, step: Any, p: Mapping[str, Any]) -> Any:
    del step, p
    return proximal.project_simplex(v)


def _support_term(site: Any) -> ProximalTerm | None:
    kind = site.support.split("(")[0].lstrip("_")
    if kind in _HALF_LINES:
        return ProximalTerm(site.name, "half-line", _box)
    if kind in _BOXES:
        return ProximalTerm(site.name, "box", _box)
    if kind == "Simplex":
        return ProximalTerm(site.name, "simplex", _simplex)
    return None


def _prior_term(site: Any) -> ProximalTerm | None:
    if site.distribution == "Laplace":
        return ProximalTerm(site.name, "l1", _l1)
    if site.distribution in ("AsymmetricLaplace", "AsymmetricLaplaceQuantile"):
        return ProximalTerm(site.name, "asymmetric l1", _asymmetric)
    return None


def _parameters(term: ProximalTerm, site: Mapping[str, Any]) -> dict[str, Any]:
    base = tracing.unwrap(site["fn"])
    weight = 1.0 if site["scale"] is None else site["scale"]
    if term.kind == "l1":
        return {"loc": base.loc, "scale": base.scale / weight}
    if term.kind == "asymmetric l1":
        sides = {"left": weight / base.left_scale, "right": weight / base.right_scale}
        return {"loc": base.loc, **sides}
    if term.kind == "simplex":
        return {}
    support = tracing.base_support(base.support)
    return {
        "lower": getattr(support, "lower_bound", -jnp.inf),
        "upper": getattr(support, "upper_bound", jnp.inf),
    }


class Composite:
    """The split of a density's native-space potential.

    Attributes:
        terms: the nonsmooth terms, possibly none.
    """

    def __init__(self, density: Density) -> None:
        self._density = density
        found = [
            term
            for site in density.program.latents
            for term in (_prior_term(site), _support_term(site))
            if term is not None
        ]
        self.terms: tuple[ProximalTerm, ...] = tuple(found)

    def _trace(self, values: Mapping[str, Any]) -> tracing.Trace:
        program, data = self._density.program, self._density.data
        return tracing.at_point(program.model, data, tracing.given(values))

    def parameters(self, values: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
        """Locations, scales and bounds of the terms, by site and kind, at given latent values."""
        trace = self._trace(values)
        return {(term.site, term.kind): _parameters(term, trace[term.site]) for term in self.terms}

    def log_density(self, values: Mapping[str, Any]) -> Any:
        """Native-space log density on the supports: no transform and no Jacobian."""
        trace = self._trace(values)
        sites = [site for site in trace.values() if site["type"] == "sample"]
        return sum((tracing.scaled_sum(site) for site in sites), jnp.zeros(()))

    def smooth(self, values: Mapping[str, Any]) -> Any:
        """Minus the smooth part of the potential: the log density without the kinks."""
        return self.log_density(values) + self.nonsmooth(values)

    def nonsmooth(self, values: Mapping[str, Any]) -> Any:
        """The kinked terms of the potential; indicators count as zero on the supports."""
        parameters = self.parameters(values)
        total = jnp.zeros(())
        for term in self.terms:
            p = parameters[(term.site, term.kind)]
            if term.kind == "l1":
                total += jnp.sum(jnp.abs(values[term.site] - p["loc"]) / p["scale"])
            elif term.kind == "asymmetric l1":
                shifted = values[term.site] - p["loc"]
                sides = jnp.where(shifted > 0, p["right"] * shifted, -p["left"] * shifted)
                total += jnp.sum(sides)
        return total
