r"""Lynx and hare: a differential equation with unknown rates, start and noise.

\[ \dot u = (\theta_1 - \theta_2 v) u, \qquad \dot v = (-\theta_3 + \theta_4 u) v, \qquad
   (u, v)(0) = z_0, \]
\[ y_{0k} \sim \mathrm{LogN}(\log z_{0k}, \sigma_k), \qquad
   y_{tk} \sim \mathrm{LogN}(\log z_k(t), \sigma_k), \quad t = 1, \dots, 20, \]

with \(\theta_1, \theta_3 \sim N(1, 0.5^2)\) and \(\theta_2, \theta_4 \sim N(0.05, 0.05^2)\), all
cut to the positive, \(z_{0k} \sim \mathrm{LogN}(\log 10, 1)\), \(\sigma_k \sim \mathrm{LogN}(-1,
1)\). The equation is solved in \(\log u, \log v\) by ten classical Runge-Kutta steps a year.

Data: pelts (thousands) collected by the Hudson's Bay Company, 1900-1920, as used in B. Carpenter's
Stan case study "Predator-prey population dynamics", 2018; published figures, typed in. Columns:
hare (prey), lynx (predator). Reference: posteriordb, `hudson_lynx_hare-lotka_volterra`, 10 000
nearly independent draws of Stan's NUTS.
"""

from math import log

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from quincunx import distributions as dist
from quincunx.engine import model, plate, sample
from quincunx.models._data import figures
from quincunx.models._registry import Reference, Worked, register

_STEPS_A_YEAR = 10


def _log_populations(
    theta: Float[Array, "4"], start: Float[Array, "2"], years: int
) -> Float[Array, "years 2"]:
    """Logarithms of both populations after 0, 1, ..., years - 1 years."""
    h = 1.0 / _STEPS_A_YEAR

    def slope(state):
        u, v = jnp.exp(state)
        return jnp.stack([theta[0] - theta[1] * v, theta[3] * u - theta[2]])

    def step(state, _):
        k1 = slope(state)
        k2 = slope(state + 0.5 * h * k1)
        k3 = slope(state + 0.5 * h * k2)
        k4 = slope(state + h * k3)
        return state + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4), None

    def year(state, _):
        return jax.lax.scan(step, state, None, length=_STEPS_A_YEAR)[0], state

    return jax.lax.scan(year, jnp.log(start), None, length=years)[1]


@model
def lotka_volterra(years, y=None):
    """Populations that follow the equations, seen with log-normal errors."""
    loc, scale = jnp.array([1.0, 0.05, 1.0, 0.05]), jnp.array([0.5, 0.05, 0.5, 0.05])
    rates = dist.TruncatedNormal(loc, scale, low=0.0).to_event(1)
    theta = sample("theta", rates, dims=["rate"])
    start = dist.LogNormal(log(10.0), 1.0).expand([2]).to_event(1)
    z_init = sample("z_init", start, dims=["species"])
    noise = dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1)
    sigma = sample("sigma", noise, dims=["species"])
    centre = _log_populations(theta, z_init, years)
    with plate("year", years):
        sample("y", dist.LogNormal(centre, sigma[None, :]).to_event(1), obs=y, dims=["species"])


@register
def lynx_hare() -> Worked:
    """Lotka-Volterra equations for twenty years of lynx and hare pelts."""
    pelts = figures("""
        30.0  4.0 47.2  6.1 70.2  9.8 77.4 35.2 36.3 59.4 20.6 41.7 18.1 19.0 21.4 13.0 22.0  8.3
        25.4  9.1 27.1  7.4 40.3  8.0 57.0 12.3 76.6 19.5 52.3 45.7 19.5 51.1 11.2 29.7  7.6 15.8
        14.6  9.7 16.2 10.1 24.7  8.6
    """).reshape(21, 2)
    reference = Reference(
        source="posteriordb, hudson_lynx_hare-lotka_volterra",
        mean={
            "theta": figures("0.546865 0.0277473 0.800095 0.0240859"),
            "z_init": figures("34.0352 5.93590"),
            "sigma": figures("0.248057 0.251017"),
        },
        sd={
            "theta": figures("0.0630548 0.00415472 0.0893702 0.00352809"),
            "z_init": figures("2.91690 0.530552"),
            "sigma": figures("0.0432627 0.0435904"),
        },
        effective_size=1e4,
    )
    return Worked(lotka_volterra, {"years": len(pelts), "y": pelts}, reference)
