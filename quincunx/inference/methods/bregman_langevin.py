r"""Bregman proximal Langevin dynamics, Metropolis-adjusted.

The posterior density is pi = exp(-f - g) in the model's own coordinates x, f smooth and g kinked:
Laplace priors, supports, factors with a proximal operator. With a Legendre function psi of Bregman
distance D, g is replaced by an envelope, which is smooth,

    left:  env(x) = min_y g(y) + D(y, x) / lam,    right:  env(x) = min_y g(y) + D(x, y) / lam,

and with a mirror map phi a step in the dual space is

    y' = grad phi(x) - eps grad (f + env)(x) + sqrt(2 eps) Hess phi(x)^(1/2) xi,
    x' = grad phi*(y').

A Metropolis step with the *true* density pi follows, so pi is stationary whatever lam and eps are;
y' then has a term of second order in xi, too (`inference/mirror.py`). The proposal's density over
x' has the factor det Hess phi(x'). Supports need no transform: positive sites, intervals and
simplexes have a phi that is steep at their ends.

`adjust=False` leaves the Metropolis step out. The stationary law is then near exp(-f - env), off by
O(lam) + O(eps), which step halving shows.

Lau and Liu (2022), Bregman proximal Langevin Monte Carlo via Bregman-Moreau envelopes, ICML;
without phi and psi: Durmus, Moulines and Pereyra (2018), Efficient Bayesian computation by proximal
Markov chain Monte Carlo, SIAM Journal on Imaging Sciences 11:473; without envelopes: Zhang, Peyre,
Fadili and Pereyra (2020), Wasserstein control of mirror Langevin Monte Carlo, COLT; adjusted:
Srinivasan, Wibisono and Wilson (2024), Fast sampling from constrained spaces using the
Metropolis-adjusted mirror Langevin algorithm, COLT.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy import stats

from quincunx.engine.bregman.geometry import WORDS, Geometry, plan
from quincunx.engine.bregman.proximity import SIDES, envelope, recentred
from quincunx.engine.composite import Split
from quincunx.engine.density import Density
from quincunx.engine.errors import MethodError
from quincunx.inference.method import Kind, one_of
from quincunx.inference.mirror import MirrorKernel, Tuning
from quincunx.inference.registry import register

_TOLERANCE = 0.05


@register
class BregmanLangevin(MirrorKernel):
    """Langevin dynamics in a mirror's dual space, with Bregman envelopes of what is not smooth.

    Attributes:
        envelope: `left`, `right`, or `None` for mirror Langevin, where kinks are differentiated.
        geometry: `auto`, or a function's name that is taken where it fits a site's support: on the
            line `squared`, `hypentropy` or `exponential`; on half-lines `barrier`, `burg` or
            `boltzmann_shannon`; on intervals `barrier`, `fermi_dirac` or `hellinger`; on simplexes
            `entropy`. `euclidean` is the plain square without scales, and takes bounds as
            indicators. Or a dict of names by site.
        smoothing: lam, where coordinates have scale one; by default twice the step size.
        step_size: eps, in the same units; by default tuned.
        adjust: whether there is a Metropolis step.
        steps: steps of a transition; by default tuned.
        target_accept: the acceptance that the step size aims at, where there is one.
    """

    name: ClassVar[str] = "bregman_langevin"
    summary: ClassVar[str] = "For kinked priors and hard constraints, on the model's own supports."
    citation: ClassVar[str] = (
        "Lau and Liu (2022), Bregman Proximal Langevin Monte Carlo via Bregman-Moreau Envelopes, "
        "ICML"
    )

    envelope: str | None = "left"
    geometry: str | Mapping[str, str] = "auto"
    smoothing: float | None = None
    step_size: float | None = None
    adjust: bool = True
    steps: int | None = None
    target_accept: float = 0.6

    def __check_init__(self) -> None:
        """Refuse impossible settings."""
        self.check()
        if self.envelope is not None:
            one_of("envelope", self.envelope, SIDES, "BregmanLangevin")
        words = [self.geometry] if isinstance(self.geometry, str) else self.geometry.values()
        for word in words:
            one_of("geometry", word, WORDS, "BregmanLangevin")
        if self.envelope is None and self.smoothing is not None:
            message = "`BregmanLangevin(envelope=None)` smooths nothing: leave out `smoothing`."
            raise MethodError(message)

    @property
    def promise(self) -> Kind:
        """Exact, if adjusted."""
        return Kind.EXACT if self.adjust else Kind.BIASED

    def acceptance(self, density: Density) -> float:
        """The target; without correction, where variances of a Gaussian would be 5 % too large.

        Roberts and Rosenthal (1998): 2 Phi(-K / 2) with K = sqrt(d) h^(3/2) / 4, h = 2 eps.
        """
        if self.adjust:
            return self.target_accept
        k = density.dim**0.5 * (4 * _TOLERANCE) ** 1.5 / 4
        return float(2 * stats.norm.cdf(-k / 2))

    def drift(
        self, density: Density, x: Array, geometry: Geometry, tuning: Tuning
    ) -> tuple[Array, Array]:
        """-eps grad (f + env)."""

        def potential(x: Array) -> tuple[Array, Array]:
            inside = x if self.adjust else jnp.clip(x, tuning.lower, tuning.upper)
            split = density.structure.composite.split(inside, self._factor_steps(density, tuning))
            if self.envelope is None:
                return -split.log_density, split.log_density
            smooth = split.smooth + self._envelopes(density, x, split, geometry, tuning)
            return smooth, split.log_density

        slope, log_density = jax.grad(potential, has_aux=True)(x)
        return log_density, -tuning.step_size * slope

    def _envelopes(
        self, density: Density, x: Array, split: Split, geometry: Geometry, tuning: Tuning
    ) -> Array:
        """The envelopes of all terms, summed."""
        total, lam = jnp.zeros((), x.dtype), tuning.smoothing
        composite = density.structure.composite
        for piece, psi in geometry.separable():
            cut = slice(piece.start, piece.stop)
            if composite.is_kinked(piece.start, piece.stop):
                kinks = split.kinks.part(cut)
                psi = recentred(psi, kinks.location)
                total += envelope(psi, x[cut], kinks, lam, str(self.envelope))
            if piece.word == "euclidean":
                nearest = jnp.clip(x[cut], tuning.lower[cut], tuning.upper[cut])
                total += jnp.sum((x[cut] - jax.lax.stop_gradient(nearest)) ** 2) / (2 * lam)
        for _, site in composite.of("group l2"):
            cut = slice(site.offset, site.offset + site.size)
            value, group = x[cut].reshape(site.shape), split.groups[site.name]
            scale = self._scales(density, tuning)[cut].reshape(site.shape)
            step = lam * jnp.min(scale, axis=-1) ** 2
            shift = jax.lax.stop_gradient(group.prox(value, step) - group.location)
            point = group.location + shift
            total += group.value(point) + jnp.sum(jnp.sum((value - point) ** 2, -1) / (2 * step))
        for term, site in composite.of("factor"):
            cut = slice(site.offset, site.offset + site.size)
            step = self._factor_steps(density, tuning)[term.factor]
            away = x[cut] - jax.lax.stop_gradient(split.moved[term.factor])
            total += jnp.sum(away**2) / (2 * step)
        return total

    def _factor_steps(self, density: Density, tuning: Tuning) -> dict[str, Array]:
        """What operators of factors are given: lam times the least squared scale of the site."""
        scale = self._scales(density, tuning)
        return {
            term.factor: tuning.smoothing
            * jnp.min(scale[site.offset : site.offset + site.size]) ** 2
            for term, site in density.structure.composite.of("factor")
        }

    def _scales(self, density: Density, tuning: Tuning) -> Array:
        """The scales, one where the geometry has none."""
        plain = np.zeros(density.dim, bool)
        for piece in plan(density.program, self.geometry):
            plain[piece.start : piece.stop] = piece.word == "euclidean"
        return jnp.where(jnp.asarray(plain), 1.0, tuning.scale)
