"""The native-space potential as a smooth part plus terms with known proximal operators.

In the model's own coordinates x (no transform, no Jacobian) the posterior density is
exp(-f(x) - sum_k g_k(x)) with f smooth and each g_k a kinked prior, the indicator of a support, or
a factor that came with its operator. What cannot be split stays in f.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from quincunx.engine import proximal, sharding, tracing
from quincunx.engine.dependence import influences
from quincunx.engine.errors import ModelError, unknown
from quincunx.engine.group_laplace import length
from quincunx.engine.native import bounds
from quincunx.engine.program import Program, Site

if TYPE_CHECKING:
    from quincunx.engine.density import Density

_SEPARABLE = ("l1", "asymmetric l1")
_SUPPORTS = ("half-line", "box", "simplex")


class ProximalTerm(NamedTuple):
    """One nonsmooth term of the potential.

    Attributes:
        site: the latent site that it belongs to.
        kind: `l1`, `asymmetric l1`, `group l2`, `half-line`, `box`, `simplex` or `factor`.
        factor: name of the factor that it is, if it is one.
    """

    site: str
    kind: str
    factor: str = ""


class Kinks(NamedTuple):
    """Separable kinks: g_i(x) = right_i (x - location_i)_+ + left_i (location_i - x)_+.

    Attributes:
        location: where they are, `(dim,)`.
        left: slopes on their left, zero where there is no kink, `(dim,)`.
        right: slopes on their right, `(dim,)`.
    """

    location: Float[Array, " dim"]
    left: Float[Array, " dim"]
    right: Float[Array, " dim"]

    def part(self, cut: slice) -> Kinks:
        """The kinks of some coordinates."""
        return Kinks(self.location[cut], self.left[cut], self.right[cut])

    def value(self, x: Float[Array, " dim"]) -> Float[Array, ""]:
        """Sum of the terms."""
        shifted = x - self.location
        return jnp.sum(self.right * jnp.maximum(shifted, 0) + self.left * jnp.maximum(-shifted, 0))


class Group(NamedTuple):
    """Terms w |x - m|_2 of the vectors in one site.

    Attributes:
        location: m, of the site's shape.
        weight: w, one for each vector.
    """

    location: Array
    weight: Array

    def value(self, x: Array) -> Float[Array, ""]:
        """Sum of the terms."""
        return jnp.sum(self.weight * length(x - self.location))

    def prox(self, x: Array, step: Any) -> Array:
        """Proximal operator of `step` times the terms."""
        return proximal.group_soft_threshold(x, self.location, step * self.weight)


class Split(NamedTuple):
    """The density taken apart at a position.

    Attributes:
        log_density: the whole, kinks and supports included.
        smooth: f, the potential without the terms.
        kinks: separable kinks.
        groups: group terms by site.
        moved: for each factor with an operator, where the operator takes its site, flat.
    """

    log_density: Float[Array, ""]
    smooth: Float[Array, ""]
    kinks: Kinks
    groups: dict[str, Group]
    moved: dict[str, Array]


class Composite:
    """The split of a density's native-space potential.

    Attributes:
        density: the density over native coordinates.
        terms: the nonsmooth terms, possibly none.
    """

    def __init__(self, density: Density) -> None:
        self.density = density.native
        self.terms = _terms(self.density.program)

    def of(self, kind: str) -> list[tuple[ProximalTerm, Site]]:
        """The terms of one kind with their sites."""
        program = self.density.program
        return [(term, program.site(term.site)) for term in self.terms if term.kind == kind]

    def kinked(self) -> tuple[str, ...]:
        """Sites with a nonsmooth term, such as a Laplace prior, that is no mere support."""
        return tuple(term.site for term in self.terms if term.kind not in _SUPPORTS)

    def is_kinked(self, start: int, stop: int) -> bool:
        """Whether any coordinate of a range has a separable kink."""
        sites = [site for kind in _SEPARABLE for _, site in self.of(kind)]
        return any(site.offset < stop and start < site.offset + site.size for site in sites)

    def bounds(self) -> tuple[Float[Array, " dim"], Float[Array, " dim"]]:
        """Lower and upper ends of the supports, infinite where there are none."""
        return bounds(self.density.program, self.density.leaves)

    def split(self, x: Float[Array, " dim"], steps: Mapping[str, Any] | None = None) -> Split:
        """The density taken apart, from one run of the model.

        The smooth part does not know the supports: it may be asked for outside.

        Args:
            x: native position.
            steps: by factor with an operator, the step that this is given.
        """
        given = {term.factor: jnp.ones(()) for term, _ in self.of("factor")}
        density, shard = self.density, self.density.shard
        axis, rows = (None, {}) if shard is None else (shard.axis, shard.rows(density))
        data = (rows, density.leaves, density.temperature)
        return _split(density.program, axis, *data, x, {**given, **(steps or {})})


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _split(
    program: Program,
    axis: str | None,
    rows: Mapping[str, Any],
    leaves: list[Any],
    temperature: Any,
    x: Any,
    steps: Mapping[str, Any],
) -> Split:
    """The density taken apart; the likelihood is summed over the devices along an axis, if any."""
    x = x if axis is None else sharding.spread(axis, x)
    substitution = program.substitution(x, rows)
    trace = tracing.at_point(program.model, program.signature.rebuild(leaves), substitution, rows)
    zero = jnp.zeros((), x.dtype)
    plates, inside = {plate.name for plate in program.data_plates}, jnp.ones((), bool)
    own, observed = tracing.terms(trace, plates, rows)
    prior = sum(map(jnp.sum, [*substitution.log_jacobians, *own]), zero)
    likelihood = sum(map(jnp.sum, observed), zero)
    likelihood = likelihood if temperature is None else temperature * likelihood
    nonsmooth, groups, moved = zero, {}, {}
    locations, lefts, rights = [], [], []
    for site in program.latents:
        message = trace[site.name]
        if site.is_native and site.region in ("half-line", "box"):
            inside &= jnp.all(message["fn"].support(message["value"]))
        kinked = site.is_native and site.kink in _SEPARABLE
        sides = _sides(site, message) if kinked else (zero, zero, zero)
        for parts, side in zip((locations, lefts, rights), sides, strict=True):
            parts.append(_flat(side, site))
        if site.kink == "group l2":
            groups[site.name] = _group(site, message)
            nonsmooth += groups[site.name].value(message["value"])
    kinks = Kinks(*(jnp.concatenate(parts) for parts in (locations, lefts, rights)))
    nonsmooth += kinks.value(x)
    for term in _terms(program):
        if term.kind == "factor":
            message, value = trace[term.factor], trace[term.site]["value"]
            nonsmooth -= tracing.scaled_sum(message)
            prox = message["infer"]["prox"][term.site]
            at = jax.lax.stop_gradient(value)
            moved[term.factor] = _flat(prox(at, steps[term.factor]), program.site(term.site))
    if axis is not None:
        each = jnp.stack([prior, nonsmooth, likelihood])
        once = jnp.asarray([1 / jax.lax.axis_size(axis)] * 2 + [1.0], x.dtype)
        prior, nonsmooth, likelihood = jnp.unstack(sharding.total(axis, once * each))
        agreed: Any = sharding.alike(axis, (kinks, groups, moved))
        kinks, groups, moved = agreed
    whole = prior + likelihood
    return Split(jnp.where(inside, whole, -jnp.inf), -(whole + nonsmooth), kinks, groups, moved)


def _flat(value: Any, site: Site) -> Array:
    return jnp.broadcast_to(jnp.asarray(value), site.unconstrained_shape).reshape(-1)


def _weight(message: Mapping[str, Any], events: int) -> Any:
    """The power that plates and handlers raise the prior to, with trailing event axes."""
    scale = jnp.asarray(1.0 if message["scale"] is None else message["scale"])
    return scale.reshape(scale.shape + (1,) * events) if scale.ndim else scale


def _sides(site: Site, message: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Location and slopes of a separable kink, of the site's shape."""
    law, weight = tracing.untruncated(message["fn"]), _weight(message, site.event_dim)
    if site.kink == "l1":
        sides = (law.loc, 1 / jnp.asarray(law.scale), 1 / jnp.asarray(law.scale))
    else:
        sides = (law.loc, 1 / jnp.asarray(law.left_scale), 1 / jnp.asarray(law.right_scale))
    spread = [proximal.expand(side, site.shape) for side in sides]
    weight = proximal.expand(weight, site.shape)
    return spread[0], weight * spread[1], weight * spread[2]


def _group(site: Site, message: Mapping[str, Any]) -> Group:
    law, weight = tracing.untruncated(message["fn"]), _weight(message, site.event_dim - 1)
    each = proximal.expand(weight, site.shape[:-1]) / proximal.expand(law.scale, site.shape[:-1])
    return Group(proximal.expand(law.loc, site.shape), each)


@functools.lru_cache(maxsize=128)
def _terms(program: Program) -> tuple[ProximalTerm, ...]:
    """The terms of a native program."""
    found = []
    for site in program.latents:
        if site.is_native and site.kink:
            found.append(ProximalTerm(site.name, site.kink))
        if site.is_native and site.region != "real":
            found.append(ProximalTerm(site.name, site.region))
    given = [site for site in program.role("factor") if site.proximal is not None]
    alone = _alone(program) if given else {}
    latents = {site.name: site for site in program.latents}
    for factor in given:
        if factor.proximal not in latents:
            where = f" that factor '{factor.name}' has a `prox` for"
            raise ModelError(unknown("latent site", str(factor.proximal), latents, where))
        if alone[factor.name] and latents[factor.proximal].is_native:
            found.append(ProximalTerm(factor.proximal, "factor", factor.name))
    return tuple(found)


def _alone(program: Program) -> dict[str, bool]:
    """For each factor whether it depends on the site of its operator and no other variable."""
    ordered = sorted(site.name for site in program.latents)
    factors = [site for site in program.role("factor") if site.proximal is not None]

    def values_of(leaves: Any, values: Mapping[str, Any]) -> dict[str, Any]:
        given = tracing.given(values)
        trace = tracing.at_point(program.model, program.signature.rebuild(leaves), given)
        return {site.name: tracing.scaled_sum(trace[site.name]) for site in factors}

    leaves = program.signature.specs()
    values = {site.name: jax.ShapeDtypeStruct(site.shape, site.dtype) for site in program.latents}
    found, plates = influences(values_of, leaves, values), {p.name for p in program.data_plates}
    return {
        site.name: {ordered[i - len(leaves)] for i in found[site.name] if i >= len(leaves)}
        <= {site.proximal}
        and plates.isdisjoint(site.plates)
        for site in factors
    }
