"""A bare log density: no priors and observations, just a function and its variables' supports."""

import argparse

import jax.numpy as jnp
import numpy as np

import quincunx as qx
from quincunx.distributions import constraints

# Times between failures of a machine, in hours.
TIMES = np.array([91.0, 23.0, 155.0, 60.0, 12.0, 201.0, 87.0, 44.0, 118.0, 75.0])


def weibull(values, times):
    """Log posterior of a Weibull law under the prior 1 / (shape * scale)."""
    shape, scale = values["shape"], values["scale"]
    log_hazard = jnp.log(shape / scale) + (shape - 1) * jnp.log(times / scale)
    return jnp.sum(log_hazard - (times / scale) ** shape) - jnp.log(shape * scale)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-warmup", type=int, default=1000)
    parser.add_argument("--num-samples", type=int, default=1000)
    settings = vars(parser.parse_args(arguments))

    qx.configure(x64=True)
    example = {"shape": 1.0, "scale": 1.0}
    supports = {"shape": constraints.positive, "scale": constraints.positive}
    model = qx.from_log_density(weibull, example, supports)
    print(qx.explain(model, {"times": TIMES}))

    # Chains start near 1 in the constrained space unless told otherwise.
    init = {"shape": 1.0, "scale": float(TIMES.mean())}
    fit = qx.infer(model, {"times": TIMES}, init=init, **settings)
    print(fit.summary().to_string())
    wear = float((fit.posterior["shape"] > 1).mean())
    print(f"The probability that the machine wears out (shape above 1) is {wear:.2f}.")
    return fit


if __name__ == "__main__":
    main()
