"""Gaussian processes: regression, Poisson regression, a log-Gaussian Cox process."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

import quincunx as qx
import quincunx.distributions as dist

from .priors import normal_vector

Data = Mapping[str, Any]


def _gram(x: Array, rho: Array, alpha: Array, diagonal: Array | float) -> Array:
    """The squared-exponential covariance of the points x, with `diagonal` added."""
    kernel = alpha**2 * jnp.exp(-0.5 * ((x[:, None] - x) / rho) ** 2)
    return kernel + diagonal * jnp.eye(x.shape[0])


@qx.model
def gp_regression(x: Array, y: Array | None = None) -> None:
    """y ~ MVN(0, K(rho, alpha) + sigma I)."""
    rho = qx.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = qx.sample("alpha", dist.HalfNormal(2.0))
    sigma = qx.sample("sigma", dist.HalfNormal(1.0))
    triangle = jnp.linalg.cholesky(_gram(x, rho, alpha, sigma))
    qx.sample("y", dist.MultivariateNormal(0.0, scale_tril=triangle), obs=y, dims=["point"])


@qx.model
def gp_poisson(x: Array, counts: Array | None = None) -> None:
    """counts ~ Poisson(exp(f)); f = chol(K(rho, alpha)) z, z ~ N(0, 1)."""
    rho = qx.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = qx.sample("alpha", dist.HalfNormal(2.0))
    z = qx.sample("z", normal_vector(x.shape[0]), dims=["point"])
    f = qx.deterministic("f", jnp.linalg.cholesky(_gram(x, rho, alpha, 1e-10)) @ z)
    with qx.plate("count", x.shape[0]):
        qx.sample("counts", dist.Poisson(jnp.exp(f)), obs=counts)


@qx.model
def log_gaussian_cox(
    distance: Array, extents: Array, level: float, counts: Array | None = None
) -> None:
    """counts ~ Poisson(extents exp(log_intensity)); log_intensity ~ GP(level, Matern-3/2)."""
    amplitude = qx.sample("amplitude", dist.LogNormal(-1.0, 0.5))
    length_scale = qx.sample("length_scale", dist.LogNormal(-1.0, 1.0))
    cells = extents.shape[0]
    u = jnp.sqrt(3.0) * distance / (length_scale + 0.001)
    kernel = (amplitude + 0.001) ** 2 * (1 + u) * jnp.exp(-u)
    triangle = jnp.linalg.cholesky(kernel + 1e-6 * jnp.eye(cells))
    law = dist.MultivariateNormal(jnp.full(cells, level), scale_tril=triangle)
    log_intensity = qx.sample("log_intensity", law, dims=["cell"])
    with qx.plate("count", cells):
        qx.sample("counts", dist.Poisson(extents * jnp.exp(log_intensity)), obs=counts)


def gp_regression_data(raw: Data) -> dict[str, Any]:
    return {"x": np.asarray(raw["x"], dtype=float), "y": np.asarray(raw["y"], dtype=float)}


def gp_poisson_data(raw: Data) -> dict[str, Any]:
    return {"x": np.asarray(raw["x"], dtype=float), "counts": np.asarray(raw["k"])}


def log_gaussian_cox_data(raw: Data) -> dict[str, Any]:
    points = np.asarray(raw["locations"], dtype=float)
    extents, counts = np.asarray(raw["extents"], dtype=float), np.asarray(raw["counts"])
    return {
        "distance": np.linalg.norm(points[:, None] - points, axis=-1),
        "extents": extents,
        "level": float(np.mean(np.log(counts) - np.log(extents))),
        "counts": counts.astype(int),
    }
