r"""Legendre functions of one variable: mirror maps and the distances that they make.

A Legendre function h is smooth and strictly convex on an open interval, with a slope that maps the
interval onto the dual one. Each class has a function of a unitless variable u; a function of x is

    phi(x) = w h(u),  u = (x - o) / s,

with an origin o, a scale s (negative where the interval is turned round) and a weight w. Its
Bregman distance is D(a, b) = phi(a) - phi(b) - phi'(b) (a - b).

Bauschke and Borwein (1997), Legendre functions and the method of random Bregman projections,
Journal of Convex Analysis 4:27; hypentropy: Ghai, Hazan and Singer (2020), Exponentiated gradient
meets gradient descent, ALT.
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

_GRID, _NEWTON = 32, 12


class Legendre(eqx.Module):
    """A Legendre function, elementwise; all arrays are of one shape or scalar.

    Attributes:
        origin: o.
        scale: s.
        weight: w.
        interval: where u may lie.
        is_line: whether that is the whole line, so that the origin may be anywhere.
    """

    origin: Any = 0.0
    scale: Any = 1.0
    weight: Any = 1.0

    interval: ClassVar[tuple[float, float]] = (-float("inf"), float("inf"))

    @property
    def is_line(self) -> bool:
        """Whether every x is in the domain."""
        return self.interval == (-float("inf"), float("inf"))

    @abc.abstractmethod
    def base(self, u: Array) -> Array:
        """h(u)."""

    @abc.abstractmethod
    def slope(self, u: Array) -> Array:
        """h'(u)."""

    @abc.abstractmethod
    def inverse(self, v: Array) -> Array:
        """The u with h'(u) = v; an end of the interval, or infinity, where v is beyond."""

    @abc.abstractmethod
    def curvature(self, u: Array) -> Array:
        """h''(u)."""

    def reach(self, v: Array) -> Array:
        """Whether `inverse` is finite, inside the interval and free of overflow at v."""
        return jnp.isfinite(v)

    def value(self, x: Array) -> Array:
        """phi(x)."""
        return self.weight * self.base(self.unit(x))

    def dual(self, x: Array) -> Array:
        """phi'(x)."""
        return self.weight / self.scale * self.slope(self.unit(x))

    def primal(self, y: Array) -> Array:
        """The x with phi'(x) = y."""
        return self.origin + self.scale * self.inverse(y * self.scale / self.weight)

    def hessian(self, x: Array) -> Array:
        """phi''(x)."""
        return self.weight / self.scale**2 * self.curvature(self.unit(x))

    def reaches(self, y: Array) -> Array:
        """Whether `primal` is a point of the domain that can be computed."""
        return self.reach(y * self.scale / self.weight)

    def distance(self, a: Array, b: Array) -> Array:
        """The Bregman distance D(a, b)."""
        return self.value(a) - self.value(b) - self.dual(b) * (a - b)

    def left_shift(self, x: Array, k: Array) -> Array:
        """argmin_y k y + D(y, x): phi'(y) = phi'(x) - k."""
        moved = self.slope(self.unit(x)) - k * self.scale / self.weight
        return self.origin + self.scale * self.inverse(moved)

    def right_shift(self, x: Array, k: Array, stop: Array) -> Array:
        """argmin_y k y + D(x, y) for y between x and `stop`; NaN where that is no stationary point.

        There phi''(y) (x - y) = k.
        """
        u, k, stop = jnp.broadcast_arrays(
            self.unit(x), k * self.scale / self.weight, self.unit(stop)
        )
        return self.origin + self.scale * self.back(u, k, stop)

    def back(self, u: Array, k: Array, stop: Array) -> Array:
        """The best v between u and `stop` with h''(v) (u - v) = k, from a grid by Newton steps."""
        low, high = self.interval
        stop = jnp.clip(stop, low, high)
        parts = (jnp.arange(_GRID, dtype=u.dtype) + 1) / (_GRID + 1)

        def objective(part: Array) -> Array:
            v = u + (stop - u) * part
            return k * v + self.base(u) - self.base(v) - self.slope(v) * (u - v)

        best = jnp.argmin(jax.vmap(objective)(parts), axis=0)
        start = u + (stop - u) * parts[best]

        def excess(v: Array) -> Array:
            return self.curvature(v) * (u - v) - k

        def step(_: Any, v: Array) -> Array:
            value, slope = jax.jvp(excess, (v,), (jnp.ones_like(v),))
            moved = v - value / jnp.where(slope < 0, slope, -1.0)
            edge = jnp.abs(stop - u) / (_GRID + 1)
            return jnp.clip(moved, start - edge, start + edge)

        found = jax.lax.fori_loop(0, _NEWTON, step, start)
        tolerance = 1e3 * jnp.finfo(found.dtype).eps * (1 + jnp.abs(k))
        return jnp.where(jnp.abs(excess(found)) <= tolerance, found, jnp.nan)

    def unit(self, x: Array) -> Array:
        """The unitless variable."""
        return (x - self.origin) / self.scale


class Squared(Legendre):
    """u^2 / 2 on the line."""

    def base(self, u: Array) -> Array:
        """u^2 / 2."""
        return 0.5 * u**2

    def slope(self, u: Array) -> Array:
        """The variable itself."""
        return u

    def inverse(self, v: Array) -> Array:
        """The slope itself."""
        return v

    def curvature(self, u: Array) -> Array:
        """One."""
        return jnp.ones_like(u)

    def back(self, u: Array, k: Array, stop: Array) -> Array:
        """The difference."""
        return u - k


class Hypentropy(Legendre):
    """u asinh u - sqrt(1 + u^2) on the line; the scale is what papers call beta."""

    def base(self, u: Array) -> Array:
        """The function."""
        return u * jnp.arcsinh(u) - jnp.sqrt(1 + u**2)

    def slope(self, u: Array) -> Array:
        """Asinh u."""
        return jnp.arcsinh(u)

    def inverse(self, v: Array) -> Array:
        """Sinh v."""
        return jnp.sinh(v)

    def curvature(self, u: Array) -> Array:
        """(1 + u^2)^(-1/2)."""
        return 1 / jnp.sqrt(1 + u**2)

    def reach(self, v: Array) -> Array:
        """Where sinh does not overflow, nor its square in single precision."""
        return jnp.abs(v) < _limit(v, 80.0, 40.0)

    def back(self, u: Array, k: Array, stop: Array) -> Array:
        """(u^2 - k^2) / (u + k sqrt(u^2 + 1 - k^2)), for u towards which k points."""
        side = jnp.where(k < 0, -1.0, 1.0)
        t, k = side * u, jnp.abs(k)
        inner = t**2 + 1 - k**2
        root = jnp.sqrt(jnp.maximum(inner, 0.0))
        # the other form of the same root, where t + k root would cancel
        apart = jnp.where(jnp.abs(1 - k**2) > 1e-8, 1 - k**2, 1.0)
        found = jnp.where(t > 0, (t**2 - k**2) / (t + k * root), (t - k * root) / apart)
        return side * jnp.where((inner >= 0) & ((t > 0) | (k < 1)), found, jnp.nan)


class Exponential(Legendre):
    """e^u on the line; its dual is the positive half-line."""

    def base(self, u: Array) -> Array:
        """e^u."""
        return jnp.exp(u)

    def slope(self, u: Array) -> Array:
        """e^u."""
        return jnp.exp(u)

    def inverse(self, v: Array) -> Array:
        """Log v."""
        return jnp.log(jnp.maximum(v, 0.0))

    def curvature(self, u: Array) -> Array:
        """e^u."""
        return jnp.exp(u)

    def reach(self, v: Array) -> Array:
        """Positive v."""
        return (v > jnp.finfo(v.dtype).tiny) & jnp.isfinite(v)


class BoltzmannShannon(Legendre):
    """u log u - u on the positive half-line."""

    interval: ClassVar[tuple[float, float]] = (0.0, float("inf"))

    def base(self, u: Array) -> Array:
        """The function."""
        return u * jnp.log(u) - u

    def slope(self, u: Array) -> Array:
        """Log u."""
        return jnp.log(u)

    def inverse(self, v: Array) -> Array:
        """e^v."""
        return jnp.exp(v)

    def curvature(self, u: Array) -> Array:
        """1 / u."""
        return 1 / u

    def reach(self, v: Array) -> Array:
        """Where e^v neither overflows nor vanishes."""
        return jnp.abs(v) < _limit(v, 80.0, 40.0)

    def back(self, u: Array, k: Array, stop: Array) -> Array:
        """U / (1 + k)."""
        return jnp.where(k > -1, u / (1 + k), jnp.nan)


class Burg(Legendre):
    """-log u on the positive half-line; its dual is the negative one."""

    interval: ClassVar[tuple[float, float]] = (0.0, float("inf"))

    def base(self, u: Array) -> Array:
        """-log u."""
        return -jnp.log(u)

    def slope(self, u: Array) -> Array:
        """-1 / u."""
        return -1 / u

    def inverse(self, v: Array) -> Array:
        """-1 / v, infinite beyond the dual's end."""
        return jnp.where(v < 0, -1 / jnp.where(v < 0, v, -1.0), jnp.inf)

    def curvature(self, u: Array) -> Array:
        """u^(-2)."""
        return u**-2

    def reach(self, v: Array) -> Array:
        """Negative v."""
        return (v < -_limit(v, 1e-12, 1e-6)) & jnp.isfinite(v)

    def back(self, u: Array, k: Array, stop: Array) -> Array:
        """2 u / (1 + sqrt(1 + 4 k u))."""
        inner = 1 + 4 * k * u
        return jnp.where(inner >= 0, 2 * u / (1 + jnp.sqrt(jnp.maximum(inner, 0.0))), jnp.nan)


class Barrier(Legendre):
    """-log u + u^2 / 2 on the positive half-line; its dual is the line.

    Near the end steps are in proportion to u, as for `Burg`; far from it they are of one size.
    """

    interval: ClassVar[tuple[float, float]] = (0.0, float("inf"))

    def base(self, u: Array) -> Array:
        """The function."""
        return -jnp.log(u) + 0.5 * u**2

    def slope(self, u: Array) -> Array:
        """U - 1 / u."""
        return u - 1 / u

    def inverse(self, v: Array) -> Array:
        """(v + sqrt(v^2 + 4)) / 2."""
        root = jnp.sqrt(v**2 + 4)
        return jnp.where(v > 0, 0.5 * (v + root), 2 / (root - jnp.minimum(v, 0.0)))

    def curvature(self, u: Array) -> Array:
        """1 + u^(-2)."""
        return 1 + u**-2

    def reach(self, v: Array) -> Array:
        """Where u^(-2) does not overflow."""
        return jnp.abs(v) < _limit(v, 1e100, 1e15)


class FermiDirac(Legendre):
    """u log u + (1 - u) log(1 - u) on the unit interval."""

    interval: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def base(self, u: Array) -> Array:
        """The function."""
        return u * jnp.log(u) + (1 - u) * jnp.log1p(-u)

    def slope(self, u: Array) -> Array:
        """Logit u."""
        return jnp.log(u) - jnp.log1p(-u)

    def inverse(self, v: Array) -> Array:
        """The logistic function."""
        return jax.nn.sigmoid(v)

    def curvature(self, u: Array) -> Array:
        """1 / (u (1 - u))."""
        return 1 / (u * (1 - u))

    def reach(self, v: Array) -> Array:
        """Where the logistic function is not rounded to an end."""
        return jnp.abs(v) < _limit(v, 34.0, 14.0)

    def back(self, u: Array, k: Array, stop: Array) -> Array:
        """2 u / (1 + k + sqrt((1 + k)^2 - 4 k u))."""
        return 2 * u / (1 + k + jnp.sqrt((1 + k) ** 2 - 4 * k * u))


class BoxBarrier(Legendre):
    """-log u - log(1 - u) on the unit interval; its dual is the line."""

    interval: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def base(self, u: Array) -> Array:
        """The function."""
        return -jnp.log(u) - jnp.log1p(-u)

    def slope(self, u: Array) -> Array:
        """1 / (1 - u) - 1 / u."""
        return 1 / (1 - u) - 1 / u

    def inverse(self, v: Array) -> Array:
        """1/2 + v / (2 (2 + sqrt(v^2 + 4)))."""
        root = jnp.sqrt(v**2 + 4)
        near_zero = 2 / (2 - jnp.minimum(v, 0.0) + root)
        return jnp.where(v < 0, near_zero, 0.5 + 0.5 * jnp.maximum(v, 0.0) / (2 + root))

    def curvature(self, u: Array) -> Array:
        """u^(-2) + (1 - u)^(-2)."""
        return u**-2 + (1 - u) ** -2

    def reach(self, v: Array) -> Array:
        """Where the inverse is not rounded to an end."""
        return jnp.abs(v) < _limit(v, 1e14, 1e6)


class Hellinger(Legendre):
    """-sqrt(1 - u^2) on (-1, 1)."""

    interval: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def base(self, u: Array) -> Array:
        """The function."""
        return -jnp.sqrt((1 - u) * (1 + u))

    def slope(self, u: Array) -> Array:
        """U / sqrt(1 - u^2)."""
        return u / jnp.sqrt((1 - u) * (1 + u))

    def inverse(self, v: Array) -> Array:
        """V / sqrt(1 + v^2)."""
        return v / jnp.sqrt(1 + v**2)

    def curvature(self, u: Array) -> Array:
        """(1 - u^2)^(-3/2)."""
        return ((1 - u) * (1 + u)) ** -1.5

    def reach(self, v: Array) -> Array:
        """Where the inverse is not rounded to an end."""
        return jnp.abs(v) < _limit(v, 1e6, 1e3)


def _limit(v: Array, double: float, single: float) -> float:
    return double if v.dtype == jnp.float64 else single
