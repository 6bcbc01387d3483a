r"""Robust regression: Student-t noise with unknown degrees of freedom.

\[ \alpha \sim N(0, 50^2), \quad \beta_j \sim N(0, 20^2), \quad \sigma \sim \mathrm{HalfCauchy}(5),
   \quad \nu \sim \mathrm{Gamma}(2, 0.1), \quad
   y_n \sim \mathrm{St}(\nu, \alpha + x_n \cdot \beta, \sigma). \]

Data: ammonia lost from the stack of a plant on 21 days, against air flow, water temperature and
acid concentration, from statsmodels (K. Brownlee, 1960; in the public domain); the columns of
\(x\) standardised. Reference: a run of Stan 2.35 NUTS on this model, 10 000 nearly independent
draws.
"""

import numpy as np

from quincunx import distributions as dist
from quincunx.engine import model, plate, sample
from quincunx.models._data import figures, package, standardise
from quincunx.models._registry import Reference, Worked, register


@model
def robust_regression(X, y=None):
    """Student-t outcomes, linear in the features, on a data plate of days."""
    alpha = sample("alpha", dist.Normal(0.0, 50.0))
    prior = dist.Normal(0.0, 20.0).expand([X.shape[1]]).to_event(1)
    beta = sample("beta", prior, dims=["feature"])
    sigma = sample("sigma", dist.HalfCauchy(5.0))
    nu = sample("nu", dist.Gamma(2.0, 0.1))
    with plate("day", X, y) as (x, loss):
        sample("y", dist.StudentT(nu, alpha + x @ beta, sigma), obs=loss)


@register
def stackloss() -> Worked:
    """Student-t regression of stack loss on three plant settings (21 days)."""
    frame = package("statsmodels.datasets").stackloss.load_pandas().data
    columns = ["AIRFLOW", "WATERTEMP", "ACIDCONC"]
    data = {
        "X": standardise(frame[columns].to_numpy(float)),
        "y": frame["STACKLOSS"].to_numpy(float),
    }
    reference = Reference(
        source="a run of Stan 2.35 NUTS, 10 000 nearly independent draws",
        mean={
            "alpha": np.array(17.5432),
            "beta": figures("6.84479 3.44593 -0.73310"),
            "sigma": np.array(3.08951),
            "nu": np.array(18.7838),
        },
        sd={
            "alpha": np.array(0.74130),
            "beta": figures("1.35134 1.30909 0.81058"),
            "sigma": np.array(0.70940),
            "nu": np.array(13.7318),
        },
        effective_size=1e4,
    )
    return Worked(robust_regression, data, reference)
