"""Linear regression on 24 ill-conditioned columns, through its sufficient statistics."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

import quincunx as qx
import quincunx.distributions as dist

from .priors import flat_vector


@qx.model
def diamonds(
    centre: Array,
    spread: Array,
    triangle: Array,
    rows: int,
    mean: Array | float | None = None,
    projection: Array | None = None,
    residual: Array | float | None = None,
) -> None:
    """y ~ N(Intercept + x b, sigma) with x = q r centred; b ~ N(0, 1), b = centre + spread w.

    The rotated response splits into mean(y) ~ N(Intercept, sigma / sqrt(n)), q'y ~ N(r b, sigma)
    and the residual sum of squares ~ sigma^2 chi^2(n - 1 - columns).
    """
    columns = triangle.shape[1]
    intercept = qx.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0))
    sigma = qx.sample("sigma", dist.FoldedDistribution(dist.StudentT(3.0, 0.0, 10.0)))
    whitened = qx.sample("whitened", flat_vector(columns))
    b = qx.deterministic("b", centre + spread @ whitened)
    qx.factor("prior", dist.Normal(0.0, 1.0).log_prob(b).sum())

    qx.sample("mean", dist.Normal(intercept, sigma / jnp.sqrt(rows)), obs=mean)
    with qx.plate("column", columns):
        qx.sample("projection", dist.Normal(triangle @ b, sigma), obs=projection)
    chi2 = dist.Gamma((rows - 1 - columns) / 2, 0.5 / sigma**2)
    qx.sample("residual", chi2, obs=residual)


def diamonds_data(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The QR factor of the centred columns, and the whitening of b at the residual variance."""
    y = np.asarray(raw["Y"], dtype=float)
    x = np.asarray(raw["X"], dtype=float)[:, 1:]
    q, triangle = np.linalg.qr(x - x.mean(0))
    mean, projection = y.mean(), q.T @ y
    residual = np.sum((y - mean - q @ projection) ** 2)
    variance = residual / (len(y) - 1 - x.shape[1])
    precision = triangle.T @ triangle / variance + np.eye(x.shape[1])
    return {
        "centre": np.linalg.solve(precision, triangle.T @ projection / variance),
        "spread": np.linalg.inv(np.linalg.cholesky(precision)).T,
        "triangle": triangle,
        "rows": len(y),
        "mean": mean,
        "projection": projection,
        "residual": residual,
    }
