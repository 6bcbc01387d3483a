"""Logistic regression on a data plate: row estimates, and prediction of held-out rows."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import quincunx as qx
import quincunx.distributions as dist


@qx.model
def logistic(X, y=None):
    beta = qx.sample("beta", dist.Normal(0, 1).expand([X.shape[1]]).to_event(1), dims=["feature"])
    with qx.plate("row", X, y) as (x, outcome):
        qx.sample("y", dist.Bernoulli(logits=x @ beta), obs=outcome)


def simulate(rows, rng):
    X = np.column_stack([np.ones(rows), rng.normal(size=(rows, 3))])
    probability = 1 / (1 + np.exp(-X @ np.array([-0.5, 1.0, -1.0, 0.5])))
    return X, rng.binomial(1, probability)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-warmup", type=int, default=500)
    parser.add_argument("--num-samples", type=int, default=500)
    settings = vars(parser.parse_args(arguments))

    qx.configure(x64=True)
    X, y = simulate(600, np.random.default_rng(0))
    data = {"X": X[:400], "y": y[:400]}

    # A data plate lets methods use some rows: the estimate is scaled by N / n, so unbiased.
    density = qx.compile(logistic, data)
    blocks = jnp.arange(400).reshape(10, 40)
    z = jnp.full(density.dim, 0.1)
    estimates = jax.vmap(lambda rows: density.log_likelihood(z, rows))(blocks)
    whole = density.log_likelihood(z)
    print(f"log likelihood: {whole:.4f}; mean over ten blocks of 40 rows: {estimates.mean():.4f}")

    coords = {"feature": ["intercept", "a", "b", "c"]}
    fit = qx.infer(logistic, data, coords=coords, **settings)
    print(fit.summary().to_string())

    chance = fit.predict({"X": X[400:]})["y"].mean(("chain", "draw")).values
    right = np.mean((chance > 0.5) == y[400:])
    print(f"{right:.0%} of the 200 held-out rows are predicted correctly.")
    return fit


if __name__ == "__main__":
    main()
