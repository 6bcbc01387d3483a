r"""Eight schools: the standard hierarchical model, and the standard trap of the centred form.

\[ \mu \sim N(0, 5^2), \quad \tau \sim \mathrm{HalfCauchy}(5), \quad
   \theta_j \sim N(\mu, \tau^2), \quad y_j \sim N(\theta_j, \sigma_j^2), \]

with known \(\sigma_j\). Non-centred: \(\theta_j = \mu + \tau z_j\), \(z_j \sim N(0, 1)\).

Data: effects of coaching on test scores, D. Rubin, "Estimation in parallel randomized
experiments", Journal of Educational Statistics 6, 1981; eight published numbers and their standard
errors, typed in. Reference: posteriordb (github.com/stan-dev/posteriordb),
`eight_schools-eight_schools_noncentered`, 10 000 nearly independent draws of Stan's NUTS; both
forms have this one posterior.
"""

import numpy as np

from quincunx import distributions as dist
from quincunx.engine import deterministic, model, plate, sample
from quincunx.models._data import figures
from quincunx.models._registry import Reference, Worked, register


@model
def noncentred_form(sigma, y=None):
    """The schools' effects as shifted and scaled standard normals."""
    mu = sample("mu", dist.Normal(0.0, 5.0))
    tau = sample("tau", dist.HalfCauchy(5.0))
    with plate("school", len(sigma)):
        z = sample("z", dist.Normal(0.0, 1.0))
        theta = deterministic("theta", mu + tau * z)
        sample("y", dist.Normal(theta, sigma), obs=y)


@model
def centred_form(sigma, y=None):
    """The schools' effects drawn directly; a funnel in tau."""
    mu = sample("mu", dist.Normal(0.0, 5.0))
    tau = sample("tau", dist.HalfCauchy(5.0))
    with plate("school", len(sigma)):
        theta = sample("theta", dist.Normal(mu, tau))
        sample("y", dist.Normal(theta, sigma), obs=y)


@register
def eight_schools(*, centred: bool = False) -> Worked:
    """Eight schools, hierarchical normal means; `centred=True` gives the form with a funnel."""
    data = {
        "sigma": figures("15 10 16 11 9 11 10 18"),
        "y": figures("28 8 -3 7 -1 1 18 12"),
    }
    reference = Reference(
        source="posteriordb, eight_schools-eight_schools_noncentered",
        mean={
            "mu": np.array(4.41052),
            "tau": np.array(3.60206),
            "theta": figures("6.15050 4.93958 3.90591 4.79602 3.61444 4.05115 6.31717 4.88400"),
        },
        sd={
            "mu": np.array(3.30930),
            "tau": np.array(3.19848),
            "theta": figures("5.61586 4.64558 5.28071 4.77094 4.61472 4.79625 5.00286 5.31769"),
        },
        effective_size=1e4,
    )
    return Worked(centred_form if centred else noncentred_form, data, reference)
