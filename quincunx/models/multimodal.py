r"""Targets with separate modes, whose weights a sampler has to find.

Gaussian mixture, with \(K\) means \(m_k\) on a circle and unequal weights:

\[ p(x) = \sum_{k=1}^K w_k N(x; m_k, \sigma^2 I), \qquad w_k = \frac{2 k}{K (K + 1)}. \]

Grid of 25 Gaussians, as in the literature on learned samplers: equal weights, means
\(\{-10, -5, 0, 5, 10\}^2\), variance 0.3. Many-well, in an even dimension \(d\): the sum over
\(d / 2\) pairs of a double well and a Gaussian,

\[ \log \gamma(x) = \sum_{i=1}^{d/2} \big(-a_i^4 + 6 a_i^2 + \tfrac12 a_i - \tfrac12 b_i^2\big),
   \qquad a_i = x_{2i-1},\ b_i = x_{2i}, \]

unnormalised; \(\log Z = 164.6957\) at \(d = 32\), where it has 65 536 modes. The wells are near
\(a = 1.7525\), with probability 0.8443, and \(a = -1.7108\). F. Noe et al., Science 365, 2019; L.
Midgley et al., "Flow annealed importance sampling bootstrap", ICLR 2023. Known of all: mean,
standard deviations, evidence, exact draws (the double well's by inverting its distribution
function on a fine grid).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from quincunx.engine import from_log_density
from quincunx.models._registry import Reference, Worked, register


def _mixture(means: np.ndarray, weights: np.ndarray, sd: float) -> Worked:
    """A mixture of Gaussians that share a spherical covariance."""
    dim = means.shape[1]
    log_height = np.log(weights) - dim * np.log(sd * np.sqrt(2 * np.pi))
    centre = weights @ means
    variance = sd**2 + weights @ (means - centre) ** 2

    def log_density(
        x: Float[Array, " dim"],
        means: Float[Array, "mode dim"],
        log_height: Float[Array, " mode"],
    ) -> Float[Array, ""]:
        square = jnp.sum((x[None, :] - means) ** 2, axis=1)
        return jax.scipy.special.logsumexp(log_height - 0.5 * square / sd**2)

    def draws(key: Array, n: int) -> dict[str, Array]:
        mode_key, noise_key = jax.random.split(key)
        mode = jax.random.categorical(mode_key, jnp.log(jnp.asarray(weights)), shape=(n,))
        noise = sd * jax.random.normal(noise_key, (n, dim))
        return {"x": jnp.asarray(means)[mode] + noise}

    reference = Reference(
        source="exact",
        mean={"x": centre},
        sd={"x": np.sqrt(variance)},
        log_evidence=0.0,
        draws=draws,
    )
    data = {"means": means, "log_height": log_height}
    return Worked(from_log_density(log_density, np.zeros(dim)), data, reference)


@register
def gaussian_mixture(
    *, dim: int = 2, modes: int = 4, radius: float = 5.0, sd: float = 1.0
) -> Worked:
    """Gaussian modes with unequal weights on a circle in the first two coordinates."""
    if dim < 2 or modes < 1 or sd <= 0:
        raise ValueError(f"need dim >= 2, modes >= 1 and sd > 0, got {dim}, {modes} and {sd}")
    angle = 2 * np.pi * np.arange(modes) / modes
    means = np.zeros((modes, dim))
    means[:, 0], means[:, 1] = radius * np.cos(angle), radius * np.sin(angle)
    weights = np.arange(1.0, modes + 1.0)
    return _mixture(means, weights / weights.sum(), sd)


@register
def grid_25() -> Worked:
    """Twenty-five equal Gaussians of variance 0.3 on the grid {-10, -5, 0, 5, 10}^2."""
    line = np.linspace(-10.0, 10.0, 5)
    means = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    return _mixture(means, np.full(25, 1 / 25), float(np.sqrt(0.3)))


@register
def many_well(*, dim: int = 32) -> Worked:
    """A product of dim / 2 tilted double wells and as many Gaussians, unnormalised."""
    if dim < 2 or dim % 2:
        raise ValueError(f"need an even dim >= 2, got {dim}")
    pairs = dim // 2
    grid = np.linspace(-4.5, 4.5, 20_001)
    mass = np.exp(-(grid**4) + 6 * grid**2 + 0.5 * grid)
    normaliser = mass.sum() * (grid[1] - grid[0])  # the trapezoidal rule: the ends are negligible
    share = mass / mass.sum()
    well_mean = share @ grid
    well_sd = np.sqrt(share @ (grid - well_mean) ** 2)
    cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (share[1:] + share[:-1]))])
    inside = (cumulative > 1e-12) & (cumulative < 1 - 1e-12)

    def log_density(x: Float[Array, " dim"]) -> Float[Array, ""]:
        a, b = x[0::2], x[1::2]
        return jnp.sum(-(a**4) + 6 * a**2 + 0.5 * a - 0.5 * b**2)

    def draws(key: Array, n: int) -> dict[str, Array]:
        well_key, normal_key = jax.random.split(key)
        uniform = jax.random.uniform(well_key, (n, pairs))
        a = jnp.interp(uniform, jnp.asarray(cumulative[inside]), jnp.asarray(grid[inside]))
        b = jax.random.normal(normal_key, (n, pairs))
        return {"x": jnp.stack([a, b], axis=-1).reshape(n, dim)}

    reference = Reference(
        source="exact up to one-dimensional quadrature",
        mean={"x": np.tile([well_mean, 0.0], pairs)},
        sd={"x": np.tile([well_sd, 1.0], pairs)},
        log_evidence=float(pairs * (np.log(normaliser) + 0.5 * np.log(2 * np.pi))),
        draws=draws,
    )
    return Worked(from_log_density(log_density, np.zeros(dim)), {}, reference)
