"""Generalised linear models: logistic and Poisson."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

import quincunx as qx
import quincunx.distributions as dist

from .priors import FLAT, flat_vector, normal_vector

Data = Mapping[str, Any]


@qx.model
def wells(x: Array, switched: Array | None = None) -> None:
    """switched ~ Bernoulli(logit = alpha + x beta); alpha, beta flat."""
    alpha = qx.sample("alpha", FLAT)
    beta = qx.sample("beta", flat_vector(x.shape[1]), dims=["column"])
    with qx.plate("household", x, switched) as (row, target):
        qx.sample("switched", dist.Bernoulli(logits=alpha + row @ beta), obs=target)


@qx.model
def german_credit(x: Array, y: Array | None = None) -> None:
    """y ~ Bernoulli(logit = x weights); weights ~ N(0, 1)."""
    weights = qx.sample("weights", normal_vector(x.shape[1]), dims=["column"])
    with qx.plate("applicant", x, y) as (row, target):
        qx.sample("y", dist.Bernoulli(logits=row @ weights), obs=target)


@qx.model
def poisson_glmm(year: Array, counts: Array | None = None) -> None:
    """counts ~ Poisson(exp(cubic(year) + eps)); eps ~ N(0, sigma), written eps = sigma z."""
    alpha = qx.sample("alpha", dist.Uniform(-20.0, 20.0))
    beta1 = qx.sample("beta1", dist.Uniform(-10.0, 10.0))
    beta2 = qx.sample("beta2", dist.Uniform(-10.0, 10.0))
    beta3 = qx.sample("beta3", dist.Uniform(-10.0, 10.0))
    sigma = qx.sample("sigma", dist.Uniform(0.0, 5.0))
    with qx.plate("year", year, counts) as (t, target):
        z = qx.sample("z", dist.Normal(0.0, 1.0))
        eps = qx.deterministic("eps", sigma * z)
        trend = alpha + t * (beta1 + t * (beta2 + t * beta3))
        qx.sample("counts", dist.Poisson(jnp.exp(trend + eps)), obs=target)


def wells_data(raw: Data) -> dict[str, Any]:
    distance = np.asarray(raw["dist"], dtype=float)
    arsenic = np.asarray(raw["arsenic"], dtype=float)
    d, a = (distance - distance.mean()) / 100, arsenic - arsenic.mean()
    return {"x": np.column_stack([d, a, d * a]), "switched": np.asarray(raw["switched"])}


def german_credit_data(raw: Data) -> dict[str, Any]:
    x = np.asarray(raw["x"], dtype=float)
    x = (x - x.mean(0)) / x.std(0)
    return {"x": np.column_stack([x, np.ones(len(x))]), "y": np.asarray(raw["y"])}


def poisson_glmm_data(raw: Data) -> dict[str, Any]:
    return {"year": np.asarray(raw["year"], dtype=float), "counts": np.asarray(raw["C"])}
