r"""Annealed sequential Monte Carlo, with no training but the choice of temperatures.

Particles start from a Gaussian law q about the posterior and are taken through

    pi_k(z) ~ q(z)^(1 - b_k) p(z)^(b_k),    0 = b_0 < ... < b_K = 1,

p the density as it stands. Between temperatures they are weighted by (p / q)^(b_k - b_{k-1}),
resampled where their effective number falls below a share of them, and moved by Metropolis-
Hastings steps that leave pi_k as it is. The mean weight estimates the evidence without bias.

q is the Laplace approximation, or mean and spread of short chains from far apart: pilot runs from
both decide, and choose temperatures and step sizes, which are then fixed.

Del Moral, Doucet and Jasra (2006), Sequential Monte Carlo samplers, JRSS B 68:411; Neal (2001),
Annealed importance sampling, Statistics and Computing 11:125.
"""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from quincunx.engine.density import Density
from quincunx.engine.errors import MethodError
from quincunx.inference.method import (
    Approximation,
    Sampler,
    Weighted,
    fraction,
    integer,
    lacks_gradient,
    one_of,
)
from quincunx.inference.paths.annealing import Schedule, anneal
from quincunx.inference.paths.target import Target, Whitening
from quincunx.inference.paths.tuning import LENGTH, choose_start
from quincunx.inference.registry import register
from quincunx.inference.training import Budget

STARTS = ("auto", "laplace", "cloud")


class AnnealedSampler(Sampler):
    """Temperatures, steps and a start, ready to run particles.

    Attributes:
        whitening: the start, a Gaussian law.
        schedule: temperatures and step sizes.
        moves: steps at each temperature.
        threshold: share of effective particles below which they are resampled.
    """

    whitening: Whitening
    schedule: Schedule
    moves: int
    threshold: float

    def draw(self, density: Density, key: Array, n: int) -> Weighted:
        """Run n particles."""
        target = Target(density, self.whitening)
        options = {"moves": self.moves, "threshold": self.threshold}
        run = anneal(target, self.schedule, key, n, **options)
        z = self.whitening.position(run.particles.y)
        return Weighted(z, run.log_weight, run.tempered, run.origin)

    def cost(self, n: int) -> tuple[int, int]:
        """One gradient for each particle and move."""
        made = n * (1 + int(self.schedule.count) * self.moves)
        return made, made


@register
class AnnealedSMC(Approximation):
    """Annealed particles with gradient moves: the yardstick for samplers that are trained.

    Attributes:
        steps: temperatures, at most 320; `None` to have their number follow from pilot runs.
        moves: Metropolis-Hastings steps at each temperature; every third is ten times shorter.
        threshold: share of effective particles below which they are resampled.
        start: `laplace`, `cloud` (short chains from far apart), or `auto` for the better.
        pilot: particles of the pilot runs.
    """

    name: ClassVar[str] = "annealed_smc"
    summary: ClassVar[str] = "Evidence and draws from annealed particles; nothing is trained."
    citation: ClassVar[str] = (
        "Del Moral, Doucet and Jasra (2006), Sequential Monte Carlo samplers, JRSS B 68:411"
    )

    steps: int | None = None
    moves: int = 3
    threshold: float = 0.5
    start: str = "auto"
    pilot: int = 256

    def __check_init__(self) -> None:
        """Refuse impossible settings."""
        cls = "AnnealedSMC"
        one_of("start", self.start, STARTS, cls)
        counts = ["moves", "pilot"] + ([] if self.steps is None else ["steps"])
        for name in counts:
            integer(name, getattr(self, name), cls)
        if self.steps is not None and self.steps > LENGTH:
            raise MethodError(f"`{cls}(steps={self.steps})` must be at most {LENGTH}.")
        fraction("threshold", self.threshold, cls, closed=True)

    def missing(self, density: Density) -> str | None:
        """A gradient."""
        return lacks_gradient(density)

    def fit(self, density: Density, key: Array, budget: Budget) -> AnnealedSampler:
        """Choose a start, temperatures and step sizes by pilot runs."""
        found = choose_start(
            density,
            key,
            budget,
            start=self.start,
            particles=self.pilot,
            moves=self.moves,
            steps=self.steps,
        )
        whitening = found.target.whitening
        return AnnealedSampler(whitening, found.schedule, self.moves, self.threshold)

    def skeleton(self, density: Density) -> AnnealedSampler:
        """The shapes."""
        whitening = Whitening(jnp.zeros(density.dim), jnp.eye(density.dim))
        count = jnp.ones((), jnp.int32)
        schedule = Schedule(jnp.ones(LENGTH + 1), jnp.ones(LENGTH), count)
        return AnnealedSampler(whitening, schedule, self.moves, self.threshold)
