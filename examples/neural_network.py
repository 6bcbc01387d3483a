"""A small Bayesian neural network for handwritten digits, whose probabilities mean something."""

import argparse

import jax.numpy as jnp
import numpy as np

import quincunx as qx
import quincunx.distributions as dist

HIDDEN = 16


@qx.model
def network(X, y=None):
    normal = lambda *shape: dist.Normal(0, 1).expand(shape).to_event(len(shape))  # noqa: E731
    inner = qx.sample("inner", normal(X.shape[1], HIDDEN))
    outer = qx.sample("outer", normal(HIDDEN, 10))
    bias = qx.sample("bias", normal(10))
    with qx.plate("image", X, y) as (x, digit):
        hidden = jnp.tanh(x @ inner / 4.0)
        logits = hidden @ outer + bias[None]
        qx.sample("y", dist.Categorical(logits=logits), obs=digit)


def calibration_error(probability, right, bins=10):
    """Mean gap between how sure predictions are and how often they are right."""
    gaps = [
        (inside.sum(), abs(probability[inside].mean() - right[inside].mean()))
        for low in np.arange(bins) / bins
        if (inside := (probability > low) & (probability <= low + 1 / bins)).any()
    ]
    return sum(count * gap for count, gap in gaps) / len(right)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-warmup", type=int, default=300)
    parser.add_argument("--num-samples", type=int, default=300)
    settings = vars(parser.parse_args(arguments))

    _, data, _ = qx.models.load("digits")
    order = np.random.default_rng(0).permutation(len(data["y"]))
    train, test = order[:1300], order[1300:]
    rows = {name: array[train].astype(array.dtype) for name, array in data.items()}
    fit = qx.infer(network, rows, qx.SGHMC(steps=20), num_chains=2, **settings)

    drawn = fit.predict({"X": data["X"][test]})["y"].values.reshape(-1, len(test))
    chance = np.stack([(drawn == digit).mean(axis=0) for digit in range(10)], axis=1)
    sure, right = chance.max(axis=1), chance.argmax(axis=1) == data["y"][test]
    print(f"{right.mean():.1%} of the {len(test)} held-out digits are right,")
    print(f"at {sure.mean():.1%} expected; calibration error {calibration_error(sure, right):.3f}")
    return fit, right.mean(), sure.mean(), calibration_error(sure, right)


if __name__ == "__main__":
    main()
