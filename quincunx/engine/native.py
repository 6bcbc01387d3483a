"""A program in the model's own coordinates, for methods that know the geometry of supports."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from quincunx.engine import tracing
from quincunx.engine.dependence import influences
from quincunx.engine.program import Program, Site


@functools.lru_cache(maxsize=128)
def native(program: Program) -> Program:
    """The program with the values of its sites as they are in the flat position.

    Sites whose support is neither the real line nor a half-line, a box or a simplex, or has bounds
    that other variables move, stay in unconstrained coordinates.
    """
    if program.base is not None:
        return program
    moving, sites, offset = _moving(program), [], 0
    for site in program.sites:
        if site.role == "latent":
            as_it_is = bool(site.region) and site.name not in moving
            shape = site.shape if as_it_is else site.unconstrained_shape
            region = site.region if as_it_is else ""
            site = dataclasses.replace(
                site, unconstrained_shape=shape, offset=offset, is_native=as_it_is, region=region
            )
            offset += site.size
        sites.append(site)
    return dataclasses.replace(program, sites=tuple(sites), dim=offset, base=program)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def bounds(program: Program, leaves: list[Any]) -> tuple[Array, Array]:
    """Lower and upper end of the support of each coordinate of a native position, `(dim,)`."""

    def anywhere(site: dict[str, Any]) -> Any:
        return values[site["name"]] if tracing.is_latent(site) else None

    values = {site.name: jnp.full(site.shape, 0.5, site.dtype) for site in program.latents}
    bounded = any(map(_is_bounded, program.latents))
    found = _bounds(program, leaves, anywhere) if bounded else {}
    dtype = jnp.result_type(float)
    ends = []
    for side, open_end in ((0, -jnp.inf), (1, jnp.inf)):
        parts = [jnp.zeros(0, dtype)]
        for site in program.latents:
            end = found[site.name][side] if site.is_native and site.name in found else open_end
            end = jnp.asarray(end, dtype)
            end = end.reshape((1,) * (len(site.unconstrained_shape) - end.ndim) + end.shape)
            parts.append(jnp.broadcast_to(end, site.unconstrained_shape).reshape(-1))
        ends.append(jnp.concatenate(parts))
    return ends[0], ends[1]


def _bounds(program: Program, leaves: list[Any], substitute: Any) -> dict[str, tuple[Any, Any]]:
    trace = tracing.at_point(program.model, program.signature.rebuild(leaves), substitute)
    found = {}
    for site in program.latents:
        if site.region in ("half-line", "box"):
            support = tracing.base_support(trace[site.name]["fn"].support)
            lower = getattr(support, "lower_bound", -jnp.inf)
            found[site.name] = (lower, getattr(support, "upper_bound", jnp.inf))
    return found


def _moving(program: Program) -> set[str]:
    """Sites whose bounds depend on other latent sites."""
    names = [site.name for site in program.latents if _is_bounded(site)]
    if not names:
        return set()

    def ends(leaves: Any, values: Mapping[str, Any]) -> dict[str, Any]:
        found = _bounds(program, leaves, tracing.given(values))
        return {name: jnp.sum(jnp.asarray(found[name][0]) + found[name][1]) for name in found}

    leaves = program.signature.specs()
    values = {site.name: jax.ShapeDtypeStruct(site.shape, site.dtype) for site in program.latents}
    found = influences(ends, leaves, values)
    return {name for name, by in found.items() if by and max(by) >= len(leaves)}


def _is_bounded(site: Site) -> bool:
    return site.region in ("half-line", "box")
