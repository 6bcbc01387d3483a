"""Time series: autoregression, GARCH, a random walk seen through noise."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import cho_solve, solve_triangular

import quincunx as qx
import quincunx.distributions as dist

from .priors import FLAT, FLAT_POSITIVE, normal_vector

Data = Mapping[str, Any]


@qx.model
def autoregression(lags: Array, y: Array | None = None) -> None:
    """y_t ~ N(alpha + sum_k beta_k y_{t-k}, sigma), the first values given."""
    alpha = qx.sample("alpha", dist.Normal(0.0, 10.0))
    beta = qx.sample("beta", normal_vector(lags.shape[1], 10.0), dims=["lag"])
    sigma = qx.sample("sigma", dist.HalfCauchy(2.5))
    with qx.plate("time", lags, y) as (past, target):
        qx.sample("y", dist.Normal(alpha + past @ beta, sigma), obs=target)


@qx.model
def garch(y: Array, first_scale: float) -> None:
    """y_t ~ N(mu, s_t), s_t^2 = alpha0 + alpha1 (y_{t-1} - mu)^2 + beta1 s_{t-1}^2.

    mu and alpha0 are flat, (alpha1, beta1) uniform on the triangle alpha1 + beta1 < 1.
    """
    mu = qx.sample("mu", FLAT)
    alpha0 = qx.sample("alpha0", FLAT_POSITIVE)
    share = qx.sample("share", dist.Dirichlet(jnp.ones(3)))
    alpha1 = qx.deterministic("alpha1", share[0])
    beta1 = qx.deterministic("beta1", share[1])

    def step(variance: Array, shock: Array) -> tuple[Array, Array]:
        following = alpha0 + alpha1 * shock**2 + beta1 * variance
        return following, following

    first = jnp.full((), first_scale**2, dtype=y.dtype)
    _, later = jax.lax.scan(step, first, y[:-1] - mu)
    scale = jnp.sqrt(jnp.concatenate([first[None], later]))
    with qx.plate("time", y.shape[0]):
        qx.sample("y", dist.Normal(mu, scale), obs=y)


@qx.model
def brownian_motion(length: int, seen: Array, observed: Array | None = None) -> None:
    """locs a Gaussian walk from 0 with steps si, seen with noise so at the times `seen`.

    Given (si, so) the law of `observed` is Gaussian, and so is that of locs given it:
    locs = mean + L'^-1 z, with z ~ N(0, 1) and L L' the conditional precision.
    """
    si = qx.sample("innovation_noise_scale", dist.LogNormal(0.0, 2.0))
    so = qx.sample("observation_noise_scale", dist.LogNormal(0.0, 2.0))
    shared = jnp.minimum(seen[:, None], seen) + 1.0
    noise = jnp.eye(seen.shape[0]) * so**2
    law = dist.MultivariateNormal(0.0, scale_tril=jnp.linalg.cholesky(si**2 * shared + noise))
    observed = qx.sample("observed", law, obs=observed)

    steps = jnp.eye(length) - jnp.eye(length, k=-1)
    weight = jnp.zeros(length).at[seen].set(so**-2)
    triangle = jnp.linalg.cholesky(steps.T @ steps / si**2 + jnp.diag(weight))
    mean = cho_solve((triangle, True), jnp.zeros(length).at[seen].set(observed / so**2))
    z = qx.sample("z", normal_vector(length))
    locs = mean + solve_triangular(triangle, z, lower=True, trans=1)
    qx.deterministic("locs", locs)


def autoregression_data(raw: Data) -> dict[str, Any]:
    y, order = np.asarray(raw["y"], dtype=float), int(raw["K"])
    lags = [y[order - k : len(y) - k] for k in range(1, order + 1)]
    return {"lags": np.column_stack(lags), "y": y[order:]}


def garch_data(raw: Data) -> dict[str, Any]:
    return {"y": np.asarray(raw["y"], dtype=float), "first_scale": float(raw["sigma1"])}


def brownian_motion_data(raw: Data) -> dict[str, Any]:
    locs = np.array(raw["observed_locs"], dtype=float)
    seen = np.flatnonzero(~np.isnan(locs))
    return {"length": len(locs), "seen": seen, "observed": locs[seen]}
