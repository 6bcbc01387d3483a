"""Kernels for tests: correct ones of other kinds than the package has, and broken ones."""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

import quincunx as qx


class Walk(NamedTuple):
    z: jax.Array
    log_density: jax.Array
    tries: jax.Array


class RandomWalk(qx.Kernel):
    """Metropolis random walk that makes a random number of ticks in each transition.

    A transition is one Metropolis step followed by pauses, as many as a geometric variable
    says: a stand-in for kernels whose transitions vary in cost.
    """

    name: ClassVar[str] = "test_random_walk"
    kind: ClassVar[qx.Kind] = qx.Kind.EXACT
    summary: ClassVar[str] = "For tests."
    citation: ClassVar[str] = "None"
    lockstep: ClassVar[bool] = False

    scale: float = 1.5
    pause: float = 0.5

    def init(self, density, position, key):
        return Walk(position, density.log_density(position), jnp.zeros((), jnp.int32))

    def step(self, density, state, key):
        propose, accept, wait = jax.random.split(key, 3)
        proposal = state.z + self.scale * jax.random.normal(propose, state.z.shape)
        log_density = density.log_density(proposal)
        first = state.tries == 0
        threshold = jnp.log(jax.random.uniform(accept))
        better = first & (threshold < log_density - state.log_density)
        z = jnp.where(better, proposal, state.z)
        level = jnp.where(better, log_density, state.log_density)
        roll = jax.random.uniform(jax.random.fold_in(wait, state.tries))
        done = roll > self.pause
        tries = jnp.where(done, 0, state.tries + 1)
        info = qx.Info(
            log_density=level,
            acceptance=jnp.where(better, 1.0, 0.0),
            diverging=jnp.zeros((), bool),
            step_size=jnp.asarray(self.scale),
            gradients=jnp.zeros((), int),
            evaluations=jnp.ones((), int),
            done=done,
            extra={},
        )
        return Walk(z, level, tries), info

    def position(self, state):
        return state.z


class NoDensityRatio(RandomWalk):
    """Broken: accepts every proposal."""

    name: ClassVar[str] = "test_no_density_ratio"

    def step(self, density, state, key):
        return super().step(density, state._replace(log_density=jnp.full((), -jnp.inf)), key)


class Cold(qx.Density):
    """A power of the density that was asked for."""

    power: float

    def log_density(self, z):
        return self.power * super().log_density(z)


class ColdNUTS(qx.NUTS):
    """Broken: follows the dynamics of a colder density."""

    name: ClassVar[str] = "test_cold_nuts"

    power: float = 1.15

    def step(self, density, state, key):
        cold = Cold(
            density.leaves, density.temperature, density.program, density.labels, self.power
        )
        chain = self.init(cold, state.chain.position, key).chain
        return super().step(cold, state._replace(chain=chain), key)
