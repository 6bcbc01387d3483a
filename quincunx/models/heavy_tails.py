r"""Spherical targets with polynomial tails.

\[ p(x) = \frac{\Gamma((\nu + d)/2)}{\Gamma(\nu/2) (\nu\pi)^{d/2}}
          \Big(1 + \frac{|x|^2}{\nu}\Big)^{-(\nu + d)/2}, \]

the multivariate Student-t law; \(\nu = 1\) is the multivariate Cauchy law, with density
proportional to \((1 + |x|^2)^{-(d+1)/2}\). Known: exact draws \(x = z \sqrt{\nu / c}\) with \(z\)
standard normal and \(c \sim \chi^2_\nu\); evidence 1; mean 0 where \(\nu > 1\), and standard
deviation \(\sqrt{\nu / (\nu - 2)}\) where \(\nu > 2\). The Cauchy law has no moments: judge it by
quantiles, for \(|x|^2 / d\) has the F law with \((d, \nu)\) degrees of freedom.
"""

from math import lgamma, log, pi, sqrt

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from quincunx.engine import from_log_density
from quincunx.models._registry import Reference, Worked, register


@register
def cauchy(*, dim: int = 100) -> Worked:
    """The multivariate Cauchy law, whose mean does not exist."""
    return student_t(dim=dim, df=1.0)


@register
def student_t(*, dim: int = 10, df: float = 5.0) -> Worked:
    """The multivariate Student-t law with `df` degrees of freedom."""
    if dim < 1 or df <= 0:
        raise ValueError(f"need dim >= 1 and df > 0, got {dim} and {df}")
    log_norm = lgamma(0.5 * (df + dim)) - lgamma(0.5 * df) - 0.5 * dim * log(df * pi)

    def log_density(x: Float[Array, " dim"]) -> Float[Array, ""]:
        return log_norm - 0.5 * (df + dim) * jnp.log1p(jnp.sum(x**2) / df)

    def draws(key: Array, n: int) -> dict[str, Array]:
        normal_key, scale_key = jax.random.split(key)
        z = jax.random.normal(normal_key, (n, dim))
        if df == 1:
            scale = 1.0 / jnp.abs(jax.random.normal(scale_key, (n, 1)))
        else:
            scale = jnp.sqrt(0.5 * df / jax.random.gamma(scale_key, 0.5 * df, (n, 1)))
        return {"x": z * scale}

    reference = Reference(
        source="exact",
        mean={"x": np.zeros(dim)} if df > 1 else {},
        sd={"x": np.full(dim, sqrt(df / (df - 2)))} if df > 2 else {},
        log_evidence=0.0,
        draws=draws,
    )
    return Worked(from_log_density(log_density, np.zeros(dim)), {}, reference)
