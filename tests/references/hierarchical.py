"""Hierarchies: eight schools, radon by county, item response."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jax import Array

import quincunx as qx
import quincunx.distributions as dist

from .priors import normal_vector

Data = Mapping[str, Any]


@qx.model
def eight_schools(sigma: Array, y: Array | None = None) -> None:
    """y_j ~ N(theta_j, sigma_j); theta_j ~ N(mu, tau), written theta = mu + tau z."""
    mu = qx.sample("mu", dist.Normal(0.0, 5.0))
    tau = qx.sample("tau", dist.HalfCauchy(5.0))
    with qx.plate("school", sigma, y) as (error, target):
        z = qx.sample("z", dist.Normal(0.0, 1.0))
        theta = qx.deterministic("theta", mu + tau * z)
        qx.sample("y", dist.Normal(theta, error), obs=target)


@qx.model
def radon(counties: int, county: Array, x: Array, log_radon: Array | None = None) -> None:
    """log_radon ~ N(alpha[county] + x beta, sigma_y); alpha_j ~ N(mu_alpha, sigma_alpha)."""
    mu_alpha = qx.sample("mu_alpha", dist.Normal(0.0, 10.0))
    sigma_alpha = qx.sample("sigma_alpha", dist.HalfNormal(1.0))
    sigma_y = qx.sample("sigma_y", dist.HalfNormal(1.0))
    beta = qx.sample("beta", normal_vector(x.shape[1], 10.0), dims=["column"])
    with qx.plate("county", counties):
        z = qx.sample("z", dist.Normal(0.0, 1.0))
        alpha = qx.deterministic("alpha", mu_alpha + sigma_alpha * z)
    with qx.plate("home", county, x, log_radon) as (place, row, target):
        qx.sample("log_radon", dist.Normal(alpha[place] + row @ beta, sigma_y), obs=target)


@qx.model
def item_response(items: int, persons: int, y: Array | None = None) -> None:
    """y_ij ~ Bernoulli(logit = a_i (theta_j - b_i)); a_i ~ LogN, theta_j and b_i Gaussian."""
    sigma_theta = qx.sample("sigma_theta", dist.HalfCauchy(2.0))
    sigma_a = qx.sample("sigma_a", dist.HalfCauchy(2.0))
    mu_b = qx.sample("mu_b", dist.Normal(0.0, 5.0))
    sigma_b = qx.sample("sigma_b", dist.HalfCauchy(2.0))
    with qx.plate("person", persons):
        theta = qx.sample("theta", dist.Normal(0.0, sigma_theta))
    with qx.plate("item", items):
        a = qx.sample("a", dist.LogNormal(0.0, sigma_a))
        b = qx.sample("b", dist.Normal(mu_b, sigma_b))
        answers = dist.Bernoulli(logits=a[:, None] * (theta - b[:, None])).to_event(1)
        qx.sample("y", answers, obs=y, dims=["person"])


def eight_schools_data(raw: Data) -> dict[str, Any]:
    return {"sigma": np.asarray(raw["sigma"], float), "y": np.asarray(raw["y"], float)}


def radon_data(raw: Data) -> dict[str, Any]:
    return {
        "counties": int(raw["J"]),
        "county": np.asarray(raw["county_idx"]) - 1,
        "x": np.column_stack([raw["log_uppm"], raw["floor_measure"]]),
        "log_radon": np.asarray(raw["log_radon"], dtype=float),
    }


def item_response_data(raw: Data) -> dict[str, Any]:
    return {"items": int(raw["I"]), "persons": int(raw["J"]), "y": np.asarray(raw["y"])}
