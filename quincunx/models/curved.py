r"""Targets whose local scale or direction changes from place to place.

Neal's funnel (R. Neal, "Slice sampling", Annals of Statistics 31, 2003), in \(d\) dimensions:

\[ v \sim N(0, 3^2), \qquad x_i \mid v \sim N(0, e^v), \quad i = 1, \dots, d - 1, \]

where 9 and \(e^v\) are variances. Banana (H. Haario, E. Saksman, J. Tamminen, Computational
Statistics 14, 1999), with scale \(s\) and curvature \(b\):

\[ x \sim N(0, s^2), \qquad y \mid x \sim N(b (x^2 - s^2), 1). \]

Known of both: evidence 1 (both are normalised), exact draws, and the moments: \(\mathrm{Var}\, x_i
= e^{9/2}\) in the funnel (dominated by rare draws, so that an estimate of it says little),
\(\mathrm{Var}\, y = 1 + 2 b^2 s^4\) in the banana, all means 0.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from quincunx import distributions as dist
from quincunx.engine import model, plate, sample
from quincunx.models._registry import Reference, Worked, register

_FUNNEL_SD = 3.0


@model
def neal_funnel(dim):
    """A scale, and coordinates on that scale."""
    v = sample("v", dist.Normal(0.0, _FUNNEL_SD))
    with plate("leaf", dim - 1):
        sample("x", dist.Normal(0.0, jnp.exp(0.5 * v)))


@model
def bent_gaussian(curvature, scale):
    """A Gaussian coordinate, and one scattered about a parabola in it."""
    x = sample("x", dist.Normal(0.0, scale))
    sample("y", dist.Normal(curvature * (x**2 - scale**2), 1.0))


@register
def funnel(*, dim: int = 10) -> Worked:
    """Neal's funnel: a scale v ~ N(0, variance 9) over dim - 1 coordinates x_i ~ N(0, exp(v))."""
    if dim < 2:
        raise ValueError(f"need dim >= 2, got {dim}")

    def draws(key: Array, n: int) -> dict[str, Array]:
        v_key, x_key = jax.random.split(key)
        v = _FUNNEL_SD * jax.random.normal(v_key, (n,))
        x = jnp.exp(0.5 * v)[:, None] * jax.random.normal(x_key, (n, dim - 1))
        return {"v": v, "x": x}

    reference = Reference(
        source="exact",
        mean={"v": np.zeros(()), "x": np.zeros(dim - 1)},
        sd={"v": np.array(_FUNNEL_SD), "x": np.full(dim - 1, np.exp(_FUNNEL_SD**2 / 4))},
        log_evidence=0.0,
        draws=draws,
    )
    return Worked(neal_funnel, {"dim": dim}, reference)


@register
def banana(*, curvature: float = 0.03, scale: float = 10.0) -> Worked:
    """A Gaussian in the plane, bent along a parabola."""
    if scale <= 0:
        raise ValueError(f"need scale > 0, got {scale}")

    def draws(key: Array, n: int) -> dict[str, Array]:
        x_key, y_key = jax.random.split(key)
        x = scale * jax.random.normal(x_key, (n,))
        y = curvature * (x**2 - scale**2) + jax.random.normal(y_key, (n,))
        return {"x": x, "y": y}

    reference = Reference(
        source="exact",
        mean={"x": np.zeros(()), "y": np.zeros(())},
        sd={"x": np.array(scale), "y": np.sqrt(1 + 2 * curvature**2 * scale**4)},
        log_evidence=0.0,
        draws=draws,
    )
    return Worked(bent_gaussian, {"curvature": curvature, "scale": scale}, reference)
