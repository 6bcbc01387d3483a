"""A method of one's own: random-walk Metropolis as a `Kernel`, used by name."""

import argparse
from typing import ClassVar

import jax
import jax.numpy as jnp

import quincunx as qx


@qx.register
class RandomWalk(qx.Kernel):
    """z' = z + s N(0, I), accepted with probability min(1, pi(z') / pi(z))."""

    name: ClassVar[str] = "random_walk"
    kind: ClassVar[qx.Kind] = qx.Kind.EXACT
    summary: ClassVar[str] = "Random-walk Metropolis with a scale adapted in warm-up."
    citation: ClassVar[str] = "Metropolis et al. (1953), J. Chem. Phys. 21:1087"
    target_accept: float = 0.25

    def init(self, density, position, key):  # noqa: D102
        return {"z": position, "lp": density.log_density(position), "scale": jnp.ones(())}

    def step(self, density, state, key):  # noqa: D102
        propose, accept = jax.random.split(key)
        z = state["z"] + state["scale"] * jax.random.normal(propose, state["z"].shape)
        lp = density.log_density(z)
        chance = jnp.nan_to_num(jnp.exp(jnp.minimum(lp - state["lp"], 0.0)), nan=0.0)
        taken = jax.random.uniform(accept) < chance
        new = {"z": jnp.where(taken, z, state["z"]), "lp": jnp.where(taken, lp, state["lp"])}
        no, one = jnp.int32(0), jnp.int32(1)
        return state | new, qx.Info(new["lp"], chance, no > 0, state["scale"], no, one, {})

    def position(self, state):  # noqa: D102
        return state["z"]

    def stages(self, num_warmup):  # noqa: D102
        return (jnp.arange(num_warmup) + 1.0) ** -0.6  # gains, one for each warm-up step

    def adapt(self, density, states, infos, stage, pool):
        """Robbins and Monro: log s moves by the gain times the excess acceptance."""
        change = stage * (infos.acceptance - self.target_accept)
        return states | {"scale": states["scale"] * jnp.exp(change)}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in {"num-warmup": 2000, "num-samples": 2000, "thinning": 50}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    qx.configure(x64=True)
    model, data, _ = qx.models.load("stackloss")
    fit = qx.infer(model, data, "random_walk", **vars(parser.parse_args(arguments)))
    print(fit.summary().to_string(), fit.costs, sep="\n")
    return fit


if __name__ == "__main__":
    main()
