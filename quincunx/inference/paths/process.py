r"""Pairs of Gaussian kernels, forwards and backwards, whose ratio is the weight of a path.

    log w(x_0 ... x_K) = log gamma(x_K) - log p_0(x_0)
                         + sum_k [ log B_k(x_k | x_{k+1}) - log F_k(x_{k+1} | x_k) ],

the mean of which is Z for whatever kernels, networks and numbers of steps: it is computed from the
kernels that are sampled, never from an integral in continuous time. With p_0 = N(m, s^2), the
annealed score a_k = (1 - b_k) grad log p_0 + b_k grad log gamma, and controls u, v:

    pis     F: x + (s^2/K) u_k(x), s^2/K           B: k/(k+1) x', (s^2/K) k/(k+1);  p_0 = delta_0
    dds     F: sqrt(1-c_k) x + c_k u_k(x), s^2 c_k   B: sqrt(1-c_k) x', s^2 c_k
    dis     F: x + h_k (-x/s^2 + u_k(x)), 2 h_k      B: (1 - h_k/s^2) x', 2 h_k
    ula     F: x + h_k a_{k+1}(x), 2 h_k             B: x' + h_k a_{k+1}(x'), 2 h_k
    mcd     F: as ula                                B: x' + h_k (a_{k+1}(x') - u_{k+1}(x')), 2 h_k
    cmcd    F: x + h_k (a_{k+1}(x) + u_k(x)), 2 h_k  B: as mcd
    bridge  F: as cmcd                               B: x' + h_k (a_{k+1}(x') + v_{k+1}(x')), 2 h_k

(m = 0 in the first three), each written as mean, variance. Scores are clipped coordinate by
coordinate, inside both kernels. h, b, m and s may be learned.

Zhang and Chen (2022), Path integral sampler, ICLR; Vargas, Grathwohl and Doucet (2023), Denoising
diffusion samplers, ICLR; Richter and Berner (2024), Improved sampling via learned diffusions, ICLR;
Doucet, Grathwohl, Matthews and Strathmann (2022), Score-based diffusion meets annealed importance
sampling, NeurIPS; Vargas, Padhy, Blessing and Nuesken (2024), Transport meets variational
inference: controlled Monte Carlo diffusions, ICLR.
"""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from quincunx.engine.density import Density
from quincunx.inference.paths.control import Control, Times
from quincunx.inference.paths.target import LOG_2PI, Scored, Target, Whitening

ANNEALED = ("ula", "mcd", "cmcd", "bridge")
REFERENCE = ("pis", "dds", "dis")
KERNELS = REFERENCE + ANNEALED
GATES = {"pis": 1.0, "dds": 1.0, "dis": 2.0}  # where the control starts as annealed Langevin
LIMIT = 100.0
_OFFSET = 0.008
_DURATION = 3.0  # of the noising process, in relaxation times


class Paths(NamedTuple):
    """Paths and what was found along them.

    Attributes:
        x: positions, `(steps + 1, n, dim)`.
        score: gradients of log gamma there.
        log_gamma: log gamma there, `(steps + 1, n)`.
    """

    x: Float[Array, "time n dim"]
    score: Float[Array, "time n dim"]
    log_gamma: Float[Array, "time n"]


class Steps(NamedTuple):
    """What a kernel needs of its step.

    Attributes:
        index: k.
        after: b_{k+1}.
        before: b_k.
        size: of the step, `(dim,)`.
        here: the control's time k.
        there: the control's time k + 1.
        back: the second control's time k + 1.
    """

    index: Array
    after: Array
    before: Array
    size: Array
    here: Times
    there: Times
    back: Times


class Kernels(eqx.Module):
    """A pair of kernels for each step, and the densities that they pass.

    What a step needs, and where on the way a density is, are of each class's own kind.
    """

    @property
    @abc.abstractmethod
    def length(self) -> int:
        """How many steps there are."""

    @property
    def starts_at_origin(self) -> bool:
        """Whether p_0 is a point."""
        return False

    @property
    def densities(self) -> int:
        """How many densities are evaluated at a place."""
        return 1

    @abc.abstractmethod
    def target(self, density: Density, whitening: Whitening) -> Any:
        """What is evaluated at all places."""

    def last(self, log_gamma: Array) -> Array:
        """Log of the density at the end, of all that were evaluated."""
        return log_gamma

    @abc.abstractmethod
    def plan(self) -> Any:
        """What depends on the step alone, for all steps at once."""

    @abc.abstractmethod
    def start(self, key: Array, n: int) -> Array:
        """Draws from p_0."""

    @abc.abstractmethod
    def log_start(self, x: Array) -> Array:
        """Log p_0; zero where it is a point."""

    @abc.abstractmethod
    def annealed(self, b: Any, x: Array, log_gamma: Array) -> Array:
        """Log of the density on the way, not normalised."""

    @abc.abstractmethod
    def slope(self, b: Any, x: Array, score: Array) -> Array:
        """Its gradient."""

    @abc.abstractmethod
    def forward(self, at: Any, x: Array, score: Array) -> tuple[Array, Array]:
        """Mean and variance of F_k; `at` of one step, or of as many as there are places."""

    @abc.abstractmethod
    def back(self, at: Any, x: Array, score: Array) -> tuple[Array, Array]:
        """Mean and variance of B_k, at x' = x_{k+1}."""

    def log_back(self, at: Any, rest: Array, variance: Array) -> Array:
        """Log B_k at `rest` from its mean; zero where it is certain, at a start that is a point."""
        if not self.starts_at_origin:
            return log_gauss(rest, variance)
        certain = at.index == 0
        beside = _column(certain, rest)
        value = log_gauss(jnp.where(beside, 0.0, rest), jnp.where(beside, 1.0, variance))
        return jnp.where(certain, 0.0, value)


class Process(Kernels):
    """A pair of kernels for each step, with everything about them that can be learned.

    Attributes:
        control: u.
        backward: v, of the kernel `bridge`.
        mean: of p_0.
        log_sd: of p_0.
        log_size: logarithms of the step sizes, `(steps, dim)`.
        increments: b_{k+1} - b_k is in proportion to the softplus of these, `(steps,)`.
        kernel: its name.
        steps: K.
    """

    control: Control
    backward: Control
    mean: Float[Array, " dim"]
    log_sd: Float[Array, " dim"]
    log_size: Float[Array, "steps dim"]
    increments: Float[Array, " steps"]
    kernel: str = eqx.field(static=True)
    steps: int = eqx.field(static=True)

    @property
    def length(self) -> int:
        """How many steps there are."""
        return self.steps

    @property
    def starts_at_origin(self) -> bool:
        """Whether p_0 is a point."""
        return self.kernel == "pis"

    @property
    def inverse_temperatures(self) -> Array:
        """b_0 to b_K."""
        parts = jax.nn.softplus(self.increments)
        total = jnp.cumsum(parts)
        return jnp.concatenate([jnp.zeros(1, total.dtype), total / total[-1]])

    def plan(self) -> Steps:
        """What depends on the step alone, for all steps at once."""
        b = self.inverse_temperatures
        times, back = self.control.times(self.steps), self.backward.times(self.steps)
        first = jax.tree.map(lambda leaf: leaf[:-1], times)
        second, last = jax.tree.map(lambda leaf: leaf[1:], (times, back))
        indices = jnp.arange(self.steps)
        return Steps(indices, b[1:], b[:-1], jnp.exp(self.log_size), first, second, last)

    def start(self, key: Array, n: int) -> Array:
        """Draws from p_0."""
        shape = (n, self.mean.shape[0])
        if self.starts_at_origin:
            return jnp.zeros(shape, self.mean.dtype)
        noise = jax.random.normal(key, shape, self.mean.dtype)
        return _row(self.mean, noise) + _row(jnp.exp(self.log_sd), noise) * noise

    def log_start(self, x: Array) -> Array:
        """Log p_0; zero where it is a point."""
        if self.starts_at_origin:
            return jnp.zeros(x.shape[:-1], x.dtype)
        return _log_normal(x, self.mean, jnp.exp(2 * self.log_sd))

    def log_reference(self, x: Array) -> Array:
        """Log density of N(m, s^2), which the annealed densities start from, even for a point."""
        return _log_normal(x, self.mean, jnp.exp(2 * self.log_sd))

    def annealed(self, b: Array, x: Array, log_gamma: Array) -> Array:
        """Log of the annealed density, not normalised."""
        reference = (1 - b) * self.log_reference(x)
        return reference + jnp.where(b > 0, b * log_gamma, 0.0)

    def target(self, density: Density, whitening: Whitening) -> Target:
        """What is evaluated at all places."""
        return Target(density, whitening)

    def slope(self, b: Array, x: Array, score: Array) -> Array:
        """Gradient of the log of the annealed density."""
        rest = _row(self.mean, x) - x
        return (1 - b) * rest / _row(jnp.exp(2 * self.log_sd), x) + b * score

    def _score(self, b: Array, x: Array, score: Array) -> Array:
        return self.slope(b, x, jnp.clip(score, -LIMIT, LIMIT))

    def _feature(self, b: Array, x: Array, score: Array) -> Array:
        """For controls that add to a reference process: the score of what is not in it."""
        return b * (score + x / _row(jnp.exp(2 * self.log_sd), x))

    def forward(self, at: Steps, x: Array, score: Array) -> tuple[Array, Array]:
        """Mean and variance of F_k; `at` of one step, or of as many as there are places."""
        b, size, variance = (
            _column(at.after, x),
            _row(at.size, x),
            _row(jnp.exp(2 * self.log_sd), x),
        )
        if self.kernel in REFERENCE:
            u = self.control(at.here, x, self._feature(_column(at.before, x), x, score))
            if self.kernel == "pis":
                return x + variance / self.steps * u, variance / self.steps
            if self.kernel == "dds":
                c = -jnp.expm1(-2 * size)
                return jnp.sqrt(1 - c) * x + c * variance * u, variance * c
            h = size * variance
            return x + h * (u - x / variance), 2 * h
        drift = self._score(b, x, score)
        if self.kernel in ("cmcd", "bridge"):
            drift += self.control(at.here, x, self._score(_column(at.before, x), x, score))
        return x + size * drift, 2 * size

    def back(self, at: Steps, x: Array, score: Array) -> tuple[Array, Array]:
        """Mean and variance of B_k, at x' = x_{k+1}."""
        b, size, variance = (
            _column(at.after, x),
            _row(at.size, x),
            _row(jnp.exp(2 * self.log_sd), x),
        )
        if self.kernel == "pis":
            share = _column(at.index / (at.index + 1.0), x).astype(x.dtype)
            return share * x, jnp.broadcast_to(variance / self.steps * share, x.shape)
        if self.kernel == "dds":
            c = -jnp.expm1(-2 * size)
            return jnp.sqrt(1 - c) * x, variance * c
        if self.kernel == "dis":
            h = size * variance
            return (1 - size) * x, 2 * h
        annealed = self._score(b, x, score)
        drift = annealed
        if self.kernel in ("mcd", "cmcd"):
            drift = annealed - self.control(at.there, x, annealed)
        if self.kernel == "bridge":
            drift = annealed + self.backward(at.back, x, annealed)
        return x + size * drift, 2 * size

    def log_kernels(self, paths: Paths) -> tuple[Array, Array]:
        """Log F_k and log B_k of all steps of all paths, `(steps, n)` each.

        The networks see all places of all paths at once.
        """
        count, dim = paths.x.shape[1], paths.x.shape[2]
        plan = self.plan()
        at = jax.tree.map(lambda leaf: jnp.repeat(leaf, count, axis=0), plan)
        flat = lambda array: array.reshape(-1, dim)  # noqa: E731
        here, there = flat(paths.x[:-1]), flat(paths.x[1:])
        to, wide = self.forward(at, here, flat(paths.score[:-1]))
        fro, broad = self.back(at, there, flat(paths.score[1:]))
        forward = log_gauss(there - to, wide)
        backward = self.log_back(at, here - fro, broad)
        return forward.reshape(-1, count), backward.reshape(-1, count)

    def log_weights(self, paths: Paths) -> Array:
        """Log weights of paths, `(n,)`."""
        forward, backward = self.log_kernels(paths)
        ratio = jnp.sum(backward - forward, axis=0)
        return paths.log_gamma[-1] - self.log_start(paths.x[0]) + ratio


def simulate(
    process: Process,
    target: Scored,
    key: Array,
    n: int,
    *,
    explore: Array | float = 0.0,
    differentiable: bool = False,
) -> Paths:
    """Paths from p_0 by the forward kernels.

    Args:
        process: the kernels.
        target: what they are to end in.
        key: the only source of randomness.
        n: paths.
        explore: standard deviation of noise that is added to each step and that log F does not
            know of.
        differentiable: whether derivatives go through the paths; if not, they are constants.
    """
    keep = (lambda x: x) if differentiable else jax.lax.stop_gradient
    start_key, key = jax.random.split(key)
    x = keep(process.start(start_key, n))
    log_gamma, score = target.with_score(x)

    def step(carry: tuple, at: Steps) -> tuple[tuple, tuple]:
        x, score = carry
        mean, variance = process.forward(at, x, score)
        noise = jax.random.normal(jax.random.fold_in(key, at.index), x.shape, x.dtype)
        moved = keep(mean + jnp.sqrt(variance + explore**2) * noise)
        log_gamma, score = target.with_score(moved)
        return (moved, keep(score)), (moved, keep(score), log_gamma)

    _, (xs, scores, values) = jax.lax.scan(step, (x, keep(score)), process.plan())
    first = (x[None], keep(score)[None], log_gamma[None])
    return Paths(*jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, (xs, scores, values)))


def back_from(
    process: Process, target: Scored, key: Array, x: Array, *, differentiable: bool = False
) -> Paths:
    """Paths that end in given places, by the backward kernels; constants unless differentiable."""
    log_gamma, score = target.with_score(x)

    def step(carry: tuple, at: Steps) -> tuple[tuple, tuple]:
        x, score = carry
        mean, variance = process.back(at, x, score)
        noise = jax.random.normal(jax.random.fold_in(key, at.index), x.shape, x.dtype)
        moved = mean + jnp.sqrt(variance) * noise
        value, slope = target.with_score(moved)
        return (moved, slope), (moved, slope, value)

    _, rest = jax.lax.scan(step, (x, score), process.plan(), reverse=True)
    ends = (x[None], score[None], log_gamma[None])
    paths = Paths(*jax.tree.map(lambda a, b: jnp.concatenate([a, b]), rest, ends))
    return paths if differentiable else jax.tree.map(jax.lax.stop_gradient, paths)


def make(
    kernel: str,
    dim: int,
    steps: int,
    width: int,
    key: Array,
    *,
    gate: float | None = None,
    spread: float = 1.0,
    inverse_temperatures: np.ndarray | None = None,
    sizes: np.ndarray | None = None,
) -> Process:
    """A process in whitened coordinates before training.

    Args:
        kernel: its name.
        dim: coordinates.
        steps: K.
        width: of the networks.
        key: for their weights.
        gate: where the control's gate starts; `None` for the kernel's own.
        spread: standard deviation of p_0.
        inverse_temperatures: b_0 to b_K; evenly spaced by default.
        sizes: step sizes of annealed kernels.
    """
    dtype = jax.dtypes.canonicalize_dtype(float)
    first, second = jax.random.split(key)
    gate = GATES.get(kernel, 0.0) if gate is None else gate
    control = Control(dim, width, first, gate=gate, limit=LIMIT)
    backward = Control(dim, width, second, gate=0.0, limit=LIMIT)
    b = np.linspace(0, 1, steps + 1) if inverse_temperatures is None else inverse_temperatures
    parts = np.maximum(np.diff(b), 1e-6) * steps
    share = (np.arange(steps) / steps + _OFFSET) / (1 + _OFFSET)
    decay = np.cos(0.5 * np.pi * share) ** 2 + 0.05
    if kernel not in ANNEALED:
        chosen = _DURATION * decay / decay.sum()
    else:
        chosen = 0.1 * decay if sizes is None else np.asarray(sizes)
    log_size = np.repeat(np.log(chosen)[:, None], dim, axis=1)
    return Process(
        control,
        backward,
        jnp.zeros(dim, dtype),
        jnp.full(dim, np.log(spread), dtype),
        jnp.asarray(log_size, dtype),
        jnp.asarray(parts + np.log(-np.expm1(-parts)), dtype),
        kernel,
        steps,
    )


def _row(row: Array, x: Array) -> Array:
    return jnp.broadcast_to(row, x.shape)


def _column(column: Array, x: Array) -> Array:
    """A number for each place, or one for all, beside the coordinates."""
    column = jnp.asarray(column)
    return column if column.ndim == 0 else column[:, None]


def log_gauss(rest: Array, variance: Array) -> Array:
    """Log density of a Gaussian law with independent coordinates, at `rest` from its mean."""
    wide = jnp.broadcast_to(variance, rest.shape)
    return -0.5 * jnp.sum(rest**2 / wide + jnp.log(wide) + LOG_2PI, axis=-1)


def _log_normal(x: Array, mean: Array, variance: Array) -> Array:
    return log_gauss(x - _row(mean, x), variance)
