r"""Hit-and-run slice sampling: the baseline among slice samplers.

In latent coordinates y (x = m + B y) a transition draws a direction v uniformly from the unit
sphere and samples the line

    t ~ pi(m + B (y + t v))

by one slice sampling transition: log u + log pi(y) is the threshold, the bracket of width w is
placed at random about 0, steps out, and shrinks (Neal 2003, Slice sampling, Annals of Statistics
31:705, figures 3 and 5). Hit-and-run: Belisle, Romeijn and Smith (1993), Hit-and-run algorithms for
generating multivariate distributions, Mathematics of Operations Research 18:255.
"""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from quincunx.inference.method import Kind
from quincunx.inference.registry import register
from quincunx.inference.slicing import LineSampler, State


@register
class HitAndRunSlice(LineSampler):
    """Slice sampling on a line in a random direction, with affine tuning.

    Attributes:
        affine: what warm-up tunes: `covariance`, `variance` or `none`.
        width: the first bracket in latent units; by default adapted in warm-up from 1.
        max_steps_out: how many widths the bracket may grow to.
        max_shrinks: points outside the slice after which a move is given up, which is counted.
        execution: `lockstep`, `free`, or `auto` for the faster; the draws are the same.
    """

    name: ClassVar[str] = "hit_and_run_slice"
    kind: ClassVar[Kind] = Kind.EXACT
    summary: ClassVar[str] = "Gradient-free baseline: one line in a random direction at a time."
    citation: ClassVar[str] = "Neal (2003), Slice sampling, Annals of Statistics 31:705"
    circle: ClassVar[bool] = False

    affine: str = "covariance"
    width: float | None = None
    max_steps_out: int = 100
    max_shrinks: int = 100
    execution: str = "auto"

    def __check_init__(self) -> None:
        """Refuse impossible settings."""
        self.check()

    def plane(self, state: State, normal: Array, dim: int) -> tuple[Array, Array, Array, Array]:
        """The line through x."""
        del dim
        direction = normal / jnp.linalg.norm(normal)
        return state.x, direction, 0 * normal, jnp.zeros_like(state.gap)

    def latent(self, state: State, scale: Array, angle: Array) -> Array:
        """Y + t v."""
        del angle
        return state.y + scale * state.slice.along

    def first_width(self, dim: int) -> float:
        """The width that was set, or 1."""
        del dim
        return 1.0 if self.width is None else self.width
