r"""The stochastic-gradient Nose-Hoover thermostat.

In coordinates scaled by G^(1/2), so that masses are one,

    dx = p dt,   dp = -grad U(x) dt - s p dt + sqrt(2 C T) dW,   ds = (|p|^2 / d - T) dt.

The thermostat s finds by itself the friction that keeps the kinetic energy at its temperature,
whatever noise the gradient estimates bring: its mean is C + h V / (2 T), with V the variance of
their errors. Where these are independent and alike in all directions the law of x is right; of
errors that differ between directions only the excess over their mean is left. So the blocks of an
epoch are drawn independently here: errors that add up to zero over an epoch would be noise to the
thermostat and none to x, which it would make too cold.

A step of size h, with one gradient:

    p <- p - h g                    with a new minibatch's estimate g of grad U at x
    x <- x + (h/2) p
    s <- s + (h/2) (|p|^2 / d - T)
    p <- e^(-s h) p + sqrt(C T (1 - e^(-2 s h)) / s) xi
    s <- s + (h/2) (|p|^2 / d - T)
    x <- x + (h/2) p

Ding et al. (2014), Bayesian sampling using stochastic gradient thermostats, NeurIPS; the splitting:
Leimkuhler and Shang (2016), Adaptive thermostats for noisy gradient systems, SIAM Journal on
Scientific Computing 38:A712.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from quincunx.inference.kinetic import KineticKernel
from quincunx.inference.registry import register
from quincunx.inference.stochastic import Noise, Tuning

_SMALL = 1e-4


@register
class SGNHT(KineticKernel):
    """Langevin dynamics whose friction adapts to the gradients' noise.

    Attributes:
        batch_size: rows of a minibatch, at most; by default 256, or all where there are fewer.
        step_size: h; by default tuned to the tolerance.
        friction: C, of the noise that is added; by default as in `SGHMC`, for that part of the
            gradients' noise that the thermostat leaves.
        steps: steps of a transition; by default tuned to the autocorrelation.
        preconditioner: `diagonal` or `None`.
        control_variates: as in `SGLD`.
        temperature: 1 for the posterior; a draw at T has the density pi^(1/T).
        tolerance: relative error of variances that step and noise may make.
    """

    name: ClassVar[str] = "sgnht"
    summary: ClassVar[str] = "Minibatch Langevin dynamics that absorbs the gradients' noise."
    citation: ClassVar[str] = (
        "Ding et al. (2014), Bayesian Sampling Using Stochastic Gradient Thermostats, NeurIPS"
    )
    independent: ClassVar[bool] = True

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
        """No momentum, and a thermostat at the added friction once that is known."""
        return jnp.zeros_like(z), jnp.zeros((), z.dtype)

    def move(
        self, z: Array, motion: PyTree, score: Array, tuning: Tuning, index: Array, key: Array
    ) -> tuple[Array, PyTree]:
        """One step; the thermostat is carried less the added friction."""
        del index
        h, unit, temperature = tuning.step_size, jnp.sqrt(tuning.scale), self.temperature
        p = motion[0] + h * unit * score
        half = z + 0.5 * h * unit * p
        thermostat = motion[1] + 0.5 * h * (jnp.mean(p**2) - temperature)
        total = thermostat + tuning.friction
        xi = jax.random.normal(key, z.shape, z.dtype)
        spread = jnp.sqrt(tuning.friction * temperature * _spent(2 * total, h))
        p = jnp.exp(-total * h) * p + spread * xi
        thermostat = thermostat + 0.5 * h * (jnp.mean(p**2) - temperature)
        return half + 0.5 * h * unit * p, (p, thermostat)

    def excess(self, noise: Noise) -> Array:
        """What is above the mean of all directions."""
        return noise.largest - noise.mean


def _spent(rate: Array, time: Array) -> Array:
    """2 (1 - exp(-rate time)) / rate, also where the rate is near zero or negative."""
    small = jnp.abs(rate * time) < _SMALL
    safe = jnp.where(small, 1.0, rate)
    return 2 * jnp.where(small, time * (1 - 0.5 * rate * time), -jnp.expm1(-safe * time) / safe)
