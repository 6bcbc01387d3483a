"""A simulator in plain Python: an epidemic, day by day, and two rates inferred from its curve."""

import argparse
import math

import numpy as np

import quincunx as qx
from quincunx.distributions import constraints

PEOPLE, DAYS = 1000, 30


def epidemic(contact, recovery):
    """Infected people at the end of each day, by a loop that JAX cannot trace."""
    susceptible, infected, curve = PEOPLE - 5.0, 5.0, []
    for _ in range(DAYS):
        caught = susceptible * (1 - math.exp(-contact * infected / PEOPLE))
        healed = infected * (1 - math.exp(-recovery))
        susceptible, infected = susceptible - caught, infected + caught - healed
        curve.append(infected)
    return curve


def log_posterior(rates, counts):
    """Poisson counts; priors Gamma(2, 2) on contact and Gamma(2, 10) on recovery."""
    contact, recovery = float(rates["contact"]), float(rates["recovery"])
    total = math.log(contact) - 2 * contact + math.log(recovery) - 10 * recovery
    for count, expected in zip(counts, epidemic(contact, recovery), strict=True):
        total += count * math.log(expected) - expected
    return total


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-warmup", type=int, default=500)
    parser.add_argument("--num-samples", type=int, default=500)
    settings = vars(parser.parse_args(arguments))

    qx.configure(x64=True)
    counts = np.random.default_rng(4).poisson(epidemic(0.6, 0.15))
    example = {"contact": 0.5, "recovery": 0.2}
    supports = dict.fromkeys(example, constraints.positive)
    model = qx.from_log_density(log_posterior, example, supports, black_box=True)
    print(qx.applicable(model, {"counts": counts}).to_string())
    fit = qx.infer(model, {"counts": counts}, "polar_slice", init=example, **settings)
    print(fit.summary().to_string())
    print("The counts were made with a contact rate of 0.6 and a recovery rate of 0.15.")
    return fit


if __name__ == "__main__":
    main()
