r"""Losses of path samplers.

With log w the log weight of a path and log F, log B its kernels':

    reverse_kl             - mean log w, through the simulation
    stick_the_landing      the same, the parameters inside log F held fixed
    log_derivative         mean sg(-log w - c) log F - mean log B,    c = mean(-log w)
    log_variance           1/2 var log w                              (VarGrad)
    trajectory_balance     1/2 mean (log Z - log w)^2,    log Z learned
    subtrajectory_balance  sum_{i<j} l^(j-i) / sum l^(j-i) mean R_ij^2
    segment_log_variance   sum over segments (i, j) of 1/2 var R_ij
    maximum_likelihood     - mean log F, on paths back from given ends
    adjoint_matching       mean |u_k(x_k) - grad log gamma(x_K) - x_K / s^2|^2    (pis)

R_ij = log f_j(x_j) - log f_i(x_i) + sum_{i <= k < j} (log B_k - log F_k), f the annealed densities
times a learned flow in subtrajectory balance. The first two and log_derivative have the gradient
of KL(F || B) for all parameters; log_variance and trajectory balance on the sampler's own paths for
those of F alone; the first two only up to the score features of controls, which no derivative goes
through. All but the first two take paths as constants, from whatever law they are.

Paths whose weight is not finite, or is beyond 1e8, are left out.

Sendera et al. (2024), On diffusion models for amortized inference, NeurIPS; Blessing et al. (2025),
arXiv:2506.10982; Zhang et al. (2024), Diffusion generative flow samplers, ICLR; Chen et al. (2025),
Sequential controlled Langevin diffusions, ICLR; Havens et al. (2025), Adjoint sampling, ICML.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from quincunx.inference.paths.control import Control
from quincunx.inference.paths.process import Paths, Process

THROUGH = ("reverse_kl", "stick_the_landing")
ON_ANY_PATHS = (
    "log_variance",
    "trajectory_balance",
    "subtrajectory_balance",
    "segment_log_variance",
)
ON_OWN_PATHS = ("log_derivative",)
ON_PATHS_BACK = ("maximum_likelihood",)
LOSSES = (*THROUGH, *ON_OWN_PATHS, *ON_ANY_PATHS, *ON_PATHS_BACK, "adjoint_matching")
_LARGEST = 1e8
_LAMBDA = 0.9


class Learned(eqx.Module):
    """All that is learned.

    Attributes:
        process: the kernels.
        flow: corrections of the annealed log densities, for subtrajectory balance.
        log_z: of trajectory balance.
    """

    process: Process
    flow: Control
    log_z: Array


class Loss(NamedTuple):
    """A loss and what it saw.

    Attributes:
        value: to be minimised.
        log_weight: of the paths, zero for those left out.
        left_out: paths that were.
    """

    value: Array
    log_weight: Array
    left_out: Array


def loss_on_paths(
    learned: Learned, paths: Paths, name: str, segments: int, weigh: float = 1.0
) -> Loss:
    """A loss on given paths.

    Args:
        learned: the parameters.
        paths: constants, but for `reverse_kl` and `stick_the_landing`.
        name: of the loss.
        segments: of `segment_log_variance`.
        weigh: what the loss is divided by, such as the dimension.
    """
    process = learned.process
    forward, backward = process.log_kernels(paths)
    if name == "stick_the_landing":
        fixed = jax.tree.map(
            lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_array(leaf) else leaf, process
        )
        forward = fixed.log_kernels(paths)[0]
    log_start = process.log_start(paths.x[0])
    log_weight = paths.log_gamma[-1] - log_start + jnp.sum(backward - forward, axis=0)
    good = jnp.isfinite(log_weight) & (jnp.abs(log_weight) < _LARGEST)
    left_out = jnp.sum(~good)

    def mean(values: Array) -> Array:
        return jnp.sum(jnp.where(good, values, 0.0)) / jnp.maximum(jnp.sum(good), 1)

    def half_variance(values: Array) -> Array:
        return 0.5 * mean((values - mean(values)) ** 2)

    safe = jnp.where(good, log_weight, 0.0)
    if name in THROUGH:
        value = -mean(safe)
    elif name == "log_derivative":
        cost = jax.lax.stop_gradient(-safe - mean(-safe))
        value = mean(cost * (log_start + jnp.sum(forward, axis=0)))
        value -= mean(jnp.sum(backward, axis=0))
    elif name == "log_variance":
        value = half_variance(safe)
    elif name == "trajectory_balance":
        value = 0.5 * mean((learned.log_z - safe) ** 2)
    elif name == "maximum_likelihood":
        value = -mean(log_start + jnp.sum(forward, axis=0))
    else:
        levels = _levels(learned, paths, log_start) + _running(backward - forward)
        levels = jnp.where(good[None, :], levels, 0.0)
        if name == "segment_log_variance":
            ends = levels[:: process.steps // segments]
            value = jnp.sum(jax.vmap(half_variance)(ends[1:] - ends[:-1]))
        else:
            value = _balance(levels.at[0].add(learned.log_z), good)
    return Loss(value / weigh, safe, left_out)


def _running(ratio: Array) -> Array:
    zero = jnp.zeros((1, ratio.shape[1]), ratio.dtype)
    return jnp.concatenate([zero, jnp.cumsum(ratio, axis=0)])


def _levels(learned: Learned, paths: Paths, log_start: Array) -> Array:
    """Log f_k at the places of all paths, `(steps + 1, n)`."""
    process, flow = learned.process, learned.flow
    b = process.inverse_temperatures
    if process.starts_at_origin:
        share = jnp.linspace(0.0, 1.0, process.steps + 1, dtype=b.dtype)
        wide = jnp.where(share > 0, share, 1.0)[:, None, None]
        reference = process.log_reference(paths.x / jnp.sqrt(wide))
        reference -= 0.5 * paths.x.shape[-1] * jnp.log(wide[..., 0])
        between = (1 - share)[:, None] * reference + share[:, None] * paths.log_gamma
    else:
        between = jax.vmap(process.annealed)(b, paths.x, paths.log_gamma)
    times = flow.times(process.steps)
    correction = jax.vmap(lambda at, x: flow(at, x, jnp.zeros((x.shape[0], 1), x.dtype))[:, 0])(
        times, paths.x
    )
    between = between + correction
    return between.at[0].set(log_start).at[-1].set(paths.log_gamma[-1])


def _balance(levels: Array, good: Array) -> Array:
    """Subtrajectory balance of all pairs."""
    length = levels.shape[0]
    gap = jnp.arange(length)[None, :] - jnp.arange(length)[:, None]
    weights = jnp.where(gap > 0, _LAMBDA**gap, 0.0)
    weights = weights / jnp.sum(weights)
    square = jnp.mean(levels**2, axis=1, where=good[None, :])
    kept = jnp.where(good[None, :], levels, 0.0)
    product = kept @ kept.T / jnp.maximum(jnp.sum(good), 1)
    return jnp.sum(weights * (square[:, None] + square[None, :] - 2 * product))


def adjoint_matching(
    learned: Learned, ends: Array, score: Array, key: Array, weigh: float = 1.0
) -> Loss:
    """Regress the control of `pis` on the adjoint at the end, at points of the bridge to it.

    Args:
        learned: the parameters.
        ends: terminal places, `(n, dim)`.
        score: gradients of log gamma there.
        key: for the points.
        weigh: what the loss is divided by.
    """
    process = learned.process
    index_key, noise_key = jax.random.split(key)
    k = jax.random.randint(index_key, (ends.shape[0],), 0, process.steps)
    share = (k / process.steps).astype(ends.dtype)[:, None]
    variance = jnp.broadcast_to(jnp.exp(2 * process.log_sd), ends.shape)
    noise = jax.random.normal(noise_key, ends.shape, ends.dtype)
    x = share * ends + jnp.sqrt(share * (1 - share) * variance) * noise
    times = process.control.times(process.steps)
    at = jax.tree.map(lambda leaf: leaf[k], times)
    u = process.control(at, x, jnp.zeros_like(x))
    aim = jnp.clip(score, -100.0, 100.0) + ends / variance
    rest = jnp.sum((u - jax.lax.stop_gradient(aim)) ** 2, axis=1)
    good = jnp.isfinite(rest)
    value = jnp.sum(jnp.where(good, rest, 0.0)) / jnp.maximum(jnp.sum(good), 1)
    return Loss(value / weigh, jnp.zeros(ends.shape[0], ends.dtype), jnp.sum(~good))
