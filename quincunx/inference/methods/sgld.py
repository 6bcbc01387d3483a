r"""Stochastic-gradient Langevin dynamics.

With U = -log pi, an estimate g of grad U from a minibatch, a step size eps, diagonal scales G and
temperature T,

    z' = z - eps G g + sqrt(2 eps T G) xi,    xi ~ N(0, I).

The stationary law is not pi. For a Gaussian of precision A and independent errors of g of variance
V, both in coordinates scaled by G,

    Var z = (1/A) (1 + eps V / (2 T)) / (1 - eps A / 2) T,

so variances are too large by eps A / 2 for the step and eps V / 2 for the minibatches. The step
size is chosen so that both together are below the tolerance in the worst direction.

Preconditioners: `diagonal` is G = 1 / (Fisher information + prior precision) at the mode; with
`rmsprop` G = 1 / (1e-5 + sqrt(v)), v' = 0.99 v + 0.01 g^2, without the term in grad G, which makes
a bias of its own. Schedules: `polynomial` lets the step size fall as (1 + t / 1000)^(-1/3), t
counting steps; with `cyclical` each transition is a cycle whose step size falls from ten times the
tuned one to zero as a cosine, without noise in its first half, and whose draw is its end.

Welling and Teh (2011), Bayesian learning via stochastic gradient Langevin dynamics, ICML; Li, Chen,
Carlson and Carin (2016), Preconditioned SGLD, AAAI; Zhang et al. (2020), Cyclical stochastic
gradient MCMC, ICLR; control variates: Baker, Fearnhead, Fox and Nemeth (2019), Statistics and
Computing 29:599.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from quincunx.inference.method import one_of
from quincunx.inference.registry import register
from quincunx.inference.stochastic import Noise, StochasticKernel, Tuning

_DECAY, _FLOOR = 0.99, 1e-5
_SLOW, _POWER = 1000.0, -1.0 / 3.0
_PEAK, _SILENT, _CYCLE = 10.0, 0.5, 2.0


@register
class SGLD(StochasticKernel):
    """Langevin dynamics on minibatches of a data plate.

    Attributes:
        batch_size: rows of a minibatch, at most; by default 256, or all where there are fewer.
        step_size: by default tuned to the tolerance.
        steps: steps of a transition; by default tuned to the autocorrelation.
        preconditioner: `diagonal`, `rmsprop` or `None`.
        control_variates: what reduces the gradient's noise: `mode`, `svrg`, `saga` or `none`;
            `auto` is `mode` for 10 000 rows or more, and otherwise `none`.
        schedule: how the step size changes: `None` (not at all), `polynomial` or `cyclical`.
        temperature: 1 for the posterior; a draw at T has the density pi^(1/T).
        tolerance: relative error of variances that the step size may make.
    """

    name: ClassVar[str] = "sgld"
    summary: ClassVar[str] = "Minibatch Langevin dynamics, for many rows; comes with a bias report."
    citation: ClassVar[str] = (
        "Welling and Teh (2011), Bayesian Learning via Stochastic Gradient Langevin Dynamics, ICML"
    )

    batch_size: int | None = None
    step_size: float | None = None
    steps: int | None = None
    preconditioner: str | None = "diagonal"
    control_variates: str = "auto"
    schedule: str | None = None
    temperature: float = 1.0
    tolerance: float = 0.05

    def __check_init__(self) -> None:
        """Refuse impossible settings."""
        self.check()
        if self.preconditioner is not None:
            one_of("preconditioner", self.preconditioner, ("diagonal", "rmsprop"), "SGLD")
        if self.schedule is not None:
            one_of("schedule", self.schedule, ("polynomial", "cyclical"), "SGLD")

    @property
    def rehearsed(self) -> StochasticKernel:
        """Without a schedule."""
        return dataclasses.replace(self, schedule=None)

    def transition_steps(self, autocorrelation: float) -> float:
        """The autocorrelation time; a cycle is twice as long."""
        factor = _CYCLE if self.schedule == "cyclical" else 1.0
        return factor * autocorrelation

    def rest(self, z: Array) -> PyTree:
        """The running mean of squared gradients, zero until it is known."""
        return jnp.zeros_like(z) if self.preconditioner == "rmsprop" else ()

    def move(
        self, z: Array, motion: PyTree, score: Array, tuning: Tuning, index: Array, key: Array
    ) -> tuple[Array, PyTree]:
        """Z + eps G score + sqrt(2 eps T G) xi."""
        scale = tuning.scale
        if self.preconditioner == "rmsprop":
            known = jnp.where(motion > 0, motion, (1 / scale - _FLOOR) ** 2)
            motion = _DECAY * known + (1 - _DECAY) * score**2
            scale = 1 / (_FLOOR + jnp.sqrt(motion))
        size, noisy = self._size(tuning, index)
        xi = jax.random.normal(key, z.shape, z.dtype)
        noise = noisy * jnp.sqrt(2 * size * self.temperature * scale) * xi
        return z + size * scale * score + noise, motion

    def tuned_step(self, curvature: Array, noise: Noise) -> tuple[Array, Array]:
        """Eps = 2 tolerance / (A + V / T); no friction."""
        total = curvature + noise.largest / self.temperature
        return 2 * self.tolerance / total, jnp.zeros_like(total)

    def euler_step(self, tuning: Tuning) -> Array:
        """The step size itself."""
        return tuning.step_size

    def noise_bias(self, tuning: Tuning, noise: Noise) -> Array:
        """Eps V / (2 T)."""
        return 0.5 * tuning.step_size * noise.largest / self.temperature

    def _size(self, tuning: Tuning, index: Array) -> tuple[Array, Array]:
        """Step size, and one where there is noise or zero where there is none."""
        size, one = tuning.step_size, jnp.ones_like(tuning.step_size)
        if self.schedule == "polynomial":
            return size * (1 + (tuning.elapsed + index) / _SLOW) ** _POWER, one
        if self.schedule == "cyclical":
            part = index / tuning.steps
            size = size * _PEAK * 0.5 * (jnp.cos(jnp.pi * part) + 1)
            return size, jnp.where(part < _SILENT, 0.0, 1.0).astype(one.dtype)
        return size, one
