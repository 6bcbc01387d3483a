"""Directions on the sphere: the mean of a von Mises-Fisher law, moved on the sphere itself."""

import argparse

import jax.numpy as jnp
import numpy as np

import quincunx as qx
import quincunx.distributions as dist


@qx.model
def bearings(x):
    """Unit vectors x about a mean direction; density proportional to exp(kappa mean . x)."""
    mean = qx.sample("mean", dist.ProjectedNormal(jnp.zeros(3)), dims=["axis"])  # uniform
    kappa = qx.sample("kappa", dist.Gamma(2.0, 0.1))
    log_sinh = kappa + jnp.log1p(-jnp.exp(-2 * kappa)) - jnp.log(2.0)
    with qx.plate("row", x) as rows:
        qx.factor("x", kappa * (rows @ mean) + jnp.log(kappa) - log_sinh)


def simulate(rng, count=60):
    x = np.array([1.0, 2.0, 0.5]) + 0.8 * rng.normal(size=(count, 3))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-warmup", type=int, default=1000)
    parser.add_argument("--num-samples", type=int, default=1000)
    settings = vars(parser.parse_args(arguments))

    qx.configure(x64=True)
    data = {"x": simulate(np.random.default_rng(0))}
    fit = qx.infer(bearings, data, "polar_slice", coords={"axis": ["x", "y", "z"]}, **settings)
    print(fit.summary().to_string())
    resultant = data["x"].sum(0)
    print("The resultant points to", np.round(resultant / np.linalg.norm(resultant), 2))
    return fit


if __name__ == "__main__":
    main()
