"""A neural network for digits with a Bayesian output layer; all its weights have too many modes."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax

import quincunx as qx
import quincunx.distributions as dist


@qx.model
def output_layer(hidden, digit=None):
    weight = qx.sample("weight", dist.Normal(0, 1).expand([hidden.shape[1], 10]).to_event(2))
    with qx.plate("image", hidden, digit) as (h, y):
        qx.sample("digit", dist.Categorical(logits=h @ weight), obs=y)


@jax.jit
def train(X, digit):
    """Hidden and output weights at a mode of the whole network, all priors N(0, 1)."""
    inner, outer = (0.2 * jax.random.normal(jax.random.key(n), (65, n)) for n in (16, 10))
    weights, optimiser = (inner, outer[:16]), optax.adam(1e-2)

    def potential(weights):
        logits = jnp.tanh(X @ weights[0]) @ weights[1]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, digit)
        return jnp.sum(losses) + 0.5 * sum(jnp.sum(w**2) for w in weights)

    def step(carry, _):
        update, state = optimiser.update(jax.grad(potential)(carry[0]), carry[1])
        return (optax.apply_updates(carry[0], update), state), None

    return jax.lax.scan(step, (weights, optimiser.init(weights)), None, 400)[0][0]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-samples", type=int, default=500)
    num_samples = parser.parse_args(arguments).num_samples
    _, data, _ = qx.models.load("digits")
    X, digit = data["X"].astype(np.float32), data["y"]
    seen, new = np.split(np.random.default_rng(0).permutation(len(digit)), [1300])
    hidden = np.tanh(X @ train(X[seen], digit[seen])[0])
    rows = {"hidden": hidden[seen], "digit": digit[seen]}
    method = qx.SGHMC(batch_size=650)
    fit = qx.infer(output_layer, rows, method, num_warmup=50, num_samples=num_samples)
    chance = jax.nn.softmax(hidden[new] @ fit.posterior["weight"].values).mean((0, 1))
    sure, right = np.max(chance, 1), np.argmax(chance, 1) == digit[new]
    bins = np.digitize(sure, [0.5, 0.6, 0.7, 0.8, 0.9])
    gap = sum(abs(sum(sure[bins == n] - right[bins == n])) for n in range(6)) / len(new)
    print(f"{right.mean():.1%} right, {sure.mean():.1%} expected; calibration error {gap:.3f}")
    return fit, right.mean(), sure.mean(), gap


if __name__ == "__main__":
    main()
