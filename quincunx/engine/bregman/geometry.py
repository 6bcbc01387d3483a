r"""The mirror map of a model: a Legendre function for each site, on flat native positions.

A mirror map phi gives each position x a dual y = grad phi(x), and the noise of a Langevin step the
covariance Hess phi(x). Most sites have a separable function (`legendre.py`); a simplex has the
entropy

    phi(x) = w sum_i x_i log x_i,  grad phi(x) = w log x (up to a constant),  x = softmax(y / w),

whose Hessian on the simplex has the inverse (diag x - x x^T) / w and, in all coordinates but one,
the determinant w^(K - 1) / prod_i x_i.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from quincunx.engine.bregman.legendre import (
    Barrier,
    BoltzmannShannon,
    BoxBarrier,
    Burg,
    Exponential,
    FermiDirac,
    Hellinger,
    Hypentropy,
    Legendre,
    Squared,
)
from quincunx.engine.errors import MethodError, unknown
from quincunx.engine.program import Program, Site

FUNCTIONS: dict[str, dict[str, type[Legendre]]] = {
    "real": {"squared": Squared, "hypentropy": Hypentropy, "exponential": Exponential},
    "half-line": {"barrier": Barrier, "burg": Burg, "boltzmann_shannon": BoltzmannShannon},
    "box": {"barrier": BoxBarrier, "fermi_dirac": FermiDirac, "hellinger": Hellinger},
}
DEFAULT = {"real": "squared", "half-line": "barrier", "box": "barrier", "simplex": "entropy"}
WORDS = ("auto", "euclidean", "squared", "hypentropy", "exponential", "barrier", "burg",
         "boltzmann_shannon", "fermi_dirac", "hellinger", "entropy")  # fmt: skip
_WALL = 1e-8  # of a half-line's scale or a box's width


class Entropy(eqx.Module):
    """The entropy of the probability simplexes on the last axis.

    Attributes:
        size: entries of a simplex.
        weight: w, one for each simplex.
    """

    size: int = eqx.field(static=True)
    weight: Array

    def dual(self, x: Array) -> Array:
        """W log x."""
        return (self.weight[:, None] * jnp.log(self._rows(x))).reshape(-1)

    def primal(self, y: Array) -> Array:
        """Softmax of y / w."""
        return jax.nn.softmax(self._rows(y) / self.weight[:, None], axis=-1).reshape(-1)

    def reaches(self, y: Array) -> Array:
        """Where no entry vanishes."""
        v = self._rows(y) / self.weight[:, None]
        spread = jnp.max(v, axis=-1) - jnp.min(v, axis=-1)
        return jnp.all(jnp.isfinite(v)) & jnp.all(
            spread < (600.0 if y.dtype == jnp.float64 else 60.0)
        )

    def noise(self, x: Array, xi: Array) -> Array:
        """From standard normal variables ones with covariance Hess phi, up to constants."""
        return (jnp.sqrt(self.weight[:, None] / self._rows(x)) * self._rows(xi)).reshape(-1)

    def step(self, x: Array, xi: Array, eps: Array, *, second: bool) -> Array:
        """Displacement of the dual by noise, always of first order."""
        del second
        return jnp.sqrt(2 * eps) * self.noise(x, xi)

    def log_law(self, x: Array, e: Array, eps: Array, *, second: bool) -> Array:
        """Log density of such a displacement, up to a constant."""
        del second
        return -self.quadratic(x, e) / (4 * eps) - 0.5 * self.log_det(x)

    def quadratic(self, x: Array, e: Array) -> Array:
        """e^T (Hess phi)^-1 e."""
        x, e = self._rows(x), self._rows(e)
        mean = jnp.sum(x * e, axis=-1, keepdims=True)
        return jnp.sum(jnp.sum(x * (e - mean) ** 2, axis=-1) / self.weight)

    def log_det(self, x: Array) -> Array:
        """Log determinant of the Hessian."""
        return (self.size - 1) * jnp.sum(jnp.log(self.weight)) - jnp.sum(jnp.log(x))

    def _rows(self, x: Array) -> Array:
        return x.reshape(-1, self.size)


class Separable(eqx.Module):
    """A Legendre function for each coordinate of a piece."""

    function: Legendre

    def dual(self, x: Array) -> Array:
        """The function's slope."""
        return self.function.dual(x)

    def primal(self, y: Array) -> Array:
        """The inverse of `dual`."""
        return self.function.primal(y)

    def reaches(self, y: Array) -> Array:
        """Whether the inverse can be computed everywhere."""
        return jnp.all(self.function.reaches(y))

    def noise(self, x: Array, xi: Array) -> Array:
        """From standard normal variables ones with covariance Hess phi."""
        return jnp.sqrt(self.function.hessian(x)) * xi

    def step(self, x: Array, xi: Array, eps: Array, *, second: bool) -> Array:
        """Displacement of the dual by noise."""
        return Curved.of(self.function, x, eps, second=second).step(xi)

    def log_law(self, x: Array, e: Array, eps: Array, *, second: bool) -> Array:
        """Log density of such a displacement, up to a constant."""
        return jnp.sum(Curved.of(self.function, x, eps, second=second).log_law(e))

    def log_det(self, x: Array) -> Array:
        """Log determinant of the Hessian."""
        return jnp.sum(jnp.log(self.function.hessian(x)))


class Curved(NamedTuple):
    """A step b xi + c (xi^2 - 1) of each coordinate, xi ~ N(0, 1).

    For the diffusion of a dual y with variance 2 phi''(x(y)) per unit of time this is the step of
    Milstein: b^2 = 2 eps phi''(x) and c = eps phi'''(x) / (2 phi''(x)).
    """

    b: Array
    c: Array

    @classmethod
    def of(cls, function: Legendre, x: Array, eps: Array, *, second: bool) -> Curved:
        """At a position; without the second order c is zero."""
        hessian, third = jax.jvp(function.hessian, (x,), (jnp.ones_like(x),))
        c = 0.5 * eps * third / hessian if second else jnp.zeros_like(x)
        return cls(jnp.sqrt(2 * eps * hessian), c)

    def step(self, xi: Array) -> Array:
        """The step that standard normal variables make."""
        return self.b * xi + self.c * (xi**2 - 1)

    def log_law(self, e: Array) -> Array:
        """Log density of a step, up to a constant: the sum over both xi that make it."""
        t = e + self.c
        inner = self.b**2 + 4 * self.c * t
        reached = inner > 0
        root = jnp.sqrt(jnp.where(reached, inner, 1.0))
        near = 2 * t / (self.b + root)
        bent = jnp.abs(self.c) > jnp.finfo(e.dtype).tiny
        far = (self.b + root) / jnp.where(bent, 2 * self.c, 1.0)
        both = jnp.logaddexp(-0.5 * near**2, jnp.where(bent, -0.5 * far**2, -jnp.inf))
        return jnp.where(reached, both - jnp.log(root), -jnp.inf)


class Piece(NamedTuple):
    """Coordinates of a flat position that share a function.

    Attributes:
        start: the first of them.
        stop: one past the last.
        word: the function's name.
        region: the kind of their support.
        size: entries of the last axis of their site.
    """

    start: int
    stop: int
    word: str
    region: str
    size: int


class Geometry(eqx.Module):
    """The mirror map on flat native positions.

    Attributes:
        pieces: which coordinates have which function.
        maps: the functions.
    """

    pieces: tuple[Piece, ...] = eqx.field(static=True)
    maps: tuple[Separable | Entropy, ...]

    def dual(self, x: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """Grad phi(x)."""
        return self._each("dual", x)

    def primal(self, y: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """The position with that dual."""
        return self._each("primal", y)

    def noise(self, x: Float[Array, " dim"], xi: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """Hess phi(x)^(1/2) xi for standard normal xi."""
        return self._each("noise", x, xi)

    def reaches(self, y: Float[Array, " dim"]) -> Array:
        """Whether a dual point has a position that can be computed."""
        found = [m.reaches(y[p.start : p.stop]) for p, m in self._pairs()]
        return jnp.all(jnp.stack(found))

    def step(
        self, x: Float[Array, " dim"], xi: Float[Array, " dim"], eps: Array, *, second: bool
    ) -> Float[Array, " dim"]:
        """Displacement of the dual by the noise of a Langevin step.

        Args:
            x: position.
            xi: standard normal variables.
            eps: step size.
            second: whether the term of second order is there, by which the noise follows the
                Hessian along the step.
        """
        parts = [
            m.step(x[p.start : p.stop], xi[p.start : p.stop], eps, second=second)
            for p, m in self._pairs()
        ]
        return jnp.concatenate(parts)

    def log_law(
        self, x: Float[Array, " dim"], e: Float[Array, " dim"], eps: Array, *, second: bool
    ) -> Float[Array, ""]:
        """Log density, over the dual and up to a constant, of `step` to be `e`."""
        parts = [
            m.log_law(x[p.start : p.stop], e[p.start : p.stop], eps, second=second)
            for p, m in self._pairs()
        ]
        return sum(parts, jnp.zeros((), x.dtype))

    def log_det(self, x: Float[Array, " dim"]) -> Float[Array, ""]:
        """Log determinant of Hess phi(x)."""
        parts = [m.log_det(x[p.start : p.stop]) for p, m in self._pairs()]
        return sum(parts, jnp.zeros((), x.dtype))

    def separable(self) -> list[tuple[Piece, Legendre]]:
        """The pieces that have a function for each coordinate."""
        return [(p, m.function) for p, m in self._pairs() if isinstance(m, Separable)]

    def _pairs(self) -> list[tuple[Piece, Separable | Entropy]]:
        return list(zip(self.pieces, self.maps, strict=True))

    def _each(self, name: str, *arrays: Array) -> Array:
        parts = [
            getattr(m, name)(*(array[p.start : p.stop] for array in arrays))
            for p, m in self._pairs()
        ]
        return jnp.concatenate(parts)


def plan(program: Program, geometry: str | Mapping[str, str]) -> tuple[Piece, ...]:
    """Which coordinates of a native program have which function.

    A word for all sites is taken where it fits a site's support, and the default elsewhere.

    Args:
        program: in native coordinates.
        geometry: a word for all sites, or words by site.

    Raises:
        MethodError: an unknown site or word, or a word that fits no support.
    """
    latents = {site.name: site for site in program.latents}
    if not isinstance(geometry, str):
        for name, word in geometry.items():
            if name not in latents:
                raise MethodError(unknown("latent site", name, latents, " in `geometry`"))
            valid = words(latents[name])
            if word not in valid:
                where = (
                    f" in `geometry` for {latents[name]}, whose support is {latents[name].support}"
                )
                raise MethodError(unknown("function", word, valid, where))
    elif not any(geometry in words(site) for site in latents.values()):
        message = f"`geometry='{geometry}'` fits none of the supports of model `{program.name}`. "
        raise MethodError(message + "Leave it out, or name one that `qx.explain` shows.")
    pieces: list[Piece] = []
    for site in latents.values():
        word = geometry if isinstance(geometry, str) else geometry.get(site.name, "auto")
        region = site.region if site.is_native else "real"
        word = word if word in words(site) and word != "auto" else DEFAULT[region]
        size = site.unconstrained_shape[-1] if site.unconstrained_shape else 1
        piece = Piece(site.offset, site.offset + site.size, word, region, size)
        before = pieces[-1] if pieces else None
        if before and (before.word, before.region) == (word, region) and region != "simplex":
            pieces[-1] = before._replace(stop=piece.stop)
        elif site.size:
            pieces.append(piece)
    return tuple(pieces)


def words(site: Site) -> tuple[str, ...]:
    """The functions that fit a site's support."""
    region = site.region if site.is_native else "real"
    if region == "simplex":
        return ("auto", "entropy")
    return ("auto", "euclidean", *FUNCTIONS[region])


def build(
    pieces: tuple[Piece, ...],
    centre: Float[Array, " dim"],
    scale: Float[Array, " dim"],
    lower: Float[Array, " dim"],
    upper: Float[Array, " dim"],
) -> Geometry:
    """The mirror map whose Hessian at the centre is about scale^-2, so that steps are unitless.

    Args:
        pieces: from `plan`.
        centre: a typical position.
        scale: how far each coordinate usually is from it.
        lower: lower ends of the supports.
        upper: upper ends of the supports.
    """
    maps = []
    for piece in pieces:
        cut = slice(piece.start, piece.stop)
        ends = (lower[cut], upper[cut])
        if piece.word == "entropy":
            maps.append(_entropy(piece, centre[cut], scale[cut]))
        else:
            maps.append(Separable(_function(piece, centre[cut], scale[cut], *ends)))
    return Geometry(pieces, tuple(maps))


def typical(
    pieces: tuple[Piece, ...], lower: Float[Array, " dim"], upper: Float[Array, " dim"]
) -> tuple[Float[Array, " dim"], Float[Array, " dim"]]:
    """A centre and scales for nothing but the supports: of flat laws where they are finite."""
    below, above = jnp.isfinite(lower), jnp.isfinite(upper)
    first, last = jnp.where(below, lower, 0.0), jnp.where(above, upper, 0.0)
    beside = jnp.where(below, first + 1, jnp.where(above, last - 1, 0.0))
    centre = jnp.where(below & above, 0.5 * (first + last), beside)
    scale = jnp.where(below & above, (last - first) / 12**0.5, 1.0)
    for piece in pieces:
        if piece.word == "entropy":
            share = 1 / piece.size
            spread = (share * (1 - share) / (piece.size + 1)) ** 0.5
            centre = centre.at[piece.start : piece.stop].set(share)
            scale = scale.at[piece.start : piece.stop].set(spread)
    return centre, scale


def _entropy(piece: Piece, centre: Array, scale: Array) -> Entropy:
    x, s = centre.reshape(-1, piece.size), scale.reshape(-1, piece.size)
    return Entropy(piece.size, jnp.mean(x * (1 - x), axis=-1) / jnp.mean(s**2, axis=-1))


def _function(piece: Piece, centre: Array, scale: Array, lower: Array, upper: Array) -> Legendre:
    one = jnp.ones_like(centre)
    if piece.word == "euclidean":
        return Squared(0 * one, one, one)
    kind = FUNCTIONS[piece.region][piece.word]
    if piece.region == "real":
        return kind(centre, scale, one)
    if piece.region == "half-line":
        below = jnp.isfinite(lower)
        origin, side = jnp.where(below, lower, upper), jnp.where(below, 1.0, -1.0)
        size = scale if piece.word == "barrier" else one
        made = kind(origin, side * size, one)
        if piece.word == "barrier":
            return made
    elif piece.word == "hellinger":
        made = kind(0.5 * (lower + upper), 0.5 * (upper - lower), one)
    else:
        made = kind(lower, upper - lower, one)
    low, high = made.interval
    u = made.unit(centre)
    u = jnp.clip(u, low + _WALL, high - _WALL if high < jnp.inf else None)
    weight = 1 / (scale**2 * made.hessian(made.origin + made.scale * u))
    return eqx.tree_at(lambda made: made.weight, made, weight)
