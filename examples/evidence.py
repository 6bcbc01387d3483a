"""Which polynomial? Models compared by their evidence, and more draws of the best one."""

import argparse

import numpy as np

import quincunx as qx
import quincunx.distributions as dist

NOISE = 0.3


@qx.model
def polynomial(X, y=None):
    """Coefficients with standard normal priors; the noise is known."""
    beta = qx.sample("beta", dist.Normal(0, 1).expand([X.shape[1]]).to_event(1), dims=["power"])
    with qx.plate("row", X, y) as (x, t):
        qx.sample("y", dist.Normal(x @ beta, NOISE), obs=t)


def exact(X, y):
    """The log evidence in closed form."""
    covariance = X @ X.T + NOISE**2 * np.eye(len(y))
    _, determinant = np.linalg.slogdet(2 * np.pi * covariance)
    return -0.5 * (determinant + y @ np.linalg.solve(covariance, y))


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-samples", type=int, default=1000)
    settings = vars(parser.parse_args(arguments))

    qx.configure(x64=True)
    rng = np.random.default_rng(3)
    x = np.linspace(-1, 1, 30)
    y = 0.5 - x + 1.5 * x**2 + NOISE * rng.normal(size=30)
    results = {}
    for degree in (1, 2, 3):
        X = np.stack([x**power for power in range(degree + 1)], axis=1)
        fit = qx.infer(polynomial, {"X": X, "y": y}, qx.AnnealedSMC(), num_chains=8, **settings)
        value, error = fit.log_evidence
        print(f"degree {degree}: {value:.2f} +- {error:.2f} (exactly {exact(X, y):.2f})")
        results[degree] = fit, exact(X, y)
    best = max(results, key=lambda degree: results[degree][0].log_evidence.value)
    more = results[best][0].sampler.draw(500)
    print(f"degree {best} is best; more draws of it: {more}")
    return results


if __name__ == "__main__":
    main()
