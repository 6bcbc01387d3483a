"""Small models and data that many tests share."""

import numpy as np

import quincunx as qx
import quincunx.distributions as dist

SCHOOLS = {
    "sigma": np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
    "y": np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
}


@qx.model
def eight_schools(sigma, y=None):
    mu = qx.sample("mu", dist.Normal(0, 5))
    tau = qx.sample("tau", dist.HalfCauchy(5))
    with qx.plate("school", len(sigma)):
        z = qx.sample("z", dist.Normal(0, 1))
        theta = qx.deterministic("theta", mu + tau * z)
        qx.sample("y", dist.Normal(theta, sigma), obs=y)


@qx.model
def logistic(X, y=None):
    prior = dist.Normal(0, 1).expand([X.shape[1]]).to_event(1)
    beta = qx.sample("beta", prior, dims=["feature"])
    with qx.plate("row", X, y) as (x, t):
        qx.sample("y", dist.Bernoulli(logits=x @ beta), obs=t)


@qx.model
def conjugate(y=None):
    """Normal mean with known variance: the posterior is known in closed form."""
    mu = qx.sample("mu", dist.Normal(1.0, 2.0))
    with qx.plate("row", y) as t:
        qx.sample("y", dist.Normal(mu, 1.5), obs=t)


def conjugate_posterior(y):
    """Mean and sd of `conjugate`'s posterior."""
    precision = 1 / 2.0**2 + len(y) / 1.5**2
    return (1.0 / 2.0**2 + np.sum(y) / 1.5**2) / precision, precision**-0.5


def logistic_data(rng, rows=40, features=3):
    X = rng.normal(size=(rows, features))
    beta = np.linspace(-1, 1, features)
    y = (rng.uniform(size=rows) < 1 / (1 + np.exp(-X @ beta))).astype(int)
    return {"X": X, "y": y}
