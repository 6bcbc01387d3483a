r"""Proximal Langevin proposals with a Metropolis step, in Euclidean geometry.

With the potential f + g of the native space and prox_{s g}(v) = argmin_x g(x) + |x - v|^2 / (2 s),

    x' = prox_{eps g}(x - eps grad f(x)) + sqrt(2 eps) xi,   xi ~ N(0, I),

accepted or not by a Metropolis step with the true density. There are no scales: all coordinates
have one step size. It is the baseline that `BregmanLangevin` is to be compared with.

Pereyra (2016), Proximal Markov chain Monte Carlo algorithms, Statistics and Computing 26:745.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from quincunx.engine.bregman.geometry import Geometry
from quincunx.engine.composite import Split
from quincunx.engine.density import Density
from quincunx.engine.proximal import asymmetric_soft_threshold
from quincunx.inference.mirror import MirrorKernel, Tuning
from quincunx.inference.registry import register


@register
class ProximalMALA(MirrorKernel):
    """Proximal MALA: a step by the gradient of the smooth part and the prox of the rest.

    Attributes:
        step_size: eps; by default tuned.
        steps: steps of a transition; by default tuned.
        target_accept: the acceptance that the step size aims at.
    """

    name: ClassVar[str] = "proximal_mala"
    summary: ClassVar[str] = "Baseline for kinked densities: proximal steps without scales."
    citation: ClassVar[str] = (
        "Pereyra (2016), Proximal Markov chain Monte Carlo algorithms, "
        "Statistics and Computing 26:745"
    )
    geometry: ClassVar[str] = "euclidean"  # pyright: ignore[reportIncompatibleVariableOverride]
    adjust: ClassVar[bool] = True  # pyright: ignore[reportIncompatibleVariableOverride]

    step_size: float | None = None
    steps: int | None = None
    target_accept: float = 0.6

    def __check_init__(self) -> None:
        """Refuse impossible settings."""
        self.check()

    def missing(self, density: Density) -> str | None:
        """A gradient, and no simplex: straight lines leave it."""
        if any(site.region == "simplex" for site in density.native.program.latents):
            return "it moves on straight lines, which leave a simplex."
        return super().missing(density)

    def drift(
        self, density: Density, x: Array, geometry: Geometry, tuning: Tuning
    ) -> tuple[Array, Array]:
        """The proximal point less the position."""
        del geometry
        composite, eps = density.structure.composite, tuning.step_size

        def smooth(x: Array) -> tuple[Array, Split]:
            split = composite.split(x)
            return split.smooth, split

        slope, split = jax.grad(smooth, has_aux=True)(x)
        point = self.proximal(density, x - eps * slope, split, tuning)
        return split.log_density, point - x

    def proximal(self, density: Density, v: Array, split: Split, tuning: Tuning) -> Array:
        """The operators of all terms, one after the other; those of factors at their site."""
        composite, eps, kinks = density.structure.composite, tuning.step_size, split.kinks
        v = asymmetric_soft_threshold(v, kinks.location, eps * kinks.left, eps * kinks.right)
        for _, site in composite.of("group l2"):
            cut = slice(site.offset, site.offset + site.size)
            moved = split.groups[site.name].prox(v[cut].reshape(site.shape), eps)
            v = v.at[cut].set(moved.reshape(-1))
        factors = {term.factor: eps for term, _ in composite.of("factor")}
        if factors:
            moved = composite.split(v, factors).moved
            for term, site in composite.of("factor"):
                v = v.at[site.offset : site.offset + site.size].set(moved[term.factor])
        return jnp.clip(v, tuning.lower, tuning.upper)
