r"""The learned part of a path kernel: a network of the place and the time.

    u_k(x) = clip(NN(clip(x, 20), e_k), 1e4) + g_k * clip(s_k(x), c),

where e_k embeds the time k / K, g_k is a gate for each coordinate, and s_k(x) is a score that is
known, taken as it is: no derivative goes through it. The last layers start at zero, so that u does.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_LARGEST, _FARTHEST = 1e4, 20.0
_FREQUENCIES = 16


class Times(NamedTuple):
    """What depends on the time alone, for all times at once.

    Attributes:
        embedded: `(steps + 1, width)`.
        gate: `(steps + 1, dim)`.
    """

    embedded: Float[Array, "time width"]
    gate: Float[Array, "time dim"]


class Control(eqx.Module):
    """A multilayer perceptron with a score feature.

    Attributes:
        time: maps sines and cosines of the time to an embedding.
        gates: maps them to the gate.
        place: maps the position into the first hidden layer.
        hidden: the second hidden layer.
        last: the output.
        limit: bound of the score feature, by coordinate.
    """

    time: eqx.nn.MLP
    gates: eqx.nn.MLP
    place: eqx.nn.Linear
    hidden: eqx.nn.Linear
    last: eqx.nn.Linear
    limit: float

    def __init__(
        self, dim: int, width: int, key: Array, *, gate: float, limit: float, out: int | None = None
    ) -> None:
        """Draw the weights.

        Args:
            dim: coordinates.
            width: of the hidden layers.
            key: the only source of randomness.
            gate: where the gate starts.
            limit: bound of the score feature.
            out: outputs, `dim` by default.
        """
        keys = jax.random.split(key, 5)
        out = dim if out is None else out
        inputs = 2 * _FREQUENCIES
        self.time = eqx.nn.MLP(inputs, width, width, 1, jax.nn.gelu, key=keys[0])
        gates = eqx.nn.MLP(inputs, out, width, 1, jax.nn.gelu, key=keys[1])
        last = lambda net: (net.layers[-1].weight, net.layers[-1].bias)  # noqa: E731
        weight, bias = last(gates)
        self.gates = eqx.tree_at(last, gates, (0 * weight, jnp.full_like(bias, gate)))
        self.place = eqx.nn.Linear(dim, width, key=keys[2])
        self.hidden = eqx.nn.Linear(width, width, key=keys[3])
        output = eqx.nn.Linear(width, out, key=keys[4])
        both = lambda layer: (layer.weight, layer.bias)  # noqa: E731
        self.last = eqx.tree_at(
            both, output, (0 * output.weight, jnp.zeros(out, output.weight.dtype))
        )
        self.limit = limit

    def times(self, steps: int) -> Times:
        """Everything that depends on the time alone."""
        t = jnp.linspace(0.0, 1.0, steps + 1, dtype=self.last.weight.dtype)
        angles = t[:, None] * jnp.pi * jnp.arange(1, _FREQUENCIES + 1, dtype=t.dtype)[None, :]
        features = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
        return Times(jax.vmap(self.time)(features), jax.vmap(self.gates)(features))

    def __call__(self, at: Times, x: Array, score: Array) -> Array:
        """The control at places `(n, dim)` and a time, or at `(n, dim)` and n times.

        Args:
            at: entries of `times`, each `(width,)` or `(n, width)`.
            x: places.
            score: the feature there.
        """
        embedded = jnp.broadcast_to(at.embedded, (x.shape[0], at.embedded.shape[-1]))
        h = jax.nn.gelu(_apply(self.place, jnp.clip(x, -_FARTHEST, _FARTHEST)) + embedded)
        h = jax.nn.gelu(_apply(self.hidden, h))
        out = jnp.clip(_apply(self.last, h), -_LARGEST, _LARGEST)
        feature = jnp.clip(jax.lax.stop_gradient(score), -self.limit, self.limit)
        return out + jnp.broadcast_to(at.gate, out.shape) * feature


def _apply(layer: eqx.nn.Linear, x: Array) -> Array:
    rows = x @ layer.weight.T
    return rows + jnp.broadcast_to(jnp.asarray(layer.bias), rows.shape)
