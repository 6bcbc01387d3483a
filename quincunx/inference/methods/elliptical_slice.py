r"""Elliptical slice sampling.

With nu ~ N(0, I) and latent coordinates y (x = m + B y), a transition moves on the ellipse

    y(t) = y cos t + nu sin t,

under the threshold log L(y(t)) > log L(y) - E, E ~ Exp(1), shrinking the bracket of t towards 0
after each point outside. N(0, I) stays as it is under the ellipse, so the law with density
L(y) N(y; 0, I) does.

`ellipse="tuned"`: N(m, B B^T) is fitted to the posterior in warm-up and L is the ratio of the two,
log L(y) = log pi(m + B y) + |y|^2 / 2. Close to Gaussian posteriors this takes little more than one
evaluation a transition; tails heavier than Gaussian make the ratio unbounded and the chain slow.

`ellipse="prior"`: N(m, B B^T) is the model's jointly Gaussian prior and L its likelihood (the
classical form); nothing is tuned. It suits priors that already have the posterior's shape, such as
Gaussian processes of many dimensions with few data.

Murray, Adams and MacKay (2010), Elliptical slice sampling, AISTATS; tuning: Schaer, Habeck and
Rudolf (2024), Parallel affine transformation tuning of Markov chain Monte Carlo, ICML.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from quincunx.engine.density import Density
from quincunx.inference.affine import Affine
from quincunx.inference.method import Kind, one_of
from quincunx.inference.registry import register
from quincunx.inference.slicing import SliceSampler, State


@register
class EllipticalSlice(SliceSampler):
    """Elliptical slice sampling, on a fitted ellipse or on that of a Gaussian prior.

    Attributes:
        ellipse: `tuned`, or `prior` for models whose prior is jointly Gaussian.
        affine: what warm-up tunes: `covariance`, `variance` or `none`; of use with `tuned` only.
        max_shrinks: points outside the slice after which a move is given up, which is counted.
        execution: `lockstep`, `free`, or `auto` for the faster; the draws are the same.
    """

    name: ClassVar[str] = "elliptical_slice"
    kind: ClassVar[Kind] = Kind.EXACT
    summary: ClassVar[str] = "Gradient-free; cheapest on posteriors that are close to Gaussian."
    citation: ClassVar[str] = "Murray, Adams and MacKay (2010), Elliptical slice sampling, AISTATS"
    line: ClassVar[bool] = False

    ellipse: str = "tuned"
    affine: str = "covariance"
    max_shrinks: int = 100
    execution: str = "auto"

    def __check_init__(self) -> None:
        """Refuse impossible settings."""
        self.check()
        one_of("ellipse", self.ellipse, ("tuned", "prior"), "EllipticalSlice")

    def missing(self, density: Density) -> str | None:
        """A jointly Gaussian prior, where the ellipse is to be the prior's."""
        if self.ellipse == "tuned" or density.structure.has_gaussian_prior:
            return None
        message = "its prior is not jointly Gaussian, which `ellipse='prior'` needs; "
        return message + "`ellipse='tuned'` does without."

    def plane(self, state: State, normal: Array, dim: int) -> tuple[Array, Array, Array, Array]:
        """The ellipse through y and a normal vector."""
        del dim
        return state.tuning.affine.centre, state.y, normal, jnp.zeros_like(state.gap)

    def correction(self, state: State, scale: Array, angle: Array, dim: int) -> Array:
        """(|y(t)|^2 - |y|^2) / 2; nothing where the likelihood alone is sliced."""
        del dim
        if self.ellipse == "prior":
            return jnp.zeros_like(scale)
        y, normal = state.slice.along, state.slice.across
        squares, mixed = jnp.sum(normal**2) - jnp.sum(y**2), jnp.sum(y * normal)
        sine = jnp.sin(angle)
        return 0.5 * sine * (sine * squares + 2 * jnp.cos(angle) * mixed)

    def start(self, density: Density, dtype: Any) -> Affine:
        """The prior's mean and Cholesky factor, or the identity."""
        if self.ellipse == "tuned":
            return super().start(density, dtype)
        prior = density.structure.gaussian_prior
        assert prior is not None  # `missing` has said so
        return Affine(prior.mean, prior.cholesky, ())

    def value(self, density: Density, x: Array) -> Array:
        """The posterior's log density, or the log likelihood."""
        return density.log_likelihood(x) if self.ellipse == "prior" else density.log_density(x)

    def elements(self, density: Density, x: Array) -> list[Array]:
        """Arrays whose sums add up to `value`."""
        if self.ellipse == "prior":
            return density.log_likelihood_elements(x)
        return density.log_density_elements(x)

    def log_density(self, density: Density, x: Array, value: Array) -> Array:
        """The log density, given what was sliced."""
        return value + density.log_prior(x) if self.ellipse == "prior" else value
