r"""A mode of the posterior in native coordinates, and the scales there, by proximal gradients.

Minimised is V(x) = f(x) + sum_k g_k(x) + 1/2 log det Hess phi(x), the last over bounded supports
alone, where it keeps the mode off their ends: there V is the potential in coordinates in which
steps are of one size. A step is one of Bregman proximal gradients,

    x <- prox_{t g}( grad phi*( grad phi(x) - t grad (V - sum_k g_k)(x) ) ),

taken where V falls; t grows after a step that was taken and shrinks after one that was not. The
mirror map phi has the scales s_i^-2 = d^2 V / dx_i^2 + l_i r_i / 2, l and r the slopes of kinks; it
is renewed some times.

Searches start about the middle of the unconstrained space, nearer and farther. What counts in the
end is not the density but the mass, log pi(x) + sum_i log s_i: the density of a hierarchical model
may have no bound where a scale goes to zero, and what is there has no mass.

Bauschke, Bolte and Teboulle (2017), A descent lemma beyond Lipschitz gradient continuity,
Mathematics of Operations Research 42:330.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from quincunx.engine.bregman.geometry import Geometry, build, plan
from quincunx.engine.bregman.proximity import proximity, recentred
from quincunx.engine.composite import Kinks, Split
from quincunx.engine.density import Density
from quincunx.inference.driver import on_devices

_NEARNESS = (0.05, 0.2, 0.5, 1.0)  # of the starts
_ROUNDS, _STEPS = 4, 60
_EXACT, _PROBES = 64, 32
_FLOOR = 1e-12


class Mode(NamedTuple):
    """What the search found.

    Attributes:
        position: native position.
        scale: of each coordinate.
        mass: logarithm of the mass about it, not finite where nothing was found.
        mirror: the mirror map of the search.
    """

    position: Float[Array, " dim"]
    scale: Float[Array, " dim"]
    mass: Float[Array, ""]
    mirror: Geometry


class Found(NamedTuple):
    """A mode, and the gradients that it took."""

    mode: Mode
    gradients: int


def find_mode(density: Density, key: Array, mesh: Mesh | None = None) -> Found:
    """Search from several starts.

    Args:
        density: over native coordinates.
        key: for the starts and for probes of the curvature.
        mesh: the devices, where the run is spread over several.
    """
    probes = density.dim if density.dim <= _EXACT else _PROBES
    each = (_ROUNDS + 1) * (_STEPS + 2 + 2 * probes)
    return Found(_best(mesh, density, key), len(_NEARNESS) * each)


@eqx.filter_jit
def _best(mesh: Mesh | None, density: Density, key: Array) -> Mode:
    return on_devices(mesh, _best_of_several, density, key)


def _best_of_several(density: Density, key: Array) -> Mode:
    keys = jax.random.split(key, len(_NEARNESS))
    free = density.unconstrained
    parts = jnp.asarray(_NEARNESS)
    starts = jax.vmap(lambda key, part: part * free.initial(key))(keys, parts)
    starts = jax.vmap(lambda z: density.unconstrain(free.latent(free.constrain(z))))(starts)
    search = _Search(density)
    found = jax.vmap(search.run)(starts, keys)
    positions, scales, masses = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), found)
    masses = jnp.where(jnp.isfinite(masses), masses, -jnp.inf)
    at = jnp.argmax(masses)
    mirror = search.mirror(positions[at], scales[at])
    return Mode(positions[at], scales[at], masses[at], mirror)


class _Search:
    def __init__(self, density: Density) -> None:
        self.density = density
        self.composite = density.structure.composite
        self.pieces = plan(density.program, "auto")
        self.lower, self.upper = self.composite.bounds()
        bounded = jnp.isfinite(self.lower) & jnp.isfinite(self.upper)
        width = jnp.where(bounded, self.upper - self.lower, 1.0)
        self.widest = jnp.where(bounded, width / 12**0.5, jnp.inf)

    def longest(self, x: Array) -> Array:
        """The largest scales: those of a flat density on a box, the distance from a single end."""
        wall = jnp.where(jnp.isfinite(self.lower), x - self.lower, self.upper - x)
        return jnp.minimum(self.widest, wall)

    def mirror(self, x: Array, scale: Array) -> Geometry:
        return build(self.pieces, x, scale, self.lower, self.upper)

    def potential(self, x: Array, mirror: Geometry) -> tuple[Array, tuple[Array, Split]]:
        """V without the nonsmooth terms; its volume's part, and the density taken apart."""
        split = self.composite.split(x)
        pairs = zip(mirror.pieces, mirror.maps, strict=True)
        volumes = [m.log_det(x[p.start : p.stop]) for p, m in pairs if p.region != "real"]
        volume = 0.5 * sum(volumes, jnp.zeros((), x.dtype))
        return split.smooth + volume, (volume, split)

    def scales(self, x: Array, key: Array) -> Array:
        """From the diagonal of the Hessian and the slopes of kinks."""
        longest, dim = self.longest(x), x.shape[0]
        widest = jnp.where(jnp.isfinite(longest), longest, 1.0)
        mirror = self.mirror(x, widest)
        slope = jax.grad(lambda x: self.potential(x, mirror)[0])
        probes = jnp.eye(dim, dtype=x.dtype)
        if dim > _EXACT:
            shape = (_PROBES, dim)
            probes = jax.random.rademacher(key, shape, x.dtype) / _PROBES**0.5
        along = jax.grad(lambda x, v: slope(x) @ v)  # sums over devices have no forward derivative
        products = jax.lax.map(lambda v: v * along(x, v), probes)
        split = self.composite.split(x)
        curvature = jnp.maximum(jnp.sum(products, axis=0), 0.0)
        curvature += 0.5 * split.kinks.left * split.kinks.right
        for _, site in self.composite.of("group l2"):
            cut = slice(site.offset, site.offset + site.size)
            n = site.shape[-1]
            each = split.groups[site.name].weight[..., None] ** 2 / (n + 1)
            curvature = curvature.at[cut].add(jnp.broadcast_to(each, site.shape).reshape(-1))
        known = curvature > _FLOOR
        scale = jnp.where(known, 1 / jnp.sqrt(jnp.where(known, curvature, 1.0)), widest)
        return jnp.minimum(jnp.where(jnp.isfinite(scale), scale, widest), longest)

    def proximal(
        self, x: Array, step: Array, scale: Array, mirror: Geometry, kinks: Kinks
    ) -> Array:
        """The operators of all terms that have one, one after the other."""
        for piece, psi in mirror.separable():
            if self.composite.is_kinked(piece.start, piece.stop):
                cut = slice(piece.start, piece.stop)
                these = kinks.part(cut)
                moved = proximity(recentred(psi, these.location), x[cut], these, step, "left")
                x = x.at[cut].set(moved)
        for _, site in self.composite.of("group l2"):
            cut = slice(site.offset, site.offset + site.size)
            size = step * jnp.min(scale[cut].reshape(site.shape), axis=-1) ** 2
            group = self.composite.split(x).groups[site.name]
            x = x.at[cut].set(group.prox(x[cut].reshape(site.shape), size).reshape(-1))
        for term, site in self.composite.of("factor"):
            cut = slice(site.offset, site.offset + site.size)
            size = {term.factor: step * jnp.min(scale[cut]) ** 2}
            x = x.at[cut].set(self.composite.split(x, size).moved[term.factor])
        return x

    def run(self, x: Array, key: Array) -> tuple[Array, Array, Array]:
        """Position, scales and mass before each round of steps from one start."""

        def stage(x: Array, key: Array) -> tuple[Array, tuple]:
            scale = self.scales(x, key)
            mass = self.composite.split(x).log_density + jnp.sum(jnp.log(scale))
            return self.descend(x, scale), (x, scale, mass)

        return jax.lax.scan(stage, x, jax.random.split(key, _ROUNDS + 1))[1]

    def descend(self, x: Array, scale: Array) -> Array:
        """Steps under one mirror map."""
        mirror = self.mirror(x, scale)

        def look(x: Array) -> tuple[Array, Array, Split]:
            slope, (volume, split) = jax.grad(self.potential, has_aux=True)(x, mirror)
            return volume - split.log_density, slope, split

        def step(carry: tuple, _: Any) -> tuple[tuple, None]:
            x, size, value, slope, kinks = carry
            y = mirror.dual(x) - size * slope
            moved = mirror.primal(jnp.where(mirror.reaches(y), y, mirror.dual(x)))
            moved = self.proximal(moved, size, scale, mirror, kinks)
            found, slope_there, split = look(moved)
            better = (found <= value) & jnp.all(jnp.isfinite(slope_there))
            new = (moved, 1.3 * size, found, slope_there, split.kinks)
            old = (x, 0.5 * size, value, slope, kinks)
            return jax.tree.map(lambda a, b: jnp.where(better, a, b), new, old), None

        value, slope, split = look(x)
        first = (x, jnp.ones((), x.dtype), value, slope, split.kinks)
        return jax.lax.scan(step, first, None, _STEPS)[0][0]
