r"""Bayesian lasso: a regression whose prior has a kink at zero.

\[ \alpha \sim N(0, 1), \quad \tau \sim \mathrm{HalfCauchy}(1), \quad
   \beta_j \sim \mathrm{Laplace}(0, \tau), \quad \sigma \sim \mathrm{HalfN}(1), \quad
   y_n \sim N(\alpha + x_n \cdot \beta, \sigma^2). \]

Data: progression of diabetes in 442 patients against ten measurements, from scikit-learn (B. Efron
et al., "Least angle regression", Annals of Statistics 32, 2004); \(y\) and the columns of \(x\)
standardised. Reference: a run of Stan 2.35 NUTS on this model, 10 000 nearly independent draws.
"""

import numpy as np

from quincunx import distributions as dist
from quincunx.engine import model, plate, sample
from quincunx.models._data import figures, package, standardise
from quincunx.models._registry import Reference, Worked, register


@model
def lasso(X, y=None):
    """Laplace weights with a common unknown scale."""
    alpha = sample("alpha", dist.Normal(0.0, 1.0))
    tau = sample("tau", dist.HalfCauchy(1.0))
    prior = dist.Laplace(0.0, tau).expand([X.shape[1]]).to_event(1)
    beta = sample("beta", prior, dims=["feature"])
    sigma = sample("sigma", dist.HalfNormal(1.0))
    with plate("row", X, y) as (x, t):
        sample("y", dist.Normal(alpha + x @ beta, sigma), obs=t)


@register
def diabetes_lasso() -> Worked:
    """Bayesian lasso of diabetes progression on ten standardised measurements."""
    bunch = package("sklearn.datasets").load_diabetes()
    reference = Reference(
        source="a run of Stan 2.35 NUTS, 10 000 nearly independent draws",
        mean={
            "alpha": np.array(-0.000486),
            "beta": figures("""
                -0.00235 -0.13415  0.32360  0.19106 -0.13599
                 0.01911 -0.08537  0.06390  0.33137  0.04017
            """),
            "tau": np.array(0.17992),
            "sigma": np.array(0.70559),
        },
        sd={
            "alpha": np.array(0.03338),
            "beta": figures("""
                0.03378 0.03818 0.04136 0.04056 0.13301
                0.11093 0.07769 0.07702 0.06805 0.03830
            """),
            "tau": np.array(0.07251),
            "sigma": np.array(0.02404),
        },
        effective_size=1e4,
    )
    data = {"X": standardise(bunch.data), "y": standardise(bunch.target)}
    return Worked(lasso, data, reference)
