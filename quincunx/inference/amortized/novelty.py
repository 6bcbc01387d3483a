r"""Whether data are unlike those that a network was trained on.

With c(y) the context of data y, and m and S its mean and covariance over simulated data sets,

    D(y)^2 = (c(y) - m)^T S^{-1} (c(y) - m),

and data are unlike the simulated ones beyond the 99.5 % quantile of D over other simulated data
sets. Also where a number that was the same in all of them is another one. Weights against the true
density say how well draws fit the posterior where they are; this says where a network has not been.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from quincunx.inference.amortized.inputs import Inputs
from quincunx.inference.amortized.network import Network
from quincunx.inference.amortized.sources import Source

_SIMULATED, _QUANTILE, _RIDGE = 4096, 0.995, 1e-6


class Novelty(eqx.Module):
    """The law of contexts.

    Attributes:
        mean: m.
        whitening: W with W W^T = S^{-1}, transposed.
        limit: the quantile of D.
    """

    mean: Float[Array, " width"]
    whitening: Float[Array, "width width"]
    limit: Float[Array, ""]

    def distance(self, context: Float[Array, " width"]) -> Float[Array, ""]:
        """D over its limit: beyond one, data are unlike the simulated ones."""
        return self._raw(context) / self.limit

    def _raw(self, context: Array) -> Array:
        return jnp.linalg.norm(self.whitening @ (context.astype(self.mean.dtype) - self.mean))


def unlike(novelty: Novelty, network: Network, context: Array, inputs: Inputs) -> Array:
    """The distance, infinite where a number that never varied is another one."""
    unseen = network.encoder.unseen(inputs)
    return jnp.where(unseen, jnp.inf, novelty.distance(context))


@eqx.filter_jit
def learn(source: Source, network: Network, key: Array) -> Novelty:
    """The law of contexts of simulated data sets."""

    def context(key: Array) -> Array:
        return network.encoder(source.inputs(source(key)))

    keys = jax.random.split(key, _SIMULATED)
    contexts = jax.lax.map(context, keys, batch_size=256).astype(jnp.result_type(float))
    finite = jnp.isfinite(contexts).all(axis=1)
    contexts = jnp.where(finite[:, None], contexts, jnp.nan)
    learned, kept = jnp.split(contexts, 2)
    mean = jnp.nanmean(learned, axis=0)
    centred = jnp.where(jnp.isfinite(learned), learned - mean[None], 0.0)
    covariance = centred.T @ centred / jnp.maximum(jnp.sum(finite[: len(learned)]) - 1, 1)
    width = mean.shape[0]
    ridge = _RIDGE * jnp.trace(covariance) / width + jnp.finfo(mean.dtype).tiny
    factor = jnp.linalg.cholesky(covariance + ridge * jnp.eye(width))
    whitening = jax.scipy.linalg.solve_triangular(factor, jnp.eye(width), lower=True)
    unit = Novelty(mean, whitening, jnp.ones(()))
    return Novelty(mean, whitening, jnp.nanquantile(jax.vmap(unit.distance)(kept), _QUANTILE))


def blank(width: int) -> Novelty:
    """One of the right shapes, for loading."""
    return Novelty(jnp.zeros(width), jnp.eye(width), jnp.ones(()))
