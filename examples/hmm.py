"""A hidden Markov model: the discrete states are summed out by the forward algorithm."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

import quincunx as qx
import quincunx.distributions as dist


@qx.model
def hidden_markov(y):
    rows = dist.Dirichlet(jnp.array([[8.0, 2.0], [2.0, 8.0]])).to_event(1)
    transition = qx.sample("transition", rows, dims=["state", "next_state"])
    ordered = dist.transforms.OrderedTransform()  # fixes which state is which
    levels = dist.TransformedDistribution(dist.Normal(0, 3).expand([2]).to_event(1), ordered)
    level = qx.sample("level", levels, dims=["state"])
    noise = qx.sample("noise", dist.HalfNormal(2))

    emission = dist.Normal(level[None, :], noise).log_prob(y[:, None])  # (time, state)

    def forward(alpha, log_emission):
        alpha = logsumexp(alpha[:, None] + jnp.log(transition), axis=0) + log_emission
        return alpha, None

    alpha, _ = jax.lax.scan(forward, jnp.log(0.5) + emission[0], emission[1:])
    qx.factor("y", logsumexp(alpha))


def simulate(length, rng):
    state, values = 0, []
    for _ in range(length):
        state = state if rng.random() < 0.9 else 1 - state
        values.append(rng.normal((-1.0, 2.0)[state], 0.8))
    return np.array(values)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-warmup", type=int, default=500)
    parser.add_argument("--num-samples", type=int, default=500)
    settings = vars(parser.parse_args(arguments))

    qx.configure(x64=True)
    fit = qx.infer(hidden_markov, {"y": simulate(200, np.random.default_rng(2))}, **settings)
    print(fit.summary().to_string())
    print("The data were made with levels -1 and 2, noise 0.8 and a chance of 0.9 to stay.")
    return fit


if __name__ == "__main__":
    main()
