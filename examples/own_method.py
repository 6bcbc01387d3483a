"""A method of one's own: random-walk Metropolis as a `Kernel`, used by name."""

import argparse
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

import quincunx as qx


class State(NamedTuple):
    position: jax.Array
    log_density: jax.Array
    scale: jax.Array
    count: jax.Array


@qx.register
class RandomWalk(qx.Kernel):
    """z' = z + s N(0, I), accepted with probability min(1, pi(z') / pi(z))."""

    name: ClassVar[str] = "random_walk"
    kind: ClassVar[qx.Kind] = qx.Kind.EXACT
    summary: ClassVar[str] = "Random-walk Metropolis with a scale adapted in warm-up."
    citation: ClassVar[str] = "Metropolis et al. (1953), J. Chem. Phys. 21:1087"

    target_accept: float = 0.25

    def init(self, density, position, key):
        return State(position, density.log_density(position), jnp.ones(()), jnp.zeros(()))

    def step(self, density, state, key):
        propose, accept = jax.random.split(key)
        move = state.scale * jax.random.normal(propose, state.position.shape)
        log_density = density.log_density(state.position + move)
        chance = jnp.exp(jnp.minimum(log_density - state.log_density, 0.0))
        chance = jnp.where(jnp.isnan(chance), 0.0, chance)
        taken = jax.random.uniform(accept) < chance
        position = jnp.where(taken, state.position + move, state.position)
        log_density = jnp.where(taken, log_density, state.log_density)
        no, yes, one = jnp.zeros((), bool), jnp.ones((), bool), jnp.ones((), int)
        info = qx.Info(log_density, chance, no, state.scale, 0 * one, one, yes, {})
        return State(position, log_density, state.scale, state.count), info

    def position(self, state):
        return state.position

    def adapt(self, density, states, infos, stage):
        """Robbins and Monro: log s moves by the excess acceptance, ever less."""
        count = states.count + 1
        change = (infos.acceptance - self.target_accept) / count**0.6
        return states._replace(scale=states.scale * jnp.exp(change), count=count)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-warmup", type=int, default=2000)
    parser.add_argument("--num-samples", type=int, default=2000)
    parser.add_argument("--thinning", type=int, default=20)
    settings = vars(parser.parse_args(arguments))

    qx.configure(x64=True)
    model, data, _ = qx.models.load("stackloss")
    fit = qx.infer(model, data, "random_walk", **settings)
    print(qx.methods()[["kind", "summary"]])
    print(fit.summary(), fit.costs)
    return fit


if __name__ == "__main__":
    main()
