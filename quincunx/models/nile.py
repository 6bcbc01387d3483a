r"""Nile: the local level model, the smallest state space model.

\[ y_t \sim N(\ell_t, \sigma_\epsilon^2), \qquad \ell_{t+1} = \ell_t + \sigma_\eta z_t, \quad
   z_t \sim N(0, 1), \]

with \(\ell_1 \sim N(10, 3^2)\), \(\sigma_\epsilon \sim \mathrm{HalfN}(2)\), \(\sigma_\eta \sim
\mathrm{HalfN}(1)\). In the code `observation` is \(\sigma_\epsilon\), `innovation` is
\(\sigma_\eta\), `start` is \(\ell_1\) and `level` the path.

Data: yearly flow of the Nile at Aswan, 1871-1970, in 10^10 cubic metres, from statsmodels (G.
Cobb, Biometrika 65, 1978; in the public domain). Reference: exact, by the Kalman smoother at each
point of a grid over the two scales.
"""

import jax.numpy as jnp
import numpy as np

from quincunx import distributions as dist
from quincunx.engine import deterministic, model, plate, sample
from quincunx.models._data import figures, package
from quincunx.models._registry import Reference, Worked, register


@model
def local_level(years, y=None):
    """A random walk seen with noise, written with independent increments."""
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
    reference = Reference(
        source="exact up to two-dimensional quadrature",
        mean={
            "observation": np.array(1.2215),
            "innovation": np.array(0.4374),
            "start": np.array(11.0580),
            "level": figures("""
                11.0580 11.0644 10.9875 11.1271 11.1192 11.0441 10.8819 11.1554 11.2626 11.0101
                10.7111 10.5293 10.5231 10.4144 10.3691 10.3368 10.4088 10.2459 10.4207 10.7156
                10.9064 11.1023 11.1715 11.2295 11.1346 10.8576 10.4082  9.9997  9.4363  9.1255
                 8.9027  8.6753  8.6935  8.5755  8.4735  8.5810  8.5804  8.8382  8.8926  8.7144
                 8.3943  8.0792  7.8622  8.1279  8.3477  8.7756  8.8421  8.5954  8.4057  8.3358
                 8.2785  8.3087  8.3123  8.2618  8.1481  8.2079  8.2169  8.3395  8.5209  8.4088
                 8.4262  8.5376  8.6324  8.7650  8.8081  8.7084  8.5835  8.5277  8.2279  8.0001
                 7.9435  8.0902  8.1591  8.2204  8.3986  8.6390  8.6113  8.5960  8.5625  8.5416
                 8.4567  8.5185  8.7293  8.9943  9.0325  9.0626  8.9763  9.0545  9.1106  9.0731
                 9.1913  9.1633  9.1691  9.2236  8.9121  8.5822  8.4286  8.1425  7.9865  7.9342
            """),
        },
        sd={
            "observation": np.array(0.1264),
            "innovation": np.array(0.1592),
            "start": np.array(0.6395),
            "level": figures("""
                0.6395 0.5764 0.5458 0.5344 0.5257 0.5158 0.5222 0.5313 0.5742 0.5212
                0.5088 0.5198 0.5100 0.5168 0.5178 0.5199 0.5101 0.5488 0.5193 0.5121
                0.5350 0.5831 0.6102 0.6582 0.6658 0.6180 0.5388 0.5103 0.5331 0.5509
                0.5575 0.5816 0.5387 0.5444 0.5547 0.5201 0.5169 0.5231 0.5449 0.5202
                0.5129 0.5672 0.6444 0.5430 0.5108 0.5582 0.5724 0.5124 0.5070 0.5084
                0.5109 0.5069 0.5065 0.5079 0.5212 0.5126 0.5146 0.5062 0.5143 0.5062
                0.5073 0.5059 0.5098 0.5272 0.5378 0.5211 0.5101 0.5132 0.5141 0.5528
                0.5622 0.5245 0.5180 0.5163 0.5059 0.5230 0.5101 0.5065 0.5054 0.5069
                0.5228 0.5214 0.5059 0.5233 0.5186 0.5174 0.5086 0.5112 0.5157 0.5123
                0.5288 0.5271 0.5373 0.5792 0.5253 0.5218 0.5343 0.5851 0.6400 0.7090
            """),
        },
        log_evidence=-182.4542,
    )
    return Worked(local_level, {"years": len(flow), "y": flow}, reference)
