"""A positive signal from blurred counts: positive sites without a transform, beside NUTS."""

import argparse

import jax.numpy as jnp
import numpy as np

import quincunx as qx
import quincunx.distributions as dist

BINS = 16


@qx.model
def blurred(blur, background, counts=None):
    """Sources that are mostly weak, exponential a priori; counts of what a blur makes of them."""
    prior = dist.Exponential(0.1).expand([blur.shape[1]]).to_event(1)
    source = qx.sample("source", prior, dims=["bin"])
    with qx.plate("pixel", blur, background, counts) as (row, dark, count):
        rate = jnp.sum(row * source[None, :], axis=-1) + dark
        qx.sample("counts", dist.Poisson(rate), obs=count)


def simulate(rng):
    places = np.arange(BINS)
    blur = np.exp(-0.5 * ((places[:, None] - places[None, :]) / 0.9) ** 2)
    blur /= blur.sum(axis=0)
    source = np.full(BINS, 2.0)
    source[[4, 9, 10]] = 60.0, 40.0, 30.0
    background = np.full(BINS, 1.0)
    data = {"blur": blur, "background": background, "counts": rng.poisson(blur @ source + 1.0)}
    return source, data


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-warmup", type=int, default=1000)
    parser.add_argument("--num-samples", type=int, default=1000)
    settings = vars(parser.parse_args(arguments))

    qx.configure(x64=True)
    source, data = simulate(np.random.default_rng(2))
    fits = [
        qx.infer(blurred, data, method, **settings) for method in (qx.BregmanLangevin(), qx.NUTS())
    ]
    print("source  " + " ".join(f"{value:5.1f}" for value in source))
    for fit, label in zip(fits, ("mirror  ", "NUTS    "), strict=True):
        mean = fit.posterior["source"].mean(("chain", "draw")).values
        print(label + " ".join(f"{value:5.1f}" for value in mean))
        spent = fit.costs["gradients"] - fit.costs["warmup_gradients"]
        rate = 1000 * fit.convergence.ess_bulk.min() / spent
        print(f"{rate:.1f} effective draws for 1000 gradients; {fit.verdict}")
    return fits


if __name__ == "__main__":
    main()
