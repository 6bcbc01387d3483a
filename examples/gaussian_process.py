"""Gaussian-process regression: the function is integrated out, then predicted between points."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import quincunx as qx
import quincunx.distributions as dist


def kernel(a, b, amplitude, length):
    return amplitude**2 * jnp.exp(-0.5 * ((a[:, None] - b[None, :]) / length) ** 2)


@qx.model
def gaussian_process(x, y=None):
    amplitude = qx.sample("amplitude", dist.HalfNormal(2))
    length = qx.sample("length", dist.InverseGamma(5, 5))  # neither zero nor the whole range
    noise = qx.sample("noise", dist.HalfNormal(1))
    covariance = kernel(x, x, amplitude, length) + (noise**2 + 1e-8) * jnp.eye(len(x))
    qx.sample("y", dist.MultivariateNormal(0.0, covariance), obs=y, dims=["point"])


@jax.jit
def predict(draws, x, y, new_x):
    """Mean of the function at new points for each draw of the hyperparameters."""

    def one(amplitude, length, noise):
        covariance = kernel(x, x, amplitude, length) + (noise**2 + 1e-8) * jnp.eye(len(x))
        return kernel(new_x, x, amplitude, length) @ jnp.linalg.solve(covariance, y)

    return jax.vmap(one)(draws["amplitude"], draws["length"], draws["noise"])


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-warmup", type=int, default=500)
    parser.add_argument("--num-samples", type=int, default=500)
    settings = vars(parser.parse_args(arguments))

    qx.configure(x64=True)
    rng = np.random.default_rng(3)
    x = np.sort(rng.uniform(0, 6, 30))
    y = np.sin(x) + rng.normal(0, 0.2, 30)
    fit = qx.infer(gaussian_process, {"x": x, "y": y}, **settings)
    print(fit.summary().to_string())

    draws = {name: array.values.reshape(-1) for name, array in fit.posterior.items()}
    new_x = np.linspace(0.5, 5.5, 6)
    curve = predict(draws, x, y, new_x)
    for point, mean, sd in zip(new_x, curve.mean(0), curve.std(0), strict=True):
        print(f"f({point:.1f}) = {mean:6.3f} +- {sd:.3f}   (sin: {np.sin(point):6.3f})")
    return fit


if __name__ == "__main__":
    main()
