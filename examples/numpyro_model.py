"""A plain NumPyro model, unchanged: the same posterior from `infer` and from NumPyro's MCMC."""

import argparse

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS

import quincunx as qx


def radon(county, floor, num_counties, log_radon=None):
    mean = numpyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = numpyro.sample("spread", dist.LogNormal(-1.0, 0.5))
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.0))
    noise = numpyro.sample("noise", dist.HalfNormal(2.0))
    with numpyro.plate("county", num_counties):
        level = numpyro.sample("level", dist.Normal(mean, spread))
    with numpyro.plate("home", len(county)):
        at = level[county] + slope * floor
        numpyro.sample("log_radon", dist.Normal(at, noise), obs=log_radon)


def simulate(rng):
    county, floor = rng.integers(0, 8, 160), rng.integers(0, 2, 160)
    level = rng.normal(1.3, 0.4, 8)
    log_radon = level[county] - 0.7 * floor + rng.normal(0.0, 0.7, 160)
    return {"county": county, "floor": floor, "num_counties": 8, "log_radon": log_radon}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-warmup", type=int, default=500)
    parser.add_argument("--num-samples", type=int, default=1000)
    settings = vars(parser.parse_args(arguments))

    qx.configure(x64=True)
    data = simulate(np.random.default_rng(1))
    fit = qx.infer(radon, data, **settings)

    kernel = NUTS(radon)
    mcmc = MCMC(kernel, num_chains=4, chain_method="vectorized", progress_bar=False, **settings)
    mcmc.run(jax.random.key(0), **data)
    theirs = mcmc.get_samples()

    print(f"{'':8s} {'quincunx':>10s} {'numpyro':>10s}")
    for name in ("mean", "spread", "slope", "noise"):
        ours = float(fit.posterior[name].mean())
        print(f"{name:8s} {ours:10.3f} {float(theirs[name].mean()):10.3f}")
    return fit, theirs


if __name__ == "__main__":
    main()
