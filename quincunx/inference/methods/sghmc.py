r"""Stochastic-gradient Hamiltonian Monte Carlo: kinetic Langevin dynamics by the BAOAB splitting.

In coordinates scaled by G^(1/2), so that masses are one, with friction C and temperature T,

    dx = p dt,    dp = -grad U(x) dt - C p dt + sqrt(2 C T) dW.

A step of size h solves each part exactly in turn:

    B  p <- p - h g             with a new minibatch's estimate g of grad U at x
    A  x <- x + (h/2) p
    O  p <- c p + sqrt((1 - c^2) T) xi,    c = exp(-C h)
    A  x <- x + (h/2) p

It is BAOAB seen from x, the two half kicks at a position joined: one gradient a step. With full
gradients x has exactly the right law where that is Gaussian, and an error of order h^2 elsewhere;
independent errors of g of variance V make variances too large by h V / (2 C T). With every block
visited once an epoch that error is of a higher order too, once an epoch is shorter than the time in
which the dynamics relax.

Chen, Fox and Guestrin (2014), Stochastic gradient Hamiltonian Monte Carlo, ICML; Leimkuhler and
Matthews (2013), Rational construction of stochastic numerical methods for molecular sampling,
Applied Mathematics Research eXpress 2013:34; minibatches: Franzese et al. (2022), ICML.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from quincunx.inference.kinetic import KineticKernel
from quincunx.inference.registry import register
from quincunx.inference.stochastic import Noise, Tuning


@register
class SGHMC(KineticKernel):
    """Kinetic Langevin dynamics on minibatches of a data plate.

    Attributes:
        batch_size: rows of a minibatch, at most; by default 256, or all where there are fewer.
        step_size: h; by default tuned to the tolerance.
        friction: C; by default half the root of the largest curvature, or what gradient noise
            needs.
        steps: steps of a transition; by default tuned to the autocorrelation.
        preconditioner: `diagonal` or `None`.
        control_variates: as in `SGLD`.
        temperature: 1 for the posterior; a draw at T has the density pi^(1/T).
        tolerance: relative error of variances that step and noise may make.
    """

    name: ClassVar[str] = "sghmc"
    summary: ClassVar[str] = "Minibatch Langevin dynamics with momentum, by the BAOAB splitting."
    citation: ClassVar[str] = (
        "Chen, Fox and Guestrin (2014), Stochastic Gradient Hamiltonian Monte Carlo, ICML"
    )

    batch_size: int | None = None
    step_size: float | None = None
    friction: float | None = None
    steps: int | None = None
    preconditioner: str | None = "diagonal"
    control_variates: str = "auto"
    temperature: float = 1.0
    tolerance: float = 0.05

    def __check_init__(self) -> None:
        """Refuse impossible settings."""
        self.check()

    def rest(self, z: Array) -> PyTree:
        """No momentum."""
        return jnp.zeros_like(z)

    def move(
        self, z: Array, motion: PyTree, score: Array, tuning: Tuning, index: Array, key: Array
    ) -> tuple[Array, PyTree]:
        """B A O A."""
        del index
        h, unit = tuning.step_size, jnp.sqrt(tuning.scale)
        kicked = motion + h * unit * score
        keep = jnp.exp(-tuning.friction * h)
        xi = jax.random.normal(key, z.shape, z.dtype)
        thrown = keep * kicked + jnp.sqrt((1 - keep**2) * self.temperature) * xi
        return z + 0.5 * h * unit * (kicked + thrown), thrown

    def excess(self, noise: Noise) -> Array:
        """All of it."""
        return noise.largest
