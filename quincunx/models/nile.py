r"""Nile: the local level model, the smallest state space model.

\[ y_t \sim N(\ell_t, \sigma_\epsilon^2), \qquad \ell_{t+1} = \ell_t + \sigma_\eta z_t, \quad
   z_t \sim N(0, 1), \]

with \(\ell_1 \sim N(10, 3^2)\), \(\sigma_\epsilon \sim \mathrm{HalfN}(2)\),
\(\sigma_\eta \sim \mathrm{HalfN}(1)\). In the code `observation` is \(\sigma_\epsilon\), `innovation` is
\(\sigma_\eta\), `start` is \(\ell_1\) and `level` the path.

Data: yearly flow of the Nile at Aswan, 1871-1970, in 10^10 cubic metres, from statsmodels (G. Cobb,
Biometrika 65, 1978; in the public domain). Reference: exact, by the Kalman smoother at each point of a
grid over the two scales.
"""

import jax.numpy as jnp
import numpy as np

from quincunx import distributions as dist
from quincunx.engine import deterministic, model, plate, sample
from quincunx.models._data import figures, package
from quincunx.models._registry import Reference, Worked, register


@model
def _local_level(years, y=None):
    observation = sample("observation", dist.HalfNormal(2.0))
    innovation = sample("innovation", dist.HalfNormal(1.0))
    start = sample("start", dist.Normal(10.0, 3.0))
    with plate("change", years - 1):
        z = sample("z", dist.Normal(0.0, 1.0))
    path = start + innovation * jnp.concatenate([jnp.zeros(1, z.dtype), jnp.cumsum(z)])
    with plate("year", years):
        level = deterministic("level", path)
        sample("y", dist.Normal(level, observation), obs=y)


@register
def nile() -> Worked:
    """Local level model of the yearly flow of the Nile (100 years)."""
    frame = package("statsmodels.datasets").nile.load_pandas().data
    flow = frame["volume"].to_numpy(float) / 100.0
    reference = Reference(source="TODO")
    return Worked(_local_level, {"years": len(flow), "y": flow}, reference)
