"""One sampler for many shops: trained once on simulations, then milliseconds for each shop."""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

import quincunx as qx
import quincunx.distributions as dist


@qx.model
def sales(price, sold):
    level = qx.sample("level", dist.Normal(2, 1))
    slope = qx.sample("slope", dist.Normal(-1, 0.5))
    with qx.plate("day", price, sold) as (p, s):
        qx.sample("sold", dist.Poisson(jnp.exp(level + slope * p)), obs=s)


def simulate(key):
    price = jax.random.uniform(key, (30,), minval=-1.0, maxval=1.0)
    return {"price": price, "sold": jnp.zeros(30, int)}


def shop(rng):
    price = rng.uniform(-1, 1, size=rng.integers(10, 31))
    level, slope = rng.normal(2, 1), rng.normal(-1, 0.5)
    return {"price": price, "sold": rng.poisson(np.exp(level + slope * price))}, slope


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4000)
    steps = parser.parse_args(arguments).steps
    qx.configure(x64=True)

    amortized = qx.amortize(sales, simulate, rows=(10, 30), budget=steps)
    rng, fits, slopes = np.random.default_rng(0), [], []
    began = time.perf_counter()
    for _ in range(40):
        data, slope = shop(rng)
        fits.append(amortized(data, repair="weights"))
        slopes.append(slope)
    print(f"{1000 * (time.perf_counter() - began) / len(fits):.1f} ms for each shop")

    scores = []
    for fit, slope in zip(fits, slopes, strict=True):
        draws = fit.posterior["slope"]
        scores.append(float((draws.mean() - slope) / draws.std()))
        k = fit.importance.pareto_k
        print(f"slope {slope:5.2f}, estimate {float(draws.mean()):5.2f}, Pareto k {k:5.2f}")
    return amortized, fits, np.array(scores)


if __name__ == "__main__":
    main()
