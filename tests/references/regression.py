"""Linear regressions: Gaussian and Student-t noise, flat, Gaussian and Laplace priors."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jax import Array

import quincunx as qx
import quincunx.distributions as dist

from .priors import FLAT_POSITIVE, flat_vector, normal_vector

Data = Mapping[str, Any]


def _design(*columns: Any) -> np.ndarray:
    return np.column_stack(np.broadcast_arrays(*map(np.asarray, columns))).astype(float)


def _response(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=float)


@qx.model
def flat_regression(x: Array, y: Array | None = None) -> None:
    """y ~ N(x beta, sigma); beta flat, sigma flat on (0, inf)."""
    beta = qx.sample("beta", flat_vector(x.shape[1]), dims=["column"])
    sigma = qx.sample("sigma", FLAT_POSITIVE)
    with qx.plate("row", x, y) as (row, target):
        qx.sample("y", dist.Normal(row @ beta, sigma), obs=target)


@qx.model
def kid_score(x: Array, y: Array | None = None) -> None:
    """y ~ N(x beta, sigma); beta flat, sigma ~ HalfCauchy(2.5)."""
    beta = qx.sample("beta", flat_vector(x.shape[1]), dims=["column"])
    sigma = qx.sample("sigma", dist.HalfCauchy(2.5))
    with qx.plate("row", x, y) as (row, target):
        qx.sample("y", dist.Normal(row @ beta, sigma), obs=target)


@qx.model
def gaussian_priors(x: Array, y: Array | None = None) -> None:
    """y ~ N(x beta, sigma); beta_d ~ N(0, 10), sigma ~ HalfN(10)."""
    beta = qx.sample("beta", normal_vector(x.shape[1], 10.0), dims=["column"])
    sigma = qx.sample("sigma", dist.HalfNormal(10.0))
    with qx.plate("row", x, y) as (row, target):
        qx.sample("y", dist.Normal(row @ beta, sigma), obs=target)


@qx.model
def bayes_lasso(x: Array, y: Array | None = None) -> None:
    """y ~ N(alpha + x beta, sigma); beta_j ~ Laplace(0, tau), tau ~ HalfCauchy(1)."""
    alpha = qx.sample("alpha", dist.Normal(0.0, 1.0))
    tau = qx.sample("tau", dist.HalfCauchy(1.0))
    law = dist.Laplace(0.0, tau).expand([x.shape[1]]).to_event(1)
    beta = qx.sample("beta", law, dims=["column"])
    sigma = qx.sample("sigma", dist.HalfNormal(1.0))
    with qx.plate("row", x, y) as (row, target):
        qx.sample("y", dist.Normal(alpha + row @ beta, sigma), obs=target)


@qx.model
def student_t(x: Array, y: Array | None = None) -> None:
    """y ~ St(nu, alpha + x beta, sigma); sigma ~ HalfCauchy(5), nu ~ Gamma(2, rate 0.1)."""
    alpha = qx.sample("alpha", dist.Normal(0.0, 50.0))
    beta = qx.sample("beta", normal_vector(x.shape[1], 20.0), dims=["column"])
    sigma = qx.sample("sigma", dist.HalfCauchy(5.0))
    nu = qx.sample("nu", dist.Gamma(2.0, 0.1))
    with qx.plate("row", x, y) as (row, target):
        qx.sample("y", dist.StudentT(nu, alpha + row @ beta, sigma), obs=target)


def kid_score_data(raw: Data) -> dict[str, Any]:
    hs, iq = np.asarray(raw["mom_hs"]), np.asarray(raw["mom_iq"])
    return {"x": _design(1.0, hs, iq, hs * iq), "y": _response(raw["kid_score"])}


def log_earnings_data(raw: Data) -> dict[str, Any]:
    height, male = np.asarray(raw["height"]), np.asarray(raw["male"])
    return {"x": _design(1.0, height, male, height * male), "y": np.log(raw["earn"])}


def earnings_data(raw: Data) -> dict[str, Any]:
    return {"x": _design(1.0, raw["height"]), "y": _response(raw["earn"])}


def party_data(raw: Data) -> dict[str, Any]:
    age = np.asarray(raw["age_discrete"])
    x = _design(
        1.0,
        raw["real_ideo"],
        raw["race_adj"],
        age == 2,
        age == 3,
        age == 4,
        raw["educ1"],
        raw["gender"],
        raw["income"],
    )
    return {"x": x, "y": _response(raw["partyid7"])}


def mesquite_data(raw: Data) -> dict[str, Any]:
    first, second = np.log(raw["diam1"]), np.log(raw["diam2"])
    canopy, total = np.log(raw["canopy_height"]), np.log(raw["total_height"])
    area, shape = first + second, first - second
    x = _design(1.0, area + canopy, area, shape, total, raw["group"])
    return {"x": x, "y": np.log(raw["weight"])}


def blr_data(raw: Data) -> dict[str, Any]:
    return {"x": _response(raw["X"]), "y": _response(raw["y"])}


def standardised_data(raw: Data) -> dict[str, Any]:
    return {"x": _response(raw["x"]), "y": _response(raw["y"])}
