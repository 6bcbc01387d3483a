"""What samplers with a momentum share."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from quincunx.inference.method import one_of, positive
from quincunx.inference.stochastic import Noise, StochasticKernel, Tuning

_FRICTION = 0.5  # in units of the root of the largest curvature
_STEP = 4.0  # h^2 times the largest curvature and noise, in units of the tolerance


class KineticKernel(StochasticKernel):
    """A sampler with a momentum, of unit mass in scaled coordinates.

    Its settings are those of `StochasticKernel` and `friction`.
    """

    if TYPE_CHECKING:
        friction: float | None

    def check(self) -> None:
        """Refuse impossible settings."""
        super().check()
        label = type(self).__name__
        if self.friction is not None:
            positive("friction", self.friction, label)
        if self.preconditioner is not None:
            one_of("preconditioner", self.preconditioner, ("diagonal",), label)

    def halted(self, z: Array, motion: PyTree) -> PyTree:
        """Rest: the momentum may be what was too large."""
        del motion
        return self.rest(z)

    @property
    def is_tuned(self) -> bool:
        """Whether the settings leave nothing to a search for the mode."""
        return super().is_tuned and self.friction is not None

    def tuned_step(self, curvature: Array, noise: Noise) -> tuple[Array, Array]:
        """Take h^2 (A + V / T) = 4 tolerance; friction half sqrt A, or what noise needs."""
        total = curvature + noise.largest / self.temperature
        size = jnp.asarray(self.step_size or jnp.sqrt(_STEP * self.tolerance / total))
        if self.friction is not None:
            return size, jnp.full_like(size, self.friction)
        against_noise = 0.5 * size * self.excess(noise) / (self.tolerance * self.temperature)
        return size, jnp.maximum(_FRICTION * jnp.sqrt(curvature), against_noise)

    def euler_step(self, tuning: Tuning) -> Array:
        """h^2 / 2: the step of the position where the momentum is drawn anew."""
        return 0.5 * tuning.step_size**2

    def noise_bias(self, tuning: Tuning, noise: Noise) -> Array:
        """The friction's part h V / (2 C T) and the step's h^2 V / (4 T)."""
        h = tuning.step_size
        slow, fast = 0.5 * h * self.excess(noise) / tuning.friction, 0.25 * h**2 * noise.largest
        return (slow + fast) / self.temperature

    @abc.abstractmethod
    def excess(self, noise: Noise) -> Array:
        """The noise that the friction has to outweigh."""
