r"""Structured stochastic-gradient Langevin dynamics.

The coordinates are split into M groups, and dependence between groups is given up: each group
follows the potential that is averaged over the history of all others,

    U_S(theta) = sum_i E U(theta_i, t_(-i)),    t_j ~ history of group j, independently for each j.

Its stationary law is the structured mean-field law, q_i proportional to exp(-E_(q_-i) U), in place
of the posterior. With `dropout` p a group keeps its present value with probability p and takes one
from its history otherwise,

    U_D(theta) = (1/p) E U(r theta + (1 - r) t),    r_i ~ Bernoulli(p),

which gives part of the dependence back. For a Gaussian of precision L the covariances tend, with
the step size, to

    inv(blockdiag L)                      without dropout,
    inv(blockdiag L + p offdiag L)        with it;    p -> 1 is the posterior.

A step takes M gradient estimates, with dropout as many as there are `copies`, by the same rows. The
history holds what the chains passed through in their latest transitions; it is pooled, in that each
chain takes down the other chains' positions in turn.

Alexos, Boyd and Mandt (2022), Structured stochastic gradient MCMC, ICML.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from quincunx.engine.density import Density
from quincunx.engine.errors import MethodError, unknown
from quincunx.inference.estimators import Estimate, Minibatch
from quincunx.inference.method import Kind, fraction, integer, one_of
from quincunx.inference.methods.sgld import SGLD
from quincunx.inference.minibatch import Turn
from quincunx.inference.registry import register
from quincunx.inference.stochastic import Noise, State, StochasticKernel, Tuning

_HISTORY = 1000


class History(NamedTuple):
    """Positions of the chains' latest transitions.

    Attributes:
        positions: the newest take the place of the oldest, `(length, dim)`.
        count: how many were taken down so far.
    """

    positions: Array
    count: Array


@register
class StructuredSGLD(StochasticKernel):
    """Langevin dynamics that gives up the dependence between groups of coordinates.

    Attributes:
        groups: `site` (each latent site is a group), `coordinate`, or a tuple of tuples of site
            names.
        dropout: the probability that a group keeps its present value; `None` to average each
            group over all others' histories.
        copies_kept: with dropout, gradient estimates of a step.
        history: transitions that the history goes back.
        batch_size: rows of a minibatch, at most; by default 256, or all where there are fewer.
        step_size: by default tuned as that of `SGLD`.
        steps: steps of a transition; by default tuned as those of `SGLD`.
        preconditioner: `diagonal` or `None`.
        control_variates: `mode` or `none`; `auto` is `mode` for 10 000 rows or more.
        temperature: 1 for the posterior's potential.
        tolerance: relative error of variances that the step size may make.
    """

    name: ClassVar[str] = "structured_sgld"
    kind: ClassVar[Kind] = Kind.APPROXIMATE
    summary: ClassVar[str] = "Structured mean field by minibatch Langevin dynamics; not exact."
    citation: ClassVar[str] = (
        "Alexos, Boyd and Mandt (2022), Structured Stochastic Gradient MCMC, ICML"
    )

    groups: str | tuple[tuple[str, ...], ...] = "site"
    dropout: float | None = None
    copies_kept: int = 1
    history: int = _HISTORY
    batch_size: int | None = None
    step_size: float | None = None
    steps: int | None = None
    preconditioner: str | None = "diagonal"
    control_variates: str = "auto"
    temperature: float = 1.0
    tolerance: float = 0.05

    def __check_init__(self) -> None:
        """Refuse impossible settings."""
        self.check()
        one_of("control_variates", self.control_variates, ("auto", "mode", "none"), self._label)
        if self.preconditioner is not None:
            one_of("preconditioner", self.preconditioner, ("diagonal",), self._label)
        for name in ("history", "copies_kept"):
            integer(name, getattr(self, name), self._label)
        if self.dropout is not None:
            fraction("dropout", self.dropout, self._label, closed=True)
        elif self.copies_kept != 1:
            message = f"`{self._label}(copies_kept={self.copies_kept})` is of use with `dropout`."
            raise MethodError(message)
        if isinstance(self.groups, str):
            one_of("groups", self.groups, ("site", "coordinate"), self._label)

    @property
    def _label(self) -> str:
        return type(self).__name__

    @property
    def rehearsed(self) -> StochasticKernel:
        """SGLD on the posterior: groups by themselves mix no more slowly."""
        names = ("batch_size", "step_size", "steps", "preconditioner", "control_variates")
        return SGLD(**{name: getattr(self, name) for name in names}, temperature=self.temperature)

    def missing(self, density: Density) -> str | None:
        """What `SGLD` needs, and groups that hold every site once."""
        lacking = super().missing(density)
        if lacking is None and not isinstance(self.groups, str):
            sites = [site.name for site in density.program.latents]
            given = [name for group in self.groups for name in group]
            for name in given:
                if name not in sites:
                    return f"its groups do not fit. {unknown('latent site', name, sites)}"
            if sorted(given) != sorted(sites):
                return f"its groups must hold each of {', '.join(sites)} once."
        return lacking

    def grouping(self, density: Density) -> np.ndarray:
        """The group of each coordinate, `(dim,)`."""
        if self.groups == "coordinate":
            return np.arange(density.dim)
        latents = density.program.latents
        if isinstance(self.groups, str):
            numbers = {site.name: index for index, site in enumerate(latents)}
        else:
            numbers = {name: at for at, group in enumerate(self.groups) for name in group}
        return np.concatenate([np.full(site.size, numbers[site.name]) for site in latents])

    def copies(self, density: Density) -> int:
        """One for each group, or as many as were asked for."""
        return self.copies_kept if self.dropout else int(self.grouping(density).max()) + 1

    def rest(self, z: Array) -> PyTree:
        """A history without entries."""
        return History(jnp.zeros((self.history, *z.shape), z.dtype), jnp.zeros((), jnp.int32))

    def estimate(
        self, estimator: Minibatch, density: Density, state: State, turn: Turn, key: Array
    ) -> Estimate:
        """The score of the averaged potential."""
        group, copies = self.grouping(density), self.copies(density)
        number, past, z = int(group.max()) + 1, state.motion, state.z
        pick, drop = jax.random.split(jax.random.fold_in(key, 1))
        known = jnp.clip(past.count, 1, self.history)
        entry = jax.random.randint(pick, (copies, number), 0, known)
        others = past.positions[entry[:, group], jnp.arange(len(group))[None]]
        if self.dropout:
            kept = jax.random.bernoulli(drop, self.dropout, (copies, number))[:, group]
            weight = kept / (self.dropout * copies)
        else:
            kept = jnp.asarray(group[None] == np.arange(number)[:, None])
            weight = kept.astype(z.dtype)
        mixed = jnp.where(kept | (past.count == 0), z[None], others)
        one = lambda point: estimator(density, point, turn, (), state.tuning.anchor)  # noqa: E731
        found = jax.vmap(one)(mixed)
        return Estimate(jnp.mean(found.value), jnp.sum(weight * found.score, axis=0), ())

    def move(
        self, z: Array, motion: PyTree, score: Array, tuning: Tuning, index: Array, key: Array
    ) -> tuple[Array, PyTree]:
        """As SGLD."""
        del index
        size, scale = tuning.step_size, tuning.scale
        xi = jax.random.normal(key, z.shape, z.dtype)
        noise = jnp.sqrt(2 * size * self.temperature * scale) * xi
        return z + size * scale * score + noise, motion

    def exchange(self, states: State) -> State:
        """Each chain takes down the position of another, the next one each time."""
        past = states.motion
        at, chains = past.count[0], states.z.shape[0]
        theirs = jnp.roll(states.z, at % chains, axis=0)
        positions = past.positions.at[:, at % self.history].set(theirs)
        return states._replace(motion=History(positions, past.count + 1))

    def tuned_step(self, curvature: Array, noise: Noise) -> tuple[Array, Array]:
        """As SGLD."""
        return SGLD(tolerance=self.tolerance, temperature=self.temperature).tuned_step(
            curvature, noise
        )

    def euler_step(self, tuning: Tuning) -> Array:
        """The step size itself."""
        return tuning.step_size

    def noise_bias(self, tuning: Tuning, noise: Noise) -> Array:
        """As SGLD."""
        return 0.5 * tuning.step_size * noise.largest / self.temperature
