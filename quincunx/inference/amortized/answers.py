r"""Weighted draws for a data set, and what is told of them.

For data y, draws z_i of the network have the weights

    w_i = p(z_i, y) / q(z_i | y),    evidence ~ mean w,

with p the model's density, Jacobians of the unconstrained space included.

Dax, Green, Gair, Purrer, Wildberger, Macke, Buonanno and Schoelkopf (2023), Neural importance
sampling for rapid and reliable gravitational-wave inference, Physical Review Letters 130:171403.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
from jaxtyping import Array

from quincunx.inference.amortized import novelty as novelties
from quincunx.inference.amortized.inputs import inputs_of, with_rows
from quincunx.inference.amortized.network import Network
from quincunx.inference.amortized.novelty import Novelty
from quincunx.inference.amortized.sources import Source
from quincunx.inference.method import Kind, Method

GOOD, POOR = 0.5, 0.7  # values of Pareto k between which more draws are made


class Conditional(Method):
    """What is told of draws from a trained conditional sampler.

    Attributes:
        head: the kind of the conditional density.
        width: of the networks' layers.
        steps: of the training.
    """

    name: ClassVar[str] = "amortized"
    kind: ClassVar[Kind] = Kind.WEIGHTED
    summary: ClassVar[str] = "Posteriors in milliseconds from a network trained on simulations."
    citation: ClassVar[str] = (
        "Cranmer, Brehmer and Louppe (2020), The frontier of simulation-based inference, PNAS 117"
    )

    head: str = "auto"
    width: int = 64
    steps: int = 0


class Draws(NamedTuple):
    """Draws for a data set, with what is known of them.

    Attributes:
        z: positions, `(n, dim)`.
        log_q: their log density under the network.
        log_density: under the model.
        values: constrained values by site.
        distance: of the data from simulated ones; beyond one they are unlike them.
    """

    z: Any
    log_q: Any
    log_density: Any
    values: dict[str, Any]
    distance: Any

    @property
    def log_weight(self) -> Any:
        """Logarithms of the importance weights."""
        return self.log_density - self.log_q


@eqx.filter_jit
def draw(
    network: Network, novelty: Novelty, source: Source, counts: tuple, key: Array, n: int
) -> Draws:
    """Draws for the data set that the source's density holds."""
    density = with_rows(source.density, source.layout, counts)
    inputs = inputs_of(source.layout, source.density.leaves, counts)
    context = network.encoder(inputs)
    z, log_q = network.draw(key, context, n)
    log_density = jax.vmap(density.log_density)(z)
    values = jax.vmap(density.constrain)(z)
    distance = novelties.unlike(novelty, network, context, inputs)
    return Draws(z, log_q, log_density, values, distance)


def notes(answered_by: str, k: float, distance: float) -> dict[str, str | float]:
    """Attributes of a fit's posterior."""
    return {
        "answered_by": answered_by,
        "amortized_pareto_k": k,
        "amortized_distance": distance,
    }
