"""What the compiler found in a model, for methods to ask and for users to read."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from quincunx.engine import sharding, tracing
from quincunx.engine.composite import Composite
from quincunx.engine.dependence import influences, primitives
from quincunx.engine.program import Plate, Program

if TYPE_CHECKING:
    from quincunx.engine.density import Density

_CALLBACKS = frozenset(("pure_callback", "io_callback"))
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

    @property
    def has_gradient(self) -> bool:
        """Whether the log density can be differentiated: not where it calls back to Python."""
        return _has_gradient(self._density.program)

    @property
    def unit_vectors(self) -> np.ndarray:
        """For each coordinate of the position the number of its unit vector, -1 where it has none.

        Unit vectors keep their own coordinates, so that samplers may move them on the sphere.
        """
        return _unit_vectors(self._density.program)

    def shards(
        self, parts: int, *, sizes: Sequence[int] | None = None, prior: float = 1.0
    ) -> list[Density]:
        """The density as local ones, each with its own rows; uneven ones are padded and masked.

        Args:
            parts: how many.
            sizes: rows of each, in their order; as even as can be by default.
            prior: share of the log prior that counts in each; with `1 / parts` they add up to the
                whole.

        Raises:
            ModelError: the rows cannot be shared out so.
        """
        cut_up = sharding.cut(self._density, parts, sizes=sizes, prior=prior)
        return [sharding.local(cut_up, index) for index in range(parts)]

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
        leaves = program.signature.specs()
        return len(leaves) not in influences(curvature, leaves, z, z)

    @functools.cached_property
    def gaussian_prior(self) -> GaussianPrior | None:
        """Mean and Cholesky factor of the prior where it is jointly Gaussian, else `None`."""
        return _gaussian(self._density) if self.has_gaussian_prior else None


@functools.lru_cache(maxsize=128)
def _has_gradient(program: Program) -> bool:
    def terms(leaves: Any, z: Any) -> Any:
        substitution = program.substitution(z, {})
        data = program.signature.rebuild(leaves)
        trace = tracing.at_point(program.model, data, substitution)
        return [tracing.scaled(site) for site in trace.values() if site["type"] == "sample"]

    leaves = program.signature.specs()
    z = jax.ShapeDtypeStruct((program.dim,), jnp.result_type(float))
    return _CALLBACKS.isdisjoint(primitives(jax.make_jaxpr(terms)(leaves, z).jaxpr))


@functools.lru_cache(maxsize=128)
def _unit_vectors(program: Program) -> np.ndarray:
    block, number = np.full(program.dim, -1), 0
    for site in program.latents:
        if site.is_sphere:
            count = site.size // site.unconstrained_shape[-1]
            numbers = number + np.arange(count)
            block[site.offset : site.offset + site.size] = np.repeat(numbers, site.size // count)
            number += count
    block.flags.writeable = False
    return block


@jax.jit
def _gaussian(density: Density) -> GaussianPrior:
    origin = jnp.zeros(density.dim)
    precision = -jax.hessian(density.log_prior)(origin)
    covariance = jnp.linalg.inv(precision)
    mean = covariance @ jax.grad(density.log_prior)(origin)
    return GaussianPrior(mean, jnp.linalg.cholesky(0.5 * (covariance + covariance.T)))
