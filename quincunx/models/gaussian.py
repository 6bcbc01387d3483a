r"""Gaussian targets that are hard for their geometry alone.

Ill-conditioned Gaussian, in \(d\) dimensions with condition number \(\kappa\):

\[ p(x) = N(x; 0, Q \Lambda Q^T), \qquad
   \Lambda_{ii} = \kappa^{(i-1)/(d-1)}, \quad i = 1, \dots, d, \]

with a fixed orthogonal \(Q\). Hyperplane disk, a thin disk around the plane \(\sum_i x_i = 0\):

\[ \gamma(x) = \exp\big(-(\textstyle\sum_i x_i)^2 - |x|^2\big), \qquad
   Z = \pi^{d/2} (1 + d)^{-1/2}, \]

a Gaussian with precision \(2 (I + 1 1^T)\) and covariance \(\tfrac12 (I - 1 1^T / (1 + d))\).
Known of both: mean, standard deviations, evidence, exact draws.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from quincunx.engine import from_log_density
from quincunx.models._registry import Reference, Worked, register

_ROTATION_SEED = 20


@register
def ill_conditioned_gaussian(*, dim: int = 100, condition: float = 1e3) -> Worked:
    """A rotated Gaussian with variances spread evenly in logarithm from 1 to `condition`."""
    if dim < 2 or condition < 1:
        raise ValueError(f"need dim >= 2 and condition >= 1, got {dim} and {condition}")
    variance = np.geomspace(1.0, condition, dim)
    normal = np.random.default_rng(_ROTATION_SEED).standard_normal((dim, dim))
    rotation = np.linalg.qr(normal)[0]
    whitener = rotation / np.sqrt(variance)[None, :]
    colourer = rotation * np.sqrt(variance)[None, :]
    log_norm = float(-0.5 * (dim * np.log(2 * np.pi) + np.log(variance).sum()))

    def log_density(x: Float[Array, " dim"], whitener: Float[Array, "dim dim"]) -> Float[Array, ""]:
        return log_norm - 0.5 * jnp.sum((x @ whitener) ** 2)

    def draws(key: Array, n: int) -> dict[str, Array]:
        return {"x": jax.random.normal(key, (n, dim)) @ jnp.asarray(colourer).T}

    reference = Reference(
        source="exact",
        mean={"x": np.zeros(dim)},
        sd={"x": np.sqrt((colourer**2).sum(axis=1))},
        log_evidence=0.0,
        draws=draws,
    )
    data = {"whitener": whitener}
    return Worked(from_log_density(log_density, np.zeros(dim)), data, reference)


@register
def hyperplane_disk(*, dim: int = 200) -> Worked:
    """The density exp(-(sum x)^2 - |x|^2): a thin disk, unnormalised."""
    if dim < 1:
        raise ValueError(f"need dim >= 1, got {dim}")
    shrink = (1.0 - (1.0 + dim) ** -0.5) / dim

    def log_density(x: Float[Array, " dim"]) -> Float[Array, ""]:
        return -(jnp.sum(x) ** 2) - jnp.sum(x**2)

    def draws(key: Array, n: int) -> dict[str, Array]:
        z = jax.random.normal(key, (n, dim))
        return {"x": 0.5**0.5 * (z - shrink * z.sum(axis=1, keepdims=True))}

    reference = Reference(
        source="exact",
        mean={"x": np.zeros(dim)},
        sd={"x": np.full(dim, np.sqrt(0.5 * dim / (1.0 + dim)))},
        log_evidence=float(0.5 * dim * np.log(np.pi) - 0.5 * np.log1p(dim)),
        draws=draws,
    )
    return Worked(from_log_density(log_density, np.zeros(dim)), {}, reference)
