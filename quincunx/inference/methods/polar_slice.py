r"""Gibbsian polar slice sampling.

In polar coordinates x = m + B y, y = r theta with |theta| = 1, the target is

    p(r, theta) dr dtheta  with  log p = l(r, theta) = (d - 1) log r + log pi(m + r B theta).

A transition draws log t = l(r, theta) - E with E ~ Exp(1) and then, under the one threshold t,

    theta' on a random great circle through theta, with l(r, theta') > log t (geodesic shrinkage);
    r'     on the ray along theta', with l(r', theta') > log t (stepping out and shrinkage).

Each of the two leaves the law on {(r, theta): l > log t} as it is, so the posterior is stationary.
Heavy tails cost little, since the radius moves freely; m and B are tuned in warm-up, for the
sampler presumes the mass around m on one scale. No gradient is used.

With `radial="log"`, the default, the radius moves in s = log r under a threshold of its own, on
d s + log pi(m + e^s B theta'); the bracket then has the same width at every scale.

Schaer, Habeck and Rudolf (2023), Gibbsian polar slice sampling, ICML; tuning: the same (2024),
Parallel affine transformation tuning of Markov chain Monte Carlo, ICML.
"""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from quincunx.inference.method import Kind, one_of
from quincunx.inference.registry import register
from quincunx.inference.slicing import LineSampler, Slice, State, threshold

_TINY = 1e-30


@register
class PolarSlice(LineSampler):
    """Gibbsian polar slice sampling with affine tuning; needs no gradient and no hand.

    Attributes:
        affine: what warm-up tunes: `covariance` (centre and covariance), `variance` (centre and
            scales) or `none` (the sampler works about the origin).
        radial: `log` moves the logarithm of the radius, `linear` the radius itself.
        width: the first bracket of the radius in latent units (of log r where `radial` is
            `log`); by default adapted in warm-up from sqrt(d) / 2 (from 1).
        max_steps_out: how many widths the bracket may grow to.
        max_shrinks: points outside the slice after which a move is given up, which is counted.
        execution: `lockstep`, `free`, or `auto` for the faster; the draws are the same.
    """

    name: ClassVar[str] = "polar_slice"
    kind: ClassVar[Kind] = Kind.EXACT
    summary: ClassVar[str] = (
        "Gradient-free; for heavy tails, jumps and densities without gradients."
    )
    citation: ClassVar[str] = (
        "Schaer, Habeck and Rudolf (2023), Gibbsian Polar Slice Sampling, ICML"
    )

    affine: str = "covariance"
    radial: str = "log"
    width: float | None = None
    max_steps_out: int = 100
    max_shrinks: int = 100
    execution: str = "auto"

    def __check_init__(self) -> None:
        """Refuse impossible settings."""
        self.check()
        one_of("radial", self.radial, ("linear", "log"), "PolarSlice")

    def plane(self, state: State, normal: Array, dim: int) -> tuple[Array, Array, Array, Array]:
        """The circle of y towards a normal vector, and the ray; on one coordinate the line."""
        length = jnp.linalg.norm(state.y)
        y = jnp.where(length > _TINY, state.y, _TINY * normal)
        radius = jnp.linalg.norm(y)
        across = normal - y * (jnp.sum(normal * y) / radius**2) if dim > 1 else 0 * normal
        across = across * (radius / jnp.linalg.norm(across)) if dim > 1 else across
        origin = jnp.sum(y) if dim == 1 else radius
        return state.tuning.affine.centre, y, across, self._from_radius(origin, dim)

    def scale(self, s: Slice, dim: int) -> Array:
        """R' / r; on one coordinate it may be negative."""
        return jnp.exp(s.t - s.origin) if self._logarithmic(dim) else s.t / s.origin

    def correction(self, state: State, scale: Array, angle: Array, dim: int) -> Array:
        """(d - 1) log r'/r, or d log r'/r where log r moves."""
        del state, angle
        power = dim if self._logarithmic(dim) else dim - 1
        return power * jnp.log(scale) if power else jnp.zeros_like(scale)

    def line_bound(self, s: Slice) -> Array:
        """The circle's; one of its own where log r moves."""
        if self.radial == "linear":
            return s.bound
        return threshold(s)

    def floor(self, dim: int) -> float:
        """Radii are positive; their logarithms, and single coordinates, need not be."""
        return -np.inf if dim == 1 or self._logarithmic(dim) else 0.0

    def first_width(self, dim: int) -> float:
        """The width that was set, or sqrt(d) / 2, or 1 for log r."""
        if self.width is not None:
            return self.width
        return 1.0 if self._logarithmic(dim) else super().first_width(dim)

    def _logarithmic(self, dim: int) -> bool:
        return self.radial == "log" and dim > 1

    def _from_radius(self, radius: Array, dim: int) -> Array:
        return jnp.log(radius) if self._logarithmic(dim) else radius
