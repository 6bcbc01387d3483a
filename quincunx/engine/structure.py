"""What the compiler found in a model, for methods to ask and for users to read."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from quincunx.engine.composite import Composite
from quincunx.engine.dependence import influences
from quincunx.engine.program import Plate

if TYPE_CHECKING:
    from quincunx.engine.density import Density

_GAUSSIAN = frozenset(
    ("Normal", "MultivariateNormal", "LowRankMultivariateNormal", "GaussianRandomWalk", "CAR")
)


class GaussianPrior(NamedTuple):
    """A jointly Gaussian prior over the flat position: z = mean + cholesky @ N(0, I).

    Attributes:
        mean: shape `(dim,)`.
        cholesky: lower-triangular factor of the covariance, shape `(dim, dim)`.
    """

    mean: Float[Array, " dim"]
    cholesky: Float[Array, "dim dim"]


class Structure:
    """The structure of a compiled density."""

    def __init__(self, density: Density) -> None:
        self._density = density

    @property
    def data_plates(self) -> tuple[Plate, ...]:
        """Plates over rows of data, which methods may subsample or shard."""
        return self._density.program.data_plates

    @property
    def supports(self) -> dict[str, str]:
        """The support of each latent site."""
        return {site.name: site.support for site in self._density.program.latents}

    @functools.cached_property
    def composite(self) -> Composite:
        """The native-space potential as a smooth part and terms with proximal operators."""
        return Composite(self._density)

    @functools.cached_property
    def has_gaussian_prior(self) -> bool:
        """Whether the latent sites are jointly Gaussian a priori.

        They are where every site is Gaussian on the whole line and the Hessian of the log prior
        is the same at every position.
        """
        program = self._density.program
        if not program.latents or any(site.role == "factor" for site in program.sites):
            return False
        if any(not s.is_real or s.distribution not in _GAUSSIAN for s in program.latents):
            return False

        def curvature(leaves: Any, z: Any, direction: Any) -> Any:
            density = type(self._density)(leaves, None, program, self._density.labels)
            return jax.jvp(jax.grad(density.log_prior), (z,), (direction,))[1]

        z = jax.ShapeDtypeStruct((program.dim,), jnp.result_type(float))
        leaves = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in self._density.leaves]
        return len(leaves) not in influences(curvature, leaves, z, z)

    @functools.cached_property
    def gaussian_prior(self) -> GaussianPrior | None:
        """Mean and Cholesky factor of the prior where it is jointly Gaussian, else `None`."""
        return _gaussian(self._density) if self.has_gaussian_prior else None


@jax.jit
def _gaussian(density: Density) -> GaussianPrior:
    origin = jnp.zeros(density.dim)
    precision = -jax.hessian(density.log_prior)(origin)
    covariance = jnp.linalg.inv(precision)
    mean = covariance @ jax.grad(density.log_prior)(origin)
    return GaussianPrior(mean, jnp.linalg.cholesky(0.5 * (covariance + covariance.T)))
