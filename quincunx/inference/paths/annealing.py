r"""Annealed particles: from a standard normal law to a density, with moves and resampling.

With psi(y) = log gamma(y) - log N(y; 0, I) and inverse temperatures 0 = b_0 < ... < b_K = 1,

    pi_k(y) ~ N(y; 0, I) exp(b_k psi(y)),    log w <- log w + (b_k - b_{k-1}) psi(y),

then the particles are resampled where their effective size falls below a share of their number,
and moved by steps that leave pi_k as it is. A step proposes, with s = b_k grad psi(y),

    y' = ((2 - h) y + 2 h s) / (2 + h) + sqrt(8 h) / (2 + h) e,    e ~ N(0, I),

and is accepted as Metropolis and Hastings have it; where gamma is the normal law itself every
proposal is accepted whatever the dimension. Every third step is ten times shorter, for particles
in narrow places where longer ones are hardly ever accepted. The mean weight estimates the evidence
without bias.

Del Moral, Doucet and Jasra (2006), Sequential Monte Carlo samplers, JRSS B 68:411; Cotter,
Roberts, Stuart and White (2013), MCMC methods for functions, Statistical Science 28:424.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from quincunx.inference.paths.resampling import effective_share, systematic
from quincunx.inference.paths.target import Target, log_normal

AIM = 0.574
_LARGEST_STEP = 1.9
_CYCLE, _SHORT = 3, 0.1  # one of so many steps is shorter by this factor


class Particles(NamedTuple):
    """Particles in whitened coordinates.

    Attributes:
        y: `(n, dim)`.
        psi: log gamma minus log normal, `(n,)`.
        slope: gradients of psi, `(n, dim)`; zero where moves need none.
    """

    y: Float[Array, "n dim"]
    psi: Float[Array, " n"]
    slope: Float[Array, "n dim"]


class Schedule(eqx.Module):
    """Temperatures and step sizes, in arrays that may be longer than what is used of them.

    Attributes:
        inverse_temperatures: from 0 to 1, then ones, one more than steps.
        step_sizes: of the moves at each temperature but the first, `(length,)`.
        count: temperatures in use.
    """

    inverse_temperatures: Float[Array, " temperatures"]
    step_sizes: Float[Array, " length"]
    count: Array


class Annealed(NamedTuple):
    """The particles at the end, and what was seen on the way.

    Attributes:
        particles: at the end.
        log_weight: so that the mean weight estimates the evidence.
        tempered: log weights before each resampling, `(length, n)`, NaN where there was none.
        origin: the particle of the start that each one descends from.
        spread: standard deviation of psi among the particles before each temperature's moves.
        step_sizes: as they were adapted, or as they were given.
        acceptance: of the moves at each temperature.
    """

    particles: Particles
    log_weight: Float[Array, " n"]
    tempered: Float[Array, "length n"]
    origin: Int[Array, " n"]
    spread: Float[Array, " length"]
    step_sizes: Float[Array, " length"]
    acceptance: Float[Array, " length"]


def look(target: Target, y: Array, *, gradient: bool) -> Particles:
    """Particles at given places."""
    if gradient:
        value, score = target.with_score(y)
        slope = jnp.where(jnp.isfinite(value)[:, None], score + y, jnp.zeros_like(y))
    else:
        value, slope = target.log_gamma(y), jnp.zeros_like(y)
    return Particles(y, value - log_normal(y), slope)


def move(
    target: Target, particles: Particles, beta: Array, step: Array, key: Array, *, gradient: bool
) -> tuple[Particles, Array]:
    """One Metropolis-Hastings step of each particle; also the mean acceptance probability."""
    noise_key, accept_key = jax.random.split(key)
    y = particles.y
    scale = jnp.sqrt(8 * step) / (2 + step)

    def centre(at: Particles) -> Array:
        return ((2 - step) * at.y + 2 * step * beta * at.slope) / (2 + step)

    proposal = centre(particles) + scale * jax.random.normal(noise_key, y.shape, y.dtype)
    there = look(target, proposal, gradient=gradient)

    def reach(start: Particles, end: Particles) -> Array:
        return -0.5 * jnp.sum((end.y - centre(start)) ** 2, axis=-1) / scale**2

    def level(at: Particles) -> Array:
        return beta * at.psi - 0.5 * jnp.sum(at.y**2, axis=-1)

    log_ratio = level(there) - level(particles) + reach(there, particles) - reach(particles, there)
    log_ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)
    accept = jnp.log(jax.random.uniform(accept_key, log_ratio.shape)) < log_ratio
    chosen = jax.tree.map(
        lambda new, old: jnp.where(accept.reshape(-1, *(1,) * (new.ndim - 1)), new, old),
        there,
        particles,
    )
    return chosen, jnp.mean(jnp.minimum(jnp.exp(jnp.minimum(log_ratio, 0.0)), 1.0))


def anneal(
    target: Target,
    schedule: Schedule,
    key: Array,
    n: int,
    *,
    moves: int,
    threshold: float,
    gradient: bool = True,
    adapt: bool = False,
) -> Annealed:
    """Take n particles through all temperatures.

    Args:
        target: what they end in.
        schedule: temperatures and steps.
        key: the only source of randomness.
        n: number of particles.
        moves: steps at each temperature.
        threshold: share of effective particles below which they are resampled.
        gradient: whether moves use the gradient.
        adapt: whether step sizes follow the acceptance, from one temperature to the next. The
            estimate of the evidence is then not unbiased.
    """
    dim = target.whitening.mean.shape[0]
    start_key, key = jax.random.split(key)
    y = jax.random.normal(start_key, (n, dim), target.whitening.mean.dtype)
    length = schedule.step_sizes.shape[0]
    nothing = jnp.full((length,), jnp.nan, y.dtype)
    blank = Annealed(
        look(target, y, gradient=gradient),
        jnp.zeros(n, y.dtype),
        jnp.full((length, n), jnp.nan, y.dtype),
        jnp.arange(n),
        nothing,
        schedule.step_sizes,
        nothing,
    )

    def at_temperature(k: Array, run: Annealed) -> Annealed:
        before, beta = schedule.inverse_temperatures[k], schedule.inverse_temperatures[k + 1]
        keys = jax.random.split(jax.random.fold_in(key, k), 1 + moves)
        psi = run.particles.psi
        log_weight = run.log_weight + jnp.where(beta > before, (beta - before) * psi, 0.0)
        finite = jnp.isfinite(psi)
        spread = jnp.std(psi, where=finite)
        poor = (effective_share(log_weight) < threshold) & jnp.any(jnp.isfinite(log_weight))
        chosen = jnp.where(poor, systematic(keys[0], log_weight), jnp.arange(n))
        particles = jax.tree.map(lambda leaf: leaf[chosen], run.particles)
        total = jax.scipy.special.logsumexp(log_weight) - jnp.log(n)
        tempered = run.tempered.at[k].set(jnp.where(poor, log_weight, jnp.nan))
        log_weight = jnp.where(poor, total, log_weight)
        step = run.step_sizes[k]
        accepted = jnp.zeros((), y.dtype)
        for index in range(moves):
            short = index % _CYCLE == _CYCLE - 1
            size = _SHORT * step if short else step
            particles, acceptance = move(
                target, particles, beta, size, keys[1 + index], gradient=gradient
            )
            accepted += acceptance / moves
            if adapt and not short:
                grown = step * jnp.exp(1.5 * (acceptance - (AIM if gradient else 0.3)))
                step = jnp.clip(grown, 1e-8, _LARGEST_STEP)
        steps = run.step_sizes
        if adapt:
            steps = steps.at[k].set(step).at[jnp.minimum(k + 1, length - 1)].set(step)
        return Annealed(
            particles,
            log_weight,
            tempered,
            run.origin[chosen],
            run.spread.at[k].set(spread),
            steps,
            run.acceptance.at[k].set(accepted),
        )

    return jax.lax.fori_loop(0, schedule.count, at_temperature, blank)
