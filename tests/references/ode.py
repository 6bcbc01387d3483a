"""An ordinary differential equation: Lotka-Volterra for the lynx and the hare."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import quincunx as qx
import quincunx.distributions as dist

STEPS_PER_YEAR = 10


def _yearly(log_start: Array, theta: Array, years: int) -> Array:
    """Log populations at the end of each year, by the classical Runge-Kutta rule."""
    h = 1.0 / STEPS_PER_YEAR

    def slope(log_state: Array) -> Array:
        prey, predator = jnp.exp(log_state)
        return jnp.stack([theta[0] - theta[1] * predator, theta[3] * prey - theta[2]])

    def step(state: Array, _: None) -> tuple[Array, None]:
        k1 = slope(state)
        k2 = slope(state + h / 2 * k1)
        k3 = slope(state + h / 2 * k2)
        k4 = slope(state + h * k3)
        return state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

    def year(state: Array, _: None) -> tuple[Array, Array]:
        state, _ = jax.lax.scan(step, state, None, length=STEPS_PER_YEAR)
        return state, state

    return jax.lax.scan(year, log_start, None, length=years)[1]


@qx.model
def lotka_volterra(years: int, first: Array | None = None, y: Array | None = None) -> None:
    """first ~ LogN(log z(0), sigma), y_n ~ LogN(log z(n), sigma), z the predator-prey flow."""
    rates = jnp.array([1.0, 0.05, 1.0, 0.05])
    law = dist.TruncatedNormal(rates, jnp.array([0.5, 0.05, 0.5, 0.05]), low=0.0)
    theta = qx.sample("theta", law.to_event(1), dims=["rate"])
    log_ten = jnp.full(2, jnp.log(10.0))
    z_init = qx.sample("z_init", dist.LogNormal(log_ten, 1.0).to_event(1), dims=["species"])
    sigma = qx.sample("sigma", dist.LogNormal(-jnp.ones(2), 1.0).to_event(1), dims=["species"])
    start = jnp.log(z_init)
    path = _yearly(start, theta, years)
    qx.sample("first", dist.LogNormal(start, sigma).to_event(1), obs=first, dims=["species"])
    with qx.plate("year", years):
        qx.sample("y", dist.LogNormal(path, sigma).to_event(1), obs=y, dims=["species"])


def lotka_volterra_data(raw: Mapping[str, Any]) -> dict[str, Any]:
    first, y = np.asarray(raw["y_init"], dtype=float), np.asarray(raw["y"], dtype=float)
    return {"years": len(y), "first": first, "y": y}


def lotka_volterra_start(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The small-oscillation solution with a ten-year cycle about the mean populations.

    About one chain in ten that starts at random stays in a minor mode of a shorter cycle.
    """
    first = np.asarray(raw["y_init"], dtype=float)
    prey, predator = np.vstack([first, raw["y"]]).mean(0)
    rate = 2 * np.pi / 10
    theta = np.array([rate, rate / predator, rate, rate / prey])
    return {"theta": theta, "z_init": first, "sigma": np.full(2, 0.5)}
